package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/internal/tlspin"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

// everyVolume is a check of tickets for servers whose client has one ticket for
// all the volumes of storetest: the ticket names the volume that is asked for.
type everyVolume struct{ Server }

func (e everyVolume) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	volume, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, blocksPath), "/")
	s := e.Server
	s.Tickets = func(string) (ticket.Ticket, error) { return nominal(volume) }
	Handler(s).ServeHTTP(w, r)
}

// secure starts a TLS server with a key of its own, and returns it as a member.
func secure(t *testing.T, h http.Handler) Member {
	t.Helper()
	dir := t.TempDir()
	cert, err := tlspin.Certificate(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewHTTPServer(h, slog.New(slog.DiscardHandler))
	srv.TLSConfig = cert.ServerConfig()
	done := make(chan struct{})
	go func() { srv.ServeTLS(ln, "", ""); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return Member{Address: ln.Addr().String(), Pin: cert.Pin()}
}

// connect returns a Group that has made its first choice and runs.
func connect(t *testing.T, cfg Config) *Group {
	t.Helper()
	if cfg.Ticket == nil {
		cfg.Ticket = func() string { return testVolume }
	}
	cfg.Timing.Search = time.Millisecond // this network is quick
	g := New(cfg)
	g.Probe(t.Context())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { g.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

func TestGroupIsAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		bucket := mem.New(t)
		h := everyVolume{Server{Store: serving(bucket)}}
		g := connect(t, Config{
			Origin: bucket,
			Groups: []GroupSettings{{ID: 1, Members: []Member{secure(t, h), secure(t, h), secure(t, h)}}},
		})
		if g.Status().Chosen != 1 {
			t.Fatalf("the group is not used:\n%v", g.Status())
		}
		return g
	})
}

// Sealed above, as in a mount: ranges go through GetFrames.
func TestSealedBlocksThroughAGroupAreAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		bucket := mem.New(t)
		h := everyVolume{Server{Store: serving(bucket), Verify: seal.Verify}}
		g := connect(t, Config{
			Origin: bucket,
			Groups: []GroupSettings{{ID: 1, Members: []Member{secure(t, h), secure(t, h)}}},
		})
		return seal.New(g, seal.Options{Codec: seal.LZ4})
	})
}

func TestARangeThroughAProxyIsOneRequest(t *testing.T) {
	bucket := mem.New(t)
	requests := 0
	h := Handler(Server{Tickets: nominal, Store: serving(bucket)})
	m := secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, blocksPath) {
			requests++
		}
		h.ServeHTTP(w, r)
	}))
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{{ID: 1, Members: []Member{m}}}})
	key, data := storetest.Key(1), storetest.Data(storetest.Key(1), 4<<20)
	if err := seal.New(bucket, seal.Options{}).Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
	got, err := seal.New(g, seal.Options{}).Get(t.Context(), key, 3<<20, 4096)
	if err != nil || !bytes.Equal(got, data[3<<20:3<<20+4096]) {
		t.Fatalf("got %d bytes, error %v", len(got), err)
	}
	if requests != 1 {
		t.Errorf("a range took %d requests", requests)
	}
}

func TestAProxyWithAnotherKeyIsNotTalkedTo(t *testing.T) {
	bucket := mem.New(t)
	if err := bucket.Put(t.Context(), storetest.Key(0), block(0)); err != nil {
		t.Fatal(err)
	}
	asked := 0
	impostor := secure(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		io.WriteString(w, "ok")
	}))
	honest := secure(t, http.NotFoundHandler())
	for name, pin := range map[string]string{"wrong": honest.Pin, "none": "", "rubbish": "sha256:x"} {
		t.Run(name, func(t *testing.T) {
			g := connect(t, Config{
				Origin: bucket,
				Groups: []GroupSettings{{ID: 1, Members: []Member{{Address: impostor.Address, Pin: pin}}}},
			})
			got, err := g.Get(t.Context(), storetest.Key(0), 0, -1)
			if err != nil || !bytes.Equal(got, block(0)) {
				t.Errorf("read %d bytes, error %v", len(got), err)
			}
			s := g.Status()
			if s.Chosen != 0 || s.Groups[0].Members[0].State != "down" || !strings.Contains(s.Groups[0].Members[0].Error, "tls") {
				t.Errorf("the status is\n%v", s)
			}
		})
	}
	if asked > 0 {
		t.Errorf("the impostor got %d requests, and tickets with them", asked)
	}
}

// The pin of a member may change: its server has a new key.
func TestANewPinIsANewMember(t *testing.T) {
	bucket := mem.New(t)
	m := secure(t, Handler(Server{Tickets: nominal, Store: serving(bucket)}))
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{{ID: 1, Members: []Member{{m.Address, "sha256:old"}}}}})
	if g.Status().Chosen != 0 {
		t.Fatal("a member with another key is used")
	}
	g.Update([]GroupSettings{{ID: 1, Members: []Member{m}}}, 0)
	g.Probe(t.Context())
	if g.Status().Chosen != 1 {
		t.Errorf("the member is not used with its new pin:\n%v", g.Status())
	}
}

