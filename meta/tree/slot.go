package tree

import (
	"context"
	"encoding/binary"
	"syscall"

	"flexfs/meta"
)

// slots is how many changes of one session may be under way. It bounds the
// memory and the records that answers are kept in.
const slots = 128

// A slot remembers the answer to the latest change that came in it.
type slot struct {
	busy  chan struct{} // holds one element until a change is durable; guards the rest
	seq   uint32
	reply *meta.Reply // nil: none
}

// once does a change if it was not done yet, and answers as it did then. A
// repeated request waits for the first to be complete.
func (s *session) once(ctx context.Context, req *meta.Request) *meta.Reply {
	srv := s.v.srv
	if int(req.Slot) >= slots || req.Seq == 0 {
		return srv.answer(req, nil, refuse(syscall.EINVAL, "slot %d, number %d: slots are less than %d, numbers start at 1", req.Slot, req.Seq, slots))
	}
	l := &s.slots[req.Slot]
	b := batchOf(ctx)
	if b.holds(l) {
		if err := b.settle(); err != nil {
			return srv.answer(req, nil, err)
		}
	}
	select {
	case l.busy <- struct{}{}:
	case <-ctx.Done():
		return srv.answer(req, nil, ctx.Err())
	}
	if b != nil {
		b.slots = append(b.slots, l)
	} else {
		defer func() { <-l.busy }()
	}
	if req.Seq == l.seq && l.reply != nil {
		again := *l.reply
		again.Cache = false // what it tells may be old
		return &again
	}
	if req.Seq <= l.seq && l.reply != nil {
		return srv.answer(req, nil, refuse(syscall.EINVAL, "slot %d is at number %d already, and %d was sent", req.Slot, l.seq, req.Seq))
	}
	reply, err := s.do(ctx, req)
	answer := srv.answer(req, reply, err)
	if answer.Errno != syscall.EINTR && answer.Errno != syscall.EIO {
		l.seq, l.reply = req.Seq, answer
	}
	return answer
}

// A slot's record: number(4) and the encoded reply.
func encodeSlot(seq uint32, reply *meta.Reply) []byte {
	return reply.Append(binary.BigEndian.AppendUint32(nil, seq))
}
