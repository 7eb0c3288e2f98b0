package tree

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// run runs the server until the test ends.
func (w *world) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- w.srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func TestHoldersAreToldBeforeAChangeIsAcknowledged(t *testing.T) {
	for _, tc := range []struct {
		name string
		req  func(f, d meta.Ino) *meta.Request
		want func(f, d meta.Ino) []meta.Inval
	}{
		{"make", func(f, d meta.Ino) *meta.Request {
			return &meta.Request{Op: meta.OpMake, Ino: d, Name: "n", Mode: reg}
		}, func(f, d meta.Ino) []meta.Inval { return []meta.Inval{{Ino: d, Attr: true, Names: []string{"n"}}} }},
		{"unlink", func(f, d meta.Ino) *meta.Request { return on(meta.OpUnlink, d, "f") },
			func(f, d meta.Ino) []meta.Inval {
				return []meta.Inval{{Ino: d, Attr: true, Names: []string{"f"}}, {Ino: f, Attr: true, Data: true}}
			}},
		{"chmod", func(f, d meta.Ino) *meta.Request {
			return &meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode}
		}, func(f, d meta.Ino) []meta.Inval { return []meta.Inval{{Ino: f, Attr: true}} }},
		{"truncate", func(f, d meta.Ino) *meta.Request {
			return &meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetSize}
		}, func(f, d meta.Ino) []meta.Inval { return []meta.Inval{{Ino: f, Attr: true, Data: true}} }},
		{"commit", func(f, d meta.Ino) *meta.Request { return on(meta.OpCommit, f, "") },
			func(f, d meta.Ino) []meta.Inval { return []meta.Inval{{Ino: f, Attr: true, Data: true}} }},
		{"setxattr", func(f, d meta.Ino) *meta.Request { return on(meta.OpSetxattr, f, "user.a") },
			func(f, d meta.Ino) []meta.Inval { return []meta.Inval{{Ino: f, Attr: true}} }},
		{"rename", func(f, d meta.Ino) *meta.Request { return renaming(d, "f", d, "g", 0) },
			func(f, d meta.Ino) []meta.Inval {
				return []meta.Inval{
					{Ino: d, Attr: true, Names: []string{"f"}}, {Ino: d, Attr: true, Names: []string{"g"}}, {Ino: f, Attr: true}}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			a, b, stranger := w.hello("rw:"), w.hello("rw:"), w.hello("rw:")
			d := a.dir(meta.Root, "d")
			f := a.file(d, "f")
			b.ok(on(meta.OpLookup, d, "f"))
			b.conn.told()
			a.ok(tc.req(f, d))
			if got, want := fmt.Sprint(b.conn.told()), fmt.Sprint(tc.want(f, d)); got != want {
				t.Errorf("told %s, want %s", got, want)
			}
			if got := stranger.conn.told(); got != nil {
				t.Errorf("one who knew nothing was told %v", got)
			}
			if got := a.conn.told(); got != nil {
				t.Errorf("the one who did it was told %v", got)
			}
		})
	}
}

func TestWhoDroppedAllThatItHadIsNotToldAgain(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	b.attr(f)
	for _, want := range []int{1, 0} {
		a.write(f, 0, 1)
		if got := len(b.conn.told()); got != want {
			t.Errorf("told %d times, want %d", got, want)
		}
	}
	b.attr(f)
	b.conn.inuse[f] = true
	for range 2 {
		a.write(f, 0, 1)
		if got := len(b.conn.told()); got != 1 {
			t.Errorf("one who has it open was told %d times, want 1", got)
		}
	}
}

func TestAbsenceIsHeldToo(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	if r := b.do(on(meta.OpLookup, meta.Root, "f")); r.Errno != syscall.ENOENT || !r.Cache {
		t.Errorf("lookup of nothing: %+v", r)
	}
	a.file(meta.Root, "f")
	if got := b.conn.told(); len(got) != 1 || !slices.Contains(got[0].Names, "f") {
		t.Errorf("told %+v", got)
	}
}

