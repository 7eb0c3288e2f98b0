package tree

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// makeIn makes a file, and reports whether its directory is delegated.
func (c *client) makeIn(dir meta.Ino, name string) bool {
	c.t.Helper()
	return c.ok(&meta.Request{Op: meta.OpMake, Ino: dir, Name: name, Mode: reg, Delegate: true}).Delegated
}

// numbers returns the first of n reserved inode numbers.
func (c *client) numbers(n uint32) meta.Ino {
	c.t.Helper()
	reply := c.ok(&meta.Request{Op: meta.OpReserve, Limit: n})
	if len(reply.Inos) != 2 || reply.Inos[1]-reply.Inos[0] != meta.Ino(n) {
		c.t.Fatalf("%d numbers are %v", n, reply.Inos)
	}
	return reply.Inos[0]
}

func TestADirectoryThatNobodyElseHoldsIsDelegated(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	d := a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm, Delegate: true})
	if !d.Delegated {
		t.Error("a new directory is not delegated to who made it")
	}
	if !a.makeIn(d.Attr.Ino, "f") {
		t.Error("it is not any more")
	}
	b.ok(&meta.Request{Op: meta.OpGetattr, Ino: d.Attr.Ino})
	if a.makeIn(d.Attr.Ino, "g") {
		t.Error("it is delegated though another session holds it")
	}
}

// Whoever asks for a delegated directory, or for its attributes, or changes it, has
// the session that has it asked first, and sees what that makes before it answers.
func TestADelegatedDirectoryIsAskedBack(t *testing.T) {
	for name, ask := range map[string]func(c *client, dir meta.Ino) *meta.Reply{
		"lookup in it": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpLookup, Ino: dir, Name: "late"})
		},
		"lookup of it": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "d"})
		},
		"getattr": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpGetattr, Ino: dir})
		},
		"list": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpReaddir, Ino: dir})
		},
		"list of its parent": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpReaddir, Ino: meta.Root, Plus: true})
		},
		"make": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpMake, Ino: dir, Name: "other", Mode: reg})
		},
		"setattr": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpSetattr, Ino: dir, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o700}})
		},
		"rename of it": func(c *client, dir meta.Ino) *meta.Reply {
			return c.do(&meta.Request{Op: meta.OpRename, Ino: meta.Root, Name: "d", Ino2: meta.Root, Name2: "e"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.hello("rw:"), w.hello("rw:")
			dir := a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm, Delegate: true}).Attr.Ino
			if !a.makeIn(dir, "f") {
				t.Fatal("the directory is not delegated")
			}
			number := a.numbers(1)
			asked := 0
			a.conn.mu.Lock()
			a.conn.push = func(context.Context, *meta.Request) (*meta.Reply, error) {
				if asked++; asked == 1 {
					a.ok(&meta.Request{Op: meta.OpMake, Ino: dir, Name: "late", Mode: reg, Ino2: number, Delegate: true})
				}
				return &meta.Reply{}, nil
			}
			a.conn.mu.Unlock()
			if r := ask(b, dir); r.Errno != 0 {
				t.Errorf("it is answered %v: %s", r.Errno, r.Msg)
			}
			if asked == 0 {
				t.Error("who has the directory was not asked")
			}
			if r := b.do(&meta.Request{Op: meta.OpLookup, Ino: dir, Name: "late"}); r.Errno != 0 || r.Attr.Ino != number {
				t.Errorf("what it made then is %d (%v), not %d", r.Attr.Ino, r.Errno, number)
			}
		})
	}
}

// After a restart it is known who has what, and who is not back yet is waited for
// until its lease ends.
func TestDelegationsSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		dir := a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm, Delegate: true}).Attr.Ino
		w.start()
		w.run(t)
		b.resume(&meta.Request{})
		done := make(chan *meta.Reply)
		go func() { done <- b.do(&meta.Request{Op: meta.OpReaddir, Ino: dir}) }()
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("answered before who has the directory was back")
		default:
		}
		a.resume(&meta.Request{})
		<-done
		if told := a.conn.told(); len(told) != 1 || told[0].Ino != dir {
			t.Errorf("who has the directory was told %v", told)
		}
	})
}

