package fuse

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// An iocb is a request of io_submit(2). What has no name here is 0.
type iocb struct {
	_   uint64
	_   [2]uint32
	op  uint16
	_   uint16
	fd  uint32
	buf uint64
	n   uint64
	off int64
	_   uint64
	_   [2]uint32
}

// asyncWrite writes b at off by io_submit(2), and waits for it.
func asyncWrite(t *testing.T, ctx uintptr, fd int, b []byte, off int64) {
	t.Helper()
	const pwrite = 1
	cb := iocb{op: pwrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), n: uint64(len(b)), off: off}
	list := [1]*iocb{&cb}
	if _, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, 1, uintptr(unsafe.Pointer(&list[0]))); e != 0 {
		t.Fatalf("io_submit: %v", e)
	}
	var event [4]uint64 // data, obj, res, res2
	for {
		_, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, 1, uintptr(unsafe.Pointer(&event[0])), 0, 0)
		if e == 0 {
			break
		}
		if e != syscall.EINTR {
			t.Fatalf("io_getevents: %v", e)
		}
	}
	if int(event[2]) != len(b) {
		t.Fatalf("the write wrote %d of %d bytes", int64(event[2]), len(b))
	}
}

// The kernel does not drop the pages that others read while such a write was
// under way.
func TestReadsSeeWhatAsynchronousDirectWritesWrote(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "f")
	const size = 640 << 10
	put(t, name, make([]byte, size))
	var ctx uintptr
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
		t.Skipf("io_setup: %v", e)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	fd, err := syscall.Open(name, os.O_RDWR|syscall.O_DIRECT, 0)
	must(t, "open", err)
	defer syscall.Close(fd)
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, "mmap", err)
	defer unix.Munmap(b)

	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					os.ReadFile(name)
				}
			}
		})
	}
	defer readers.Wait()
	defer close(stop)
	for i, end := 1, time.Now().Add(3*time.Second); time.Now().Before(end); i++ {
		copy(b, bytes.Repeat([]byte{byte(i)}, size))
		asyncWrite(t, ctx, fd, b, 0)
		got, err := os.ReadFile(name)
		must(t, "read", err)
		if !bytes.Equal(got, b) {
			t.Fatalf("after write %d a read finds other bytes", i)
		}
	}
}

// A slowKernel counts what it is to forget, and takes its time over pages.
type slowKernel struct {
	noKernel
	attrs, pages atomic.Int64
	slow         chan struct{} // pages are forgotten when it is closed
}

func (k *slowKernel) Attrs(meta.Ino) bool { k.attrs.Add(1); return true }

func (k *slowKernel) Pages(meta.Ino) {
	k.pages.Add(1)
	<-k.slow
}

// What is not paged in again need not be dropped again.
func TestPagesAreDroppedOnceForManyDirectWrites(t *testing.T) {
	k := &slowKernel{slow: make(chan struct{})}
	close(k.slow)
	fs := newWorld(t).newFS("one", Config{})
	fs.kernel = k
	in := fs.inode(10)
	for _, want := range []int64{1, 1, 2, 2} {
		if k.pages.Load() == want-1 {
			in.paged.Add(1)
		}
		c := fs.newCall(t.Context(), func() {})
		c.wroteBelowPages(in)
		c.end(true)
		if n := k.pages.Load(); n != want {
			t.Errorf("pages were dropped %d times, want %d", n, want)
		}
	}
	if n := k.attrs.Load(); n != 0 {
		t.Errorf("attributes were dropped %d times beside the pages", n)
	}
}

// Not all writes wait for a read that may be waiting for one of them.
func TestSomeDirectWritesDoNotWaitForReads(t *testing.T) {
	k := &slowKernel{slow: make(chan struct{})}
	fs := newWorld(t).newFS("one", Config{})
	fs.kernel = k
	in := fs.inode(10)
	in.paged.Add(1)
	in.trusted.Add(1) // the kernel has attributes, too
	write := func() {
		c := fs.newCall(t.Context(), func() {})
		c.wroteBelowPages(in)
		c.end(true)
	}
	var waiting sync.WaitGroup
	for range maxPageDrops {
		waiting.Go(write)
	}
	for end := time.Now().Add(10 * time.Second); fs.pageDrops.Load() < maxPageDrops; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the writes do not wait")
		}
	}
	before := time.Now()
	write()
	if k.attrs.Load() == 0 || fs.pageDrops.Load() < maxPageDrops {
		t.Errorf("one more waited %v with %d others, and attributes were dropped %d times", time.Since(before), fs.pageDrops.Load(), k.attrs.Load())
	}
	if in.unpaged.Load() != 0 {
		t.Error("pages count as dropped that were not")
	}
	close(k.slow)
	waiting.Wait()
	if in.unpaged.Load() != 1 {
		t.Error("pages do not count as dropped that were")
	}
}
