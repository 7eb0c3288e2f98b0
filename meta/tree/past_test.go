package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// helloAt opens a session of the past.
func (w *world) helloAt(at int64) (*client, *meta.Reply) {
	w.t.Helper()
	c := &client{w: w, t: w.t, conn: &fakeConn{name: "past"}}
	reply := c.send(&meta.Request{Op: meta.OpHello, Version: 1, Token: "rw:", Volume: testVolume, Name: "past", At: at})
	c.id, c.secret = reply.Session, reply.Secret
	return c, reply
}

func (c *client) bye() { c.ok(&meta.Request{Op: meta.OpBye}) }

// A snapshot is all that a session is told of a volume: a line of text for each
// name, attribute and block.
type snapshot struct {
	text    string
	objects []BlockRef
}

func (c *client) snapshot() snapshot {
	c.t.Helper()
	var b strings.Builder
	var s snapshot
	var walk func(a meta.Attr, path string)
	walk = func(a meta.Attr, path string) {
		fmt.Fprintf(&b, "%s %+v\n", path, a)
		for _, name := range c.ok(on(meta.OpListxattr, a.Ino, "")).Names {
			fmt.Fprintf(&b, "%s[%s] %q\n", path, name, c.ok(on(meta.OpGetxattr, a.Ino, name)).Data)
		}
		switch {
		case a.IsDir():
			for _, e := range c.ok(&meta.Request{Op: meta.OpReaddir, Ino: a.Ino, Plus: true}).Entries {
				if found := c.ok(on(meta.OpLookup, a.Ino, e.Name)).Attr; found != e.Attr {
					c.t.Errorf("%s/%s is listed as %+v and found as %+v", path, e.Name, e.Attr, found)
				}
				walk(e.Attr, path+"/"+e.Name)
			}
		case a.IsRegular():
			for _, k := range c.ok(&meta.Request{Op: meta.OpBlocks, Ino: a.Ino}).Blocks {
				fmt.Fprintf(&b, "%s %+v\n", path, k)
				if !k.Inline {
					s.objects = append(s.objects, refOf(a.Ino, &k))
				}
			}
		}
	}
	walk(c.attr(meta.Root), "")
	s.text = b.String()
	return s
}

