package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/internal/tlspin"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A site is a server on the loopback device that gives its clients little time.
type site struct {
	addr string
	pin  string // "": without TLS
	ln   *Listener
}

// brief is the time that a client gets for everything.
const brief = 200 * time.Millisecond

// open serves s until the test ends.
func open(t *testing.T, s Server, secure bool) *site {
	t.Helper()
	old := bodyTimeout
	bodyTimeout = brief
	t.Cleanup(func() { bodyTimeout = old }) // after the server has ended
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &site{addr: raw.Addr().String(), ln: Limit(raw, Limits{}, slog.New(slog.DiscardHandler))}
	var ln net.Listener = x.ln
	if secure {
		dir := t.TempDir()
		cert, err := tlspin.Certificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), nil)
		if err != nil {
			t.Fatal(err)
		}
		x.pin = cert.Pin()
		ln = tls.NewListener(ln, cert.ServerConfig())
	}
	srv := NewHTTPServer(Handler(s), slog.New(slog.DiscardHandler))
	srv.ReadHeaderTimeout, srv.IdleTimeout = brief, brief
	done := make(chan struct{})
	go func() { srv.Serve(ln); close(done) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
		x.awaitConns(t, 0)
	})
	return x
}

// dial connects, with TLS if the server has it.
func (x *site) dial(t *testing.T) net.Conn {
	t.Helper()
	raw, err := net.Dial("tcp", x.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(patience))
	if x.pin == "" {
		return raw
	}
	return tls.Client(raw, tlspin.ClientConfig(x.pin))
}

// client returns a client of the site.
func (x *site) client(t *testing.T) *Client {
	c := &Client{URL: "http://" + x.addr, Ticket: func() string { return testVolume }}
	transport := &http.Transport{}
	if x.pin != "" {
		c.URL = "https://" + x.addr
		transport.TLSClientConfig = tlspin.ClientConfig(x.pin)
	}
	c.HTTP = &http.Client{Transport: transport}
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

// awaitConns waits until the server has n connections.
func (x *site) awaitConns(t *testing.T, n int64) {
	t.Helper()
	await(t, fmt.Sprintf("the server has %d connections", n), func() bool { return x.ln.Stats().Open == n })
}

// wantEnd waits until the server has closed all connections, which is to take
// no longer than a client is given.
func (x *site) wantEnd(t *testing.T) {
	t.Helper()
	start := time.Now()
	x.awaitConns(t, 0)
	if took := time.Since(start); took > 10*brief {
		t.Errorf("the server bore with the client for %v, of which it gives it %v", took, brief)
	}
}

// each runs a test with and without TLS.
func each(t *testing.T, test func(t *testing.T, secure bool)) {
	t.Run("plain", func(t *testing.T) { test(t, false) })
	t.Run("TLS", func(t *testing.T) { test(t, true) })
}

// with returns the header of a request with a good ticket.
func with(method, path string, more ...string) string {
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: x", "Authorization: Bearer " + testVolume}, more...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// Clients that do nothing, or next to nothing, at any point of a request.
func TestAClientThatDawdlesIsGivenUp(t *testing.T) {
	s := Server{Tickets: nominal, Store: serving(mem.New(t))}
	for _, test := range []struct{ name, send string }{
		{"says nothing", ""},
		{"begins a header", "GET /v1/health HTTP/1.1\r\nHost"},
		{"sends no body", with("PUT", pathOf(0), "Content-Length: 1000", headerCRC+": 00000000")},
		{"sends part of a body", with("PUT", pathOf(0), "Content-Length: 1000", headerCRC+": 00000000") + "abc"},
		{"sends no body, and has no ticket", "PUT " + pathOf(0) + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"},
		{"sends no body to where none is wanted", "GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"},
		{"sends no chunk", "POST /v1/nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"sends no list", with("POST", loadedPath+testVolume, "Content-Length: 1000", headerCRC+": 00000000")},
		{"has its answer and stays", with("GET", healthPath)},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, func(t *testing.T, secure bool) {
				x := open(t, s, secure)
				if _, err := io.WriteString(x.dial(t), test.send); err != nil {
					t.Fatal(err)
				}
				x.awaitConns(t, 1)
				x.wantEnd(t)
			})
		})
	}
}

func TestAClientThatSpeaksNoTLSIsGivenUp(t *testing.T) {
	x := open(t, Server{Tickets: nominal, Store: serving(mem.New(t))}, true)
	x.pin = ""
	if _, err := io.WriteString(x.dial(t), "\x16\x03"); err != nil { // as a handshake begins
		t.Fatal(err)
	}
	x.awaitConns(t, 1)
	x.wantEnd(t)
}

// A header that comes a byte at a time is no less late.
func TestAHeaderThatTricklesIsCutOff(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		x := open(t, Server{Tickets: nominal, Store: serving(mem.New(t))}, secure)
		c := x.dial(t)
		end := time.Now().Add(20 * brief)
		for time.Now().Before(end) {
			if _, err := io.WriteString(c, "x"); err != nil {
				break // closed
			}
			time.Sleep(brief / 10)
		}
		if !time.Now().Before(end) {
			t.Errorf("after %v the server still reads on", 20*brief)
		}
		x.wantEnd(t)
	})
}