// Others that hold a directory and do not ask for it any more are told to forget
// it in the end.
func TestWhoDoesNotAskAnyMoreDoesNotPreventADelegation(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	dir := a.dir(meta.Root, "d")
	for round := range 2 {
		b.ok(&meta.Request{Op: meta.OpReaddir, Ino: dir, Plus: true})
		n := 0
		for !a.makeIn(dir, fmt.Sprint(round, " ", n)) {
			if n++; n > 2*longStreak {
				t.Fatalf("round %d: not delegated after %d files", round, n)
			}
		}
		if n < longStreak/2 {
			t.Errorf("round %d: delegated after %d files", round, n)
		}
	}
	for n := range 3 * longStreak {
		if b.ok(&meta.Request{Op: meta.OpGetattr, Ino: dir}); a.makeIn(dir, fmt.Sprint("x", n)) {
			t.Fatal("delegated though the other asks all the time")
		}
	}
}

// Nor are they told of each change there.
func TestWhoDoesNotAskAnyMoreIsToldNoMore(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	dir := a.dir(meta.Root, "d")
	b.ok(&meta.Request{Op: meta.OpGetattr, Ino: dir})
	b.conn.told()
	for n := range 10 * longStreak {
		a.ok(&meta.Request{Op: meta.OpMake, Ino: dir, Name: fmt.Sprint(n), Mode: syscall.S_IFIFO | 0o644})
	}
	told := b.conn.told()
	if n := len(told); n < longStreak || n > longStreak+1 || !told[n-1].Entries {
		t.Errorf("it was told %d times, in the end of %+v", n, told[n-1])
	}
}

// However many directories have begun to be changed by one alone.
func TestAStreakBeginsThoughThereAreMany(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	v := w.srv.volumes[testVolume]
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.sessions[a.id]
	for dir := range meta.Ino(2 * maxDelegations) {
		v.noteStreak(s, dir)
	}
	for range longStreak {
		v.noteStreak(s, 1<<30)
	}
	if !v.idle(s, 1<<30) {
		t.Error("a long streak is not noticed")
	}
	if n := len(v.streaks); n > maxDelegations {
		t.Errorf("%d streaks are noted, more than %d", n, maxDelegations)
	}
}

func TestASessionHasSoManyDirectoriesDelegated(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	n := 0
	for range maxDelegations + 10 {
		n++
		if !a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: fmt.Sprint(n), Mode: dirm, Delegate: true}).Delegated {
			break
		}
	}
	if n > maxDelegations+1 {
		t.Fatalf("%d are delegated", n)
	}
	v := w.srv.list()[0]
	for _, s := range v.full() {
		v.trim(context.Background(), s)
	}
	if !a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "more", Mode: dirm, Delegate: true}).Delegated {
		t.Error("none is delegated after some were asked back")
	}
}

