package tree

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// records returns all block records of a file.
func (c *client) records(ino meta.Ino) []meta.Block {
	c.t.Helper()
	return c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino}).Blocks
}

// cloning is a request to clone n blocks.
func cloning(from meta.Ino, i uint32, to meta.Ino, j, n uint32) *meta.Request {
	return &meta.Request{Op: meta.OpClone, Ino: from, Index: i, Ino2: to, Index2: j, Limit: n, Size: uint64(j+n) * testBlockSize}
}

// gone reports whether an object was deleted.
func (w *world) gone(r BlockRef) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deleted[r]
}

func TestAClonedBlockNamesTheObjectOfTheFirst(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b, d := c.file(meta.Root, "a"), c.file(meta.Root, "b"), c.file(meta.Root, "c")
	c.write(a, 0, 2)
	c.write(a, 3, 4) // block 2 is a hole
	c.write(b, 0, 8)
	got := c.ok(cloning(a, 0, b, 5, 4)).Attr
	if got.Size != 9*testBlockSize || got.Bytes != 8*testBlockSize {
		t.Errorf("after the clone: %d bytes, %d of them stored", got.Size, got.Bytes)
	}
	src, dst := c.records(a), c.records(b)
	want := []meta.Block{{Index: 5, Gen: src[0].Gen}, {Index: 6, Gen: src[1].Gen}, {Index: 8, Gen: src[2].Gen}}
	for i, k := range dst[5:] {
		from := src[i]
		if k.Index != want[i].Index || k.Gen != want[i].Gen || k.Object(b) != (meta.Origin{Ino: a, Index: from.Index}) {
			t.Errorf("record %+v, object %v", k, k.Object(b))
		}
	}
	// From the clone to a third file, and back to where the object is at home.
	c.ok(cloning(b, 5, d, 0, 1))
	if k := c.records(d)[0]; k.Object(d) != (meta.Origin{Ino: a, Index: 0}) {
		t.Errorf("the clone of a clone is %+v", k)
	}
	c.write(a, 0, 1)
	c.ok(cloning(d, 0, a, 0, 1))
	if k := c.records(a)[0]; k.Origin != (meta.Origin{}) || k.Gen != src[0].Gen {
		t.Errorf("cloned back it is %+v, it was %+v", k, src[0])
	}
	c.ok(cloning(a, 0, a, 10, 2)) // within a file
	w.check()
}

func TestAClonesLastBlockIsCut(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
	c.write(a, 0, 2)
	req := cloning(a, 0, b, 0, 2)
	req.Size -= 100
	if got := c.ok(req).Attr; got.Size != req.Size || got.Bytes != req.Size {
		t.Errorf("%+v", got)
	}
	c.write(b, 2, 3)
	again := cloning(a, 0, b, 0, 2)
	again.Size -= 50
	c.refused(syscall.ESTALE, again) // the file has more after it
	if k := c.records(b)[1]; k.Len != testBlockSize-100 {
		t.Errorf("the refused clone left %+v", k)
	}
}

// Who asks for a clone may not know yet that the source was cut.
func TestACloneOfWhatWasCutIsRefused(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
	c.write(a, 0, 4)
	c.write(b, 0, 4)
	was := c.records(b)
	cut := func(size uint64) {
		c.ok(&meta.Request{Op: meta.OpSetattr, Ino: a, Set: meta.SetSize, Attr: meta.Attr{Size: size}})
	}
	cut(3*testBlockSize + 100)
	c.refused(syscall.ESTALE, cloning(a, 2, b, 2, 2))
	c.refused(syscall.ESTALE, cloning(a, 3, b, 0, 1))
	c.refused(syscall.ESTALE, cloning(a, 9, b, 0, 1))
	cut(0)
	c.refused(syscall.ESTALE, cloning(a, 0, b, 0, 4))
	if got := c.records(b); !reflect.DeepEqual(got, was) {
		t.Errorf("refused clones made %+v of %+v", got, was)
	}
	c.write(a, 0, 4)
	cut(3*testBlockSize + 100)
	d := c.file(meta.Root, "d")
	end := cloning(a, 2, d, 0, 2) // all that is there
	end.Size = testBlockSize + 100
	c.ok(end)
	end = cloning(a, 2, d, 2, 1) // the file is made longer than what is cloned
	end.Size = 8 * testBlockSize
	c.ok(end)
}

func TestAClonePastAQuotaIsRefused(t *testing.T) {
	w := newWorld(t)
	w.config.MaxBytes = 5 * testBlockSize
	c := w.hello("rw:")
	a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
	c.write(a, 0, 3)
	c.refused(syscall.ENOSPC, cloning(a, 0, b, 0, 3))
	if n := w.count(t, tableShared); n != 0 {
		t.Errorf("the refused clone left %d counts", n)
	}
	c.ok(cloning(a, 0, b, 0, 2))
}

