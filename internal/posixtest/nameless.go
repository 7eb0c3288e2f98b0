package posixtest

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openNameless is open(2) with O_TMPFILE.
func openNameless(t *testing.T, dir string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_TMPFILE|os.O_RDWR|unix.O_CLOEXEC|flags, 0o640)
	if err == syscall.EOPNOTSUPP {
		t.Skip("this file system has no files without a name")
	}
	do(t, "open with O_TMPFILE", err)
	f := os.NewFile(uintptr(fd), dir+" without a name")
	t.Cleanup(func() { f.Close() })
	return f
}

// giveName is linkat(2) as an ordinary user can do it.
func giveName(f *os.File, name string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

var nameless = []check{
	{name: "a file without a name is a file", run: func(t *testing.T, dir string) {
		f := openNameless(t, dir, 0)
		_, err := f.WriteString("hello")
		do(t, "write", err)
		var st syscall.Stat_t
		do(t, "fstat", syscall.Fstat(int(f.Fd()), &st))
		if st.Nlink != 0 || st.Size != 5 || st.Mode != syscall.S_IFREG|0o640 {
			t.Errorf("%d links, %d bytes, mode %o; want 0, 5, 100640", st.Nlink, st.Size, st.Mode)
		}
		same(t, "the listing", list(t, dir), "")
		do(t, "fchmod", f.Chmod(0o600))
		do(t, "ftruncate", f.Truncate(4))
		do(t, "fsync", f.Sync())
		buf := make([]byte, 10)
		n, _ := f.ReadAt(buf, 0)
		same(t, "contents", string(buf[:n]), "hell")
	}},
	{name: "a file without a name gets one", run: func(t *testing.T, dir string) {
		f := openNameless(t, dir, 0)
		big := pattern(3<<20, 7)
		_, err := f.Write(big)
		do(t, "write", err)
		name := join(dir, "f")
		do(t, "linkat", giveName(f, name))
		if st := stat(t, name); st.Nlink != 1 || st.Size != 3<<20 {
			t.Errorf("%d links, %d bytes; want 1, %d", st.Nlink, st.Size, 3<<20)
		}
		_, err = f.WriteAt([]byte("more"), 0)
		do(t, "write", err)
		copy(big, "more")
		equal(t, "contents", []byte(read(t, name)), big)
		do(t, "close", f.Close())
		equal(t, "contents after close", []byte(read(t, name)), big)
		do(t, "link", os.Link(name, join(dir, "g")))
		do(t, "unlink", os.Remove(name))
		equal(t, "contents of the second name", []byte(read(t, join(dir, "g"))), big)
	}},
	{name: "AT_EMPTY_PATH names an open file", root: true, run: func(t *testing.T, dir string) {
		f := openNameless(t, dir, 0)
		do(t, "linkat", unix.Linkat(int(f.Fd()), "", unix.AT_FDCWD, join(dir, "f"), unix.AT_EMPTY_PATH))
		same(t, "the listing", list(t, dir), "f")
		refused(t, "linkat where a file is", giveName(f, join(dir, "f")), syscall.EEXIST)
	}},
	{name: "a file made without a name for good gets none", run: func(t *testing.T, dir string) {
		f := openNameless(t, dir, os.O_EXCL)
		refused(t, "linkat", giveName(f, join(dir, "f")), syscall.ENOENT)
		same(t, "the listing", list(t, dir), "")
	}},
	{name: "an unlinked file gets no name", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		do(t, "unlink", os.Remove(join(dir, "f")))
		refused(t, "linkat", giveName(f, join(dir, "g")), syscall.ENOENT)
	}},
	{name: "a file without a name needs a directory that may be written", root: true, run: func(t *testing.T, dir string) {
		as(stranger, group, func() {
			_, err := unix.Open(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
			refused(t, "O_TMPFILE in a 0755 directory", err, syscall.EACCES, syscall.EOPNOTSUPP)
		})
		_, err := unix.Open(dir, unix.O_TMPFILE|os.O_RDONLY, 0o600)
		refused(t, "O_TMPFILE for reading", err, syscall.EINVAL)
	}},
}