// A directory that is delegated is asked back when another asks for it, also if a
// session changed it while it returned it.
func TestADirectoryThatIsChangedWhileItIsReturnedIsAskedBackAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		maxHeld int
		askBack func(t *testing.T, a *client, dir meta.Ino)
	}{
		"there are many": {5 * maxDelegations, func(_ *testing.T, a *client, _ meta.Ino) {
			for n := range maxDelegations/4*3 + 1 {
				a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: fmt.Sprint(n), Mode: dirm, Delegate: true})
			}
			for len(a.conn.told()) == 0 {
				a.trim()
			}
		}},
		"another reads it that holds too much": {8, func(t *testing.T, a *client, dir meta.Ino) {
			b, c := a.w.hello("rw:"), a.w.hello("rw:")
			for n := range 8 {
				b.attr(c.file(meta.Root, fmt.Sprint(n)))
			}
			if b.ok(&meta.Request{Op: meta.OpGetattr, Ino: dir}).Cache {
				t.Error("it may cache more than the limit")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.maxHeld = tc.maxHeld
			w.start()
			a := w.hello("rw:")
			dir := a.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm, Delegate: true}).Attr.Ino
			delegated := make(map[meta.Ino]bool)
			returned := 0
			a.conn.push = func(_ context.Context, req *meta.Request) (*meta.Reply, error) {
				for _, inval := range req.Invals {
					if inval.Attr {
						continue // a change, which it is told of
					}
					returned++
					delegated[inval.Ino] = a.makeIn(inval.Ino, "late")
				}
				return &meta.Reply{}, nil
			}
			tc.askBack(t, a, dir)
			a.conn.push = nil
			if returned == 0 {
				t.Fatal("nothing was asked back")
			}
			b := w.hello("rw:")
			for dir, is := range delegated {
				a.conn.told()
				b.ok(&meta.Request{Op: meta.OpReaddir, Ino: dir})
				if is && len(a.conn.told()) == 0 {
					t.Fatal("what is delegated was not asked back")
				}
			}
		})
	}
}

// A file made with a number of the client's and its contents is as one that was
// made and written after.
func TestAFileIsMadeWithItsContents(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	first := a.numbers(3)
	at := func(s int64) meta.Time { return meta.Time{Sec: s, Nsec: 5} }
	req := func(ino meta.Ino, name string) *meta.Request {
		a.gen++
		return &meta.Request{
			Op: meta.OpMake, Ino: meta.Root, Name: name, Mode: reg, Uid: 7, Gid: 8, Ino2: ino, Time: at(100),
			Attr: meta.Attr{Atime: at(101), Mtime: at(102), Ctime: at(103)}, Size: 3,
			Blocks: []meta.Block{{Gen: meta.Gen{Session: a.id, Seq: a.gen}, Len: 3, Inline: true, Data: []byte("abc"), Whole: true}},
		}
	}
	reply := a.ok(req(first, "f"))
	got := reply.Attr
	want := meta.Attr{Ino: first, Mode: reg, Uid: 7, Gid: 8, Nlink: 1, Size: 3, Bytes: 3, Change: 1, Data: 1,
		Btime: at(100), Atime: at(101), Mtime: at(102), Ctime: at(103)}
	if got != want || reply.Existed || reply.Parent.Size != 1 || reply.Parent.Mtime.Sec < 1000 {
		t.Errorf("it is %+v (%v, in %+v)\nwant  %+v", got, reply.Existed, reply.Parent, want)
	}
	if r := a.ok(&meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "f"}); r.Block == nil || string(r.Block.Data) != "abc" || r.Attr != want {
		t.Errorf("it is found as %+v with %+v", r.Attr, r.Block)
	}

	// Once more: it was done, and is not done again.
	if r := a.ok(req(first, "f")); !r.Existed || r.Attr != want {
		t.Errorf("made again it is %+v (%v)", r.Attr, r.Existed)
	}
	for name, req := range map[string]*meta.Request{
		"a number that was not reserved": req(first+3, "g"),
		"a number of the server's":       req(2, "g"),
		"a directory":                    {Op: meta.OpMake, Ino: meta.Root, Name: "g", Mode: dirm, Ino2: first + 1},
		"a number without a name":        {Op: meta.OpMake, Ino: meta.Root, Mode: reg, Ino2: first + 1},
	} {
		if r := a.do(req); r.Errno != syscall.EINVAL {
			t.Errorf("%s: %v", name, r.Errno)
		}
	}
	if r := a.do(req(first+1, "f")); r.Errno != syscall.EEXIST {
		t.Errorf("a name that is there: %v", r.Errno)
	}
	late := req(first+1, "late")
	late.Attr.Ctime.Sec = 1 << 40
	if r := a.ok(late); r.Attr.Ctime.Sec > time.Now().Unix() {
		t.Errorf("a client's clock sets ctime to %v", r.Attr.Ctime)
	}
}
