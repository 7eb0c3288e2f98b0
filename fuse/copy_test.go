package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"

	"flexfs/meta"
	"flexfs/meta/tree"
	"flexfs/store"
	"flexfs/store/seal"
)

// copyRange copies as much as one request does.
func (f *testFile) copyRange(off int64, to *testFile, dst, n int64) (int64, error) {
	op := &fuseops.CopyFileRangeOp{
		Inode: f.ino, Handle: f.handle, Offset: uint64(off),
		DstInode: to.ino, DstHandle: to.handle, DstOffset: uint64(dst), Length: uint64(n),
	}
	err := f.fs.do(op)
	return int64(op.BytesCopied), err
}

// moved returns how many blocks were put and read since the last time.
func (f *faulty) moved() (puts, gets int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	puts, gets = f.puts, f.gets
	f.puts, f.gets = 0, 0
	return puts, gets
}

func same(t *testing.T, what string, f *testFile, want []byte) {
	t.Helper()
	got, err := f.readAt(len(want)+1, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %d wanted, and they are not the same (%v)", what, len(got), len(want), err)
	}
}

// A copy by copy_file_range, as cp makes it, moves no contents. (Of a sparse file
// cp reads what is data.)
func TestACopyMovesNoContents(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	_, other := w.mount("two", Config{})
	dense := pattern(5*testBlockSize+12345, 1)
	sparse := bytes.Clone(dense)
	clear(sparse[testBlockSize : 3*testBlockSize])
	for what, data := range map[string][]byte{"dense": dense, "sparse": sparse} {
		name, copied := filepath.Join(dir, what), filepath.Join(dir, what+" copy")
		f, err := os.Create(name)
		must(t, "create", err)
		_, err = f.WriteAt(data, 0)
		must(t, "write", err)
		if what == "sparse" {
			must(t, "punch", syscall.Fallocate(int(f.Fd()), punchHole|keepSize, testBlockSize, 2*testBlockSize))
		}
		must(t, "close", f.Close())
		w.bucket.moved()
		if what == "dense" {
			out, err := exec.CommandContext(t.Context(), "cp", name, copied).CombinedOutput()
			must(t, "cp: "+string(out), err)
		} else {
			f, err := os.Open(name)
			must(t, "open", err)
			g, err := os.Create(copied)
			must(t, "create", err)
			_, err = g.ReadFrom(f)
			must(t, "copy", errors.Join(err, f.Close(), g.Close()))
		}
		if puts, gets := w.bucket.moved(); puts != 0 || gets != 0 {
			t.Errorf("%s: %d blocks were put and %d read", what, puts, gets)
		}
		expect(t, "the copy", copied, data)
		expect(t, "the copy on another mount", filepath.Join(other, what+" copy"), data)
		var a, b syscall.Stat_t
		must(t, "stat", errors.Join(syscall.Stat(name, &a), syscall.Stat(copied, &b)))
		if a.Blocks != b.Blocks || a.Size != b.Size {
			t.Errorf("of the copy %d blocks are stored, of the file %d", b.Blocks, a.Blocks)
		}
		// Each goes its own way after that.
		must(t, "truncate", os.Truncate(name, testBlockSize+5))
		expect(t, "the copy after a cut of the file", filepath.Join(other, what+" copy"), data)
		put(t, filepath.Join(other, what+" copy"), []byte("new"))
		expect(t, "the file after a change of the copy", name, data[:testBlockSize+5])
	}
}

