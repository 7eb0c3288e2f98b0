package fuse

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"

	"flexfs/meta"
	"flexfs/store"
)

// An open that has the kernel drop pages waits for reads that are under way, and
// cannot be killed there. So it does where there may be old ones, and only there.
func TestOnlyOldPagesAreDroppedByAnOpen(t *testing.T) {
	for name, aside := range map[string]bool{"read": false, "read with O_DIRECT, or a map of such a file": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			k := &slowKernel{slow: make(chan struct{})}
			writer, fs := w.newFS("one", Config{}), w.newFS("two", Config{})
			fs.kernel = k
			in := newFile(t, writer, "f")
			ino := fuseops.InodeID(in.ino)
			write := func(b byte) {
				t.Helper()
				writeTo(t, writer, in, 0, []byte{b}, false)
				must(t, "flush", writer.flush(t.Context(), in))
			}
			open := func(what string, want bool) fuseops.HandleID {
				t.Helper()
				op := &fuseops.OpenFileOp{Inode: ino}
				must(t, "open", run(t, fs, op))
				if op.KeepPageCache != want {
					t.Errorf("%s: an open keeps pages: %v, want %v", what, op.KeepPageCache, want)
				}
				return op.Handle
			}
			write('a')
			h := open("nothing was read", true)
			read := func() {
				t.Helper()
				op := &fuseops.ReadFileOp{Inode: ino, Handle: h, Size: 1}
				if aside {
					op.OpenFlags = syscall.O_DIRECT
				}
				must(t, "getattr", run(t, fs, &fuseops.GetInodeAttributesOp{Inode: ino})) // as the kernel asks before
				must(t, "read", run(t, fs, op))
			}
			read()
			open("what was read is there", true)
			write('b') // and the kernel takes its time to drop it
			open("what was read is old", false)
			write('c')
			close(k.slow)
			soon(t, "the end of the dropping", func() bool { return !fs.known(in.ino).mayHavePages() })
			open("what was read is dropped", true)
			read()
			open("it was read again", true)
			write('d')
			soon(t, "the end of the dropping", func() bool { return !fs.known(in.ino).mayHavePages() })
			read()
			open("who has it open read what is new", true)
			fs.Stale([]meta.Inval{{Ino: in.ino, Attr: true}})
			open("nothing but attributes changed", true)
		})
	}
}

// Many open files at the same time of which the mount has read nothing, while the
// bucket does not answer.
func TestManyWhoWaitForTheBucketCanBeKilled(t *testing.T) {
	w, a, b := twoMounts(t)
	names := make([]string, 8)
	for i := range names {
		names[i] = filepath.Join(b, fmt.Sprint("f", i))
		put(t, filepath.Join(a, fmt.Sprint("f", i)), pattern(testBlockSize, byte(i)))
	}
	away := make(chan struct{})
	back := sync.OnceFunc(func() { close(away) })
	defer back()
	w.bucket.setFail(func(string, store.Key) error { <-away; return nil })
	var readers []*exec.Cmd
	var ended sync.WaitGroup
	var alive atomic.Int32
	for range 8 {
		for _, name := range names {
			r := exec.Command("cat", name)
			must(t, "start", r.Start())
			readers = append(readers, r)
			alive.Add(1)
			ended.Go(func() { r.Wait(); alive.Add(-1) })
		}
	}
	defer ended.Wait()
	defer back()
	time.Sleep(time.Second)
	for _, r := range readers {
		r.Process.Kill()
	}
	for end := time.Now().Add(10 * time.Second); alive.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d who wait are alive 10 s after SIGKILL", alive.Load(), len(readers))
		}
	}
}

// The kernel may have found a name before it was gone. The service takes a file
// without a name away when it hears that it is not open.
func TestWhatWasRemovedIsOpenedOnlyWhileItIsOpen(t *testing.T) {
	w := newWorld(t)
	fs, other := w.newFS("one", Config{}), w.newFS("two", Config{})
	for name, remover := range map[string]*FS{"here": fs, "on another mount": other} {
		t.Run(name, func(t *testing.T) {
			in := newFile(t, fs, "f") // and it is open
			open := func(want error) fuseops.HandleID {
				t.Helper()
				op := &fuseops.OpenFileOp{Inode: fuseops.InodeID(in.ino)}
				if err := run(t, fs, op); err != want {
					t.Errorf("open: %v, want %v", err, want)
				}
				return op.Handle
			}
			second := open(nil)
			must(t, "unlink", run(t, remover, &fuseops.UnlinkOp{Parent: fuseops.RootInodeID, Name: "f"}))
			third := open(nil)
			for _, h := range []fuseops.HandleID{second, third, second - 1} {
				must(t, "close", run(t, fs, &fuseops.ReleaseFileHandleOp{Handle: h}))
			}
			open(syscall.ESTALE)
		})
	}
}

// On a mount: a file that is open is opened again by its descriptor, also one that
// never had a name. A descriptor of O_PATH does not have it open.
func TestADescriptorOpensWhatHasNoNameOnlyWhileItIsOpen(t *testing.T) {
	_, dir := newWorld(t).mount("one", Config{})
	nameless, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, "open with O_TMPFILE", err)
	name := filepath.Join(dir, "f")
	put(t, name, []byte("x"))
	named, err := unix.Open(name, unix.O_RDWR, 0)
	must(t, "open", err)
	path, err := unix.Open(name, unix.O_PATH, 0)
	must(t, "open with O_PATH", err)
	defer unix.Close(path)
	must(t, "unlink", os.Remove(name))
	again := func(fd int) error {
		f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
		if err == nil {
			f.Close()
		}
		return err
	}
	for what, fd := range map[string]int{"O_TMPFILE": nameless, "an open file": named, "O_PATH of an open file": path} {
		must(t, "open by a descriptor of "+what, again(fd))
	}
	must(t, "close", unix.Close(named))
	must(t, "close", unix.Close(nameless))
	soon(t, "ESTALE for a file that is not open", func() bool { return errors.Is(again(path), syscall.ESTALE) })
}
