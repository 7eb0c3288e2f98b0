package tree

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A bucket holds the objects of a world that has one.
type bucket map[BlockRef]time.Time

// list is the List of a Config. It sees what changes while it is at work.
func (w *world) list(_ context.Context, _ string, fn func(Object) error) error {
	w.mu.Lock()
	var all []BlockRef
	for ref := range w.bucket {
		all = append(all, ref)
	}
	w.mu.Unlock()
	for _, ref := range all {
		w.mu.Lock()
		put, ok := w.bucket[ref]
		w.mu.Unlock()
		if !ok {
			continue
		}
		if err := fn(Object{ref, 10, put}); err != nil {
			return err
		}
	}
	return nil
}

// upload puts the objects of block records into the bucket.
func (w *world) upload(ino meta.Ino, list ...meta.Block) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range list {
		if !k.Inline {
			w.bucket[BlockRef{ino, k.Index, k.Gen}] = time.Now()
		}
	}
}

// references returns the objects that something names.
func (w *world) references() map[BlockRef]Naming {
	w.t.Helper()
	refs := make(map[BlockRef]Naming)
	err := References(context.Background(), w.engine, func(_ string, ref BlockRef, why Naming) error {
		if refs[ref] == 0 || why < refs[ref] {
			refs[ref] = why
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return refs
}

// complete fails the test if an object is missing that a file or the past names.
func (w *world) complete(when string) {
	w.t.Helper()
	named := w.references()
	w.mu.Lock()
	defer w.mu.Unlock()
	for ref, why := range named {
		if _, ok := w.bucket[ref]; !ok && why != InDelete {
			w.t.Fatalf("%s: object %v, which %v names, is not in the bucket", when, ref, why)
		}
	}
}

func newBucketWorld(t *testing.T) *world {
	w := newWorld(t)
	w.bucket = bucket{}
	w.grace = time.Nanosecond
	w.start()
	return w
}

func (w *world) reconcile() Reconciled {
	w.t.Helper()
	time.Sleep(time.Millisecond) // the grace
	out, err := w.srv.Reconcile(context.Background(), testVolume, true, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func TestWhatADeadClientLeftIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBucketWorld(t)
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		k := c.block(0, 10)
		w.upload(f, k, c.block(1, 10), c.block(2, 10))
		c.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Size: 10, Blocks: []meta.Block{k}})
		if out := w.reconcile(); out.Orphans != 0 || out.Held != 3 {
			t.Errorf("while its session is alive: %+v", out)
		}
		c.ok(&meta.Request{Op: meta.OpBye})
		dry, err := w.srv.Reconcile(t.Context(), testVolume, false, nil)
		if err != nil || dry.Orphans != 2 || dry.Removed != 0 || len(w.bucket) != 3 {
			t.Errorf("a dry run: %+v, %v; %d objects are left", dry, err, len(w.bucket))
		}
		w.bucketErr = syscall.EIO
		away, err := w.srv.Reconcile(t.Context(), testVolume, true, nil)
		if err == nil || away.OrphanBytes != 20 || away.Removed != 0 || away.RemovedBytes != 0 {
			t.Errorf("while the bucket deletes nothing: %+v, %v", away, err)
		}
		w.bucketErr = nil
		if out := w.reconcile(); out.Removed != 2 || out.Named != 1 || out.OrphanBytes != 20 || out.RemovedBytes != 20 {
			t.Errorf("after its end: %+v", out)
		}
		w.complete("after its end")
		if len(w.bucket) != 1 {
			t.Errorf("%d objects are left, not 1", len(w.bucket))
		}
	})
}

func TestYoungAndUnknownObjectsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBucketWorld(t)
		w.grace = time.Hour
		w.start()
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		w.upload(f, c.block(0, 10))
		c.ok(&meta.Request{Op: meta.OpBye})
		w.upload(f, meta.Block{Gen: meta.Gen{Session: c.id + 1, Seq: 1}}) // of a session to come
		w.upload(f+10*inoBatch, c.block(0, 10))                           // of an inode to come
		time.Sleep(time.Hour - time.Minute)
		if out := w.reconcile(); out.Young != 3 || out.Removed != 0 {
			t.Errorf("before the grace is over: %+v", out)
		}
		time.Sleep(2 * time.Minute)
		if out := w.reconcile(); out.Strange != 2 || out.Removed != 1 || len(w.bucket) != 2 {
			t.Errorf("after it: %+v", out)
		}
	})
}

func TestWhatThePastOrDelayedWorkNamesStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBucketWorld(t)
		w.config.Retention = time.Hour
		w.run(t)
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		write := func() {
			k := c.block(0, 10)
			w.upload(f, k)
			c.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Size: 10, Blocks: []meta.Block{k}})
			time.Sleep(time.Second)
		}
		write()
		write()
		w.setRetention(0) // what follows is in no history, only in delayed work
		c = w.hello("rw:")
		write()
		write()
		c.ok(&meta.Request{Op: meta.OpBye})
		time.Sleep(20 * time.Second) // the sessions end
		if out := w.reconcile(); out.Named != 4 || out.Removed != 0 {
			t.Errorf("%+v", out)
		}
		w.complete("at once")
		time.Sleep(2 * time.Hour)
		w.complete("when all is collected")
		if out := w.reconcile(); out.Objects != 1 || out.Named != 1 {
			t.Errorf("after the retention: %+v", out)
		}
	})
}

