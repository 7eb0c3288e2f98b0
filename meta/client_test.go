package meta_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/metatest"
)

func TestOverTLS(t *testing.T) {
	https := httptest.NewTLSServer(nil) // has a certificate
	defer https.Close()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	h := newToy()
	go func() {
		conf := &tls.Config{Certificates: https.TLS.Certificates, MinVersion: tls.VersionTLS13}
		served <- meta.Serve(ctx, tls.NewListener(ln, conf), h, slog.New(slog.DiscardHandler))
	}()
	conf := &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS13}
	c := connect(t, nil, meta.ClientConfig{Dial: meta.Dial(ln.Addr().String(), conf), Volume: "v"})
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			if err := makeName(ctx, c, fmt.Sprint("file", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(h.names()); got != 300 {
		t.Errorf("%d files were made, want 300", got)
	}
	if got := c.Volume(); got.ID != "v" || got.Name != "toy" {
		t.Errorf("the volume is %+v", got)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs}); err == nil {
		t.Error("a closed client does something")
	}
}

func TestARefusalIsAnErrno(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, direct(t, newToy()), meta.ClientConfig{})
		makeName(t.Context(), c, "a")
		err := makeName(t.Context(), c, "a")
		var refused *meta.Error
		if !errors.As(err, &refused) || refused.Errno != syscall.EEXIST || refused.Op != meta.OpMake {
			t.Errorf("the error is %#v", err)
		}
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v is not fs.ErrExist", err)
		}
	})
}

func TestConnectSaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		hello *meta.Reply
		want  string
	}{
		"a refused token": {&meta.Reply{Errno: syscall.EACCES, Msg: "token has expired"}, "token has expired"},
		"another version": {&meta.Reply{Session: 1, Version: 99, Lease: toyLease}, "version 99"},
		"no lease":        {&meta.Reply{Session: 1}, "no lease"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newToy()
				h.hello = func(*meta.Request) *meta.Reply { return test.hello }
				c := meta.NewClient(meta.ClientConfig{Dial: direct(t, h).Dial, Token: func() string { return "" }})
				err := c.Connect(t.Context())
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Connect returned %v, want it to say %q", err, test.want)
				}
				c.Close()
			})
		})
	}
}

// The heart of it: whatever is lost at whichever step, each change is done once
// and its answer is the first one.
func TestChangesAreDoneOnceWhateverIsLost(t *testing.T) {
	for name, fault := range map[string]metatest.Fault{
		"request lost": metatest.Lost, "reply lost": metatest.ReplyLost, "silence": metatest.Silent,
	} {
		for step := range 7 { // hello, 5 changes, bye
			t.Run(fmt.Sprintf("%s at step %d", name, step), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { loseOne(t, fault, step) })
			})
		}
	}
}

func loseOne(t *testing.T, fault metatest.Fault, step int) {
	h := newToy()
	l := direct(t, h)
	var n atomic.Int64
	dial := metatest.Faulty(l.Dial, func(op meta.Op) metatest.Fault {
		if n.Add(1) == int64(step)+1 {
			return fault
		}
		return metatest.OK
	})
	c := meta.NewClient(meta.ClientConfig{Dial: dial, Token: func() string { return "" }})
	defer c.Close()
	if err := c.Connect(t.Context()); err != nil {
		if err := c.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 5 {
		name := fmt.Sprint("file", i)
		want = append(want, name)
		if err := makeName(t.Context(), c, name); err != nil {
			t.Errorf("make %s: %v", name, err)
		}
	}
	if got := h.names(); !slices.Equal(got, want) {
		t.Errorf("made: %q, want %q", got, want)
	}
}

// Many callers, and every tenth request is lost in one way or the other.
func TestManyChangesAreDoneOnceWhileConnectionsBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var n atomic.Int64
		dial := metatest.Faulty(direct(t, h).Dial, func(op meta.Op) metatest.Fault {
			switch i := n.Add(1); {
			case i < 3 || i%10 != 0:
				return metatest.OK
			case i%20 == 0:
				return metatest.Lost
			}
			return metatest.ReplyLost
		})
		c := connect(t, nil, meta.ClientConfig{Dial: dial})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					if err := makeName(t.Context(), c, fmt.Sprintf("file%d.%d", i, j)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		got := h.names()
		slices.Sort(got)
		if len(got) != 160 || len(slices.Compact(got)) != 160 || strings.Contains(fmt.Sprint(got), "again") {
			t.Errorf("%d names were made: %q", len(got), got)
		}
	})
}

