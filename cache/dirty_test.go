package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// local asks for what is held here.
func local(t *testing.T, s store.Store, i int) ([]byte, error) {
	t.Helper()
	return s.Get(store.WithLocal(t.Context()), storetest.Key(i), 0, -1)
}

// wantLocal wants a block to be held here, or not.
func wantLocal(t *testing.T, s store.Store, i int, want []byte) {
	t.Helper()
	got, err := local(t, s, i)
	switch {
	case want == nil && !errors.Is(err, store.ErrNotExist):
		t.Errorf("block %d, asked for here: error %v, want that it is not there", i, err)
	case want != nil && (err != nil || !bytes.Equal(got, want)):
		t.Errorf("block %d, asked for here: %d bytes, error %v", i, len(got), err)
	}
}

func data(i, size int) []byte { return storetest.Data(storetest.Key(i), size) }

func putDirty(t testing.TB, d *Disk, i, size int) {
	t.Helper()
	if err := d.PutDirty(t.Context(), storetest.Key(i), data(i, size)); err != nil {
		t.Fatalf("PutDirty(block %d): %v", i, err)
	}
}

// wantNoRoom wants PutDirty to refuse, within a time.
func wantNoRoom(t *testing.T, d *Disk, i, size int, within time.Duration) {
	t.Helper()
	start := time.Now()
	err := d.PutDirty(t.Context(), storetest.Key(i), data(i, size))
	if !errors.Is(err, ErrNoRoom) {
		t.Errorf("PutDirty(block %d): error %v, want no room", i, err)
	}
	if took := time.Since(start); took > within {
		t.Errorf("PutDirty(block %d) took %v, want at most %v", i, took, within)
	}
}

func wantDirty(t *testing.T, d *Disk, want ...int) {
	t.Helper()
	blocks := d.Dirty()
	for _, i := range want {
		if !slices.ContainsFunc(blocks, func(b store.DirtyBlock) bool { return b.Key == storetest.Key(i) }) || !d.IsDirty(storetest.Key(i)) {
			t.Errorf("block %d is not dirty", i)
		}
	}
	if s := d.Stats(); len(blocks) != len(want) || s.DirtyBlocks != int64(len(want)) || s.OldestDirty.IsZero() != (len(want) == 0) {
		t.Errorf("dirty are %v, want blocks %v; stats say %d, since %v", blocks, want, s.DirtyBlocks, s.OldestDirty)
	}
}

func TestADirtyBlockIsReadAndSurvivesARestart(t *testing.T) {
	next := newSpy(t)
	cfg := DiskConfig{Dir: t.TempDir(), Verify: anything, Whole: true}
	d := openDisk(t, next, cfg)
	putDirty(t, d, 1, 5000)
	putDirty(t, d, 2, 6000)
	old := time.Unix(time.Now().Unix()-1000, 0)
	if err := os.Chtimes(filepath.Join(cfg.Dir, dirtyFile(storetest.Key(2))), old, old); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		get(t, d, 1, 5000, 0, -1) // also while the folder is still being looked through
		get(t, d, 2, 6000, 100, 50)
		<-d.Scanned()
		wantDirty(t, d, 1, 2)
		if s := d.Stats(); s.DirtyBytes != charge(5000)+charge(6000) {
			t.Errorf("stats are %+v", s)
		}
		closeDisk(t, d)
		d = openDisk(t, next, cfg)
	}
	<-d.Scanned()
	if b := d.Dirty(); b[0].Key != storetest.Key(2) || !b[0].Since.Equal(old) || !d.Stats().OldestDirty.Equal(old) {
		t.Errorf("dirty are %v, want block 2 first, since %v", b, old)
	}
	d.Clean(storetest.Key(1))
	if err := d.Delete(t.Context(), storetest.Key(2)); err != nil {
		t.Fatal(err)
	}
	wantDirty(t, d)
	closeDisk(t, d)
	d = openDisk(t, next, cfg)
	get(t, d, 1, 5000, 0, -1)
	wantLocal(t, d, 2, nil)
	wantDirty(t, d)
	next.reached(t, 0, 0)
}

