package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

var testVolume = storetest.Key(0).Volume.String()

// ask sends a request to h and returns the answer. Header is name, value, ...
func ask(h http.Handler, method, path string, body io.Reader, header ...string) *http.Response {
	r := httptest.NewRequest(method, path, body)
	r.Header.Set("Authorization", "Bearer "+testVolume)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func pathOf(i int) string { return blocksPath + storetest.Key(i).String() }

// one returns a handler of a store with block 0.
func one(t *testing.T, data []byte) http.Handler {
	t.Helper()
	s := mem.New(t)
	if err := s.Put(t.Context(), storetest.Key(0), data); err != nil {
		t.Fatal(err)
	}
	return Handler(Server{Tickets: nominal, Store: serving(s)})
}

func wantRefusal(t *testing.T, resp *http.Response, status int, c code) {
	t.Helper()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status || resp.Header.Get(headerError) != string(c) {
		t.Errorf("answered %d %q (%s), want %d %q", resp.StatusCode, resp.Header.Get(headerError), bytes.TrimSpace(text), status, c)
	}
}

// The forms of requests and answers are the protocol: see docs/format/proxy-http.md.
func TestAnswersArePinned(t *testing.T) {
	kept := new(keeper)
	s := mem.New(t)
	if err := s.Put(t.Context(), storetest.Key(0), []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	h := Handler(Server{Tickets: nominal, Store: serving(s), Replica: kept})
	key := storetest.Key(0).String()
	if err := kept.Keep(t.Context(), storetest.Key(1), nil, "a:1"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, path, header, value string
		status                      int
		want                        string // some headers, and the body
	}{
		{"GET", pathOf(0), "", "", 200, "crc=280c069e range= 0123456789"},
		{"GET", pathOf(0), "Range", "bytes=2-4", 206, "crc=3d3d135d range=bytes 2-4/* 234"},
		{"GET", pathOf(0), "Range", "bytes=7-", 206, "crc=107902cb range=bytes 7-9/* 789"},
		{"GET", pathOf(0), "Range", "bytes=7-1000", 206, "crc=107902cb range=bytes 7-9/* 789"},
		{"GET", pathOf(0), "Range", "bytes=10-", 204, "crc= range= "},
		{"GET", pathOf(0), "Range", "bytes=-3", 200, "crc=280c069e range= 0123456789"},
		{"GET", pathOf(0), "Range", "bytes=1-2,4-5", 200, "crc=280c069e range= 0123456789"},
		{"GET", pathOf(0), "Range", "bytes=4-3", 200, "crc=280c069e range= 0123456789"},
		{"HEAD", pathOf(0), "", "", 204, "crc= range= "},
		{"GET", "/v1/blocks/" + key, "Flexfs-Local", "1", 200, "crc=280c069e range= 0123456789"},
		{"HEAD", pathOf(0), "Flexfs-Local", "1", 204, "crc= range= "},
		{"HEAD", pathOf(0), "Flexfs-Local", "pending", 404, "crc= range= the block does not wait for its upload here\n"},
		{"HEAD", pathOf(1), "Flexfs-Local", "pending", 204, "crc= range= "},
		{"PUT", pathOf(2), "Flexfs-Copy", "a:1", 204, "crc= range= "},
		{"HEAD", pathOf(2), "Flexfs-Local", "pending", 204, "crc= range= "},
		{"POST", "/v1/uploaded/" + testVolume, "", "", 204, "crc= range= "},
		{"DELETE", pathOf(0), "", "", 204, "crc= range= "},
		{"DELETE", pathOf(0), "", "", 204, "crc= range= "},
		{"GET", healthPath, "Authorization", "", 200, "crc= range= ok\n"},
	} {
		resp := ask(h, test.method, test.path, nil, test.header, test.value, "Flexfs-Crc32c", "00000000") // of no body
		body, _ := io.ReadAll(resp.Body)
		got := fmt.Sprintf("crc=%s range=%s %s", resp.Header.Get("Flexfs-Crc32c"), resp.Header.Get("Content-Range"), body)
		if resp.StatusCode != test.status || got != test.want {
			t.Errorf("%s %s %s: %s\nanswered %d %q\n    want %d %q", test.method, test.path, test.header, test.value, resp.StatusCode, got, test.status, test.want)
		}
	}
}

func TestRefusalsArePinned(t *testing.T) {
	want := map[code]int{
		"not-exist": 404, "corrupt": 502, "origin": 502, "damaged": 422, "read-only": 403, "request": 400, "too-large": 413,
		"ticket": 401, "expired": 401, "volume": 403, "unknown": 421, "busy": 503, "full": 507,
	}
	if !maps.Equal(statusOf, want) {
		t.Errorf("refusals: %v, want %v", statusOf, want)
	}
	resp := ask(one(t, nil), "PUT", pathOf(0), nil, "Flexfs-Copy", "a:1")
	wantRefusal(t, resp, 507, "full")
	if resp.Header.Get("Flexfs-Proxy") != "1" || resp.Header.Get("Flexfs-Error") != "full" {
		t.Errorf("headers of a refusal: %v", resp.Header)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	h := one(t, []byte("0123456789"))
	put := func(body string, header ...string) *http.Response {
		return ask(h, "PUT", pathOf(1), strings.NewReader(body), header...)
	}
	for _, test := range []struct {
		name   string
		resp   *http.Response
		status int
		code   code
	}{
		{"missing block", ask(h, "GET", pathOf(2), nil), 404, codeNotExist},
		{"range of a missing block", ask(h, "GET", pathOf(2), nil, "Range", "bytes=5-"), 404, codeNotExist},
		{"head of a missing block", ask(h, "HEAD", pathOf(2), nil), 404, codeNotExist},
		{"no key", ask(h, "GET", blocksPath, nil), 400, codeRequest},
		{"key that is not in its one form", ask(h, "GET", strings.ToUpper(pathOf(0)), nil), 404, ""},
		{"key with more behind it", ask(h, "GET", pathOf(0)+"/x", nil), 400, codeRequest},
		{"method", ask(h, "POST", pathOf(0), nil), 400, codeRequest},
		{"no checksum", put("abc"), 422, codeDamaged},
		{"wrong checksum", put("abc", headerCRC, checksum([]byte("abd"))), 422, codeDamaged},
		{"body of no known length", ask(h, "PUT", pathOf(1), io.MultiReader(strings.NewReader("abc"))), 400, codeRequest},
		{"too large", ask(h, "PUT", pathOf(1), bytes.NewReader(make([]byte, maxBody+1))), 413, codeTooLarge},
		{"frames of a block that has none", ask(h, "GET", pathOf(0), nil, headerFrames, "0-10"), 502, codeCorrupt},
		{"bad frames", ask(h, "GET", pathOf(0), nil, headerFrames, "-1-10"), 400, codeRequest},
		{"no ticket", ask(h, "GET", pathOf(0), nil, "Authorization", ""), 401, codeTicket},
		{"ticket of another scheme", ask(h, "GET", pathOf(0), nil, "Authorization", "Basic "+testVolume), 401, codeTicket},
	} {
		t.Run(test.name, func(t *testing.T) { wantRefusal(t, test.resp, test.status, test.code) })
	}
}

// Real tickets, signed by admin's key.
func TestTicketsGuardEveryRequest(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := mem.New(t)
	h := Handler(Server{
		Store: serving(s),
		Tickets: func(text string) (ticket.Ticket, error) {
			return ticket.Verify(text, []ed25519.PublicKey{public}, time.Now())
		},
	})
	good := ticket.Ticket{Volume: testVolume, Write: true, Expires: time.Now().Add(time.Hour).Unix()}
	other, old, reader := good, good, good
	other.Volume = "00000000-0000-0000-0000-000000000001"
	old.Expires = time.Now().Add(-time.Second).Unix()
	reader.Write = false
	all := []string{"GET", "HEAD", "PUT", "DELETE"}
	for _, test := range []struct {
		name    string
		ticket  string
		methods []string
		status  int
		code    code
	}{
		{"of another volume", ticket.Sign(other, private), all, 403, codeVolume},
		{"expired", ticket.Sign(old, private), all, 401, codeExpired},
		{"signed by a stranger", ticket.Sign(good, stranger), all, 401, codeTicket},
		{"rubbish", "rubbish", all, 401, codeTicket},
		{"empty", "", all, 401, codeTicket},
		{"for reading", ticket.Sign(reader, private), []string{"PUT", "DELETE"}, 403, codeReadOnly},
		{"for reading", ticket.Sign(reader, private), []string{"GET", "HEAD"}, 404, codeNotExist},
	} {
		for _, method := range test.methods {
			t.Run(test.name+" "+method, func(t *testing.T) {
				for range 2 { // what is remembered must be the same
					wantRefusal(t, ask(h, method, pathOf(0), nil, "Authorization", "Bearer "+test.ticket), test.status, test.code)
				}
			})
		}
	}
	if n := len(s.Keys()); n != 0 {
		t.Errorf("%d blocks came in with bad tickets", n)
	}
}

// A ticket that was good is remembered, but not for long, as its key may end, and
// not beyond its end.
func TestARememberedTicketExpires(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		checks := 0
		h := Handler(Server{Store: serving(w.bucket), Tickets: func(string) (ticket.Ticket, error) {
			checks++
			if checks > 3 {
				return ticket.Ticket{}, ticket.ErrExpired
			}
			return ticket.Ticket{Volume: testVolume, Expires: time.Now().Add(8 * time.Second).Unix()}, nil
		}})
		for _, step := range []struct {
			after  time.Duration
			checks int
		}{{0, 1}, {4 * time.Second, 1}, {2 * time.Second, 2}, {4 * time.Second, 2}, {2 * time.Second, 3}} {
			time.Sleep(step.after)
			wantRefusal(t, ask(h, "GET", pathOf(0), nil), 404, codeNotExist)
			if checks != step.checks {
				t.Errorf("the ticket was checked %d times, want %d", checks, step.checks)
			}
		}
		time.Sleep(time.Minute)
		wantRefusal(t, ask(h, "GET", pathOf(0), nil), 401, codeExpired)
	})
}

func TestAPutThatIsNotTheBlockIsRefused(t *testing.T) {
	s := mem.New(t)
	h := Handler(Server{Tickets: nominal, Store: serving(s), Verify: seal.Verify})
	key := storetest.Key(1)
	sealed, err := seal.NewSealer(seal.Options{}).Encode(nil, key, storetest.Data(key, 1000))
	if err != nil {
		t.Fatal(err)
	}
	put := func(i int) *http.Response {
		return ask(h, "PUT", pathOf(i), bytes.NewReader(sealed), headerCRC, checksum(sealed))
	}
	wantRefusal(t, put(2), 422, codeDamaged) // under another key
	if resp := put(1); resp.StatusCode != 204 {
		t.Errorf("the right block is answered with %d", resp.StatusCode)
	}
	sealed[len(sealed)-1]++
	wantRefusal(t, put(1), 422, codeDamaged)
}

func TestARequestWaitsForItsTurnAndNotForEver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(3)
		release := make(chan struct{})
		s := &spy{Store: w.bucket, before: func(context.Context, string, store.Key) error { <-release; return nil }}
		h := Handler(Server{Tickets: nominal, Store: serving(s), MaxRequests: 1})
		answers := make(chan *http.Response)
		get := func(i int) { answers <- ask(h, "GET", pathOf(i), nil) }
		go get(0)
		time.Sleep(time.Second)
		go get(1)
		wantRefusal(t, <-answers, 503, codeBusy)
		go get(2)
		time.Sleep(maxWait / 2)
		close(release)
		for range 2 {
			if resp := <-answers; resp.StatusCode != 200 {
				t.Errorf("answered %d", resp.StatusCode)
			}
		}
	})
}