func TestPartsOfACompoundAreDoneOnce(t *testing.T) {
	for _, fault := range []metatest.Fault{metatest.Lost, metatest.ReplyLost} {
		synctest.Test(t, func(t *testing.T) {
			h := newToy()
			dial := metatest.Faulty(direct(t, h).Dial, func() func(meta.Op) metatest.Fault {
				done := false
				return func(op meta.Op) metatest.Fault {
					if op == meta.OpCompound && !done {
						done = true
						return fault
					}
					return metatest.OK
				}
			}())
			c := connect(t, nil, meta.ClientConfig{Dial: dial})
			reply, err := c.Do(t.Context(), &meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
				{Op: meta.OpMake, Name: "a"}, {Op: meta.OpReaddir}, {Op: meta.OpMake, Name: "b"},
			}})
			if err != nil || len(reply.Replies) != 3 || reply.Replies[2].Errno != 0 {
				t.Errorf("the compound: %+v, %v", reply, err)
			}
			if got := h.names(); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("made: %q", got)
			}
		})
	}
}

func TestTheSessionSurvivesARestartOfTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var l atomic.Pointer[meta.Local]
		l.Store(direct(t, h))
		var resumed atomic.Int64
		c := connect(t, nil, meta.ClientConfig{
			Dial:   func(ctx context.Context) (net.Conn, error) { return l.Load().Dial(ctx) },
			Resume: func() ([]meta.Ino, []meta.InoLock) { resumed.Add(1); return []meta.Ino{5}, nil },
			Lost:   func() { t.Error("the session is lost") },
		})
		if err := makeName(t.Context(), c, "a"); err != nil {
			t.Error(err)
		}
		was := c.Session()
		l.Load().Close()
		time.AfterFunc(5*time.Second, func() { l.Store(direct(t, h)) })
		start := time.Now()
		if err := makeName(t.Context(), c, "b"); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 5*time.Second+2*toyLease/3 {
			t.Errorf("the client came back after %v", took)
		}
		if c.Session() != was || resumed.Load() != 1 {
			t.Errorf("session %d after %d, resumed %d times", c.Session(), was, resumed.Load())
		}
	})
}

func TestAHalfOpenConnectionIsFoundWithinTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		silence := true
		c := connect(t, nil, meta.ClientConfig{Dial: metatest.Faulty(direct(t, h).Dial, func(op meta.Op) metatest.Fault {
			if op == meta.OpReaddir && silence {
				silence = false
				return metatest.Silent
			}
			return metatest.OK
		})})
		start := time.Now()
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpReaddir}); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > toyLease {
			t.Errorf("it took %v to leave the dead connection, want less than the lease of %v", took, toyLease)
		}
	})
}

func TestALostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		hold := make(chan struct{})
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Name == "slow" {
				<-ctx.Done()
			}
			return nil
		}
		lost := 0
		c := connect(t, direct(t, h), meta.ClientConfig{Lost: func() { lost++; <-hold }})
		was := c.Session()
		unsure := make(chan error)
		go func() { unsure <- makeName(t.Context(), c, "slow") }()
		synctest.Wait()
		h.forget()
		synctest.Wait()
		time.Sleep(time.Second) // the client is in Lost
		if !c.LeaseUntil().IsZero() || c.LeaseValid() {
			t.Error("the lease outlives the session")
		}
		sure := make(chan error)
		go func() { sure <- makeName(t.Context(), c, "b") }()
		synctest.Wait()
		close(hold)
		if err := <-sure; err != nil {
			t.Errorf("a change that was made after the loss: %v", err)
		}
		var refused *meta.Error
		if err := <-unsure; !errors.As(err, &refused) || refused.Errno != syscall.EIO {
			t.Errorf("a change that was lost with the session: %v, want EIO", err)
		}
		if lost != 1 || c.Session() == was {
			t.Errorf("Lost was called %d times; session %d, was %d", lost, c.Session(), was)
		}
		if got := h.names(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("made: %q", got)
		}
	})
}

