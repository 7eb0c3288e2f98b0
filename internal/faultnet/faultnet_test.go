package faultnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// soon is much longer than anything takes that is not held back.
const soon = 10 * time.Second

// An echo is a server that sends back what it gets.
type echo struct {
	ln  net.Listener
	wg  sync.WaitGroup
	got chan []byte // what came, if somebody wants it
}

func newEcho(t *testing.T) *echo {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{ln: ln, got: make(chan []byte, 1000)}
	e.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			e.wg.Go(func() {
				defer conn.Close()
				for buf := make([]byte, 64<<10); ; {
					n, err := conn.Read(buf)
					if n > 0 {
						select {
						case e.got <- bytes.Clone(buf[:n]):
						default:
						}
						conn.Write(buf[:n])
					}
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); e.wg.Wait() })
	return e
}

// wantGot wants the server to have got text next.
func (e *echo) wantGot(t *testing.T, text string) {
	t.Helper()
	select {
	case got := <-e.got:
		if string(got) != text {
			t.Errorf("the server got %q, want %q", got, text)
		}
	case <-time.After(soon):
		t.Errorf("the server did not get %q", text)
	}
}

// newNet returns a line to an echo. When the test ends nothing may be left of it.
func newNet(t *testing.T) (*Net, *echo) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(soon)
		for runtime.NumGoroutine() > before {
			if time.Now().After(deadline) {
				t.Fatalf("%d goroutines are left, of %d at the start", runtime.NumGoroutine(), before)
			}
			time.Sleep(time.Millisecond)
		}
	})
	e := newEcho(t)
	n, err := New(e.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n, e
}

func dial(t *testing.T, n *Net) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func set(t *testing.T, n *Net, line Line) {
	t.Helper()
	if err := n.Set(line); err != nil {
		t.Fatal(err)
	}
}

// ask sends text and wants it back, within a time.
func ask(conn net.Conn, text string, within time.Duration) error {
	conn.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if n, err := io.ReadFull(conn, got); err != nil {
		return err
	} else if string(got) != text {
		return errors.New("not what was sent, but " + string(got[:n]))
	}
	return nil
}

func wantAnswer(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if err := ask(conn, text, soon); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

// moment is long for a line that passes everything.
const moment = 100 * time.Millisecond

func wantSilence(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	var late net.Error
	if err := ask(conn, text, moment); !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("%s: want no answer, got %v", text, err)
	}
}

func wantReset(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(soon))
	_, err := io.Copy(io.Discard, conn)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("want a reset, got %v", err)
	}
}

func TestEverythingPassesInOrder(t *testing.T) {
	n, _ := newNet(t)
	set(t, n, Line{Latency: 2 * time.Millisecond, Jitter: 3 * time.Millisecond})
	conn := dial(t, n)
	want := make([]byte, 3<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 5)
	}
	go func() {
		conn.Write(want)
		conn.(*net.TCPConn).CloseWrite()
	}()
	conn.SetDeadline(time.Now().Add(soon))
	got, err := io.ReadAll(conn) // the server ends when the client has
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back of %d, or others: %v", len(got), len(want), err)
	}
	if passed := n.Bytes(); passed != 2*int64(len(want)) {
		t.Errorf("%d bytes were passed on", passed)
	}
}

func TestLatencyIsPaidEachWay(t *testing.T) {
	const latency = 40 * time.Millisecond
	n, _ := newNet(t)
	set(t, n, Line{Latency: latency})
	begin := time.Now()
	conn := dial(t, n)
	for i, want := range []time.Duration{4 * latency, 2 * latency} { // the first pays for the connection
		wantAnswer(t, conn, "hello")
		if took := time.Since(begin); took < want || took > want+20*latency {
			t.Errorf("request %d took %v; want %v", i, took, want)
		}
		begin = time.Now()
	}
	set(t, n, Line{})
	begin = time.Now()
	wantAnswer(t, conn, "hello")
	if took := time.Since(begin); took > latency {
		t.Errorf("a request took %v without latency", took)
	}
}

func TestRateIsSharedByConnections(t *testing.T) {
	const rate, size = 1 << 20, 64 << 10
	n, _ := newNet(t)
	set(t, n, Line{Rate: rate})
	var wg sync.WaitGroup
	begin := time.Now()
	for range 4 {
		conn := dial(t, n)
		wg.Go(func() { wantAnswer(t, conn, string(make([]byte, size))) })
	}
	wg.Wait()
	if took, want := time.Since(begin), time.Second*4*size/rate; took < want {
		t.Errorf("%d bytes took %v; at %d bytes a second they take %v", 4*size, took, rate, want)
	}
	set(t, n, Line{Rate: 1})
	conn := dial(t, n)
	wantSilence(t, conn, "slow")
	set(t, n, Line{})
	conn.SetDeadline(time.Now().Add(2 * time.Second)) // half of what it took at the rate
	if _, err := io.ReadFull(conn, make([]byte, len("slow"))); err != nil {
		t.Errorf("when the limit is gone: %v", err)
	}
}