// TestACopyBecomesDirty: a copy says nothing about the store below; it may come
// from another proxy, where it is dirty.
func TestACopyBecomesDirty(t *testing.T) {
	next := newSpy(t)
	next.fill(t, 1, 5000)
	cfg := DiskConfig{Dir: t.TempDir(), Verify: anything, Whole: true}
	d := openDisk(t, next, cfg)
	get(t, d, 0, 5000, 0, -1)
	d.idle()
	for range 2 {
		putDirty(t, d, 0, 5000)
		wantDirty(t, d, 0)
		if s := d.Stats(); s.Bytes != charge(5000) || s.Blocks != 1 {
			t.Errorf("%d bytes in %d blocks, want one", s.Bytes, s.Blocks)
		}
	}
	closeDisk(t, d)
	d = openDisk(t, next, cfg)
	<-d.Scanned()
	wantDirty(t, d, 0)
	if err := d.Put(t.Context(), storetest.Key(0), data(0, 5000)); err != nil { // the store below has it
		t.Fatal(err)
	}
	wantDirty(t, d)
}

func TestDirtyBlocksAreNotEvictedAndAFullQuotaRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 50, 5000)
		f := newFakeFiles()
		var log syncBuffer
		d := openFake(t, next, f, DiskConfig{Whole: true, Quota: Quota{Bytes: 10*charge(5000) + 100}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		<-d.Scanned()
		var all []int
		for i := range 10 {
			get(t, d, i, 5000, 0, -1) // copies, which make room
			get(t, d, 20+i, 5000, 0, -1)
			synctest.Wait()
			putDirty(t, d, 100+i, 5000)
			all = append(all, 100+i)
		}
		for i := range 30 {
			wantNoRoom(t, d, 200+i, 5000, 0)
			get(t, d, i, 5000, 0, -1)
			synctest.Wait()
		}
		wantDirty(t, d, all...)
		putDirty(t, d, 100, 5000) // it is there
		for _, i := range all {
			wantLocal(t, d, i, data(i, 5000))
		}
		d.Clean(storetest.Key(104))
		putDirty(t, d, 300, 5000)
		wantLocal(t, d, 104, nil) // it made room
		if f.peak > d.cfg.Quota.Bytes {
			t.Errorf("%d bytes were there, %d are allowed", f.peak, d.cfg.Quota.Bytes)
		}
		if n := log.lines("no room"); n != 1 {
			t.Errorf("%d lines about no room, want 1:\n%s", n, &log)
		}
	})
}

// TestADamagedDirtyBlockIsSetAside: nobody uploads it, nobody removes it, and the
// operator hears of it.
func TestADamagedDirtyBlockIsSetAside(t *testing.T) {
	for _, restart := range []bool{false, true} {
		_, blocks := newSealed(t, 2, 50_000)
		var log syncBuffer
		cfg := DiskConfig{Dir: t.TempDir(), Whole: true, Log: slog.New(slog.NewTextHandler(&log, nil))}
		d := openDisk(t, newSpy(t), cfg)
		for i, b := range blocks {
			if err := d.PutDirty(t.Context(), storetest.Key(i), b); err != nil {
				t.Fatal(err)
			}
		}
		bad := bytes.Clone(blocks[0])
		bad[len(bad)/2] ^= 1
		spoil(t, filepath.Join(cfg.Dir, dirtyFile(storetest.Key(0))), bad)
		if restart {
			closeDisk(t, d)
			d = openDisk(t, newSpy(t), cfg)
			<-d.Scanned()
		}
		before := d.Stats().Bytes
		if _, err := d.Get(store.WithVerify(store.WithLocal(t.Context())), storetest.Key(0), 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("the damaged block: error %v", err)
		}
		wantDirty(t, d, 1)
		for range 2 {
			if s := d.Stats(); s.Bytes != before {
				t.Errorf("%d bytes are counted, want %d", s.Bytes, before)
			}
			if got, err := os.ReadFile(filepath.Join(cfg.Dir, damagedFile(storetest.Key(0)))); err != nil || !bytes.Equal(got, bad) {
				t.Errorf("what was damaged is not there for the operator: %v", err)
			}
			closeDisk(t, d)
			d = openDisk(t, newSpy(t), cfg)
			<-d.Scanned()
		}
		if n := log.lines("level=ERROR"); n != 1 {
			t.Errorf("%d errors in the log, want 1:\n%s", n, &log)
		}
		if err := d.PutDirty(t.Context(), storetest.Key(0), blocks[0]); err != nil {
			t.Errorf("the block once more: %v", err)
		}
		wantLocal(t, d, 0, blocks[0])
	}
}