// scan returns what a reader has in a table.
func scan(t *testing.T, r engine.Reader, table byte, reverse bool) (keys []string, values map[string]string) {
	t.Helper()
	values = map[string]string{}
	prefix := []byte{0, 0, 0, 1, table}
	err := r.Scan(prefix, after(prefix), reverse, func(key, value []byte) (bool, error) {
		keys = append(keys, string(key))
		values[string(key)] = string(value)
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys, values
}

// tables returns the tables that have history.
func (w *world) tables(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		for _, table := range []byte{tableInode, tableDentry} {
			_, values := scan(t, r, table, false)
			maps.Copy(all, values)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// nameless tells whether a key is of an inode that has no name.
func nameless(all map[string]string, key string) bool {
	if key[4] != tableInode {
		return false
	}
	value := all[key[:13]+"\x00"]
	in, err := decodeInode(0, []byte(value))
	return err == nil && in.Nlink == 0
}

// comparePast reads the past in every way that a Reader has and compares it with
// what was there.
func (w *world) comparePast(t *testing.T, second int64, want map[string]string) {
	t.Helper()
	now := w.tables(t)
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		p := &past{r, second}
		for _, table := range []byte{tableInode, tableDentry} {
			up, values := scan(t, p, table, false)
			down, reversed := scan(t, p, table, true)
			slices.Reverse(down)
			if !slices.Equal(up, down) || !maps.Equal(values, reversed) || !slices.IsSorted(up) || len(up) != len(values) {
				t.Errorf("second %d, table %q: read up there are %d keys, read down %d", second, table, len(up), len(down))
			}
			for key, value := range want {
				if nameless(want, key) {
					continue // it is collected when it is, and nobody finds it
				}
				if got, ok := values[key]; key[4] == table && (!ok || got != value) {
					t.Errorf("second %d: key %q is %q in a scan; it was %q", second, key, got, value)
				}
			}
			for key := range values {
				if _, was := want[key]; !was && !unborn(want, key[:4], key) && !nameless(values, key) {
					t.Errorf("second %d: key %q is in a scan; it was not there", second, key)
				}
			}
		}
		for key := range now {
			if nameless(want, key) || nameless(now, key) {
				continue
			}
			b, err := p.Get([]byte(key))
			if value, was := want[key]; err != nil || was && string(b) != value || !was && b != nil && !unborn(want, key[:4], key) {
				t.Errorf("second %d: key %q is %q, %v; it was %q, %v", second, key, b, err, value, was)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// disturb does random operations that a player does not do, on whatever is
// there.
func (c *client) disturb(r *rand.Rand, dir meta.Ino) {
	list := c.ok(&meta.Request{Op: meta.OpReaddir, Ino: dir, Plus: true}).Entries
	for _, e := range list {
		switch r.IntN(8) {
		case 0:
			c.do(&meta.Request{Op: meta.OpSetattr, Ino: e.Attr.Ino, Set: meta.SetMode | meta.SetMtime, Attr: meta.Attr{Mode: r.Uint32() & 0o777, Mtime: meta.Time{Sec: r.Int64N(1e9)}}})
		case 1:
			c.do(&meta.Request{Op: meta.OpSetxattr, Ino: e.Attr.Ino, Name: "user.own", Data: fmt.Append(nil, r.Uint32())})
		case 2:
			end := e.Attr.Size // append
			k := c.block(uint32(end/testBlockSize), testBlockSize)
			c.do(&meta.Request{Op: meta.OpCommit, Ino: e.Attr.Ino, Size: (end/testBlockSize + 1) * testBlockSize, Blocks: []meta.Block{k}})
		case 3:
			if e.Attr.IsDir() {
				c.disturb(r, e.Attr.Ino)
			}
		case 4:
			from := list[r.IntN(len(list))].Attr.Ino
			c.do(&meta.Request{Op: meta.OpClone, Ino: from, Index: r.Uint32N(4), Ino2: e.Attr.Ino, Index2: r.Uint32N(4), Limit: 1 + r.Uint32N(3), Size: uint64(r.Uint32N(8 * testBlockSize))})
		case 5:
			c.do(&meta.Request{Op: meta.OpPunch, Ino: e.Attr.Ino, Index: r.Uint32N(8), Index2: 8})
		}
	}
	if list := c.ok(&meta.Request{Op: meta.OpDeleted, Ino: dir}).Deleted; len(list) > 0 && r.IntN(2) == 0 {
		e := list[r.IntN(len(list))]
		c.do(&meta.Request{Op: meta.OpRestore, Ino: dir, Name: e.Name, At: e.At, Ino2: e.Attr.Ino, Name2: string(rune('a' + r.IntN(8)))})
	}
}

// Two sessions do random things for two minutes; what was there at the end of
// each second is compared with what a session of the past sees, while the
// collector works at the edge of the window.
func TestThePastIsWhatItWas(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.keep, w.config.Retention = 3*time.Second, 20*time.Second
				w.start()
				w.run(t)
				random := rand.New(rand.NewPCG(seed, 7))
				p := &player{random, w.hello("rw:"), newModel()}
				other := w.hello("rw:")
				defer p.c.pinging(t)()
				defer other.pinging(t)()
				time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1500 * time.Millisecond)))
				other.file(meta.Root, "first")
				begin := time.Now().Unix()
				states, snapshots := map[int64]map[string]string{}, map[int64]snapshot{}
				for range 120 {
					for range random.IntN(8) {
						p.step()
					}
					other.disturb(random, meta.Root)
					now := time.Now().Unix()
					states[now], snapshots[now] = w.tables(t), other.snapshot()
					time.Sleep(time.Second)

					edge := w.since(t)
					for _, second := range []int64{edge, edge + random.Int64N(now-edge+1), now} {
						if second < begin {
							continue
						}
						w.comparePast(t, second, states[second])
						c, reply := w.helloAt(second)
						if reply.Errno != 0 {
							t.Fatalf("second %d of %d to %d: %s", second, edge, now, reply.Msg)
						}
						got := c.snapshot()
						if got.text != snapshots[second].text {
							a, b := strings.Split(got.text, "\n"), strings.Split(snapshots[second].text, "\n")
							t.Fatalf("second %d: only in the past\n%s\nonly in what was there\n%s", second, minus(a, b), minus(b, a))
						}
						w.wantObjects(got.objects)
						c.bye()
					}
					if t.Failed() {
						t.FailNow()
					}
				}
				if edge := w.since(t); edge < begin+60 || w.deletes() == 0 {
					t.Errorf("the window begins at %d, %d seconds after the start, and %d objects were deleted", edge, edge-begin, w.deletes())
				}
			})
		})
	}
}

// wantObjects fails the test if one of the objects was deleted.
func (w *world) wantObjects(refs []BlockRef) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range refs {
		if w.deleted[r] {
			w.t.Errorf("object %v is part of the past and was deleted", r)
		}
	}
}

