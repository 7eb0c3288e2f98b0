package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/internal/soak"
	"flexfs/meta"
	"flexfs/meta/tree"
	"flexfs/store"
)

// sparseFile is what the tests of holes need of an open file.
type sparseFile interface {
	writeAt(p []byte, off int64) error
	readAt(n int, off int64) ([]byte, error)
	fallocate(mode uint32, off, n int64) error
	truncate(size int64) error
	sync() error
	seek(off int64, whence uint32) (int64, error)
	stat() (size, blocks int64)
}

// What a unit of a file may be.
const (
	isHole = iota
	maybe  // its bytes were punched one part after the other
	isData
)

// A holeModel does to a slice what is done to a file, and knows what of it is
// holes.
type holeModel struct {
	t     *testing.T
	r     *rand.Rand
	files []sparseFile // of the same file on as many mounts
	at    int          // the one at work
	max   int
	want  []byte
	units []int
	log   []string
	loose bool // small files have no holes
}

const unit = meta.HoleUnit

func (m *holeModel) fatalf(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.log {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

func (m *holeModel) must(what string, err error) {
	m.t.Helper()
	m.log = append(m.log, fmt.Sprintf("mount %d: %s", m.at, what))
	if err != nil {
		m.fatalf("%s: %v", what, err)
	}
}

// part returns a random part, aligned more often than not.
func (m *holeModel) part() (off, n int) {
	off = m.r.IntN(m.max)
	n = 1 + m.r.IntN(m.max-off)
	if m.r.IntN(3) == 0 {
		n = 1 + m.r.IntN(min(n, 3*unit))
	}
	if m.r.IntN(3) > 0 {
		off, n = off/unit*unit, max(unit, n/unit*unit)
	}
	if m.r.IntN(8) == 0 {
		off = off / testBlockSize * testBlockSize
	}
	return off, min(n, m.max-off)
}

func (m *holeModel) step() {
	f := m.files[m.at]
	off, n := m.part()
	switch m.r.IntN(12) {
	case 0:
		m.must(fmt.Sprintf("truncate to %d", off), f.truncate(int64(off)))
		m.resize(off)
	case 1, 2:
		m.must(fmt.Sprintf("punch %d..%d", off, off+n), f.fallocate(punchHole|keepSize, int64(off), int64(n)))
		m.punch(off, off+n)
	case 3:
		m.must(fmt.Sprintf("zero %d..%d and keep the size", off, off+n), f.fallocate(zeroRange|keepSize, int64(off), int64(n)))
		m.punch(off, off+n)
	case 4:
		m.must(fmt.Sprintf("zero %d..%d", off, off+n), f.fallocate(zeroRange, int64(off), int64(n)))
		m.punch(off, off+n)
		m.resize(max(len(m.want), off+n))
	case 5:
		m.must(fmt.Sprintf("allocate %d..%d", off, off+n), f.fallocate(0, int64(off), int64(n)))
		m.resize(max(len(m.want), off+n))
	case 6:
		size, blocks := f.stat()
		m.must("fsync", f.sync())
		if s, b := f.stat(); s != size || b != blocks {
			m.fatalf("fsync changed %d bytes, %d blocks to %d bytes, %d blocks", size, blocks, s, b)
		}
		if m.r.IntN(2) == 0 {
			m.at = (m.at + 1) % len(m.files)
		}
	case 7:
		m.checkHoles()
	default:
		n = min(n, 40*unit)
		p := pattern(n, byte(len(m.log)))
		m.must(fmt.Sprintf("write %d..%d", off, off+n), f.writeAt(p, int64(off)))
		m.resize(max(len(m.want), off+n))
		copy(m.want[off:], p)
		for u := off / unit; u*unit < off+n; u++ {
			m.units[u] = isData
		}
	}
	m.checkBytes()
}

func (m *holeModel) resize(n int) {
	if n < len(m.want) {
		for u := range m.units {
			switch {
			case u*unit >= n:
				m.units[u] = isHole
			case (u+1)*unit > n && m.units[u] == isData:
				m.units[u] = maybe
			}
		}
		m.want = m.want[:n]
		return
	}
	m.want = append(m.want, make([]byte, n-len(m.want))...)
}

func (m *holeModel) punch(lo, hi int) {
	if hi >= len(m.want) {
		hi = (len(m.want) + unit - 1) / unit * unit // there is nothing after it
	}
	if lo < min(hi, len(m.want)) {
		clear(m.want[lo:min(hi, len(m.want))])
	}
	for u := lo / unit; u*unit < hi; u++ {
		switch {
		case lo <= u*unit && (u+1)*unit <= hi:
			m.units[u] = isHole
		case m.units[u] == isData:
			m.units[u] = maybe
		}
	}
}

func (m *holeModel) checkBytes() {
	got, err := m.files[m.at].readAt(m.max+1, 0)
	if err != nil {
		m.fatalf("read: %v", err)
	}
	if !bytes.Equal(got, m.want) {
		i := 0
		for i < len(got) && i < len(m.want) && got[i] == m.want[i] {
			i++
		}
		m.fatalf("%d bytes, want %d; they differ from %d on", len(got), len(m.want), i)
	}
}

// checkHoles compares what SEEK_DATA, SEEK_HOLE and stat say with the model.
func (m *holeModel) checkHoles() {
	f := m.files[m.at]
	stored := 0
	for at := 0; at < len(m.want); {
		data, err := f.seek(int64(at), seekData)
		if errors.Is(err, syscall.ENXIO) {
			data = int64(len(m.want))
		} else if err != nil {
			m.fatalf("SEEK_DATA from %d: %v", at, err)
		}
		m.checkUnits(at, int(data), isData)
		if data == int64(len(m.want)) {
			break
		}
		hole, err := f.seek(data, seekHole)
		if err != nil || hole <= data {
			m.fatalf("SEEK_HOLE from %d: %d, %v", data, hole, err)
		}
		m.checkUnits(int(data), int(hole), isHole)
		stored += int(hole - data)
		at = int(hole)
	}
	size, blocks := f.stat()
	if size != int64(len(m.want)) {
		m.fatalf("the size is %d, want %d", size, len(m.want))
	}
	if m.loose {
		return
	}
	// Of each block the last unit may be stored in part.
	slack := (1 + len(m.want)/testBlockSize) * unit
	if n := int(blocks) * 512; n > stored+512 || n < stored-slack {
		m.fatalf("%d bytes are data, and stat says that %d are stored", stored, n)
	}
}

// checkUnits fails if one of the units is what it must not be.
func (m *holeModel) checkUnits(lo, hi, not int) {
	if m.loose {
		for i := lo; i < hi && not == isData; i++ {
			if m.want[i] != 0 {
				m.fatalf("byte %d is said to be in a hole", i)
			}
		}
		return
	}
	for u := lo / unit; u*unit < hi; u++ {
		if m.units[u] == not || lo%unit != 0 {
			m.fatalf("unit %d: %d..%d is said to be %d", u, lo, hi, not)
		}
	}
}

// noInline makes a volume keep all contents in blocks.
func noInline(c *tree.Config) {
	c.Volumes = func(string) (tree.VolumeConfig, error) {
		return tree.VolumeConfig{Name: "test", BlockSize: testBlockSize}, nil
	}
}

func TestHolesAreExactWhateverIsDone(t *testing.T) {
	exact := newWorldOf(t, noInline)
	for seed := range uint64(6) {
		testHoles(t, exact, seed, []int{6 * unit, 3*testBlockSize + 100, 40 * unit}[seed%3], false)
	}
	inline := newWorld(t)
	for seed := range uint64(4) {
		testHoles(t, inline, 100+seed, []int{5 * unit, 2 * testBlockSize}[seed%2], true)
	}
}

// testHoles changes a file of up to max bytes on two mounts of w. With loose it
// may be kept inline, where holes are data.
func testHoles(t *testing.T, w *world, seed uint64, max int, loose bool) {
	m := &holeModel{t: t, r: rand.New(rand.NewPCG(seed, 7)), max: max, loose: loose, units: make([]int, max/unit+1)}
	name := fmt.Sprint("f", seed)
	budget := NewBudget(64 << 20)
	a := w.newFS(fmt.Sprint("a", seed), Config{Budget: budget}).createTest(t, name)
	b := w.newFS(fmt.Sprint("b", seed), Config{Budget: budget}).openTest(t, name)
	m.files = []sparseFile{a, b}
	for range 250 {
		m.step()
	}
	m.checkHoles()
	must(t, "fsync", m.files[m.at].sync())
	m.checkHoles()
	must(t, "close", errors.Join(a.close(), b.close()))
	soonZero(t, budget)
}

// What becomes small enough to be kept with the metadata has no holes there, but for
// those that its object has in whole pages.
func TestPunchedBlocksAreCountedAsTheyWillBe(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	for name, punched := range map[string]int{"pages": 2 * unit, "a part of a page": 2*unit + 322} {
		f := fs.createTest(t, name)
		must(t, "write", f.writeAt(pattern(6*unit, 1), 0))
		must(t, "fsync", f.sync())
		must(t, "punch", f.fallocate(punchHole|keepSize, 0, int64(punched)))
		must(t, "truncate", f.truncate(3*unit))
		size, blocks := f.stat()
		must(t, "fsync", f.sync())
		if s, b := f.stat(); s != size || b != blocks {
			t.Errorf("%s: fsync changed %d bytes, %d blocks to %d bytes, %d blocks", name, size, blocks, s, b)
		}
		must(t, "close", f.close())
	}
}

// The same, and copies, for long.
func TestSoakSparseFilesAndCopies(t *testing.T) {
	s := soak.Start(t)
	for n := 0; !s.Over(); n++ {
		seed := s.Uint64()
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			if n%4 == 3 {
				testCopies(t, seed)
				return
			}
			config := func(*tree.Config) {}
			if n%4 > 0 {
				config = noInline
			}
			testHoles(t, newWorldOf(t, config), seed, 1+s.IntN(4*testBlockSize), n%4 == 0)
		})
	}
}

