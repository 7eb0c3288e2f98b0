package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/store"
)

func TestMain(m *testing.M) {
	if name := os.Getenv(lockVar); name != "" {
		os.Exit(lockForEver(name))
	}
	os.Exit(m.Run())
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func put(t testing.TB, name string, data []byte) {
	t.Helper()
	must(t, "write", os.WriteFile(name, data, 0o644))
}

func expect(t testing.TB, what, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	must(t, what, err)
	if !bytes.Equal(got, want) {
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		t.Errorf("%s: %d bytes, want %d; they differ from %d on", what, len(got), len(want), i)
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return b
}

// Two mounts of one volume, for what the one does and the other must see.
func twoMounts(t *testing.T) (w *world, a, b string) {
	w = newWorld(t)
	_, a = w.mount("a", Config{})
	_, b = w.mount("b", Config{})
	return w, a, b
}

func TestOneMountSeesAtOnceWhatTheOtherDid(t *testing.T) {
	_, a, b := twoMounts(t)
	join := filepath.Join
	for _, size := range []int{10, 20_000, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			name := fmt.Sprint("f", size)
			if _, err := os.Stat(join(b, name)); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("stat before it is made: %v", err) // and the absence is cached now
			}
			put(t, join(a, name), pattern(size, 1))
			expect(t, "made", join(b, name), pattern(size, 1))
			open, err := os.Open(join(b, name))
			must(t, "open", err)
			defer open.Close()
			buf := make([]byte, 10)
			_, err = open.ReadAt(buf, 0)
			must(t, "read", err)

			put(t, join(a, name), pattern(size, 2))
			expect(t, "overwritten", join(b, name), pattern(size, 2))
			_, err = open.ReadAt(buf, 0)
			must(t, "read of the open file", err)
			if !bytes.Equal(buf, pattern(10, 2)) {
				t.Errorf("the file that is open reads %x, want %x", buf, pattern(10, 2))
			}
			must(t, "truncate", os.Truncate(join(a, name), 5))
			expect(t, "truncated", join(b, name), pattern(size, 2)[:5])
			must(t, "chmod", os.Chmod(join(a, name), 0o640))
			st, err := os.Stat(join(b, name))
			must(t, "stat", err)
			if st.Mode() != 0o640 {
				t.Errorf("mode %v after chmod, want 640", st.Mode())
			}
			must(t, "rename", os.Rename(join(a, name), join(a, name+"x")))
			if _, err := os.Stat(join(b, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("stat after rename: %v", err)
			}
			expect(t, "renamed", join(b, name+"x"), pattern(size, 2)[:5])
			must(t, "unlink", os.Remove(join(b, name+"x")))
			if _, err := os.Stat(join(a, name+"x")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("stat after unlink: %v", err)
			}
		})
	}
	must(t, "mkdir", os.MkdirAll(join(a, "d/e"), 0o755))
	for i := range 20 {
		name := fmt.Sprintf("d/e/%d", i)
		put(t, join(a, name), nil)
		es, err := os.ReadDir(join(b, "d/e"))
		must(t, "readdir", err)
		if len(es) != i+1 {
			t.Fatalf("%d entries after %d creates", len(es), i+1)
		}
	}
}