func TestRefusedIsRefusedAndComesBack(t *testing.T) {
	n, _ := newNet(t)
	for range 3 {
		conn := dial(t, n)
		wantAnswer(t, conn, "hello")
		set(t, n, Line{State: Refused})
		wantReset(t, conn)
		if conn, err := net.Dial("tcp", n.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("want a refusal, got %v, %v", conn, err)
		}
		set(t, n, Line{})
	}
}

func TestLostNeverComesBack(t *testing.T) {
	n, e := newNet(t)
	old, idle := dial(t, n), dial(t, n)
	wantAnswer(t, old, "a")
	wantAnswer(t, idle, "b")
	e.wantGot(t, "a")
	e.wantGot(t, "b")
	set(t, n, Line{State: Lost})
	young := dial(t, n)
	wantSilence(t, old, "vanishes")
	wantSilence(t, young, "vanishes")
	set(t, n, Line{})
	wantSilence(t, old, "vanishes too")
	wantSilence(t, young, "vanishes too")
	wantAnswer(t, idle, "c")
	e.wantGot(t, "c")
	wantAnswer(t, dial(t, n), "d")
}

func TestMuteLosesOnlyAnswers(t *testing.T) {
	n, e := newNet(t)
	conn := dial(t, n)
	set(t, n, Line{State: Mute})
	wantSilence(t, conn, "done")
	e.wantGot(t, "done")
	set(t, n, Line{})
	wantSilence(t, conn, "again")
	wantAnswer(t, dial(t, n), "new")
}

func TestFrozenGoesOnWhenThawed(t *testing.T) {
	n, _ := newNet(t)
	old := dial(t, n)
	wantAnswer(t, old, "a")
	set(t, n, Line{State: Frozen})
	young := dial(t, n)
	for _, conn := range []net.Conn{old, young} {
		wantSilence(t, conn, "held")
	}
	set(t, n, Line{})
	for _, conn := range []net.Conn{old, young} {
		conn.SetDeadline(time.Now().Add(soon))
		got := make([]byte, len("held"))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "held" {
			t.Errorf("after the thaw: %q, %v", got, err)
		}
	}
}

func TestCutResetsWhatThereIs(t *testing.T) {
	n, _ := newNet(t)
	conn := dial(t, n)
	wantAnswer(t, conn, "a")
	n.Cut()
	wantReset(t, conn)
	wantAnswer(t, dial(t, n), "b")
}

func TestCutAfterManyBytes(t *testing.T) {
	n, _ := newNet(t)
	set(t, n, Line{CutAfter: 100})
	conn := dial(t, n)
	wantAnswer(t, conn, string(make([]byte, 40)))
	if err := ask(conn, string(make([]byte, 40)), soon); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("want a reset, got %v", err)
	}
	if passed := n.Bytes(); passed != 100 {
		t.Errorf("%d bytes were passed on", passed)
	}
}

func TestAServerThatIsGoneResetsTheClient(t *testing.T) {
	n, e := newNet(t)
	e.ln.Close()
	if conn, err := net.Dial("tcp", n.Addr()); err == nil {
		wantReset(t, conn)
		conn.Close()
	} else if !errors.Is(err, syscall.ECONNRESET) { // the reset may be that quick
		t.Error(err)
	}
	other := newEcho(t)
	n.SetTarget(other.ln.Addr().String())
	wantAnswer(t, dial(t, n), "hello")
}

func TestCloseLeavesNothingInAnyState(t *testing.T) {
	for state := Open; state <= Frozen; state++ {
		t.Run(state.String(), func(t *testing.T) {
			n, _ := newNet(t)
			set(t, n, Line{Latency: time.Millisecond, Rate: 1})
			for range 3 {
				io.WriteString(dial(t, n), "text")
			}
			set(t, n, Line{State: state})
			if state != Refused {
				io.WriteString(dial(t, n), "text")
			}
			n.Close()
			n.Close()
			if left := n.Conns(); left != 0 {
				t.Errorf("%d connections are left", left)
			}
			if err := n.Set(Line{}); err != nil {
				t.Errorf("set after close: %v", err)
			}
			if _, err := net.Dial("tcp", n.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("want a refusal, got %v", err)
			}
		})
	}
}