func TestHolesAreExactOnAMount(t *testing.T) {
	w := newWorldOf(t, noInline)
	_, a := w.mount("a", Config{})
	_, b := w.mount("b", Config{})
	for seed := range uint64(3) {
		const max = 3*testBlockSize + 100
		m := &holeModel{t: t, r: rand.New(rand.NewPCG(seed, 8)), max: max, units: make([]int, max/unit+1)}
		name := fmt.Sprint("f", seed)
		put(t, filepath.Join(a, name), nil)
		for _, dir := range []string{a, b} {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
			must(t, "open", err)
			defer f.Close()
			m.files = append(m.files, mountedFile{t, f})
		}
		for range 120 {
			m.step()
		}
		m.checkHoles()
	}
}

// A part of a block that is a multiple of a page is punched without its contents
// being moved, and so is a file sought through.
func TestPunchAndSeekMoveNoContents(t *testing.T) {
	w := newWorldOf(t, noInline)
	f := w.newFS("one", Config{}).createTest(t, "f")
	const size = 4 * testBlockSize
	must(t, "write", f.writeAt(pattern(size, 1), 0))
	must(t, "fsync", f.sync())
	w.bucket.mu.Lock()
	w.bucket.puts, w.bucket.gets = 0, 0
	w.bucket.mu.Unlock()
	must(t, "punch", f.fallocate(punchHole|keepSize, unit, 2*unit))
	must(t, "punch", f.fallocate(punchHole|keepSize, testBlockSize-unit, testBlockSize+2*unit))
	must(t, "zero", f.fallocate(zeroRange, size-unit, 2*unit))
	for _, when := range []string{"before fsync", "after it", "with the map asked for"} {
		for _, s := range []struct {
			from   int64
			whence uint32
			want   int64
		}{
			{0, seekHole, unit}, {unit, seekData, 3 * unit}, {3 * unit, seekHole, testBlockSize - unit},
			{testBlockSize - unit, seekData, 2*testBlockSize + unit}, {3 * testBlockSize, seekHole, size - unit},
		} {
			if got, err := f.seek(s.from, s.whence); err != nil || got != s.want {
				t.Errorf("%s: seek %d from %d: %d, %v, want %d", when, s.whence, s.from, got, err, s.want)
			}
		}
		if _, err := f.seek(size-unit, seekData); !errors.Is(err, syscall.ENXIO) {
			t.Errorf("%s: there is data in what was made zero: %v", when, err)
		}
		if size, blocks := f.stat(); size != 4*testBlockSize+unit || blocks*512 != 3*testBlockSize-5*unit {
			t.Errorf("%s: %d bytes, %d stored", when, size, blocks*512)
		}
		must(t, "fsync", f.sync())
		if when == "after it" {
			f = w.newFS("two", Config{}).openTest(t, "f")
		}
	}
	w.bucket.mu.Lock()
	puts, gets := w.bucket.puts, w.bucket.gets
	w.bucket.mu.Unlock()
	if puts != 0 || gets != 0 {
		t.Errorf("%d blocks were put and %d read", puts, gets)
	}
	want := pattern(size, 1)
	clear(want[unit : 3*unit])
	clear(want[testBlockSize-unit : 2*testBlockSize+unit])
	clear(want[size-unit:])
	got, err := f.readAt(size, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the contents are not what they should be (%v)", err)
	}
}