// TestDirtyBlocksAreReadFromADiskThatIsOutOfUse as far as it can be read.
func TestDirtyBlocksAreReadFromADiskThatIsOutOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		f := newFakeFiles()
		d := openFake(t, next, f, DiskConfig{Whole: true})
		<-d.Scanned()
		for i := range 10 {
			putDirty(t, d, i, 5000)
		}
		unreadable := dirtyFile(storetest.Key(0))
		f.setFail(func(op, name string) error {
			if op == "stage" || op == "write" || op == "read" && name == unreadable {
				return syscall.EIO
			}
			return nil
		})
		for i := range 5 {
			wantNoRoom(t, d, 20+i, 5000, 0)
		}
		if d.InUse() {
			t.Fatal("the disk is still in use")
		}
		for i := 1; i < 10; i++ {
			get(t, d, i, 5000, 0, -1)
			wantLocal(t, d, i, data(i, 5000))
		}
		for _, ctx := range []context.Context{t.Context(), store.WithLocal(t.Context())} {
			if _, err := d.Get(ctx, storetest.Key(0), 0, -1); !errors.Is(err, syscall.EIO) || errors.Is(err, store.ErrNotExist) {
				t.Errorf("a block that cannot be read: error %v, want that, and not that it does not exist", err)
			}
		}
		d.Clean(storetest.Key(1)) // the store below has it
		if d.IsDirty(storetest.Key(1)) || !d.IsDirty(storetest.Key(0)) {
			t.Error("IsDirty is wrong")
		}
		f.setFail(nil)
		time.Sleep(2 * maxPause)
		wantDirty(t, d, 0, 2, 3, 4, 5, 6, 7, 8, 9)
		get(t, d, 0, 5000, 0, -1)
		get(t, d, 1, 5000, 0, -1)
	})
}

func TestADiskThatHangsIsNotWaitedForAndLeavesNothingBehind(t *testing.T) {
	for _, stuck := range []string{"stage", "rename", "sync", "statfs"} {
		t.Run(stuck, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeFiles()
				d := openFake(t, newSpy(t), f, DiskConfig{Whole: true, Quota: Quota{Percent: 50}})
				<-d.Scanned()
				putDirty(t, d, 0, 5000)
				time.Sleep(2 * limitTime)
				release := make(chan struct{})
				f.setFail(func(op, _ string) error {
					if op == stuck || op == "open" {
						<-release
					}
					return nil
				})
				var wg sync.WaitGroup
				for i := range 2 * maxWriting {
					wg.Go(func() { wantNoRoom(t, d, 1+i, 5000, 2*patience) })
				}
				wg.Wait()
				wantNoRoom(t, d, 100, 5000, 0)
				for range 3 * maxRescues { // not all of them wait
					wg.Go(func() {
						if _, err := local(t, d, 0); err == nil || errors.Is(err, store.ErrNotExist) {
							t.Errorf("a dirty block on a disk that hangs: error %v", err)
						}
					})
				}
				wg.Wait()
				close(release)
				f.setFail(nil)
				time.Sleep(2 * maxPause)
				wantDirty(t, d, 0)
				wantLocal(t, d, 0, data(0, 5000))
				checkFiles(t, d, f)
			})
		})
	}
}

