package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"flexfs/store"
)

// simSites are the places of a simulation. Groups are at all but the last, which
// is about as far from the first as from the second: its mounts have to choose
// between two that are nearly the same, and to keep to what they chose.
var simSites = [][]float64{ // round trips in milliseconds, by site of the mount and of the group
	{0.3, 1.5, 9, 35},
	{1.5, 0.3, 8, 34},
	{9, 8, 0.4, 26},
	{35, 34, 26, 0.5},
	{12, 12.4, 20, 40},
}

const (
	simLoss   = 200                    // of a million round trips
	simResend = 200 * time.Millisecond // after what time what was lost is sent again
	simSway   = 0.1                    // by how much a way gets longer and shorter, in 20 minutes
)

// A simMode is the state of health of a simulated proxy.
type simMode int

const (
	simWell   simMode = iota
	simDead           // the process is gone: connections are refused
	simSilent         // its packets vanish
	simFrozen         // it stands still, and goes on later
	simHung           // it answers probes, but no request for a block
	simSlow           // all it does takes several times as long
)

// A simState is how a proxy is for a while. It is not changed but replaced.
type simState struct {
	mode    simMode
	slower  time.Duration // how many times as long all takes
	run     int           // counts the times that it was started
	changed chan struct{} // closed when it is replaced
}

// A simLink is the connections of one mount to one proxy: the [http.RoundTripper]
// of a member. It keeps the time that the way takes, and fails as the proxy does.
type simLink struct {
	sim   *simulation
	mount *simMount
	from  int // site
	proxy *simProxy
	base  time.Duration // round trip on a quiet day
	phase float64
	run   atomic.Int64 // the proxy's run that there are connections to; 0: there are none
}

// link returns a mount's connections to the member. Connections to whom there is
// none are refused.
func (s *simulation) link(m *simMount, addr string) *simLink {
	p := s.proxyAt(addr)
	ms := simSites[m.site][p.site] * m.stretch[p.site]
	return &simLink{sim: s, mount: m, from: m.site, proxy: p, base: time.Duration(ms * float64(time.Millisecond)), phase: m.phase[p.site]}
}

// RoundTrip implements [http.RoundTripper].
func (l *simLink) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.roundTrip(req)
	if req.Body != nil {
		req.Body.Close()
	}
	return resp, err
}

func (l *simLink) roundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	probe := strings.HasSuffix(req.URL.Path, healthPath)
	if !probe && req.Header.Get(headerLocal) == "" {
		l.mount.attempts.Add(1)
	}
	if err := l.connect(ctx, probe); err != nil {
		return nil, err
	}
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.WroteRequest != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
	var resp *http.Response
	var err error
	if probe {
		resp, err = l.ask(ctx)
	} else {
		resp, err = l.serve(ctx, req)
	}
	if err != nil {
		return nil, err
	}
	if trace != nil && trace.GotFirstResponseByte != nil {
		trace.GotFirstResponseByte()
	}
	resp.Request = req
	return resp, nil
}

// CloseIdleConnections is what [http.Client.CloseIdleConnections] calls.
func (l *simLink) CloseIdleConnections() { l.run.Store(0) }

// connect makes a connection if there is none: TCP's round trip, and TLS's. One
// that ended while nobody used it is as good as none.
func (l *simLink) connect(ctx context.Context, probe bool) error {
	state, run := l.proxy.state.Load(), l.run.Load()
	if run == int64(state.run) && state.mode != simDead {
		return nil
	}
	l.run.CompareAndSwap(run, 0)
	if err := l.cross(ctx, l.delay()+l.delay(), probe); err != nil {
		return err
	}
	l.run.Store(int64(l.proxy.state.Load().run))
	return nil
}

// simHealthy is the header of all answers to probes.
var simHealthy = http.Header{headerProxy: {"1"}}

// ask asks the proxy whether it is well.
func (l *simLink) ask(ctx context.Context) (*http.Response, error) {
	l.proxy.probes.Add(1)
	if err := l.cross(ctx, l.delay()+l.proxy.state.Load().slower*30*time.Microsecond, true); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: simHealthy, Body: http.NoBody}, nil
}

