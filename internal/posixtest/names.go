package posixtest

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var names = []check{
	{name: "what is made is there, and what is removed is not", run: func(t *testing.T, dir string) {
		f := join(dir, "f")
		write(t, f, "one")
		same(t, "contents", read(t, f), "one")
		do(t, "unlink", os.Remove(f))
		_, err := os.Stat(f)
		refused(t, "stat of a removed file", err, syscall.ENOENT)
		do(t, "mkdir", os.Mkdir(f, 0o755))
		write(t, join(f, "x"), "")
		refused(t, "rmdir of a full directory", syscall.Rmdir(f), syscall.ENOTEMPTY, syscall.EEXIST)
		refused(t, "unlink of a directory", syscall.Unlink(f), syscall.EISDIR, syscall.EPERM)
		do(t, "unlink", os.Remove(join(f, "x")))
		do(t, "rmdir", syscall.Rmdir(f))
		same(t, "listing", list(t, dir), "")
	}},
	{name: "O_EXCL makes a file once", run: func(t *testing.T, dir string) {
		open(t, join(dir, "f"), os.O_CREATE|os.O_EXCL|os.O_WRONLY)
		_, err := os.OpenFile(join(dir, "f"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		refused(t, "second O_EXCL", err, syscall.EEXIST)
		refused(t, "mkdir", os.Mkdir(join(dir, "f"), 0o755), syscall.EEXIST)
		refused(t, "symlink", os.Symlink("x", join(dir, "f")), syscall.EEXIST)
	}},
	{name: "rename replaces, and the open file lives on", run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "new")
		write(t, b, "old")
		f := open(t, b, os.O_RDWR)
		do(t, "rename", os.Rename(a, b))
		same(t, "the name", read(t, b), "new")
		buf := make([]byte, 10)
		n, _ := f.ReadAt(buf, 0)
		same(t, "the open file", string(buf[:n]), "old")
		_, err := f.WriteAt([]byte("more"), 0)
		do(t, "write to the replaced file", err)
		n, _ = f.ReadAt(buf, 0)
		same(t, "the open file", string(buf[:n]), "more")
		same(t, "the name", read(t, b), "new")
		same(t, "listing", list(t, dir), "b")
	}},
	{name: "rename obeys file types", run: func(t *testing.T, dir string) {
		f, d, full := join(dir, "f"), join(dir, "d"), join(dir, "full")
		write(t, f, "")
		do(t, "mkdir", os.Mkdir(d, 0o755))
		do(t, "mkdir", os.Mkdir(full, 0o755))
		write(t, join(full, "x"), "")
		refused(t, "file over directory", syscall.Rename(f, d), syscall.EISDIR)
		refused(t, "directory over file", syscall.Rename(d, f), syscall.ENOTDIR)
		refused(t, "directory over a full one", syscall.Rename(d, full), syscall.ENOTEMPTY, syscall.EEXIST)
		refused(t, "directory into itself", syscall.Rename(full, join(full, "sub")), syscall.EINVAL)
		do(t, "directory over an empty one", syscall.Rename(full, d))
		same(t, "listing", list(t, d), "x")
	}},
	{name: "renameat2 does not replace, or exchanges", run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "A")
		write(t, b, "B")
		rename := func(flags uint) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
		refused(t, "NOREPLACE", rename(unix.RENAME_NOREPLACE), syscall.EEXIST)
		do(t, "EXCHANGE", rename(unix.RENAME_EXCHANGE))
		same(t, "a and b", read(t, a)+read(t, b), "BA")
		do(t, "unlink", os.Remove(b))
		refused(t, "EXCHANGE with nothing", rename(unix.RENAME_EXCHANGE), syscall.ENOENT)
		do(t, "NOREPLACE", rename(unix.RENAME_NOREPLACE))
		same(t, "listing", list(t, dir), "b")
	}},
	{name: "rename moves between directories", run: func(t *testing.T, dir string) {
		do(t, "mkdir", os.MkdirAll(join(dir, "a/sub"), 0o755))
		do(t, "mkdir", os.Mkdir(join(dir, "b"), 0o755))
		write(t, join(dir, "a/sub/f"), "deep")
		do(t, "rename", os.Rename(join(dir, "a/sub"), join(dir, "b/moved")))
		same(t, "contents", read(t, join(dir, "b/moved/f")), "deep")
		if a, b := stat(t, join(dir, "a")).Nlink, stat(t, join(dir, "b")).Nlink; a != 2 && a != 1 || b != 3 && b != 1 {
			t.Errorf("links of the directories: %d and %d, want 2 and 3", a, b)
		}
		up := stat(t, join(dir, "b/moved/.."))
		if up.Ino != stat(t, join(dir, "b")).Ino {
			t.Error("..of the moved directory is not its new parent")
		}
	}},
	{name: "hard links are one file", run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "one")
		do(t, "link", os.Link(a, b))
		write(t, b, "two!")
		same(t, "the other name", read(t, a), "two!")
		if st := stat(t, a); st.Nlink != 2 || st.Ino != stat(t, b).Ino {
			t.Errorf("inode %d has %d links, and %d is the other's", st.Ino, st.Nlink, stat(t, b).Ino)
		}
		refused(t, "link over a name", os.Link(a, b), syscall.EEXIST)
		do(t, "unlink", os.Remove(a))
		if st := stat(t, b); st.Nlink != 1 {
			t.Errorf("%d links are left, want 1", st.Nlink)
		}
		same(t, "contents", read(t, b), "two!")
		refused(t, "link to a directory", os.Link(dir, join(dir, "d")), syscall.EPERM)
	}},
	{name: "rename of one link over another does nothing", run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "x")
		do(t, "link", os.Link(a, b))
		do(t, "rename", os.Rename(a, b))
		same(t, "listing", list(t, dir), "a b")
	}},
	{name: "symbolic links", run: func(t *testing.T, dir string) {
		l := join(dir, "l")
		do(t, "symlink", os.Symlink("target/that/is/not", l))
		got, err := os.Readlink(l)
		do(t, "readlink", err)
		same(t, "target", got, "target/that/is/not")
		if st := stat(t, l); st.Mode&syscall.S_IFMT != syscall.S_IFLNK || st.Size != int64(len(got)) {
			t.Errorf("mode %o and size %d, want a link of %d bytes", st.Mode, st.Size, len(got))
		}
		_, err = os.Stat(l)
		refused(t, "stat through a dangling link", err, syscall.ENOENT)
		long := strings.Repeat("y", 4095)
		do(t, "symlink with a long target", os.Symlink(long, join(dir, "long")))
		got, err = os.Readlink(join(dir, "long"))
		do(t, "readlink", err)
		same(t, "target", got, long)
		do(t, "symlink", os.Symlink("loop", join(dir, "loop")))
		_, err = os.Stat(join(dir, "loop"))
		refused(t, "a link to itself", err, syscall.ELOOP)
	}},
	{name: "names have up to 255 bytes of any kind", run: func(t *testing.T, dir string) {
		for _, n := range []string{strings.Repeat("n", 255), "\xff\xfe not utf-8", "new\nline", " ", "日本"} {
			write(t, join(dir, n), n)
			same(t, "contents", read(t, join(dir, n)), n)
		}
		_, err := os.Create(join(dir, strings.Repeat("n", 256)))
		refused(t, "a name of 256 bytes", err, syscall.ENAMETOOLONG)
		_, err = os.Stat(join(dir, strings.Repeat("n", 256)))
		refused(t, "stat of a name of 256 bytes", err, syscall.ENAMETOOLONG)
		if n := len(strings.Split(list(t, dir), " ")); n < 5 {
			t.Errorf("%d names are listed, want 5", n)
		}
	}},
	{name: "directories of 5,000 entries list each name once", run: func(t *testing.T, dir string) {
		want := map[string]bool{}
		for i := range 5000 {
			n := fmt.Sprintf("entry-%d", i*7919%5000)
			f, err := os.OpenFile(join(dir, n), os.O_CREATE|os.O_WRONLY, 0o600)
			do(t, "create", err)
			f.Close()
			want[n] = true
		}
		d := open(t, dir, os.O_RDONLY)
		seen := 0
		for {
			ns, err := d.Readdirnames(100)
			for _, n := range ns {
				if !want[n] {
					t.Fatalf("%q is listed twice, or should not be there", n)
				}
				delete(want, n)
				seen++
			}
			if err != nil {
				break
			}
			// What is removed while we list must not hide others.
			do(t, "unlink", os.Remove(join(dir, ns[0])))
		}
		if len(want) != 0 {
			t.Errorf("%d of 5000 names are not listed", len(want))
		}
	}},
	{name: "a listing can be rewound", run: func(t *testing.T, dir string) {
		write(t, join(dir, "a"), "")
		d := open(t, dir, os.O_RDONLY)
		first, _ := d.Readdirnames(-1)
		write(t, join(dir, "b"), "")
		_, err := d.Seek(0, 0)
		do(t, "rewind", err)
		second, _ := d.Readdirnames(-1)
		if len(first) != 1 || len(second) != 2 {
			t.Errorf("listed %v, and after a rewind %v", first, second)
		}
	}},
	{name: "a removed directory that is open is empty", run: func(t *testing.T, dir string) {
		sub := join(dir, "sub")
		do(t, "mkdir", os.Mkdir(sub, 0o755))
		d := open(t, sub, os.O_RDONLY)
		do(t, "rmdir", os.Remove(sub))
		if ns, err := d.Readdirnames(-1); err != nil {
			refused(t, "readdir", err, syscall.ENOENT)
		} else if len(ns) != 0 {
			t.Errorf("it lists %v", ns)
		}
		var st syscall.Stat_t
		do(t, "fstat", syscall.Fstat(int(d.Fd()), &st))
	}},
	{name: "directories count their subdirectories", run: func(t *testing.T, dir string) {
		links := func() uint64 { return uint64(stat(t, dir).Nlink) }
		if links() == 1 {
			t.Skip("this file system does not count")
		}
		do(t, "mkdir", os.Mkdir(join(dir, "a"), 0o755))
		do(t, "mkdir", os.Mkdir(join(dir, "b"), 0o755))
		write(t, join(dir, "f"), "")
		if links() != 4 {
			t.Errorf("%d links with two subdirectories, want 4", links())
		}
		do(t, "rmdir", os.Remove(join(dir, "a")))
		if links() != 3 {
			t.Errorf("%d links with one subdirectory, want 3", links())
		}
	}},
	{name: "paths through files fail", run: func(t *testing.T, dir string) {
		write(t, join(dir, "f"), "")
		_, err := os.Stat(join(dir, "f") + "/x")
		refused(t, "stat below a file", err, syscall.ENOTDIR)
		_, err = os.OpenFile(dir, os.O_WRONLY, 0)
		refused(t, "open of a directory for writing", err, syscall.EISDIR)
		_, err = os.Open(join(dir, "no/x"))
		refused(t, "open below nothing", err, syscall.ENOENT)
	}},
	{name: "pipes and sockets", run: func(t *testing.T, dir string) {
		do(t, "mkfifo", syscall.Mkfifo(join(dir, "p"), 0o640))
		if st := stat(t, join(dir, "p")); st.Mode != syscall.S_IFIFO|0o640 {
			t.Errorf("mode %o, want a pipe with 640", st.Mode)
		}
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		do(t, "socket", err)
		defer syscall.Close(fd)
		do(t, "chdir", os.Chdir(dir)) // socket paths are short
		defer os.Chdir("/")
		do(t, "bind", syscall.Bind(fd, &syscall.SockaddrUnix{Name: "s"}))
		if st := stat(t, join(dir, "s")); st.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
			t.Errorf("mode %o, want a socket", st.Mode)
		}
	}},
	{name: "devices", root: true, run: func(t *testing.T, dir string) {
		do(t, "mknod", syscall.Mknod(join(dir, "n"), syscall.S_IFCHR|0o600, int(unix.Mkdev(259, 100000))))
		if st := stat(t, join(dir, "n")); unix.Major(st.Rdev) != 259 || unix.Minor(st.Rdev) != 100000 {
			t.Errorf("device %d:%d, want 259:100000", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
	}},
}
