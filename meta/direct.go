package meta

import (
	"context"
	"log/slog"
	"net"
	"sync"
)

// A Local is a service in this process: the real frames and codec over
// [net.Pipe], without a network. Tests in a synctest bubble need it.
type Local struct {
	pipe   *pipeListener
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Direct serves h until Close.
func Direct(h Handler, log *slog.Logger) *Local {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Local{
		pipe:   &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})},
		cancel: cancel,
	}
	l.wg.Go(func() { Serve(ctx, l.pipe, h, log) })
	return l
}

// Dial opens a connection. It is a ClientConfig's Dial.
func (l *Local) Dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.pipe.conns <- server:
		return client, nil
	case <-l.pipe.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close breaks all connections and waits for their requests.
func (l *Local) Close() error {
	l.cancel()
	l.wg.Wait()
	return nil
}

type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-p.conns:
		return nc, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
