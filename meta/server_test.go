package meta_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// frame is a request as the wire has it.
func frame(kind byte, id uint64, req *meta.Request) []byte {
	body := req.Append(nil)
	b := binary.BigEndian.AppendUint32(nil, uint32(16+len(body)))
	b = append(b, 1, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(req.Op))
	b = binary.BigEndian.AppendUint64(b, id)
	b = binary.BigEndian.AppendUint32(b, 0)
	return append(b, body...)
}

func hello() []byte { return frame(1, 1, &meta.Request{Op: meta.OpHello, Version: 1}) }

// A breach of the protocol ends the connection, and nothing else.
func TestTheServiceCutsOffWhoBreaksTheProtocol(t *testing.T) {
	ping := func(id uint64) []byte { return frame(1, id, &meta.Request{Op: meta.OpPing}) }
	huge := append([]byte(nil), ping(2)...)
	binary.BigEndian.PutUint32(huge, meta.MaxFrame)
	short := append([]byte(nil), ping(2)...)
	binary.BigEndian.PutUint32(short, 15)
	format := append([]byte(nil), ping(2)...)
	format[4] = 2
	for name, sent := range map[string][][]byte{
		"no hello":                  {ping(1)},
		"a second hello":            {hello(), hello()},
		"a frame of another kind":   {hello(), frame(2, 2, &meta.Request{Op: meta.OpPing})},
		"a frame that is too long":  {hello(), huge},
		"a frame that is too short": {hello(), short},
		"another format":            {hello(), format},
		"another protocol":          {[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		"half a frame":              {hello(), ping(2)[:10]},
		"nothing":                   {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := direct(t, newToy())
				nc, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				go func() {
					for _, b := range sent {
						nc.Write(b)
						synctest.Wait()
					}
				}()
				// It ends: at once, or when the service has waited long enough.
				nc.SetReadDeadline(time.Now().Add(4 * toyLease))
				if _, err := io.Copy(io.Discard, nc); err != nil {
					t.Errorf("the connection was not closed: %v", err)
				}
				c := connect(t, l, meta.ClientConfig{})
				if err := makeName(t.Context(), c, "a"); err != nil {
					t.Errorf("another client: %v", err)
				}
			})
		})
	}
}

// flood sends n requests without waiting for answers, and returns how many the
// service answers after release, and whether it closed the connection.
func flood(t *testing.T, req *meta.Request, n int) (int, bool) {
	h := newToy()
	release := make(chan struct{})
	h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return &meta.Reply{}
	}
	nc, err := direct(t, h).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		nc.Write(hello())
		synctest.Wait()
		for i := range n {
			nc.Write(frame(1, uint64(i+2), req))
		}
		synctest.Wait()
		close(release)
	})
	nc.SetReadDeadline(time.Now().Add(time.Second))
	answers := -1 // the hello's does not count
	for head := make([]byte, 4); ; answers++ {
		if _, err = io.ReadFull(nc, head); err != nil {
			break
		}
		io.CopyN(io.Discard, nc, int64(binary.BigEndian.Uint32(head)))
	}
	wg.Wait()
	return answers, errors.Is(err, io.EOF)
}

func TestRequestsOfAConnectionAreBounded(t *testing.T) {
	wait := &meta.Request{Op: meta.OpSetlk, Wait: true}
	for _, test := range []struct {
		req  *meta.Request
		most int
	}{
		{&meta.Request{Op: meta.OpStatfs}, meta.MaxRequests},
		{wait, meta.MaxWaits},
	} {
		synctest.Test(t, func(t *testing.T) {
			if answers, closed := flood(t, test.req, test.most); answers != test.most || closed {
				t.Errorf("%v: %d of %d answered, closed %v", test.req.Op, answers, test.most, closed)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			if _, closed := flood(t, test.req, test.most+1); !closed {
				t.Errorf("%v: one more than %d, and the connection is not closed", test.req.Op, test.most)
			}
		})
	}
}

// A client that does not read must not hold what the service has for it for
// ever.
func TestAClientThatDoesNotReadIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		h.serve = func(context.Context, *meta.Request) *meta.Reply {
			return &meta.Reply{Data: make([]byte, 1<<20)}
		}
		nc, err := direct(t, h).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		start := time.Now()
		for id := uint64(1); ; id++ {
			b := hello()
			if id > 1 {
				b = frame(1, id, &meta.Request{Op: meta.OpStatfs})
			}
			if _, err = nc.Write(b); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("it was cut off after %v", took)
		}
	})
}

func TestAnIdleConnectionIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, err := direct(t, newToy()).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		go nc.Write(hello())
		start := time.Now()
		io.Copy(io.Discard, nc)
		if took := time.Since(start); took < 2*toyLease || took > 4*toyLease {
			t.Errorf("it was closed after %v", took)
		}
	})
}

func TestNoVersionIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nc, err := direct(t, newToy()).Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		go nc.Write(frame(1, 9, &meta.Request{Op: meta.OpHello}))
		head := make([]byte, 20)
		if _, err := io.ReadFull(nc, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, binary.BigEndian.Uint32(head)-16)
		if _, err := io.ReadFull(nc, body); err != nil {
			t.Fatal(err)
		}
		var reply meta.Reply
		if err := reply.Decode(body); err != nil {
			t.Fatal(err)
		}
		if id := binary.BigEndian.Uint64(head[8:]); id != 9 || head[5] != 2 || reply.Errno != syscall.EPROTONOSUPPORT {
			t.Errorf("the answer to request 9 is a frame of kind %d to %d: %+v", head[5], id, reply)
		}
	})
}

// A listener that fails for a while, as one does without file descriptors.
type flaky struct {
	net.Listener
	failures int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failures > 0 {
		f.failures--
		return nil, syscall.EMFILE
	}
	return f.Listener.Accept()
}

func TestServeOutlivesFailuresToAccept(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuilder
	done := make(chan error, 1)
	go func() { done <- meta.Serve(t.Context(), &flaky{ln, 3}, newToy(), log.logger()) }()
	c := connect(t, nil, meta.ClientConfig{Dial: meta.Dial(ln.Addr().String(), nil)})
	if err := makeName(t.Context(), c, "a"); err != nil {
		t.Error(err)
	}
	c.Close()
	ln.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve returned %v after its listener was closed", err)
	}
	if got := strings.Count(log.String(), "cannot accept"); got != 3 {
		t.Errorf("the log tells of %d failures, want 3:\n%s", got, log.String())
	}
}
