package fuse

import (
	"bytes"
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
	"flexfs/store"
)

// hooked is a metadata service with something in between.
type hooked struct {
	Meta
	do func(ctx context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error)
}

func (h *hooked) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	return h.do(ctx, req, func() (*meta.Reply, error) { return h.Meta.Do(ctx, req) })
}

// hook puts do between fs and the service.
func hook(fs *FS, do func(context.Context, *meta.Request, func() (*meta.Reply, error)) (*meta.Reply, error)) {
	fs.meta = &hooked{fs.meta, do}
}

// newFile makes a file in the root directory, and opens it.
func newFile(t *testing.T, fs *FS, name string) *inode {
	t.Helper()
	rep, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: name, Mode: syscall.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	in := fs.inode(rep.Attr.Ino)
	in.mu.Lock()
	in.learn(&rep.Attr, rep.Block, rep.Cache)
	in.mu.Unlock()
	fs.open(in, syscall.O_RDWR)
	return in
}

func writeTo(t *testing.T, fs *FS, in *inode, off uint64, data []byte, app bool) {
	t.Helper()
	c := fs.newCall(t.Context(), func() {})
	defer c.end(true)
	if err := c.write(in, off, data, app); err != nil {
		t.Fatal(err)
	}
}

func truncateTo(t *testing.T, fs *FS, in *inode, size uint64) {
	t.Helper()
	c := fs.newCall(t.Context(), func() {})
	defer c.end(true)
	if err := c.truncate(in, size, 0); err != nil {
		t.Fatal(err)
	}
}

func flushed(t *testing.T, fs *FS, in *inode) {
	t.Helper()
	if err := fs.flush(t.Context(), in); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// contents reads a file through fs.
func contents(t *testing.T, fs *FS, ino meta.Ino) []byte {
	t.Helper()
	c := fs.newCall(t.Context(), func() {})
	defer c.end(true)
	var s stream
	defer s.close()
	var all []byte
	for {
		parts, n, err := c.read(fs.inode(ino), &s, uint64(len(all)), 128<<10)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		all = append(all, bytes.Join(parts, nil)...)
	}
}

func wantContents(t *testing.T, fs *FS, ino meta.Ino, want []byte) {
	t.Helper()
	got := contents(t, fs, ino)
	if len(got) != len(want) {
		t.Fatalf("the file has %d bytes, not %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %q, not %q", i, got[i], want[i])
		}
	}
}

// A block that was written in two parts, of which the first waits for its
// commit, is all ours: what others did to it meanwhile is no reason to refuse it.
func TestBlockCompletedAfterAFailedCommit(t *testing.T) {
	w := newWorld(t)
	one, two := w.newFS("one", Config{}), w.newFS("two", Config{})
	in := newFile(t, one, "f")
	commits := 0
	hook(one, func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		if req.Op == meta.OpCommit {
			switch commits++; commits {
			case 1:
				return nil, &meta.Error{Op: req.Op, Errno: syscall.EAGAIN}
			case 2:
				writeTo(t, two, two.inode(in.ino), 0, bytes.Repeat([]byte("z"), 100<<10), false)
				flushed(t, two, two.inode(in.ino))
			}
		}
		return next()
	})
	half := testBlockSize / 2
	writeTo(t, one, in, 0, bytes.Repeat([]byte("a"), half), false)
	if err := one.flush(t.Context(), in); refusal(err) != syscall.EAGAIN {
		t.Fatalf("the flush whose commit was refused says %v", err)
	}
	writeTo(t, one, in, uint64(half), bytes.Repeat([]byte("b"), half), false)
	flushed(t, one, in)
	wantContents(t, two, in.ino, append(bytes.Repeat([]byte("a"), half), bytes.Repeat([]byte("b"), half)...))
}

