package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

func anything(_ store.Key, b []byte) (uint32, error) { return store.Sum(context.Background(), b), nil }

func openDisk(t testing.TB, next store.Store, cfg DiskConfig) *Disk {
	t.Helper()
	if cfg.Verify == nil {
		cfg.Verify = seal.Verify
	}
	if cfg.Quota == (Quota{}) {
		cfg.Quota = Quota{Bytes: 1 << 30}
	}
	d, err := OpenDisk(next, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDisk(t, d) })
	return d
}

// closeDisk closes d, once.
func closeDisk(t testing.TB, d *Disk) {
	t.Helper()
	select {
	case <-d.closing:
		return
	default:
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// idle waits until nothing is on its way to the disk.
func (d *Disk) idle() { d.flights.wg.Wait() }

func TestDiskIsAStore(t *testing.T) {
	for name, cfg := range map[string]DiskConfig{
		"roomy":   {Quota: Quota{Bytes: 1 << 30}},
		"whole":   {Quota: Quota{Bytes: 1 << 30}, Whole: true},
		"direct":  {Quota: Quota{Bytes: 1 << 30}, Direct: true},
		"small":   {Quota: Quota{Bytes: 500_000}, Whole: true},
		"a part":  {Quota: Quota{Percent: 1}, Whole: true},
		"no room": {Quota: Quota{Bytes: 1}, Whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				cfg.Dir, cfg.Verify = t.TempDir(), anything
				return openDisk(t, mem.New(t), cfg)
			})
		})
	}
}

// The disk writes a block that it is lent from where it is, and is done with it then;
// unless somebody was given the same bytes meanwhile.
func TestWhatIsLentToADiskIsWritten(t *testing.T) {
	for name, asked := range map[string]bool{"not asked for": false, "asked for": true} {
		t.Run(name, func(t *testing.T) {
			files, write := newFakeFiles(), make(chan struct{})
			files.setFail(func(op, _ string) error {
				if op == "write" {
					<-write
				}
				return nil
			})
			d := openFake(t, mem.New(t), files, DiskConfig{Quota: Quota{Bytes: 1 << 30}})
			key := storetest.Key(1)
			data := storetest.Data(key, 1<<20+1000)
			var free atomic.Bool
			l := store.NewLoan(bytes.Clone(data), 0, func() { free.Store(true) })
			if err := store.Lend(t.Context(), d, key, l); err != nil {
				t.Fatal(err)
			}
			l.Done()
			if free.Load() {
				t.Error("the memory is free, and not written yet")
			}
			if asked {
				wantBlock(t, d, 1, data, 0, -1)
			}
			close(write)
			d.idle()
			if free.Load() == asked {
				t.Errorf("free when it was written: %v", free.Load())
			}
			got, err := d.Get(store.WithLocal(t.Context()), key, 0, -1)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("the disk has %d bytes of %d: %v", len(got), len(data), err)
			}
		})
	}
}

func TestDiskUnderSealIsAStore(t *testing.T) {
	for name, whole := range map[string]bool{"whole": true, "parts": false} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				d := openDisk(t, mem.New(t), DiskConfig{Dir: t.TempDir(), Whole: whole})
				return seal.New(d, seal.Options{Codec: seal.LZ4})
			})
		})
	}
}

// newSealed returns a store that has n sealed blocks of size plain bytes, and
// those.
func newSealed(t *testing.T, n, size int) (*spy, [][]byte) {
	t.Helper()
	next := newSpy(t)
	blocks := make([][]byte, n)
	s := seal.NewSealer(seal.Options{Codec: seal.LZ4})
	for i := range blocks {
		key := storetest.Key(i)
		b, err := s.Encode(nil, key, storetest.Data(key, size))
		if err != nil {
			t.Fatal(err)
		}
		if err := next.Put(t.Context(), key, b); err != nil {
			t.Fatal(err)
		}
		blocks[i] = b
	}
	return next, blocks
}

// wantBlock reads a part of a sealed block.
func wantBlock(t *testing.T, s store.Store, i int, block []byte, off, n int64) {
	t.Helper()
	got, err := s.Get(t.Context(), storetest.Key(i), off, n)
	if err != nil {
		t.Fatalf("Get(block %d, %d, %d): %v", i, off, n, err)
	}
	if !bytes.Equal(got, store.Clip(block, off, n)) {
		t.Fatalf("Get(block %d, %d, %d) returned %d wrong bytes", i, off, n, len(got))
	}
}

