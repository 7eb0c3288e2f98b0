package fuse

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// unsureMeta loses the session around commits: done or not, the answer is that
// nobody knows.
type unsureMeta struct {
	Meta
	lose func() (done, lost bool)
}

func (u *unsureMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Op != meta.OpCommit {
		return u.Meta.Do(ctx, req)
	}
	done, lost := u.lose()
	if !lost {
		return u.Meta.Do(ctx, req)
	}
	if done {
		if _, err := u.Meta.Do(ctx, req); err != nil {
			return nil, err
		}
	}
	return nil, &meta.Error{Op: req.Op, Errno: syscall.EIO, Msg: "the session was lost"}
}

// removals notes which versions of blocks are removed.
type removals struct {
	store.Store
	gens chan store.Gen
}

func (r *removals) Delete(ctx context.Context, key store.Key) error {
	r.gens <- key.Gen
	return r.Store.Delete(ctx, key)
}

// A commit whose answer is lost may have been done. Whichever it was, the file
// has what was written last, and no block that the file names is removed.
func TestACommitWithoutAnswerLeavesNoDanglingBlock(t *testing.T) {
	for name, done := range map[string]bool{"done": true, "not done": false} {
		for what, size := range map[string]int{"whole block": testBlockSize, "part of a block": 100 << 10, "inline": 100} {
			t.Run(what+", "+name, func(t *testing.T) { testUnsure(t, done, size) })
		}
	}
}

func testUnsure(t *testing.T, done bool, size int) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	removed := &removals{fs.blocks, make(chan store.Gen, 10)}
	fs.blocks = removed
	lose := true
	fs.meta = &unsureMeta{fs.meta, func() (bool, bool) { was := lose; lose = false; return done, was }}
	ctx := t.Context()
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: syscall.S_IFREG | 0o644})
	if err != nil {
		t.Fatal(err)
	}
	fs.learn(&rep.Attr, rep.Block, false, 0)
	in := fs.inode(rep.Attr.Ino)
	write := func(b byte) []byte {
		data := bytes.Repeat([]byte{b}, size)
		c := fs.newCall(ctx, func() {})
		defer c.end(true)
		if err := c.write(in, 0, data, false); err != nil {
			t.Fatal(err)
		}
		return data
	}
	check := func(want []byte) (gen meta.Gen) {
		t.Helper()
		rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpBlocks, Ino: in.ino, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(rep.Blocks) != 1 {
			t.Fatalf("the file has %d blocks, not 1", len(rep.Blocks))
		}
		got, err := fs.load(ctx, in, &rep.Blocks[0], 0, size)
		if errors.Is(err, store.ErrNotExist) {
			t.Fatal("the file names a block that is not there")
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the file has %d other bytes than were written (%v)", len(got), err)
		}
		return rep.Blocks[0].Gen
	}

	first := write('a')
	if err := fs.flush(ctx, in); refusal(err) != syscall.EIO {
		t.Fatalf("the flush whose commit was lost says %v", err)
	}
	var named meta.Gen
	if done {
		named = check(first)
	}
	second := write('b')
	if err := fs.flush(ctx, in); err != nil {
		t.Fatal(err)
	}
	if now := check(second); now == named {
		t.Errorf("version %v was committed twice", now)
	}
	select {
	case gen := <-removed.gens:
		if done && meta.Gen(gen) == named {
			t.Error("the version that the lost commit had made part of the file was removed at once; others may be reading it")
		}
	case <-time.After(100 * time.Millisecond):
	}
}