// Another mount cuts the file while a block of it is on its way: the block is
// merged again with what is left.
func TestFileCutElsewhereBeforeACommit(t *testing.T) {
	w := newWorld(t)
	one, two := w.newFS("one", Config{}), w.newFS("two", Config{})
	in := newFile(t, one, "f")
	writeTo(t, one, in, 0, bytes.Repeat([]byte("a"), 200<<10), false)
	flushed(t, one, in)
	first := true
	hook(one, func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		if req.Op == meta.OpCommit && first {
			first = false
			truncateTo(t, two, two.inode(in.ino), 100<<10)
		}
		return next()
	})
	writeTo(t, one, in, 0, []byte("new"), false)
	flushed(t, one, in)
	want := bytes.Repeat([]byte("a"), 100<<10)
	copy(want, "new")
	wantContents(t, two, in.ino, want)
}

// A block map that was asked for before our own commit arrives after it.
func TestLateBlockMapIsNotKept(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	in := newFile(t, fs, "f")
	writeTo(t, fs, in, 0, bytes.Repeat([]byte("a"), testBlockSize), false)
	flushed(t, fs, in)
	in.mu.Lock()
	in.content.forgetMap()
	in.mu.Unlock()

	answered, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	hook(fs, func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		rep, err := next()
		if req.Op == meta.OpBlocks && once.CompareAndSwap(false, true) {
			close(answered)
			<-release
		}
		return rep, err
	})
	done := make(chan error)
	go func() {
		_, err := fs.fetchMap(context.Background(), in, 0)
		done <- err
	}()
	<-answered
	want := bytes.Repeat([]byte("b"), testBlockSize)
	writeTo(t, fs, in, 0, want, false)
	flushed(t, fs, in)
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantContents(t, fs, in.ino, want)
}

// What copy_file_range read ahead is given back.
func TestCopyGivesItsMemoryBack(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	src, dst := newFile(t, fs, "src"), newFile(t, fs, "dst")
	const size = 16 * testBlockSize
	writeTo(t, fs, src, 0, bytes.Repeat([]byte("a"), size), false)
	flushed(t, fs, src)
	from, to := fs.open(src, syscall.O_RDONLY), fs.open(dst, syscall.O_WRONLY)
	op := &fuseops.CopyFileRangeOp{Handle: from, DstHandle: to, Length: size - 3*testBlockSize}
	c := fs.newCall(t.Context(), func() {})
	defer c.end(true)
	if err := c.copyRange(op); err != nil {
		t.Fatal(err)
	}
	flushed(t, fs, dst)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		used, _ := fs.budget.Used()
		if used == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d bytes are taken after all is done", used)
		}
	}
}

// gate is a store whose Puts wait until it is opened, or their contexts end.
type gate struct {
	store.Store
	began, open chan struct{}
}