func TestADeletedBlockStaysDeleted(t *testing.T) {
	for _, at := range []string{"stage", "rename", "sync"} {
		for name, remove := range map[string]func(d *Disk) error{
			"Delete":    func(d *Disk) error { return d.Delete(context.Background(), storetest.Key(0)) },
			"DeleteAll": func(d *Disk) error { return d.DeleteAll(context.Background(), []store.Key{storetest.Key(0)}) },
		} {
			t.Run(at+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeFiles()
					d := openFake(t, newSpy(t), f, DiskConfig{Whole: true})
					<-d.Scanned()
					f.setFail(func(op, _ string) error {
						if op == at {
							f.setFail(nil)
							return remove(d) // in the middle of PutDirty
						}
						return nil
					})
					putDirty(t, d, 0, 5000)
					wantDirty(t, d)
					wantLocal(t, d, 0, nil)
					putDirty(t, d, 0, 5000)
					f.setFail(func(op, to string) error {
						if op == "rename" {
							f.setFail(nil)
							return remove(d) // in the middle of Clean
						}
						return nil
					})
					d.Clean(storetest.Key(0))
					wantLocal(t, d, 0, nil)
					if f.len() != 0 {
						t.Errorf("%d files are left", f.len())
					}
					checkFiles(t, d, f)
				})
			})
		}
	}
}

// TestManyShareOneSync: what waits while a folder is synced is synced together.
func TestManyShareOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeFiles()
		d := openFake(t, newSpy(t), f, DiskConfig{Whole: true})
		<-d.Scanned()
		f.setFail(func(op, _ string) error {
			if op == "sync" {
				time.Sleep(time.Millisecond)
			}
			return nil
		})
		var wg sync.WaitGroup
		for i := range 160 {
			wg.Go(func() { putDirty(t, d, i, 100) })
		}
		wg.Wait()
		if n := f.ops["sync"]; n > 40 {
			t.Errorf("%d syncs for 160 blocks, 16 at a time", n)
		}
	})
}

func TestADirtyBlockHasNoRoomBeforeTheFolderIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeFiles()
		d := openFake(t, newSpy(t), f, DiskConfig{Whole: true})
		putDirty(t, d, 0, 5000) // it waits a moment
		closeDisk(t, d)
		stop := make(chan struct{})
		f.setFail(func(op, dir string) error {
			if op == "list" && dir == cleanName+"/80" {
				<-stop
			}
			return nil
		})
		d = openFake(t, newSpy(t), f, DiskConfig{Whole: true})
		wantNoRoom(t, d, 1, 5000, scanWait)
		wantDirty(t, d, 0) // what is dirty is known first
		wantLocal(t, d, 0, data(0, 5000))
		close(stop)
		<-d.Scanned()
		putDirty(t, d, 1, 5000)
		wantDirty(t, d, 0, 1)
	})
}

// TestLocalReadsGoNoFurther: neither below nor to a fetch that is under way.
func TestLocalReadsGoNoFurther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 3, 5000)
		d := openFake(t, next, newFakeFiles(), DiskConfig{Whole: true})
		<-d.Scanned()
		m, err := NewMem(d, 100<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		alone, err := NewMem(next, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer alone.Close()
		putDirty(t, d, 10, 5000)
		get(t, d, 0, 5000, 0, -1)
		get(t, alone, 0, 5000, 0, -1)
		synctest.Wait()
		release := make(chan struct{})
		next.hook = func(context.Context, store.Key) error { <-release; return nil }
		go m.Get(t.Context(), storetest.Key(1), 0, -1)
		synctest.Wait()
		before := d.Stats()
		for _, s := range []store.Store{d, m} {
			wantLocal(t, s, 0, data(0, 5000))
			wantLocal(t, s, 10, data(10, 5000))
			wantLocal(t, s, 1, nil) // it is on its way
			wantLocal(t, s, 2, nil)
		}
		wantLocal(t, alone, 0, data(0, 5000))
		wantLocal(t, alone, 2, nil)
		if _, _, err := d.GetFrames(store.WithLocal(t.Context()), storetest.Key(2), 0, 10); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("GetFrames: %v", err)
		}
		after := d.Stats()
		if after.Hits != before.Hits || after.Misses != before.Misses || after.LocalHits != 4 || after.LocalMisses != 5 {
			t.Errorf("%d hits, %d misses, %d and %d local, want none more, 4 and 5", after.Hits-before.Hits, after.Misses-before.Misses, after.LocalHits, after.LocalMisses)
		}
		close(release)
		synctest.Wait()
	})
}