func TestWhatCannotBeClonedIsCopied(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	const bs = testBlockSize
	data := pattern(3*bs+100, 1)
	long := pattern(5*bs, 2)
	for _, test := range []struct {
		name         string
		off, dst, n  int64
		puts, clones int
	}{
		{"all", 0, 0, 3*bs + 100, 0, 4},
		{"whole blocks", bs, 2 * bs, 2 * bs, 0, 2},
		{"more than there is", bs, 3 * bs, 1 << 30, 0, 3},
		{"a part of the last block", 2 * bs, 4 * bs, bs + 50, 1, 1},
		{"the last block to where others follow", 2 * bs, 0, bs + 100, 1, 1},
		{"to another place in the block", 0, 1, 2 * bs, 3, 0},
		{"from within a block, to the same place in one", bs - 10, 3*bs - 10, bs + 20, 2, 1},
		{"beyond the end", bs, 7 * bs, bs, 0, 1},
		{"nothing", 3*bs + 100, 0, bs, 0, 0},
	} {
		f, g := fs.createTest(t, test.name), fs.createTest(t, "to "+test.name)
		must(t, "write", errors.Join(f.writeAt(data, 0), f.sync()))
		want := bytes.Clone(long)
		if test.name == "all" {
			want = nil
		} else {
			must(t, "write", errors.Join(g.writeAt(long, 0), g.sync()))
		}
		w.bucket.moved()
		cloned := fs.stats.Clones.Load()
		n := min(test.n, max(0, int64(len(data))-test.off))
		for k := int64(0); k < n; {
			m, err := f.copyRange(test.off+k, g, test.dst+k, test.n-k)
			if err != nil || m == 0 {
				t.Fatalf("%s: copied %d of %d bytes: %v", test.name, k, n, err)
			}
			k += m
		}
		must(t, "fsync", g.sync())
		puts, _ := w.bucket.moved()
		if cloned = fs.stats.Clones.Load() - cloned; puts != test.puts || int(cloned) != test.clones {
			t.Errorf("%s: %d blocks were put and %d cloned, want %d and %d", test.name, puts, cloned, test.puts, test.clones)
		}
		if need := test.dst + n; n > 0 && int64(len(want)) < need {
			want = append(want, make([]byte, need-int64(len(want)))...)
		}
		copy(want[min(test.dst, int64(len(want))):], data[test.off:test.off+n])
		same(t, test.name, g, want)
		same(t, test.name+", the source", f, data)
	}
}

// A copy behind the end of the file that it is made of does not go on with what it
// makes.
func TestACopyInAFileEndsWhereTheFileDid(t *testing.T) {
	w := newWorldOf(t, noInline)
	f := w.newFS("one", Config{}).createTest(t, "f")
	data := pattern(1000, 1)
	must(t, "write", f.writeAt(data, 0))
	if n, err := f.copyRange(100, f, 5000, 4000); n != 900 || err != nil {
		t.Errorf("copied %d bytes (%v), want 900", n, err)
	}
	same(t, "the file", f, slices.Concat(data, make([]byte, 4000), data[100:]))
}

func TestACopyOntoItselfIsRefused(t *testing.T) {
	w := newWorldOf(t, noInline)
	f := w.newFS("one", Config{}).createTest(t, "f")
	data := pattern(4*testBlockSize, 1)
	must(t, "write", f.writeAt(data, 0))
	if _, err := f.copyRange(0, f, testBlockSize, 2*testBlockSize); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("ranges that overlap: %v", err)
	}
	n, err := f.copyRange(0, f, 2*testBlockSize, 2*testBlockSize)
	if err != nil || n != 2*testBlockSize {
		t.Errorf("ranges that do not: %d, %v", n, err)
	}
	copy(data[2*testBlockSize:], data[:2*testBlockSize])
	same(t, "the file", f, data)
}

// What was written and is only on this mount is copied, too.
func TestUnsavedDataIsCopied(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	f, g := fs.createTest(t, "f"), fs.createTest(t, "g")
	must(t, "write", g.writeAt(pattern(2*testBlockSize, 2), 0)) // must not come back on top
	data := pattern(2*testBlockSize, 1)
	must(t, "write", f.writeAt(data, 0))
	must(t, "punch", f.fallocate(punchHole|keepSize, 0, 100))
	clear(data[:100])
	if n, err := f.copyRange(0, g, 0, 2*testBlockSize); err != nil || n != 2*testBlockSize {
		t.Fatalf("copied %d bytes, %v", n, err)
	}
	same(t, "the copy", g, data)
	must(t, "fsync", g.sync())
	same(t, "the copy", g, data)
	must(t, "unlink", fs.do(&fuseops.UnlinkOp{Parent: fuseops.RootInodeID, Name: "f"}))
	must(t, "write to the unlinked", f.writeAt(data[:100], 5))
	copy(data[5:], make([]byte, 100))
	if n, err := f.copyRange(0, g, 0, 2*testBlockSize); err != nil || n != 2*testBlockSize {
		t.Fatalf("copied %d bytes of an unlinked file, %v", n, err)
	}
	same(t, "the copy of the unlinked", g, data)
}

