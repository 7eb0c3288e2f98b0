package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxConns bounds the connections of one Serve: 16384 × (64 KiB of read buffer
// and two goroutines) is about 1.2 GiB.
const maxConns = 16384

// Serve answers requests with h on the connections that ln accepts, until ctx
// is done or ln is closed. Then it breaks all connections, waits for their
// requests and returns. Clients connect again and repeat what was not answered,
// so there is nothing to drain.
//
// The contexts of a connection's requests end when it breaks. A request that
// is not understood is answered with EBADMSG, a panic of h with EIO. h sees
// every operation but OpCancel, and OpHello first. If it answers ENOTCONN, the
// connection has no session any more and the request was not done: the client
// connects again.
func Serve(ctx context.Context, ln net.Listener, h Handler, log *slog.Logger) error {
	s := &server{handler: h, log: log, tasks: make(chan task), conns: make(map[*serverConn]bool)}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	err := s.accept(ctx, ln)
	ln.Close()
	s.shutdown()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("meta: accept: %w", err)
}

type server struct {
	handler Handler
	log     *slog.Logger
	wg      sync.WaitGroup // of connections

	tasks   chan task // to a worker that is idle
	idle    atomic.Int32
	workers sync.WaitGroup

	mu    sync.Mutex
	conns map[*serverConn]bool
}

// accept returns when ctx is done or the listener closed. Other failures, as
// of too many open files, pass.
func (s *server) accept(ctx context.Context, ln net.Listener) error {
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(nc)
			continue
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("cannot accept a connection", "err", err, "pause", pause)
		if !sleep(ctx, pause) {
			return err
		}
	}
}

func (s *server) start(nc net.Conn) {
	c := newServerConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		s.log.Warn("too many connections, one is refused", "client", c.String(), "max", maxConns)
		nc.Close()
		return
	}
	s.conns[c] = true
	s.wg.Go(c.serve)
}

func (s *server) forget(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *server) shutdown() {
	s.mu.Lock()
	for c := range s.conns {
		c.close(errors.New("server stops"))
	}
	s.mu.Unlock()
	s.wg.Wait()
	close(s.tasks)
	s.workers.Wait()
}

// States of a serverConn.
const (
	stateNew      = iota // no OpHello yet, or one that is Partial
	stateGreeting        // an OpHello is being answered
	stateOpen            // and was: all other operations are allowed
)

// A serverConn is a connection as the server has it. It is the Conn that the
// Handler sees.
type serverConn struct {
	*framer
	server *server
	pushes *calls
	room   chan struct{} // has an element per unanswered push

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // of requests

	mu     sync.Mutex
	state  int
	hellos int                           // that came
	part   uint64                        // the session of an answered OpHello that is Partial; 0: none was
	active int                           // unanswered requests that do not wait
	waits  map[uint64]context.CancelFunc // unanswered waiting locks
	idle   time.Duration                 // silence after which the client is taken for dead
}

