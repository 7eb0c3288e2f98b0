package fuse

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// make(1) on several machines: a file that is made after another was has a later time,
// whoever made it, and no time that a program has seen goes back.
func TestTimesAreInTheOrderOfWhatHappens(t *testing.T) {
	w := newWorld(t)
	_, one := w.mount("one", Config{})
	_, two := w.mount("two", Config{})
	dirs := [2]string{one, two}
	stat := func(dir, name string) time.Time {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	var last time.Time
	for i := range 40 {
		dir, other := dirs[i%2], dirs[(i+1)%2]
		f, err := os.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		made := stat(dir, "f")
		if _, err := f.Write(make([]byte, 1+i*1000)); err != nil {
			t.Fatal(err)
		}
		written := stat(dir, "f")
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		closed, elsewhere := stat(dir, "f"), stat(other, "f")
		if made.Before(last) || written.Before(made) || !closed.Equal(written) || !elsewhere.Equal(closed) {
			t.Fatalf("round %d: the file of before had %v, this one %v when made, %v when written, %v when closed, %v on the other mount", i, last, made, written, closed, elsewhere)
		}
		last = closed
		if i%3 == 0 { // touch
			if err := os.Chtimes(filepath.Join(other, "f"), time.Time{}, time.Now()); err != nil {
				t.Fatal(err)
			}
			last = stat(dir, "f")
		}
	}
	if off := time.Since(last); off < 0 || off > time.Minute {
		t.Errorf("the last time is %v ago", off)
	}
}
