package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// count tells how many listings may still be on their way into the kernel's cache.
func (e *entering) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.since)
}

func TestTheEndOfAllNamesWaitsForWhoReadsOn(t *testing.T) {
	fs := newWorld(t).newFS("one", Config{})
	k := &connection{fs: fs}
	d, other := &dirHandle{}, &dirHandle{}
	fs.entering.begin(d)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.AllNames()
	}()
	select {
	case <-ended:
		t.Fatal("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	fs.entering.begin(other) // later than the end: of no concern
	fs.entering.end(d)
	<-ended
	fs.entering.mu.Lock()
	fs.entering.since[other] = time.Now().Add(-2 * listingTime)
	fs.entering.mu.Unlock()
	k.AllNames()
	if n := fs.entering.count(); n != 0 {
		t.Errorf("%d listings are waited for that nobody reads on", n)
	}
}

// An old kernel keeps what it is entering, whether it is waited for or not.
func TestAnOldKernelIsNotWaitedFor(t *testing.T) {
	fs := newWorld(t).newFS("one", Config{})
	k := &connection{fs: fs}
	k.old.Store(true)
	fs.entering.begin(&dirHandle{})
	if began := time.Now(); k.allNames() || time.Since(began) >= listingTime {
		t.Errorf("it was waited for %v", time.Since(began))
	}
}

// Who makes something in a directory may be who holds up its readers.
func TestAReaderOfADirectoryThatIsAlteredIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	fs, dir := w.mount("one", Config{})
	must(t, "mkdir", os.Mkdir(filepath.Join(dir, "d"), 0o755))
	for i := range 300 {
		must(t, "make", os.WriteFile(filepath.Join(dir, "d", fmt.Sprint(i)), nil, 0o644))
	}
	for what, alter := range map[string]func() error{
		"mkdir":  func() error { return os.Mkdir(filepath.Join(dir, "d", "new"), 0o755) },
		"rmdir":  func() error { return os.Remove(filepath.Join(dir, "d", "new")) },
		"create": func() error { return os.WriteFile(filepath.Join(dir, "d", "file"), nil, 0o644) },
		"rename": func() error { return os.Rename(filepath.Join(dir, "d", "1"), filepath.Join(dir, "one")) },
	} {
		if what == "rmdir" {
			os.Mkdir(filepath.Join(dir, "d", "new"), 0o755)
		}
		d, err := os.Open(filepath.Join(dir, "d"))
		must(t, "open", err)
		_, err = d.Readdirnames(1)
		must(t, "read", err)
		if fs.entering.count() == 0 {
			t.Errorf("%s: nothing is being entered", what)
		}
		must(t, what, alter())
		if n := fs.entering.count(); n != 0 {
			t.Errorf("%s: %d listings are being entered", what, n)
		}
		must(t, "close", d.Close())
		os.Remove(filepath.Join(dir, "d", "new"))
	}
}

func TestWhoReadsADirectoryToItsEndIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	fs, dir := w.mount("one", Config{})
	for i := range 300 {
		must(t, "make", os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
	}
	d, err := os.Open(dir)
	must(t, "open", err)
	_, err = d.Readdirnames(1)
	must(t, "read", err)
	if n := fs.entering.count(); n != 1 {
		t.Errorf("%d listings are being entered, want 1", n)
	}
	_, err = d.Readdirnames(-1)
	must(t, "read", err)
	if n := fs.entering.count(); n != 0 {
		t.Errorf("%d listings are being entered after the end", n)
	}
	_, err = d.Seek(0, 0)
	must(t, "rewind", err)
	_, err = d.Readdirnames(1)
	must(t, "read", err)
	must(t, "close", d.Close())
	for end := time.Now().Add(10 * time.Second); fs.entering.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a listing is being entered after its directory was closed")
		}
	}
}
