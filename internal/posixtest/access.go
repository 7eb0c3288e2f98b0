package posixtest

import (
	"os"
	"syscall"
	"testing"
)

const (
	stranger = 54321
	group    = 54322
)

var access = []check{
	{name: "permissions hold for others", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "secret")
		do(t, "chmod", os.Chmod(name, 0o600))
		as(stranger, group, func() {
			_, err := os.ReadFile(name)
			refused(t, "read of a 0600 file", err, syscall.EACCES)
			_, err = os.Create(join(dir, "new"))
			refused(t, "create in a 0755 directory", err, syscall.EACCES)
			refused(t, "unlink", os.Remove(name), syscall.EACCES)
			refused(t, "chmod", os.Chmod(name, 0o777), syscall.EPERM)
			refused(t, "chown", os.Chown(name, stranger, group), syscall.EPERM)
			refused(t, "utimes", os.Chtimes(name, testTime, testTime), syscall.EPERM)
			refused(t, "truncate", os.Truncate(name, 0), syscall.EACCES)
		})
		do(t, "chmod", os.Chmod(name, 0o604))
		as(stranger, group, func() {
			_, err := os.ReadFile(name)
			do(t, "read of a 0604 file", err)
		})
		do(t, "chown", os.Chown(name, 0, group))
		as(stranger, group, func() {
			_, err := os.ReadFile(name)
			refused(t, "read by the group of a 0604 file", err, syscall.EACCES)
		})
	}},
	{name: "what a user makes is the user's", root: true, run: func(t *testing.T, dir string) {
		do(t, "chmod", os.Chmod(dir, 0o777))
		as(stranger, group, func() {
			do(t, "mkdir", os.Mkdir(join(dir, "d"), 0o700))
			f, err := os.Create(join(dir, "d/f"))
			do(t, "create", err)
			f.Close()
		})
		for _, n := range []string{"d", "d/f"} {
			if st := stat(t, join(dir, n)); st.Uid != stranger || st.Gid != group {
				t.Errorf("%s belongs to %d:%d, want %d:%d", n, st.Uid, st.Gid, stranger, group)
			}
		}
	}},
	{name: "sticky directories", root: true, run: func(t *testing.T, dir string) {
		do(t, "chmod", syscall.Chmod(dir, 0o1777))
		write(t, join(dir, "f"), "")
		do(t, "chmod", os.Chmod(join(dir, "f"), 0o666))
		as(stranger, group, func() {
			refused(t, "unlink of another's file", os.Remove(join(dir, "f")), syscall.EPERM, syscall.EACCES)
			refused(t, "rename of another's file", os.Rename(join(dir, "f"), join(dir, "g")), syscall.EPERM, syscall.EACCES)
		})
	}},
	{name: "setgid directories hand on their group", root: true, run: func(t *testing.T, dir string) {
		do(t, "chown", os.Chown(dir, 0, group))
		do(t, "chmod", syscall.Chmod(dir, 0o2775))
		write(t, join(dir, "f"), "")
		do(t, "mkdir", os.Mkdir(join(dir, "d"), 0o755))
		if st := stat(t, join(dir, "f")); st.Gid != group {
			t.Errorf("the file's group is %d, want %d", st.Gid, group)
		}
		if st := stat(t, join(dir, "d")); st.Gid != group || st.Mode&syscall.S_ISGID == 0 {
			t.Errorf("the directory has group %d and mode %o, want %d and setgid", st.Gid, st.Mode, group)
		}
	}},
	{name: "writes and chowns clear set-id bits", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		set := func() { do(t, "chmod", syscall.Chmod(name, 0o6777)) }
		mode := func() uint32 { return stat(t, name).Mode & 0o7777 }
		set()
		as(stranger, group, func() {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			do(t, "open", err)
			_, err = f.Write([]byte("y"))
			do(t, "write", err)
			f.Close()
		})
		if mode() != 0o777 {
			t.Errorf("mode %o after a write, want 777", mode())
		}
		set()
		as(stranger, group, func() { do(t, "truncate", os.Truncate(name, 0)) })
		if mode() != 0o777 {
			t.Errorf("mode %o after a truncate, want 777", mode())
		}
		set()
		do(t, "chown", os.Chown(name, stranger, -1))
		if mode() != 0o777 {
			t.Errorf("mode %o after a chown, want 777", mode())
		}
	}},
}