func newServerConn(s *server, nc net.Conn) *serverConn {
	f := newFramer(nc)
	c := &serverConn{
		framer: f,
		server: s,
		pushes: newCalls(f, kindPushRequest),
		room:   make(chan struct{}, MaxPushes),
		waits:  make(map[uint64]context.CancelFunc),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// String returns the client's address.
func (c *serverConn) String() string { return c.nc.RemoteAddr().String() }

// Close breaks the connection.
func (c *serverConn) Close() error {
	c.close(errors.New("closed by the handler"))
	return nil
}

// Push sends a request to the client and waits for its reply.
func (c *serverConn) Push(ctx context.Context, req *Request) (*Reply, error) {
	select {
	case c.room <- struct{}{}:
	case <-c.done:
		return nil, fmt.Errorf("meta: push %v to %v: %w", req.Op, c, c.reason())
	case <-ctx.Done():
		return nil, fmt.Errorf("meta: push %v to %v: %w", req.Op, c, ctx.Err())
	}
	leave := func() { <-c.room }
	reply, err := c.push(ctx, req, leave)
	if !errors.Is(err, errAbandoned) {
		leave()
	}
	if err != nil {
		return nil, fmt.Errorf("meta: push %v to %v: %w", req.Op, c, err)
	}
	return reply, nil
}

func (c *serverConn) push(ctx context.Context, req *Request, late func()) (*Reply, error) {
	k, err := c.pushes.start(ctx, req)
	if err != nil {
		return nil, err
	}
	return c.pushes.await(ctx, k, late)
}

// serve runs the connection from its start to its end.
func (c *serverConn) serve() {
	defer c.server.forget(c)
	c.nc.SetReadDeadline(time.Now().Add(handshakeTimeout))
	var writer sync.WaitGroup
	writer.Go(c.writeQueued)
	err := c.read()
	c.close(err)
	c.cancel()
	c.pushes.end()
	writer.Wait()
	c.wg.Wait()
	c.server.log.Debug("connection ended", "client", c.String(), "reason", c.reason())
	c.server.handler.Closed(c)
}

// read takes frames until the connection ends. It never waits for a handler.
func (c *serverConn) read() error {
	var next time.Time // when to move the read deadline
	for {
		h, body, err := c.receive()
		if err != nil {
			return err
		}
		if idle := c.idleTime(); idle > 0 && !time.Now().Before(next) {
			next = time.Now().Add(idle / 4)
			c.nc.SetReadDeadline(time.Now().Add(idle))
		}
		switch h.kind {
		case kindPushReply:
			if k, a := c.pushes.answer(h, body); k != nil {
				k.finish(a)
			}
		case kindRequest:
			if err := c.request(h, body); err != nil {
				return err
			}
		default:
			return fmt.Errorf("meta: frame of kind %d from a client", h.kind)
		}
	}
}

func (c *serverConn) idleTime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle
}

// request starts the work on a request. An error is a breach of the protocol.
func (c *serverConn) request(h header, body []byte) error {
	req, err := parseRequest(h, body)
	if err != nil {
		respond(c.post, h, kindReply, &Reply{Errno: syscall.EBADMSG, Msg: err.Error()})
		return nil
	}
	if req.Op == OpCancel {
		c.cancelWait(req.ID)
		respond(c.post, h, kindReply, &Reply{})
		return nil
	}
	ctx, done, err := c.admit(h, req)
	if err != nil {
		return err
	}
	c.wg.Add(1)
	c.server.begin(task{c, ctx, h, req, done})
	return nil
}

// A task is a request that is to be answered.
type task struct {
	conn *serverConn
	ctx  context.Context
	h    header
	req  *Request
	done func() // counts it out
}

func (t *task) run() {
	defer t.conn.wg.Done()
	reply := t.conn.answer(t.ctx, t.req)
	t.done()
	if t.conn.ctx.Err() == nil {
		respond(t.conn.send, t.h, kindReply, reply)
	}
}

// maxIdle bounds the workers that wait for tasks. Those that come back have stacks
// that have grown already, which is a tenth of the work of a small request.
const maxIdle = 32

// begin has a task done by a worker.
func (s *server) begin(t task) {
	select {
	case s.tasks <- t:
	default:
		s.workers.Go(func() { s.work(t) })
	}
}

// work does a task, and then others as long as it is needed.
func (s *server) work(t task) {
	for ok := true; ok; {
		t.run()
		t = task{}
		if s.idle.Add(1) > maxIdle {
			s.idle.Add(-1)
			return
		}
		t, ok = <-s.tasks
		s.idle.Add(-1)
	}
}

// admit counts a request in. The returned function counts it out.
func (c *serverConn) admit(h header, req *Request) (context.Context, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case req.Op == OpHello && c.mayGreet(req):
		c.state = stateGreeting
		c.hellos++
	case req.Op == OpHello || c.state != stateOpen:
		return nil, nil, fmt.Errorf("meta: unexpected %v", req.Op)
	}
	if req.Op == OpSetlk && req.Wait {
		return c.admitWait(h)
	}
	if c.active == MaxRequests {
		return nil, nil, fmt.Errorf("meta: more than %d requests at a time", MaxRequests)
	}
	c.active++
	ctx, cancel := c.ctx, context.CancelFunc(func() {})
	if h.deadline > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(h.deadline)*time.Millisecond)
	}
	return ctx, func() {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.active--
	}, nil
}

// maxHellos bounds the OpHello of a connection. Clients tell of 10,000 open files and
// 10,000 locks in each that is Partial, so of ten million.
const maxHellos = 1000

// mayGreet reports whether an OpHello is allowed now: after one that was Partial only
// the next of that session is. The caller holds c.mu.
func (c *serverConn) mayGreet(req *Request) bool {
	return c.state == stateNew && c.hellos < maxHellos && (c.part == 0 || c.part == req.Session)
}

// admitWait is admit for a waiting lock. The caller holds c.mu.
func (c *serverConn) admitWait(h header) (context.Context, func(), error) {
	if len(c.waits) == MaxWaits || c.waits[h.id] != nil {
		return nil, nil, fmt.Errorf("meta: more than %d waiting locks, or two of one id", MaxWaits)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	c.waits[h.id] = cancel
	return ctx, func() {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waits, h.id)
	}, nil
}

func (c *serverConn) cancelWait(id uint64) {
	c.mu.Lock()
	cancel := c.waits[id]
	c.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// answer asks the handler.
func (c *serverConn) answer(ctx context.Context, req *Request) (reply *Reply) {
	defer func() {
		if p := recover(); p != nil {
			c.server.log.Error("a request made the metadata service panic", "op", req.Op,
				"ino", req.Ino, "panic", p, "stack", string(debug.Stack()))
			reply = &Reply{Errno: syscall.EIO, Msg: "internal error of the metadata service"}
		}
		if req.Op == OpHello {
			c.greeted(req, reply)
		}
	}()
	if req.Op == OpHello && req.Version == 0 {
		return &Reply{Errno: syscall.EPROTONOSUPPORT, Msg: "no version of the protocol is offered"}
	}
	reply = c.server.handler.ServeMeta(ctx, c, req)
	if reply == nil {
		reply = &Reply{Errno: syscall.EIO, Msg: "no answer"}
	}
	return reply
}

// greeted fills in what the handler left open in the answer to an OpHello.
func (c *serverConn) greeted(req *Request, reply *Reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if reply.Errno != 0 {
		c.state = stateNew
		return
	}
	if reply.Version == 0 {
		reply.Version = min(req.Version, Version)
	}
	if req.Partial { // the rest has its own time
		c.state = stateNew
		c.part = reply.Session
		c.nc.SetReadDeadline(time.Now().Add(handshakeTimeout))
		return
	}
	c.state = stateOpen
	c.idle = max(handshakeTimeout, 3*reply.Lease)
	c.nc.SetReadDeadline(time.Now().Add(c.idle))
}
