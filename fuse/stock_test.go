package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// contents returns how many bytes of small files are in block maps.
func (fs *FS) contents() int64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := int64(0)
	for _, in := range fs.inodes {
		in.mu.Lock()
		if b := in.content.recs[0]; b != nil {
			n += int64(len(b.Data))
		}
		in.mu.Unlock()
	}
	return n
}

// What a mount keeps of small files is bounded, however they came to it, and is
// fetched again when it is gone.
func TestTheContentsOfSmallFilesAreBounded(t *testing.T) {
	const files, size = 400, 16 << 10
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	for name, fill := range map[string]func(dir string){
		"made": func(dir string) {
			for i := range files {
				put(t, filepath.Join(dir, stable(i)), pattern(size, byte(i)))
			}
		},
		"grown": func(dir string) {
			for i := range files {
				put(t, filepath.Join(dir, stable(i)), pattern(100, byte(i)))
				put(t, filepath.Join(dir, stable(i)), pattern(size, byte(i)))
			}
		},
		"looked at one by one": func(dir string) {
			for i := range files {
				put(t, filepath.Join(other, filepath.Base(dir), stable(i)), pattern(size, byte(i)))
			}
			for i := range files {
				expect(t, "a file", filepath.Join(dir, stable((i*7)%files)), pattern(size, byte((i*7)%files)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs, mnt := w.mount(name, Config{Budget: NewBudget(16 << 20)})
			dir := filepath.Join(mnt, fmt.Sprint("d ", name))
			must(t, "mkdir", os.Mkdir(dir, 0o755))
			fill(dir)
			most := fs.budget.max / 8
			if n := fs.contents(); n > most || n < most/2 {
				t.Errorf("%d bytes of contents are kept, want at most %d", n, most)
			}
			for i := range files {
				expect(t, "a file", filepath.Join(dir, stable(i)), pattern(size, byte(i)))
			}
		})
	}
}

// What is kept goes with its file: nothing else is kept alive by it.
func TestTheContentsOfSmallFilesGoWithThem(t *testing.T) {
	w := newWorld(t)
	fs, dir := w.mount("one", Config{})
	for i := range 100 {
		name, temp := filepath.Join(dir, "status"), filepath.Join(dir, "temp")
		put(t, temp, []byte{byte(i)})
		must(t, "rename", os.Rename(temp, name))
	}
	kept := 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		fs.stock.mu.Lock()
		kept = len(fs.stock.of)
		fs.stock.mu.Unlock()
		if kept == 1 {
			return
		}
	}
	t.Errorf("the contents of %d files are kept, and there is one", kept)
}