// One mount punches a part of a block while another writes a part of it: both
// are done, whoever is first.
func TestAPunchAndAWriteOfOneBlockMeet(t *testing.T) {
	for name, second := range map[string]bool{"the punch first": false, "the write first": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, noInline)
			a := w.newFS("a", Config{}).createTest(t, "f")
			must(t, "write", a.writeAt(pattern(8*unit, 1), 0))
			must(t, "fsync", a.sync())
			b := w.newFS("b", Config{}).openTest(t, "f")
			_, err := b.readAt(8*unit, 0)
			must(t, "read", err)
			must(t, "punch", a.fallocate(punchHole|keepSize, 2*unit, 3*unit))
			must(t, "write", b.writeAt(pattern(100, 2), 3*unit))
			files := []*testFile{a, b}
			if second {
				slices.Reverse(files)
			}
			must(t, "fsync", files[0].sync())
			must(t, "fsync", files[1].sync())
			want := pattern(8*unit, 1)
			clear(want[2*unit : 5*unit])
			if !second {
				copy(want[3*unit:], pattern(100, 2))
			}
			for _, f := range files {
				got, err := f.readAt(8*unit, 0)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("the contents are not what they should be (%v)", err)
				}
			}
		})
	}
}

// The far end of a file of 16 TiB is found, punched and cut with few requests.
func TestTheLargestFileIsSparse(t *testing.T) {
	w := newWorldOf(t, noInline)
	m, dir := w.counted()
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	defer f.Close()
	s := mountedFile{t, f}
	end := []byte("the end")
	const at = meta.MaxSize - 7
	must(t, "write at the end", s.writeAt(end, at))
	if err := s.writeAt(end, meta.MaxSize); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("a write beyond the end: %v", err)
	}
	must(t, "write at the start", s.writeAt(end, 0))
	must(t, "fsync", s.sync())
	if size, blocks := s.stat(); size != meta.MaxSize || blocks > 32 {
		t.Errorf("%d bytes, %d blocks", size, blocks)
	}
	n, other := w.counted()
	g, err := os.OpenFile(filepath.Join(other, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer g.Close()
	far := mountedFile{t, g}
	for f, m := range map[mountedFile]*countingMeta{s: m, far: n} {
		got := m.during(func() {
			if at, err := f.seek(unit, seekData); err != nil || at != meta.MaxSize-unit {
				t.Errorf("SEEK_DATA: %d, %v", at, err)
			}
			if at, err := f.seek(1<<40, seekHole); err != nil || at != 1<<40 {
				t.Errorf("SEEK_HOLE: %d, %v", at, err)
			}
		})
		if got != "" && got != "blocks 1" {
			t.Errorf("to seek asks for %q", got)
		}
		b, err := f.readAt(10, at)
		if err != nil || string(b) != "the end" {
			t.Errorf("read %q, %v", b, err)
		}
	}
	must(t, "cut", s.truncate(1<<40))
	if _, err := far.seek(unit, seekData); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("after the cut there is data: %v", err)
	}
	must(t, "extend", s.truncate(meta.MaxSize))
	b, err := far.readAt(10, at)
	if err != nil || !bytes.Equal(b, make([]byte, 7)) {
		t.Errorf("what was cut reads as %q, %v", b, err)
	}
	must(t, "write", s.writeAt(end, at))
	must(t, "punch all", s.fallocate(punchHole|keepSize, 0, meta.MaxSize))
	must(t, "fsync", s.sync())
	if size, blocks := far.stat(); size != meta.MaxSize || blocks != 0 {
		t.Errorf("after the punch: %d bytes, %d blocks", size, blocks)
	}
	if _, err := far.seek(0, seekData); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("after the punch there is data: %v", err)
	}
}

