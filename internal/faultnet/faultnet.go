// Package faultnet is a network that fails on demand: a TCP proxy in this
// process that stands between a client and a server of a test, and makes the way
// between them slow, narrow, or broken in the ways that real ones are.
package faultnet

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A State says what becomes of what is sent.
type State int

const (
	// Open passes everything.
	Open State = iota
	// Refused is a machine without the server: connections are refused, and
	// those that there are get reset.
	Refused
	// Lost is a way that ends nowhere: connections are accepted, and what is
	// sent is taken and vanishes, as does an end. A connection that lost
	// something passes nothing more in that direction, whatever comes later.
	Lost
	// Mute passes what clients send, and loses the answers as Lost does:
	// requests are done, and nobody is told.
	Mute
	// Frozen holds everything back, new connections too, as a server that is
	// stopped does. It goes on when the state changes.
	Frozen
)

var stateNames = [...]string{"open", "refused", "lost", "mute", "frozen"}

func (s State) String() string { return stateNames[s] }

// A Line is what the way is like. The zero value is a perfect one.
type Line struct {
	State State

	Latency time.Duration // one way
	Jitter  time.Duration // at most, added to Latency at random; the order of bytes stays
	Rate    int64         // bytes per second in each direction, of all connections together; 0: no limit

	// CutAfter resets each connection that has carried so many bytes, both
	// ways together and counted since it was made; 0: none.
	CutAfter int64
}

// A Net stands before one server. All methods may be called concurrently.
type Net struct {
	addr   *net.TCPAddr
	hold   int             // a socket that keeps the port while nobody listens
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	bytes  atomic.Int64

	changing sync.Mutex // one Set or Close at a time

	mu     sync.Mutex
	target string
	line   Line
	moved  chan struct{} // closed when line changes
	ln     *net.TCPListener
	links  map[*link]bool
	free   [2]time.Time // when the line has sent what it was given, by direction
}

// New returns a perfect line from a free loopback port, see Addr, to the server
// at target, which need not be there yet. The caller must Close it.
func New(target string) (*Net, error) {
	hold, addr, err := reserve()
	if err != nil {
		return nil, fmt.Errorf("faultnet: %w", err)
	}
	n := &Net{addr: addr, hold: hold, target: target, moved: make(chan struct{}), links: make(map[*link]bool)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.listen(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// reserve binds a free port and does not listen at it: whoever connects is
// refused, and nobody else is given the port.
func reserve() (fd int, addr *net.TCPAddr, err error) {
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var name syscall.Sockaddr
	if err == nil {
		name, err = syscall.Getsockname(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, nil, err
	}
	return fd, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}, nil
}

// listen begins to accept connections.
func (n *Net) listen() error {
	ln, err := net.ListenTCP("tcp4", n.addr)
	if err != nil {
		return fmt.Errorf("faultnet: %w", err)
	}
	n.mu.Lock()
	n.ln = ln
	n.mu.Unlock()
	n.wg.Go(func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return // it was closed
			}
			n.begin(conn)
		}
	})
	return nil
}

// Addr returns where clients connect to. It does not change.
func (n *Net) Addr() string { return n.addr.String() }

// SetTarget changes the server for connections that come from now on.
func (n *Net) SetTarget(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.target = addr
}

// Set changes the line, also for connections that there are. What is on its way
// already keeps its latency.
func (n *Net) Set(line Line) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	was, ln := n.line.State, n.ln
	n.line, n.free = line, [2]time.Time{}
	close(n.moved)
	n.moved = make(chan struct{})
	n.mu.Unlock()
	switch {
	case n.ctx.Err() != nil:
		return nil
	case line.State == Refused && was != Refused:
		ln.Close()
		n.Cut()
	case line.State != Refused && was == Refused:
		return n.listen()
	}
	return nil
}

// Line returns what the line is like now.
func (n *Net) Line() Line {
	line, _ := n.now()
	return line
}

func (n *Net) now() (line Line, moved <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.line, n.moved
}

// Cut resets all connections that there are.
func (n *Net) Cut() {
	for _, l := range n.list() {
		l.reset()
	}
}

// Conns returns how many connections there are.
func (n *Net) Conns() int { return len(n.list()) }

// Bytes returns how many bytes were passed on, both ways together.
func (n *Net) Bytes() int64 { return n.bytes.Load() }

func (n *Net) list() []*link {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]*link, 0, len(n.links))
	for l := range n.links {
		list = append(list, l)
	}
	return list
}

// Close resets all connections, refuses others, and returns when nothing of n
// runs any more.
func (n *Net) Close() {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.ctx.Err() != nil {
		return
	}
	n.cancel()
	n.mu.Lock()
	ln := n.ln
	n.mu.Unlock()
	if ln != nil {
		ln.Close()
	}
	n.Cut()
	n.wg.Wait()
	syscall.Close(n.hold)
}

// turn returns when bytes that are sent now will have gone through at the rate.
func (n *Net) turn(direction int, bytes, rate int64) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); n.free[direction].Before(now) {
		n.free[direction] = now
	}
	n.free[direction] = n.free[direction].Add(time.Duration(float64(bytes) / float64(rate) * float64(time.Second)))
	return n.free[direction]
}
