package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"flexfs/meta"
)

// makeTree makes directories with files in them, and directories with those in
// them, and returns how many there are.
func makeTree(t *testing.T, root string, depth int) (dirs int) {
	t.Helper()
	must(t, "mkdir", os.Mkdir(root, 0o755))
	for i := range 5 {
		put(t, filepath.Join(root, fmt.Sprint("f", i)), pattern(100, byte(i)))
	}
	if depth == 0 {
		return 1
	}
	for i := range 6 {
		dirs += makeTree(t, filepath.Join(root, fmt.Sprint("d", i)), depth-1)
	}
	return dirs + 1
}

// A program that goes through a tree seldom waits for the service, and asks it no
// more often for that.
func TestATreeIsListedAhead(t *testing.T) {
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	dirs := makeTree(t, filepath.Join(other, "tree"), 3)
	fs, mnt := w.mount("one", Config{})
	asked := fs.Stats().Requests.Load()
	seen := 0
	must(t, "walk", filepath.WalkDir(filepath.Join(mnt, "tree"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			_, err = d.Info()
			seen++
		}
		return err
	}))
	if seen != 5*dirs {
		t.Errorf("%d files seen, want %d", seen, 5*dirs)
	}
	n, ahead := fs.Stats().Requests.Load()-asked, fs.Stats().Pages.Load()
	t.Logf("%d directories, %d requests, %d of them ahead", dirs, n, ahead)
	if n > int64(dirs+20) {
		t.Errorf("%d directories cost %d requests", dirs, n)
	}
	if waited := n - ahead; waited > int64(dirs/4) {
		t.Errorf("%d directories were waited for %d times", dirs, waited)
	}
}

// Where directories were found last may be a circle, if others have moved them.
func TestTheWayUpFromADirectoryEnds(t *testing.T) {
	fs := newWorld(t).newFS("one", Config{})
	dirs := [2]*inode{fs.inode(10), fs.inode(11)}
	for i, in := range dirs {
		in.attr = meta.Attr{Ino: in.ino, Mode: syscall.S_IFDIR, Nlink: 2, Change: 1}
		in.valid, in.parent, in.name = true, dirs[1-i].ino, "d"
		in.listing = &listing{change: 1}
	}
	if next, sure := fs.following(dirs[0]); next != nil || !sure {
		t.Errorf("after the directory comes %v, which is sure: %v", next, sure)
	}
}

// Who comes to directories in another order gets nothing fetched that is not asked
// for, or hardly.
func TestDirectoriesInAnyOrderAreNotListedAhead(t *testing.T) {
	const dirs = 1000
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	for i := range dirs {
		d := filepath.Join(other, stable(i))
		must(t, "mkdir", os.Mkdir(d, 0o755))
		put(t, filepath.Join(d, "f"), nil)
	}
	for name, order := range map[string]func(int) int{
		"backwards": func(i int) int { return dirs - 1 - i },
		"shuffled":  shuffled(dirs),
	} {
		t.Run(name, func(t *testing.T) {
			fs, mnt := w.mount(name, Config{})
			_, err := os.ReadDir(mnt)
			must(t, "list the root", err)
			ahead := fs.Stats().Pages.Load()
			for i := range dirs / 2 {
				_, err := os.ReadDir(filepath.Join(mnt, stable(order(i))))
				must(t, "list", err)
			}
			if n := fs.Stats().Pages.Load() - ahead; n > dirs/10 {
				t.Errorf("%d directories were fetched ahead", n)
			}
		})
	}
}
