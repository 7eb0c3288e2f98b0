package fuse

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Linux would let both wait for ever. A mount is not told which locks are of open
// files, so the second is refused.
func TestOpenFilesThatWaitInACircleAreRefused(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "f")
	put(t, name, make([]byte, 2))
	lock := func(f *os.File, typ int16, at int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: typ, Start: at, Len: 1})
	}
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, "open", err)
		defer f.Close()
		must(t, "lock", lock(f, unix.F_WRLCK, int64(i)))
		files[i] = f
	}
	first := make(chan error, 1)
	go func() { first <- lock(files[0], unix.F_WRLCK, 1) }()
	select {
	case err := <-first:
		t.Fatalf("the first does not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	second := make(chan error, 1)
	go func() { second <- lock(files[1], unix.F_WRLCK, 0) }()
	select {
	case err := <-second:
		if err != unix.EDEADLK {
			t.Errorf("the second: %v, want EDEADLK", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the second waits, too")
	}
	must(t, "unlock", lock(files[1], unix.F_UNLCK, 1))
	must(t, "the first", <-first)
}
