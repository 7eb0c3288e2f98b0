package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta/tree"
	"flexfs/store"
)

// small makes a volume of so many bytes.
func small(bytes uint64) func(*tree.Config) {
	return func(c *tree.Config) {
		c.Volumes = func(string) (tree.VolumeConfig, error) {
			return tree.VolumeConfig{Name: "test", BlockSize: testBlockSize, MaxBytes: bytes}, nil
		}
	}
}

// Written data is refused in the background, while nobody waits. Each file that
// is open for writing is told once, by its next fsync or close, and the one that
// is opened first after it if nobody was.
func TestALossIsToldToEveryOpenFileOnce(t *testing.T) {
	w := newWorldOf(t, small(testBlockSize))
	fs := w.newFS("one", Config{})
	a := fs.createTest(t, "f")
	b, reader := a.again(), a.again()
	fs.handles[uint64(reader.handle)].flags = syscall.O_RDONLY
	lose := func() {
		t.Helper()
		fs.full.Store(false)
		must(t, "write", a.writeAt(pattern(2*testBlockSize, 1), 0))
		fs.flushQuietly(t.Context(), fs.inode(fs.handles[uint64(a.handle)].in.ino))
	}
	lost := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", what, err)
		}
	}
	lose()
	must(t, "close of one that only reads", reader.flush())
	c := a.again() // nobody was told yet
	lost("fsync of one that only reads", reader.sync())
	must(t, "fsync of one that only reads again", reader.sync())
	lost("fsync", a.sync())
	must(t, "fsync again", a.sync())
	must(t, "close", a.flush())
	lost("close of the second", b.flush())
	must(t, "close of the second again", b.flush())
	lost("fsync of one that was opened after the loss", c.sync())
	d := a.again() // all know
	must(t, "fsync of one that was opened later", d.sync())
	lose()
	for i, f := range []*testFile{a, b, c, d} {
		lost(fmt.Sprint("close of file ", i, " after another loss"), f.close())
	}
	if size, blocks := a.stat(); size != 0 || blocks != 0 {
		t.Errorf("what was lost is shown as %d bytes, %d blocks", size, blocks)
	}
}

// A store that fails makes fsync and close fail, and loses nothing: when it is
// back what was written is stored.
func TestWhatTheStoreDidNotTakeIsKept(t *testing.T) {
	for name, end := range map[string]func(f *testFile) error{
		"fsync": func(f *testFile) error { return f.sync() },
		"close": func(f *testFile) error { return f.flush() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, noInline)
			fs := w.newFS("one", Config{})
			f := fs.createTest(t, "f")
			data := pattern(3*testBlockSize+5, 1)
			w.bucket.setFail(func(op string, _ store.Key) error {
				if op == "put" {
					return errors.New("the bucket is away")
				}
				return nil
			})
			must(t, "write", f.writeAt(data, 0))
			for range 2 {
				if err := end(f); !errors.Is(err, syscall.EIO) {
					t.Errorf("with the bucket away: %v", err)
				}
			}
			same(t, "what is read meanwhile", f, data)
			w.bucket.setFail(nil)
			must(t, "with the bucket back", end(f))
			same(t, "what is stored", w.newFS("two", Config{}).openTest(t, "f"), data)
		})
	}
}

// Pages of a map are written back after the file was closed. If they are lost
// the next who opens the file is told.
func TestALossAfterCloseIsNotSilent(t *testing.T) {
	w := newWorldOf(t, small(testBlockSize))
	fs := w.newFS("one", Config{})
	f := fs.createTest(t, "f")
	must(t, "write", f.writeAt(pattern(100, 1), 0))
	must(t, "close", f.flush())
	must(t, "write back", fs.do(&fuseops.WriteFileOp{
		Inode: f.ino, Handle: f.handle, Data: pattern(2*testBlockSize, 1), FromCache: true}))
	must(t, "release", fs.do(&fuseops.ReleaseFileHandleOp{Inode: f.ino, Handle: f.handle}))
	due := fs.due()
	if len(due) != 1 {
		t.Fatalf("%d files are to be written out at once", len(due))
	}
	fs.flushQuietly(t.Context(), due[0])
	g := f.again()
	if err := g.sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the next fsync: %v", err)
	}
	must(t, "one more", g.sync())
}