// TestARestartReadsNoFile: what is there is found by name and size.
func TestARestartReadsNoFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		next.fill(t, 100, 5000)
		f := newFakeFiles()
		d := openFake(t, next, f, DiskConfig{Whole: true})
		<-d.Scanned()
		for i := range 100 {
			get(t, d, i, 5000, 0, -1)
			putDirty(t, d, 200+i, 5000)
			synctest.Wait()
		}
		clear(f.ops)
		d = openFake(t, next, f, DiskConfig{Whole: true})
		<-d.Scanned()
		synctest.Wait()
		if s := d.Stats(); s.Blocks != 200 || s.DirtyBlocks != 100 {
			t.Errorf("%d blocks, %d dirty, want 200 and 100", s.Blocks, s.DirtyBlocks)
		}
		if f.ops["open"]+f.ops["read"]+f.ops["stat"] > 0 || f.ops["list"] > fanout+2 {
			t.Errorf("a restart did %v", f.ops)
		}
	})
}

// mounted returns a small file system of its own.
func mounted(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("tmpfs cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDirtyBlocksOnAFullFileSystem uses a real one, which is smaller than the
// quota: others filled it.
func TestDirtyBlocksOnAFullFileSystem(t *testing.T) {
	dir := mounted(t, "1m")
	d := openDisk(t, newSpy(t), DiskConfig{Dir: dir, Quota: Quota{Bytes: 10 << 20}, Verify: anything})
	var kept []int
	for i := range 100 {
		err := d.PutDirty(t.Context(), storetest.Key(i), data(i, 30_000))
		switch {
		case err == nil:
			kept = append(kept, i)
		case !errors.Is(err, ErrNoRoom):
			t.Fatal(err)
		}
	}
	if len(kept) < 20 || len(kept) > 40 || !d.InUse() {
		t.Errorf("%d blocks of 30,000 bytes were kept on 1 MiB, in use: %v", len(kept), d.InUse())
	}
	wantDirty(t, d, kept...)
	for _, i := range kept {
		wantLocal(t, d, i, data(i, 30_000))
	}
	if left, err := os.ReadDir(filepath.Join(dir, tmpName)); err != nil || len(left) > 0 {
		t.Errorf("%d unfinished files are left, error %v", len(left), err)
	}
	closeDisk(t, d)
}

// TestAFileSystemThatBecomesReadOnly is a real one.
func TestAFileSystemThatBecomesReadOnly(t *testing.T) {
	dir := mounted(t, "10m")
	next := newSpy(t)
	next.fill(t, 10, 5000)
	var log syncBuffer
	d := openDisk(t, next, DiskConfig{Dir: dir, Quota: Quota{Bytes: 5 << 20}, Verify: anything, Whole: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	putDirty(t, d, 20, 5000)
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Skipf("the file system cannot be remounted: %v", err)
		}
	}
	remount(syscall.MS_RDONLY)
	wantNoRoom(t, d, 21, 5000, patience)
	if d.InUse() {
		t.Error("a read-only disk is still in use")
	}
	for i := range 10 {
		get(t, d, i, 5000, 0, -1)
	}
	wantLocal(t, d, 20, data(20, 5000))
	wantDirty(t, d, 20)
	d.idle()
	if n := log.lines("level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log, want 1:\n%s", n, &log)
	}
	remount(0)
	d.mu.Lock()
	d.health.since = time.Now().Add(-maxPause) // its pause is over
	d.mu.Unlock()
	d.revive()
	for !d.InUse() {
		time.Sleep(time.Millisecond) // it is being tried
	}
	putDirty(t, d, 21, 5000)
	wantDirty(t, d, 20, 21)
	closeDisk(t, d)
}

// BenchmarkPutDirty tells what it costs to make blocks durable, alone and with
// others.
func BenchmarkPutDirty(b *testing.B) {
	for _, size := range []int{64 << 10, 4 << 20} {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("%dKiB/callers=%d", size>>10, callers), func(b *testing.B) {
				d := openDisk(b, mem.New(nil), DiskConfig{Dir: b.TempDir(), Quota: Quota{Bytes: 2 << 30}, Verify: anything})
				<-d.Scanned()
				data := make([]byte, size)
				var next atomic.Int64
				var mu sync.Mutex
				var took []time.Duration
				b.SetBytes(int64(size))
				b.SetParallelism(callers)
				b.ResetTimer()
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							start := time.Now()
							if err := d.PutDirty(b.Context(), storetest.Key(int(i)), data); err != nil {
								b.Error(err)
								return
							}
							mu.Lock()
							took = append(took, time.Since(start))
							mu.Unlock()
							d.Clean(storetest.Key(int(i)))
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}

// TestADiskThatHangsIsFoundOutThoughNobodyWaits: who writes has another way, and
// is gone before the disk's patience ends.
func TestADiskThatHangsIsFoundOutThoughNobodyWaits(t *testing.T) {
	for name, use := range map[string]func(ctx context.Context, d *Disk) error{
		"write": func(ctx context.Context, d *Disk) error {
			return d.PutDirty(ctx, storetest.Key(1), data(1, 5000))
		},
		"read": func(ctx context.Context, d *Disk) error {
			_, err := d.Get(ctx, storetest.Key(0), 0, -1)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeFiles()
				d := openFake(t, newSpy(t), f, DiskConfig{Whole: true})
				<-d.Scanned()
				putDirty(t, d, 0, 5000)
				release := make(chan struct{})
				f.setFail(func(op, _ string) error {
					if op == "stage" || op == "open" {
						<-release
					}
					return nil
				})
				ctx, cancel := context.WithTimeout(t.Context(), patience/2)
				defer cancel()
				if err := use(ctx, d); err == nil {
					t.Error("the disk answers")
				}
				time.Sleep(patience)
				if d.InUse() {
					t.Error("the disk is in use though it does not answer")
				}
				close(release)
				f.setFail(nil)
				time.Sleep(2 * maxPause)
				if !d.InUse() {
					t.Error("the disk is not in use though it works")
				}
			})
		})
	}
}

