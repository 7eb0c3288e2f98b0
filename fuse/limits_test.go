package fuse

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// wantErrno fails the test if an operation was not refused with an errno.
func wantErrno(t testing.TB, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestNamesOfAllBytes(t *testing.T) {
	w := newWorld(t)
	_, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	var names []string
	for i := 1; i < 256; i++ {
		if name := string([]byte{byte(i)}); name != "/" && name != "." {
			names = append(names, name)
		}
	}
	longest := strings.Repeat("\xff", meta.MaxName)
	names = append(names, longest, "\xed\xa0\x80 no UTF-8 \xc0", "..a", "...", " ", "\n\t")
	for _, name := range names {
		must(t, fmt.Sprintf("create %q", name), os.WriteFile(filepath.Join(a)+"/"+name, []byte(name), 0o644))
	}
	for _, name := range names {
		got, err := os.ReadFile(b + "/" + name)
		if err != nil || string(got) != name {
			t.Errorf("on the other mount %q: %q, %v", name, got, err)
		}
	}
	entries, err := os.ReadDir(b)
	must(t, "readdir", err)
	var listed []string
	for _, e := range entries {
		listed = append(listed, e.Name())
	}
	slices.Sort(listed)
	slices.Sort(names)
	names = slices.Compact(names)
	if !slices.Equal(listed, names) {
		t.Errorf("listed are %q, want %q", listed, names)
	}
	tooLong := a + "/" + longest + "x"
	for what, err := range map[string]error{
		"create":      os.WriteFile(tooLong, nil, 0o644),
		"mkdir":       syscall.Mkdir(tooLong, 0o755),
		"mknod":       syscall.Mknod(tooLong, syscall.S_IFIFO|0o644, 0),
		"symlink":     syscall.Symlink("x", tooLong),
		"link":        syscall.Link(a+"/"+longest, tooLong),
		"rename":      syscall.Rename(a+"/"+longest, tooLong),
		"rename from": syscall.Rename(tooLong, a+"/x"),
		"unlink":      syscall.Unlink(tooLong),
		"rmdir":       syscall.Rmdir(tooLong),
		"stat":        syscall.Lstat(tooLong, new(syscall.Stat_t)),
	} {
		wantErrno(t, what+" of a name of 256 bytes", err, syscall.ENAMETOOLONG)
	}
}

func TestATreeOfAThousandLevels(t *testing.T) {
	w := newWorld(t)
	fs, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	const levels = 1200
	name := strings.Repeat("d", 50)
	fd, err := unix.Open(a, unix.O_DIRECTORY, 0)
	must(t, "open", err)
	down := func(make bool) {
		t.Helper()
		for i := range levels {
			if make {
				must(t, fmt.Sprint("mkdir ", i), unix.Mkdirat(fd, name, 0o755))
			}
			next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
			must(t, fmt.Sprint("open ", i), err)
			unix.Close(fd)
			fd = next
		}
	}
	down(true)
	bottom := fd
	must(t, "file at the bottom", func() error {
		f, err := unix.Openat(bottom, "f", unix.O_CREAT|unix.O_RDWR, 0o644)
		unix.Close(f)
		return err
	}())
	_, err = os.Stat(a + strings.Repeat("/"+name, levels))
	wantErrno(t, "a path of 60 KB", err, syscall.ENAMETOOLONG)
	must(t, "rename of the whole", os.Rename(filepath.Join(a, name), filepath.Join(a, "moved")))
	must(t, "rename of the bottom's file", unix.Renameat(bottom, "f", bottom, "g"))
	top, err := unix.Open(a, unix.O_DIRECTORY, 0)
	must(t, "open", err)
	defer unix.Close(top)
	wantErrno(t, "rename below itself", unix.Renameat(top, "moved", bottom, "x"), syscall.EINVAL)
	unix.Close(bottom)

	fd, err = unix.Open(b, unix.O_DIRECTORY, 0)
	must(t, "open on the other mount", err)
	next, err := unix.Openat(fd, "moved", unix.O_DIRECTORY, 0)
	must(t, "open what was moved", err)
	unix.Close(fd)
	fd = next
	for range levels - 1 {
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
		must(t, "open on the other mount", err)
		unix.Close(fd)
		fd = next
	}
	must(t, "stat at the bottom", unix.Fstatat(fd, "g", new(unix.Stat_t), 0))
	unix.Close(fd)
	if _, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpRemoveTree, Ino: meta.Root, Name: "moved"}); err != nil {
		t.Error(err)
	}
}

