package fuse

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"flexfs/meta"
	"flexfs/meta/tree"
)

// A quotaWorld is one whose volume has limits that can be changed.
type quotaWorld struct {
	*world
	maxBytes, maxInodes atomic.Uint64
}

func newQuotaWorld(t *testing.T, bytes, inodes uint64) *quotaWorld {
	q := &quotaWorld{}
	q.maxBytes.Store(bytes)
	q.maxInodes.Store(inodes)
	q.world = newWorldOf(t, func(c *tree.Config) {
		was := c.Volumes
		c.Volumes = func(id string) (tree.VolumeConfig, error) {
			v, err := was(id)
			v.MaxBytes, v.MaxInodes = q.maxBytes.Load(), q.maxInodes.Load()
			return v, err
		}
		c.Lease = 1e9 // the service looks at its settings every second, after the first lease
	})
	return q
}

func statfs(t testing.TB, dir string) (st syscall.Statfs_t) {
	t.Helper()
	must(t, "statfs", syscall.Statfs(dir, &st))
	return st
}

// storeFile writes a file, and reports whether it is stored. It fails as a whole or
// not at all.
func storeFile(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if e := f.Sync(); err == nil {
		err = e
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func TestTheQuotaOfBytesIsExactOnTwoMounts(t *testing.T) {
	const blocks = 10
	q := newQuotaWorld(t, blocks*testBlockSize, 0)
	_, a := q.mount("one", Config{})
	_, b := q.mount("two", Config{})
	var stored, full atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			dir := [...]string{a, b}[i%2]
			switch err := storeFile(filepath.Join(dir, fmt.Sprint(i)), pattern(testBlockSize, byte(i))); {
			case err == nil:
				stored.Add(1)
			case errors.Is(err, syscall.ENOSPC):
				full.Add(1)
			default:
				t.Errorf("write: %v", err)
			}
		})
	}
	wg.Wait()
	if stored.Load() != blocks || full.Load() != 16-blocks {
		t.Errorf("%d files are stored, %d found no space", stored.Load(), full.Load())
	}
	if st := statfs(t, a); st.Blocks*uint64(st.Frsize) != blocks*testBlockSize || st.Bfree != 0 || st.Bavail != 0 {
		t.Errorf("df of a full volume: %+v", st)
	}
	removed := 0
	for i := range 16 {
		name := filepath.Join(b, fmt.Sprint(i))
		if st, err := os.Stat(name); err == nil && st.Size() == testBlockSize && removed < 2 {
			must(t, "remove", os.Remove(name))
			removed++
		}
	}
	if st := statfs(t, a); st.Bavail*uint64(st.Frsize) != 2*testBlockSize {
		t.Errorf("df after two were removed: %+v", st)
	}
	must(t, "write into what is free", storeFile(filepath.Join(a, "x"), pattern(2*testBlockSize, 1)))
	wantErrno(t, "write into nothing", storeFile(filepath.Join(a, "y"), pattern(testBlockSize, 1)), syscall.ENOSPC)
	must(t, "overwrite in a full volume", storeFile(filepath.Join(a, "x"), pattern(2*testBlockSize, 2)))
	q.maxBytes.Add(testBlockSize)
	q.await("more space", func() bool { return statfs(t, a).Bavail > 0 })
	must(t, "write into what was added", storeFile(filepath.Join(b, "z"), pattern(testBlockSize, 1)))
	q.maxBytes.Store(0)
	q.await("space without end", func() bool { return statfs(t, a).Bavail > 1<<30 })
}

func TestTheQuotaOfInodesIsExactOnTwoMounts(t *testing.T) {
	const inodes = 20 // the root is one
	q := newQuotaWorld(t, 0, inodes)
	_, a := q.mount("one", Config{})
	_, b := q.mount("two", Config{})
	var made atomic.Int64
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			switch err := os.Mkdir(filepath.Join([...]string{a, b}[i%2], fmt.Sprint(i)), 0o755); {
			case err == nil:
				made.Add(1)
			case !errors.Is(err, syscall.ENOSPC):
				t.Errorf("mkdir: %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != inodes-1 {
		t.Errorf("%d directories were made", made.Load())
	}
	if st := statfs(t, b); st.Files != inodes || st.Ffree != 0 {
		t.Errorf("df -i of a full volume: %+v", st)
	}
	list, err := os.ReadDir(a)
	must(t, "readdir", err)
	must(t, "rmdir", os.Remove(filepath.Join(a, list[0].Name())))
	must(t, "mkdir", os.Mkdir(filepath.Join(b, "again"), 0o755))
	must(t, "a second name in a full volume", func() error {
		if err := os.Remove(filepath.Join(b, "again")); err != nil {
			return err
		}
		put(t, filepath.Join(b, "f"), nil)
		return os.Link(filepath.Join(b, "f"), filepath.Join(b, "g"))
	}())
	wantErrno(t, "one too many", os.Mkdir(filepath.Join(b, "more"), 0o755), syscall.ENOSPC)
}

// du, df and df -i say the same after random work.
func TestWhatFilesTakeIsWhatDfSays(t *testing.T) {
	w := newWorld(t)
	mount, dir := w.mount("one", Config{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	name := func() string { return filepath.Join(dir, fmt.Sprint("d", r.IntN(3)), fmt.Sprint(r.IntN(6))) }
	for i := range 3 {
		must(t, "mkdir", os.Mkdir(filepath.Join(dir, fmt.Sprint("d", i)), 0o755))
	}
	for range 150 {
		switch r.IntN(6) {
		case 0:
			os.Remove(name())
		case 1:
			os.Link(name(), name())
		case 2:
			os.Truncate(name(), r.Int64N(5*testBlockSize))
		default:
			f, err := os.OpenFile(name(), os.O_CREATE|os.O_WRONLY, 0o644)
			must(t, "open", err)
			_, err = f.WriteAt(pattern(1+r.IntN(testBlockSize*3/2), 1), r.Int64N(4*testBlockSize))
			must(t, "write", err)
			must(t, "close", f.Close())
		}
	}
	var bytes, inodes uint64
	seen := map[uint64]bool{}
	must(t, "walk", filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Lstat(path, &st)
		}
		if err == nil && !seen[st.Ino] {
			seen[st.Ino] = true
			inodes++
			bytes += uint64(st.Blocks) * 512
		}
		return err
	}))
	rep, err := mount.meta.Do(t.Context(), &meta.Request{Op: meta.OpStatfs})
	must(t, "statfs", err)
	st := rep.Statfs
	if st.Inodes != inodes {
		t.Errorf("df -i says %d inodes, there are %d", st.Inodes, inodes)
	}
	if bytes < st.Bytes || bytes > st.Bytes+512*inodes {
		t.Errorf("df says %d bytes, du %d (in units of 512)", st.Bytes, bytes)
	}
	df := statfs(t, dir)
	if used := (df.Blocks - df.Bfree) * uint64(df.Frsize); used > st.Bytes+uint64(df.Frsize) || used+uint64(df.Frsize) < st.Bytes {
		t.Errorf("df says %d bytes are used, the service %d", used, st.Bytes)
	}
}
