package fuse

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"flexfs/meta"
)

// A countingMeta counts the requests that callers wait for, by operation.
type countingMeta struct {
	Meta

	messages atomic.Int64

	mu  sync.Mutex
	ops map[meta.Op]int // those in compounds, too
}

func (m *countingMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	m.messages.Add(1)
	m.mu.Lock()
	switch req.Op {
	case meta.OpClose: // nobody waits for it, and one is for many
	case meta.OpCompound:
		for _, part := range req.Ops {
			m.ops[part.Op]++
		}
	default:
		m.ops[req.Op]++
	}
	m.mu.Unlock()
	return m.Meta.Do(ctx, req)
}

// during returns what f asked for, as "lookup 1, make 1".
func (m *countingMeta) during(f func()) string {
	m.mu.Lock()
	m.ops = map[meta.Op]int{}
	m.mu.Unlock()
	f()
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, op := range slices.Sorted(maps.Keys(m.ops)) {
		out = append(out, fmt.Sprintf("%v %d", op, m.ops[op]))
	}
	return strings.Join(out, ", ")
}

// counted mounts w with its requests counted.
func (w *world) counted() (*countingMeta, string) {
	_, m, dir := w.counting()
	return m, dir
}

func (w *world) counting() (*FS, *countingMeta, string) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		w.t.Skip("there is no /dev/fuse")
	}
	fs := w.newFS("counted", Config{})
	m := &countingMeta{Meta: fs.meta, ops: map[meta.Op]int{}}
	fs.meta = m
	return fs, m, w.mountFS(fs)
}

// What each call of a program asks the metadata service for. A call that begins
// to ask for more has become slower by a round trip.
func TestRequestsOfEachCall(t *testing.T) {
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	must(t, "mkdir", os.Mkdir(filepath.Join(other, "made before"), 0o755))
	m, dir := w.counted()
	in := func(name string) string { return filepath.Join(dir, name) }
	var f *os.File
	open := func(name string, flags int) error {
		var err error
		f, err = os.OpenFile(in(name), flags, 0o644)
		return err
	}
	stat := func(name string) error { _, err := os.Lstat(in(name)); return err }
	read := func(name string) error { _, err := os.ReadFile(in(name)); return err }
	for _, step := range []struct {
		name string
		do   func() error
		want string
	}{
		{"mkdir where what is there is not known", func() error { return os.Mkdir(in("d"), 0o755) }, "lookup 1, make 1"},
		{"mkdir", func() error { return os.Mkdir(in("d/s"), 0o755) }, "make 1"},
		{"create", func() error { return open("d/f", os.O_CREATE|os.O_EXCL|os.O_RDWR) }, "reserve 1"},
		{"write", func() error { _, err := f.Write([]byte("some")); return err }, ""},
		{"fsync", func() error { return f.Sync() }, "make 1"},
		{"fsync of nothing", func() error { return f.Sync() }, ""},
		{"write again", func() error { _, err := f.Write([]byte(" more")); return err }, ""},
		{"close after a write", func() error { return f.Close() }, "commit 1"},
		{"stat", func() error { return stat("d/f") }, ""},
		{"chmod", func() error { return os.Chmod(in("d/f"), 0o600) }, "setattr 1"},
		{"chown", func() error { return os.Chown(in("d/f"), os.Getuid(), os.Getgid()) }, "setattr 1"},
		{"utimes", func() error { return syscall.UtimesNano(in("d/f"), make([]syscall.Timespec, 2)) }, "setattr 1"},
		{"truncate", func() error { return os.Truncate(in("d/f"), 3) }, "setattr 1"},
		{"open, read and close", func() error { return read("d/f") }, ""},
		{"open to write and close", func() error {
			return errors.Join(open("d/f", os.O_RDWR), f.Close())
		}, ""},
		{"overwrite", func() error { return os.WriteFile(in("d/f"), []byte("other"), 0o644) }, "setattr 1, commit 1"},
		{"getxattr of none", func() error {
			_, err := syscall.Getxattr(in("d/f"), "user.a", make([]byte, 10))
			if err == syscall.ENODATA {
				return nil
			}
			return fmt.Errorf("it says %v", err)
		}, ""},
		{"listxattr of none", func() error { _, err := syscall.Listxattr(in("d/f"), make([]byte, 10)); return err }, ""},
		{"setxattr", func() error { return syscall.Setxattr(in("d/f"), "user.a", []byte("v"), 0) }, "setxattr 1"},
		{"getxattr", func() error { _, err := syscall.Getxattr(in("d/f"), "user.a", make([]byte, 10)); return err }, "getxattr 1"},
		{"removexattr", func() error { return syscall.Removexattr(in("d/f"), "user.a") }, "removexattr 1"},
		{"flock, unlock and close", func() error {
			err := open("d/f", os.O_RDWR)
			return errors.Join(err, syscall.Flock(int(f.Fd()), syscall.LOCK_EX), syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
		}, "setlk 2"},
		{"lock and close", func() error {
			err := open("d/f", os.O_RDWR)
			return errors.Join(err, syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK}), f.Close())
		}, "setlk 2"},
		{"a look for what is not there", func() error {
			if err := stat("d/none"); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("it says %v", err)
			}
			return nil
		}, ""},
		{"symlink", func() error { return os.Symlink("f", in("d/l")) }, "make 1"},
		{"readlink", func() error { _, err := os.Readlink(in("d/l")); return err }, ""},
		{"link", func() error { return os.Link(in("d/f"), in("d/g")) }, "link 1"},
		{"rename", func() error { return os.Rename(in("d/g"), in("d/h")) }, "rename 1"},
		{"rename over another", func() error { return os.Rename(in("d/h"), in("d/l")) }, "rename 1"},
		{"unlink", func() error { return os.Remove(in("d/l")) }, "unlink 1"},
		{"rmdir", func() error { return syscall.Rmdir(in("d/s")) }, "rmdir 1"},
		{"a new file, written and closed", func() error { return os.WriteFile(in("d/n"), []byte("new"), 0o644) }, "make 1"},
		{"statfs", func() error { var st syscall.Statfs_t; return syscall.Statfs(dir, &st) }, "statfs 1"},
	} {
		if got := m.during(func() {
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}); got != step.want {
			t.Errorf("%s asks for %q, want %q", step.name, got, step.want)
		}
	}
}