func TestAClonedObjectLivesUntilNothingNamesItInAnyPast(t *testing.T) {
	for name, end := range map[string]func(c *client, ino meta.Ino, name string){
		"overwritten": func(c *client, ino meta.Ino, _ string) { c.write(ino, 0, 2) },
		"cut": func(c *client, ino meta.Ino, _ string) {
			c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize})
		},
		"punched": func(c *client, ino meta.Ino, _ string) {
			c.ok(&meta.Request{Op: meta.OpPunch, Ino: ino, Index: 0, Index2: 2})
		},
		"removed": func(c *client, ino meta.Ino, name string) {
			c.ok(on(meta.OpUnlink, meta.Root, name))
			c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{ino}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.config.Retention = time.Hour
				w.run(t)
				c := w.hello("rw:")
				defer c.pinging(t)()
				a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
				c.write(a, 0, 2)
				objects := c.records(a)
				deleted := func() int {
					n := 0
					for _, k := range objects {
						if w.gone(refOf(a, &k)) {
							n++
						}
					}
					return n
				}
				c.ok(cloning(a, 0, b, 0, 2))
				c.ok(cloning(a, 0, b, 4, 1)) // and one of them twice
				end(c, a, "a")
				time.Sleep(2 * time.Hour)
				w.check()
				if n := deleted(); n != 0 {
					t.Fatalf("%d objects were deleted that another file has", n)
				}
				end(c, b, "b")
				time.Sleep(50 * time.Minute)
				if n := deleted(); n != 0 {
					t.Fatalf("%d objects were deleted that the past needs", n)
				}
				w.check()
				c.ok(&meta.Request{Op: meta.OpSetattr, Ino: b, Set: meta.SetSize}) // block 4, if it is there
				time.Sleep(2 * time.Hour)
				if n := deleted(); n != 2 {
					t.Errorf("%d of 2 objects were deleted that nothing needs", n)
				}
				if n := w.count(t, tableShared); n != 0 {
					t.Errorf("%d counts are left", n)
				}
			})
		})
	}
}

// Files are cloned, overwritten, cut and removed at random. The counts are right
// after each step, no object goes that a file names, and when all files are gone
// so are the objects and the counts.
func TestCountsAreRightWhateverIsDoneToClones(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.keep = 3 * time.Second
				w.start()
				w.run(t)
				c := w.hello("rw:")
				defer c.pinging(t)()
				r := rand.New(rand.NewPCG(seed, 9))
				var files []meta.Ino
				for i := range 5 {
					files = append(files, c.file(meta.Root, fmt.Sprint(i)))
				}
				made := map[BlockRef]bool{}
				for step := range 120 {
					i := r.IntN(len(files))
					f := files[i]
					at := uint32(r.IntN(6))
					switch r.IntN(8) {
					case 0:
						c.ok(on(meta.OpUnlink, meta.Root, fmt.Sprint(i)))
						c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
						files[i] = c.file(meta.Root, fmt.Sprint(i))
					case 1:
						c.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetSize, Attr: meta.Attr{Size: uint64(r.IntN(6 * testBlockSize))}})
					case 2:
						c.ok(&meta.Request{Op: meta.OpPunch, Ino: f, Index: at, Index2: at + 2})
					case 3, 4:
						c.write(f, at, at+uint32(1+r.IntN(3)))
					default:
						n := uint32(c.attr(f).Size / testBlockSize)
						if n == 0 {
							break
						}
						at %= n
						req := cloning(f, at, files[r.IntN(len(files))], uint32(r.IntN(6)), min(uint32(1+r.IntN(3)), n-at))
						if reply := c.do(req); reply.Errno != 0 && req.Ino != req.Ino2 {
							t.Fatalf("step %d: clone: %v %s", step, reply.Errno, reply.Msg)
						}
					}
					w.check()
					for _, f := range files {
						for _, k := range c.records(f) {
							ref := refOf(f, &k)
							made[ref] = true
							w.mu.Lock()
							gone := w.deleted[ref]
							w.mu.Unlock()
							if gone {
								t.Fatalf("step %d: block %d of %d names %v, which was deleted", step, k.Index, f, ref)
							}
						}
					}
					if r.IntN(3) == 0 {
						time.Sleep(2 * time.Second)
					}
				}
				for i := range files {
					c.ok(on(meta.OpUnlink, meta.Root, fmt.Sprint(i)))
				}
				c.ok(&meta.Request{Op: meta.OpClose, Inos: files})
				time.Sleep(time.Minute)
				for ref := range made {
					if !w.gone(ref) {
						t.Errorf("object %v stays", ref)
					}
				}
				if n := w.count(t, tableShared); n != 0 {
					t.Errorf("%d counts are left", n)
				}
			})
		})
	}
}

