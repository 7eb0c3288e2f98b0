package posixtest

import (
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var testTime = time.Unix(1_000_000_000, 0)

// The locks of open file descriptions conflict within a process as those of
// fcntl do between two.
func ofd(f *os.File, kind int16, start, length int64) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: length})
}

// soon tries for a while: a kernel may tell a file system of the last close after
// close(2) has returned.
func soon(t *testing.T, what string, f func() error) {
	t.Helper()
	err := f()
	for end := time.Now().Add(5 * time.Second); err == syscall.EAGAIN && time.Now().Before(end); err = f() {
		time.Sleep(time.Millisecond)
	}
	do(t, what, err)
}

var locks = []check{
	{name: "fcntl locks end with any close of the file", run: func(t *testing.T, dir string) {
		a := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		b := open(t, join(dir, "f"), os.O_RDWR)
		c := open(t, join(dir, "f"), os.O_RDWR)
		l := unix.Flock_t{Type: syscall.F_WRLCK, Start: 10, Len: 10}
		do(t, "lock", unix.FcntlFlock(a.Fd(), unix.F_SETLK, &l))
		do(t, "the same process again", unix.FcntlFlock(b.Fd(), unix.F_SETLK, &l))
		refused(t, "another owner", ofd(c, syscall.F_WRLCK, 15, 1), syscall.EAGAIN, syscall.EACCES)
		do(t, "close", b.Close())
		do(t, "another owner after the close", ofd(c, syscall.F_WRLCK, 15, 1))
	}},
	{name: "flock excludes", run: func(t *testing.T, dir string) {
		a := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		b := open(t, join(dir, "f"), os.O_RDWR)
		do(t, "exclusive", syscall.Flock(int(a.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
		refused(t, "a second", syscall.Flock(int(b.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EAGAIN)
		refused(t, "a shared one", syscall.Flock(int(b.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EAGAIN)
		do(t, "to shared", syscall.Flock(int(a.Fd()), syscall.LOCK_SH))
		do(t, "two shared", syscall.Flock(int(b.Fd()), syscall.LOCK_SH|syscall.LOCK_NB))
		do(t, "close", a.Close())
		soon(t, "after the close", func() error { return syscall.Flock(int(b.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) })
	}},
	{name: "flock waits", run: func(t *testing.T, dir string) {
		a := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		b := open(t, join(dir, "f"), os.O_RDWR)
		do(t, "exclusive", syscall.Flock(int(a.Fd()), syscall.LOCK_EX))
		fd := int(b.Fd())
		got := make(chan error, 1)
		go func() { got <- syscall.Flock(fd, syscall.LOCK_EX) }()
		select {
		case err := <-got:
			t.Fatalf("it did not wait: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		do(t, "unlock", syscall.Flock(int(a.Fd()), syscall.LOCK_UN))
		select {
		case err := <-got:
			do(t, "the one that waited", err)
		case <-time.After(10 * time.Second):
			t.Fatal("it waits for ever")
		}
	}},
	{name: "ranges exclude where they overlap", run: func(t *testing.T, dir string) {
		a := open(t, join(dir, "f"), os.O_CREATE|os.O_RDWR)
		b := open(t, join(dir, "f"), os.O_RDWR)
		if err := ofd(a, syscall.F_WRLCK, 0, 100); err == syscall.EINVAL {
			t.Skip("no such locks")
		} else {
			do(t, "lock", err)
		}
		refused(t, "overlapping", ofd(b, syscall.F_WRLCK, 99, 1), syscall.EAGAIN, syscall.EACCES)
		refused(t, "overlapping and shared", ofd(b, syscall.F_RDLCK, 0, 1), syscall.EAGAIN, syscall.EACCES)
		do(t, "beside it", ofd(b, syscall.F_WRLCK, 100, 0))
		do(t, "unlock a part", ofd(a, syscall.F_UNLCK, 50, 50))
		do(t, "in the part", ofd(b, syscall.F_WRLCK, 60, 10))
		refused(t, "in the rest", ofd(b, syscall.F_WRLCK, 40, 5), syscall.EAGAIN, syscall.EACCES)
		q := unix.Flock_t{Type: syscall.F_WRLCK, Start: 0, Len: 10}
		do(t, "F_GETLK", unix.FcntlFlock(b.Fd(), unix.F_OFD_GETLK, &q))
		if q.Type != syscall.F_WRLCK || q.Start != 0 || q.Len != 50 {
			t.Errorf("in the way is %+v, want a write lock of 0..50", q)
		}
		do(t, "close", a.Close())
		soon(t, "after the close", func() error { return ofd(b, syscall.F_WRLCK, 0, 0) })
	}},
}
