package tree

import (
	"context"
	"slices"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A batch is the changes of one compound. They wait for stable storage together,
// at its end: its parts find it in their context.
type batch struct {
	srv    *Server
	commit engine.Commit // of the last change; nil: there was none that is not durable
	slots  []*slot       // of the changes: kept busy, so that nobody is given their answers before
}

type batchKey struct{}

// batchOf returns the batch that a request is part of, or nil.
func batchOf(ctx context.Context) *batch {
	b, _ := ctx.Value(batchKey{}).(*batch)
	return b
}

// settle makes durable what was done so far, and lets its answers be seen. If it
// fails the engine is broken: nobody gets these answers then.
func (b *batch) settle() error {
	if b == nil {
		return nil
	}
	if b.commit != nil {
		if err := b.srv.durable(b.commit); err != nil {
			return err
		}
		b.commit = nil
	}
	for _, l := range b.slots {
		<-l.busy
	}
	b.slots = nil
	return nil
}

// holds tells whether a slot is kept busy by the batch itself.
func (b *batch) holds(l *slot) bool { return b != nil && slices.Contains(b.slots, l) }

// durable returns when a change is on stable storage or, in a compound, leaves
// that to its end.
func (s *session) durable(ctx context.Context, commit engine.Commit) error {
	if b := batchOf(ctx); b != nil {
		b.commit = commit
		return nil
	}
	return s.v.srv.durable(commit)
}

// compound does the parts of a request one after the other, until one fails, and
// waits once for all of them.
func (s *session) compound(ctx context.Context, req *meta.Request) (reply *meta.Reply) {
	b := &batch{srv: s.v.srv}
	defer func() { // also if a part panics
		if err := b.settle(); err != nil {
			reply = s.v.srv.answer(req, nil, err)
		}
	}()
	return s.parts(context.WithValue(ctx, batchKey{}, b), req)
}

func (s *session) parts(ctx context.Context, req *meta.Request) *meta.Reply {
	out := &meta.Reply{Replies: make([]meta.Reply, 0, len(req.Ops))}
	var last meta.Ino
	for i := range req.Ops {
		op := &req.Ops[i]
		if op.Op == meta.OpCompound || op.Op == meta.OpHello || op.Op == meta.OpBye {
			out.Replies = append(out.Replies, meta.Reply{Errno: syscall.EINVAL, Msg: "not possible in a compound"})
			return out
		}
		if op.Ino == 0 {
			of := *op
			of.Ino = last
			op = &of
		}
		if op.Wait { // as long as others like
			if err := batchOf(ctx).settle(); err != nil {
				return s.v.srv.answer(op, nil, err)
			}
		}
		reply := s.serve(ctx, op)
		out.Replies = append(out.Replies, *reply)
		if reply.Errno != 0 {
			return out
		}
		if reply.Attr.Ino != 0 {
			last = reply.Attr.Ino
		}
	}
	return out
}
