package remote

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/store"
)

// A network connects to hosts in memory. Its time may be that of a synctest
// bubble, in which loopback TCP would hang.
type network struct {
	mu    sync.Mutex
	hosts map[string]*host
}

// A host serves HTTP, until it fails in one of the ways there are.
type host struct {
	mu    sync.Mutex
	delay time.Duration // of what is sent, one way
	state string        // "", refuses, lost (packets vanish), mute (only answers do)
	moved chan struct{}
	slow  time.Duration // what a new connection takes
	conns map[*link]bool
	dials int
	calls chan net.Conn // to be accepted
	done  chan struct{}
}

func (n *network) host(addr string) *host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[addr]
}

// serve adds a host at addr that serves h until the test ends.
func (n *network) serve(t *testing.T, addr string, delay time.Duration, h http.Handler) *host {
	t.Helper()
	s := &host{delay: delay, moved: make(chan struct{}), conns: make(map[*link]bool), calls: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	if n.hosts == nil {
		n.hosts = make(map[string]*host)
	}
	n.hosts[addr] = s
	n.mu.Unlock()
	srv := NewHTTPServer(h, slog.New(slog.DiscardHandler))
	served := make(chan struct{})
	go func() { srv.Serve(s); close(served) }()
	t.Cleanup(func() {
		s.become("refuses")
		srv.Close()
		<-served
	})
	return s
}

// become makes the host fail, or work ("").
func (s *host) become(state string) {
	s.mu.Lock()
	s.state = state
	close(s.moved)
	s.moved = make(chan struct{})
	var conns []*link
	if state == "refuses" {
		for c := range s.conns {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// is makes the host that far away.
func (s *host) is(delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = delay
}

func (s *host) now() (state string, moved <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.moved
}

func (s *host) times() (delay, slow time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delay, s.slow
}

// reach waits until packets arrive, which takes d: answers or others.
func (s *host) reach(done <-chan struct{}, d time.Duration, answer bool) error {
	select {
	case <-time.After(d):
	case <-done:
		return net.ErrClosed
	}
	for {
		state, moved := s.now()
		switch {
		case state == "", state == "mute" && !answer:
			return nil
		case state == "refuses":
			return syscall.ECONNREFUSED
		}
		select {
		case <-moved:
		case <-done:
			return net.ErrClosed
		}
	}
}

// Dial is for Config.Dial.
func (n *network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	s := n.host(addr)
	if s == nil {
		return nil, syscall.EHOSTUNREACH
	}
	delay, slow := s.times()
	if err := s.reach(ctx.Done(), 2*delay+slow, false); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	a, b := net.Pipe()
	near := &link{Conn: a, host: s, closed: make(chan struct{})}
	far := &link{Conn: b, host: s, far: true, closed: make(chan struct{})}
	s.mu.Lock()
	s.conns[near], s.conns[far] = true, true
	s.dials++
	s.mu.Unlock()
	select {
	case s.calls <- far:
		return near, nil
	case <-s.done:
		return nil, syscall.ECONNREFUSED
	}
}

// Accept, Close and Addr make a host a net.Listener.
func (s *host) Accept() (net.Conn, error) {
	select {
	case c := <-s.calls:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *host) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	return nil
}

func (s *host) Addr() net.Addr { return &net.TCPAddr{} }

// A link is one end of a connection to a host.
type link struct {
	net.Conn
	host   *host
	far    bool // the host's end
	once   sync.Once
	closed chan struct{}
}

func (l *link) Write(p []byte) (int, error) {
	delay, _ := l.host.times()
	if err := l.host.reach(l.closed, delay, l.far); err != nil {
		return 0, err
	}
	return l.Conn.Write(p)
}

func (l *link) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.host.mu.Lock()
		delete(l.host.conns, l)
		l.host.mu.Unlock()
	})
	return l.Conn.Close()
}

// A spy is a Store that counts and may do something before each operation.
type spy struct {
	store.Store
	before func(ctx context.Context, op string, key store.Key) error

	mu   sync.Mutex
	keys map[store.Key]int // how often each was asked for
	ops  int
}

func (s *spy) see(ctx context.Context, op string, key store.Key) error {
	s.mu.Lock()
	if s.keys == nil {
		s.keys = make(map[store.Key]int)
	}
	s.keys[key]++
	s.ops++
	before := s.before
	s.mu.Unlock()
	if before != nil {
		return before(ctx, op, key)
	}
	return nil
}

// do makes fn run before each operation.
func (s *spy) do(fn func(ctx context.Context, op string, key store.Key) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = fn
}

// seen returns the number of operations, and forgets them.
func (s *spy) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.ops
	s.ops, s.keys = 0, nil
	return n
}

func (s *spy) asked(key store.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[key] > 0
}

func (s *spy) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if err := s.see(ctx, "get", key); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, key, off, n)
}

func (s *spy) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := s.see(ctx, "put", key); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, data)
}

func (s *spy) Delete(ctx context.Context, key store.Key) error {
	if err := s.see(ctx, "delete", key); err != nil {
		return err
	}
	return s.Store.Delete(ctx, key)
}
