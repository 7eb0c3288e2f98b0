package faultnet

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What is under way on one connection in one direction: at most inFlight
// pieces of at most maxPiece bytes, 4 MiB.
const (
	maxPiece = 32 << 10
	inFlight = 128
)

// The two ends of a link; a direction is named after the end that sends.
const (
	client = iota
	server
)

// A link is a connection from a client and its continuation to the server.
type link struct {
	n      *Net
	born   time.Time
	ctx    context.Context // ends with the link
	cancel context.CancelFunc
	bytes  atomic.Int64 // to be passed on, both ways together

	mu   sync.Mutex
	ends [2]*net.TCPConn // the server's is nil until it is connected to
	rst  bool            // the ends were reset
	lost [2]bool         // a direction lost something
}

// begin takes over a connection from a client.
func (n *Net) begin(conn *net.TCPConn) {
	l := &link{n: n, born: time.Now(), ends: [2]*net.TCPConn{client: conn}}
	l.ctx, l.cancel = context.WithCancel(n.ctx)
	n.mu.Lock()
	n.links[l] = true
	refused := n.line.State == Refused
	n.mu.Unlock()
	if refused || n.ctx.Err() != nil {
		l.reset()
	}
	n.wg.Go(func() {
		l.run()
		l.close()
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.links, l)
	})
}

// run carries what is sent until both ends have ended.
func (l *link) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	switch state := l.thawed().State; {
	case l.ctx.Err() != nil:
		return
	case state == Lost: // the server never hears of it
		l.lose(client)
	case !l.connect():
		l.reset()
		return
	default:
		wg.Go(func() { l.carry(server) })
	}
	wg.Go(func() { l.carry(client) })
}

// thawed waits while the line is frozen, and returns what it is like then. The
// link may have ended.
func (l *link) thawed() Line {
	for {
		line, moved := l.n.now()
		if line.State != Frozen {
			return line
		}
		select {
		case <-moved:
		case <-l.ctx.Done():
			return line
		}
	}
}

// connect connects to the server.
func (l *link) connect() bool {
	l.n.mu.Lock()
	target := l.n.target
	l.n.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(l.ctx, "tcp", target)
	if err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends[server] = conn.(*net.TCPConn)
	return !l.rst
}

// A piece is bytes, and the end if that comes after them. It is delivered when
// it is due and all before it are.
type piece struct {
	due  time.Time
	data []byte
	err  error // io.EOF: nothing more is sent; another: the sender is gone
}

// carry passes on what one end sends, until it ends.
func (l *link) carry(from int) {
	queue := make(chan piece, inFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(queue)
		l.read(from, queue)
	})
	for p := range queue {
		if !l.pass(from, p) {
			l.reset()
		}
	}
}

// read takes what one end sends.
func (l *link) read(from int, queue chan<- piece) {
	buf := make([]byte, maxPiece)
	for {
		n, err := l.end(from).Read(buf)
		p := piece{due: l.due(from), data: slices.Clone(buf[:n]), err: err}
		select {
		case queue <- p:
		case <-l.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// due returns when something that is sent now arrives. What a client sends
// first it would not have sent before the connection was made, which takes a
// round trip.
func (l *link) due(from int) time.Time {
	line, _ := l.n.now()
	d := line.Latency
	if line.Jitter > 0 {
		d += rand.N(line.Jitter)
	}
	due := time.Now().Add(d)
	if first := l.born.Add(2*line.Latency + d); from == client && due.Before(first) {
		due = first
	}
	return due
}

// pass delivers a piece when it is due, or loses it. It returns false when the
// link is to be reset.
func (l *link) pass(from int, p piece) bool {
	l.until(p.due, nil)
	l.squeeze(from, int64(len(p.data)))
	line := l.thawed()
	switch {
	case l.ctx.Err() != nil:
		return true
	case line.State == Lost || line.State == Mute && from == server:
		l.lose(from)
	}
	if l.hasLost(from) {
		return true
	}
	if !l.deliver(from, p.data, line.CutAfter) || p.err != nil && p.err != io.EOF {
		return false
	}
	if p.err == io.EOF {
		l.end(1 - from).CloseWrite()
	}
	return true
}

// squeeze waits until the line has sent so many bytes.
func (l *link) squeeze(from int, bytes int64) {
	for {
		line, moved := l.n.now()
		if line.Rate <= 0 || bytes == 0 || l.until(l.n.turn(from, bytes, line.Rate), moved) {
			return
		}
	}
}

// until waits until due or until the link ends. It returns false if stop was
// closed before.
func (l *link) until(due time.Time, stop <-chan struct{}) bool {
	d := time.Until(due)
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	case <-stop:
		return false
	}
	return true
}

// deliver writes to the other end. It returns false when that fails, or when
// the link has carried all that it may.
func (l *link) deliver(from int, data []byte, cutAfter int64) bool {
	if len(data) == 0 {
		return true
	}
	cut := false
	if over := l.bytes.Add(int64(len(data))) - cutAfter; cutAfter > 0 && over >= 0 {
		data, cut = data[:max(int64(len(data))-over, 0)], true
	}
	l.n.bytes.Add(int64(len(data)))
	_, err := l.end(1 - from).Write(data)
	return err == nil && !cut
}

func (l *link) end(i int) *net.TCPConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ends[i]
}

// lose notes that a direction lost something.
func (l *link) lose(from int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost[from] = true
}

func (l *link) hasLost(from int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost[from]
}

// reset ends the link as a crash of both machines would.
func (l *link) reset() {
	l.mu.Lock()
	l.rst = true
	for _, c := range l.ends {
		if c != nil {
			c.SetLinger(0)
		}
	}
	l.mu.Unlock()
	l.close()
}

// close ends what is left.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancel()
	for _, c := range l.ends {
		if c != nil {
			c.Close()
		}
	}
}