// A redirection would take the ticket to a server of somebody's choice.
func TestTicketsAreNotTakenElsewhere(t *testing.T) {
	bucket := mem.New(t)
	asked := 0
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer thief.Close()
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerProxy, "1")
		if r.URL.Path != healthPath {
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}
	}))
	defer proxy.Close()
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{plain(1, proxy.Listener.Addr().String())}})
	if err := g.Put(t.Context(), storetest.Key(0), block(0)); err != nil {
		t.Error(err)
	}
	if asked > 0 {
		t.Error("a redirection was followed")
	}
	if _, err := bucket.Get(t.Context(), storetest.Key(0), 0, -1); err != nil {
		t.Error(err)
	}
}

// answering returns a group of one server, which answers requests for blocks
// with what, and a bucket that has block 0.
func answering(t *testing.T, what http.HandlerFunc) *Group {
	t.Helper()
	bucket := mem.New(t)
	if err := bucket.Put(t.Context(), storetest.Key(0), block(0)); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerProxy, "1")
		if r.URL.Path != healthPath {
			what(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return connect(t, Config{Origin: bucket, Groups: []GroupSettings{plain(1, srv.Listener.Addr().String())}})
}

// Whatever a proxy answers, a read gives the block.
func TestBadAnswersAreNotBelieved(t *testing.T) {
	crc := func(w http.ResponseWriter, b []byte) { w.Header().Set(headerCRC, checksum(b)) }
	for name, what := range map[string]http.HandlerFunc{
		"not from a proxy": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Del(headerProxy)
			crc(w, block(0))
			w.Write(block(0))
		},
		"damaged": func(w http.ResponseWriter, _ *http.Request) {
			bad := bytes.Clone(block(0))
			crc(w, bad)
			bad[7]++
			w.Write(bad)
		},
		"no checksum": func(w http.ResponseWriter, _ *http.Request) { w.Write(block(0)) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			crc(w, block(0))
			w.Header().Set("Content-Length", "1000")
			w.Write(block(0)[:500])
			panic(http.ErrAbortHandler)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				w.Write(make([]byte, 1<<20))
			}
		},
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000000000000")
			w.WriteHeader(200)
		},
		"no content":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"a part":         func(w http.ResponseWriter, _ *http.Request) { crc(w, nil); w.WriteHeader(206) },
		"a page":         func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>welcome</html>") },
		"a page for 404": func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
		"an odd status":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) },
		"a strange code": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(headerError, "tea"); w.WriteHeader(418) },
		"a false status": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(headerError, "read-only")
			w.WriteHeader(500)
		},
		"nothing at all": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a bad header":   func(w http.ResponseWriter, _ *http.Request) { raw(w, "HTTP/9.9 boo\r\n\r\n") },
		"a long header": func(w http.ResponseWriter, _ *http.Request) {
			raw(w, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		},
		"an endless 100s": func(w http.ResponseWriter, _ *http.Request) {
			raw(w, strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := answering(t, what)
			got, err := g.Get(t.Context(), storetest.Key(0), 0, -1)
			if err != nil || !bytes.Equal(got, block(0)) {
				t.Errorf("read %d bytes, error %v", len(got), err)
			}
			if n := g.Status().Counts; n.Proxied != 0 {
				t.Errorf("counted as read through the proxy: %+v", n)
			}
		})
	}
}

func raw(w http.ResponseWriter, answer string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(conn, answer)
}

// A web server that says yes to everything, as a hotel's, has not stored a block.
func TestAPutThatSomebodyElseAnsweredIsNoPut(t *testing.T) {
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "welcome") }))
	defer h.Close()
	bucket := mem.New(t)
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{plain(1, h.Listener.Addr().String())}})
	if g.Status().Chosen != 0 {
		t.Errorf("it is taken for a proxy:\n%v", g.Status())
	}
	c := &Client{URL: h.URL, HTTP: h.Client(), Ticket: func() string { return "" }}
	if err := c.Put(t.Context(), storetest.Key(0), block(0)); err == nil {
		t.Error("Put succeeded")
	}
	if err := c.Delete(t.Context(), storetest.Key(0)); err == nil {
		t.Error("Delete succeeded")
	}
}

// More than asked for, in answer to a range, is not what was asked for.
func TestAnAnswerLongerThanItsRangeIsNotBelieved(t *testing.T) {
	g := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerCRC, checksum(block(0)))
		w.Header().Set("Content-Range", contentRange(10, len(block(0))))
		w.WriteHeader(206)
		w.Write(block(0))
	})
	got, err := g.Get(t.Context(), storetest.Key(0), 10, 5)
	if err != nil || !bytes.Equal(got, block(0)[10:15]) {
		t.Errorf("read %d bytes, error %v", len(got), err)
	}
}

