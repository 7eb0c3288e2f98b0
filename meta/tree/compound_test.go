package tree

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"flexfs/meta"
)

// writing is what a mount sends for a new file: three changes in one request.
func writing(c *client, name string, slot uint16) *meta.Request {
	return &meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpMake, Slot: slot, Seq: 1, Ino: meta.Root, Name: name, Mode: reg},
		{Op: meta.OpCommit, Slot: slot + 1, Seq: 1, Size: 10, Blocks: []meta.Block{c.block(0, 10)}},
		{Op: meta.OpSetattr, Slot: slot + 2, Seq: 1, Set: meta.SetMode, Attr: meta.Attr{Mode: reg | 0o600}},
	}}
}

func TestACompoundWaitsOnce(t *testing.T) {
	w := newWorld(t)
	var waits atomic.Int64
	w.onWait = func() { waits.Add(1) }
	w.start()
	c := w.hello("rw:")
	waits.Store(0)
	reply := c.send(writing(c, "f", 1))
	if n := waits.Load(); n != 1 || len(reply.Replies) != 3 || reply.Replies[2].Errno != 0 {
		t.Errorf("%d waits, want 1: %+v", n, reply)
	}
	waits.Store(0)
	reply = c.send(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpUnlink, Slot: 9, Seq: 1, Ino: meta.Root, Name: "f"},
		{Op: meta.OpUnlink, Slot: 10, Seq: 1, Ino: meta.Root, Name: "f"},
	}})
	if n := waits.Load(); n != 1 || len(reply.Replies) != 2 || reply.Replies[1].Errno != syscall.ENOENT {
		t.Errorf("%d waits for the part that was done, want 1: %+v", n, reply)
	}
	waits.Store(0)
	if reply := c.send(writing(c, "f", 1)); len(reply.Replies) != 3 || waits.Load() != 0 {
		t.Errorf("%d waits for what was done before, want none: %+v", waits.Load(), reply)
	}
}

func TestWhatACompoundAnsweredSurvivesACrash(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	reply := c.send(writing(c, "f", 1))
	w.crash(0, 1)
	if r := c.resume(&meta.Request{}); r.Errno != 0 {
		t.Fatalf("resume: %+v", r)
	}
	if a := c.attr(reply.Replies[0].Attr.Ino); a.Size != 10 || a.Mode != reg|0o600 {
		t.Errorf("after the crash the file is %+v", a)
	}
}

func TestAPartIsAnsweredToNobodyBeforeItIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		gate := make(chan struct{})
		var closed atomic.Bool
		w.onWait = func() {
			if closed.Load() {
				<-gate
			}
		}
		w.start()
		c := w.hello("rw:")
		closed.Store(true)
		req := writing(c, "f", 1)
		var answered atomic.Int64
		for _, r := range []*meta.Request{req, req, &req.Ops[0]} {
			go func() {
				c.send(r)
				answered.Add(1)
			}()
		}
		synctest.Wait()
		if n := answered.Load(); n != 0 {
			t.Errorf("%d of the request and its repetitions were answered before it was durable", n)
		}
		closed.Store(false)
		close(gate)
		synctest.Wait()
		if n := answered.Load(); n != 3 {
			t.Errorf("%d of 3 requests were answered", n)
		}
	})
}

func TestACompoundMayUseASlotTwice(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	reply := c.send(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpMake, Slot: 1, Seq: 1, Ino: meta.Root, Name: "a", Mode: reg},
		{Op: meta.OpMake, Slot: 1, Seq: 2, Ino: meta.Root, Name: "b", Mode: reg},
	}})
	if len(reply.Replies) != 2 || reply.Replies[1].Errno != 0 {
		t.Errorf("%+v", reply)
	}
}

func TestACompoundThatTellsOthersIsDurableSoFar(t *testing.T) {
	w := newWorld(t)
	var waits atomic.Int64
	w.onWait = func() { waits.Add(1) }
	w.start()
	c, other := w.hello("rw:"), w.hello("rw:")
	f := c.file(meta.Root, "f")
	other.attr(f)
	waits.Store(0)
	before := int64(-1)
	other.conn.push = func(_ context.Context, req *meta.Request) (*meta.Reply, error) {
		before = waits.Load()
		return new(meta.Reply), nil
	}
	c.send(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpSetxattr, Slot: 1, Seq: 1, Ino: c.file(meta.Root, "g"), Name: "user.a"},
		{Op: meta.OpSetattr, Slot: 2, Seq: 1, Ino: f, Set: meta.SetMode},
	}})
	if before != 2 { // that of g, and that of its attribute
		t.Errorf("when the other mount was told there had been %d waits", before)
	}
}