// Who does not take what it asked for holds the only turn for a while, and then
// it is the next one's.
func TestAClientThatTakesNothingIsGivenUp(t *testing.T) {
	key := storetest.Key(0)
	large := storetest.Data(key, store.MaxBlock) // more than sockets hold
	bucket := mem.New(t)
	if err := bucket.Put(t.Context(), key, large); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(name, large, 0o600); err != nil {
		t.Fatal(err)
	}
	file := func(context.Context, store.Key) (*File, error) {
		f, err := os.Open(name)
		return &File{File: f, Size: int64(len(large))}, err
	}
	for from, opener := range map[string]func(context.Context, store.Key) (*File, error){"memory": nil, "a file": file} {
		t.Run("from "+from, func(t *testing.T) {
			each(t, func(t *testing.T, secure bool) {
				x := open(t, Server{Tickets: nominal, Store: serving(bucket), Open: opener, MaxRequests: 1}, secure)
				c := x.dial(t)
				if _, err := io.WriteString(c, with("GET", pathOf(0))); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 100)); err != nil { // its answer has begun
					t.Fatal(err)
				}
				if status := x.status(t, with("HEAD", pathOf(0))); status != "204" {
					t.Errorf("the next one is answered %s", status)
				}
				x.wantEnd(t)
			})
		})
	}
}

// status sends a request and returns the status of its answer, or the error.
func (x *site) status(t *testing.T, request string) string {
	t.Helper()
	c := x.dial(t)
	go io.WriteString(c, request) // the server need not read all of it
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	_, status, _ := strings.Cut(line, " ")
	return strings.Fields(status)[0]
}

func TestAHugeHeaderIsRefused(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		x := open(t, Server{Tickets: nominal, Store: serving(mem.New(t))}, secure)
		for name, request := range map[string]string{
			"line":   "GET /v1/health?" + strings.Repeat("x", 2*maxHeader) + " HTTP/1.1\r\nHost: x\r\n\r\n",
			"ticket": "GET " + pathOf(0) + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n",
			"many":   "GET /v1/health HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", maxHeader/3) + "\r\n",
		} {
			if status := x.status(t, request); status != "431" {
				t.Errorf("%s: answered %s, want 431", name, status)
			}
		}
	})
}

// A ledger is what a server was made to do.
type ledger struct {
	mu    sync.Mutex
	calls []string
}

func (l *ledger) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, fmt.Sprintf(format, args...))
}

// take returns the calls since the last time.
func (l *ledger) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	calls := l.calls
	l.calls = nil
	return calls
}

func (l *ledger) Keep(_ context.Context, key store.Key, _ []byte, _ string) error {
	l.note("keep %v", key)
	return nil
}

func (l *ledger) Uploaded(_ context.Context, keys []store.Key) error {
	l.note("uploaded %v", keys)
	return nil
}

func (l *ledger) Pending(key store.Key) bool {
	l.note("pending %v", key)
	return false
}

// A request is one of those about blocks, of which these are all there are.
type request struct {
	name, method, path string
	body               []byte
	header             []string
	write              bool // a ticket for reading is not enough
}

func requests() []request {
	body, list := []byte("a new block"), []byte(storetest.Key(0).String()+"\n")
	return []request{
		{"get", "GET", pathOf(0), nil, nil, false},
		{"get a range", "GET", pathOf(0), nil, []string{"Range", "bytes=1-3"}, false},
		{"get frames", "GET", pathOf(0), nil, []string{headerFrames, "0-3"}, false},
		{"get verified", "GET", pathOf(0), nil, []string{headerVerify, "1"}, false},
		{"get from a peer", "GET", pathOf(0), nil, []string{headerLocal, localHeld}, false},
		{"head", "HEAD", pathOf(0), nil, nil, false},
		{"head at a peer", "HEAD", pathOf(0), nil, []string{headerLocal, localHeld}, false},
		{"pending", "HEAD", pathOf(0), nil, []string{headerLocal, localPending}, false},
		{"put", "PUT", pathOf(1), body, []string{headerCRC, checksum(body)}, true},
		{"copy", "PUT", pathOf(2), body, []string{headerCRC, checksum(body), headerCopy, "10.0.0.1:443"}, true},
		{"uploaded", "POST", loadedPath + testVolume, list, []string{headerCRC, checksum(list)}, true},
		{"delete", "DELETE", pathOf(0), nil, nil, true},
	}
}

