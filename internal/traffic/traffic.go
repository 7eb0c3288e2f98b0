// Package traffic is programs at work on mounts of one volume, for tests that do
// something to the cluster meanwhile: they write, sync, and read back by every
// mount, and note whatever fails, is wrong, or takes long.
package traffic

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	files    = 32       // of each mount's writer
	maxSize  = 1 << 20  // of a file, in bytes
	minSize  = 64 << 10 // above what is kept with the metadata
	pause    = 5 * time.Millisecond
	patience = time.Minute // for a call, before it is called hung

	// Slow is how long a call takes that is counted as slow.
	Slow = 500 * time.Millisecond
)

// A Traffic goes on until Stop. On each mount one program writes and one reads.
type Traffic struct {
	t    testing.TB
	dirs []string
	all  []*file
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	report  Report        // since the last Phase; guarded by mu
	total   Report        // guarded by mu
	calls   map[int]*call // under way, by worker; guarded by mu
	failed  int           // errors shown; guarded by mu
	stopped bool          // guarded by mu
}

// A Report is what calls of programs did.
type Report struct {
	Calls   int
	Slow    int // calls that took longer than Slow
	Max     time.Duration
	Slowest string // the call that took Max
	Failed  int    // calls that failed, or read what was not written
}

func (r Report) String() string {
	return fmt.Sprintf("%d calls, %d of them slow, %d failed; the slowest took %v: %s", r.Calls, r.Slow, r.Failed, r.Max.Round(time.Millisecond), r.Slowest)
}

func (r *Report) add(c *call, took time.Duration) {
	r.Calls++
	if took > Slow {
		r.Slow++
	}
	if took > r.Max {
		r.Max, r.Slowest = took, c.String()
	}
}

// A call is a system call of a program.
type call struct {
	verb  string
	path  string
	begin time.Time
}

func (c *call) String() string { return c.verb + " " + c.path }

// A file has one writer, and readers on all mounts. Its contents do not change
// while mu is held for reading.
type file struct {
	name string

	mu   sync.RWMutex
	data []byte
	made bool
}

// Start starts programs on the mounts at dirs, which are of one volume.
func Start(t testing.TB, dirs ...string) *Traffic {
	tr := &Traffic{t: t, dirs: dirs, stop: make(chan struct{}), calls: make(map[int]*call)}
	for i := range dirs {
		for k := range files {
			tr.all = append(tr.all, &file{name: fmt.Sprintf("traffic-%d-%d", i, k)})
		}
	}
	for i, dir := range dirs {
		mine := tr.all[i*files : (i+1)*files]
		tr.work(2*i, func(w *worker) { w.write(dir, mine[w.rand.IntN(files)]) })
		tr.work(2*i+1, func(w *worker) { w.read(dir, tr.all[w.rand.IntN(len(tr.all))]) })
	}
	t.Cleanup(func() { tr.Stop() })
	return tr
}

// work has a worker do something again and again.
func (tr *Traffic) work(id int, do func(*worker)) {
	w := &worker{tr: tr, id: id, rand: rand.New(rand.NewPCG(uint64(id), 1))}
	tr.wg.Go(func() {
		for {
			do(w)
			select {
			case <-tr.stop:
				return
			case <-time.After(pause):
			}
		}
	})
}

// Phase returns what happened since the last Phase, or since the start, and logs
// it under a name.
func (tr *Traffic) Phase(name string) Report {
	tr.t.Helper()
	tr.mu.Lock()
	r := tr.report
	for _, c := range tr.calls { // one that still waits has taken that long already
		if took := time.Since(c.begin); took > r.Max {
			r.Max, r.Slowest = took, c.String()+" (under way)"
		}
	}
	tr.report = Report{}
	tr.mu.Unlock()
	tr.t.Logf("%s: %v", name, r)
	return r
}

// Do waits until the programs have made n more calls.
func (tr *Traffic) Do(n int) {
	tr.t.Helper()
	begin, deadline := tr.Total().Calls, time.Now().Add(patience)
	for tr.Total().Calls < begin+n {
		if time.Now().After(deadline) {
			tr.t.Fatalf("the programs do not make %d calls in %v; %s", n, patience, tr.underWay())
		}
		time.Sleep(time.Millisecond)
	}
}

// Total returns what happened since the start.
func (tr *Traffic) Total() Report {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.total
}

// Stop ends the programs, and returns what happened since the start. The test
// fails if a call hangs; it has failed already if a call did.
func (tr *Traffic) Stop() Report {
	tr.t.Helper()
	tr.mu.Lock()
	if !tr.stopped {
		close(tr.stop)
	}
	tr.stopped = true
	tr.mu.Unlock()
	done := make(chan struct{})
	go func() { tr.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		tr.t.Errorf("after %v there hangs: %s", patience, tr.underWay())
	}
	return tr.Total()
}