// A clone whose answer is lost with the session was done or not: the program is
// told that something went wrong, and what it reads after that is what there is.
func TestACloneWithoutAnswerIsNotBelieved(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	f, g := fs.createTest(t, "f"), fs.createTest(t, "g")
	data := pattern(2*testBlockSize, 1)
	must(t, "write", errors.Join(f.writeAt(data, 0), f.sync(), g.writeAt(make([]byte, 10), 0), g.sync()))
	fs.meta = &lostClone{Meta: fs.meta}
	if _, err := f.copyRange(0, g, 0, 2*testBlockSize); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the copy whose answer was lost says %v", err)
	}
	same(t, "what there is", g, data)
}

func TestClonesOfEncryptedBlocksAreRead(t *testing.T) {
	w := newWorldOf(t, noInline)
	sealed := seal.New(w.bucket, seal.Options{Codec: seal.LZ4, Secret: []byte("a secret")})
	encrypted := func(name string) *FS {
		fs := w.newFS(name, Config{})
		fs.blocks = sealed // without a cache
		return fs
	}
	fs := encrypted("one")
	f, g := fs.createTest(t, "f"), fs.createTest(t, "g")
	data := pattern(testBlockSize+1000, 1)
	must(t, "write", errors.Join(f.writeAt(data, 0), f.sync()))
	n, err := f.copyRange(0, g, 0, int64(len(data)))
	if err != nil || int(n) != len(data) || fs.stats.Clones.Load() != 2 {
		t.Fatalf("copied %d bytes, %v", n, err)
	}
	same(t, "the copy on another mount", encrypted("two").openTest(t, "g"), data)
}

// Files are written, punched, cut and copied on two mounts, while what nothing
// needs is deleted at once. They have the bytes that slices have to which the same
// was done, and no block is missing.
func TestCopiesAreIndependentWhateverIsDone(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { t.Parallel(); testCopies(t, seed) })
	}
}