// hookMeta does something once, before or after a request of a kind is done.
type hookMeta struct {
	Meta
	mu            sync.Mutex
	op            meta.Op
	before, after func()
}

func (h *hookMeta) set(op meta.Op, before, after func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.op, h.before, h.after = op, before, after
}

func (h *hookMeta) run(op meta.Op, what *func()) {
	h.mu.Lock()
	f := *what
	if f == nil || op != h.op {
		f = func() {}
	} else {
		*what = nil
	}
	h.mu.Unlock()
	f()
}

func (h *hookMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	h.run(req.Op, &h.before)
	reply, err := h.Meta.Do(ctx, req)
	h.run(req.Op, &h.after)
	return reply, err
}

// What is written and not committed when a seek begins is committed while it asks
// what else there is.
func TestASeekFindsWhatIsCommittedMeanwhile(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	f := fs.createTest(t, "f")
	must(t, "truncate", f.truncate(4*testBlockSize))
	must(t, "fsync", f.sync())
	hook := &hookMeta{Meta: fs.meta}
	fs.meta = hook
	for from := range int64(2) {
		in := fs.node(f.ino)
		in.mu.Lock()
		in.content.forgetMap()
		in.mu.Unlock()
		must(t, "write", f.writeAt(pattern(testBlockSize, 1), testBlockSize))
		asked := false
		hook.set(meta.OpBlocks, nil, func() {
			asked = true
			must(t, "fsync", f.sync())
		})
		if at, err := f.seek(from*testBlockSize, seekData); at != testBlockSize || err != nil || !asked {
			t.Errorf("data from %d on is at %d, want %d (%v); asked: %t", from*testBlockSize, at, testBlockSize, err, asked)
		}
		must(t, "punch", f.fallocate(punchHole|keepSize, 0, 2*testBlockSize))
		must(t, "fsync", f.sync())
	}
	must(t, "close", f.close())
}

