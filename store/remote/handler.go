package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
)

// How long a client may take. A block is at most 8 MiB: that is 1.1 Mbit/s.
const (
	headerTimeout = 10 * time.Second // to send the header, and before it for the TLS handshake
	idleTimeout   = 2 * time.Minute  // between requests; longer than Client's
)

// bodyTimeout is to send the body, and again to take the answer. Only tests
// change it.
var bodyTimeout = time.Minute

const maxHeader = 16 << 10 // bytes

// defaultRequests is what Server.MaxRequests is if it is 0.
const defaultRequests = 128

// maxWait bounds how long a request waits for its turn. It is less than a
// client's patience.
const maxWait = 5 * time.Second

// A Server is what [Handler] serves. Its functions may be called concurrently.
type Server struct {
	// Tickets checks a ticket. Its errors wrap [ticket.ErrInvalid] or
	// [ticket.ErrExpired]. What it returned is believed for 5 seconds.
	Tickets func(text string) (ticket.Ticket, error)

	// Store returns the blocks of a volume, or an error if this proxy does
	// not serve it.
	Store func(volume store.Volume) (store.Store, error)

	// Open opens the file of a block that the server has as one and knows to
	// be good. Any error says that the block is to be had from Store only. Nil:
	// there are no files.
	Open func(ctx context.Context, key store.Key) (*File, error)

	// Verify checks a block that is to be put, as [seal.Verify] does, so that
	// no client can make others read rubbish. Nil accepts everything.
	Verify func(key store.Key, data []byte) (sum uint32, err error)

	// Replica keeps copies for other members of the group. Nil: none are
	// kept.
	Replica Replica

	Stats   *Stats       // counts the requests; nil: nobody looks
	Status  func() any   // what the server says of itself, for JSON; nil: its Stats
	Metrics http.Handler // answers for Prometheus; nil: there are none

	// MaxRequests bounds the requests for blocks that are served at once,
	// each of which may need the memory of one block, and as many again that
	// other members make. Others wait. 0 is 128.
	MaxRequests int

	Log *slog.Logger
}

type handler struct {
	Server
	slots chan struct{} // one is taken by each request for a block
	peers chan struct{} // instead, by one that asks nobody else: members that wait for each other never wait for a slot
	stats *Stats

	mu     sync.Mutex
	passed map[string]pass // tickets that were good; guarded by mu
}

// A pass is a ticket that was checked.
type pass struct {
	ticket ticket.Ticket
	until  time.Time // when it is to be checked again
}

// passTime is how long a ticket is believed without a check. Its key may end.
const passTime = 5 * time.Second

// maxPasses bounds the memory of good tickets, which is only there to save time.
const maxPasses = 4096

// Handler serves s over HTTP.
func Handler(s Server) http.Handler {
	if s.MaxRequests <= 0 {
		s.MaxRequests = defaultRequests
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.Stats == nil {
		s.Stats = new(Stats)
	}
	h := &handler{
		Server: s, stats: s.Stats, passed: make(map[string]pass),
		slots: make(chan struct{}, s.MaxRequests), peers: make(chan struct{}, s.MaxRequests),
	}
	mux := http.NewServeMux()
	mux.HandleFunc(blocksPath, h.serveBlock)
	mux.HandleFunc("POST "+loadedPath+"{volume}", h.serveUploaded)
	mux.HandleFunc("GET "+healthPath, serveHealth)
	mux.HandleFunc("GET "+statsPath, h.serveStats)
	if s.Metrics != nil {
		mux.Handle("GET "+metricPath, s.Metrics)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()[headerProxy] = protocol
		bound(w)
		if r.ContentLength != 0 {
			// The server reads on to the body's end, also behind a refusal.
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		mux.ServeHTTP(w, r)
	})
}

// protocol is the version of the protocol. Nobody changes it.
var protocol = []string{"1"}

// bound gives the client from now on a time to take the answer. The next request
// on the connection has its own.
func bound(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyTimeout)) // an error: w has none, as in a test
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// NewHTTPServer returns a server for h with the limits that the protocol needs:
// on headers, on idle and dawdling clients, and HTTP/1.1 only, because HTTP/2
// takes several times the CPU for blocks.
func NewHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serveHealth does no work: clients measure the round-trip time with it.
func serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header()["Date"] = nil
	io.WriteString(w, "ok\n")
}

func (h *handler) serveBlock(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h.stats.active.Add(1)
	defer h.stats.active.Add(-1)
	err := h.block(w, r)
	c := codeOf(err)
	switch {
	case r.Context().Err() != nil:
		c = codeGone // there is nobody to hear an answer
	case errors.Is(err, errCut):
		c = codeCorrupt // and the server closes the connection, as the answer is incomplete
		h.Log.Warn("the file of a block cannot be read", "path", r.URL.Path, "err", err)
	case err != nil:
		h.refuse(w, r, c, err)
	}
	h.stats.count(r.Method, c, time.Since(start))
}

