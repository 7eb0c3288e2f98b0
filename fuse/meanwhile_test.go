package fuse

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/meta"
	"flexfs/store"
)

// A pair is a mount whose requests are hooked, and another.
type pair struct {
	t     *testing.T
	hook  *hookMeta
	here  string
	there string
}

func newPair(t *testing.T, w *world) *pair {
	fs := w.newFS("one", Config{})
	p := &pair{t: t, hook: &hookMeta{Meta: fs.meta}}
	fs.meta = p.hook
	p.here = w.mountFS(fs)
	_, p.there = w.mount("two", Config{})
	return p
}

// open writes a file and opens it.
func (p *pair) open(contents []byte) *os.File {
	p.t.Helper()
	name := filepath.Join(p.here, "f")
	must(p.t, "write", os.WriteFile(name, contents, 0o644))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(p.t, "open", err)
	p.t.Cleanup(func() { f.Close() })
	return f
}

// write writes to the file on the other mount, and closes it.
func (p *pair) write(b []byte, off int64) {
	f, err := os.OpenFile(filepath.Join(p.there, "f"), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		p.t.Errorf("write elsewhere: %v", err)
	}
}

// read reads the file on the other mount.
func (p *pair) read() []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.there, "f"))
	must(p.t, "read elsewhere", err)
	return b
}

// Another mount makes a file longer while it is allocated here, or punched to what
// was its end.
func TestAllocateLeavesWhatAnotherMountWrote(t *testing.T) {
	p := newPair(t, newWorld(t))
	f := p.open(make([]byte, 100))
	theirs := bytes.Repeat([]byte("B"), 200)
	p.hook.set(meta.OpSetattr, func() { p.write(theirs, 20_000) }, nil)
	must(t, "fallocate", unix.Fallocate(int(f.Fd()), 0, 0, 1000))
	if got := p.read(); !bytes.Equal(got, append(make([]byte, 20_000), theirs...)) {
		t.Errorf("%d bytes are left, with %d of theirs", len(got), bytes.Count(got, []byte("B")))
	}
	if info, err := f.Stat(); err != nil || info.Size() != 20_200 {
		t.Errorf("the size is %d (%v)", info.Size(), err)
	}
}

func TestAPunchToTheEndLeavesWhatAnotherMountAppended(t *testing.T) {
	for _, op := range []meta.Op{meta.OpPunch, meta.OpCommit} {
		t.Run(op.String(), func(t *testing.T) {
			p := newPair(t, newWorld(t))
			const size = testBlockSize + 100_000
			f := p.open(bytes.Repeat([]byte("A"), size))
			theirs := bytes.Repeat([]byte("B"), 1000)
			p.hook.set(op, func() { p.write(theirs, size) }, nil)
			must(t, "punch", unix.Fallocate(int(f.Fd()), punchHole|keepSize, 0, size))
			must(t, "fsync", f.Sync())
			if got := p.read(); !bytes.Equal(got, append(make([]byte, size), theirs...)) {
				t.Errorf("%d bytes are left, with %d of theirs and %d that were punched", len(got), bytes.Count(got, []byte("B")), bytes.Count(got, []byte("A")))
			}
		})
	}
}

// A program sets times while what was written before is being committed.
func TestTimesThatAreSetDuringACommitStay(t *testing.T) {
	p := newPair(t, newWorld(t))
	f := p.open(nil)
	_, err := f.WriteString("x")
	must(t, "write", err)
	old := time.Unix(1e9, 0)
	p.hook.set(meta.OpCommit, func() {
		if err := os.Chtimes(f.Name(), old, old); err != nil {
			t.Errorf("set times: %v", err)
		}
	}, nil)
	fd, err := syscall.Dup(int(f.Fd()))
	must(t, "dup", err)
	must(t, "close of a copy", syscall.Close(fd))
	must(t, "close", f.Close())
	for _, dir := range []string{p.here, p.there} {
		info, err := os.Stat(filepath.Join(dir, "f"))
		must(t, "stat", err)
		if !info.ModTime().Equal(old) {
			t.Errorf("mtime is %v, want %v", info.ModTime(), old)
		}
	}
}

// The lock is lost while a write waits for memory.
func TestAWriteThatWaitedKnowsThatItsLockIsLost(t *testing.T) {
	w := newShortWorld(t)
	fs := w.newFS("one", Config{})
	here := w.mountFS(fs)
	_, there := w.mount("two", Config{})
	p := &pair{t: t, here: here, there: there}
	f := p.open([]byte("0000"))
	must(t, "lock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	all := fs.budget.max * 2
	fs.budget.force(all)
	done := make(chan error, 1)
	waits := fs.stats.Waits.Load()
	go func() {
		_, err := f.WriteAt([]byte("A"), 0)
		done <- err
	}()
	w.await("a write that waits", func() bool { return fs.stats.Waits.Load() > waits })
	w.loseSessions(fs)
	p.write([]byte("BBBB"), 0)
	fs.budget.release(all)
	if err := <-done; !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := unix.Fallocate(int(f.Fd()), punchHole|keepSize, 0, 2); err != syscall.EIO {
		t.Errorf("punch: %v", err)
	}
	f.Sync()
	if got := p.read(); string(got) != "BBBB" {
		t.Errorf("the file has %q", got)
	}
}

// A block is filled, and its upload begun, while the file is being extended.
func TestWhatIsUploadedWhileTheSizeChangesIsCommitted(t *testing.T) {
	w := newWorldOf(t, noInline)
	fs := w.newFS("one", Config{})
	hook := &hookMeta{Meta: fs.meta}
	fs.meta = hook
	f := fs.createTest(t, "f")
	must(t, "fsync", f.sync())
	answered := make(chan struct{})
	w.bucket.setFail(func(op string, _ store.Key) error {
		if op == "put" {
			<-answered
		}
		return nil
	})
	want := pattern(testBlockSize, 1)
	hook.set(meta.OpSetattr, func() { must(t, "write", f.writeAt(want, 0)) }, nil)
	must(t, "truncate", f.truncate(2*testBlockSize))
	close(answered)
	must(t, "fsync", f.sync())
	got, err := w.newFS("two", Config{}).openTest(t, "f").readAt(testBlockSize, 0)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written is not there (%v)", err)
	}
	must(t, "close", f.close())
}