// A crash between any two steps of the collector costs nothing: what it was about
// is found again.
func TestTheCollectorGoesOnWithClonesAfterABucketFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.keep = time.Second
		w.start()
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
		c.write(a, 0, 3)
		refs := []BlockRef{}
		for _, k := range c.records(a) {
			refs = append(refs, refOf(a, &k))
		}
		c.ok(cloning(a, 0, b, 0, 2))
		w.mu.Lock()
		w.bucketErr = fmt.Errorf("the bucket is away")
		w.mu.Unlock()
		c.write(a, 0, 3)
		c.ok(on(meta.OpUnlink, meta.Root, "b"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{b}})
		time.Sleep(time.Minute)
		w.check()
		w.mu.Lock()
		w.bucketErr = nil
		w.mu.Unlock()
		time.Sleep(time.Minute)
		w.check()
		for _, r := range refs {
			if !w.gone(r) {
				t.Errorf("object %v stays", r)
			}
		}
	})
}

func TestARefusedCloneChangesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b, dir := c.file(meta.Root, "a"), c.file(meta.Root, "b"), c.dir(meta.Root, "d")
	c.write(a, 0, 4)
	small := c.file(meta.Root, "small")
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: small, Size: 3, Blocks: []meta.Block{
		{Gen: meta.Gen{Session: c.id, Seq: 1000}, Len: 3, Inline: true, Data: []byte("abc")}}})
	short := cloning(a, 0, b, 0, 2)
	short.Size = testBlockSize
	large := cloning(a, 0, b, 0, 2)
	large.Size = meta.MaxSize + 1
	inline := cloning(small, 0, b, 0, 1)
	inline.Size = 3
	for _, test := range []struct {
		name string
		want syscall.Errno
		req  *meta.Request
	}{
		{"onto itself", syscall.EINVAL, cloning(a, 0, a, 1, 2)},
		{"no block", syscall.EINVAL, cloning(a, 0, b, 0, 0)},
		{"too many", syscall.EINVAL, cloning(a, 0, b, 0, meta.MaxCommit+1)},
		{"to more than the largest size", syscall.EFBIG, large},
		{"beyond the largest index", syscall.EFBIG, cloning(a, 1<<32-1, b, 0, 2)},
		{"to a size that lacks a block", syscall.EINVAL, short},
		{"from what is inline", syscall.EINVAL, inline},
		{"from a directory", syscall.EISDIR, cloning(dir, 0, b, 0, 1)},
		{"to a directory", syscall.EISDIR, cloning(a, 0, dir, 0, 1)},
		{"from nothing", syscall.ENOENT, cloning(999, 0, b, 0, 1)},
	} {
		before, past := w.state(t)
		c.refused(test.want, test.req)
		after, pastAfter := w.state(t)
		if len(before) != len(after) || len(past) != len(pastAfter) || c.attr(b).Bytes != 0 {
			t.Errorf("%s: it was refused and changed something", test.name)
		}
	}
	ro := w.hello("ro:")
	ro.refused(syscall.EROFS, cloning(a, 0, b, 0, 1))
}

// A world with blocks that are large enough to have holes.
func newHoleWorld(t *testing.T) (*world, *client) {
	w := newWorld(t)
	w.config.BlockSize = 64 << 10
	return w, w.hello("rw:")
}

func TestHolesAreCountedCutAndChecked(t *testing.T) {
	w, c := newHoleWorld(t)
	ino := c.file(meta.Root, "f")
	k := c.block(0, 40960)
	k.Holes = []meta.Hole{{Lo: 0, Hi: 8192}, {Lo: 16384, Hi: 20480}}
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 40960, Blocks: []meta.Block{k}})
	want := func(what string, length uint32, bytes uint64, holes ...meta.Hole) {
		t.Helper()
		got := c.records(ino)
		if len(got) != 1 || got[0].Len != length || !slices.Equal(got[0].Holes, holes) || got[0].Gen != k.Gen {
			t.Errorf("%s: %+v", what, got)
		}
		if a := c.attr(ino); a.Bytes != bytes {
			t.Errorf("%s: %d bytes are stored, want %d", what, a.Bytes, bytes)
		}
		w.check()
	}
	want("committed", 40960, 28672, k.Holes...)

	// Less is to be seen of the same object.
	less := meta.Block{Gen: k.Gen, Len: 30000, Base: k.Gen, BaseLen: 40960, BaseHoles: k.Holes,
		Holes: []meta.Hole{{Lo: 0, Hi: 8192}, {Lo: 12288, Hi: 24576}}}
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{less}})
	want("punched", 30000, 9520, less.Holes...)
	for name, more := range map[string]meta.Block{
		"a longer":        {Len: 30001, Holes: less.Holes},
		"a smaller hole":  {Len: 30000, Holes: []meta.Hole{{Lo: 0, Hi: 8192}, {Lo: 12288, Hi: 20480}}},
		"no holes":        {Len: 30000},
		"unaligned holes": {Len: 30000, Holes: []meta.Hole{{Lo: 0, Hi: 8193}, {Lo: 12288, Hi: 24576}}},
	} {
		more.Gen, more.Base, more.BaseLen, more.BaseHoles = k.Gen, k.Gen, 30000, less.Holes
		if reply := c.do(&meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{more}}); reply.Errno != syscall.EINVAL {
			t.Errorf("%s one: %v", name, reply.Errno)
		}
	}
	stale := less
	stale.Len, stale.BaseLen = 100, 30000
	stale.Holes = nil
	c.refused(syscall.ESTALE, &meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{stale}}) // the holes were others

	cut := func(size uint64) {
		c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}})
	}
	cut(20000) // within the second hole
	want("cut", 12288, 4096, meta.Hole{Lo: 0, Hi: 8192})
	cut(5000)
	if got := c.records(ino); len(got) != 0 || c.attr(ino).Bytes != 0 {
		t.Errorf("cut to a hole: %+v", got)
	}
	w.check()
}

