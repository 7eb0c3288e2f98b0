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