// The service answers ENOTCONN when it has ended a session whose connection is
// still there. No program may see that.
func TestNoSessionAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		c := connect(t, direct(t, h), meta.ClientConfig{})
		h.mu.Lock()
		clear(h.sessions)
		h.mu.Unlock()
		if err := makeName(t.Context(), c, "a"); err != nil {
			t.Error(err)
		}
		if got := h.names(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("made: %q", got)
		}
	})
}

func TestTheLeaseCountsFromTheSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op == meta.OpStatfs {
				time.Sleep(time.Second)
			}
			return nil
		}
		l, dials := direct(t, h), 0
		c := connect(t, nil, meta.ClientConfig{Dial: func(ctx context.Context) (net.Conn, error) {
			dials++
			return l.Dial(ctx)
		}})
		time.Sleep(time.Second)
		sent := time.Now()
		c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs})
		if got, want := c.LeaseUntil(), sent.Add(toyLease); !got.Equal(want) {
			t.Errorf("the lease ends %v after the sending, want %v", got.Sub(sent), toyLease)
		}
		time.Sleep(time.Hour)
		if !c.LeaseValid() || dials != 1 {
			t.Errorf("an idle client: lease valid %v, %d connections", c.LeaseValid(), dials)
		}
	})
}

func TestTheLeaseEndsWithoutTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := direct(t, newToy())
		c := connect(t, l, meta.ClientConfig{})
		l.Close()
		time.Sleep(toyLease + 1)
		if c.LeaseValid() {
			t.Error("the lease is valid though the service was not heard of for longer")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Do(ctx, &meta.Request{Op: meta.OpStatfs}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a request without a service: %v", err)
		}
	})
}

func TestDoReturnsWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		hold := make(chan struct{})
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			<-hold
			return nil
		}
		c := connect(t, direct(t, h), meta.ClientConfig{})
		// More than may be under way, of each sort: what was given up still
		// counts until it is answered, and does not after.
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				if err := makeName(ctx, c, fmt.Sprint(i)); !errors.Is(err, context.Canceled) {
					t.Errorf("a change that was given up: %v", err)
				}
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := c.Do(ctx, &meta.Request{Op: meta.OpStatfs}); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a read that was given up: %v", err)
				}
			})
		}
		wg.Wait()
		close(hold)
		for i := range 300 {
			if err := makeName(t.Context(), c, fmt.Sprint("later", i)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func setlk(typ uint32, wait bool) *meta.Request {
	return &meta.Request{Op: meta.OpSetlk, Ino: 1, Lock: meta.Lock{Type: typ}, Wait: wait}
}

func errnoOf(err error) syscall.Errno {
	var refused *meta.Error
	if errors.As(err, &refused) {
		return refused.Errno
	}
	return 0
}

func TestAWaitingLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		l := direct(t, h)
		a, b := connect(t, l, meta.ClientConfig{}), connect(t, l, meta.ClientConfig{})
		if _, err := a.Do(t.Context(), setlk(syscall.F_WRLCK, true)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Do(t.Context(), setlk(syscall.F_WRLCK, false)); errnoOf(err) != syscall.EAGAIN {
			t.Errorf("a lock held by another: %v", err)
		}
		// Interrupted.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if _, err := b.Do(ctx, setlk(syscall.F_WRLCK, true)); errnoOf(err) != syscall.EINTR {
			t.Errorf("an interrupted wait: %v", err)
		}
		// It goes on waiting while its connection breaks, and the service that
		// stops does not interrupt it.
		got := make(chan error)
		go func() {
			_, err := b.Do(t.Context(), setlk(syscall.F_WRLCK, true))
			got <- err
		}()
		for range 3 {
			time.Sleep(time.Minute)
			h.cut()
		}
		time.Sleep(time.Minute)
		select {
		case err := <-got:
			t.Fatalf("the wait ended before the lock was free: %v", err)
		default:
		}
		if _, err := a.Do(t.Context(), setlk(syscall.F_UNLCK, false)); err != nil {
			t.Error(err)
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		if h.owner.id != b.Session() {
			t.Errorf("the lock is held by session %d, want %d", h.owner.id, b.Session())
		}
	})
}