func (r request) send(h http.Handler, authorization string) *http.Response {
	return ask(h, r.method, r.path, bytes.NewReader(r.body), append(r.header, "Authorization", authorization)...)
}

// Every request with every kind of bad ticket gets its refusal and not a byte of
// a block, and nothing is done.
func TestNoRequestWithoutItsTicket(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	const contents = "what is in the block"
	bucket := mem.New(t)
	if err := bucket.Put(t.Context(), storetest.Key(0), []byte(contents)); err != nil {
		t.Fatal(err)
	}
	var done ledger
	s := &spy{Store: bucket, before: func(_ context.Context, op string, key store.Key) error { done.note("%s %v", op, key); return nil }}
	h := Handler(Server{
		Store:   serving(s),
		Replica: &done,
		Tickets: func(text string) (ticket.Ticket, error) {
			return ticket.Verify(text, []ed25519.PublicKey{public}, time.Now())
		},
		Open: func(_ context.Context, key store.Key) (*File, error) {
			done.note("open %v", key)
			return nil, store.ErrNotExist
		},
	})

	good := ticket.Ticket{Volume: testVolume, Write: true, Expires: time.Now().Add(time.Hour).Unix()}
	other, old, reader := good, good, good
	other.Volume = "00000000-0000-0000-0000-000000000001"
	old.Expires = time.Now().Add(-time.Second).Unix()
	reader.Write = false
	signed := ticket.Sign(good, private)
	claims, _, _ := strings.Cut(signed, ".")
	_, signature, _ := strings.Cut(ticket.Sign(reader, private), ".")

	for _, r := range requests() {
		for _, tick := range []struct {
			name, authorization string
			status              int
			code                code
		}{
			{"none", "", 401, codeTicket},
			{"empty", "Bearer ", 401, codeTicket},
			{"without a scheme", signed, 401, codeTicket},
			{"of another scheme", "Basic " + signed, 401, codeTicket},
			{"with more behind it", "Bearer " + signed + " x", 401, codeTicket},
			{"garbage", "Bearer \x00\xff.,;", 401, codeTicket},
			{"huge", "Bearer " + strings.Repeat("x.", maxHeader/2), 401, codeTicket},
			{"without a signature", "Bearer " + claims, 401, codeTicket},
			{"with an empty signature", "Bearer " + claims + ".", 401, codeTicket},
			{"with the signature of another", "Bearer " + claims + "." + signature, 401, codeTicket},
			{"forged", "Bearer " + ticket.Sign(good, stranger), 401, codeTicket},
			{"expired", "Bearer " + ticket.Sign(old, private), 401, codeExpired},
			{"of another volume", "Bearer " + ticket.Sign(other, private), 403, codeVolume},
			{"for reading", "Bearer " + ticket.Sign(reader, private), 403, codeReadOnly},
		} {
			if tick.code == codeReadOnly && !r.write {
				continue
			}
			t.Run(r.name+", ticket "+tick.name, func(t *testing.T) {
				for range 2 { // what is remembered must be the same
					resp := r.send(h, tick.authorization)
					text, _ := io.ReadAll(resp.Body)
					if bytes.Contains(text, []byte(contents[:4])) {
						t.Errorf("the refusal has some of the block: %q", text)
					}
					resp.Body = io.NopCloser(bytes.NewReader(text))
					wantRefusal(t, resp, tick.status, tick.code)
				}
				if calls := done.take(); calls != nil {
					t.Errorf("this was done: %q", calls)
				}
			})
		}
	}
	// Good tickets do get in, or all of the above says nothing.
	for _, r := range requests() {
		for _, right := range []ticket.Ticket{good, reader} {
			if r.write && !right.Write {
				continue
			}
			if r.send(h, "Bearer "+ticket.Sign(right, private)); done.take() == nil {
				t.Errorf("%s with a good ticket (for writing: %v) does nothing", r.name, right.Write)
			}
		}
	}
}