func TestBlocksSurviveARestart(t *testing.T) {
	next, blocks := newSealed(t, 20, 300_000)
	cfg := DiskConfig{Dir: t.TempDir()}
	d := openDisk(t, next, cfg)
	for i := range blocks {
		wantBlock(t, d, i, blocks[i], 0, -1)
	}
	d.idle()
	before := d.Stats()
	closeDisk(t, d)
	next.reached(t, 20, 0)

	d = openDisk(t, next, cfg)
	for i := range blocks { // also while the folder is still being scanned
		wantBlock(t, d, i, blocks[i], 1000, 1000)
		wantBlock(t, d, i, blocks[i], 0, -1)
	}
	next.reached(t, 20, 0)
	<-d.scanned
	if after := d.Stats(); after.Bytes != before.Bytes || after.Blocks != 20 {
		t.Errorf("%d bytes in %d blocks after the restart, were %d in 20", after.Bytes, after.Blocks, before.Bytes)
	}
}

// TestDamagedFilesAreFetchedAgain damages the files of a cache in every way that
// comes to mind, with the cache open and closed, and reads in every way.
func TestDamagedFilesAreFetchedAgain(t *testing.T) {
	const n = 3
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			b[(at+len(b))%len(b)] ^= 0x10
			return b
		}
	}
	damages := map[string]func(b []byte) []byte{
		"cut to nothing":          func(b []byte) []byte { return b[:0] },
		"cut in the head":         func(b []byte) []byte { return b[:50] },
		"cut by one byte":         func(b []byte) []byte { return b[:len(b)-1] },
		"longer by one byte":      func(b []byte) []byte { return append(b, 0) },
		"a bit of the magic":      flip(0),
		"a bit of the key":        flip(20),
		"a bit of the table":      flip(74),
		"a bit of the last frame": flip(-1),
		"zeros":                   func(b []byte) []byte { return make([]byte, len(b)) },
		"another block":           nil, // see below
		"removed":                 func([]byte) []byte { return nil },
	}
	reads := map[string]func(t *testing.T, d *Disk, i int, block []byte){
		"whole": func(t *testing.T, d *Disk, i int, block []byte) { wantBlock(t, d, i, block, 0, -1) },
		"verified part": func(t *testing.T, d *Disk, i int, block []byte) {
			got, err := d.Get(store.WithVerify(t.Context()), storetest.Key(i), 100, 10)
			if err != nil || !bytes.Equal(got, block[100:110]) {
				t.Errorf("Get of a part: %d bytes, error %v", len(got), err)
			}
		},
		"frames": wantFrames,
	}
	for what, damage := range damages {
		for how, read := range reads {
			for _, restart := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/restart=%v", what, how, restart), func(t *testing.T) {
					next, blocks := newSealed(t, n, 200_000)
					cfg := DiskConfig{Dir: t.TempDir(), Whole: true}
					d := openDisk(t, next, cfg)
					for i := range blocks {
						wantBlock(t, d, i, blocks[i], 0, -1)
					}
					d.idle()
					if restart {
						closeDisk(t, d)
					}
					for i := range blocks {
						name := filepath.Join(cfg.Dir, cleanFile(storetest.Key(i)))
						if damage == nil {
							spoil(t, name, blocks[(i+1)%n])
						} else {
							spoil(t, name, damage(bytes.Clone(blocks[i])))
						}
					}
					if restart {
						d = openDisk(t, next, cfg)
					}
					for i := range blocks {
						read(t, d, i, blocks[i])
					}
					d.idle()
					for i := range blocks { // the new copies are good
						wantBlock(t, d, i, blocks[i], 0, -1)
					}
					next.reached(t, 2*n, 0)
					if s := d.Stats(); what != "removed" && s.Corrupt != n || s.Errors != 0 {
						t.Errorf("%d corrupt, %d errors, want %d and 0", s.Corrupt, s.Errors, n)
					}
				})
			}
		}
	}
}

