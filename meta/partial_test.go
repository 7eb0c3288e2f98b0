package meta_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// many is what a mount has that must say hello three times.
func many() ([]meta.Ino, []meta.InoLock) {
	return make([]meta.Ino, 12_000), make([]meta.InoLock, 25_000)
}

// told notes the hellos that a toy is sent, without what they tell.
type told struct {
	mu     sync.Mutex
	hellos []meta.Request
	locks  int
}

func (o *told) note(req *meta.Request) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.locks += len(req.Locks)
	o.hellos = append(o.hellos, meta.Request{Session: req.Session, Partial: req.Partial, Seq: req.Seq, Inos: req.Inos})
	return len(o.hellos)
}

func TestAClientWithManyLocksSaysHelloInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, told := newToy(), new(told)
		h.hello = func(req *meta.Request) *meta.Reply { told.note(req); return nil }
		c := connect(t, direct(t, h), meta.ClientConfig{Resume: many})
		session := c.Session()
		h.cut()
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := makeName(ctx, c, "a"); err != nil || c.Session() != session {
			t.Errorf("in session %d, which was %d: %v", c.Session(), session, err)
		}
		var partial []bool
		var seq []uint32
		for _, req := range told.hellos {
			partial, seq = append(partial, req.Partial), append(seq, req.Seq)
		}
		if want := []bool{false, true, true, false}; !slices.Equal(partial, want) || told.locks != 25_000 {
			t.Errorf("it told of %d locks in hellos that were partial %v", told.locks, partial)
		}
		if want := []uint32{1, 2, 2, 2}; !slices.Equal(seq, want) {
			t.Errorf("the hellos are of connections %v, want %v", seq, want)
		}
	})
}

// A session may end between two parts. The next begins on a connection of its own,
// as the service would not have it on this one.
func TestASessionThatEndsWhileItIsResumedIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, told := newToy(), new(told)
		h.hello = func(req *meta.Request) *meta.Reply {
			if told.note(req) == 3 {
				return &meta.Reply{Errno: syscall.ESTALE}
			}
			return nil
		}
		lost := 0
		c := connect(t, direct(t, h), meta.ClientConfig{Resume: many, Lost: func() { lost++ }})
		session := c.Session()
		h.cut()
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := makeName(ctx, c, "a"); err != nil || c.Session() == session || lost != 1 {
			t.Errorf("in session %d, which was %d, lost %d times: %v", c.Session(), session, lost, err)
		}
		var seq []uint32
		for _, req := range told.hellos {
			seq = append(seq, req.Seq)
		}
		// Its open files are two parts.
		if want := []uint32{1, 2, 2, 3, 3}; !slices.Equal(seq, want) || told.locks != 20_000 {
			t.Errorf("the hellos are of connections %v, want %v; %d locks", seq, want, told.locks)
		}
	})
}

// Nothing there changes, so a session of the past has nothing to tell.
func TestAClientOfThePastTellsOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, told := newToy(), new(told)
		h.hello = func(req *meta.Request) *meta.Reply { told.note(req); return nil }
		h.past = 1000
		resumed := 0
		c := connect(t, direct(t, h), meta.ClientConfig{At: 1000, Resume: func() ([]meta.Ino, []meta.InoLock) { resumed++; return many() }})
		h.cut()
		time.Sleep(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Do(ctx, &meta.Request{Op: meta.OpReaddir, Ino: meta.Root}); err != nil {
			t.Error(err)
		}
		for _, req := range told.hellos {
			if req.Partial || len(req.Inos) > 0 {
				t.Errorf("it tells of %d inodes, partial %v", len(req.Inos), req.Partial)
			}
		}
		if len(told.hellos) != 2 || told.locks != 0 || resumed != 1 {
			t.Errorf("%d hellos tell of %d locks, and what was cached was dropped %d times", len(told.hellos), told.locks, resumed)
		}
	})
}

// say sends a hello and returns its answer.
func say(t *testing.T, nc net.Conn, req meta.Request) (*meta.Reply, error) {
	t.Helper()
	req.Op, req.Version = meta.OpHello, 1
	go nc.Write(frame(1, 1, &req))
	nc.SetReadDeadline(time.Now().Add(time.Second))
	head := make([]byte, 20)
	if _, err := io.ReadFull(nc, head); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head)-16)
	if _, err := io.ReadFull(nc, body); err != nil {
		return nil, err
	}
	reply := new(meta.Reply)
	return reply, reply.Decode(body)
}

// A connection opens one session, and does not hold it half open for ever.
func TestTheHellosOfAConnectionAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := direct(t, newToy())
		dial := func() net.Conn {
			nc, err := l.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { nc.Close() })
			return nc
		}
		nc := dial()
		req := meta.Request{Partial: true}
		hellos := 0
		for ; hellos < 3000; hellos++ {
			reply, err := say(t, nc, req)
			if err == io.EOF {
				break
			} else if err != nil || reply.Errno != 0 || reply.Version != 1 {
				t.Fatalf("hello %d: %+v, %v", hellos, reply, err)
			}
			req.Session, req.Secret = reply.Session, reply.Secret
		}
		if hellos != 1000 {
			t.Errorf("%d hellos in parts were answered, want 1000", hellos)
		}
		for name, session := range map[string]uint64{"no session": 0, "another's": req.Session} {
			nc := dial()
			if _, err := say(t, nc, meta.Request{Partial: true}); err != nil {
				t.Fatal(err)
			}
			if reply, err := say(t, nc, meta.Request{Session: session, Secret: "secret"}); err != io.EOF {
				t.Errorf("%s after a part of one: %+v, %v", name, reply, err)
			}
		}
	})
}