func TestADeadHolderDelaysAChangeByItsLeaseAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		b.conn.push = func(ctx context.Context, _ *meta.Request) (*meta.Reply, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		stop := a.pinging(t)
		defer stop()
		start := time.Now()
		a.write(f, 0, 1)
		if d := time.Since(start); d < 9*time.Second || d > 12*time.Second {
			t.Errorf("the change took %v, a lease is 10 s", d)
		}
		if r := b.resume(&meta.Request{}); r.Errno != syscall.ESTALE {
			t.Errorf("resume after the lease: %v", r.Errno)
		}
	})
}

// pinging keeps a client's lease.
func (c *client) pinging(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan bool)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.w.srv.ServeMeta(ctx, c.conn, &meta.Request{Op: meta.OpPing})
			select {
			case <-time.After(3 * time.Second):
			case <-ctx.Done():
			}
		}
	}()
	return func() { cancel(); <-done }
}

func TestAHolderThatReconnectsIsToldOverItsNewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		b.conn.push = func(context.Context, *meta.Request) (*meta.Reply, error) { return nil, errors.New("broken") }
		done := make(chan *meta.Reply)
		go func() { done <- a.do(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode}) }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		w.srv.Closed(b.conn)
		select {
		case <-done:
			t.Fatal("acknowledged before the holder was told")
		default:
		}
		if r := b.resume(&meta.Request{}); r.Errno != 0 || !r.Cache {
			t.Errorf("resume: %+v", r)
		}
		<-done
		if got := b.conn.told(); len(got) != 1 || got[0].Ino != f {
			t.Errorf("told %+v", got)
		}
	})
}

func TestAfterARestartChangesWaitForThoseWhoMayHaveCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		w.start()
		w.run(t)
		a.resume(&meta.Request{})
		done := make(chan *meta.Reply)
		go func() { done <- a.do(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode}) }()
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("acknowledged before the others were back")
		default:
		}
		if r := b.resume(&meta.Request{}); r.Cache {
			t.Error("a new server says that it knows what was cached before")
		}
		<-done
	})
}

// While others are called back nobody waits: what is asked for is answered as it
// was before the change, and must be asked for again. Were it answered as it is
// going to be, another could be asked afterwards who has not been told yet.
func TestNobodySeesAChangeThatOthersMayStillDisbelieve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.hello("rw:"), w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		mode := func(c *client) (uint32, bool) {
			r := c.ok(on(meta.OpGetattr, f, ""))
			return r.Attr.Mode & permMask, r.Cache
		}
		b.conn.push = func(context.Context, *meta.Request) (*meta.Reply, error) {
			b.conn.push = nil
			for _, other := range []*client{b, c, w.hello("rw:")} {
				if got, cache := mode(other); got != 0o644 || cache {
					t.Errorf("mode %o during the call-back, to be cached: %v", got, cache)
				}
			}
			if r := c.do(&meta.Request{Op: meta.OpSetxattr, Ino: f, Name: "user.a"}); r.Errno != 0 || r.Cache {
				t.Errorf("another change during the call-back: %+v", r)
			}
			return &meta.Reply{}, nil
		}
		a.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o600}})
		for range 2 {
			if got, cache := mode(c); got != 0o600 || !cache {
				t.Errorf("mode %o after the change, to be cached: %v", got, cache)
			}
		}
		if n := len(w.srv.volumes[testVolume].changing); n != 0 {
			t.Errorf("%d inodes are still being changed", n)
		}
	})
}

// Who answers that a file is not open there, and then opens it before its last
// name is gone, has it open.
func TestAFileOpenedWhileItsLastNameGoesIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		b.conn.push = func(context.Context, *meta.Request) (*meta.Reply, error) {
			b.conn.push = nil
			b.attr(f)
			b.conn.inuse[f] = true
			return &meta.Reply{}, nil
		}
		a.ok(on(meta.OpUnlink, meta.Root, "f"))
		a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		defer a.pinging(t)()
		defer b.pinging(t)()
		time.Sleep(time.Hour)
		b.attr(f)
	})
}

