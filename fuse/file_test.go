package fuse

import (
	"context"
	"os"
	"reflect"
	"syscall"
	"testing"

	"github.com/jacobsa/fuse/fuseops"
)

// A testFile is an open file of an FS that is not mounted: its methods are the
// kernel's requests.
type testFile struct {
	t      testing.TB
	fs     *FS
	ino    fuseops.InodeID
	handle fuseops.HandleID
	flags  uint32
}

// do asks as the kernel does.
func (fs *FS) do(op any) error {
	c := fs.newCall(context.Background(), func() {})
	defer c.end(true)
	return c.handle(op)
}

func (fs *FS) createTest(t testing.TB, name string) *testFile {
	t.Helper()
	op := &fuseops.CreateFileOp{Parent: fuseops.RootInodeID, Name: name, Mode: 0o644, OpenFlags: syscall.O_RDWR}
	must(t, "create", fs.do(op))
	return &testFile{t, fs, op.Entry.Child, op.Handle, syscall.O_RDWR}
}

func (fs *FS) openTest(t testing.TB, name string) *testFile {
	t.Helper()
	look := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: name}
	must(t, "look up", fs.do(look))
	return (&testFile{t: t, fs: fs, ino: look.Entry.Child}).again()
}

// again opens the file once more.
func (f *testFile) again() *testFile {
	f.t.Helper()
	op := &fuseops.OpenFileOp{Inode: f.ino, OpenFlags: syscall.O_RDWR}
	must(f.t, "open", f.fs.do(op))
	return &testFile{f.t, f.fs, f.ino, op.Handle, syscall.O_RDWR}
}

func (f *testFile) writeAt(p []byte, off int64) error {
	op := &fuseops.WriteFileOp{Inode: f.ino, Handle: f.handle, Offset: off, Data: p}
	reflect.ValueOf(&op.OpenFlags).Elem().SetUint(uint64(f.flags)) // its type is internal to the library
	return f.fs.do(op)
}

func (f *testFile) readAt(n int, off int64) ([]byte, error) {
	var out []byte
	for n > 0 {
		op := &fuseops.ReadFileOp{Inode: f.ino, Handle: f.handle, Offset: off, Size: int64(min(n, 1<<20))}
		if err := f.fs.do(op); err != nil || op.BytesRead == 0 {
			return out, err
		}
		for _, p := range op.Data {
			out = append(out, p...)
		}
		off, n = off+int64(op.BytesRead), n-op.BytesRead
	}
	return out, nil
}

func (f *testFile) fallocate(mode uint32, off, n int64) error {
	return f.fs.do(&fuseops.FallocateOp{Inode: f.ino, Handle: f.handle, Mode: mode, Offset: uint64(off), Length: uint64(n)})
}

func (f *testFile) truncate(size int64) error {
	to := uint64(size)
	return f.fs.do(&fuseops.SetInodeAttributesOp{Inode: f.ino, Handle: &f.handle, Size: &to})
}

func (f *testFile) sync() error {
	return f.fs.do(&fuseops.SyncFileOp{Inode: f.ino, Handle: f.handle})
}

func (f *testFile) flush() error {
	return f.fs.do(&fuseops.FlushFileOp{Inode: f.ino, Handle: f.handle})
}

func (f *testFile) close() error {
	err := f.flush()
	if e := f.fs.do(&fuseops.ReleaseFileHandleOp{Inode: f.ino, Handle: f.handle}); err == nil {
		err = e
	}
	return err
}

func (f *testFile) seek(off int64, whence uint32) (int64, error) {
	op := &fuseops.LseekOp{Inode: f.ino, Handle: f.handle, Offset: uint64(off), Whence: whence}
	err := f.fs.do(op)
	return int64(op.Result), err
}

// stat returns the size, and what is stored in units of 512 bytes.
func (f *testFile) stat() (size, blocks int64) {
	f.t.Helper()
	op := &fuseops.GetInodeAttributesOp{Inode: f.ino}
	must(f.t, "stat", f.fs.do(op))
	return int64(op.Attributes.Size), int64(op.Attributes.Blocks)
}

// A mountedFile is the same through the kernel.
type mountedFile struct {
	t testing.TB
	*os.File
}

func (f mountedFile) writeAt(p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	return err
}

func (f mountedFile) readAt(n int, off int64) ([]byte, error) {
	p := make([]byte, n)
	k := 0
	for k < n {
		m, err := syscall.Pread(int(f.Fd()), p[k:], off+int64(k))
		if err != nil {
			return p[:k], err
		}
		if m == 0 {
			break
		}
		k += m
	}
	return p[:k], nil
}

func (f mountedFile) fallocate(mode uint32, off, n int64) error {
	return syscall.Fallocate(int(f.Fd()), mode, off, n)
}

func (f mountedFile) truncate(size int64) error { return f.Truncate(size) }
func (f mountedFile) sync() error               { return f.Sync() }

func (f mountedFile) seek(off int64, whence uint32) (int64, error) {
	return syscall.Seek(int(f.Fd()), off, int(whence))
}

func (f mountedFile) stat() (size, blocks int64) {
	f.t.Helper()
	var st syscall.Stat_t
	must(f.t, "stat", syscall.Fstat(int(f.Fd()), &st))
	return st.Size, st.Blocks
}