func spoil(t *testing.T, name string, b []byte) {
	t.Helper()
	err := os.WriteFile(name, b, 0o600)
	if b == nil {
		err = os.Remove(name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantFrames reads the last frame of a block.
func wantFrames(t *testing.T, d *Disk, i int, block []byte) {
	t.Helper()
	h, err := seal.ParseHead(block)
	if err != nil {
		t.Fatal(err)
	}
	off := h.PlainLen() - 10
	head, frames, err := d.GetFrames(t.Context(), storetest.Key(i), off, 5)
	if err != nil {
		t.Fatalf("GetFrames: %v", err)
	}
	from, to := h.Span(off, 5)
	if !bytes.Equal(head, h.Bytes()) || !bytes.Equal(frames, block[from:to]) {
		t.Errorf("GetFrames returned a head of %d bytes and frames of %d, want %d and %d, or others", len(head), len(frames), h.Len(), to-from)
	}
}

func TestFramesComeFromTheDisk(t *testing.T) {
	next, blocks := newSealed(t, 2, 700_000)
	for _, whole := range []bool{true, false} {
		d := openDisk(t, next, DiskConfig{Dir: t.TempDir(), Whole: whole})
		wantBlock(t, d, 0, blocks[0], 0, -1)
		before := next.whole.Load() + next.part.Load()
		wantFrames(t, d, 0, blocks[0]) // perhaps from memory
		d.idle()
		wantFrames(t, d, 0, blocks[0])
		if after := next.whole.Load() + next.part.Load(); after != before {
			t.Errorf("whole=%v: %d Gets went below for a block that is here", whole, after-before)
		}
	}
	d := openDisk(t, next, DiskConfig{Dir: t.TempDir()})
	if _, _, err := d.GetFrames(t.Context(), storetest.Key(1), 0, 10); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a miss returned error %v, want what the store below says: unsupported", err)
	}
}

// TestAPartIsBelievedOnlyFromAGoodFile makes sure that a range of a file from an
// earlier run, which has no checksum for just that range, is not answered before
// all of it was verified.
func TestAPartIsBelievedOnlyFromAGoodFile(t *testing.T) {
	next, blocks := newSealed(t, 1, 300_000)
	cfg := DiskConfig{Dir: t.TempDir(), Whole: true}
	d := openDisk(t, next, cfg)
	wantBlock(t, d, 0, blocks[0], 0, -1)
	d.idle()
	closeDisk(t, d)
	bad := bytes.Clone(blocks[0])
	bad[1000] ^= 1
	spoil(t, filepath.Join(cfg.Dir, cleanFile(storetest.Key(0))), bad)
	d = openDisk(t, next, cfg)
	wantBlock(t, d, 0, blocks[0], 990, 20)
	next.reached(t, 2, 0)
}

func TestACorruptBlockFromBelowIsAskedForAgainAndNeverKept(t *testing.T) {
	good, blocks := newSealed(t, 1, 1000)
	for _, healed := range []bool{true, false} {
		d := openDisk(t, &damaged{Store: good, healed: healed}, DiskConfig{Dir: t.TempDir(), Whole: true})
		got, err := d.Get(t.Context(), storetest.Key(0), 0, -1)
		d.idle()
		if healed && (err != nil || !bytes.Equal(got, blocks[0])) {
			t.Errorf("a store that heals when asked to verify: error %v", err)
		}
		if !healed && !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("a store that does not heal: error %v, want ErrCorrupt", err)
		}
		if s := d.Stats(); !healed && s.Blocks != 0 {
			t.Error("a corrupt block was kept")
		}
	}
}

// damaged returns damaged blocks, unless it heals and is asked to verify.
type damaged struct {
	store.Store
	healed bool
}

func (d *damaged) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := d.Store.Get(ctx, key, off, n)
	if err == nil && !(d.healed && store.MustVerify(ctx)) {
		data = bytes.Clone(data)
		data[len(data)-1] ^= 1
	}
	return data, err
}

// TestDiskKeepsItsQuota does random operations, with restarts in between, on
// real files and on others that know the most they ever held.
func TestDiskKeepsItsQuota(t *testing.T) {
	const quota = 200_000
	cfg := DiskConfig{Dir: t.TempDir(), Quota: Quota{Bytes: quota}, Verify: anything, Whole: true}
	f := newFakeFiles()
	real := func() *Disk { return openDisk(t, mem.New(t), cfg) }
	fake := func() *Disk {
		d, err := newDisk(mem.New(t), cfg, f)
		if err != nil {
			t.Fatal(err)
		}
		d.wg.Go(d.tend)
		return d
	}
	for name, open := range map[string]func() *Disk{"real": real, "fake": fake} {
		for round := range 3 {
			d := open()
			randomOps(t, d, 10*round, 4, 500, 20_000)
			d.idle()
			s := d.Stats()
			if n := onDisk(t, cfg.Dir); name == "real" && n > s.Bytes {
				t.Errorf("%s, round %d: %d bytes are counted, %d are there", name, round, s.Bytes, n)
			}
			if f.peak > quota || s.Bytes > quota {
				t.Errorf("%s, round %d: there were up to %d bytes, now %d; %d are allowed", name, round, f.peak, s.Bytes, quota)
			}
			if s.Hits == 0 || s.Evictions == 0 || s.Errors+s.Corrupt > 0 {
				t.Errorf("%s, round %d: the test does not test: %+v", name, round, s)
			}
			closeDisk(t, d)
		}
	}
	if f.peak < quota/2 {
		t.Errorf("at most %d bytes were used of %d", f.peak, quota)
	}
}

