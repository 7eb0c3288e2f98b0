package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// source is a source tree to copy: a part of Go's own, small enough to be
// copied several times.
func source(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "src", "crypto")
}

// Servers may die and come back while cp runs: it waits, and completes.
func TestCopyCompletesThoughServersAreKilled(t *testing.T) {
	w := newWorld(t)
	src := source(t)
	for _, name := range []string{"admin", "proxy1", "proxy2"} {
		dst := filepath.Join(w.mount, "during-"+name)
		cp := exec.Command("cp", "-a", src, dst)
		var stderr bytes.Buffer
		cp.Stderr = &stderr
		if err := cp.Start(); err != nil {
			t.Fatal(err)
		}
		w.await(func() error { _, err := os.Stat(filepath.Join(dst, "crypto.go")); return err })
		w.kill(name)
		time.Sleep(300 * time.Millisecond) // the copy runs into the gap
		w.again(name)
		if err := waitFor(cp, 90*time.Second); err != nil {
			t.Fatalf("cp while %s was killed: %v\n%s", name, err, stderr.Bytes())
		}
		sameTree(t, src, dst, nil)
	}
}

// waitFor waits for a command, and kills it when the time is over.
func waitFor(cmd *exec.Cmd, limit time.Duration) error {
	var late atomic.Bool
	t := time.AfterFunc(limit, func() { late.Store(true); cmd.Process.Kill() })
	defer t.Stop()
	err := cmd.Wait()
	if late.Load() {
		return fmt.Errorf("not done after %v", limit)
	}
	return err
}

// When the mount itself dies, programs get an honest error, and every file that
// was closed is there when the volume is mounted again.
func TestClosedFilesSurviveTheKillOfTheMount(t *testing.T) {
	w := newWorld(t)
	src := source(t)
	for round := range 3 {
		dst := filepath.Join(w.mount, fmt.Sprint("round", round))
		var count atomic.Int64
		done := make(chan error, 1)
		closed := map[string]bool{}
		go func() { done <- copyTree(src, dst, closed, &count) }()
		w.await(func() error {
			if count.Load() < int64(20*(round+1)) {
				return errors.New("the copy does not start")
			}
			return nil
		})
		w.kill("mount")
		err := <-done
		if !errors.Is(err, syscall.ENOTCONN) && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ECONNABORTED) {
			t.Fatalf("a program whose mount died got %v", err)
		}
		w.again("mount")
		sameTree(t, src, dst, closed)
		t.Logf("%d files were closed before the kill", len(closed))
	}
}

// With --writeBehind some of the files that were closed last may be missing after a
// crash of the mount, but nothing that was closed before one that is there, and
// nothing that was closed before an fsync.
func TestWhatWasClosedBehindIsThereInOrder(t *testing.T) {
	w := newWorldOf(t, shape{proxies: -1, mountFlags: []string{"--writeBehind"}})
	contents := func(i int) string { return fmt.Sprint("contents of ", i) }
	for round := range 3 {
		dir := filepath.Join(w.mount, fmt.Sprint("round", round))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		var closed, synced atomic.Int64
		done := make(chan error, 1)
		go func() {
			done <- func() error {
				for i := 0; ; i++ {
					f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
					if err != nil {
						return err
					}
					_, err = f.WriteString(contents(i))
					if err == nil && i%100 == 99 {
						if err = f.Sync(); err == nil {
							synced.Store(int64(i + 1))
						}
					}
					if err := errors.Join(err, f.Close()); err != nil {
						return err
					}
					closed.Store(int64(i + 1))
				}
			}()
		}()
		w.await(func() error {
			if closed.Load() < int64(120+70*round) {
				return errors.New("too few files")
			}
			return nil
		})
		w.kill("mount")
		<-done
		w.again("mount")
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i := range es {
			if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); err != nil || string(got) != contents(i) {
				t.Errorf("of %d files, the one that was closed as number %d: %q, %v", len(es), i, got, err)
			}
		}
		t.Logf("%d files were closed, %d before an fsync; %d are there", closed.Load(), synced.Load(), len(es))
		if n := int64(len(es)); n < synced.Load() || n > closed.Load()+1 {
			t.Errorf("%d files are there", n)
		}
	}
}

// copyTree copies files, noting each when its close has returned.
func copyTree(src, dst string, closed map[string]bool, count *atomic.Int64) error {
	return filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(src, path)
		if e.IsDir() {
			return os.Mkdir(filepath.Join(dst, rel), 0o755)
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(dst, rel), data, 0o644)
		}
		if err == nil {
			closed[rel] = true
			count.Add(1)
		}
		return err
	})
}

// sameTree compares the files of src, those of only if it is not nil, with
// their copies.
func sameTree(t *testing.T, src, dst string, only map[string]bool) {
	t.Helper()
	err := filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(src, path)
		if err != nil || !e.Type().IsRegular() || only != nil && !only[rel] {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dst, rel))
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("%s: %d bytes differ from the %d of the source", rel, len(got), len(want))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// memorySlack is what a mount may need beyond --memCapacity: the program, its
// goroutines, requests of the kernel. The README states it.
const memorySlack = 192 << 20

func TestMemoryOfAMountStaysBounded(t *testing.T) {
	const capacity = 256 << 20
	w := newWorld(t, "--memCapacity", "256MiB")
	const writers, size = 16, 1 << 30
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i >> 8) // compresses, so that the test needs little disk
	}
	done := make(chan error, writers)
	for i := range writers {
		go func() {
			f, err := os.Create(filepath.Join(w.mount, fmt.Sprint(i)))
			for off := 0; err == nil && off < size; off += len(chunk) {
				_, err = f.Write(chunk)
			}
			if err == nil {
				err = f.Close()
			}
			done <- err
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	peak := peakMemory(t, w.procs["mount"].cmd.Process.Pid)
	t.Logf("%d writers of %d MiB: peak %d MiB with --memCapacity %d MiB, on %d CPUs", writers, size>>20, peak>>20, capacity>>20, runtime.NumCPU())
	if peak > capacity+memorySlack {
		t.Errorf("the mount used %d MiB; --memCapacity is %d MiB, and it may need %d MiB beside", peak>>20, capacity>>20, memorySlack>>20)
	}
}

// peakMemory returns the most memory that a process had resident, in bytes.
func peakMemory(t *testing.T, pid int) (peak int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &peak); n == 1 {
			return peak << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