// since returns the beginning of the window.
func (w *world) since(t testing.TB) (since int64) {
	t.Helper()
	v := &volume{num: 1}
	err := w.engine.View(context.Background(), func(r engine.Reader) (err error) {
		since, err = v.counter(r, counterPast)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return since
}

func TestAPastThatIsNotKeptIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		c := w.hello("rw:")
		c.file(meta.Root, "f")
		since := time.Now().Unix()
		time.Sleep(10 * time.Second)
		for _, tc := range []struct {
			at    int64
			errno syscall.Errno
			msg   string
		}{
			{since - 1, syscall.ESTALE, "the past of 1999-12-31T23:59:59Z is not kept: the earliest that is, is 2000-01-01T00:00:00Z"},
			{since + 11, syscall.EINVAL, "2000-01-01T00:00:11Z is to come: the metadata service has 2000-01-01T00:00:10Z"},
			{-11, syscall.ESTALE, "the past of 1999-12-31T23:59:59Z is not kept: the earliest that is, is 2000-01-01T00:00:00Z"},
			{since, 0, ""}, {-10, 0, ""}, {since + 10, 0, ""},
		} {
			_, reply := w.helloAt(tc.at)
			if reply.Errno != tc.errno || reply.Msg != tc.msg {
				t.Errorf("second %d: errno %v, %q; want %v, %q", tc.at, reply.Errno, reply.Msg, tc.errno, tc.msg)
			}
			if reply.Errno == 0 && (!reply.VolumeInfo.ReadOnly || reply.VolumeInfo.At < since) {
				t.Errorf("second %d: the session is told %+v", tc.at, reply.VolumeInfo)
			}
		}
	})
}

func TestWithoutRetentionThereIsNoPast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.hello("rw:")
		c.file(meta.Root, "f")
		if _, reply := w.helloAt(-1); reply.Errno != syscall.ESTALE || reply.Msg != "the volume keeps no past: its retention is 0" {
			t.Errorf("errno %v, %s", reply.Errno, reply.Msg)
		}
	})
}

// retain sets the retention and lets the server take note.
func (w *world) retain(d time.Duration) {
	w.mu.Lock()
	w.config.Retention = d
	w.mu.Unlock()
	time.Sleep(15 * time.Second)
}

func TestAChangeOfRetentionMovesTheWindowOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		change := func() (second int64, is snapshot) {
			time.Sleep(time.Second)
			c.write(f, 0, 2)
			return time.Now().Unix(), c.snapshot()
		}
		wantPast := func(what string, second int64, want snapshot) {
			t.Helper()
			p, reply := w.helloAt(second)
			if reply.Errno != 0 {
				t.Errorf("%s: %v, %s", what, reply.Errno, reply.Msg)
				return
			}
			if got := p.snapshot(); got.text != want.text {
				t.Errorf("%s: it was\n%s, now it is said to be\n%s", what, want.text, got.text)
			}
			w.wantObjects(want.objects)
		}
		wantNone := func(what string, second int64) {
			t.Helper()
			if _, reply := w.helloAt(second); reply.Errno != syscall.ESTALE {
				t.Errorf("%s: %v, %s; it should not be kept", what, reply.Errno, reply.Msg)
			}
		}
		none, _ := change()
		w.retain(time.Hour)
		hour, was := change()
		change()
		wantNone("before there was a retention", none)
		wantPast("with a retention of an hour", hour, was)

		w.retain(-1)
		ever, wasEver := change()
		change()
		wantPast("that was kept for an hour, before the hour is over", hour, was)
		time.Sleep(2 * time.Hour)
		wantNone("that was kept for an hour", hour)
		wantPast("that is kept for ever", ever, wasEver)

		w.retain(30 * time.Minute)
		short, wasShort := change()
		change()
		if w.deletes() == 0 {
			t.Error("nothing was deleted")
		}
		wantNone("that was kept for ever, until the retention was shorter than its age", ever)
		wantPast("with a retention of half an hour", short, wasShort)
		time.Sleep(time.Hour)
		change()
		if n := w.count(t, tableDelayed); n > 20 {
			t.Errorf("%d pieces of delayed work are left", n)
		}

		again, wasAgain := change()
		change()
		wantPast("the latest", again, wasAgain)
		w.retain(0)
		change()
		wantNone("after history ended", again)
		w.retain(time.Hour)
		last, wasLast := change()
		wantNone("from before history began again", again)
		change()
		wantPast("since history began again", last, wasLast)
	})
}

func TestASessionOfThePastEndsWithTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Minute
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		time.Sleep(time.Second)
		p, _ := w.helloAt(-1)
		defer p.pinging(t)()
		time.Sleep(time.Second)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		time.Sleep(30 * time.Second)
		if reply := p.ok(on(meta.OpLookup, meta.Root, "f")); reply.Attr.Ino != f || reply.Attr.Nlink != 1 || !reply.Cache {
			t.Errorf("in the past f is %+v", reply)
		}
		if told := p.conn.told(); len(told) > 0 {
			t.Errorf("a session of the past was called back: %v", told)
		}
		time.Sleep(40 * time.Second)
		for _, req := range []*meta.Request{
			on(meta.OpLookup, meta.Root, "f"), on(meta.OpGetattr, f, ""), {Op: meta.OpBlocks, Ino: f}, {Op: meta.OpReaddir, Ino: meta.Root}, {Op: meta.OpPing},
		} {
			p.refused(syscall.ESTALE, req)
		}
	})
}

func TestASessionOfThePastChangesAndLocksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Minute
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		time.Sleep(time.Second)
		p, reply := w.helloAt(-1)
		p.refused(syscall.EROFS, on(meta.OpUnlink, meta.Root, "f"))
		p.refused(syscall.EROFS, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "g", Mode: reg})
		p.refused(syscall.ENOLCK, &meta.Request{Op: meta.OpSetlk, Ino: f, Lock: meta.Lock{Type: syscall.F_RDLCK, End: 9}})
		p.refused(syscall.ENOENT, on(meta.OpLookup, meta.Root, "g"))

		// It comes back to the same second, also after a restart, and then nobody waits for it.
		time.Sleep(2 * time.Second)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		w.start()
		if r := c.resume(&meta.Request{}); r.Errno != 0 {
			t.Fatalf("resume: %v", r.Errno)
		}
		before := time.Now()
		c.file(meta.Root, "h")
		if waited := time.Since(before); waited > 0 {
			t.Errorf("a change waited %v for a session of the past", waited)
		}
		if r := p.resume(&meta.Request{}); r.Errno != 0 || r.VolumeInfo.At != reply.VolumeInfo.At || !r.VolumeInfo.ReadOnly {
			t.Fatalf("resume: %+v", r)
		}
		if names := p.names(meta.Root); names != "[f]" {
			t.Errorf("in the past there is %s", names)
		}
	})
}

func TestThePastOfAFolderIsReadWithItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		c := w.hello("rw:")
		d := c.dir(meta.Root, "d")
		c.file(d, "f")
		time.Sleep(time.Second)
		at := time.Now().Unix() - 1
		c.ok(on(meta.OpUnlink, d, "f"))
		c.ok(on(meta.OpRmdir, meta.Root, "d"))
		p := &client{w: w, t: t, conn: &fakeConn{name: "past"}}
		if r := p.send(&meta.Request{Op: meta.OpHello, Version: 1, Token: "ro:/d", Volume: testVolume, At: at}); r.Errno != 0 {
			t.Fatalf("hello: %s", r.Msg)
		}
		if names := p.names(meta.Root); names != "[f]" {
			t.Errorf("the folder had %s", names)
		}
	})
}

// A stalling engine keeps what was read and written from being visible until it
// may.
type stalling struct {
	engine.Engine
	stalled, may chan struct{}
}

func (e *stalling) Update(ctx context.Context, locks [][]byte, fn func(engine.Tx) error) (engine.Commit, error) {
	return e.Engine.Update(ctx, locks, func(tx engine.Tx) error {
		err := fn(tx)
		if err == nil && e.stalled != nil {
			close(e.stalled)
			e.stalled = nil
			<-e.may
		}
		return err
	})
}

func TestAPastSecondIsShownWhenAllOfItIsVisible(t *testing.T) {
	w := newWorld(t)
	w.config.Retention = time.Hour
	c := w.hello("rw:")
	c.file(meta.Root, "before")
	slow := &stalling{Engine: w.engine, stalled: make(chan struct{}), may: make(chan struct{})}
	stalled := slow.stalled
	w.srv.cfg.Engine = slow
	made := make(chan bool)
	go func() {
		defer close(made)
		c.file(meta.Root, "late")
	}()
	<-stalled // its second is decided
	second := time.Now().Unix()
	time.Sleep(time.Until(time.Unix(second+1, 1e8)))
	shown := make(chan string)
	go func() {
		p, reply := w.helloAt(second)
		if reply.Errno != 0 {
			shown <- reply.Msg
			return
		}
		shown <- p.names(meta.Root)
	}()
	select {
	case names := <-shown:
		t.Errorf("%s is shown, and a change of that second is not visible yet", names)
		close(slow.may)
	case <-time.After(200 * time.Millisecond):
		close(slow.may)
		if names := <-shown; names != "[before late]" {
			t.Errorf("the end of the second shows %s", names)
		}
	}
	<-made
}

