package meta

import (
	"context"
	"errors"
)

// maxSlots bounds the changes of one session that are unanswered. The service
// keeps the last answer of each.
const maxSlots = 128

// urgentSlots are the last ones, which are kept for urgent changes: others may
// be waiting for them, while all that has the other slots waits for those. There are
// enough for a compound and some single ones.
const urgentSlots = 64

type urgentKey struct{}

// Urgently returns a context for changes that an OpInval may have to wait for: they
// get a slot although those that wait for others have many.
func Urgently(ctx context.Context) context.Context { return context.WithValue(ctx, urgentKey{}, true) }

// urgent reports whether a change may be what an OpInval waits for.
func urgent(ctx context.Context, req *Request) bool {
	return req.Op == OpMake && req.Ino2 != 0 || ctx.Value(urgentKey{}) != nil
}

var errSessionEnded = errors.New("the session has ended")

// A session is what a client keeps as long as the service knows it.
type session struct {
	id     uint64
	secret string

	free  chan uint16
	spare chan uint16      // for urgent changes
	many  chan struct{}    // has an element while somebody takes several slots
	seq   [maxSlots]uint32 // the last one used; owned by who has the slot
	ended chan struct{}
}

func newSession(id uint64, secret string) *session {
	s := &session{
		id:     id,
		secret: secret,
		free:   make(chan uint16, maxSlots),
		spare:  make(chan uint16, urgentSlots),
		many:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
	}
	for i := range uint16(maxSlots) {
		s.pool(i) <- i
	}
	return s
}

// pool is where a slot is while it is free.
func (s *session) pool(slot uint16) chan uint16 {
	if slot >= maxSlots-urgentSlots {
		return s.spare
	}
	return s.free
}

// acquire takes n slots.
func (s *session) acquire(ctx context.Context, n int, urgent bool) ([]uint16, error) {
	var spare chan uint16
	if urgent {
		spare = s.spare
	}
	if n > 1 {
		// Two that each have half of the slots would wait for each other.
		select {
		case s.many <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		defer func() { <-s.many }()
	}
	taken := make([]uint16, 0, n)
	for range n {
		select {
		case slot := <-s.free:
			taken = append(taken, slot)
		case slot := <-spare:
			taken = append(taken, slot)
		case <-s.ended:
			s.release(taken)
			return nil, errSessionEnded
		case <-ctx.Done():
			s.release(taken)
			return nil, ctx.Err()
		}
	}
	return taken, nil
}

// release gives slots back. A slot whose numbers are used up stays out; all
// are after 5 × 10¹¹ changes.
func (s *session) release(slots []uint16) {
	for _, slot := range slots {
		if s.seq[slot] < 1<<32-1 {
			s.pool(slot) <- slot
		}
	}
}

// number gives each change in req its slot and the next number of it.
func (s *session) number(req *Request, slots []uint16) {
	give := func(q *Request) {
		slot := slots[0]
		slots = slots[1:]
		s.seq[slot]++
		q.Slot, q.Seq = slot, s.seq[slot]
	}
	if req.Op.Changes() {
		give(req)
	}
	for i := range req.Ops {
		if req.Ops[i].Op.Changes() {
			give(&req.Ops[i])
		}
	}
}

// changes counts the changes in req.
func changes(req *Request) int {
	n := 0
	if req.Op.Changes() {
		n++
	}
	for i := range req.Ops {
		if req.Ops[i].Op.Changes() {
			n++
		}
	}
	return n
}
