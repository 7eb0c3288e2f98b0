package meta

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// A call is a request that was sent and waits for its reply.
type call struct {
	id    uint64
	op    Op
	sent  time.Time
	reply chan answer // takes one

	late func() // of an abandoned call: called when it ends; guarded by calls.mu
}

type answer struct {
	reply *Reply
	err   error // it came but is not understood
}

// calls are what one side of a connection has asked and not been answered.
type calls struct {
	*framer
	kind byte // of the frames that ask

	mu   sync.Mutex
	last uint64
	open map[uint64]*call // nil when the connection is closed
}

func newCalls(f *framer, kind byte) *calls {
	return &calls{framer: f, kind: kind, open: make(map[uint64]*call)}
}

// start sends a request. The error wraps errBroken and errNotDone, or is
// errTooLarge.
func (c *calls) start(ctx context.Context, req *Request) (*call, error) {
	return c.startBy(ctx, req, c.send)
}

// startBy is start with a way to send.
func (c *calls) startBy(ctx context.Context, req *Request, send func(header, message) error) (*call, error) {
	k := &call{op: req.Op, sent: time.Now(), reply: make(chan answer, 1)}
	if err := c.add(k); err != nil {
		return nil, err
	}
	h := header{kind: c.kind, op: req.Op, id: k.id, deadline: deadlineOf(ctx)}
	if err := send(h, req); err == errTooLarge {
		c.take(k.id)
		return nil, err
	} else if err != nil {
		c.take(k.id)
		return nil, fmt.Errorf("%w: %w", errNotDone, err)
	}
	return k, nil
}

func (c *calls) add(k *call) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		return fmt.Errorf("%w: %w: %w", errNotDone, errBroken, c.reason())
	}
	c.last++
	k.id = c.last
	c.open[k.id] = k
	return nil
}

func (c *calls) take(id uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.open[id]
	delete(c.open, id)
	return k
}

// await waits for the reply to k. If ctx ends first the error wraps errAbandoned
// and ctx's, and k goes on; late, if there is one, is called when k ends after
// all. If the connection ends first the error wraps errBroken: then it is not
// known whether the request was done.
func (c *calls) await(ctx context.Context, k *call, late func()) (*Reply, error) {
	select {
	case a := <-k.reply:
		return a.reply, a.err
	case <-ctx.Done():
		c.abandon(k, late)
		return nil, fmt.Errorf("%w: %w", errAbandoned, context.Cause(ctx))
	}
}

func (c *calls) abandon(k *call, late func()) {
	if late == nil {
		return
	}
	c.mu.Lock()
	_, open := c.open[k.id]
	if open {
		k.late = late
	}
	c.mu.Unlock()
	if !open {
		late()
	}
}

// answer decodes the reply in body for the call that waits for it, and returns
// both. The call is nil if nobody asked; otherwise finish must follow.
func (c *calls) answer(h header, body []byte) (*call, answer) {
	k := c.take(h.id)
	if k == nil {
		return nil, answer{}
	}
	reply := new(Reply)
	if err := reply.Decode(body); err != nil {
		return k, answer{err: fmt.Errorf("meta: answer to %v: %w", k.op, err)}
	}
	return k, answer{reply: reply}
}

// finish gives a call that was taken its answer.
func (k *call) finish(a answer) {
	k.reply <- a
	if k.late != nil {
		k.late()
	}
}

// end gives up all calls. The connection must have been closed before, and no
// frame is taken any more: an answer that came before the end counts.
func (c *calls) end() {
	c.mu.Lock()
	open := c.open
	c.open = nil
	c.mu.Unlock()
	for _, k := range open {
		k.finish(answer{err: fmt.Errorf("%w: %w", errBroken, c.reason())})
	}
}

// respond sends the reply to the request of h, by send or post.
func respond(send func(header, message) error, h header, kind byte, reply *Reply) {
	h.kind, h.deadline = kind, 0
	if send(h, reply) == errTooLarge {
		send(h, &Reply{Errno: syscall.EMSGSIZE, Msg: "the answer does not fit a frame"})
	}
}

// parseRequest decodes the request of a frame.
func parseRequest(h header, body []byte) (*Request, error) {
	req := new(Request)
	if err := req.Decode(body); err != nil {
		return nil, err
	}
	if req.Op != h.op {
		return nil, fmt.Errorf("meta: %v in a frame of %v", req.Op, h.op)
	}
	return req, nil
}