func TestTimeDoesNotGoBackWhenTheServerStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = time.Hour
		c := w.hello("rw:")
		c.file(meta.Root, "f")
		v := w.srv.volumes[testVolume]
		v.mu.Lock()
		v.second += 1000 // as if the clock had been ahead
		v.mu.Unlock()
		c.file(meta.Root, "g")
		w.start()
		v = w.srv.volumes[testVolume]
		if got, want := v.now(), time.Now().Unix()+1001; got != want {
			t.Errorf("the new server has second %d, the old one was in %d", got, want-1)
		}
	})
}

// A hot key has many records: a read of the past must not go through them.
func TestAReadOfThePastSeeksOverAHotKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = -1
		c := w.hello("rw:")
		for range 300 {
			c.file(meta.Root, "m")
			c.ok(on(meta.OpUnlink, meta.Root, "m"))
			time.Sleep(time.Second)
			c.file(meta.Root, "m")
			time.Sleep(time.Second)
			c.ok(on(meta.OpUnlink, meta.Root, "m"))
			time.Sleep(time.Second)
		}
		for _, name := range []string{"a", "z"} {
			c.file(meta.Root, name)
		}
		time.Sleep(time.Second)
		v := w.srv.volumes[testVolume]
		err := w.engine.View(context.Background(), func(r engine.Reader) error {
			for _, back := range []int64{1, 300, 899} {
				n := &counting{Reader: r}
				p := &past{n, time.Now().Unix() - back}
				for _, reverse := range []bool{false, true} {
					prefix := v.dentryKey(meta.Root, "")
					if err := p.Scan(prefix, after(prefix), reverse, func(_, _ []byte) (bool, error) { return true, nil }); err != nil {
						return err
					}
				}
				if n.records > 100 {
					t.Errorf("%d seconds ago: two scans of three names read %d records", back, n.records)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// counting counts the records that scans pass.
type counting struct {
	engine.Reader
	records int
}

func (c *counting) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	return c.Reader.Scan(from, to, reverse, func(key, value []byte) (bool, error) {
		c.records++
		return fn(key, value)
	})
}

func TestAScanOfThePastEndsWhereItIsToldTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = -1
		c := w.hello("rw:")
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			c.file(meta.Root, name)
		}
		time.Sleep(time.Second)
		at := time.Now().Unix() - 1
		c.ok(on(meta.OpUnlink, meta.Root, "b"))
		c.ok(renaming(meta.Root, "d", meta.Root, "c", 0))
		v := w.srv.volumes[testVolume]
		broken := errors.New("broken")
		err := w.engine.View(context.Background(), func(r engine.Reader) error {
			p := &past{r, at}
			key := func(name string) []byte { return v.dentryKey(meta.Root, name) }
			for _, tc := range []struct {
				from, to []byte
				want     string
			}{
				{key(""), after(key("")), "abcde"},
				{append(key("a"), 0), after(key("")), "bcde"},
				{key("b"), append(key("c"), 0), "bc"},
				{append(key("b"), 0), key("d"), "c"},
				{key("b"), key("b"), ""},
				{key("bb"), key("bbb"), ""},
			} {
				for _, reverse := range []bool{false, true} {
					for limit := range len(tc.want) + 1 {
						var got []byte
						err := p.Scan(tc.from, tc.to, reverse, func(k, _ []byte) (bool, error) {
							got = append(got, k[len(key("")):]...)
							return len(got) != limit, nil
						})
						want := []byte(tc.want)
						if reverse {
							slices.Reverse(want)
						}
						if limit > 0 {
							want = want[:limit]
						}
						if err != nil || !bytes.Equal(got, want) {
							t.Errorf("%q to %q, reverse %v, limit %d: %q, %v; want %q", tc.from, tc.to, reverse, limit, got, err, want)
						}
					}
					if tc.want != "" {
						if err := p.Scan(tc.from, tc.to, reverse, func(_, _ []byte) (bool, error) { return false, broken }); err != broken {
							t.Errorf("an error of the caller became %v", err)
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