// TestABlockThatIsThereIsDurableBeforeItIsAcknowledged: what an earlier run, or a
// PutDirty that failed, has left in the folder may not be.
func TestABlockThatIsThereIsDurableBeforeItIsAcknowledged(t *testing.T) {
	left := map[string]func(t *testing.T, f *fakeFiles, d *Disk) *Disk{
		"by a process that was killed": func(t *testing.T, f *fakeFiles, d *Disk) *Disk {
			f.setFail(func(op, _ string) error {
				if op == "sync" {
					return syscall.EIO
				}
				return nil
			})
			name, err := f.stage(data(0, 5000))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.rename(name, dirtyFile(storetest.Key(0))); err != nil {
				t.Fatal(err)
			}
			closeDisk(t, d)
			f.setFail(nil)
			d = openFake(t, newSpy(t), f, DiskConfig{Whole: true})
			<-d.Scanned()
			return d
		},
		"by a disk that failed": func(t *testing.T, f *fakeFiles, d *Disk) *Disk {
			f.setFail(func(op, _ string) error {
				if op == "sync" || op == "remove" {
					return syscall.EIO
				}
				return nil
			})
			wantNoRoom(t, d, 0, 5000, 0)
			f.setFail(nil)
			return d
		},
	}
	for name, leave := range left {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeFiles()
				d := openFake(t, newSpy(t), f, DiskConfig{Whole: true})
				<-d.Scanned()
				d = leave(t, f, d)
				wantDirty(t, d, 0)
				putDirty(t, d, 0, 5000)
				for seed := range uint64(10) {
					after := openFake(t, newSpy(t), f.cut(rand.New(rand.NewPCG(seed, 0))), DiskConfig{Whole: true})
					<-after.Scanned()
					wantDirty(t, after, 0)
				}
			})
		})
	}
}