// A mount has uploaded its part of a block when another punches a part of it,
// which leaves the version that the first was made from. It is noticed, and no
// object goes that the file has.
func TestAPunchMeetsWhatIsAboutToBeCommitted(t *testing.T) {
	for name, change := range map[string]func(f *testFile) error{
		"a write":            func(f *testFile) error { return f.writeAt(make([]byte, 3*unit), 0) },
		"a punch":            func(f *testFile) error { return f.fallocate(punchHole|keepSize, 0, 3*unit) },
		"an unaligned punch": func(f *testFile) error { return f.fallocate(punchHole|keepSize, 0, 3*unit-1) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, noInline)
			a := w.newFS("a", Config{}).createTest(t, "f")
			must(t, "write", a.writeAt(pattern(16*unit, 1), 0))
			must(t, "fsync", a.sync())
			fs := w.newFS("b", Config{})
			b := fs.openTest(t, "f")
			removed := &removals{fs.blocks, make(chan store.Gen, 10)}
			fs.blocks = removed
			base, err := fs.baseOf(t.Context(), fs.inode(meta.Ino(b.ino)), 0)
			must(t, "ask for the block", err)
			fs.meta = &hookMeta{Meta: fs.meta, op: meta.OpCommit, before: func() {
				must(t, "punch", a.fallocate(punchHole|keepSize, 8*unit, unit))
				must(t, "fsync", a.sync())
			}}
			must(t, name, change(b))
			must(t, "fsync", b.sync())
			want := pattern(16*unit, 1)
			clear(want[:3*unit-1])
			if name != "an unaligned punch" {
				clear(want[:3*unit])
			}
			clear(want[8*unit : 9*unit])
			for _, f := range []*testFile{a, b, w.newFS("c", Config{}).openTest(t, "f")} {
				got, err := f.readAt(16*unit, 0)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("the contents are not what they should be (%v)", err)
				}
			}
			select {
			case gen := <-removed.gens:
				if meta.Gen(gen) == base.Gen {
					t.Error("the object was removed that the file has")
				}
			case <-time.After(50 * time.Millisecond):
			}
		})
	}
}

