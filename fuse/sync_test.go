package fuse

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"
)

func msync(b []byte) error {
	const msSync = 4
	_, _, e := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), msSync)
	if e != 0 {
		return e
	}
	return nil
}

// writeDsync is pwritev2 with RWF_DSYNC.
func writeDsync(f *os.File, p []byte, off int64) error {
	const (
		pwritev2 = 328
		rwfDsync = 2
	)
	v := syscall.Iovec{Base: &p[0], Len: uint64(len(p))}
	n, _, e := syscall.Syscall6(pwritev2, f.Fd(), uintptr(unsafe.Pointer(&v)), 1, uintptr(off), 0, rwfDsync)
	if e != 0 {
		return e
	}
	if int(n) != len(p) {
		return errors.New("short write")
	}
	return nil
}

// What is acknowledged as durable is with the service and the bucket: another
// mount has it while the file is still open here.
func TestSynchronousWritesAreDurableWhenTheyReturn(t *testing.T) {
	write := func(f *os.File, p []byte, off int64) error { _, err := f.WriteAt(p, off); return err }
	add := func(f *os.File, p []byte, _ int64) error { _, err := f.Write(p); return err }
	for _, test := range []struct {
		name  string
		flags int
		write func(f *os.File, p []byte, off int64) error
	}{
		{"O_SYNC", os.O_SYNC, write},
		{"O_DSYNC", syscall.O_DSYNC, write},
		{"O_SYNC and O_APPEND", os.O_SYNC | os.O_APPEND, add},
		{"O_DSYNC and O_APPEND", syscall.O_DSYNC | os.O_APPEND, add},
		{"O_DSYNC and O_DIRECT", syscall.O_DSYNC | syscall.O_DIRECT, write},
		{"RWF_DSYNC", 0, writeDsync},
		{"RWF_DSYNC and O_APPEND", os.O_APPEND, writeDsync},
		{"RWF_DSYNC and O_DIRECT", syscall.O_DIRECT, writeDsync},
		{"fsync", 0, func(f *os.File, p []byte, off int64) error { return errors.Join(write(f, p, off), f.Sync()) }},
		{"fdatasync", 0, func(f *os.File, p []byte, off int64) error {
			return errors.Join(write(f, p, off), syscall.Fdatasync(int(f.Fd())))
		}},
		{"fsync of another descriptor", 0, func(f *os.File, p []byte, off int64) error {
			g, err := os.Open(f.Name())
			if err != nil {
				return err
			}
			return errors.Join(write(f, p, off), g.Sync(), g.Close())
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, a, b := twoMounts(t)
			f, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR|os.O_CREATE|test.flags, 0o644)
			must(t, "open", err)
			defer f.Close()
			data := pattern(2*testBlockSize+100, 1)
			at := int64(0)
			for _, n := range []int{1, 5000, testBlockSize, len(data) - testBlockSize - 5001} {
				must(t, "write", test.write(f, data[at:at+int64(n)], at))
				at += int64(n)
				expect(t, "the other mount", filepath.Join(b, "f"), data[:at])
			}
		})
	}
}

// The same if this mount is gone right after: nothing is flushed.
func TestSynchronousWritesSurviveTheMount(t *testing.T) {
	for name, flags := range map[string]uint32{"O_DSYNC": syscall.O_DSYNC, "O_SYNC": syscall.O_SYNC} {
		w := newWorldOf(t, noInline)
		fs := w.newFS("one", Config{})
		f := fs.createTest(t, name)
		f.flags = syscall.O_RDWR | syscall.O_APPEND | flags
		fs.handles[uint64(f.handle)].flags = f.flags
		data := pattern(testBlockSize+5, 1)
		must(t, "append", f.writeAt(data, 0))
		fs.cancel() // killed
		same(t, name, w.newFS("two", Config{}).openTest(t, name), data)
	}
}

func TestAWriteThatCannotBeDurableFails(t *testing.T) {
	w := newWorldOf(t, small(testBlockSize))
	fs := w.newFS("one", Config{})
	f := fs.createTest(t, "f")
	f.flags = syscall.O_RDWR | syscall.O_APPEND | syscall.O_DSYNC
	fs.handles[uint64(f.handle)].flags = f.flags
	if err := f.writeAt(pattern(2*testBlockSize, 1), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an append that does not fit: %v", err)
	}
	must(t, "close after that was told", f.close())
}

func TestFsyncOfADirectoryIsFree(t *testing.T) {
	w := newWorld(t)
	m, dir := w.counted()
	put(t, filepath.Join(dir, "f"), []byte("x"))
	d, err := os.Open(dir)
	must(t, "open", err)
	defer d.Close()
	if got := m.during(func() { must(t, "fsync", d.Sync()) }); got != "" {
		t.Errorf("it asks for %q", got)
	}
}

// O_DIRECT needs no alignment, and sees and shows what others of the mount do
// through the page cache, and other mounts.
func TestDirectReadsAndWritesAgreeWithOthers(t *testing.T) {
	_, a, b := twoMounts(t)
	name := filepath.Join(a, "f")
	data := pattern(2*testBlockSize, 1)
	put(t, name, data)
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR|flags, 0)
		must(t, "open", err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	files := []*os.File{open(name, syscall.O_DIRECT), open(name, 0), open(filepath.Join(b, "f"), syscall.O_DIRECT), open(filepath.Join(b, "f"), 0)}
	check := func(what string, files []*os.File) {
		t.Helper()
		for i, f := range files {
			got := make([]byte, len(data))
			_, err := f.ReadAt(got[1:], 1) // from no boundary
			got[0] = data[0]
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: file %d reads something else (%v)", what, i, err)
			}
		}
	}
	check("at the start", files)
	for i, f := range files {
		p := pattern(5001, byte(10+i))
		at := 1000*i + 777
		copy(data[at:], p)
		_, err := f.WriteAt(p, int64(at))
		must(t, "write", err)
		mount := files[i/2*2 : i/2*2+2]
		check("on the mount that wrote", mount)
		must(t, "fsync", f.Sync())
		check("everywhere after fsync", files)
	}
}