func TestAWaitingLockWithoutAServiceCanBeInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		l := direct(t, h)
		a, b := connect(t, l, meta.ClientConfig{}), connect(t, l, meta.ClientConfig{})
		a.Do(t.Context(), setlk(syscall.F_WRLCK, true))
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan error)
		go func() {
			_, err := b.Do(ctx, setlk(syscall.F_WRLCK, true))
			got <- err
		}()
		synctest.Wait()
		l.Close()
		time.Sleep(time.Minute)
		start := time.Now()
		cancel()
		if err := <-got; errnoOf(err) != syscall.EINTR || time.Since(start) != 0 {
			t.Errorf("after %v: %v, want EINTR at once", time.Since(start), err)
		}
	})
}

// The service gives up a wait when it stops. The program that waits did not ask
// for that.
func TestAnInterruptionOfTheServiceIsNotTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var times atomic.Int64
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op == meta.OpSetlk && times.Add(1) < 3 {
				return &meta.Reply{Errno: syscall.EINTR}
			}
			return nil
		}
		c := connect(t, direct(t, h), meta.ClientConfig{})
		if _, err := c.Do(t.Context(), setlk(syscall.F_WRLCK, true)); err != nil || times.Load() != 3 {
			t.Errorf("after %d times: %v", times.Load(), err)
		}
	})
}

func TestManyWaitingLocksLeaveRoomForOtherRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := direct(t, newToy())
		a, b := connect(t, l, meta.ClientConfig{}), connect(t, l, meta.ClientConfig{})
		a.Do(t.Context(), setlk(syscall.F_WRLCK, true))
		var wg sync.WaitGroup
		for range meta.MaxWaits + 10 {
			wg.Go(func() {
				if _, err := b.Do(t.Context(), setlk(syscall.F_WRLCK, true)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if err := makeName(t.Context(), b, "a"); err != nil {
			t.Error(err)
		}
		a.Do(t.Context(), setlk(syscall.F_UNLCK, false))
		wg.Wait()
	})
}

// An OpInval that was sent before a reply is handed to Stale before Do returns
// the reply.
func TestInvalsComeBeforeLaterReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var sent, stale atomic.Int64
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op != meta.OpGetattr {
				return nil
			}
			pushed := make(chan struct{})
			n := sent.Add(1)
			go func() {
				defer close(pushed)
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				defer cancel()
				h.push(ctx, meta.Inval{Ino: meta.Ino(n)})
			}()
			<-pushed // it was sent: Inval is slow, so not answered
			return &meta.Reply{Attr: meta.Attr{Ino: meta.Ino(n)}}
		}
		c := connect(t, direct(t, h), meta.ClientConfig{
			Stale: func(list []meta.Inval) {
				time.Sleep(time.Millisecond)
				stale.Store(int64(list[0].Ino))
			},
			Inval: func([]meta.Inval) []meta.Ino { time.Sleep(time.Minute); return nil },
		})
		for range 100 {
			reply, err := c.Do(t.Context(), &meta.Request{Op: meta.OpGetattr})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := stale.Load(), int64(reply.Attr.Ino); got != want {
				t.Fatalf("inval %d was sent before the reply, but Stale saw %d", want, got)
			}
		}
	})
}

func TestAPushIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		c := connect(t, direct(t, h), meta.ClientConfig{
			Inval: func(list []meta.Inval) []meta.Ino {
				time.Sleep(time.Second)
				return []meta.Ino{list[1].Ino}
			},
		})
		invals := []meta.Inval{{Ino: 3, Attr: true}, {Ino: 4, Names: []string{"x"}}}
		reply, err := h.push(t.Context(), invals...)
		if err != nil || !slices.Equal(reply.Inos, []meta.Ino{4}) {
			t.Errorf("the answer to a push: %+v, %v", reply, err)
		}
		// More than may be unanswered wait for each other.
		var wg sync.WaitGroup
		for range 2 * meta.MaxPushes {
			wg.Go(func() {
				if _, err := h.push(t.Context(), invals...); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// Given up, they count until they are answered.
		for range 2 * meta.MaxPushes {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				if _, err := h.push(ctx, invals...); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("a push that was given up: %v", err)
				}
			})
		}
		wg.Wait()
		if _, err := h.push(t.Context(), invals...); err != nil {
			t.Error(err)
		}
		// Nobody there.
		h.mu.Lock()
		conn := h.sessions[c.Session()].conn
		h.mu.Unlock()
		conn.Close()
		if _, err := conn.Push(t.Context(), &meta.Request{Op: meta.OpInval}); err == nil {
			t.Error("a push to a closed connection succeeds")
		}
	})
}

func TestAPanicIsAnsweredAndLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op == meta.OpStatfs {
				panic("a bug")
			}
			return nil
		}
		var logged strings.Builder
		l := meta.Direct(h, slog.New(slog.NewTextHandler(&logged, nil)))
		defer l.Close()
		c := connect(t, l, meta.ClientConfig{})
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs}); errnoOf(err) != syscall.EIO {
			t.Errorf("a request that makes the service panic: %v", err)
		}
		if err := makeName(t.Context(), c, "a"); err != nil {
			t.Errorf("after a panic: %v", err)
		}
		c.Close()
		l.Close()
		if !strings.Contains(logged.String(), "a bug") || !strings.Contains(logged.String(), "client_test.go") {
			t.Errorf("the log does not tell what happened and where:\n%s", &logged)
		}
	})
}

func TestMessagesLargerThanAFrameAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op == meta.OpGetxattr {
				return &meta.Reply{Data: make([]byte, req.Size)}
			}
			return nil
		}
		c := connect(t, direct(t, h), meta.ClientConfig{Lost: func() { t.Error("the session is lost") }})
		for _, n := range []int{100 << 10, meta.MaxFrame - 100} {
			reply, err := c.Do(t.Context(), &meta.Request{Op: meta.OpGetxattr, Size: uint64(n), Data: make([]byte, n)})
			if err != nil || len(reply.Data) != n {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpGetxattr, Size: meta.MaxFrame}); errnoOf(err) != syscall.EMSGSIZE {
			t.Errorf("an answer that is too large: %v", err)
		}
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpSetxattr, Data: make([]byte, meta.MaxFrame)}); errnoOf(err) != syscall.EMSGSIZE {
			t.Errorf("a request that is too large: %v", err)
		}
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpCompound, Ops: make([]meta.Request, meta.MaxOps+1)}); errnoOf(err) != syscall.EINVAL {
			t.Errorf("a compound that is too long: %v", err)
		}
	})
}

// A request that the service does not understand would be repeated for ever if
// it broke the connection.
func TestARequestThatIsNotUnderstoodIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, direct(t, newToy()), meta.ClientConfig{})
		nested := []meta.Request{{Op: meta.OpCompound, Ops: []meta.Request{{Op: meta.OpPing}}}}
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpCompound, Ops: nested}); errnoOf(err) != syscall.EBADMSG {
			t.Errorf("a nested compound: %v", err)
		}
	})
}

// While no new session can be opened, a client is the last one that it had:
// its number is in the names of blocks, and there must never be two of a name.
func TestTheNumberOfALostSessionStaysTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var lost atomic.Bool
		h.hello = func(req *meta.Request) *meta.Reply {
			if lost.Load() {
				return &meta.Reply{Errno: syscall.EACCES}
			}
			return nil
		}
		c := connect(t, direct(t, h), meta.ClientConfig{Lost: func() { lost.Store(true) }})
		was := c.Session()
		h.forget()
		h.cut()
		time.Sleep(5 * time.Second)
		if !lost.Load() {
			t.Fatal("the session is not lost")
		}
		if c.Session() != was || was == 0 {
			t.Errorf("the session is %d, was %d", c.Session(), was)
		}
	})
}