func TestUnlinkedFilesLiveAsLongAsTheyAreInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		a.write(f, 0, 2*refsPerRecord+1)
		b.attr(f)
		b.conn.inuse[f] = true
		a.ok(on(meta.OpUnlink, meta.Root, "f"))
		a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		defer a.pinging(t)()
		stop := b.pinging(t)
		defer func() { stop() }()
		time.Sleep(time.Hour)
		if got := b.attr(f); got.Nlink != 0 {
			t.Errorf("%+v", got)
		}
		w.check()
		stop()
		time.Sleep(30 * time.Minute) // b's session ends
		a.refused(syscall.ENOENT, on(meta.OpGetattr, f, ""))
		if n := w.deletes(); n != 2*refsPerRecord+1 {
			t.Errorf("%d blocks were deleted", n)
		}
	})
}

func (w *world) deletes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.deleted)
}

func TestUseOfUnlinkedFilesSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f, g := a.file(meta.Root, "f"), a.file(meta.Root, "g")
		b.attr(f)
		b.conn.inuse[f] = true
		a.ok(on(meta.OpUnlink, meta.Root, "f"))
		a.ok(on(meta.OpUnlink, meta.Root, "g"))
		a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f, g}})
		w.crash(0, 1)
		w.run(t)
		a.resume(&meta.Request{})
		b.resume(&meta.Request{Inos: []meta.Ino{f}})
		defer a.pinging(t)()
		defer b.pinging(t)()
		time.Sleep(time.Hour)
		b.attr(f)
		b.refused(syscall.ENOENT, on(meta.OpGetattr, g, ""))
	})
}

func TestUseOfUnlinkedFilesIsAnnouncedToTheNextSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		b.attr(f)
		b.conn.inuse[f] = true
		a.ok(on(meta.OpUnlink, meta.Root, "f"))
		a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		defer a.pinging(t)()
		stop := b.pinging(t)
		for range 5 { // each time just before it would be looked at whether somebody uses f
			time.Sleep(10*time.Minute - 20*time.Second)
			stop()
			time.Sleep(80 * time.Second) // b's session ends
			b = &client{w: w, t: t, conn: &fakeConn{name: "client", inuse: map[meta.Ino]bool{f: true}}}
			r := b.send(&meta.Request{Op: meta.OpHello, Version: 1, Token: "rw:", Volume: testVolume, Inos: []meta.Ino{f}})
			if r.Errno != 0 {
				t.Fatalf("hello: %v", r.Errno)
			}
			b.id, b.secret = r.Session, r.Secret
			b.attr(f)
			stop = b.pinging(t)
		}
		b.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		time.Sleep(25 * time.Minute)
		a.refused(syscall.ENOENT, on(meta.OpGetattr, f, ""))
		stop()
	})
}

func TestReplacedBlocksAreDeletedWhenNobodyReadsThemAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		c.write(f, 0, 3)
		c.write(f, 0, 2)
		time.Sleep(9 * time.Minute)
		if n := w.deletes(); n != 0 {
			t.Errorf("%d blocks were deleted too early", n)
		}
		time.Sleep(2 * time.Minute)
		if n := w.deletes(); n != 2 {
			t.Errorf("%d blocks were deleted, want 2", n)
		}
	})
}

func TestHistoryTellsThePastAndIsForgottenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = 24 * time.Hour
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		c.write(f, 0, 1)
		if n := w.count(t, tableHistory); n == 0 {
			t.Error("there is no history")
		}
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		time.Sleep(23 * time.Hour)
		if n := w.deletes(); n != 0 {
			t.Errorf("%d blocks of the past were deleted", n)
		}
		time.Sleep(2 * time.Hour)
		for _, table := range []byte{tableHistory, tableDelayed} {
			if n := w.count(t, table); n != 0 {
				t.Errorf("%d records of table %c are left", n, table)
			}
		}
	})
}

