package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	dialTimeout = 5 * time.Second

	// stallTimeout is how long a connection may move no byte at all. It
	// stands in for a timeout per block, which would have to know how slow
	// a link may be.
	stallTimeout = 30 * time.Second
)

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return stallConn{c, stallTimeout}, nil
}

// A stallConn fails when it has moved nothing for a while. A write gives the
// reader time too: while a block is being sent, nobody expects an answer.
type stallConn struct {
	net.Conn
	timeout time.Duration
}

func (c stallConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// sendSize is how much is sent at a time, which is a system call and may wake the
// other side. It stays in the processor's cache.
const sendSize = 256 << 10

var sendBuffers = sync.Pool{New: func() any { return new([sendSize]byte) }}

// ReadFrom sends what r has. Without it, an HTTP client sends bodies in steps of
// 32 KiB.
func (c stallConn) ReadFrom(r io.Reader) (int64, error) {
	b := sendBuffers.Get().(*[sendSize]byte)
	defer sendBuffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{c}, r, b[:])
}

// Write goes on while any byte moves: it looks each half of the timeout.
func (c stallConn) Write(b []byte) (n int, err error) {
	quiet := false // for half of the timeout
	for {
		now := time.Now()
		if err := errors.Join(c.SetReadDeadline(now.Add(2*c.timeout)), c.SetWriteDeadline(now.Add(c.timeout/2))); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(b[n:min(n+sendSize, len(b))])
		n += m
		if errors.Is(err, os.ErrDeadlineExceeded) && (m > 0 || !quiet) {
			quiet = m == 0
			continue
		}
		if err != nil {
			return n, err
		}
		quiet = false
		if n == len(b) {
			return n, c.SetReadDeadline(time.Now().Add(c.timeout))
		}
	}
}

// A body is the data of a Put on its way out. An HTTP client may still be
// reading it when the request has failed already; after release it reads no
// more, so that the caller may change the data.
type body struct {
	mu   sync.Mutex
	data []byte // guarded by mu
	off  int64  // guarded by mu
	gone bool   // guarded by mu
}

var errReleased = errors.New("the request is over")

func newBody(data []byte) *body { return &body{data: data} }

func (b *body) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data, b.gone = nil, true
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return 0, errReleased
	}
	if b.off >= int64(len(b.data)) {
		return 0, io.EOF
	}
	n := copy(p, b.data[b.off:])
	b.off += int64(n)
	return n, nil
}

func (b *body) Seek(off int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += b.off
	case io.SeekEnd:
		off += int64(len(b.data))
	}
	if off < 0 {
		return 0, errors.New("seek before the start")
	}
	b.off = off
	return off, nil
}