// Creates in one directory hold its lock in both kernels while they wait for the
// service, which waits for both mounts to forget names in it.
func TestMountsCreateInOneDirectoryWithoutWaitingForEachOther(t *testing.T) {
	_, a, b := twoMounts(t)
	must(t, "mkdir", os.Mkdir(filepath.Join(a, "d"), 0o755))
	start := time.Now()
	var wg sync.WaitGroup
	for i, dir := range []string{a, b} {
		for j := range 2 {
			wg.Go(func() {
				for k := range 50 {
					name := filepath.Join(dir, "d", fmt.Sprintf("%d-%d-%d", i, j, k))
					if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	for _, dir := range []string{a, b} {
		es, err := os.ReadDir(filepath.Join(dir, "d"))
		must(t, "readdir", err)
		if len(es) != 200 {
			t.Errorf("%d entries, want 200", len(es))
		}
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("it took %v: somebody waited for a lease to end", d)
	}
}

func TestWritesToOneBlockFromTwoMountsAreMerged(t *testing.T) {
	_, a, b := twoMounts(t)
	for _, size := range []int{8000, 200_000} { // inline, and in the bucket
		name := fmt.Sprint("f", size)
		put(t, filepath.Join(a, name), make([]byte, size))
		fa, err := os.OpenFile(filepath.Join(a, name), os.O_RDWR, 0)
		must(t, "open", err)
		fb, err := os.OpenFile(filepath.Join(b, name), os.O_RDWR, 0)
		must(t, "open", err)
		want := make([]byte, size)
		for i := range 20 {
			_, err := fa.WriteAt([]byte("AAAA"), int64(i*100))
			must(t, "write", err)
			copy(want[i*100:], "AAAA")
			_, err = fb.WriteAt([]byte("BBBB"), int64(i*100+50))
			must(t, "write", err)
			copy(want[i*100+50:], "BBBB")
		}
		must(t, "close", fa.Close())
		must(t, "close", fb.Close())
		expect(t, "on a", filepath.Join(a, name), want)
		expect(t, "on b", filepath.Join(b, name), want)
	}
}

func TestAppendsFromTwoMountsAreAllKept(t *testing.T) {
	_, a, b := twoMounts(t)
	put(t, filepath.Join(a, "log"), []byte("first\n"))
	var wg sync.WaitGroup
	const lines = 200
	for _, m := range []string{a, b} {
		wg.Go(func() {
			f, err := os.OpenFile(filepath.Join(m, "log"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			for i := range lines {
				line := fmt.Sprintf("%s %d %s\n", filepath.Base(m), i, strings.Repeat("x", 300))
				if _, err := f.WriteString(line); err != nil {
					t.Error(err)
				}
				if i%20 == 0 {
					if err := f.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(filepath.Join(b, "log"))
	must(t, "read", err)
	seen := map[string]bool{}
	for line := range strings.Lines(string(got)) {
		if seen[line] {
			t.Errorf("twice: %.40q", line)
		}
		seen[line] = true
	}
	if len(seen) != 2*lines+1 {
		t.Errorf("%d lines, want %d", len(seen), 2*lines+1)
	}
	expect(t, "on the other mount", filepath.Join(a, "log"), got)
}

func TestAFileUnlinkedElsewhereStaysOpen(t *testing.T) {
	_, a, b := twoMounts(t)
	put(t, filepath.Join(a, "f"), pattern(600_000, 3))
	f, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer f.Close()
	must(t, "unlink", os.Remove(filepath.Join(b, "f")))
	got := make([]byte, 600_000)
	_, err = f.ReadAt(got, 0)
	must(t, "read", err)
	if !bytes.Equal(got, pattern(600_000, 3)) {
		t.Error("the contents are not what they were")
	}
	st, err := f.Stat()
	must(t, "fstat", err)
	if n := st.Sys().(*syscall.Stat_t).Nlink; n != 0 {
		t.Errorf("%d links, want none", n)
	}
	_, err = f.WriteAt([]byte("more"), 700_000)
	must(t, "write", err)
	_, err = f.ReadAt(got[:4], 700_000)
	must(t, "read", err)
	if string(got[:4]) != "more" {
		t.Errorf("read %q", got[:4])
	}
}

func TestLocksHoldAcrossMounts(t *testing.T) {
	_, a, b := twoMounts(t)
	put(t, filepath.Join(a, "f"), nil)
	fa, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer fa.Close()
	fb, err := os.OpenFile(filepath.Join(b, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer fb.Close()
	must(t, "flock", syscall.Flock(int(fa.Fd()), syscall.LOCK_EX))
	if err := syscall.Flock(int(fb.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EAGAIN {
		t.Errorf("flock on the other mount: %v, want EAGAIN", err)
	}
	got := make(chan error, 1)
	fd := int(fb.Fd())
	go func() { got <- syscall.Flock(fd, syscall.LOCK_EX) }()
	select {
	case err := <-got:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	must(t, "unlock", syscall.Flock(int(fa.Fd()), syscall.LOCK_UN))
	select {
	case err := <-got:
		must(t, "the one that waited", err)
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for ever")
	}
	l := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 5, Len: 5, Whence: io.SeekStart}
	must(t, "fcntl", syscall.FcntlFlock(fa.Fd(), syscall.F_SETLK, &l))
	q := syscall.Flock_t{Type: syscall.F_RDLCK}
	must(t, "F_GETLK", syscall.FcntlFlock(fb.Fd(), syscall.F_GETLK, &q))
	if q.Type != syscall.F_WRLCK || q.Start != 5 || q.Len != 5 {
		t.Errorf("in the way is %+v, want a write lock of 5..10", q)
	}
}

// lockVar names a file that a child process locks, and waits for ever.
const lockVar = "FLEXFS_LOCK_FILE"

func lockForEver(name string) int {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("waiting")
	fmt.Println(syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	return 0
}

func TestAProcessThatWaitsForALockCanBeKilled(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "f")
	put(t, name, nil)
	f, err := os.Open(name)
	must(t, "open", err)
	defer f.Close()
	must(t, "flock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockVar+"="+name)
	out, err := cmd.StdoutPipe()
	must(t, "pipe", err)
	must(t, "start", cmd.Start())
	line := make([]byte, 8)
	_, err = io.ReadFull(out, line)
	must(t, "read from the child", err)
	// The child says so before it waits; killing it earlier would prove less,
	// but it would not fail.
	time.Sleep(50 * time.Millisecond)
	must(t, "kill", cmd.Process.Kill())
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the process does not die")
	}
}

func TestAFaultHereIsOneFailedOperation(t *testing.T) {
	w := newWorld(t)
	fs, dir := w.mount("one", Config{Stats: func() any { panic("a fault for the test") }})
	_, err := syscall.Getxattr(dir, statsName, make([]byte, 100))
	if err != syscall.EIO {
		t.Errorf("getxattr: %v, want EIO", err)
	}
	if n := fs.Stats().Panics.Load(); n == 0 {
		t.Error("the fault is not counted")
	}
	put(t, filepath.Join(dir, "f"), []byte("alive"))
	expect(t, "afterwards", filepath.Join(dir, "f"), []byte("alive"))
}

func TestStatsAreAnAttributeOfTheRoot(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{Stats: func() any { return map[string]int{"answer": 42} }})
	buf := make([]byte, 100)
	n, err := syscall.Getxattr(dir, statsName, buf)
	must(t, "getxattr", err)
	if string(buf[:n]) != `{"answer":42}` {
		t.Errorf("it is %s", buf[:n])
	}
}

func TestAFailedUploadIsReportedAndNothingIsLost(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	_, other := w.mount("two", Config{})
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	must(t, "create", err)
	defer f.Close()
	w.bucket.setFail(func(op string, _ store.Key) error {
		if op == "put" {
			return errors.New("the bucket is gone")
		}
		return nil
	})
	want := pattern(3*testBlockSize+1000, 4)
	_, err = f.Write(want)
	must(t, "write", err)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v, want EIO", err)
	}
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	must(t, "read", err)
	if !bytes.Equal(got, want) {
		t.Error("what was written does not read back while the bucket is gone")
	}
	w.bucket.setFail(nil)
	must(t, "fsync when the bucket is back", f.Sync())
	expect(t, "on the other mount", filepath.Join(other, "f"), want)
}

func TestACommitThatIsRefusedIsReported(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	_, err = f.WriteAt([]byte("x"), 16<<40-1)
	must(t, "write of the last byte", err)
	if _, err = f.WriteAt([]byte("x"), 16<<40); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("write beyond: %v, want EFBIG", err)
	}
	must(t, "close", f.Close())
}

func TestWritersStayWithinTheBudget(t *testing.T) {
	w := newWorld(t)
	budget := NewBudget(16 << 20)
	fs, dir := w.mount("one", Config{Budget: budget})
	stop := make(chan struct{})
	var most int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				used, _ := budget.Used()
				most = max(most, used)
				runtime.Gosched()
				time.Sleep(time.Millisecond)
			}
		}
	})
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), pattern(12<<20, byte(i)), 0o644); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	for i := range 4 {
		expect(t, "read back", filepath.Join(dir, fmt.Sprint(i)), pattern(12<<20, byte(i)))
	}
	if most > 16<<20 {
		t.Errorf("%d bytes were in use, and the budget is %d", most, 16<<20)
	}
	if fs.Stats().Waits.Load() == 0 {
		t.Log("nobody had to wait")
	}
	soonZero(t, budget)
}

// soonZero fails the test if the budget is not given back.
func soonZero(t *testing.T, b *Budget) {
	t.Helper()
	left := int64(0)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if left, _ = b.Used(); left == b.stocked() {
			return
		}
	}
	t.Errorf("%d bytes of the budget are not given back", left-b.stocked())
}

// stocked returns how much of the budget the contents of small files have.
func (b *Budget) stocked() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept
}

func TestSequentialReadsAreReadAhead(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	want := pattern(20*testBlockSize+77, 6)
	put(t, filepath.Join(dir, "f"), want)
	budget := NewBudget(64 << 20)
	fs, other := w.mount("two", Config{Budget: budget})
	expect(t, "read", filepath.Join(other, "f"), want)
	if fs.Stats().Ahead.Load() == 0 {
		t.Error("nothing was read ahead")
	}
	soonZero(t, budget)
}

func TestUnmountOfAMountInUse(t *testing.T) {
	w := newWorld(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	fs := w.newFS("one", Config{})
	dir := t.TempDir()
	m, err := fs.Mount(context.Background(), dir)
	must(t, "mount", err)
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	defer f.Close()
	want := pattern(600_000, 7)
	_, err = f.Write(want)
	must(t, "write", err)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := m.Unmount(ctx); err == nil {
		t.Error("the unmount of a mount in use does not say so")
	}
	if _, err := f.Write(want); err == nil {
		t.Error("the file can still be written")
	}
	_, other := w.mount("two", Config{})
	expect(t, "what was not closed", filepath.Join(other, "f"), want)
}

func TestWorkGoesOnAfterTheConnectionBroke(t *testing.T) {
	w, a, b := twoMounts(t)
	put(t, filepath.Join(a, "f"), pattern(300_000, 1))
	f, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer f.Close()
	must(t, "flock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	_, err = f.WriteAt(pattern(1000, 2), 0)
	must(t, "write", err)
	stat := make(chan error, 1)
	w.breakConnections(func() {
		go func() {
			_, err := os.Stat(filepath.Join(b, "not there"))
			stat <- err
		}()
		_, err = f.WriteAt(pattern(1000, 3), 1000)
		must(t, "write while the service is away", err)
	})
	if err := <-stat; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stat that waited: %v", err)
	}
	must(t, "fsync", f.Sync())
	want := slices.Concat(pattern(1000, 2), pattern(1000, 3), pattern(300_000, 1)[2000:])
	expect(t, "on the other mount", filepath.Join(b, "f"), want)
	g, err := os.Open(filepath.Join(b, "f"))
	must(t, "open", err)
	defer g.Close()
	if err := syscall.Flock(int(g.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EAGAIN {
		t.Errorf("the lock is not held any more: %v", err)
	}
}

func TestAMountIsReadOnly(t *testing.T) {
	w := newWorld(t)
	_, rw := w.mount("rw", Config{})
	put(t, filepath.Join(rw, "f"), []byte("x"))
	_, ro := w.mount("ro", Config{ReadOnly: true})
	expect(t, "read", filepath.Join(ro, "f"), []byte("x"))
	for what, err := range map[string]error{
		"write":  os.WriteFile(filepath.Join(ro, "f"), nil, 0),
		"mkdir":  os.Mkdir(filepath.Join(ro, "d"), 0o755),
		"unlink": os.Remove(filepath.Join(ro, "f")),
		"chmod":  os.Chmod(filepath.Join(ro, "f"), 0),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
}