// health is asked all the time by everybody: it must not wait for anything.
func TestHealthDoesNotWaitForBlocks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		s := &spy{Store: w.bucket, before: func(context.Context, string, store.Key) error { <-release; return nil }}
		h := Handler(Server{Tickets: nominal, Store: serving(s), MaxRequests: 1})
		done := make(chan struct{})
		go func() { ask(h, "GET", pathOf(0), nil); close(done) }()
		time.Sleep(time.Second)
		start := time.Now()
		if resp := ask(h, "GET", healthPath, nil); resp.StatusCode != 200 || time.Since(start) > 0 {
			t.Errorf("answered %d after %v", resp.StatusCode, time.Since(start))
		}
		close(release)
		<-done
	})
}

func TestAStrangersVolumeIsMisdirected(t *testing.T) {
	h := Handler(Server{Tickets: nominal, Store: func(v store.Volume) (store.Store, error) {
		return nil, fmt.Errorf("volume %v is not among this group's", v)
	}})
	wantRefusal(t, ask(h, "GET", pathOf(0), nil), 421, codeUnknown)
}

// A proxy behind which there is a proxy does not pass its refusals on: they are
// about its own ticket.
func TestARefusalFromBehindIsTheOriginsFailure(t *testing.T) {
	s := &spy{Store: mem.New(t), before: func(context.Context, string, store.Key) error { return refuse(codeExpired, "yours") }}
	wantRefusal(t, ask(Handler(Server{Tickets: nominal, Store: serving(s)}), "GET", pathOf(0), nil), 502, codeOrigin)
}

