package meta_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

const toyLease = 10 * time.Second

// A toy is the least service that a Client can be examined with: names that can
// be made once, and one lock. Its state outlives a restart, which is another
// meta.Direct with the same toy.
type toy struct {
	mu       sync.Mutex
	sessions map[uint64]*toySession
	last     uint64
	made     []string // in order; a name twice if a change was done twice
	owner    *toySession
	freed    chan struct{} // closed when the lock is
	past     int64         // the second that sessions see; 0: now

	hello func(*meta.Request) *meta.Reply                  // if set, asked first
	serve func(context.Context, *meta.Request) *meta.Reply // likewise, for other operations
}

type toySession struct {
	id    uint64
	conn  meta.Conn
	slots [128]struct {
		sync.Mutex
		seq   uint32
		reply *meta.Reply
	}
}

func newToy() *toy {
	return &toy{sessions: make(map[uint64]*toySession), freed: make(chan struct{})}
}

func (h *toy) ServeMeta(ctx context.Context, conn meta.Conn, req *meta.Request) *meta.Reply {
	if req.Op == meta.OpHello {
		return h.greet(conn, req)
	}
	if h.serve != nil {
		if r := h.serve(ctx, req); r != nil {
			return r
		}
	}
	s := h.sessionOf(conn)
	switch {
	case s == nil:
		return &meta.Reply{Errno: syscall.ENOTCONN}
	case req.Op == meta.OpSetlk:
		return h.lock(ctx, s, req)
	case req.Op == meta.OpCompound:
		reply := new(meta.Reply)
		for i := range req.Ops {
			reply.Replies = append(reply.Replies, *h.once(s, &req.Ops[i]))
		}
		return reply
	}
	return h.once(s, req)
}

func (h *toy) Closed(conn meta.Conn) {}

func (h *toy) sessionOf(conn meta.Conn) *toySession {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		if s.conn == conn {
			return s
		}
	}
	return nil
}

func (h *toy) greet(conn meta.Conn, req *meta.Request) *meta.Reply {
	if h.hello != nil {
		if r := h.hello(req); r != nil {
			return r
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[req.Session]
	switch {
	case req.Session == 0:
		h.last++
		s = &toySession{id: h.last}
		h.sessions[s.id] = s
	case s == nil || req.Secret != "secret":
		return &meta.Reply{Errno: syscall.ESTALE}
	}
	s.conn = conn
	return &meta.Reply{Session: s.id, Secret: "secret", Lease: toyLease,
		VolumeInfo: meta.Volume{ID: req.Volume, Name: "toy", BlockSize: 4 << 20, At: h.past}}
}

// once answers a repeated change as it did the first time.
func (h *toy) once(s *toySession, req *meta.Request) *meta.Reply {
	if !req.Op.Changes() {
		return h.do(req)
	}
	slot := &s.slots[req.Slot]
	slot.Lock()
	defer slot.Unlock()
	switch {
	case req.Seq < slot.seq || req.Seq == 0:
		return &meta.Reply{Errno: syscall.EPROTO, Msg: "an old change comes again"}
	case req.Seq > slot.seq:
		slot.seq, slot.reply = req.Seq, h.do(req)
	}
	return slot.reply
}

func (h *toy) do(req *meta.Request) *meta.Reply {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch req.Op {
	case meta.OpMake:
		for _, name := range h.made {
			if name == req.Name {
				h.made = append(h.made, name+" again")
				return &meta.Reply{Errno: syscall.EEXIST}
			}
		}
		h.made = append(h.made, req.Name)
		return &meta.Reply{Attr: meta.Attr{Ino: meta.Ino(len(h.made))}}
	case meta.OpReaddir:
		return &meta.Reply{Names: append([]string(nil), h.made...)}
	case meta.OpBye:
		clear(h.sessions)
	}
	return &meta.Reply{}
}

func (h *toy) lock(ctx context.Context, s *toySession, req *meta.Request) *meta.Reply {
	for {
		h.mu.Lock()
		free := h.owner == nil || h.owner == s
		freed := h.freed
		switch {
		case req.Lock.Type == syscall.F_UNLCK && h.owner == s:
			h.owner = nil
			close(h.freed)
			h.freed = make(chan struct{})
		case req.Lock.Type != syscall.F_UNLCK && free:
			h.owner = s
		}
		h.mu.Unlock()
		switch {
		case free || req.Lock.Type == syscall.F_UNLCK:
			return &meta.Reply{}
		case !req.Wait:
			return &meta.Reply{Errno: syscall.EAGAIN}
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return &meta.Reply{Errno: syscall.EINTR}
		}
	}
}

// forget makes the toy end all sessions.
func (h *toy) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.conn.Close()
	}
	clear(h.sessions)
	if h.owner != nil {
		h.owner = nil
		close(h.freed)
		h.freed = make(chan struct{})
	}
}

// cut breaks all connections.
func (h *toy) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.conn.Close()
	}
}

func (h *toy) names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.made...)
}

// push sends an OpInval to every session, and returns the last answer.
func (h *toy) push(ctx context.Context, inval ...meta.Inval) (*meta.Reply, error) {
	h.mu.Lock()
	var conns []meta.Conn
	for _, s := range h.sessions {
		conns = append(conns, s.conn)
	}
	h.mu.Unlock()
	var reply *meta.Reply
	var err error
	for _, conn := range conns {
		reply, err = conn.Push(ctx, &meta.Request{Op: meta.OpInval, Invals: inval})
	}
	return reply, err
}

// direct serves h until the test ends.
func direct(t *testing.T, h meta.Handler) *meta.Local {
	t.Helper()
	l := meta.Direct(h, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { l.Close() })
	return l
}

// connect returns a Client that cfg's zero fields are filled in for.
func connect(t *testing.T, l *meta.Local, cfg meta.ClientConfig) *meta.Client {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = l.Dial
	}
	cfg.Token = func() string { return "token" }
	c := meta.NewClient(cfg)
	t.Cleanup(func() { c.Close() })
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// makeName makes a file.
func makeName(ctx context.Context, c *meta.Client, name string) error {
	_, err := c.Do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: name})
	return err
}

// A lockedBuilder takes a log.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuilder) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