func (tr *Traffic) underWay() (s string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for _, c := range tr.calls {
		s += fmt.Sprintf("%v, for %v; ", c, time.Since(c.begin).Round(time.Millisecond))
	}
	return s
}

// Verify reads all files at dir, a mount of the volume. The programs must not be
// writing any more.
func (tr *Traffic) Verify(dir string) {
	tr.t.Helper()
	w := &worker{tr: tr, id: -1}
	for _, f := range tr.all {
		w.readAll(dir, f)
	}
}

// A worker is a program: one thing after another.
type worker struct {
	tr   *Traffic
	id   int
	rand *rand.Rand
}

// maxShown bounds the errors that a test shows.
const maxShown = 20

// do makes a call and notes what came of it.
func (w *worker) do(verb, path string, fn func() error) bool {
	c := &call{verb: verb, path: path, begin: time.Now()}
	tr := w.tr
	tr.mu.Lock()
	tr.calls[w.id] = c
	tr.mu.Unlock()
	err := fn()
	took := time.Since(c.begin)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	delete(tr.calls, w.id)
	tr.report.add(c, took)
	tr.total.add(c, took)
	if err == nil {
		return true
	}
	tr.report.Failed++
	tr.total.Failed++
	if tr.failed++; tr.failed <= maxShown {
		tr.t.Errorf("%s %s, after %v: %v", verb, path, took.Round(time.Millisecond), err)
	}
	return false
}

// write changes a file, and syncs it.
func (w *worker) write(dir string, f *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := filepath.Join(dir, f.name)
	if f.made && w.rand.IntN(8) == 0 {
		if w.do("remove", path, func() error { return os.Remove(path) }) {
			f.made, f.data = false, nil
		}
		return
	}
	off, n := 0, minSize+w.rand.IntN(maxSize-minSize)
	if f.made && w.rand.IntN(2) == 0 { // a part of it, or more
		off = w.rand.IntN(len(f.data))
		n = 1 + w.rand.IntN(min(n, maxSize-off))
	} else {
		f.data = nil
	}
	part := contents(w.rand, n)
	if w.store(path, part, off, f.data == nil) {
		f.made = true
		f.data = append(f.data, make([]byte, max(0, off+n-len(f.data)))...)
		copy(f.data[off:], part)
	}
}

// contents returns bytes that do not compress.
func contents(r *rand.Rand, n int) []byte {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	data := make([]byte, n)
	rand.NewChaCha8(seed).Read(data)
	return data
}

// store writes part at off, all of the file if it is whole, and syncs it.
func (w *worker) store(path string, part []byte, off int, whole bool) (ok bool) {
	flags := os.O_WRONLY | os.O_CREATE
	if whole {
		flags |= os.O_TRUNC
	}
	var f *os.File
	if !w.do("open", path, func() (err error) { f, err = os.OpenFile(path, flags, 0o644); return err }) {
		return false
	}
	ok = w.do("write", path, func() error { _, err := f.WriteAt(part, int64(off)); return err }) &&
		w.do("fsync", path, f.Sync)
	return w.do("close", path, f.Close) && ok
}

// read reads a part of a file, or all of it.
func (w *worker) read(dir string, f *file) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.made || w.rand.IntN(4) == 0 {
		w.compare(dir, f, 0, len(f.data)+1)
		return
	}
	off := w.rand.IntN(len(f.data))
	w.compare(dir, f, off, 1+w.rand.IntN(len(f.data)-off))
}

func (w *worker) readAll(dir string, f *file) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	w.compare(dir, f, 0, len(f.data)+1)
}

// compare reads n bytes of a file from off, past the kernel's cache, and wants
// those that were written.
func (w *worker) compare(dir string, f *file, off, n int) {
	path := filepath.Join(dir, f.name)
	var h *os.File
	ok := w.do("open", path, func() (err error) {
		h, err = os.Open(path)
		if !f.made && os.IsNotExist(err) {
			err = nil
		} else if err == nil && !f.made {
			err = fmt.Errorf("it was removed, and is there")
		}
		return err
	})
	if !ok || h == nil {
		return
	}
	defer h.Close()
	if err := unix.Fadvise(int(h.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil { // the kernel's copies prove nothing
		w.tr.t.Errorf("fadvise: %v", err)
	}
	want := f.data[min(off, len(f.data)):min(off+n, len(f.data))]
	w.do("read", path, func() error {
		got, err := io.ReadAll(io.NewSectionReader(h, int64(off), int64(n)))
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("%d bytes from %d are not the %d that were written%s", len(got), off, len(want), difference(got, want))
		}
		return err
	})
}

// difference says where bytes begin to differ.
func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf(", byte %d is the first that is wrong", i)
		}
	}
	return ""
}