// A block is written as a whole and so uploaded at once, and then changed in
// part, before a commit names it. It is all there, also if the commit is not
// answered.
func TestAChangeOfAnUncommittedBlockKeepsTheRest(t *testing.T) {
	for name, change := range map[string]func(f *testFile) error{
		"a write": func(f *testFile) error { return f.writeAt(make([]byte, unit), 0) },
		"a punch": func(f *testFile) error { return f.fallocate(punchHole|keepSize, 0, unit) },
	} {
		for answer, lost := range map[string]bool{"": false, ", the answer lost": true} {
			t.Run(name+answer, func(t *testing.T) {
				w := newWorldOf(t, noInline)
				fs := w.newFS("one", Config{})
				f := fs.createTest(t, "f")
				must(t, "write", f.writeAt(pattern(testBlockSize, 1), 0))
				must(t, "wait", fs.inode(meta.Ino(f.ino)).waitUploads(t.Context()))
				must(t, name, change(f))
				fs.meta = &unsureMeta{fs.meta, func() (bool, bool) { was := lost; lost = false; return false, was }}
				if err := f.sync(); err != nil && !errors.Is(err, syscall.EIO) {
					t.Fatal(err)
				}
				must(t, "fsync", f.sync())
				want := pattern(testBlockSize, 1)
				clear(want[:unit])
				time.Sleep(20 * time.Millisecond) // what is removed is removed in the background
				got, err := w.newFS("two", Config{}).openTest(t, "f").readAt(testBlockSize, 0)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("the contents are not what they should be (%v)", err)
				}
			})
		}
	}
}

func TestAnUnlinkedFileCanBePunched(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	f := fs.createTest(t, "f")
	must(t, "write", f.writeAt(pattern(2*testBlockSize, 1), 0))
	must(t, "fsync", f.sync())
	must(t, "write", f.writeAt(pattern(100, 2), 0))
	must(t, "unlink", fs.do(&fuseops.UnlinkOp{Parent: fuseops.RootInodeID, Name: "f"}))
	must(t, "punch", f.fallocate(punchHole|keepSize, 0, testBlockSize+100))
	want := pattern(2*testBlockSize, 1)
	clear(want[:testBlockSize+100])
	got, err := f.readAt(3*testBlockSize, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the contents are not what they should be (%v)", err)
	}
}

