package fuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"flexfs/meta"
)

// removeTree is what flexfs rmtree does, but for the waiting.
func removeTree(dir, name string) error {
	return syscall.Setxattr(dir, RemoveTreeXattr, []byte(name), 0)
}

func isGone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

func TestATreeIsRemovedAtOnceOnAllMounts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may remove a tree at once")
	}
	w := newShortWorld(t)
	fs, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	top := filepath.Join(a, "top")
	const dirs, files = 4, 60
	for i := range dirs {
		sub := filepath.Join(top, fmt.Sprint(i), "below")
		must(t, "mkdir", os.MkdirAll(sub, 0o755))
		for j := range files {
			must(t, "create", os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), []byte("x"), 0o644))
		}
	}
	big := filepath.Join(top, "0", "big")
	put(t, big, pattern(2*testBlockSize, 1))
	f, err := os.Open(filepath.Join(b, "top", "0", "big"))
	must(t, "open on the other mount", err)
	defer f.Close()
	must(t, "link", os.Link(filepath.Join(top, "1", "below", "7"), filepath.Join(a, "kept")))
	cwd, err := os.Open(filepath.Join(top, "2"))
	must(t, "open a directory", err)
	defer cwd.Close()

	if err := removeTree(a, "kept"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	if err := removeTree(a, "nothing"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("nothing: %v", err)
	}
	if err := removeTree(a, "a/b"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a path: %v", err)
	}
	must(t, "remove the tree", removeTree(a, "top"))
	if !isGone(filepath.Join(b, "top")) || !isGone(filepath.Join(b, "top", "0", "big")) {
		t.Error("the other mount still has it when the call has returned")
	}
	w.await("end of the name on this mount", func() bool { return isGone(top) })
	must(t, "a new directory of that name", os.Mkdir(top, 0o755))
	got := make([]byte, 2*testBlockSize)
	_, err = f.ReadAt(got, 0)
	must(t, "read what is open", err)
	if string(got) != string(pattern(2*testBlockSize, 1)) {
		t.Error("what is open has other contents")
	}
	used := func() uint64 {
		rep, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpStatfs})
		must(t, "statfs", err)
		return rep.Statfs.Inodes
	}
	w.await("end of all that was in the tree", func() bool { return used() == 3 })
	_, err = cwd.Readdirnames(-1)
	must(t, "list a directory that is gone", err)
	if st, err := os.Stat(filepath.Join(b, "kept")); err != nil || st.Sys().(*syscall.Stat_t).Nlink != 1 {
		t.Errorf("what has another name: %v, %v", st, err)
	}
	must(t, "close", f.Close())
	w.await("deletion of the blocks", func() bool { return w.objects() == 0 })
}

func TestARemovedDirectoryIsForgottenByTheService(t *testing.T) {
	w := newShortWorld(t)
	fs, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "d")
	must(t, "mkdir", os.Mkdir(name, 0o755))
	open, err := os.Open(name)
	must(t, "open", err)
	defer open.Close()
	st, err := os.Stat(name)
	must(t, "stat", err)
	ino := meta.Ino(st.Sys().(*syscall.Stat_t).Ino)
	must(t, "rmdir", os.Remove(name))
	st, err = open.Stat()
	must(t, "fstat of a directory that was removed", err)
	if n := st.Sys().(*syscall.Stat_t).Nlink; n != 0 {
		t.Errorf("it has %d links", n)
	}
	must(t, "close", open.Close())
	w.await("end of the inode", func() bool {
		_, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpGetattr, Ino: ino})
		return refusal(err) == syscall.ENOENT
	})
}