// onDisk sums up the bytes of all files.
func onDisk(t *testing.T, dir string) (n int64) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return ignoreMissing(err)
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return ignoreMissing(err)
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func TestASmallerQuotaIsKeptFromTheStart(t *testing.T) {
	next, blocks := newSealed(t, 20, 50_000)
	cfg := DiskConfig{Dir: t.TempDir()}
	d := openDisk(t, next, cfg)
	for i := range blocks {
		wantBlock(t, d, i, blocks[i], 0, -1)
		d.idle()
		old := time.Now().Add(time.Duration(i-100) * time.Hour) // used in this order
		if err := os.Chtimes(filepath.Join(cfg.Dir, cleanFile(storetest.Key(i))), old, old); err != nil {
			t.Fatal(err)
		}
	}
	each := d.Stats().Bytes / 20
	closeDisk(t, d)
	cfg.Quota = Quota{Bytes: 5 * (each + 1000)}
	d = openDisk(t, next, cfg)
	<-d.scanned
	for d.Stats().Bytes > cfg.Quota.Bytes {
		time.Sleep(time.Millisecond) // it is being trimmed
	}
	if n := onDisk(t, cfg.Dir); n > cfg.Quota.Bytes {
		t.Errorf("%d bytes are there, %d allowed", n, cfg.Quota.Bytes)
	}
	for i := 16; i < 20; i++ {
		wantBlock(t, d, i, blocks[i], 0, -1)
	}
	next.reached(t, 20, 0) // what was used last is still here
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	mine := []string{"photo.jpg", "clean/notes.txt", "clean/00/letter", "clean/ab/" + strings.ReplaceAll(storetest.Key(1).String(), "/", "_"), "tmp/mine", "dirty/block"}
	for _, name := range mine {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		spoil(t, filepath.Join(dir, name), []byte("precious"))
	}
	spoil(t, filepath.Join(dir, "tmp/fill-123"), []byte("left behind"))
	var log syncBuffer
	d := openDisk(t, newSpy(t), DiskConfig{Dir: dir, Quota: Quota{Bytes: 10}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	<-d.scanned
	closeDisk(t, d)
	for _, name := range mine {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "tmp/fill-123")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unfinished file of an earlier run stays: %v", err)
	}
	if n := log.lines("other files"); n != 1 {
		t.Errorf("%d lines about other files, want 1", n)
	}
}

func TestAFolderHasOneUser(t *testing.T) {
	cfg := DiskConfig{Dir: t.TempDir()}
	openDisk(t, newSpy(t), cfg)
	cfg.Quota, cfg.Verify = Quota{Bytes: 1}, anything
	if _, err := OpenDisk(newSpy(t), cfg); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the second one got error %v, want that the folder is in use", err)
	}
}