func TestTheLargestFile(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	defer f.Close()
	must(t, "truncate to the most", f.Truncate(meta.MaxSize))
	wantErrno(t, "truncate beyond", f.Truncate(meta.MaxSize+1), syscall.EFBIG)
	_, err = f.WriteAt([]byte("z"), meta.MaxSize-1)
	must(t, "write of the last byte", err)
	_, err = f.WriteAt([]byte("z"), meta.MaxSize)
	wantErrno(t, "write beyond", err, syscall.EFBIG)
	must(t, "fsync", f.Sync())
	wantErrno(t, "fallocate beyond", unix.Fallocate(int(f.Fd()), 0, meta.MaxSize-10, 20), syscall.EFBIG)
	got := make([]byte, 2)
	if n, _ := f.ReadAt(got, meta.MaxSize-2); n != 2 || got[0] != 0 || got[1] != 'z' {
		t.Errorf("the last bytes are %q", got[:n])
	}
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if must(t, "seek for data", err); at > meta.MaxSize-1 || at < meta.MaxSize-testBlockSize {
		t.Errorf("data begins at %d", at)
	}
	a, err := os.OpenFile(filepath.Join(dir, "f"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, "open", err)
	_, err = a.Write([]byte("more"))
	if err == nil {
		err = a.Sync()
	}
	wantErrno(t, "append to the largest", err, syscall.EFBIG)
	a.Close()
	st, err := f.Stat()
	if must(t, "stat", err); st.Size() != meta.MaxSize || st.Sys().(*syscall.Stat_t).Blocks*512 > testBlockSize {
		t.Errorf("%d bytes in %d blocks", st.Size(), st.Sys().(*syscall.Stat_t).Blocks)
	}
}

func TestXattrsToTheKernelsLimit(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	file := filepath.Join(dir, "f")
	put(t, file, nil)
	largest := pattern(meta.MaxXattr, 1)
	longest := "user." + strings.Repeat("n", meta.MaxName-len("user."))
	must(t, "the largest value", unix.Setxattr(file, longest, largest, 0))
	got := make([]byte, meta.MaxXattr)
	if n, err := unix.Getxattr(file, longest, got); err != nil || !bytes.Equal(got[:n], largest) {
		t.Errorf("read back: %d bytes, %v", n, err)
	}
	_, err := unix.Getxattr(file, longest, make([]byte, 100))
	wantErrno(t, "a small buffer", err, syscall.ERANGE)
	wantErrno(t, "a larger value", unix.Setxattr(file, "user.a", make([]byte, meta.MaxXattr+1), 0), syscall.E2BIG)
	wantErrno(t, "a longer name", unix.Setxattr(file, longest+"x", nil, 0), syscall.ERANGE)
	must(t, "remove", unix.Removexattr(file, longest))
	size, full := 0, error(nil)
	for i := 0; full == nil; i++ {
		name := "user." + fmt.Sprintf("%0250d", i)
		if full = unix.Setxattr(file, name, nil, 0); full == nil {
			size += len(name) + 1
		}
	}
	wantErrno(t, "more names than can be listed", full, syscall.ENOSPC)
	if size < 64<<10-256 {
		t.Errorf("only %d bytes of names could be set", size)
	}
	list := make([]byte, 64<<10)
	if n, err := unix.Listxattr(file, list); err != nil || n != size {
		t.Errorf("listed are %d bytes of %d, %v", n, size, err)
	}
	_, err = unix.Listxattr(file, make([]byte, 100))
	wantErrno(t, "a small list", err, syscall.ERANGE)
}

func TestLongSymbolicLinks(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	_, other := w.mount("two", Config{})
	longest := strings.Repeat("t", meta.MaxTarget)
	must(t, "the longest target", os.Symlink(longest, filepath.Join(dir, "l")))
	if got, err := os.Readlink(filepath.Join(other, "l")); got != longest {
		t.Errorf("it reads as %d bytes, %v", len(got), err)
	}
	wantErrno(t, "a longer one", os.Symlink(longest+"t", filepath.Join(dir, "m")), syscall.ENAMETOOLONG)
	wantErrno(t, "an empty one", os.Symlink("", filepath.Join(dir, "n")), syscall.ENOENT)
}

func TestTimesFarAway(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	_, other := w.mount("two", Config{})
	file := filepath.Join(dir, "f")
	put(t, file, nil)
	for _, want := range []unix.Timespec{
		{Sec: -1, Nsec: 999_999_999}, {Sec: -2_208_988_800, Nsec: 1}, // 1900
		{Sec: -62_135_596_800, Nsec: 5},                                                     // the year 1
		{Sec: 0, Nsec: 0}, {Sec: 1 << 31, Nsec: 7}, {Sec: 9_223_372_037, Nsec: 999_999_999}, // 2262 and later
		{Sec: 16_725_225_600, Nsec: 3}, {Sec: 253_402_300_799, Nsec: 999_999_999}, // 2500, 9999
	} {
		must(t, "set", unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{want, want}, 0))
		for _, path := range []string{file, filepath.Join(other, "f")} {
			var st unix.Stat_t
			must(t, "stat", unix.Stat(path, &st))
			if st.Mtim != want || st.Atim != want {
				t.Errorf("times %v were set, are %v and %v", want, st.Atim, st.Mtim)
			}
		}
	}
}
