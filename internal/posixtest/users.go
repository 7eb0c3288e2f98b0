package posixtest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chowned makes a file that belongs to somebody.
func chowned(t *testing.T, name string, uid, gid int, mode uint32) {
	t.Helper()
	write(t, name, "x")
	do(t, "chown", os.Chown(name, uid, gid))
	do(t, "chmod", syscall.Chmod(name, mode))
}

// modeOf asks for the mode and nothing else, as stat -c %a does.
func modeOf(t *testing.T, name string) uint32 {
	t.Helper()
	var st unix.Statx_t
	do(t, "statx", unix.Statx(unix.AT_FDCWD, name, 0, unix.STATX_MODE, &st))
	return uint32(st.Mode) & 0o7777
}

var users = []check{
	{name: "owner, group and others are told apart", root: true, run: func(t *testing.T, dir string) {
		can := func(name string) string {
			got := ""
			as(stranger, group, func() {
				for _, try := range []struct {
					letter string
					flags  int
				}{{"r", os.O_RDONLY}, {"w", os.O_WRONLY}} {
					if f, err := os.OpenFile(name, try.flags, 0); err == nil {
						f.Close()
						got += try.letter
					}
				}
				if unix.Faccessat2(unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS) == nil {
					got += "x"
				}
			})
			return got
		}
		name := join(dir, "f")
		write(t, name, "x")
		for _, test := range []struct {
			uid, gid int
			mode     uint32
			want     string
		}{
			{stranger, 0, 0o077, ""}, {stranger, 0, 0o700, "rwx"}, {stranger, group, 0o407, "r"},
			{0, group, 0o707, ""}, {0, group, 0o060, "rw"}, {0, group, 0o010, "x"},
			{0, 0, 0o770, ""}, {0, 0, 0o005, "rx"}, {0, 0, 0o002, "w"},
		} {
			do(t, "chown", os.Chown(name, test.uid, test.gid))
			do(t, "chmod", syscall.Chmod(name, test.mode))
			if got := can(name); got != test.want {
				t.Errorf("the user %d may %q a file of %d:%d with mode %o, want %q", stranger, got, test.uid, test.gid, test.mode, test.want)
			}
		}
	}},
	{name: "directories are searched and listed by permission", root: true, run: func(t *testing.T, dir string) {
		sub := join(dir, "d")
		do(t, "mkdir", os.Mkdir(sub, 0o755))
		write(t, join(sub, "f"), "x")
		for _, test := range []struct {
			mode         uint32
			search, list bool
		}{{0o701, true, false}, {0o704, false, true}, {0o705, true, true}, {0o700, false, false}} {
			do(t, "chmod", syscall.Chmod(sub, test.mode))
			as(stranger, group, func() {
				_, err := os.ReadFile(join(sub, "f"))
				if (err == nil) != test.search {
					t.Errorf("read of a file in a directory with mode %o: %v", test.mode, err)
				}
				d, err := os.Open(sub)
				if err == nil {
					_, err = d.Readdirnames(-1)
					d.Close()
				}
				if (err == nil) != test.list {
					t.Errorf("list of a directory with mode %o: %v", test.mode, err)
				}
			})
		}
	}},
	{name: "a sticky directory is for its owner and the files' owners", root: true, run: func(t *testing.T, dir string) {
		do(t, "chmod", syscall.Chmod(dir, 0o1777))
		chowned(t, join(dir, "mine"), stranger, group, 0o600)
		chowned(t, join(dir, "over"), stranger, group, 0o600)
		chowned(t, join(dir, "root's"), 0, 0, 0o666)
		as(stranger, group, func() {
			do(t, "rename over one's own", os.Rename(join(dir, "mine"), join(dir, "over")))
			refused(t, "rename over another's", os.Rename(join(dir, "over"), join(dir, "root's")), syscall.EPERM, syscall.EACCES)
			do(t, "unlink of one's own", os.Remove(join(dir, "over")))
		})
		do(t, "chown", os.Chown(dir, stranger, 0))
		as(stranger, group, func() {
			do(t, "unlink by the directory's owner", os.Remove(join(dir, "root's")))
		})
	}},
	{name: "only owners change attributes", root: true, run: func(t *testing.T, dir string) {
		chowned(t, join(dir, "root's"), 0, 0, 0o666)
		chowned(t, join(dir, "mine"), stranger, group, 0o600)
		now := []syscall.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
		as(stranger, group, func() {
			refused(t, "utimes of another's", os.Chtimes(join(dir, "root's"), testTime, testTime), syscall.EPERM)
			do(t, "touch of what may be written", syscall.UtimesNano(join(dir, "root's"), now))
			refused(t, "chown to another", os.Chown(join(dir, "mine"), 0, -1), syscall.EPERM)
			refused(t, "chgrp to a group that one is not in", os.Chown(join(dir, "mine"), -1, 0), syscall.EPERM)
			do(t, "chgrp to one's group", os.Chown(join(dir, "mine"), -1, group))
			refused(t, "mknod of a device", syscall.Mknod(join(dir, "dev"), syscall.S_IFCHR, 0x103), syscall.EPERM, syscall.EACCES)
			refused(t, "a trusted attribute", syscall.Setxattr(join(dir, "mine"), "trusted.x", nil, 0), syscall.EPERM, syscall.EOPNOTSUPP)
			refused(t, "O_NOATIME of another's", func() error {
				_, err := os.OpenFile(join(dir, "root's"), os.O_RDONLY|unix.O_NOATIME, 0)
				return err
			}(), syscall.EPERM)
		})
	}},
	{name: "set-id bits go with what users do, and not with what root does", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		other := join(dir, "other")
		write(t, other, string(pattern(1000, 1)))
		onFile := func(what string, f func(*os.File) error) func() error {
			return func() error {
				file, err := os.OpenFile(name, os.O_RDWR, 0)
				do(t, "open for "+what, err)
				defer file.Close()
				return f(file)
			}
		}
		for _, test := range []struct {
			what string
			f    func() error
		}{
			{"write", onFile("write", func(f *os.File) error { _, err := f.Write([]byte("y")); return err })},
			{"pwrite behind the end", onFile("pwrite", func(f *os.File) error { _, err := f.WriteAt([]byte("y"), 100_000); return err })},
			{"direct write", func() error {
				f, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
				if errors.Is(err, syscall.EINVAL) {
					return os.Truncate(name, 0) // this file system has none
				}
				do(t, "open for a direct write", err)
				defer f.Close()
				_, err = f.WriteAt(aligned(4096), 0)
				return err
			}},
			{"ftruncate", onFile("ftruncate", func(f *os.File) error { return f.Truncate(1) })},
			{"truncate", func() error { return os.Truncate(name, 3) }},
			{"fallocate", onFile("fallocate", func(f *os.File) error { return syscall.Fallocate(int(f.Fd()), 0, 0, 200_000) })},
			{"copy_file_range", onFile("copy_file_range", func(f *os.File) error {
				src, err := os.Open(other)
				do(t, "open", err)
				defer src.Close()
				_, err = unix.CopyFileRange(int(src.Fd()), nil, int(f.Fd()), nil, 1000, 0)
				return err
			})},
			{"O_TRUNC", func() error {
				f, err := os.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
				if err == nil {
					f.Close()
				}
				return err
			}},
		} {
			for _, bits := range []struct {
				gid           int
				before, after uint32
			}{{group, 0o6777, 0o777}, {group, 0o4666, 0o666}, {group, 0o2676, 0o676}, {group, 0o2666, 0o2666}, {0, 0o6666, 0o666}} {
				chowned(t, name, stranger, bits.gid, bits.before)
				do(t, test.what, test.f())
				if got := modeOf(t, name); got != bits.before {
					t.Errorf("mode %o after a %s by root, want %o", got, test.what, bits.before)
				}
				as(stranger, group, func() { do(t, test.what, test.f()) })
				if got := modeOf(t, name); got != bits.after {
					t.Errorf("mode %o after a %s by a user, it was %o, want %o", got, test.what, bits.before, bits.after)
				}
			}
		}
		chowned(t, name, stranger, group, 0o6755)
		as(stranger, group, func() { do(t, "chgrp", os.Chown(name, -1, group)) })
		if got := modeOf(t, name); got != 0o755 {
			t.Errorf("mode %o after a chgrp, want 755", got)
		}
		do(t, "chmod", syscall.Chmod(dir, 0o6777))
		do(t, "chown of a directory", os.Chown(dir, stranger, group))
		if got := modeOf(t, dir); got != 0o6777 {
			t.Errorf("mode %o of a directory after a chown, want 6777", got)
		}
	}},
	{name: "a program that changes has no capabilities any more", root: true, run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		const capability = "security.capability"
		// Version 2, effective; CAP_NET_RAW permitted.
		value := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		for what, f := range map[string]func() error{
			"a write": func() error {
				f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
				do(t, "open", err)
				defer f.Close()
				_, err = f.WriteString("more")
				return err
			},
			"a truncate": func() error { return os.Truncate(name, 0) },
			"a chown":    func() error { return os.Chown(name, stranger, -1) },
		} {
			write(t, name, "x")
			do(t, "set", syscall.Setxattr(name, capability, value, 0))
			do(t, "set another", syscall.Setxattr(name, "security.posixtest", []byte("x"), 0))
			do(t, what, f())
			_, err := syscall.Getxattr(name, capability, make([]byte, 100))
			refused(t, "getxattr after "+what, err, unix.ENODATA)
			_, err = syscall.Getxattr(name, "security.posixtest", make([]byte, 100))
			do(t, "getxattr of another after "+what, err)
		}
	}},
	{name: "a setgid file is not made for a group that one is not in", root: true, run: func(t *testing.T, dir string) {
		do(t, "chmod", syscall.Chmod(dir, 0o2777))
		as(stranger, group, func() {
			fd, err := syscall.Open(join(dir, "f"), os.O_CREATE|os.O_WRONLY, 0o2755)
			do(t, "create", err)
			syscall.Close(fd)
		})
		if st := stat(t, join(dir, "f")); st.Gid != 0 || st.Mode&syscall.S_ISGID != 0 {
			t.Errorf("group %d and mode %o, want 0 and no setgid", st.Gid, st.Mode)
		}
	}},
	{name: "a program that runs is not written", run: func(t *testing.T, dir string) {
		src, err := exec.LookPath("sleep")
		do(t, "find a program", err)
		b, err := os.ReadFile(src)
		do(t, "read", err)
		name := join(dir, "sleep")
		do(t, "write", os.WriteFile(name, b, 0o755))
		w := open(t, name, os.O_WRONLY)
		refused(t, "exec of a file that is open for writing", exec.Command(name, "0").Run(), syscall.ETXTBSY)
		do(t, "close", w.Close())
		cmd := exec.Command(name, "60")
		do(t, "start", cmd.Start())
		_, err = os.OpenFile(name, os.O_WRONLY, 0)
		refused(t, "open for writing of a file that runs", err, syscall.ETXTBSY)
		do(t, "kill", cmd.Process.Kill())
		cmd.Wait()
		do(t, "run", exec.Command(name, "0").Run())
	}},
	{name: "a set-user-ID program runs as its owner", root: true, run: func(t *testing.T, dir string) {
		src, err := exec.LookPath("id")
		do(t, "find a program", err)
		b, err := os.ReadFile(src)
		do(t, "read", err)
		name := join(dir, "id")
		do(t, "write", os.WriteFile(name, b, 0o755))
		do(t, "chown", os.Chown(name, stranger, -1))
		do(t, "chmod", syscall.Chmod(name, 0o4755))
		var st syscall.Statfs_t
		do(t, "statfs", syscall.Statfs(dir, &st))
		if st.Flags&unix.ST_NOSUID != 0 {
			t.Skip("it is mounted with nosuid")
		}
		out, err := exec.Command(name, "-u").Output()
		do(t, "run", err)
		same(t, "its user", string(out), "54321\n")
	}},
	{name: "pipes carry data between opens", run: func(t *testing.T, dir string) {
		name := join(dir, "p")
		do(t, "mkfifo", syscall.Mkfifo(name, 0o600))
		go func() {
			if w, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
				io.WriteString(w, "through")
				w.Close()
			}
		}()
		same(t, "what came", read(t, name), "through")
	}},
	{name: "times beyond 2038 and before 1970", run: func(t *testing.T, dir string) {
		name := join(dir, "f")
		write(t, name, "x")
		for _, at := range []time.Time{time.Unix(1<<31+5, 999_999_999), time.Unix(-1, 1), time.Unix(-1<<31, 0)} {
			do(t, "utimes", os.Chtimes(name, at, at))
			st := stat(t, name)
			if got := time.Unix(st.Mtim.Unix()); !got.Equal(at) {
				t.Errorf("mtime %v, want %v", got, at)
			}
		}
		do(t, "utimes", syscall.UtimesNano(name, []syscall.Timespec{{Sec: 7, Nsec: 8}, {Nsec: unix.UTIME_OMIT}}))
		st := stat(t, name)
		if st.Atim.Sec != 7 || st.Atim.Nsec != 8 || st.Mtim.Sec != -1<<31 {
			t.Errorf("atime %v and mtime %v; want 7.8 and the one before", st.Atim, st.Mtim)
		}
	}},
}
