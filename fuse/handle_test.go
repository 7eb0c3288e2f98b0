package fuse

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Handles are for ever: another mount, which never saw the file, opens it.
func TestFilesAreOpenedByTheirHandles(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to open by handle")
	}
	_, a, b := twoMounts(t)
	must(t, "mkdir", os.MkdirAll(filepath.Join(a, "d/e"), 0o755))
	put(t, filepath.Join(a, "d/e/f"), []byte("contents"))
	put(t, filepath.Join(a, "d/e/g"), []byte("x"))
	handle := func(name string) unix.FileHandle {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(a, name), 0)
		must(t, "name_to_handle_at "+name, err)
		return h
	}
	file, dir, gone := handle("d/e/f"), handle("d/e"), handle("d/e/g")
	must(t, "unlink", os.Remove(filepath.Join(a, "d/e/g")))
	for _, top := range []string{a, b} {
		mount, err := os.Open(top)
		must(t, "open", err)
		defer mount.Close()
		fd, err := unix.OpenByHandleAt(int(mount.Fd()), file, os.O_RDONLY)
		must(t, "open_by_handle_at", err)
		f := os.NewFile(uintptr(fd), "by handle")
		buf := make([]byte, 20)
		n, _ := f.Read(buf)
		if string(buf[:n]) != "contents" {
			t.Errorf("it reads %q", buf[:n])
		}
		f.Close()
		fd, err = unix.OpenByHandleAt(int(mount.Fd()), dir, os.O_RDONLY|unix.O_DIRECTORY)
		must(t, "open_by_handle_at of a directory", err)
		d := os.NewFile(uintptr(fd), "by handle")
		names, err := d.Readdirnames(-1)
		must(t, "readdir", err)
		if len(names) != 1 || names[0] != "f" {
			t.Errorf("it lists %v", names)
		}
		var up unix.Stat_t
		must(t, "stat of its parent", unix.Fstatat(fd, "..", &up, 0))
		if st, err := os.Stat(filepath.Join(top, "d")); err != nil || st.Sys().(*syscall.Stat_t).Ino != up.Ino {
			t.Errorf("its parent is inode %d: %v", up.Ino, err)
		}
		d.Close()
		if _, err := unix.OpenByHandleAt(int(mount.Fd()), gone, os.O_RDONLY); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("a file that was removed: %v, want ESTALE", err)
		}
	}
	if err := os.Remove(filepath.Join(b, "d/e/f")); err != nil { // the names are as they were
		t.Error(err)
	}
}