func TestTheFolderMayBeEmptiedByHand(t *testing.T) {
	next, blocks := newSealed(t, 2, 1000)
	cfg := DiskConfig{Dir: t.TempDir(), Whole: true}
	d := openDisk(t, next, cfg)
	wantBlock(t, d, 0, blocks[0], 0, -1)
	d.idle()
	for _, name := range []string{cleanName, tmpName} {
		if err := os.RemoveAll(filepath.Join(cfg.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for i := range blocks {
			wantBlock(t, d, i, blocks[i], 0, -1)
			d.idle()
		}
	}
	next.reached(t, 3, 0)
	if s := d.Stats(); s.Errors != 0 || s.Blocks != 2 {
		t.Errorf("%d errors, %d blocks, want 0 and 2", s.Errors, s.Blocks)
	}
}

// TestAFullFileSystem uses a real one, which is smaller than the quota.
func TestAFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Skipf("tmpfs cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	next := newSpy(t)
	next.fill(t, 100, 30_000)
	var log syncBuffer
	d := openDisk(t, next, DiskConfig{Dir: dir, Quota: Quota{Bytes: 10 << 20}, Verify: anything, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for i := range 100 {
		get(t, d, i, 30_000, 0, -1)
		d.idle()
	}
	s := d.Stats()
	if !d.InUse() || s.Blocks < 8 || s.Evictions == 0 {
		t.Errorf("in use: %v, %d blocks, %d evictions: the cache should make do with what there is", d.InUse(), s.Blocks, s.Evictions)
	}
	if s.Dropped > 20 {
		t.Errorf("%d of 100 blocks were not kept", s.Dropped)
	}
	if n := log.lines(""); n != 1 {
		t.Errorf("%d lines in the log, want 1:\n%s", n, &log)
	}
	closeDisk(t, d)
}

// TestAFailingDiskIsTakenOutOfUseAndComesBack goes through the ways a disk can
// fail. Nobody but the log may notice.
func TestAFailingDiskIsTakenOutOfUseAndComesBack(t *testing.T) {
	for name, tc := range map[string]struct {
		op    string
		errno syscall.Errno
	}{
		"read error":   {"read", syscall.EIO},
		"open error":   {"open", syscall.EIO},
		"write error":  {"write", syscall.EIO},
		"read-only":    {"write", syscall.EROFS},
		"remove error": {"remove", syscall.EROFS},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next := newSpy(t)
				next.fill(t, 60, 5000)
				f := newFakeFiles()
				var log syncBuffer
				d := openFake(t, next, f, DiskConfig{Whole: true, Quota: Quota{Bytes: 20 * charge(5000)}, Log: slog.New(slog.NewTextHandler(&log, nil))})
				for i := range 20 {
					get(t, d, i, 5000, 0, -1)
				}
				synctest.Wait()
				f.setFail(func(op, _ string) error {
					if op == tc.op || op == "write" || op == "stage" {
						return tc.errno
					}
					return nil
				})
				for i := range 60 {
					get(t, d, i, 5000, 0, -1)
					get(t, d, i, 5000, 100, 100)
				}
				synctest.Wait()
				if d.InUse() {
					t.Fatal("the disk is still in use")
				}
				time.Sleep(15 * time.Minute) // the probes fail too
				for i := range 60 {
					get(t, d, i, 5000, 0, -1)
				}
				if n := log.lines("level=ERROR"); n != 1 {
					t.Errorf("%d errors in the log, want 1:\n%s", n, &log)
				}
				f.setFail(nil)
				time.Sleep(2 * maxPause)
				if !d.InUse() {
					t.Fatal("the disk works again and is not used")
				}
				for range 2 {
					for i := range 10 {
						get(t, d, i, 5000, 0, -1)
						synctest.Wait()
					}
				}
				before := next.whole.Load()
				for i := range 10 {
					get(t, d, i, 5000, 0, -1)
				}
				if next.whole.Load() != before {
					t.Error("the disk is in use again but keeps nothing")
				}
				if f.peak > d.cfg.Quota.Bytes {
					t.Errorf("%d bytes were on the disk, %d are allowed", f.peak, d.cfg.Quota.Bytes)
				}
			})
		})
	}
}

func TestADiskThatHangsDelaysOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 20, 5000)
		f := newFakeFiles()
		d := openFake(t, next, f, DiskConfig{Whole: true})
		for i := range 10 {
			get(t, d, i, 5000, 0, -1)
		}
		synctest.Wait()
		release := make(chan struct{})
		f.setFail(func(string, string) error { <-release; return nil })
		start := time.Now()
		for i := range 20 {
			get(t, d, i, 5000, 0, -1)
			get(t, d, i, 5000, 10, 10)
		}
		if took := time.Since(start); took > patience {
			t.Errorf("40 Gets took %v with a disk that hangs, want at most %v", took, patience)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := d.Get(ctx, storetest.Key(0), 0, -1); err != nil {
			t.Errorf("a disk out of use is in the way: %v", err)
		}
		close(release)
		f.setFail(nil)
		time.Sleep(2 * maxPause)
		if !d.InUse() {
			t.Error("the disk works again and is not used")
		}
		get(t, d, 0, 5000, 0, -1)
	})
}

