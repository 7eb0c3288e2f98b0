package fuse

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"flexfs/meta"
)

// A gatherer sends changes together that would be under way at the same time. What
// comes while one is under way waits for its answer, and then goes as one
// compound, in the order in which it came: that costs the two processes one message,
// and stable storage is waited for once.
//
// It is for changes that nobody else is asked about, as in a directory that is
// delegated to this mount: a change that waits for others holds up what came after
// it. And others may wait for them, so all of them are urgent.
type gatherer struct {
	fs *FS

	mu    sync.Mutex
	queue []*gathered
	busy  bool // something is under way, or held
	held  bool // changes of flushInOrder wait until all have their place
}

// A gathered is a change that waits for its turn.
type gathered struct {
	req   *meta.Request
	reply *meta.Reply
	err   error
	done  chan struct{} // closed when there is an answer
}

const (
	// gatherBytes bounds the contents that go in one compound.
	gatherBytes = 1 << 20

	// gatherOps bounds its changes: they get slots that are kept for them.
	gatherOps = 48
)

// do is Meta.Do for a change that may go with others. If ctx ends while the change
// is under way it may be done all the same. See orderKey.
func (g *gatherer) do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	placed, ordered := ctx.Value(orderKey{}).(func())
	if !ordered {
		placed = func() {}
	}
	g.mu.Lock()
	if g.held && !ordered { // what is to be held may have to wait for this
		g.mu.Unlock()
		g.fs.stats.Requests.Add(1)
		return g.fs.meta.Do(meta.Urgently(ctx), req)
	}
	if !g.busy {
		g.busy = true
		g.mu.Unlock()
		placed()
		g.fs.stats.Requests.Add(1)
		reply, err := g.fs.meta.Do(meta.Urgently(ctx), req)
		if g.idle() {
			return reply, err
		}
		go g.run()
		return reply, err
	}
	w := &gathered{req: req, done: make(chan struct{})}
	g.queue = append(g.queue, w)
	g.mu.Unlock()
	placed()
	select {
	case <-w.done:
		return w.reply, w.err
	case <-ctx.Done():
		g.forget(w)
		return nil, fmt.Errorf("fuse: %v: %w", req.Op, context.Cause(ctx))
	}
}

// forget takes a change out of the queue, if it is there.
func (g *gatherer) forget(w *gathered) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.queue = slices.DeleteFunc(slices.Clone(g.queue), func(q *gathered) bool { return q == w })
}

// hold has the changes of flushInOrder wait until release is called, so that they
// go together.
func (g *gatherer) hold() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy { // with what is under way
		return func() {}
	}
	g.busy, g.held = true, true
	return func() {
		g.mu.Lock()
		g.held = false
		g.mu.Unlock()
		go g.run()
	}
}

// idle notes that nothing is under way, if nothing waits.
func (g *gatherer) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy = len(g.queue) > 0
	return !g.busy
}

// run sends what waits, until nothing does.
func (g *gatherer) run() {
	for !g.idle() {
		list := g.take()
		done := g.send(list)
		for _, w := range list[:done] {
			close(w.done)
		}
		g.mu.Lock()
		g.queue = append(list[done:], g.queue...)
		g.mu.Unlock()
	}
}

// take returns what is sent next.
func (g *gatherer) take() []*gathered {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < min(len(g.queue), gatherOps) && bytes <= gatherBytes {
		for _, b := range g.queue[n].req.Blocks {
			bytes += len(b.Data)
		}
		n++
	}
	list := g.queue[:n:n]
	g.queue = g.queue[n:]
	return list
}

// send sends changes and returns how many have an answer: a compound ends with the
// first that fails.
func (g *gatherer) send(list []*gathered) int {
	ctx := meta.Urgently(g.fs.ctx)
	g.fs.stats.Requests.Add(1)
	if len(list) == 1 {
		list[0].reply, list[0].err = g.fs.meta.Do(ctx, list[0].req)
		return 1
	}
	all := &meta.Request{Op: meta.OpCompound, Ops: make([]meta.Request, len(list))}
	for i, w := range list {
		all.Ops[i] = *w.req
	}
	reply, err := g.fs.meta.Do(ctx, all)
	switch {
	case err == nil && len(reply.Replies) > 0:
	case err == nil || answered(err): // the compound was refused as such
		list[0].reply, list[0].err = g.fs.meta.Do(ctx, list[0].req)
		return 1
	default:
		for _, w := range list {
			w.err = err
		}
		return len(list)
	}
	for i := range reply.Replies[:min(len(reply.Replies), len(list))] {
		list[i].reply, list[i].err = answerOf(list[i].req.Op, &reply.Replies[i])
	}
	return min(len(reply.Replies), len(list))
}

// answerOf is what Meta.Do would have returned for a part of a compound.
func answerOf(op meta.Op, r *meta.Reply) (*meta.Reply, error) {
	if r.Errno != 0 {
		return nil, &meta.Error{Op: op, Errno: r.Errno, Msg: r.Msg, Cache: r.Cache}
	}
	return r, nil
}
