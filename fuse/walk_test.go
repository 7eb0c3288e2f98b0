package fuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// A programs that looks at all files of a directory, without listing it, costs a
// request for the first ones and then one for many.
func TestALookAtEveryFileCostsFewRequests(t *testing.T) {
	const files = 10_000
	for name, test := range map[string]struct {
		order   func(i int) int
		threads int
		most    int64
	}{
		"in the order of names":           {func(i int) int { return i }, 1, 20},
		"in the order of names, by eight": {func(i int) int { return i }, 8, 60},
		"in any order":                    {shuffled(files), 1, files/walkWorth + 50},
		"in any order, by eight":          {shuffled(files), 8, files/walkWorth + 80},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			makeMany(t, w.newFS("other", Config{}), "d", files)
			fs, dir := w.mount("one", Config{})
			asked := fs.Stats().Requests.Load()
			each(test.threads, files, func(i int) {
				if _, err := os.Lstat(filepath.Join(dir, "d", stable(test.order(i)))); err != nil {
					t.Error(err)
				}
			})
			if n := fs.Stats().Requests.Load() - asked; n > test.most {
				t.Errorf("a look at %d files costs %d requests, want at most %d", files, n, test.most)
			}
		})
	}
}

func shuffled(n int) func(int) int {
	p := rand.Perm(n)
	return func(i int) int { return p[i] }
}

// each calls f with the numbers below n in order, from several threads.
func each(threads, n int, f func(i int)) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := 0
	for range threads {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	wg.Wait()
}

// A program that reads all small files of a directory costs a request for the
// first ones and then one for many, whether it lists the directory before or not.
func TestAReadOfEveryFileCostsFewRequests(t *testing.T) {
	const files = 1000
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	d := filepath.Join(other, "d")
	must(t, "mkdir", os.Mkdir(d, 0o755))
	for i := range files {
		put(t, filepath.Join(d, stable(i)), pattern(4096, byte(i)))
	}
	for _, listed := range []bool{false, true} {
		fs, dir := w.mount(fmt.Sprint("listed ", listed), Config{})
		asked := fs.Stats().Requests.Load()
		if listed {
			_, err := os.ReadDir(filepath.Join(dir, "d"))
			must(t, "readdir", err)
		}
		for i := range files {
			expect(t, "a file", filepath.Join(dir, "d", stable(i)), pattern(4096, byte(i)))
		}
		if n := fs.Stats().Requests.Load() - asked; n > 20 {
			t.Errorf("reading %d files costs %d requests, listed before: %v", files, n, listed)
		}
		fs.stock.mu.Lock()
		used, most := fs.stock.size, fs.budget.max/8
		fs.stock.mu.Unlock()
		if used > most {
			t.Errorf("%d bytes of contents are kept that came ahead, more than %d", used, most)
		}
	}
}

// A program that reads the files of many directories costs little more than a
// request for each directory.
func TestAReadOfATreeCostsARequestForEachDirectory(t *testing.T) {
	const dirs, files = 40, 10
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	for i := range dirs {
		d := filepath.Join(other, fmt.Sprint("d", i))
		must(t, "mkdir", os.Mkdir(d, 0o755))
		for k := range files {
			put(t, filepath.Join(d, stable(k)), pattern(8000, byte(i+k)))
		}
	}
	for _, listed := range []bool{false, true} {
		fs, dir := w.mount(fmt.Sprint("listed ", listed), Config{})
		asked := fs.Stats().Requests.Load()
		for i := range dirs {
			d := filepath.Join(dir, fmt.Sprint("d", i))
			if listed {
				_, err := os.ReadDir(d)
				must(t, "readdir", err)
			}
			for k := range files {
				expect(t, "a file", filepath.Join(d, stable(k)), pattern(8000, byte(i+k)))
			}
		}
		if n := fs.Stats().Requests.Load() - asked; n > 2*dirs {
			t.Errorf("reading %d directories of %d files costs %d requests, listed before: %v", dirs, files, n, listed)
		}
	}
}

// A file of one block that is too large to be kept with the metadata costs a
// request to the metadata service and one to the bucket, or only that.
func TestRequestsOfAReadOfOneBlock(t *testing.T) {
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	want := pattern(100<<10, 3)
	must(t, "mkdir", os.Mkdir(filepath.Join(other, "d"), 0o755))
	for i := range 20 {
		put(t, filepath.Join(other, "d", stable(i)), want)
	}
	fs, m, dir := w.counting()
	gets := func() int {
		w.bucket.mu.Lock()
		defer w.bucket.mu.Unlock()
		return w.bucket.gets
	}
	before := gets()
	if got := m.during(func() { expect(t, "first", filepath.Join(dir, "d", stable(0)), want) }); got != "lookup 2" {
		t.Errorf("a read of one file asks for %q, the directory's lookup included", got)
	}
	if n := gets() - before; n != 1 {
		t.Errorf("a read of one file costs %d requests to the bucket", n)
	}
	asked := fs.Stats().Requests.Load()
	got := m.during(func() {
		for i := range 20 {
			expect(t, "all", filepath.Join(dir, "d", stable(i)), want)
			if i == 10 {
				waitFor(fs.fetches)
				if n := gets() - before; n <= 11 {
					t.Errorf("the bucket was asked for %d blocks when 11 files were read: for none ahead", n)
				}
			}
		}
	})
	if n := fs.Stats().Requests.Load() - asked; n > 6 {
		t.Errorf("a read of 20 files asks for %q", got)
	}
	if n := gets() - before; n != 20 {
		t.Errorf("a read of 20 files costs %d requests to the bucket", n)
	}
}