// block does what r asks for and answers it, unless it fails.
func (h *handler) block(w http.ResponseWriter, r *http.Request) error {
	key, err := store.ParseKey(strings.TrimPrefix(r.URL.Path, blocksPath))
	if err != nil {
		return refuse(codeRequest, "%v", err)
	}
	if err := h.admit(r, key.Volume); err != nil {
		return err
	}
	if err := h.checkAsked(r); err != nil {
		return err
	}
	s, err := h.Store(key.Volume)
	if err != nil {
		return refuse(codeUnknown, "%v", err)
	}
	slots := h.slots
	if fromPeer(r) {
		slots = h.peers
	}
	if err := h.enter(r.Context(), slots); err != nil {
		return err
	}
	defer leave(slots) // after the answer: its bytes are in memory until then
	a, err := h.do(w, r, s, key)
	if err != nil {
		return err
	}
	defer a.release()
	if err = h.send(w, r, &a); err != nil {
		s.Get(store.WithVerify(r.Context()), key, 0, 0) // which finds it out too, and brings another
	}
	return err
}

func (h *handler) do(w http.ResponseWriter, r *http.Request, s store.Store, key store.Key) (answer, error) {
	ctx := WithTicket(r.Context(), bearer(r))
	if r.Header.Get(headerVerify) == "1" {
		ctx = store.WithVerify(ctx)
	}
	local := r.Header.Get(headerLocal)
	if local == localHeld {
		ctx = store.WithLocal(ctx)
	}
	a := answer{head: -1, empty: true}
	switch r.Method {
	case http.MethodGet:
		return h.get(ctx, s, key, r)
	case http.MethodHead:
		if local == localPending {
			return a, h.pending(key)
		}
		_, err := s.Get(ctx, key, 0, 0)
		return a, failed(err)
	case http.MethodPut:
		return a, h.put(ctx, w, s, key, r)
	case http.MethodDelete:
		return a, failed(s.Delete(ctx, key))
	}
	return a, refuse(codeRequest, "method %q is not for blocks", r.Method)
}

// bearer returns the ticket, or "" if there is none.
func bearer(r *http.Request) string {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return text
}

// admit checks the ticket.
func (h *handler) admit(r *http.Request, volume store.Volume) error {
	text := bearer(r)
	if text == "" {
		return refuse(codeTicket, "there is no ticket in the request")
	}
	t, err := h.ticket(text)
	switch {
	case errors.Is(err, ticket.ErrExpired):
		return refuse(codeExpired, "%v", err)
	case err != nil:
		return refuse(codeTicket, "%v", err)
	case t.Volume != volume.String():
		return refuse(codeVolume, "the ticket is for volume %s", t.Volume)
	case !t.Write && r.Method != http.MethodGet && r.Method != http.MethodHead:
		return refuse(codeReadOnly, "the ticket is for reading only")
	}
	return nil
}

// ticket checks a ticket, or remembers that it was good not long ago: a signature
// takes longer to check than a small block to send.
func (h *handler) ticket(text string) (ticket.Ticket, error) {
	now := time.Now()
	h.mu.Lock()
	p, ok := h.passed[text]
	h.mu.Unlock()
	if ok && now.Before(p.until) {
		return p.ticket, nil
	}
	t, err := h.Tickets(text)
	if err != nil {
		return t, err
	}
	until := now.Add(passTime)
	if end := time.Unix(t.Expires, 0); end.Before(until) {
		until = end
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.passed) >= maxPasses {
		clear(h.passed)
	}
	h.passed[text] = pass{t, until}
	return t, nil
}

// enter waits for the request's turn.
func (h *handler) enter(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(maxWait)
	defer t.Stop()
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return refuse(codeBusy, "there are %d requests before this one", cap(slots))
	}
}

func leave(slots chan struct{}) { <-slots }

// put reads the whole body before it begins, so that a client that goes away or
// is slow has nothing to do with the store.
func (h *handler) put(ctx context.Context, w http.ResponseWriter, s store.Store, key store.Key, r *http.Request) error {
	data, err := readRequest(w, r, maxBody)
	if err != nil {
		return err
	}
	if h.Verify != nil {
		if _, err := h.Verify(key, data); err != nil {
			return refuse(codeDamaged, "%v", err)
		}
	}
	h.stats.received.Add(int64(len(data)))
	return h.store(ctx, s, key, data, r)
}

// refuse answers with a refusal.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, c code, err error) {
	if c == codeOrigin || c == codeCorrupt {
		h.Log.Warn("block request failed", "method", r.Method, "path", r.URL.Path, "client", r.RemoteAddr, "err", err)
	}
	bound(w)
	text := err.Error()
	var known *refusal
	if errors.As(err, &known) {
		text = known.text
	}
	w.Header().Set(headerError, string(c))
	http.Error(w, text[:min(len(text), maxText)], statusOf[c])
}

// refuse returns a refusal as an error.
func refuse(c code, format string, args ...any) error {
	return &refusal{code: c, status: statusOf[c], text: fmt.Sprintf(format, args...)}
}

// failed makes the error of a store a refusal. A store that is itself reached
// through a proxy has refusals of its own, which are not for this client.
func failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrNotExist):
		return refuse(codeNotExist, "%v", err)
	case errors.Is(err, store.ErrCorrupt):
		return refuse(codeCorrupt, "%v", err)
	case errors.Is(err, ErrFull):
		return refuse(codeFull, "%v", err)
	}
	return refuse(codeOrigin, "%v", err)
}

// codeOf says how a request went: "" is well.
func codeOf(err error) code {
	var r *refusal
	switch {
	case err == nil:
		return ""
	case errors.As(err, &r):
		return r.code
	}
	return codeOrigin
}