// A directory that is listed needs no more requests to look at what is in it, or
// to find that something is not.
func TestRequestsInAListedDirectory(t *testing.T) {
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	must(t, "mkdir", os.Mkdir(filepath.Join(other, "d"), 0o755))
	for i := range 50 {
		put(t, filepath.Join(other, "d", fmt.Sprint(i)), []byte("x"))
	}
	m, dir := w.counted()
	d := filepath.Join(dir, "d")
	if got := m.during(func() {
		es, err := os.ReadDir(d)
		must(t, "readdir", err)
		if len(es) != 50 {
			t.Errorf("%d entries, want 50", len(es))
		}
		for _, e := range es {
			_, err := e.Info()
			must(t, "stat", err)
		}
		if _, err := os.Stat(filepath.Join(d, "none")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file that is not there: %v", err)
		}
		must(t, "create", os.Mkdir(filepath.Join(d, "new"), 0o755))
	}); got != "lookup 1, readdir 1, make 1" {
		t.Errorf("listing it, looking at everything and making one more asks for %q", got)
	}

	// What is known of it must not outlive a change elsewhere.
	put(t, filepath.Join(other, "d", "none"), []byte("x"))
	expect(t, "made elsewhere", filepath.Join(d, "none"), []byte("x"))
	must(t, "remove", os.Remove(filepath.Join(other, "d", "none")))
	must(t, "rename", os.Rename(filepath.Join(other, "d", "7"), filepath.Join(other, "d", "none")))
	expect(t, "renamed elsewhere", filepath.Join(d, "none"), []byte("x"))
	if _, err := os.Stat(filepath.Join(d, "7")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was renamed elsewhere: %v", err)
	}
}

// As cp -a does it: per file one request, which makes it with its contents, owner,
// permissions and times.
func TestRequestsOfACopy(t *testing.T) {
	w := newWorld(t)
	m, dir := w.counted()
	must(t, "mkdir", os.Mkdir(filepath.Join(dir, "d"), 0o755))
	got := m.during(func() {
		for i := range 10 {
			f, err := os.OpenFile(filepath.Join(dir, "d", fmt.Sprint(i)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			must(t, "create", err)
			_, err = io.WriteString(f, "contents")
			times := make([]syscall.Timeval, 2)
			must(t, "copy", errors.Join(err, syscall.Futimes(int(f.Fd()), times),
				f.Chown(os.Getuid(), os.Getgid()), f.Chmod(0o644), f.Close()))
		}
	})
	if want := "make 10, reserve 1"; got != want {
		t.Errorf("copies of 10 files ask for %q, want %q", got, want)
	}
}

// So it is when many make files in one directory at the same time.
func TestRequestsOfManyWhoMakeFiles(t *testing.T) {
	w := newWorld(t)
	m, dir := w.counted()
	must(t, "mkdir", os.Mkdir(filepath.Join(dir, "d"), 0o755))
	got := m.during(func() {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					if err := os.WriteFile(filepath.Join(dir, "d", fmt.Sprint(i, " ", j)), []byte("contents"), 0o644); err != nil {
						t.Errorf("write: %v", err)
					}
				}
			})
		}
		wg.Wait()
	})
	if want := "make 160, reserve 1"; got != want {
		t.Errorf("160 files ask for %q, want %q", got, want)
	}
}

