package tree

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

const (
	testVolume    = "6f1d6a52-0000-4000-8000-000000000001"
	testBlockSize = 1 << 10
)

// A world is a server on an engine in memory, and the settings that it asks for.
type world struct {
	t      testing.TB
	engine *engine.Memory
	srv    *Server

	mu      sync.Mutex
	config  VolumeConfig
	deleted map[BlockRef]bool

	bucket    bucket // nil: objects are not looked at
	bucketErr error  // of Delete
	grace     time.Duration
	every     time.Duration // the bucket is searched; 0: daily
	lease     time.Duration
	keep      time.Duration
	maxHeld   int
	step      int    // blocks that one transaction cuts: few, so that short files are cut as long ones are
	onWait    func() // called before each wait for stable storage; nil: nothing
}

// newWorld returns a world, which is checked when the test ends.
func newWorld(t testing.TB) *world {
	t.Helper()
	e, err := engine.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, engine: e, deleted: make(map[BlockRef]bool), step: 2,
		config: VolumeConfig{Name: "test", BlockSize: testBlockSize, InlineMax: 512},
	}
	w.start()
	t.Cleanup(func() {
		if w.engine == nil {
			return
		}
		w.check()
		if err := w.engine.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return w
}

// start starts a server on the engine.
func (w *world) start() {
	w.t.Helper()
	srv, err := New(Config{
		Engine: w.watched(), Lease: w.lease, Keep: w.keep, MaxHeld: w.maxHeld, Grace: w.grace, Reconcile: w.every, List: w.list,
		Authorize: authorize,
		Volumes: func(id string) (VolumeConfig, error) {
			if id != testVolume {
				return VolumeConfig{}, errors.New("not known")
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.config, nil
		},
		Delete: func(_ context.Context, _ string, refs []BlockRef) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.bucketErr != nil {
				return w.bucketErr
			}
			for _, r := range refs {
				w.deleted[r] = true
				delete(w.bucket, r)
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	srv.blockStep = w.step
	w.srv = srv
}

// watched returns the engine, with waits that are told of.
func (w *world) watched() engine.Engine {
	if w.onWait == nil {
		return w.engine
	}
	return waitEngine{w.engine, w.onWait}
}

type waitEngine struct {
	engine.Engine
	onWait func()
}

func (e waitEngine) Update(ctx context.Context, locks [][]byte, fn func(engine.Tx) error) (engine.Commit, error) {
	c, err := e.Engine.Update(ctx, locks, fn)
	return waitCommit{c, e.onWait}, err
}

type waitCommit struct {
	engine.Commit
	onWait func()
}

func (c waitCommit) Wait() error {
	c.onWait()
	return c.Commit.Wait()
}

// authorize understands tokens like "rw:/folder" and "ro:".
func authorize(token string) (Grant, error) {
	mode, path, ok := strings.Cut(token, ":")
	if !ok || mode != "rw" && mode != "ro" {
		return Grant{}, errors.New("the token is not valid")
	}
	return Grant{Volume: testVolume, Write: mode == "rw", MountPath: path, Name: "a test"}, nil
}

// check fails the test if the engine breaks a rule.
func (w *world) check() {
	w.t.Helper()
	problems, err := Check(context.Background(), w.engine)
	if err != nil {
		w.t.Errorf("check: %v", err)
	}
	for _, p := range problems {
		w.t.Errorf("check: %v", p)
	}
}

// A client is a session of a world over a fake connection. Its methods fail the
// test if the operation is refused.
type client struct {
	w      *world
	t      testing.TB
	conn   *fakeConn
	id     uint64
	secret string
	seq    [slots]uint32
	gen    uint64

	reserved meta.Ino // a number, if a test asked for one
}

// A fakeConn is the client's end of a connection.
type fakeConn struct {
	name string

	mu     sync.Mutex
	closed bool
	inuse  map[meta.Ino]bool
	invals []meta.Inval
	push   func(ctx context.Context, req *meta.Request) (*meta.Reply, error) // nil: answer
}

func (c *fakeConn) String() string { return c.name }

func (c *fakeConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *fakeConn) Push(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the connection is closed")
	}
	c.invals = append(c.invals, req.Invals...)
	if c.push != nil {
		push := c.push
		c.mu.Unlock()
		defer c.mu.Lock()
		return push(ctx, req)
	}
	reply := new(meta.Reply)
	for _, inval := range req.Invals {
		if c.inuse[inval.Ino] {
			reply.Inos = append(reply.Inos, inval.Ino)
		}
	}
	return reply, nil
}

// told returns the call-backs since the last time.
func (c *fakeConn) told() []meta.Inval {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.invals
	c.invals = nil
	return out
}

// hello opens a session.
func (w *world) hello(token string) *client {
	w.t.Helper()
	c := &client{w: w, t: w.t, conn: &fakeConn{name: "client", inuse: make(map[meta.Ino]bool)}}
	reply := c.send(&meta.Request{Op: meta.OpHello, Version: 1, Token: token, Volume: testVolume, Name: "test"})
	if reply.Errno != 0 {
		w.t.Fatalf("hello: %v: %s", reply.Errno, reply.Msg)
	}
	c.id, c.secret = reply.Session, reply.Secret
	return c
}

// resume comes back over a new connection.
func (c *client) resume(req *meta.Request) *meta.Reply {
	c.conn = &fakeConn{name: "client", inuse: c.conn.inuse}
	req.Op, req.Version, req.Token = meta.OpHello, 1, "rw:"
	req.Session, req.Secret = c.id, c.secret
	return c.send(req)
}

func (c *client) send(req *meta.Request) *meta.Reply {
	return c.w.srv.ServeMeta(context.Background(), c.conn, req)
}

// do sends a request, with a number if it changes something.
func (c *client) do(req *meta.Request) *meta.Reply {
	if req.Op.Changes() && req.Seq == 0 {
		c.seq[req.Slot]++
		req.Seq = c.seq[req.Slot]
	}
	return c.send(req)
}

func (c *client) ok(req *meta.Request) *meta.Reply {
	c.t.Helper()
	reply := c.do(req)
	if reply.Errno != 0 {
		c.t.Fatalf("%v %q in %d: %v: %s", req.Op, req.Name, req.Ino, reply.Errno, reply.Msg)
	}
	return reply
}

func (c *client) refused(want syscall.Errno, req *meta.Request) {
	c.t.Helper()
	if reply := c.do(req); reply.Errno != want {
		c.t.Errorf("%v %q in %d: errno %d (%s), want %d (%v)", req.Op, req.Name, req.Ino, reply.Errno, reply.Msg, want, want)
	}
}

func (c *client) make(dir meta.Ino, name string, mode uint32) meta.Ino {
	c.t.Helper()
	req := &meta.Request{Op: meta.OpMake, Ino: dir, Name: name, Mode: mode}
	if mode&syscall.S_IFMT == syscall.S_IFLNK {
		req.Data = []byte("target")
	}
	return c.ok(req).Attr.Ino
}

func (c *client) file(dir meta.Ino, name string) meta.Ino {
	c.t.Helper()
	return c.make(dir, name, syscall.S_IFREG|0o644)
}

func (c *client) dir(dir meta.Ino, name string) meta.Ino {
	c.t.Helper()
	return c.make(dir, name, syscall.S_IFDIR|0o755)
}

func (c *client) attr(ino meta.Ino) meta.Attr {
	c.t.Helper()
	return c.ok(&meta.Request{Op: meta.OpGetattr, Ino: ino}).Attr
}

// block returns a record of a new version of a whole block.
func (c *client) block(index, n uint32) meta.Block {
	c.gen++
	return meta.Block{Index: index, Gen: meta.Gen{Session: c.id, Seq: c.gen}, Len: n, Whole: true}
}

// write makes a file's blocks from <= i < to whole.
func (c *client) write(ino meta.Ino, from, to uint32) {
	c.t.Helper()
	for from < to {
		req := &meta.Request{Op: meta.OpCommit, Ino: ino}
		for ; from < to && len(req.Blocks) < meta.MaxCommit; from++ {
			req.Blocks = append(req.Blocks, c.block(from, testBlockSize))
			req.Size = uint64(from+1) * testBlockSize
		}
		c.ok(req)
	}
}

func (c *client) names(dir meta.Ino) string {
	c.t.Helper()
	var names []string
	for _, e := range c.ok(&meta.Request{Op: meta.OpReaddir, Ino: dir}).Entries {
		names = append(names, e.Name)
	}
	return fmt.Sprint(names)
}

// count returns how many records of a kind the engine has.
func (w *world) count(t testing.TB, table byte) int {
	t.Helper()
	n := 0
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		prefix := []byte{0, 0, 0, 1, table}
		return r.Scan(prefix, after(prefix), false, func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	return n
}