// What is appended to a file without a name, which is then allocated.
func TestAllocateMovesNothingOfAnUnlinkedFile(t *testing.T) {
	p := newPair(t, newWorld(t))
	f := p.open(nil)
	app, err := os.OpenFile(f.Name(), os.O_RDWR|os.O_APPEND, 0)
	must(t, "open", err)
	defer app.Close()
	must(t, "unlink", os.Remove(f.Name()))
	_, err = app.WriteString("AAAAAAAA")
	must(t, "append", err)
	must(t, "fallocate", unix.Fallocate(int(app.Fd()), 0, 0, 100))
	must(t, "sync", app.Sync())
	b := make([]byte, 200)
	n, _ := f.ReadAt(b, 0) // up to its end
	if n != 100 || string(b[:8]) != "AAAAAAAA" {
		t.Errorf("%q", b[:n])
	}
}

// A file without a name is open on two mounts, written and closed on one.
func TestAnUnlinkedFileIsSharedByThoseWhoHaveItOpen(t *testing.T) {
	for _, by := range []string{"here", "there"} {
		t.Run(by, func(t *testing.T) {
			p := newPair(t, newWorld(t))
			f := p.open([]byte("........"))
			g, err := os.OpenFile(filepath.Join(p.there, "f"), os.O_RDWR, 0)
			must(t, "open there", err)
			defer g.Close()
			dir := p.here
			if by == "there" {
				dir = p.there
			}
			must(t, "unlink", os.Remove(filepath.Join(dir, "f")))
			must(t, "flock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
			_, err = f.WriteAt([]byte("AAAAAAAA"), 0)
			must(t, "write", err)
			must(t, "unlock", syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
			must(t, "flock there", syscall.Flock(int(g.Fd()), syscall.LOCK_EX))
			b := make([]byte, 8)
			_, err = g.ReadAt(b, 0)
			must(t, "read", err)
			if string(b) != "AAAAAAAA" {
				t.Errorf("after the lock: %q", b)
			}
			must(t, "unlock", syscall.Flock(int(g.Fd()), syscall.LOCK_UN))
			must(t, "close", f.Close())
			g.ReadAt(b, 0)
			if string(b) != "AAAAAAAA" {
				t.Errorf("after the close: %q", b)
			}
		})
	}
}

// The session ends between the grant of a lock and its note here.
func TestALockThatIsLostBeforeItIsNotedIsNotHeld(t *testing.T) {
	w := newShortWorld(t)
	fs := w.newFS("one", Config{})
	p := &pair{t: t, hook: &hookMeta{Meta: fs.meta}}
	fs.meta = p.hook
	p.here = w.mountFS(fs)
	_, p.there = w.mount("two", Config{})
	f := p.open([]byte("........"))
	p.hook.set(meta.OpSetlk, nil, func() { w.loseSessions(fs) })
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EIO {
		t.Errorf("lock: %v", err)
	}
	g, err := os.OpenFile(filepath.Join(p.there, "f"), os.O_RDWR, 0)
	must(t, "open", err)
	defer g.Close()
	must(t, "lock elsewhere", syscall.Flock(int(g.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	if _, err := f.WriteAt([]byte("A"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	must(t, "close", f.Close())
	must(t, "write after a close", os.WriteFile(filepath.Join(p.here, "f"), nil, 0o644))
}

// A file is cut, and written anew, elsewhere while it is read here. (If the kernel
// reads it for its cache, a program gets zeros instead of what is not there any more.)
func TestAReadOfAFileThatIsCutMeanwhileHasNoZeros(t *testing.T) {
	w := newWorldOf(t, noInline)
	there := w.newFS("two", Config{}).createTest(t, "f")
	must(t, "write", there.writeAt(pattern(3*testBlockSize, 1), 0))
	must(t, "fsync", there.sync())
	fs := w.newFS("one", Config{})
	hook := &hookMeta{Meta: fs.meta}
	fs.meta = hook
	f := fs.openTest(t, "f")
	hook.set(meta.OpBlocks, func() {
		must(t, "truncate", there.truncate(0))
		must(t, "write", there.writeAt([]byte("yyyy"), 0))
		must(t, "fsync", there.sync())
	}, nil)
	if got, err := f.readAt(100_000, 0); string(got) != "yyyy" {
		t.Errorf("%d bytes are read, %d of them zeros (%v)", len(got), bytes.Count(got, []byte{0}), err)
	}
	must(t, "close", errors.Join(f.close(), there.close()))
}