func TestACommitCanMakeABlockAHole(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	c.write(ino, 0, 2)
	old := c.records(ino)[1]
	gone := meta.Block{Index: 1, Base: meta.Gen{Session: 99, Seq: 1}}
	c.refused(syscall.ESTALE, &meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{gone}})
	gone.Base, gone.BaseLen = old.Gen, old.Len
	got := c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 3 * testBlockSize, Blocks: []meta.Block{gone}}).Attr
	if got.Bytes != testBlockSize || got.Size != 3*testBlockSize || len(c.records(ino)) != 1 {
		t.Errorf("%+v, %+v", got, c.records(ino))
	}
}

func TestNonsenseAboutHolesIsRefused(t *testing.T) {
	w, c := newHoleWorld(t)
	ino := c.file(meta.Root, "f")
	for name, k := range map[string]meta.Block{
		"up to the end": {Len: 8192, Holes: []meta.Hole{{Lo: 4096, Hi: 8192}}},
		"unaligned":     {Len: 8192, Holes: []meta.Hole{{Lo: 0, Hi: 100}}},
		"inline":        {Len: 8192, Holes: []meta.Hole{{Lo: 0, Hi: 4096}}, Inline: true},
		"no bytes":      {},
	} {
		k.Gen = meta.Gen{Session: c.id, Seq: 5}
		k.Whole = true
		if reply := c.do(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 8192, Blocks: []meta.Block{k}}); reply.Errno != syscall.EINVAL {
			t.Errorf("%s: %v", name, reply.Errno)
		}
	}
	if a := c.attr(ino); a.Size != 0 {
		t.Errorf("a refused commit left %+v", a)
	}
	w.check()
}

// The origin of an object is the service's to say.
func TestACommitCannotNameAnotherFilesObject(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b := c.file(meta.Root, "a"), c.file(meta.Root, "b")
	c.write(a, 0, 1)
	k := c.records(a)[0]
	k.Origin, k.Whole = meta.Origin{Ino: a}, true
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: b, Size: testBlockSize, Blocks: []meta.Block{k}})
	if got := c.records(b)[0]; got.Object(b).Ino != b {
		t.Errorf("%+v", got)
	}
}

// What was cloned is as it was after a look at the past: the objects of every
// second in the retention are there.
func TestThePastOfClonesIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = 30 * time.Second
		w.keep = time.Second
		w.start()
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		r := rand.New(rand.NewPCG(3, 3))
		files := []meta.Ino{c.file(meta.Root, "0"), c.file(meta.Root, "1"), c.file(meta.Root, "2")}
		type moment struct {
			second int64
			refs   []BlockRef
		}
		var moments []moment
		for range 150 {
			time.Sleep(time.Second)
			m := moment{second: time.Now().Unix()}
			for _, f := range files {
				for _, k := range c.records(f) {
					m.refs = append(m.refs, refOf(f, &k))
				}
			}
			moments = append(moments, m)
			f, at := files[r.IntN(3)], uint32(r.IntN(4))
			switch r.IntN(4) {
			case 0:
				c.write(f, at, at+2)
			case 1:
				c.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetSize, Attr: meta.Attr{Size: uint64(r.IntN(4 * testBlockSize))}})
			default:
				c.do(cloning(f, at, files[r.IntN(3)], uint32(r.IntN(4)), 2))
			}
			for _, m := range moments {
				if m.second < time.Now().Unix()-29 {
					continue
				}
				for _, ref := range m.refs {
					if w.gone(ref) {
						t.Fatalf("second %d needs %v, which is deleted %d s later", m.second, ref, time.Now().Unix()-m.second)
					}
				}
			}
		}
		if w.deletes() == 0 {
			t.Error("nothing was deleted in all the time")
		}
	})
}