// TestOneBadSector: a single unreadable file costs that file.
func TestOneBadSectorCostsOneBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 10, 5000)
		f := newFakeFiles()
		d := openFake(t, next, f, DiskConfig{Whole: true})
		for i := range 10 {
			get(t, d, i, 5000, 0, -1)
		}
		synctest.Wait()
		bad := cleanFile(storetest.Key(3))
		f.setFail(func(op, name string) error {
			if op == "read" && name == bad {
				return syscall.EIO
			}
			return nil
		})
		for i := range 10 {
			get(t, d, i, 5000, 0, -1)
		}
		next.reached(t, 11, 0)
		if !d.InUse() {
			t.Error("the disk was taken out of use for one file")
		}
	})
}

// TestABadFileThatStaysIsReplaced: a damaged file that could not be removed is
// not read again, and is no obstacle later.
func TestABadFileThatStaysIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 1, 5000)
		f := newFakeFiles()
		d := openFake(t, next, f, DiskConfig{Whole: true})
		get(t, d, 0, 5000, 0, -1)
		synctest.Wait()
		f.spoil(cleanFile(storetest.Key(0)), make([]byte, 4999))
		f.setFail(func(op, _ string) error {
			if op == "remove" {
				return syscall.EIO
			}
			return nil
		})
		for range 2 {
			get(t, d, 0, 5000, 0, -1)
			synctest.Wait()
		}
		next.reached(t, 3, 0)
		f.setFail(nil)
		time.Sleep(2 * maxPause)
		for range 3 {
			get(t, d, 0, 5000, 0, -1)
			synctest.Wait()
		}
		next.reached(t, 4, 0)
		if s := d.Stats(); s.Blocks != 1 || s.Bytes != charge(5000) {
			t.Errorf("%d blocks, %d bytes, want 1 and %d", s.Blocks, s.Bytes, charge(5000))
		}
	})
}

func TestAFullDiskMakesTheCacheSmallerForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 300, 5000)
		f := newFakeFiles()
		const room = 50
		f.setFail(func(op, _ string) error {
			if op == "write" && f.len() >= room {
				return syscall.ENOSPC
			}
			return nil
		})
		var log syncBuffer
		d := openFake(t, next, f, DiskConfig{Whole: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
		for i := range 200 {
			get(t, d, i, 5000, 0, -1)
			synctest.Wait()
			time.Sleep(time.Second)
		}
		s := d.Stats()
		if !d.InUse() || s.Blocks < room*3/4 || s.Dropped > 20 {
			t.Errorf("in use: %v, %d blocks, %d dropped, want true, about %d, and few", d.InUse(), s.Blocks, s.Dropped, room)
		}
		if n := log.lines(""); n != 1 {
			t.Errorf("%d lines in the log, want 1:\n%s", n, &log)
		}
		f.setFail(nil) // somebody made room
		time.Sleep(2 * squeezeTime)
		for i := range 300 {
			get(t, d, i, 5000, 0, -1)
			synctest.Wait()
		}
		if s := d.Stats(); s.Blocks != 300 {
			t.Errorf("%d blocks when there is room for all 300", s.Blocks)
		}
	})
}

func TestTheCacheGivesWayToOthersOnItsFileSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 100, 5000)
		f := newFakeFiles()
		f.total, f.free = 1_000_000, 1_000_000
		d := openFake(t, next, f, DiskConfig{Whole: true, Quota: Quota{Percent: 50}})
		for i := range 100 {
			get(t, d, i, 5000, 0, -1)
			synctest.Wait()
		}
		if s := d.Stats(); s.Bytes > 500_000 || s.Bytes < 400_000 {
			t.Fatalf("%d bytes are used, want nearly the half million that is allowed", s.Bytes)
		}
		f.mu.Lock()
		f.free = 700_000 // of which the cache has nearly 500,000
		f.mu.Unlock()
		time.Sleep(minPause) // nobody asks for anything
		if s := d.Stats(); s.Bytes > 200_000 {
			t.Errorf("%d bytes are used, 200,000 would leave half of the disk free", s.Bytes)
		}
	})
}

