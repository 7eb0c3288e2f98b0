package remote

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	defaultConns   = 16384
	defaultPerHost = 4096

	// warnEvery is how often it is logged that connections are refused.
	warnEvery = time.Minute
)

// Limits bound the connections that a server has. Each takes a descriptor and
// some 20 KiB, whoever is at its other end.
type Limits struct {
	Conns   int // in all; 0 is 16384
	PerHost int // from one IPv4 address, or one IPv6 network of 64 bits; 0 is 4096
}

// A Listener keeps connections within limits: what comes beyond them is closed
// at once.
type Listener struct {
	net.Listener
	limits Limits
	log    *slog.Logger

	mu      sync.Mutex
	open    int                // guarded by mu
	hosts   map[netip.Addr]int // open ones; guarded by mu
	refused int64              // guarded by mu
	warned  time.Time          // guarded by mu
}

// Limit returns ln with limits. TLS belongs above it.
func Limit(ln net.Listener, limits Limits, log *slog.Logger) *Listener {
	if limits.Conns <= 0 {
		limits.Conns = defaultConns
	}
	if limits.PerHost <= 0 {
		limits.PerHost = defaultPerHost
	}
	return &Listener{Listener: ln, limits: limits, log: log, hosts: make(map[netip.Addr]int)}
}

// ConnStats are the connections of a [Listener].
type ConnStats struct {
	Open    int64 `json:"open"`    // now
	Refused int64 `json:"refused"` // since the start
}

// Stats returns the numbers of the moment.
func (l *Listener) Stats() ConnStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return ConnStats{Open: int64(l.open), Refused: l.refused}
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := hostOf(c.RemoteAddr())
		if l.enter(host) {
			return &limitedConn{Conn: c, leave: func() { l.leave(host) }}, nil
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0) // a reset: nothing of it stays here
		}
		c.Close()
	}
}

// enter reports whether there is room for one more from host.
func (l *Listener) enter(host netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open < l.limits.Conns && l.hosts[host] < l.limits.PerHost {
		l.open++
		l.hosts[host]++
		return true
	}
	l.refused++
	if now := time.Now(); now.Sub(l.warned) >= warnEvery {
		l.warned = now
		l.log.Warn("too many connections, more are refused", "host", host, "from_host", l.hosts[host], "of", l.limits.PerHost,
			"in_all", l.open, "of_all", l.limits.Conns)
	}
	return false
}

func (l *Listener) leave(host netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

// hostOf returns what connections are counted by: of IPv6 the network, because
// one host may have all addresses of it. What has no address is one host.
func hostOf(addr net.Addr) netip.Addr {
	from, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := from.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip
	}
	network, _ := ip.Prefix(64) // fails for lengths only that no address has
	return network.Addr()
}

// A limitedConn is counted until it is closed.
type limitedConn struct {
	net.Conn
	once  sync.Once
	leave func()
	late  atomic.Bool // the client did not take what it was sent in time
}

// Write implements [net.Conn]. A client that was late once gets nothing more:
// when TLS is closed it would else be waited for again.
func (c *limitedConn) Write(p []byte) (int, error) {
	if c.late.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.late.Store(true)
	}
	return n, err
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	defer c.once.Do(c.leave)
	return c.Conn.Close()
}

// ReadFrom implements [io.ReaderFrom]: a file goes from the kernel to the
// client, if the connection can do that.
func (c *limitedConn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// SyscallConn implements [syscall.Conn].
func (c *limitedConn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite lets a server close a connection so that the client still gets the
// last answer.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