// A commit that shows less of an object and is not answered may have been done.
// The object stays either way.
func TestAPunchWithoutAnswerKeepsTheObject(t *testing.T) {
	for name, done := range map[string]bool{"done": true, "not done": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, noInline)
			fs := w.newFS("one", Config{})
			removed := &removals{fs.blocks, make(chan store.Gen, 10)}
			fs.blocks = removed
			f := fs.createTest(t, "f")
			must(t, "write", f.writeAt(pattern(8*unit, 1), 0))
			must(t, "fsync", f.sync())
			lose := true
			fs.meta = &unsureMeta{fs.meta, func() (bool, bool) { was := lose; lose = false; return done, was }}
			must(t, "punch", f.fallocate(punchHole|keepSize, 0, unit))
			if err := f.sync(); !errors.Is(err, syscall.EIO) {
				t.Fatalf("the fsync whose commit was lost says %v", err)
			}
			must(t, "punch", f.fallocate(punchHole|keepSize, 2*unit, unit))
			must(t, "truncate", f.truncate(6*unit))
			must(t, "fsync", f.sync())
			want := pattern(6*unit, 1)
			clear(want[:unit])
			clear(want[2*unit : 3*unit])
			got, err := w.newFS("two", Config{}).openTest(t, "f").readAt(8*unit, 0)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the contents are not what they should be (%v)", err)
			}
			if len(removed.gens) > 0 {
				t.Error("an object was removed that the file has")
			}
		})
	}
}

// Of more holes than a record may have the smallest are stored.
func TestTheLargestHolesAreKept(t *testing.T) {
	var data spans
	at := 0
	for i := range 3 * meta.MaxHoles {
		at += unit * (1 + i%3) // a hole of 1, 2 or 3 units
		data = data.add(span{at, at + unit})
		at += unit
	}
	holes := holesIn(data)
	if len(holes) != meta.MaxHoles {
		t.Fatalf("%d holes", len(holes))
	}
	for _, h := range holes {
		if h.Hi-h.Lo != 3*unit {
			t.Errorf("hole %v is not among the largest", h)
		}
	}
	// What the object has where a hole was given up would be seen again.
	if shown(data.end(), holes, data.add(span{0, unit}), data) {
		t.Error("a hole that does not fit the record is taken for one that does")
	}
}

// shown is compared with what each byte says.
func TestWhatIsHiddenOfAnObjectIsInHoles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const size = 6 * unit
	some := func() spans {
		var out spans
		for range r.IntN(5) {
			lo := r.IntN(size)
			hi := lo + 1 + r.IntN(size-lo)
			if r.IntN(4) > 0 {
				lo, hi = lo/unit*unit, alignUp(hi)
			}
			out = out.add(span{lo, hi})
		}
		return out
	}
	yes := 0
	for range 400 {
		base := meta.Block{}
		before := some()
		base.Len, base.Holes = uint32(before.end()), holesIn(before)
		before = dataOf(&base)
		d := &dirty{}
		for _, s := range some() {
			d.punch(s.lo, s.hi)
		}
		data := d.over(before)
		now := meta.Block{Len: uint32(data.end()), Holes: holesIn(data)}
		seen := dataOf(&now)
		want := true
		for i := range size {
			if seen.covers(i, i+1) && (!before.covers(i, i+1) || d.zero.covers(i, i+1)) {
				want = false
			}
		}
		if want {
			yes++
		}
		if got := shown(data.end(), now.Holes, before, data); got != want {
			t.Fatalf("%v punched by %v becomes %+v: %v, want %v", before, d.zero, now, got, want)
		}
	}
	if yes < 20 || yes > 380 {
		t.Errorf("%d of 400 can be shown", yes)
	}
}
