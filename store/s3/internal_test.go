package s3

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestGovernor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGovernor(8)
		for range 8 {
			if err := g.acquire(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				g.acquire(t.Context())
				order <- i
			}()
			synctest.Wait()
		}
		if limit, shrunk := g.shrink(); limit != 4 || !shrunk {
			t.Errorf("shrink: %d, %v; want 4", limit, shrunk)
		}
		if limit, shrunk := g.shrink(); limit != 4 || shrunk {
			t.Errorf("shrink a moment later: %d, %v; want no change", limit, shrunk)
		}
		for range 4 {
			g.release(false)
		}
		synctest.Wait()
		if len(order) != 0 {
			t.Error("somebody went on beyond the limit")
		}
		g.release(false)
		if first := <-order; first != 0 {
			t.Errorf("waiter %d came before the first", first)
		}
		for want := 1; want < 3; want++ {
			g.release(false)
			if next := <-order; next != want {
				t.Errorf("waiter %d came before waiter %d", next, want)
			}
		}
		for range 4 {
			g.release(false)
		}
		if g.busy != 0 {
			t.Errorf("%d are busy at the end", g.busy)
		}
		time.Sleep(shrinkEvery)
		for range 10 {
			g.shrink()
			time.Sleep(shrinkEvery)
		}
		if g.limit != 1 {
			t.Errorf("the limit fell to %v, want 1", g.limit)
		}
		for range 100 {
			g.acquire(t.Context())
			g.release(true)
		}
		if g.limit != 8 {
			t.Errorf("the limit rose to %v, want 8", g.limit)
		}
	})
}

func TestGovernorLetsTheImpatientGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGovernor(1)
		g.acquire(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire: %v", err)
		}
		g.release(true)
		if err := g.acquire(t.Context()); err != nil || len(g.waiting) != 0 {
			t.Errorf("acquire after somebody left: %v, %d waiting", err, len(g.waiting))
		}
	})
}

// A pipe with deadlines stands in for a connection whose other end is gone.
func TestAStalledConnectionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		c := stallConn{near, 20 * time.Second}
		start := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read: %v", err)
		}
		if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Write: %v", err)
		}
		if d := time.Since(start); d != 40*time.Second {
			t.Errorf("the two took %v, want 20 s each", d)
		}
	})
}

// A body goes out in few steps: each is a system call, and wakes the other side.
func TestABodyIsSentInFewSteps(t *testing.T) {
	c := &stepConn{}
	data := make([]byte, 4<<20)
	r := io.LimitReader(newBody(data), int64(len(data)))
	if n, err := io.Copy(stallConn{c, time.Second}, r); n != int64(len(data)) || err != nil {
		t.Fatalf("%d bytes were sent: %v", n, err)
	}
	if c.steps != 16 {
		t.Errorf("4 MiB were sent in %d steps, want 16", c.steps)
	}
}

type stepConn struct {
	net.Conn
	steps int
}

func (c *stepConn) Write(b []byte) (int, error)      { c.steps++; return len(b), nil }
func (c *stepConn) SetReadDeadline(time.Time) error  { return nil }
func (c *stepConn) SetWriteDeadline(time.Time) error { return nil }

// While bytes go out slowly, the reader that waits for the answer is patient.
func TestASlowConnectionDoesNotFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		c := stallConn{near, 20 * time.Second}
		answer := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			answer <- err
		}()
		go func() {
			for range 8 {
				buf := make([]byte, 64<<10)
				for n := 0; n < len(buf); {
					m, err := far.Read(buf[n:])
					if err != nil {
						return
					}
					n += m
				}
				time.Sleep(15 * time.Second)
			}
			far.Write([]byte{1})
		}()
		if _, err := c.Write(make([]byte, 8*64<<10)); err != nil {
			t.Errorf("Write at 64 KiB per 15 s: %v", err)
		}
		if err := <-answer; err != nil {
			t.Errorf("Read meanwhile: %v", err)
		}
	})
}

// An HTTP client may go on reading a body after the request has failed. By then
// the bytes are the caller's again.
func TestAReleasedBodyIsNotRead(t *testing.T) {
	data := []byte("0123456789")
	b := newBody(data)
	p := make([]byte, 4)
	if n, err := b.Read(p); n != 4 || err != nil || string(p) != "0123" {
		t.Fatalf("Read: %q, %v", p[:n], err)
	}
	if off, err := b.Seek(-2, io.SeekEnd); off != 8 || err != nil {
		t.Fatalf("Seek: %d, %v", off, err)
	}
	if rest, err := io.ReadAll(b); string(rest) != "89" || err != nil {
		t.Fatalf("the rest is %q, %v", rest, err)
	}
	b.Seek(0, io.SeekStart)
	b.release()
	if n, err := b.Read(p); n != 0 || !errors.Is(err, errReleased) {
		t.Errorf("Read after release: %d bytes, %v", n, err)
	}
}

// Somebody who accepts connections and says nothing.
func TestTheCheckOfASilentServerEnds(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := Config{Bucket: "bucket", Endpoint: "http://" + silent.Addr().String(), AccessKey: "a", SecretKey: "s"}
	s := &Store{cfg: cfg, governor: newGovernor(1), http: newTransport(1)}
	opt, err := s.options(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.client = s3.New(opt)
	err = s.probe(t.Context(), 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), cfg.Endpoint+" did not answer within 50ms") {
		t.Errorf("probe: %v", err)
	}
}