func TestVerifyReachesTheStore(t *testing.T) {
	var verify []bool
	s := &spy{Store: mem.New(t), before: func(ctx context.Context, _ string, _ store.Key) error {
		verify = append(verify, store.MustVerify(ctx))
		return nil
	}}
	srv := httptest.NewServer(Handler(Server{Tickets: nominal, Store: serving(s)}))
	defer srv.Close()
	c := &Client{URL: srv.URL, HTTP: srv.Client(), Ticket: func() string { return testVolume }}
	for _, ctx := range []context.Context{t.Context(), store.WithVerify(t.Context())} {
		if _, err := c.Get(ctx, storetest.Key(0), 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Error(err)
		}
	}
	if fmt.Sprint(verify) != "[false true]" {
		t.Errorf("the store saw %v, want it asked to verify the second time only", verify)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	s := mem.New(t)
	stats := new(Stats)
	h := Handler(Server{Tickets: nominal, Store: serving(s), Stats: stats})
	body := []byte("0123456789")
	ask(h, "PUT", pathOf(0), bytes.NewReader(body), headerCRC, checksum(body))
	ask(h, "GET", pathOf(0), nil)
	ask(h, "GET", pathOf(0), nil)
	ask(h, "GET", pathOf(1), nil)
	ask(h, "PATCH", pathOf(1), nil)

	got := stats.Now()
	want := map[string]map[string]int64{"GET": {"ok": 2, "not-exist": 1}, "PUT": {"ok": 1}, "other": {"request": 1}}
	if !reflect.DeepEqual(got.Requests, want) {
		t.Errorf("counted %v, want %v", got.Requests, want)
	}
	if got.Active != 0 || got.ReceivedBytes != 10 || got.SentBytes != 20 {
		t.Errorf("%d active, %d bytes received, %d sent; want 0, 10, 20", got.Active, got.ReceivedBytes, got.SentBytes)
	}
	if took := got.Took["GET"]; took.Count != 3 || took.Within[30] != 3 {
		t.Errorf("the times of 3 gets are %+v", took)
	}

	var shown ServerStats
	if err := json.NewDecoder(ask(h, "GET", statsPath, nil).Body).Decode(&shown); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(shown.Requests, want) {
		t.Errorf("%s shows %v, want %v", statsPath, shown.Requests, want)
	}
}

// On the wire: what the server does with those who do not keep to the protocol.
func TestTheServerHasLimits(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewHTTPServer(one(t, []byte("0123456789")), slog.New(slog.DiscardHandler))
	go srv.Serve(ln)
	defer srv.Close()
	for name, test := range map[string]struct{ request, want string }{
		"header":  {"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"HTTP/2":  {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 400 "},
		"rubbish": {"\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 "},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			go io.WriteString(conn, test.request)
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			got, _ := bufio.NewReader(conn).ReadString('\n')
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("answered %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=5-9", "bytes=-5", "bytes=1-2,3-4", "bytes=0-9223372036854775807", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, n, ok := parseRange(s)
		if !ok {
			return
		}
		if off < 0 || n == 0 || off+max(n, 0) < 0 {
			t.Fatalf("%q is %d bytes at %d", s, n, off)
		}
		if o, m, ok := parseRange(formatRange(off, n)); !ok || o != off || m != n {
			t.Fatalf("%q is %d bytes at %d, and then %d at %d", s, n, off, m, o)
		}
	})
}

func FuzzParseSpan(f *testing.F) {
	for _, s := range []string{"0-", "5-9", "-5", "1-2-3", "4611686018427387904-1", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, n, err := parseSpan(s)
		if err != nil {
			return
		}
		if off < 0 || n < -1 || off+n < -1 {
			t.Fatalf("%q is %d bytes at %d", s, n, off)
		}
		if o, m, err := parseSpan(formatSpan(off, n)); err != nil || o != off || m != n {
			t.Fatalf("%q is %d bytes at %d, and then %d at %d", s, n, off, m, o)
		}
	})
}
