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

// takeApart takes all detached directories apart, as the collector does.
func (w *world) takeApart() {
	w.t.Helper()
	for {
		v := w.srv.volumes[testVolume]
		trees := w.detached(v)
		if len(trees) == 0 {
			return
		}
		for _, t := range trees {
			if err := v.takeAllApart(context.Background(), t.key, t.ino(), time.Now().Add(time.Minute)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// detached returns the tasks of directories that are detached.
func (w *world) detached(v *volume) (trees []task) {
	w.t.Helper()
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		prefix := v.key(tableDelayed)
		return r.Scan(prefix, after(prefix), false, func(key, _ []byte) (bool, error) {
			if key[13] == delayedTree {
				trees = append(trees, task{key: append([]byte(nil), key...), kind: delayedTree})
			}
			return true, nil
		})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return trees
}

func TestATreeIsRemovedAtOnceAndTakenApartLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		top := a.dir(meta.Root, "top")
		sub := a.dir(top, "sub")
		deep := a.dir(sub, "deep")
		linked, used, saved := a.file(deep, "linked"), a.file(deep, "used"), a.file(sub, "saved")
		a.write(used, 0, 3)
		a.ok(&meta.Request{Op: meta.OpLink, Ino: linked, Ino2: meta.Root, Name: "elsewhere"})
		for i := range 3 * treeStep {
			a.file(top, fmt.Sprint("f", i))
		}
		b.attr(used)
		b.conn.inuse[used] = true
		b.ok(on(meta.OpLookup, meta.Root, "top"))
		b.conn.told()
		was := a.ok(&meta.Request{Op: meta.OpStatfs}).Statfs.Inodes

		a.refused(syscall.ENOENT, on(meta.OpRemoveTree, meta.Root, "nothing"))
		a.refused(syscall.ENOTDIR, on(meta.OpRemoveTree, meta.Root, "elsewhere"))
		a.refused(syscall.EINVAL, on(meta.OpRemoveTree, top, ".."))
		r := a.ok(on(meta.OpRemoveTree, meta.Root, "top"))
		if r.Replaced.Ino != top || r.Replaced.Nlink != 0 || r.Parent.Size != 1 || r.Parent.Nlink != 2 {
			t.Errorf("%+v", r)
		}
		if names := a.names(meta.Root); names != "[elsewhere]" {
			t.Errorf("the root has %s", names)
		}
		if got := b.conn.told(); len(got) < 2 {
			t.Errorf("the other client was told %+v", got)
		}
		w.check()

		// Who is inside goes on, but nothing can be put into what is gone.
		a.refused(syscall.ENOENT, &meta.Request{Op: meta.OpMake, Ino: top, Name: "new", Mode: reg})
		a.refused(syscall.ENOENT, renaming(meta.Root, "elsewhere", top, "x", 0))
		a.file(deep, "new")
		a.ok(on(meta.OpLookup, top, "sub"))
		a.ok(renaming(sub, "saved", meta.Root, "saved", 0))
		w.check()

		w.crash(50, 1)
		w.run(t)
		a.resume(&meta.Request{})
		b.resume(&meta.Request{Inos: []meta.Ino{used}})
		defer a.pinging(t)()
		defer b.pinging(t)()
		time.Sleep(30 * time.Second)
		w.check()
		if st := a.ok(&meta.Request{Op: meta.OpStatfs}).Statfs; st.Inodes != 3 || st.Bytes != 0 {
			t.Errorf("%d inodes and %d bytes are counted, were %d", st.Inodes, st.Bytes, was)
		}
		if got := a.attr(linked); got.Nlink != 1 {
			t.Errorf("the file with another name has %d links", got.Nlink)
		}
		a.attr(saved)
		time.Sleep(time.Hour)
		if got := b.attr(used); got.Nlink != 0 || got.Bytes != 3*testBlockSize {
			t.Errorf("the open file: %+v", got)
		}
		b.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{used}})
		a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{used, top}})
		time.Sleep(time.Hour)
		b.refused(syscall.ENOENT, on(meta.OpGetattr, used, ""))
		if n := w.deletes(); n != 3 {
			t.Errorf("%d blocks were deleted", n)
		}
		if n := w.count(t, tableInode); n != 3 {
			t.Errorf("%d records of inodes are left, not those of the root and two files", n)
		}
	})
}

// Trees vanish while clients are at work in them and the server is killed.
func TestTreesAreRemovedWhileClientsWorkInThem(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.config.Retention = []time.Duration{0, time.Hour}[seed%2]
				r := rand.New(rand.NewPCG(seed, 21))
				p := &player{r, w.hello("rw:"), newModel()}
				for i := range 300 {
					p.step() // whatever it answers: the model knows nothing of what is not taken apart
					if dir := p.dir(); r.IntN(10) == 0 {
						p.c.do(on(meta.OpRemoveTree, dir.ino, p.name()))
					}
					if r.IntN(30) == 0 {
						w.crash(r.IntN(100), seed)
						if r := p.c.resume(&meta.Request{}); r.Errno != 0 {
							t.Fatalf("resume: %v", r.Errno)
						}
					}
					if i%20 == 0 {
						w.check()
					}
				}
				w.takeApart()
				w.check()
				reached := uint64(0)
				var walk func(meta.Ino)
				seen := map[meta.Ino]bool{}
				walk = func(dir meta.Ino) {
					for _, e := range p.c.ok(&meta.Request{Op: meta.OpReaddir, Ino: dir, Plus: true}).Entries {
						if !seen[e.Attr.Ino] {
							seen[e.Attr.Ino] = true
							reached++
						}
						if e.Attr.IsDir() {
							walk(e.Attr.Ino)
						}
					}
				}
				walk(meta.Root)
				if n := p.c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs.Inodes; n != reached+1 {
					t.Errorf("%d inodes are counted, %d are reached from the root", n, reached+1)
				}
			})
		})
	}
}

func TestADetachedDirectoryStaysUntilItIsTakenApart(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	top := c.dir(meta.Root, "top")
	c.file(top, "f")
	c.ok(on(meta.OpRemoveTree, meta.Root, "top"))
	c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{top}})
	v := w.srv.volumes[testVolume]
	if dying, _, err := v.condemn(t.Context(), v.delayedInodeKey(1, top), top); dying || err != nil {
		t.Errorf("a directory that has entries is collected: %v, %v", dying, err)
	}
}