// A volume that is full refuses writes at once, but not those that replace what
// is stored. When there is room again they go on.
func TestAFullVolumeRefusesWritesAtOnce(t *testing.T) {
	w := newWorldOf(t, small(4*testBlockSize))
	fs := w.newFS("one", Config{})
	old := fs.createTest(t, "old")
	must(t, "write", errors.Join(old.writeAt(pattern(2*testBlockSize, 1), 0), old.close()))
	old = old.again()
	f := fs.createTest(t, "f")
	must(t, "write", f.writeAt(pattern(4*testBlockSize, 1), 0))
	if err := f.flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("close with more than fits: %v", err)
	}
	fs.spaceEvery = 2 * testBlockSize
	// What fits is taken, and what does not is refused by write.
	took := 0
	for took < 100 {
		if err := f.writeAt(pattern(unit, 2), int64(took*unit)); err != nil {
			t.Fatalf("write of what fits: %v", err)
		}
		took++
	}
	must(t, "close", f.flush())
	if err := f.writeAt(pattern(2*testBlockSize, 2), int64(took*unit)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write of what does not fit: %v", err)
	}
	must(t, "replace", errors.Join(old.writeAt(pattern(2*testBlockSize, 3), 0), old.sync()))
	must(t, "remove", errors.Join(old.close(), fs.do(&fuseops.UnlinkOp{Parent: fuseops.RootInodeID, Name: "old"})))
	must(t, "write after something was removed", f.writeAt(pattern(2*testBlockSize, 2), 0))
	must(t, "close", f.close())
}

// A program that writes and writes is told by write that the volume is full, soon
// after what fits. What fitted is stored.
func TestNotMuchMoreIsGatheredThanFits(t *testing.T) {
	w := newWorldOf(t, small(10<<20))
	fs := w.newFS("one", Config{})
	fs.spaceEvery = 1 << 20
	f := fs.createTest(t, "f")
	data := pattern(64<<10, 1)
	var err error
	wrote := 0
	for err == nil && wrote < 1<<30 {
		if err = f.writeAt(data, int64(wrote)); err == nil {
			wrote += len(data)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d bytes: %v", wrote, err)
	}
	if wrote < 8<<20 || wrote > 10<<20 {
		t.Errorf("%d bytes were taken", wrote)
	}
	must(t, "close", f.close())
	got, err := w.newFS("two", Config{}).openTest(t, "f").readAt(wrote+1, 0)
	if err != nil || !bytes.Equal(got, bytes.Repeat(data, wrote/len(data))) {
		t.Errorf("%d bytes are there, %d were taken (%v)", len(got), wrote, err)
	}
}

func TestFallocateRefusesWhatTheVolumeHasNoRoomFor(t *testing.T) {
	w := newWorldOf(t, small(4*testBlockSize))
	fs := w.newFS("one", Config{})
	f := fs.createTest(t, "f")
	must(t, "fallocate", f.fallocate(0, 0, 3*testBlockSize))
	for _, mode := range []uint32{0, keepSize} {
		if err := f.fallocate(mode, 0, 5*testBlockSize); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("fallocate of more than the volume, mode %d: %v", mode, err)
		}
	}
	must(t, "write", f.writeAt(pattern(3*testBlockSize, 1), 0))
	must(t, "fsync", f.sync())
	must(t, "fallocate of what is there already", f.fallocate(0, 0, 4*testBlockSize))
	if err := f.fallocate(0, 0, 8*testBlockSize); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fallocate of more than is left: %v", err)
	}
}
