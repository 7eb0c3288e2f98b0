package meta

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A link is one connection of a Client.
type link struct {
	*calls
	client  *Client
	session *session      // set by the greeting
	lease   time.Duration // likewise
	number  uint32        // of the client's connections, from 1
	partial bool          // an OpHello that is Partial was answered
	heard   atomic.Int64  // when the last frame came, ns after client.epoch
	pushes  sync.WaitGroup
	pushing atomic.Int64  // unanswered pushes
	ended   chan struct{} // closed when no more frames are taken
}

func newLink(c *Client, nc net.Conn) *link {
	return &link{calls: newCalls(newFramer(nc), kindRequest), client: c, ended: make(chan struct{})}
}

func (l *link) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

// run sends and receives until the connection ends.
func (l *link) run() {
	var writer sync.WaitGroup
	writer.Go(l.writeQueued)
	l.close(l.read())
	l.end()
	close(l.ended)
	writer.Wait()
	l.pushes.Wait()
}

// read takes frames. It waits for nothing but them and Stale.
func (l *link) read() error {
	for {
		h, body, err := l.receive()
		if err != nil {
			return fmt.Errorf("meta: %w", err)
		}
		l.heard.Store(int64(time.Since(l.client.epoch)))
		switch h.kind {
		case kindReply:
			if err := l.replied(h, body); err != nil {
				return err
			}
		case kindPushRequest:
			if err := l.pushed(h, body); err != nil {
				return err
			}
		default:
			return fmt.Errorf("meta: frame of kind %d from the service", h.kind)
		}
	}
}

// replied hands a reply to who waits for it. An error ends the connection.
func (l *link) replied(h header, body []byte) error {
	k, a := l.answer(h, body)
	switch {
	case k == nil:
		return nil
	case k.op == OpHello || a.err != nil:
		// No lease yet, or nothing that one could believe.
	case a.reply.Errno == syscall.ENOTCONN:
		err := errors.New("meta: the session has ended")
		l.close(err) // first: who waits will look for another link
		k.finish(answer{err: fmt.Errorf("%w: %w: %w", errNotDone, errBroken, err)})
		return err
	case l.client.cfg.At != 0 && a.reply.Errno == syscall.ESTALE:
		l.client.outlived(&Error{Op: k.op, Errno: a.reply.Errno, Msg: a.reply.Msg})
	default:
		l.client.extend(k.sent, l.lease)
		l.client.hear(k.sent, a.reply)
	}
	k.finish(a)
	return nil
}

// pushed starts the work on a request of the service. An error is a breach of
// the protocol.
func (l *link) pushed(h header, body []byte) error {
	if l.pushing.Add(1) > MaxPushes {
		return fmt.Errorf("meta: more than %d pushes at a time", MaxPushes)
	}
	req, err := parseRequest(h, body)
	var work func([]Inval) []Ino
	if err == nil && req.Op == OpInval {
		if l.client.cfg.Stale != nil {
			l.client.cfg.Stale(req.Invals)
		}
		work = l.client.cfg.Inval
	}
	l.pushes.Go(func() {
		reply := &Reply{}
		switch {
		case err != nil:
			reply = &Reply{Errno: syscall.EBADMSG, Msg: err.Error()}
		case req.Op != OpInval:
			reply = &Reply{Errno: syscall.ENOSYS, Msg: "unknown push"}
		case work != nil:
			reply.Inos = work(req.Invals)
		}
		l.pushing.Add(-1)
		respond(l.send, h, kindPushReply, reply)
	})
	return nil
}

// clockTicks is after how many ticks, each a sixth of a lease, the service is asked
// for its time at least: the clocks of two machines do not run alike.
const clockTicks = 18

// watch keeps the session, and closes a connection that has fallen silent: a
// third of a lease after the last answered request it asks for a sign of life,
// and after two thirds without one it gives the connection up.
func (l *link) watch() {
	tick := time.NewTicker(l.lease / 6)
	defer tick.Stop()
	asked := 0 // ticks since the last question
	for {
		select {
		case <-tick.C:
		case <-l.done:
			return
		}
		heard := l.client.epoch.Add(time.Duration(l.heard.Load()))
		if silent := time.Since(heard); silent >= l.lease*2/3 {
			l.close(fmt.Errorf("meta: the service is silent for %v", silent.Round(time.Millisecond)))
			return
		}
		if l.client.slept() {
			l.close(errors.New("meta: this machine slept, or its clock was set"))
			return // and what is cached, here and in the kernel, goes with the connection
		}
		asked++
		if time.Until(l.client.LeaseUntil()) <= l.lease*5/6 || asked == clockTicks {
			asked = 0
			l.startBy(context.Background(), &Request{Op: OpPing}, l.post) // answered or not: heard and lease tell
		}
	}
}

// do sends a request that is not counted: a greeting, a farewell, a cancel.
func (l *link) do(ctx context.Context, req *Request) (*Reply, error) { return l.ask(ctx, req, nil) }

// ask sends a request and waits for its reply; see [calls.await].
func (l *link) ask(ctx context.Context, req *Request, late func()) (*Reply, error) {
	k, err := l.calls.start(ctx, req)
	if err == errTooLarge {
		return nil, &Error{Op: req.Op, Errno: syscall.EMSGSIZE, Msg: err.Error()}
	} else if err != nil {
		return nil, err
	}
	return l.await(ctx, k, late)
}

// askLock is ask for a waiting lock: when ctx ends it cancels the wait, and
// then learns how that went.
func (l *link) askLock(ctx context.Context, req *Request) (*Reply, error) {
	k, err := l.calls.start(context.Background(), req)
	if err != nil {
		return nil, err
	}
	reply, err := l.await(ctx, k, nil)
	if !errors.Is(err, errAbandoned) {
		return reply, err
	}
	if _, err := l.calls.start(context.Background(), &Request{Op: OpCancel, ID: k.id}); err != nil {
		return nil, err
	}
	return l.await(context.Background(), k, nil)
}