func TestAnotherPartThanAskedForIsNotBelieved(t *testing.T) {
	g := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerCRC, checksum(block(0)[:5]))
		w.Header().Set("Content-Range", contentRange(0, 5))
		w.WriteHeader(206)
		w.Write(block(0)[:5])
	})
	got, err := g.Get(t.Context(), storetest.Key(0), 10, 5)
	if err != nil || !bytes.Equal(got, block(0)[10:15]) {
		t.Errorf("read %d bytes, error %v", len(got), err)
	}
}

// A server that does not know a range may answer with the whole block.
func TestAWholeBlockInAnswerToARangeIsCut(t *testing.T) {
	g := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(headerCRC, checksum(block(0)))
		w.Write(block(0))
	})
	got, err := g.Get(t.Context(), storetest.Key(0), 10, 5)
	if err != nil || !bytes.Equal(got, block(0)[10:15]) || g.Status().Counts.Proxied != 1 {
		t.Errorf("read %d bytes, error %v, %+v", len(got), err, g.Status().Counts)
	}
}

// A read-only mount is told so and does not go round the proxies.
func TestAReadOnlyTicketDoesNotWriteToTheBucketEither(t *testing.T) {
	bucket := mem.New(t)
	reading := func(text string) (ticket.Ticket, error) {
		v, err := nominal(text)
		v.Write = false
		return v, err
	}
	m := secure(t, Handler(Server{Tickets: reading, Store: serving(bucket)}))
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{{ID: 1, Members: []Member{m}}}})
	for _, size := range []int{10, 4 << 20} {
		err := g.Put(t.Context(), storetest.Key(size), make([]byte, size))
		if err == nil || !strings.Contains(err.Error(), ErrReadOnly.Error()) && !strings.Contains(err.Error(), "for reading only") {
			t.Errorf("Put of %d bytes: %v", size, err)
		}
	}
	if n := len(bucket.Keys()); n > 0 {
		t.Errorf("%d blocks were written", n)
	}
}

// A caller may use its buffer again when Put has returned, whatever the
// connection is still doing with it.
func TestAPutThatFailsHasLetGoOfTheData(t *testing.T) {
	var sending *http.Request
	c := &Client{URL: "http://a:1", HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		sending = r // and goes on to be sent when there is an answer
		if _, err := r.Body.Read(make([]byte, 1000)); err != nil {
			t.Error(err)
		}
		return &http.Response{StatusCode: 500, Body: http.NoBody}, nil
	})}}
	data := make([]byte, 4<<20)
	if err := c.Put(t.Context(), storetest.Key(0), data); err == nil {
		t.Error("Put to a server that fails succeeded")
	}
	again, err := sending.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]io.Reader{"the body": sending.Body, "the body again": again} {
		if n, err := body.Read(make([]byte, 1000)); n > 0 || err == nil {
			t.Errorf("%d bytes of %s could be read after Put returned", n, name)
		}
	}
}

// A roundTrip is a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (rt roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return rt(r) }

// Connections that the server closed while they were idle, as when it was
// restarted, cost nobody a failure.
func TestAProxyThatRestartsBetweenRequestsIsNotNoticed(t *testing.T) {
	bucket := mem.New(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	h := Handler(Server{Tickets: nominal, Store: serving(bucket)})
	srv := &http.Server{Handler: h}
	go srv.Serve(ln)
	g := connect(t, Config{Origin: bucket, Groups: []GroupSettings{plain(1, addr)}})
	for i := range 5 {
		key := storetest.Key(i)
		if err := g.Put(t.Context(), key, storetest.Data(key, 300_000)); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Get(t.Context(), key, 0, -1); err != nil {
			t.Fatal(err)
		}
		srv.Close()
		if ln, err = net.Listen("tcp", addr); err != nil {
			t.Fatal(err)
		}
		srv = &http.Server{Handler: h}
		go srv.Serve(ln)
	}
	srv.Close()
	if n := g.Status().Counts; n.Proxied != 10 {
		t.Errorf("of 10 operations, %d were done by the proxy: %+v", n.Proxied, n)
	}
}

func BenchmarkProxy(b *testing.B) {
	for _, tls := range []bool{false, true} {
		for _, size := range []int{256 << 10, 4 << 20} {
			b.Run(fmt.Sprintf("tls=%v/size=%d", tls, size), func(b *testing.B) { benchmark(b, tls, size) })
		}
	}
}

func benchmark(b *testing.B, tls bool, size int) {
	bucket := mem.New(nil)
	h := Handler(Server{Tickets: nominal, Store: serving(bucket)})
	key, data := storetest.Key(0), storetest.Data(storetest.Key(0), size)
	srv := httptest.NewUnstartedServer(h)
	if tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	defer srv.Close()
	hc := srv.Client()
	c := &Client{URL: srv.URL, HTTP: hc, Ticket: func() string { return testVolume }}
	if err := c.Put(b.Context(), key, data); err != nil {
		b.Fatal(err)
	}
	b.Run("get", func(b *testing.B) {
		b.SetBytes(int64(size))
		for b.Loop() {
			if _, err := c.Get(b.Context(), key, 0, -1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("put", func(b *testing.B) {
		b.SetBytes(int64(size))
		for b.Loop() {
			if err := c.Put(b.Context(), key, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