func TestASessionMayCacheSoMuchAndIsAskedToForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.maxHeld = 100
		w.start()
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		var last *meta.Reply
		for i := range 150 {
			f := c.file(meta.Root, fmt.Sprint(i))
			last = c.ok(on(meta.OpGetattr, f, ""))
		}
		if last.Cache {
			t.Error("more than the limit may be cached")
		}
		time.Sleep(time.Minute)
		if len(c.conn.told()) == 0 {
			t.Error("nothing was called back")
		}
		if !c.ok(on(meta.OpLookup, meta.Root, "149")).Cache {
			t.Error("nothing more may be cached")
		}
	})
}

// What a session asks for again while it is asked to forget it, it may not cache,
// or is told of when it changes.
func TestWhatIsAskedForWhileRoomIsMadeIsNotCachedForGood(t *testing.T) {
	w := newWorld(t)
	w.maxHeld = 40
	w.start()
	a, b := w.hello("rw:"), w.hello("rw:")
	for i := range 35 {
		b.attr(a.file(meta.Root, fmt.Sprint(i)))
	}
	cached := make(map[meta.Ino]bool)
	forgotten := 0
	b.conn.push = func(_ context.Context, req *meta.Request) (*meta.Reply, error) {
		for _, inval := range req.Invals {
			r := b.ok(on(meta.OpGetattr, inval.Ino, ""))
			if r.Cache {
				cached[inval.Ino] = true
			}
			if forgotten++; !a.ok(on(meta.OpGetattr, inval.Ino, "")).Cache {
				t.Errorf("another may not cache inode %d", inval.Ino)
			}
		}
		return &meta.Reply{}, nil
	}
	b.trim()
	b.conn.push = nil
	if forgotten < 5 {
		t.Fatalf("it was asked to forget %d inodes", forgotten)
	}
	for ino := range cached {
		b.conn.told()
		a.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o700}})
		if len(b.conn.told()) == 0 {
			t.Errorf("inode %d was cached and changed, and nobody was told", ino)
		}
	}
	if n := len(w.srv.volumes[testVolume].changing); n != 0 {
		t.Errorf("%d inodes are still marked", n)
	}
}

// trim asks the session to forget some of what it holds.
func (c *client) trim() {
	v := c.w.srv.volumes[testVolume]
	v.mu.Lock()
	s := v.sessions[c.id]
	v.mu.Unlock()
	v.trim(context.Background(), s)
}

// An inode that is read, forgotten, changed, and then held again by another request
// of the same session: what was read is not to be cached.
func TestWhatIsReadWhileRoomIsMadeIsNotCachedForGood(t *testing.T) {
	w := newWorld(t)
	w.maxHeld = 3 // one is asked for at a time
	w.start()
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	b.attr(f)
	read, goOn, early := make(chan bool), make(chan bool), make(chan *meta.Reply, 1)
	views := &slowView{Engine: w.srv.cfg.Engine}
	w.srv.cfg.Engine = views
	told := false
	b.conn.push = func(_ context.Context, req *meta.Request) (*meta.Reply, error) {
		if told = req.Invals[0].Ino == f; told {
			views.after(func() { close(read); <-goOn })
			go func() { early <- b.do(on(meta.OpGetattr, f, "")) }()
			<-read
		}
		return &meta.Reply{}, nil
	}
	for !told {
		b.trim()
	}
	a.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o700}})
	b.attr(f)
	close(goOn)
	if r := <-early; r.Cache && r.Attr.Mode&permMask != 0o700 {
		t.Errorf("mode %o, from before a change, may be cached", r.Attr.Mode&permMask)
	}
}

// A slowView is an engine whose next View calls a function when it has been read.
type slowView struct {
	engine.Engine
	next atomic.Pointer[func()]
}