func (g *gate) Put(ctx context.Context, key store.Key, data []byte) error {
	g.began <- struct{}{}
	select {
	case <-g.open:
		return g.Store.Put(ctx, key, data)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A flush waits also for what a write gave to the store while it was beginning.
func TestFlushWaitsForBlocksOnTheirWay(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	in := newFile(t, fs, "f")
	g := &gate{fs.blocks, make(chan struct{}, 10), make(chan struct{})}
	fs.blocks = g
	writeTo(t, fs, in, 0, bytes.Repeat([]byte("a"), testBlockSize), false)
	<-g.began
	done := make(chan error, 1)
	go func() { done <- fs.uploadAll(context.Background(), in) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(g.open)
	if !t.Failed() {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	flushed(t, fs, in)
}

// loseCommit has the answer to the next commit lost, done or not.
func loseCommit(fs *FS, done bool) {
	lose := true
	fs.meta = &unsureMeta{fs.meta, func() (bool, bool) { was := lose; lose = false; return done, was }}
}

// A commit without an answer may have been done: a cut after it must not remove
// blocks that other mounts may be reading.
func TestCutRemovesNoBlockThatMayBeNamed(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	in := newFile(t, fs, "f")
	removed := &removals{fs.blocks, make(chan store.Gen, 10)}
	fs.blocks = removed
	loseCommit(fs, true)
	writeTo(t, fs, in, 0, bytes.Repeat([]byte("a"), 2*testBlockSize), false)
	if err := fs.flush(t.Context(), in); refusal(err) != syscall.EIO {
		t.Fatalf("the flush whose commit was lost says %v", err)
	}
	truncateTo(t, fs, in, testBlockSize)
	select {
	case gen := <-removed.gens:
		t.Errorf("version %v was removed at once", gen)
	case <-time.After(100 * time.Millisecond):
	}
	flushed(t, fs, in)
	wantContents(t, fs, in.ino, bytes.Repeat([]byte("a"), testBlockSize))
}

// What was appended is in the file once, whatever became of the answer.
func TestAppendWhoseCommitIsNotAnsweredIsDoneOnce(t *testing.T) {
	for name, done := range map[string]bool{"done": true, "not done": false} {
		for what, size := range map[string]int{"inline": 10, "a block": 100 << 10, "blocks": 600 << 10} {
			t.Run(what+", "+name, func(t *testing.T) {
				w := newWorld(t)
				fs, other := w.newFS("one", Config{}), w.newFS("two", Config{})
				in := newFile(t, fs, "f")
				writeTo(t, fs, in, 0, []byte("head"), true)
				flushed(t, fs, in)
				loseCommit(fs, done)
				want := []byte("head")
				for _, b := range []string{"a", "b"} {
					data := bytes.Repeat([]byte(b), size)
					want = append(want, data...)
					writeTo(t, fs, in, 0, data, true)
					if err := fs.flush(t.Context(), in); err != nil && refusal(err) != syscall.EIO {
						t.Fatal(err)
					}
				}
				flushed(t, fs, in)
				wantContents(t, other, in.ino, want)
			})
		}
	}
}

// A flush ends with its context, whatever it is waiting for.
func TestFlushEndsWithItsContext(t *testing.T) {
	for name, hang := range map[string]func(*FS){
		"the service does not answer": func(fs *FS) {
			hook(fs, func(ctx context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
				if req.Op != meta.OpBlocks {
					return next()
				}
				<-ctx.Done()
				return nil, ctx.Err()
			})
		},
		"the store does not answer": func(fs *FS) {
			fs.blocks = &gate{fs.blocks, make(chan struct{}, 10), nil}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fs := w.newFS("one", Config{})
			in := newFile(t, fs, "f")
			writeTo(t, fs, in, 0, bytes.Repeat([]byte("a"), 100<<10), false)
			flushed(t, fs, in)
			in.mu.Lock()
			in.content.forgetMap()
			in.mu.Unlock()
			hang(fs)
			writeTo(t, fs, in, 10, []byte("new"), false)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- fs.flush(ctx, in) }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("it says that all is stored")
				}
			case <-time.After(5 * time.Second):
				t.Error("it waits for ever")
				fs.cancel()
				<-done
			}
			in.mu.Lock()
			kept := in.content.dirty[0] != nil
			in.mu.Unlock()
			if !kept {
				t.Error("what was written is not dirty any more")
			}
		})
	}
}

// Two mounts append blocks of which one ends where the other begins.
func TestAppendsOfWholeBlocksKeepEachOther(t *testing.T) {
	w := newWorld(t)
	one, two := w.newFS("one", Config{}), w.newFS("two", Config{})
	in := newFile(t, one, "f")
	first := true
	hook(one, func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		if req.Op == meta.OpCommit && first {
			first = false
			writeTo(t, two, two.inode(in.ino), 0, bytes.Repeat([]byte("2"), testBlockSize), true)
			flushed(t, two, two.inode(in.ino))
		}
		return next()
	})
	writeTo(t, one, in, 0, bytes.Repeat([]byte("1"), testBlockSize), true)
	flushed(t, one, in)
	wantContents(t, two, in.ino, append(bytes.Repeat([]byte("2"), testBlockSize), bytes.Repeat([]byte("1"), testBlockSize)...))
}
