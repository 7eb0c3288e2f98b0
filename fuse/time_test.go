package fuse

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// An offMeta is a service whose clock is not that of this machine.
type offMeta struct {
	Meta
	by time.Duration
}

func (m offMeta) Now() meta.Time { return meta.TimeOf(m.Meta.Now().Time().Add(m.by)) }

// A machine whose clock is an hour ahead gives its files the service's time.
func TestTimesAreNotThoseOfTheMachine(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	fs.meta = offMeta{fs.meta, -time.Hour}
	dir := delegated(t, fs, w.mountFS(fs))
	_, other := w.mount("two", Config{})
	check := func(what, name string) {
		t.Helper()
		info, err := os.Stat(name)
		must(t, what, err)
		if ago := time.Since(info.ModTime()); ago < 59*time.Minute || ago > 61*time.Minute {
			t.Errorf("%s: the file's time is %v ago, want an hour", what, ago)
		}
	}
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	must(t, "create", err)
	check("made", name)
	_, err = f.WriteString("x")
	must(t, "write", err)
	check("written", name)
	must(t, "touch", unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}, 0))
	check("touched", name)
	must(t, "close", f.Close())
	check("closed", name)
	check("on the other mount", filepath.Join(other, "d", "f"))
}

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