func (e *slowView) after(fn func()) { e.next.Store(&fn) }

func (e *slowView) View(ctx context.Context, fn func(engine.Reader) error) error {
	after := e.next.Swap(nil)
	err := e.Engine.View(ctx, fn)
	if after != nil {
		(*after)()
	}
	return err
}

func TestAByeEndsTheSession(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	f := c.file(meta.Root, "f")
	c.ok(on(meta.OpUnlink, meta.Root, "f"))
	c.ok(&meta.Request{Op: meta.OpBye})
	if n := w.count(t, tableSession); n != 0 {
		t.Errorf("%d records of the session are left", n)
	}
	if r := c.do(on(meta.OpGetattr, f, "")); r.Errno != syscall.ENOTCONN {
		t.Errorf("a request after bye: %v", r.Errno)
	}
	if r := c.resume(&meta.Request{}); r.Errno != syscall.ESTALE {
		t.Errorf("resume after bye: %v", r.Errno)
	}
}

func TestAnUnlinkedFileInUseCanGetANameAgain(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "tmp")
	a.write(f, 0, 1)
	a.ok(on(meta.OpUnlink, meta.Root, "tmp"))
	b.refused(syscall.ENOENT, &meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "x"})
	a.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "x"})
	if got := b.ok(on(meta.OpLookup, meta.Root, "x")).Attr; got.Nlink != 1 || got.Bytes != testBlockSize {
		t.Errorf("%+v", got)
	}
}

func TestABucketThatIsAwayDelaysTheCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.bucketErr = errors.New("the bucket is away")
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		c.write(f, 0, 2)
		c.write(f, 0, 1)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		time.Sleep(time.Hour)
		if n := w.deletes(); n != 0 {
			t.Errorf("%d blocks were deleted", n)
		}
		w.check()
		w.mu.Lock()
		w.bucketErr = nil
		w.mu.Unlock()
		time.Sleep(time.Minute)
		if n := w.deletes(); n != 3 {
			t.Errorf("%d blocks were deleted, want 3", n)
		}
	})
}

func TestARepetitionWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		b.do(on(meta.OpLookup, meta.Root, "f"))
		answer := make(chan bool)
		b.conn.push = func(context.Context, *meta.Request) (*meta.Reply, error) {
			<-answer
			return &meta.Reply{}, nil
		}
		req := &meta.Request{Op: meta.OpMake, Seq: 1, Ino: meta.Root, Name: "f", Mode: reg}
		first := a.background(req)
		pending(t, first)
		if r := a.resume(&meta.Request{}); r.Errno != 0 {
			t.Fatal(r.Errno)
		}
		second := a.background(req)
		pending(t, second)
		close(answer)
		one, two := <-first, <-second
		if one.Errno != 0 || two.Errno != 0 || one.Attr.Ino != two.Attr.Ino {
			t.Errorf("first %+v, second %+v", one, two)
		}
	})
}

// A client that is heard of in the last moment has a lease again: it is not
// given up, but told.
func TestAHolderThatReturnsWhileItIsGivenUpIsTold(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	s := w.srv.sessionOf(c.conn)
	s.run.RLock() // a transaction is under way
	s.mu.Lock()
	s.contact = time.Now().Add(-2 * w.srv.cfg.Lease)
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.v.callBack(context.Background(), s, []meta.Inval{{Ino: ino, Attr: true}})
	}()
	for s.run.TryRLock() { // until somebody waits to end the session
		s.run.RUnlock()
		time.Sleep(time.Millisecond)
	}
	c.ok(&meta.Request{Op: meta.OpPing})
	s.run.RUnlock()
	<-done
	if reply := c.do(&meta.Request{Op: meta.OpPing}); reply.Errno != 0 && len(c.conn.told()) == 0 {
		t.Error("its request was answered, and then its session ended and it was told nothing")
	}
	if told := c.conn.told(); len(told) == 0 {
		t.Error("it was not told")
	}
}
