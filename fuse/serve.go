package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jacobsa/fuse"
)

// A server reads the kernel's requests. One goroutine, the leader, reads and
// answers: what is answered from memory is not handed to another goroutine,
// which would cost more than the answer. An operation that is going to wait
// detaches: another goroutine becomes the leader, and this one ends with its
// operation. A watchdog does the same for operations that take long without
// saying so.
type server struct {
	fs   *FS
	conn *connection

	// state is the number of the leader, times 2, plus 1 while it is with an
	// operation.
	state   atomic.Uint64
	ops     atomic.Uint64
	parked  atomic.Bool   // the watchdog sleeps
	wake    chan struct{} // to wake it
	slots   chan struct{} // an element per detached operation
	spare   chan struct{} // more of them, while a server is out of reach
	resting chan struct{} // an element per goroutine that has led and may lead again
	next    chan uint64   // the numbers with which they do
	done    chan struct{} // closed when the kernel hung up
	wg      sync.WaitGroup
}

const (
	// maxOps bounds the operations that wait for something, apart from locks:
	// each holds a request buffer of 1 MiB. The kernel keeps the others.
	maxOps = 256

	// maxSpare bounds those beyond while a server is out of reach. Others are
	// still to be answered from caches, and who waits can be interrupted.
	maxSpare = 4096

	// maxResting bounds the goroutines that wait to lead again. Their stacks have
	// grown, which costs more than the goroutine.
	maxResting = 32

	// patience is how long an operation may keep the leader from reading.
	patience = 2 * time.Millisecond

	// farewell is how long operations may go on after the kernel has hung up:
	// nobody waits for them any more.
	farewell = time.Second
)

func newServer(fs *FS, conn *connection) *server {
	return &server{
		fs:      fs,
		conn:    conn,
		wake:    make(chan struct{}, 1),
		slots:   make(chan struct{}, maxOps),
		spare:   make(chan struct{}, maxSpare),
		resting: make(chan struct{}, maxResting),
		next:    make(chan uint64),
		done:    make(chan struct{}),
	}
}

// ServeOps answers requests until the file system is unmounted and the last is
// answered. It is called by the library.
func (s *server) ServeOps(c *fuse.Connection) {
	s.conn.open(c)
	s.wg.Go(func() { s.serve(c, 0) })
	s.wg.Go(func() { s.watch(c) }) // counted, for it makes leaders: the one that it relieves may just be ending
	s.wg.Wait()
	s.conn.close()
}

// serve leads as number id, and then whenever another leader is needed.
func (s *server) serve(c *fuse.Connection, id uint64) {
	for {
		s.lead(c, id)
		select {
		case s.resting <- struct{}{}:
		default:
			return
		}
		select {
		case id = <-s.next:
			<-s.resting
		case <-s.done:
			return
		}
	}
}

// lead serves as leader number id until another leads, or there is nothing to
// serve any more.
func (s *server) lead(c *fuse.Connection, id uint64) {
	for {
		ctx, op, err := c.ReadOp()
		if err != nil { // unmounted
			close(s.done)
			time.AfterFunc(farewell, s.fs.cutCalls)
			return
		}
		s.ops.Add(1)
		s.state.Store(id<<1 | 1)
		if s.parked.CompareAndSwap(true, false) {
			s.wake <- struct{}{}
		}
		s.answer(c, ctx, op, id)
		if !s.state.CompareAndSwap(id<<1|1, id<<1) {
			return
		}
	}
}

// answer answers one operation.
func (s *server) answer(c *fuse.Connection, ctx context.Context, op any, id uint64) {
	var slot chan struct{}
	k := s.fs.newCall(ctx, func() {
		slot = s.enter()
		s.handOver(c, id)
	})
	k.park = func() {
		if slot != nil {
			<-slot
			slot = nil
		}
	}
	err := k.handle(op)
	if e := c.Reply(ctx, err); e != nil { // the caller was killed meanwhile, or the mount is gone
		s.fs.log.Debug("an answer was not taken", "err", e)
		k.end(false)
	} else {
		k.end(err == nil)
	}
	k.park()
}

// enter waits until one more operation may be detached, and returns what to take
// an element from when it is done.
func (s *server) enter() chan struct{} {
	select {
	case s.slots <- struct{}{}:
		return s.slots
	default:
	}
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for {
		spare := s.spare
		if s.fs.away() == 0 {
			spare = nil
		}
		select {
		case s.slots <- struct{}{}:
			return s.slots
		case spare <- struct{}{}:
			return spare
		case <-t.C:
		}
	}
}

// handOver makes another goroutine the leader, if id leads and is with an
// operation.
func (s *server) handOver(c *fuse.Connection, id uint64) {
	if !s.state.CompareAndSwap(id<<1|1, (id+1)<<1) {
		return
	}
	select {
	case s.next <- id + 1:
	default:
		s.wg.Go(func() { s.serve(c, id+1) })
	}
}

// watch relieves a leader that has been with one operation for too long. It
// sleeps while there is nothing to do.
func (s *server) watch(c *fuse.Connection) {
	idle := 0
	for {
		st, n := s.state.Load(), s.ops.Load()
		select {
		case <-s.done:
			return
		case <-time.After(patience):
		}
		switch {
		case s.ops.Load() != n:
			idle = 0
		case st&1 == 1:
			s.handOver(c, st>>1)
		default:
			if idle++; idle < 50 {
				continue
			}
			idle = 0
			s.parked.Store(true)
			if s.ops.Load() != n && s.parked.CompareAndSwap(true, false) {
				continue
			}
			select {
			case <-s.wake:
			case <-s.done:
				return
			}
		}
	}
}