// serve has the proxy's real handler answer.
func (l *simLink) serve(ctx context.Context, req *http.Request) (*http.Response, error) {
	way := l.delay() / 2
	if err := l.cross(ctx, way, false); err != nil {
		return nil, err
	}
	if req.Header.Get(headerLocal) == "" {
		l.proxy.requests.Add(1)
	}
	w := &simWriter{header: make(http.Header), status: http.StatusOK}
	l.proxy.handler.ServeHTTP(w, req)
	if err := l.cross(ctx, way, false); err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode:    w.status,
		Header:        w.header,
		Body:          io.NopCloser(bytes.NewReader(w.body)),
		ContentLength: int64(len(w.body)),
	}, nil
}

// cross takes d, and longer while nothing gets through.
func (l *simLink) cross(ctx context.Context, d time.Duration, probe bool) error {
	if err := simWait(ctx, d); err != nil {
		return err
	}
	for {
		state, cut := l.proxy.state.Load(), l.sim.cut.Load()
		run := l.run.Load()
		switch {
		case cut.between(l.from, l.proxy.site), state.mode == simSilent, state.mode == simFrozen, state.mode == simHung && !probe:
		case state.mode == simDead:
			l.run.Store(0)
			if run != 0 {
				return syscall.ECONNRESET
			}
			return syscall.ECONNREFUSED
		case run != 0 && run != int64(state.run):
			l.run.Store(0)
			return syscall.ECONNRESET
		default:
			return nil
		}
		select {
		case <-state.changed:
		case <-cut.changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// delay draws what a round trip takes now.
func (l *simLink) delay() time.Duration {
	sway := 1 + simSway*math.Sin(2*math.Pi*(l.sim.now().Minutes()/20+l.phase))
	d := time.Duration(float64(l.base)*sway*(1+0.05*rand.ExpFloat64())) + time.Duration(rand.ExpFloat64()*20e3)
	if rand.Uint64N(1e6) < l.sim.loss.Load() {
		d += simResend
	}
	return d
}

// A simCut is which sites do not reach which for a while.
type simCut struct {
	site    int // cut off from all others; -1: none
	changed chan struct{}
}

func (c *simCut) between(a, b int) bool { return a != b && (a == c.site || b == c.site) }

// isolate cuts a site off from all others; -1 ends that.
func (s *simulation) isolate(site int) {
	close(s.cut.Swap(&simCut{site: site, changed: make(chan struct{})}).changed)
}

// simWait takes d, or until ctx is done. It does not look at ctx for less time
// than a person notices.
func simWait(ctx context.Context, d time.Duration) error {
	if d < 20*time.Millisecond {
		time.Sleep(d)
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A simWriter is an [http.ResponseWriter] that keeps the answer.
type simWriter struct {
	header http.Header
	status int
	body   []byte
}

// Header implements [http.ResponseWriter].
func (w *simWriter) Header() http.Header { return w.header }

// WriteHeader implements [http.ResponseWriter].
func (w *simWriter) WriteHeader(status int) { w.status = status }

// Write implements [http.ResponseWriter].
func (w *simWriter) Write(b []byte) (int, error) {
	w.body = append(w.body, b...)
	return len(b), nil
}

// A simBucket is the bucket of all: it has every block of the files that were
// there from the beginning, and what was put. It is never out of order.
type simBucket struct {
	sim  *simulation
	gets *atomic.Int64
	puts *atomic.Int64
}

var errSimBucket = errors.New("the bucket of the simulation cannot do this")

// Get implements [store.Store].
func (b simBucket) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	b.gets.Add(1)
	if err := simWait(ctx, simSlowly(30*time.Millisecond)); err != nil {
		return nil, err
	}
	if !b.sim.stored(key) {
		return nil, store.ErrNotExist
	}
	return store.Clip(simBlock(key), off, n), nil
}

// Put implements [store.Store].
func (b simBucket) Put(ctx context.Context, key store.Key, data []byte) error {
	b.puts.Add(1)
	if err := simWait(ctx, simSlowly(50*time.Millisecond)); err != nil {
		return err
	}
	b.sim.keep(key)
	return nil
}

// Delete implements [store.Store].
func (b simBucket) Delete(context.Context, store.Key) error { return errSimBucket }

// simSlowly draws a time that is mostly near to the median, and sometimes several
// times as long.
func simSlowly(median time.Duration) time.Duration {
	return time.Duration(float64(median) * math.Exp(0.4*rand.NormFloat64()))
}