func testCopies(t *testing.T, seed uint64) {
	var w *world
	var deleted atomic.Int64
	w = newWorldOf(t, func(c *tree.Config) {
		noInline(c)
		c.Keep, c.Lease = time.Millisecond, time.Second
		c.Delete = func(ctx context.Context, _ string, refs []tree.BlockRef) error {
			volume, err := store.ParseVolume(testVolume)
			for _, r := range refs {
				deleted.Add(1)
				key := store.Key{Volume: volume, Ino: uint64(r.Ino), Index: r.Index, Gen: store.Gen(r.Gen)}
				err = errors.Join(err, w.bucket.Delete(ctx, key))
			}
			return err
		}
	})
	r := rand.New(rand.NewPCG(seed, 11))
	mounts := []*FS{w.newFS("a", Config{}), w.newFS("b", Config{})}
	const max = 5 * testBlockSize
	var files [2][]*testFile
	var want [][]byte
	for i := range 3 {
		files[0] = append(files[0], mounts[0].createTest(t, fmt.Sprint(i)))
		files[1] = append(files[1], mounts[1].openTest(t, fmt.Sprint(i)))
		want = append(want, nil)
	}
	at := 0
	grow := func(i, n int) {
		if n > len(want[i]) {
			want[i] = append(want[i], make([]byte, n-len(want[i]))...)
		}
	}
	end := time.Now().Add(20 * time.Second)
	for step := 0; step < 200 || deleted.Load() == 0 && time.Now().Before(end); step++ {
		time.Sleep(20 * time.Millisecond) // until deletes are due
		i, j := r.IntN(3), r.IntN(3)
		f, g := files[at][i], files[at][j]
		off, dst, n := r.IntN(max), r.IntN(max), 1+r.IntN(max)
		if r.IntN(3) > 0 {
			off, dst = off/testBlockSize*testBlockSize, dst/testBlockSize*testBlockSize
		}
		what := ""
		switch r.IntN(8) {
		case 0:
			what = fmt.Sprintf("cut %d to %d", i, off)
			must(t, what, f.truncate(int64(off)))
			grow(i, off)
			want[i] = want[i][:off]
		case 1:
			what = fmt.Sprintf("punch %d at %d+%d", i, off, n)
			must(t, what, f.fallocate(punchHole|keepSize, int64(off), int64(n)))
			if off < len(want[i]) {
				clear(want[i][off:min(off+n, len(want[i]))])
			}
		case 2, 3:
			n = min(n, max-off)
			what = fmt.Sprintf("write %d at %d+%d", i, off, n)
			p := pattern(n, byte(step))
			must(t, what, f.writeAt(p, int64(off)))
			grow(i, off+n)
			copy(want[i][off:], p)
		case 4:
			for _, f := range files[at] {
				must(t, "fsync", f.sync())
			}
			at = 1 - at
			what = fmt.Sprint("go on with mount ", at)
		default:
			k, err := f.copyRange(int64(off), g, int64(dst), int64(min(n, max-dst)))
			what = fmt.Sprintf("copy %d of %d+%d to %d at %d", k, i, off, j, dst)
			if errors.Is(err, syscall.EINVAL) && i == j {
				break
			}
			must(t, what, err)
			if k > 0 {
				p := bytes.Clone(want[i][off : off+int(k)])
				grow(j, dst+int(k))
				copy(want[j][dst:], p)
			}
		}
		for i, f := range files[at] {
			got, err := f.readAt(max+1, 0)
			if err != nil || !bytes.Equal(got, want[i]) {
				t.Fatalf("step %d, mount %d, after %s: file %d has %d bytes, %d wanted, and they are not the same (%v)", step, at, what, i, len(got), len(want[i]), err)
			}
		}
	}
	for _, f := range files[at] {
		must(t, "fsync", f.sync())
	}
	cold := w.newFS("cold", Config{})
	for i := range 3 {
		same(t, "at the end", cold.openTest(t, fmt.Sprint(i)), want[i])
	}
	if deleted.Load() == 0 {
		t.Error("nothing was deleted")
	}
}

// A file that is cut elsewhere while it is copied gives no zeros for what it had.
func TestACopyOfWhatIsCutElsewhereWritesNoZeros(t *testing.T) {
	p := newPair(t, newWorldOf(t, noInline))
	const n = 2 * testBlockSize
	want := bytes.Repeat([]byte("x"), n)
	f := p.open(want)
	must(t, "write", os.WriteFile(filepath.Join(p.here, "src"), bytes.Repeat([]byte("s"), n), 0o644))
	src, err := os.Open(filepath.Join(p.here, "src"))
	must(t, "open", err)
	defer src.Close()
	cut := false
	p.hook.set(meta.OpClone, func() {
		cut = true
		must(t, "cut", os.Truncate(filepath.Join(p.there, "src"), 0))
	}, nil)
	copied, err := unix.CopyFileRange(int(src.Fd()), nil, int(f.Fd()), nil, n, 0)
	must(t, "copy", err)
	if !cut || copied != 0 {
		t.Errorf("%d bytes were copied; the file was cut: %v", copied, cut)
	}
	must(t, "fsync", f.Sync())
	if got := p.read(); !bytes.Equal(got, want) {
		t.Errorf("what it was copied to has %d bytes, %d of them zeros", len(got), bytes.Count(got, []byte{0}))
	}
}

// lostClone loses the answers to clones.
type lostClone struct{ Meta }

func (l *lostClone) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	rep, err := l.Meta.Do(ctx, req)
	if err == nil && req.Op == meta.OpClone {
		return nil, &meta.Error{Op: req.Op, Errno: syscall.EIO, Msg: "the session was lost"}
	}
	return rep, err
}
