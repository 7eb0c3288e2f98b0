package remote

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"
)

// limited returns a server that greets whoever connects, within limits.
func limited(t *testing.T, limits Limits) *Listener {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := Limit(raw, limits, slog.New(slog.DiscardHandler))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "!")
			go func() { io.Copy(io.Discard, c); c.Close(); c.Close() }() // twice is once
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln
}

// connectFrom connects to ln from an address of this machine. It returns nil if
// the server closes the connection at once.
func connectFrom(t *testing.T, ln net.Listener, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil // it was closed before the dialler had looked
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.Read(make([]byte, 1))
	if err != nil && timedOut(err) {
		t.Fatalf("a connection from %s is neither taken nor closed", from)
	}
	if n == 0 {
		return nil
	}
	return c
}

// patience is for what should be there at once.
const patience = 10 * time.Second

func timedOut(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// await waits until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestOneHostGetsNoMoreThanItsShareOfConnections(t *testing.T) {
	ln := limited(t, Limits{Conns: 100, PerHost: 3})
	var mine []net.Conn
	for i := range 3 {
		c := connectFrom(t, ln, "127.0.0.1")
		if c == nil {
			t.Fatalf("connection %d is refused", i)
		}
		mine = append(mine, c)
	}
	if connectFrom(t, ln, "127.0.0.1") != nil {
		t.Error("one more than allowed is taken")
	}
	if connectFrom(t, ln, "127.0.0.2") == nil {
		t.Error("another host pays for it")
	}
	if s := ln.Stats(); s.Open != 4 || s.Refused != 1 {
		t.Errorf("the numbers are %+v, want 4 open, 1 refused", s)
	}
	mine[0].Close()
	await(t, "the server has closed it too", func() bool { return ln.Stats().Open == 3 })
	if connectFrom(t, ln, "127.0.0.1") == nil {
		t.Error("a connection that was closed makes no room")
	}
}

func TestAllHostsTogetherGetNoMoreThanAllConnections(t *testing.T) {
	ln := limited(t, Limits{Conns: 3, PerHost: 2})
	for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		if connectFrom(t, ln, from) == nil {
			t.Fatalf("%s is refused", from)
		}
	}
	if connectFrom(t, ln, "127.0.0.4") != nil {
		t.Error("one more than allowed is taken")
	}
}

// A hundred thousand hosts that come and go leave nothing behind.
func TestHostsThatAreGoneAreForgotten(t *testing.T) {
	ln := Limit(nil, Limits{}, slog.New(slog.DiscardHandler))
	for i := range 100_000 {
		host := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		if !ln.enter(host) {
			t.Fatal("refused")
		}
		ln.leave(host)
	}
	if len(ln.hosts) != 0 || ln.Stats().Open != 0 {
		t.Errorf("%d hosts are remembered, %d connections open", len(ln.hosts), ln.Stats().Open)
	}
}

func TestWhatCountsAsOneHost(t *testing.T) {
	for _, test := range []struct{ addr, want string }{
		{"192.0.2.7:1234", "192.0.2.7"},
		{"[::ffff:192.0.2.7]:1234", "192.0.2.7"},
		{"[2001:db8:1:2:3:4:5:6]:1234", "2001:db8:1:2::"},
		{"[2001:db8:1:2::1]:99", "2001:db8:1:2::"},
		{"[fe80::1%eth0]:99", "fe80::"},
	} {
		addr, err := net.ResolveTCPAddr("tcp", test.addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := hostOf(addr).String(); got != test.want {
			t.Errorf("%s counts as %s, want %s", test.addr, got, test.want)
		}
	}
	if got := hostOf(&net.UnixAddr{Name: "x"}); got.IsValid() {
		t.Errorf("an address of another kind counts as %v", got)
	}
}