// Delayed work names what the past names, as long. Either would do alone.
func TestThePastAloneNamesAnObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { testThePastAlone(t, newWorld(t)) })
}

func testThePastAlone(t *testing.T, w *world) {
	w.config.Retention = time.Hour
	c := w.hello("rw:")
	f := c.file(meta.Root, "f")
	k := c.block(1, 10)
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Size: 2 * testBlockSize, Blocks: []meta.Block{k}})
	time.Sleep(2 * time.Second)
	c.ok(&meta.Request{Op: meta.OpPunch, Ino: f, Index: 0, Index2: 2})
	v := w.srv.volumes[testVolume]
	for gen, want := range map[meta.Gen]bool{k.Gen: true, {Session: c.id, Seq: k.Gen.Seq + 1}: false} {
		err := w.engine.View(t.Context(), func(r engine.Reader) error {
			got, err := v.needed(r, BlockRef{f, 1, gen})
			if got != want {
				t.Errorf("version %v is named: %v", gen, got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheBucketIsSearchedFromTimeToTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBucketWorld(t)
		w.every = 10 * time.Minute
		w.start()
		w.run(t)
		c := w.hello("rw:")
		for i := range uint32(2500) {
			w.upload(2, c.block(i, 10))
		}
		c.file(meta.Root, "f")
		c.ok(&meta.Request{Op: meta.OpBye})
		time.Sleep(12 * time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.bucket) != 0 {
			t.Errorf("%d objects are left", len(w.bucket))
		}
	})
}

func TestAVersionOfAnotherSessionIsNotCommitted(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	k := a.block(0, 10)
	b.refused(syscall.ESTALE, &meta.Request{Op: meta.OpCommit, Ino: f, Size: 10, Blocks: []meta.Block{k}})
	a.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Size: 10, Blocks: []meta.Block{k}})
	b.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Size: 10, Blocks: []meta.Block{k}}) // it is there
}

// Clients write, die and come back at random, the past is kept or not, and the
// bucket is searched all the time without any grace.
func TestNothingThatIsNamedIsRemoved(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { w := newBucketWorld(t); w.live(t, rand.New(rand.NewPCG(seed, 9))) })
		})
	}
}

func (w *world) live(t *testing.T, r *rand.Rand) {
	w.config.Retention = []time.Duration{0, time.Minute, 10 * time.Minute}[r.IntN(3)]
	w.keep = time.Minute
	w.start()
	w.run(t)
	clients := []*client{w.hello("rw:"), w.hello("rw:")}
	late := map[*client]*meta.Request{}
	var files []meta.Ino
	for i := range 250 {
		at := r.IntN(len(clients))
		c := clients[at]
		name := fmt.Sprint("f", r.IntN(8))
		switch n := r.IntN(20); {
		case n < 3:
			reply := c.do(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: name, Mode: reg, Exist: true})
			files = append(files, reply.Attr.Ino)
		case n < 14 && len(files) > 0:
			ino := files[r.IntN(len(files))]
			var list []meta.Block
			for index := range uint32(r.IntN(4)) {
				list = append(list, c.block(index, 10))
			}
			w.upload(ino, list...)
			req := &meta.Request{Op: meta.OpCommit, Ino: ino, Size: 4 * testBlockSize, Blocks: list}
			switch {
			case r.IntN(4) > 0:
				c.do(req)
			case late[c] != nil:
				c.do(late[c])
				delete(late, c)
			default: // later or never
				late[c] = req
			}
		case n == 14 && len(files) > 0:
			size := meta.Attr{Size: uint64(r.IntN(4 * testBlockSize))}
			c.do(&meta.Request{Op: meta.OpSetattr, Ino: files[r.IntN(len(files))], Set: meta.SetSize, Attr: size})
		case n == 15 && len(files) > 0:
			from, to := files[r.IntN(len(files))], files[r.IntN(len(files))]
			c.do(&meta.Request{Op: meta.OpClone, Ino: from, Ino2: to, Index: uint32(r.IntN(2)), Index2: uint32(2 + r.IntN(2)), Limit: 2, Size: 4 * testBlockSize})
		case n == 16 && r.IntN(2) == 0:
			c.do(on(meta.OpUnlink, meta.Root, name))
		case n == 16:
			c.ok(&meta.Request{Op: meta.OpBye})
			clients[at] = w.hello("rw:")
		case n == 17:
			time.Sleep(time.Duration(r.IntN(200)) * time.Second) // sessions end, things are collected
			for i := range clients {
				clients[i] = w.hello("rw:")
			}
		default:
			w.reconcile()
		}
		w.complete(fmt.Sprint("step ", i))
	}
	w.setRetention(0)
	time.Sleep(time.Hour) // all sessions end, all is collected
	w.reconcile()
	named := w.references()
	w.mu.Lock()
	for ref := range w.bucket {
		if named[ref] == 0 {
			t.Errorf("object %v is left, and nothing names it", ref)
		}
	}
	w.mu.Unlock()
	w.complete("at the end")
}

func (w *world) setRetention(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.config.Retention = d
}
