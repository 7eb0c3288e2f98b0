package posixtest

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// birth is the time at which a file was made, as statx(2) tells it.
func birth(t *testing.T, name string) time.Time {
	t.Helper()
	var st unix.Statx_t
	do(t, "statx", unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
	if st.Mask&unix.STATX_BTIME == 0 {
		t.Skip("this file system does not know when files were made")
	}
	plain := stat(t, name)
	if st.Ino != plain.Ino || st.Size != uint64(plain.Size) || uint32(st.Mode) != plain.Mode || uint64(st.Nlink) != uint64(plain.Nlink) ||
		st.Uid != plain.Uid || st.Gid != plain.Gid || st.Blocks != uint64(plain.Blocks) || st.Blksize != uint32(plain.Blksize) ||
		st.Mtime.Sec != plain.Mtim.Sec || st.Mtime.Nsec != uint32(plain.Mtim.Nsec) || st.Ctime.Sec != plain.Ctim.Sec ||
		unix.Mkdev(st.Rdev_major, st.Rdev_minor) != plain.Rdev {
		t.Errorf("statx says %+v, stat %+v", st, plain)
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec))
}

const (
	noReplace = unix.RENAME_NOREPLACE
	exchange  = unix.RENAME_EXCHANGE
	whiteout  = unix.RENAME_WHITEOUT
)

func rename2(from, to string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
}

var births = []check{
	{name: "the time of birth stays", run: func(t *testing.T, dir string) {
		const slack = 2 * time.Second // some clocks tick slowly
		name := join(dir, "f")
		before := time.Now().Add(-slack)
		write(t, name, "x")
		after := time.Now().Add(slack)
		born := birth(t, name)
		if born.Before(before) || born.After(after) {
			t.Errorf("born at %v, made between %v and %v", born, before, after)
		}
		time.Sleep(20 * time.Millisecond)
		old := time.Unix(1000, 5)
		do(t, "utimes", os.Chtimes(name, old, old))
		do(t, "chmod", os.Chmod(name, 0o600))
		do(t, "rename", os.Rename(name, join(dir, "g")))
		write(t, join(dir, "g"), "more")
		if got := birth(t, join(dir, "g")); !got.Equal(born) {
			t.Errorf("born at %v after changes, it was %v", got, born)
		}
		do(t, "mkdir", os.Mkdir(join(dir, "d"), 0o755))
		birth(t, join(dir, "d"))
		do(t, "symlink", os.Symlink("g", join(dir, "l")))
		birth(t, join(dir, "l"))
	}},
	{name: "renames with flags", run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "a")
		write(t, b, "b")
		refused(t, "NOREPLACE over a file", rename2(a, b, noReplace), syscall.EEXIST)
		do(t, "NOREPLACE", rename2(a, join(dir, "c"), noReplace))
		refused(t, "EXCHANGE with nothing", rename2(b, a, exchange), syscall.ENOENT)
		do(t, "mkdir", os.Mkdir(a, 0o755))
		write(t, join(a, "x"), "x")
		do(t, "EXCHANGE of a file and a directory", rename2(a, b, exchange))
		same(t, "the file", read(t, a), "b")
		same(t, "the directory", list(t, b), "x")
		refused(t, "both", rename2(a, b, noReplace|exchange), syscall.EINVAL)
		refused(t, "EXCHANGE with a directory's own", rename2(b, join(b, "x"), exchange), syscall.EINVAL)
	}},
	{name: "a rename leaves a whiteout", root: true, run: func(t *testing.T, dir string) {
		a, b := join(dir, "a"), join(dir, "b")
		write(t, a, "a")
		err := rename2(a, b, whiteout)
		if errors.Is(err, syscall.EINVAL) {
			t.Skip("this file system leaves none")
		}
		do(t, "WHITEOUT", err)
		same(t, "the file", read(t, b), "a")
		if st := stat(t, a); st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 || st.Nlink != 1 {
			t.Errorf("mode %o, device %d, %d links; want a character device 0", st.Mode, st.Rdev, st.Nlink)
		}
		write(t, join(dir, "c"), "c")
		do(t, "WHITEOUT over a file", rename2(b, join(dir, "c"), whiteout))
		same(t, "the file", read(t, join(dir, "c")), "a")
		same(t, "the listing", list(t, dir), "a b c")
		refused(t, "NOREPLACE|WHITEOUT over a whiteout", rename2(join(dir, "c"), a, whiteout|noReplace), syscall.EEXIST)
		refused(t, "EXCHANGE|WHITEOUT", rename2(join(dir, "c"), a, whiteout|exchange), syscall.EINVAL)
	}},
}
