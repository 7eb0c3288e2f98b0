package posixtest

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var attributes = []check{
	{name: "times are kept to the nanosecond", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		for _, at := range []time.Time{
			time.Unix(1234567890, 987654321), time.Unix(0, 1), time.Unix(-2, 500_000_000), time.Unix(4102444800, 5),
		} {
			do(t, "utimes", os.Chtimes(name, at, at.Add(time.Second)))
			st := stat(t, name)
			if got := time.Unix(st.Atim.Unix()); !got.Equal(at) {
				t.Errorf("atime %v, want %v", got, at)
			}
			if got := time.Unix(st.Mtim.Unix()); !got.Equal(at.Add(time.Second)) {
				t.Errorf("mtime %v, want %v", got, at.Add(time.Second))
			}
		}
	}},
	{name: "times set after a write survive the close", run: func(t *testing.T, dir string) {
		f := open(t, join(dir, "f"), os.O_CREATE|os.O_WRONLY)
		_, err := f.Write(pattern(100_000, 1))
		do(t, "write", err)
		at := time.Unix(1000, 5)
		do(t, "utimes", os.Chtimes(join(dir, "f"), at, at))
		do(t, "close", f.Close())
		st := stat(t, join(dir, "f"))
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(at) || st.Size != 100_000 {
			t.Errorf("mtime %v and size %d, want %v and 100000", got, st.Size, at)
		}
	}},
	{name: "changes move the times", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		old := time.Unix(1000, 0)
		set := func(n string) { do(t, "utimes", os.Chtimes(n, old, old)) }
		mtime := func(n string) int64 { return stat(t, n).Mtim.Sec }
		set(name)
		set(dir)
		f := open(t, name, os.O_WRONLY)
		_, err := f.Write([]byte("y"))
		do(t, "write", err)
		if mtime(name) == 1000 {
			t.Error("a write leaves mtime alone")
		}
		if mtime(dir) != 1000 {
			t.Error("a write changes the directory's mtime")
		}
		write(t, join(dir, "g"), "")
		if mtime(dir) == 1000 {
			t.Error("a create leaves the directory's mtime alone")
		}
		set(dir)
		do(t, "unlink", os.Remove(join(dir, "g")))
		if mtime(dir) == 1000 {
			t.Error("an unlink leaves the directory's mtime alone")
		}
		do(t, "close", f.Close())
		set(name)
		before := stat(t, name).Ctim
		time.Sleep(20 * time.Millisecond)
		do(t, "chmod", os.Chmod(name, 0o600))
		if st := stat(t, name); st.Mtim.Sec != 1000 || st.Ctim == before {
			t.Error("a chmod must move ctime, and only that")
		}
	}},
	{name: "modes", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		defer syscall.Umask(syscall.Umask(0o027))
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o666)
		do(t, "create", err)
		f.Close()
		if m := stat(t, name).Mode; m != syscall.S_IFREG|0o640 {
			t.Errorf("mode %o with umask 027, want 100640", m)
		}
		for _, m := range []uint32{0, 0o777, 0o4755, 0o1644, 0o400} {
			do(t, "chmod", syscall.Chmod(name, m))
			if got := stat(t, name).Mode & 0o7777; got != m {
				t.Errorf("mode %o, want %o", got, m)
			}
		}
		do(t, "mkdir", syscall.Mkdir(join(dir, "d"), 0o3777))
		if got := stat(t, join(dir, "d")).Mode; got&^0o2000 != syscall.S_IFDIR|0o1750 {
			t.Errorf("directory's mode %o, want 41750", got)
		}
	}},
	{name: "sizes and blocks", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		f := open(t, name, os.O_CREATE|os.O_WRONLY)
		_, err := f.Write(pattern(1<<20, 2))
		do(t, "write", err)
		if st := stat(t, name); st.Size != 1<<20 {
			t.Errorf("size %d before close, want %d", st.Size, 1<<20)
		}
		do(t, "fsync", f.Sync())
		if st := stat(t, name); st.Blocks != 2048 && st.Blocks != 2056 {
			t.Errorf("%d blocks of 512 for 1 MiB, want 2048", st.Blocks)
		}
	}},
	{name: "extended attributes", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		if err := syscall.Setxattr(name, "user.one", []byte("1"), 0); err == syscall.EOPNOTSUPP {
			t.Skip("this file system has none")
		} else {
			do(t, "setxattr", err)
		}
		big := strings.Repeat("v", 3000)
		do(t, "setxattr", syscall.Setxattr(name, "user.two", []byte(big), 0))
		do(t, "setxattr of nothing", syscall.Setxattr(name, "user.none", nil, 0))
		buf := make([]byte, 5000)
		get := func(key string) (string, error) {
			n, err := syscall.Getxattr(name, key, buf)
			return string(buf[:max(n, 0)]), err
		}
		v, err := get("user.two")
		do(t, "getxattr", err)
		same(t, "user.two", v, big)
		v, err = get("user.none")
		do(t, "getxattr", err)
		same(t, "user.none", v, "")
		_, err = get("user.missing")
		refused(t, "getxattr of a missing one", err, unix.ENODATA)
		_, err = syscall.Getxattr(name, "user.two", buf[:10])
		refused(t, "getxattr into too little", err, syscall.ERANGE)
		refused(t, "XATTR_CREATE", syscall.Setxattr(name, "user.one", nil, unix.XATTR_CREATE), syscall.EEXIST)
		refused(t, "XATTR_REPLACE", syscall.Setxattr(name, "user.new", nil, unix.XATTR_REPLACE), unix.ENODATA)
		n, err := syscall.Listxattr(name, buf)
		do(t, "listxattr", err)
		for _, key := range []string{"user.one", "user.two", "user.none"} {
			if !strings.Contains(string(buf[:n]), key+"\x00") {
				t.Errorf("%s is not listed in %q", key, buf[:n])
			}
		}
		do(t, "removexattr", syscall.Removexattr(name, "user.one"))
		refused(t, "removexattr again", syscall.Removexattr(name, "user.one"), unix.ENODATA)
		refused(t, "an unknown namespace", syscall.Setxattr(name, "nosuch.x", nil, 0), syscall.EOPNOTSUPP)
		// It must not end the file system.
		refused(t, "a name without namespace", syscall.Setxattr(name, "a", nil, 0), syscall.EOPNOTSUPP)
		stat(t, name)
	}},
	{name: "trusted extended attributes", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		if err := syscall.Setxattr(name, "trusted.one", []byte("1"), 0); err == syscall.EOPNOTSUPP || err == syscall.EPERM {
			t.Skip("this file system has none, or root is not trusted here")
		} else {
			do(t, "setxattr", err)
		}
		buf := make([]byte, 100)
		n, err := syscall.Getxattr(name, "trusted.one", buf)
		do(t, "getxattr", err)
		same(t, "trusted.one", string(buf[:n]), "1")
		n, err = syscall.Listxattr(name, buf)
		do(t, "listxattr", err)
		if !strings.Contains(string(buf[:n]), "trusted.one\x00") {
			t.Errorf("it is not listed in %q", buf[:n])
		}
		as(1000, 1000, func() {
			_, err := syscall.Getxattr(name, "trusted.one", make([]byte, 100))
			refused(t, "getxattr by a user", err, unix.ENODATA)
		})
		do(t, "removexattr", syscall.Removexattr(name, "trusted.one"))
		_, err = syscall.Getxattr(name, "trusted.one", buf)
		refused(t, "getxattr of one that was removed", err, unix.ENODATA)
	}},
	{name: "statfs", run: func(t *testing.T, dir string) {
		var st syscall.Statfs_t
		do(t, "statfs", syscall.Statfs(dir, &st))
		if st.Bsize == 0 || st.Blocks == 0 || st.Bavail > st.Blocks || st.Namelen != 255 {
			t.Errorf("%+v makes no sense", st)
		}
	}},
}
