package fuse

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// count tells how many listings may still be on their way into the kernel's cache.
func (e *entering) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.readers)
}

func TestTheEndOfAllNamesWaitsForWhoReadsOn(t *testing.T) {
	fs := newWorld(t).newFS("one", Config{})
	k := &connection{fs: fs}
	d, other := &dirHandle{}, &dirHandle{}
	fs.entering.begin(d, 0) // nothing is known of who reads
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
	fs.entering.begin(other, 0) // later than the end: of no concern
	fs.entering.end(d)
	<-ended
	fs.entering.mu.Lock()
	fs.entering.readers[other].since = time.Now().Add(-2 * listingTime)
	fs.entering.mu.Unlock()
	k.AllNames()
	if n := fs.entering.count(); n != 0 {
		t.Errorf("%d listings are waited for that nobody reads on", n)
	}
}

// What a thread does tells whether it has entered what it was given.
func TestWhoHasGoneBackToItsProgramIsNotWaitedFor(t *testing.T) {
	start := func(script string) *reader {
		t.Helper()
		cmd := exec.Command("sh", "-c", script)
		must(t, "start", cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return &reader{since: time.Now(), thread: uint32(cmd.Process.Pid)}
	}
	entered := func(r *reader) bool {
		r.since = time.Now() // however long it takes
		return r.entered()
	}
	comes := func(what string, r *reader) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !entered(r); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s is waited for", what)
			}
		}
	}
	comes("who sleeps", start("exec sleep 1000"))
	busy := start("while :; do :; done")
	comes("who computes", busy)
	if _, ran := threadState(busy.thread); ran-busy.ran <= enterTime {
		t.Errorf("who had run for %v was not waited for after another %v", busy.ran, ran-busy.ran)
	}
	must(t, "stop", syscall.Kill(int(busy.thread), syscall.SIGSTOP))
	comes("who is stopped", &reader{thread: busy.thread})

	// Its clock stands still when it gets no processor.
	must(t, "go on", syscall.Kill(int(busy.thread), syscall.SIGCONT))
	starved := &reader{thread: busy.thread, ran: time.Hour}
	for state := byte(0); state != 'R'; {
		state, _ = threadState(busy.thread)
	}
	for late, want := range map[time.Duration]bool{0: false, 2 * listingTime: false, 2 * starvedTime: true} {
		starved.since = time.Now().Add(-late)
		if got := starved.entered(); got != want {
			t.Errorf("who has had no processor for %v: entered is %t", late, got)
		}
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