// What was looked at and has not changed since costs no request when it is looked
// at again: neither to the metadata service nor to the bucket. And what changes is
// asked for.
func TestWhatIsKnownCostsNoRequest(t *testing.T) {
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	const files = dirLimit + 500 // more than one request lists
	big, empty := filepath.Join(other, "d"), filepath.Join(other, "empty")
	must(t, "mkdir", errors.Join(os.Mkdir(big, 0o755), os.Mkdir(empty, 0o755)))
	for i := range files {
		must(t, "mknod", syscall.Mknod(filepath.Join(big, fmt.Sprint(i)), syscall.S_IFREG|0o644, 0))
	}
	put(t, filepath.Join(big, "small"), []byte("x"))
	put(t, filepath.Join(big, "large"), pattern(3*testBlockSize, 1))
	fs, dir := w.mount("one", Config{})
	look := func() int {
		t.Helper()
		es, err := os.ReadDir(filepath.Join(dir, "d"))
		must(t, "readdir", err)
		for _, e := range es {
			_, err := e.Info()
			must(t, "stat", err)
		}
		none, err := os.ReadDir(filepath.Join(dir, "empty"))
		if err != nil || len(none) != 0 {
			t.Errorf("in the empty directory are %v, %v", none, err)
		}
		expect(t, "small", filepath.Join(dir, "d", "small"), []byte("x"))
		expect(t, "large", filepath.Join(dir, "d", "large"), pattern(3*testBlockSize, 1))
		f, err := os.OpenFile(filepath.Join(dir, "d", "7"), os.O_RDWR, 0)
		must(t, "open", errors.Join(err, f.Close()))
		return len(es)
	}
	look()
	look() // a kernel asks again for some, as of a file's pages when it is opened for the first time
	w.bucket.mu.Lock()
	gets := w.bucket.gets
	w.bucket.mu.Unlock()
	asked := fs.Stats().Requests.Load()
	for range 3 {
		if n := look(); n != files+2 {
			t.Errorf("%d entries, want %d", n, files+2)
		}
	}
	if n := fs.Stats().Requests.Load() - asked; n != 0 {
		t.Errorf("%d requests to the metadata service for what is known", n)
	}
	w.bucket.mu.Lock()
	defer w.bucket.mu.Unlock()
	if n := w.bucket.gets - gets; n != 0 {
		t.Errorf("%d requests to the bucket for what is known", n)
	}
	for i, change := range []func(string) error{
		func(d string) error { return os.Remove(filepath.Join(d, "3")) },
		func(d string) error { return os.Mkdir(filepath.Join(d, "3"), 0o755) },
		func(d string) error { return os.Rename(filepath.Join(d, "3"), filepath.Join(d, "4x")) },
		func(d string) error { return os.Remove(filepath.Join(d, "4x")) },
	} {
		d := []string{filepath.Join(dir, "d"), big}[i/2]
		must(t, "change", change(d))
		here, err := os.ReadDir(filepath.Join(dir, "d"))
		must(t, "readdir", err)
		there, err := os.ReadDir(big)
		must(t, "readdir", err)
		if want := files + 2 - []int{1, 0, 0, 1}[i]; fmt.Sprint(here) != fmt.Sprint(there) || len(here) != want {
			t.Errorf("after change %d: %d entries here, %d there, want %d", i, len(here), len(there), want)
		}
	}
}

// The listings that are kept are bounded.
func TestKeptListingsAreBounded(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	for i := range uint64(10) {
		in := fs.inode(meta.Ino(100 + i))
		fs.keepListing(in, &listing{entries: make([]meta.Entry, maxListings/4)})
		fs.keepListing(in, &listing{entries: make([]meta.Entry, maxListings/4)})
		if n := fs.listings.Load(); n > maxListings || n < 0 {
			t.Errorf("%d entries are kept", n)
		}
	}
	kept := 0
	for _, in := range fs.inodes {
		if in.listing != nil {
			kept += len(in.listing.entries)
		}
	}
	if n := fs.listings.Load(); int(n) != kept || kept == 0 {
		t.Errorf("%d entries are kept, and %d counted", kept, n)
	}
}