// Who looks at a few names here and there in a huge directory does not have it
// fetched.
func TestAFewNamesOfAHugeDirectoryAreNotAllOfIt(t *testing.T) {
	const files, looks = 10_000, 500
	w := newWorld(t)
	makeMany(t, w.newFS("other", Config{}), "d", files)
	fs, g := w.wedged("one")
	entries := 0
	var mu sync.Mutex
	g.do = func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		rep, err := next()
		if err == nil {
			mu.Lock()
			entries += len(rep.Entries)
			mu.Unlock()
			if rep.Attr.IsDir() && rep.Attr.Size == files {
				rep.Attr.Size = 1 << 20 // as if it were huge
			}
		}
		return rep, err
	}
	op := &fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "d"}
	must(t, "lookup", run(t, fs, op))
	order := shuffled(files)
	for i := range looks {
		if !there(t, fs, op.Entry.Child, stable(order(i))) {
			t.Fatal("a file is not there")
		}
	}
	waitFor(fs.pages)
	if most := 10 * firstPage; entries > most {
		t.Errorf("%d entries were fetched for %d looks, more than %d", entries, looks, most)
	}
}

// waitFor waits until nobody has an element in slots.
func waitFor(slots chan struct{}) {
	for range cap(slots) {
		slots <- struct{}{}
	}
	for range cap(slots) {
		<-slots
	}
}

// What another mount changes while a directory is fetched ahead is seen, whatever
// the page says that arrives after that.
func TestAChangeElsewhereWhileADirectoryIsFetchedAheadIsSeen(t *testing.T) {
	const files = 100
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	d := filepath.Join(other, "d")
	must(t, "mkdir", os.Mkdir(d, 0o755))
	for i := range files {
		put(t, filepath.Join(d, stable(i)), []byte("before"))
	}
	for _, when := range []string{"before the page is answered", "after"} {
		for what, change := range map[string]func() error{
			"contents": func() error { return os.WriteFile(filepath.Join(d, stable(50)), []byte("after"), 0o644) },
			"mode":     func() error { return os.Chmod(filepath.Join(d, stable(51)), 0o600) },
			"unlink":   func() error { return os.Remove(filepath.Join(d, stable(52))) },
			"rename":   func() error { return os.Rename(filepath.Join(d, stable(53)), filepath.Join(d, "new")) },
		} {
			for i := 50; i < 54; i++ {
				must(t, "reset", errors.Join(os.WriteFile(filepath.Join(d, stable(i)), []byte("before"), 0o644), os.Chmod(filepath.Join(d, stable(i)), 0o644)))
			}
			os.Remove(filepath.Join(d, "new"))
			fs, g := w.wedged("one")
			var once sync.Once
			g.do = func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
				if req.Op != meta.OpReaddir {
					return next()
				}
				if when != "after" {
					once.Do(func() { must(t, "change", change()) })
				}
				rep, err := next()
				once.Do(func() { must(t, "change", change()) })
				return rep, err
			}
			dir := w.mountFS(fs)
			for i := range files {
				alike(t, fmt.Sprintf("%s changed %s, %s", what, when, stable(i)), filepath.Join(dir, "d", stable(i)), filepath.Join(d, stable(i)))
			}
			alike(t, what, filepath.Join(dir, "d", "new"), filepath.Join(d, "new"))
			once.Do(func() { t.Errorf("%s: nothing was fetched ahead", what) })
		}
	}
}

// alike fails the test if a file is not the same on two mounts.
func alike(t *testing.T, what, a, b string) {
	t.Helper()
	got, err := os.ReadFile(a)
	want, wantErr := os.ReadFile(b)
	if string(got) != string(want) || errors.Is(err, os.ErrNotExist) != errors.Is(wantErr, os.ErrNotExist) {
		t.Errorf("%s: %q, %v, want %q, %v", what, got, err, want, wantErr)
	}
	if err != nil {
		return
	}
	st, err := os.Stat(a)
	must(t, "stat", err)
	if wantSt, err := os.Stat(b); err != nil || st.Mode() != wantSt.Mode() || st.Size() != wantSt.Size() {
		t.Errorf("%s: %v, want %v, %v", what, st.Mode(), wantSt, err)
	}
}

// The next part of a directory is asked for while a program works through the one
// before. What changed elsewhere meanwhile is seen.
func TestAChangeElsewhereBehindTheReaderOfADirectoryIsSeen(t *testing.T) {
	const files = 3 * dirLimit
	w := newWorld(t)
	other := w.newFS("other", Config{})
	makeMany(t, other, "d", files)
	fs, dir := w.mount("one", Config{})
	f, err := os.Open(filepath.Join(dir, "d"))
	must(t, "open", err)
	defer f.Close()
	seen := map[string]bool{}
	for _, e := range getdents(t, int(f.Fd()), 4096) {
		seen[e.name] = true
	}
	waitFor(fs.pages)
	rep, err := other.meta.Do(t.Context(), &meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "d"})
	must(t, "lookup", err)
	for _, change := range []*meta.Request{
		{Op: meta.OpUnlink, Ino: rep.Attr.Ino, Name: stable(dirLimit + 10)},
		{Op: meta.OpMake, Ino: rep.Attr.Ino, Name: stable(dirLimit+20) + "x", Mode: syscall.S_IFREG | 0o644},
	} {
		_, err := other.meta.Do(t.Context(), change)
		must(t, "change", err)
	}
	for {
		list := getdents(t, int(f.Fd()), 64<<10)
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			seen[e.name] = true
		}
	}
	if seen[stable(dirLimit+10)] || !seen[stable(dirLimit+20)+"x"] || len(seen) != files+2 {
		t.Errorf("%d names, the removed one is there: %v, the new one: %v", len(seen), seen[stable(dirLimit+10)], seen[stable(dirLimit+20)+"x"])
	}
}
