package memfs

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestContentsAreThoseOfASlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var c contents
	var want []byte
	for range 2000 {
		off, n := rng.Int64N(3*chunk), rng.Int64N(chunk+chunk/2)
		switch rng.IntN(8) {
		case 0:
			size := min(off, int64(len(want)))
			c.truncate(size)
			want = want[:size]
		case 1, 2, 3:
			n /= 1 + rng.Int64N(1000)
			data := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(n))
			c.write(off, data)
			for int64(len(want)) < off+n && n > 0 {
				want = append(want, make([]byte, off+n-int64(len(want)))...)
			}
			copy(want[min(off, int64(len(want))):], data)
		default:
			off = min(off, int64(len(want)))
			n = min(n, int64(len(want))-off)
			parts, total := c.read(off, n)
			if got := bytes.Join(parts, nil); int64(total) != n || !bytes.Equal(got, want[off:off+n]) {
				t.Fatalf("reading %d bytes at %d of %d gave %d, and not those that were written", n, off, len(want), total)
			}
		}
	}
}

// mount mounts an empty file system, which the test's end takes away.
func mount(t *testing.T) string {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skip("needs /dev/fuse and root")
	}
	dir := t.TempDir()
	before := device(t, dir)
	done := make(chan error, 1)
	go func() { done <- Serve(context.Background(), dir) }()
	t.Cleanup(func() {
		syscall.Unmount(dir, syscall.MNT_DETACH)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 500 {
		if device(t, dir) != before {
			return dir
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it was not mounted in time")
	return ""
}

func device(t *testing.T, dir string) uint64 {
	var s syscall.Stat_t
	if err := syscall.Stat(dir, &s); err != nil {
		t.Fatal(err)
	}
	return s.Dev
}

func TestItIsAFileSystem(t *testing.T) {
	dir := mount(t)
	sub := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*chunk/16)
	if err := os.WriteFile(filepath.Join(sub, "file"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(sub, "file"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "moved")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file has %d bytes, not the %d that were written; %v", len(got), len(data), err)
	}
	if err := os.Symlink("moved", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "link")); err != nil || info.Size() != int64(len(data)) {
		t.Errorf("through the link the file has not its size: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "a")); err == nil {
		t.Error("a directory that is not empty was removed")
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 2 || list[0].Name() != "link" || list[1].Name() != "moved" {
		t.Errorf("the directory has %v (%v), and should have link and moved", list, err)
	}
}