// TestAScanOfTheDiskLeavesWhatIsUsedAgain reads a small set a few times, with
// time between, and then much more than fits, each block in many pieces.
func TestAScanOfTheDiskLeavesWhatIsUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, hot, scan = 5000, 20, 500
		next := newSpy(t)
		next.fill(t, hot+scan, size)
		d := openFake(t, next, newFakeFiles(), DiskConfig{Whole: true, Quota: Quota{Bytes: 60 * charge(size)}})
		for range 3 {
			for i := range hot {
				get(t, d, i, size, 0, -1)
				synctest.Wait()
			}
			time.Sleep(2 * oneReading * time.Second)
		}
		for i := hot; i < hot+scan; i++ {
			for off := int64(0); off < size; off += 1000 {
				get(t, d, i, size, off, 1000)
				synctest.Wait()
			}
		}
		before := next.whole.Load()
		for i := range hot {
			get(t, d, i, size, 0, -1)
		}
		if lost := next.whole.Load() - before; lost > 0 {
			t.Errorf("%d of %d blocks that are used again and again are gone after a scan", lost, hot)
		}
	})
}

func TestBadSettingsAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	spoil(t, file, []byte{})
	for name, cfg := range map[string]DiskConfig{
		"no folder":    {Quota: Quota{Bytes: 1}, Verify: anything},
		"no quota":     {Dir: t.TempDir(), Verify: anything},
		"no verify":    {Dir: t.TempDir(), Quota: Quota{Bytes: 1}},
		"not a folder": {Dir: file, Quota: Quota{Bytes: 1}, Verify: anything},
	} {
		if d, err := OpenDisk(newSpy(t), cfg); err == nil {
			t.Errorf("%s: accepted", name)
			closeDisk(t, d)
		}
	}
}

// TestFileNames holds the form of the names: caches survive a change of the
// program.
func TestFileNames(t *testing.T) {
	key := store.Key{Volume: store.Volume{0xf1, 0xe8, 15: 1}, Ino: 42, Index: 7, Gen: store.Gen{Session: 3, Seq: 0xabc}}
	const name = "f1e80000-0000-0000-0000-000000000001_8108_2a_7_3-abc"
	for _, tc := range []struct {
		dir  string
		file func(store.Key) string
	}{
		{"clean/ea", cleanFile},
		{"dirty", dirtyFile},
		{"damaged", damagedFile},
	} {
		want := tc.dir + "/" + name
		if got := tc.file(key); got != want {
			t.Errorf("the file is %s, want %s", got, want)
		}
		if got, ok := parseName(tc.dir, name, tc.file); !ok || got != key {
			t.Errorf("%s parses as %v, %v", want, got, ok)
		}
		if _, ok := parseName("clean/00", name, tc.file); ok {
			t.Error("a name in another folder is accepted")
		}
	}
}

// syncBuffer is a log that several goroutines write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// lines counts the lines that contain s.
func (b *syncBuffer) lines(s string) (n int) {
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

func BenchmarkDiskRangeHit(b *testing.B) {
	d := openDisk(b, mem.New(nil), DiskConfig{Dir: b.TempDir(), Verify: anything})
	key := storetest.Key(1)
	if err := d.Put(b.Context(), key, make([]byte, 4<<20)); err != nil {
		b.Fatal(err)
	}
	d.idle()
	b.SetBytes(4096)
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := d.Get(b.Context(), key, off, 4096); err != nil {
			b.Fatal(err)
		}
		off = (off + 4096) % (4 << 20)
	}
	if s := d.Stats(); s.Misses > 0 {
		b.Errorf("%d misses", s.Misses)
	}
}

// Past the page cache, or not where that cannot be: what is read is what was
// written.
func TestDirectReadsAreWhole(t *testing.T) {
	for _, size := range []int64{minDirect - 1, minDirect, minDirect + 1, 1<<20 - 1, 1 << 20, 1<<20 + 333} {
		f := &folder{root: t.TempDir(), direct: true}
		want := storetest.Data(storetest.Key(1), int(size))
		if err := f.write("a", want); err != nil {
			t.Fatal(err)
		}
		file, err := f.open("a")
		if err != nil {
			t.Fatal(err)
		}
		defer file.close()
		for range 2 {
			got, err := inFile(file, size)(0, -1)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes were written, %d were read (%v), or others", size, len(got), err)
			}
			part, err := inFile(file, size)(5, 1000)
			if err != nil || !bytes.Equal(part, want[5:1005]) {
				t.Errorf("a part of %d bytes: %d were read (%v), or others", size, len(part), err)
			}
		}
		if _, err := inFile(file, size+5000)(0, -1); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("a file that is too short is read: %v", err)
		}
	}
}
