package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/internal/tlspin"
)

// A state says what is known of a member.
type state int

const (
	stateNew   state = iota // not probed yet: not used
	stateUp                 // used
	stateTrial              // answers probes again, and gets one request at a time to show that it works
	stateDown               // failed: not used until it answers a probe
	stateSlow               // slower than the bucket: not used for a while; then on trial
)

var stateNames = [...]string{"new", "up", "trial", "down", "slow"}

func (s state) String() string { return stateNames[s] }

// window is how many measurements of a round trip count, of one round each. The
// least of them is the member's: one that was made while the line was full says
// nothing about the way.
const window = 3

// maxPause bounds the pauses before a member that answers probes, but fails when
// it is used, is tried again.
const maxPause = 30 * time.Second

// errPassed is the error of a request that was not made: the member is down.
var errPassed = errors.New("remote: the proxy is passed over, as it failed not long ago")

// errWentDown is the error of a request that was given up as its member went down.
var errWentDown = errors.New("remote: the proxy was found not to answer")

// A member is a proxy as this client sees it. It belongs to one Group, within
// which several proxy groups may share it.
type member struct {
	settings Member
	client   *Client
	idle     func() // closes idle connections
	timing   *Timing
	log      *slog.Logger
	doubt    func(*member) // tells that a request waits for long
	changed  func()        // tells that the member went up or down
	bypasses *atomic.Int64 // counts the times that it was found slow; may be nil
	stats    counters

	lot     uint64           // members are measured in the order of their lots
	latency [classes]latency // of requests

	mu      sync.Mutex // guards the rest; nothing else is locked while holding it
	state   state
	since   time.Time               // when the state began
	err     error                   // why it is down, or was
	strikes int                     // failures since the last request that went well
	retry   time.Time               // down or slow: when to probe again
	trying  bool                    // trial: the request is under way
	alive   context.Context         // ends when the member goes down or is slow
	kill    context.CancelCauseFunc // ends alive
	rtts    []time.Duration         // the last measurements, at most window
	noted   time.Time               // when the last of them was begun
	heard   time.Time               // when it answered a request last
	probing bool
	probed  time.Time // when the last probe began
	check   time.Time // when a probe is due as a request waits for long; zero: none is
	checks  bool      // the probe under way is such a one
	pace    pace
}

// counters count what happened since the start. Fields only grow.
type counters struct {
	requests atomic.Int64 // that were sent, and have ended
	failures atomic.Int64 // of them: the member's fault
	beaten   atomic.Int64 // of them: the bucket answered a hedge before
	active   atomic.Int64 // under way (this one does not only grow)
}

func newMember(m Member, noSSL bool, cfg *Config, doubt func(*member), changed func()) *member {
	dial := cfg.Dial
	if dial == nil {
		dial = dialer().DialContext
	}
	scheme := "https://"
	if noSSL {
		scheme = "http://"
	}
	var t http.RoundTripper
	if cfg.transport != nil {
		t = cfg.transport(m)
	} else {
		t = transport(m, dial)
	}
	hc := &http.Client{Transport: t, CheckRedirect: stay}
	alive, kill := context.WithCancelCause(context.Background())
	return &member{
		settings: m,
		client: &Client{
			URL:    scheme + m.Address,
			HTTP:   hc,
			Ticket: cfg.Ticket,
		},
		idle:    hc.CloseIdleConnections,
		timing:  &cfg.Timing,
		log:     cfg.Log.With("proxy", m.Address),
		doubt:   doubt,
		changed: changed,
		lot:     rand.Uint64(),
		since:   time.Now(),
		alive:   alive,
		kill:    kill,
	}
}

// stay makes a redirection an answer: tickets go to nobody else.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// transport returns the connections to m. Its limits on time are for making
// connections; that of a request is its context's.
func transport(m Member, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	conf := tlspin.ClientConfig(m.Pin)
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	if host, _, err := net.SplitHostPort(m.Address); err == nil {
		conf.ServerName = host
	}
	return &http.Transport{
		DialContext:            dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    connectTimeout,
		ExpectContinueTimeout:  time.Second,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    64, // requests at once that need no new connection
		IdleConnTimeout:        idleTimeout / 2,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        64 << 10,
	}
}

// do makes a request with op. It returns errPassed if the member is down, and
// within a probe's time if the member goes down meanwhile.
func (m *member) do(ctx context.Context, op func(context.Context, *Client) error) error {
	alive, _, err := m.enter(classOther, false)
	if err != nil {
		return err
	}
	began := time.Now()
	attempt, cancel := context.WithTimeout(ctx, m.timing.Attempt)
	defer cancel()
	defer context.AfterFunc(alive, cancel)()
	defer time.AfterFunc(m.timing.Patience, func() { m.doubt(m) }).Stop()
	err = op(attempt, m.client)
	m.leave(alive, classOther, endingOf(ctx, alive, err), time.Since(began), err)
	if err != nil && alive.Err() != nil && ctx.Err() == nil {
		return errWentDown
	}
	return err
}

// enter begins a request, and returns what ends it early. Judged says that the
// member is on trial as it was slow: the bucket must be asked, too, at the same
// time. Those that cannot be are passed over unless race is set.
func (m *member) enter(c class, race bool) (alive context.Context, judged bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == stateUp:
	case m.state == stateTrial && !m.trying && (race || !m.pace.judged):
		m.trying = true
	default:
		return nil, false, errPassed
	}
	m.stats.active.Add(1)
	m.pace.enter(c)
	return m.alive, m.state == stateTrial && m.pace.judged, nil
}

// An ending is how a request ended.
type ending int

const (
	answered ending = iota // by the member, be it with a refusal
	faulty                 // it is the member's fault that there is no answer
	beaten                 // the bucket was quicker
	gaveUp                 // the caller did
	released               // the member went down, or is slow
)

// endingOf returns how a request for a caller with ctx ended, that began with
// alive, if nobody else made it end.
func endingOf(ctx, alive context.Context, err error) ending {
	switch {
	case !isFault(err):
		return answered
	case alive.Err() != nil:
		return released
	case ctx.Err() != nil:
		return gaveUp
	}
	return faulty
}

// leave ends a request that was begun with alive, and took so long.
func (m *member) leave(alive context.Context, c class, end ending, took time.Duration, err error) {
	m.stats.requests.Add(1)
	m.stats.active.Add(-1)
	m.mu.Lock()
	m.pace.leave(c, end)
	if end == answered && c != classOther {
		m.heard, m.check = time.Now(), time.Time{} // whoever else waits will doubt again
	}
	if end == gaveUp || end == beaten {
		m.trying = m.trying && m.pace.judged
	}
	m.mu.Unlock()
	switch {
	case end == answered && alive.Err() == nil:
		m.worked()
	case end == released:
		m.stats.failures.Add(1)
	case end == beaten:
		m.stats.beaten.Add(1)
	case end == faulty:
		m.stats.failures.Add(1)
		m.failed(alive, err, false)
	}
	if c != classOther {
		m.took(c, end, took, err)
	}
}

// isFault reports whether err says that the member is not to be used for now.
// Refusals that another member would answer the same are none.
func isFault(err error) bool {
	var r *refusal
	if !errors.As(err, &r) {
		return err != nil
	}
	switch r.code {
	case codeNotExist, codeCorrupt, codeReadOnly, codeRequest, codeTooLarge, codeDamaged, codeOrigin, codeFull:
		return false
	}
	return true
}

// worked notes that a request went well.
func (m *member) worked() {
	m.mu.Lock()
	back := m.state == stateTrial && !m.pace.judged
	if back {
		m.set(stateUp)
		m.trying, m.strikes = false, 0
	}
	m.mu.Unlock()
	if back {
		m.log.Info("proxy is used again")
	}
}

// failed takes the member out of use, if it is not yet. If it was a probe that
// failed, all requests under way are given up: they would wait for nothing. A
// request that fails says nothing about others. Alive is from before it began.
func (m *member) failed(alive context.Context, err error, probe bool) {
	m.mu.Lock()
	if m.alive != alive {
		m.mu.Unlock()
		return
	}
	was, pause := m.state, m.timing.Pause
	if probe {
		m.kill(errWentDown)
	} else if was != stateDown {
		pause = min(pause<<min(m.strikes, 5), max(pause, maxPause))
		m.strikes++
	}
	m.err, m.retry = err, time.Now().Add(pause)
	m.trying, m.rtts, m.check = false, nil, time.Time{}
	m.set(stateDown)
	again := was == stateTrial && m.strikes > 1
	m.mu.Unlock()
	if was == stateDown {
		return
	}
	level := slog.LevelWarn
	if again {
		level = slog.LevelDebug
	}
	m.log.Log(context.Background(), level, "proxy is passed over", "err", err)
	m.idle() // they may be dead without knowing
	m.changed()
}

// probe measures the round trip with a few requests and notes what it found. It
// is called between beginProbe and endProbe.
func (m *member) probe(ctx context.Context, alive context.Context) {
	timeout, cancel := context.WithTimeout(ctx, m.timing.Probe)
	defer cancel()
	var best time.Duration
	for range m.samples() {
		rtt, err := m.client.Ping(timeout)
		if err != nil && best > 0 {
			break // what it answered is enough
		}
		if err != nil {
			if timeout.Err() != nil {
				err = fmt.Errorf("no answer to a probe within %v: %w", m.timing.Probe, err)
			}
			if ctx.Err() == nil {
				m.failed(alive, err, true)
			}
			return
		}
		if best == 0 || rtt < best {
			best = rtt
		}
	}
	m.healthy(best)
}

// samples returns how many requests the probe under way is to make: whether a
// member lives, one tells.
func (m *member) samples() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.checks {
		return 1
	}
	return samples
}

// beginProbe reports whether the member may be probed: it is not being probed.
func (m *member) beginProbe() (alive context.Context, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probing {
		return nil, false
	}
	m.probing, m.probed = true, time.Now()
	m.checks = !m.check.IsZero()
	m.check = time.Time{}
	return m.alive, true
}

func (m *member) endProbe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probing = false
	if m.checks && m.check.IsZero() && m.stats.active.Load() > 0 { // they may still be waiting
		m.check = time.Now().Add(m.timing.Probe)
	}
}

// doubted has the member probed soon. A probe that began after the request that
// is waiting would do, and there was one if it began within the patience for it;
// so would an answer to another request.
func (m *member) doubted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.check.IsZero() && (m.state != stateDown || m.stats.active.Load() > 0) {
		m.check = later(m.probed, m.heard).Add(m.timing.Patience)
	}
}

// healthy notes that a probe was answered after rtt.
func (m *member) healthy(rtt time.Duration) {
	m.mu.Lock()
	m.note(rtt)
	was := m.state
	switch {
	case was == stateNew:
		m.set(stateUp)
	case (was == stateDown || was == stateSlow) && !time.Now().Before(m.retry): // else it was a round's probe
		m.set(stateTrial)
	}
	if m.alive.Err() != nil {
		m.alive, m.kill = context.WithCancelCause(context.Background())
	}
	changed := m.state != was
	m.mu.Unlock()
	if changed {
		m.changed()
	}
}

// note adds a measurement to the window. Several within a round are one. m.mu
// must be held.
func (m *member) note(rtt time.Duration) {
	if n := len(m.rtts); n > 0 && time.Since(m.noted) < m.timing.Round/2 {
		m.rtts[n-1] = min(m.rtts[n-1], rtt)
		return
	}
	m.noted = time.Now()
	m.rtts = append(m.rtts, rtt)
	if len(m.rtts) > window {
		m.rtts = m.rtts[1:]
	}
}

// set changes the state. m.mu must be held.
func (m *member) set(s state) {
	if m.state != s {
		m.state, m.since = s, time.Now()
	}
}

func (m *member) isNew() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == stateNew
}

// usable reports whether requests may be sent, and the round-trip time. A member
// that has to show that it is not slow any more is none to choose a group for.
func (m *member) usable() (rtt time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isUsable() || len(m.rtts) == 0 {
		return 0, false
	}
	return slices.Min(m.rtts), true
}

// lasting returns the round-trip time that was not exceeded in all of the window.
func (m *member) lasting() (rtt time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isUsable() || len(m.rtts) < window {
		return 0, false
	}
	return slices.Max(m.rtts), true
}

// isUsable is usable with m.mu held.
func (m *member) isUsable() bool {
	return m.state == stateUp || m.state == stateTrial && !m.pace.judged
}

// measured returns when the round trip was measured last.
func (m *member) measured() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.noted
}

// due returns how long it is from now until the member is to be probed by itself.
func (m *member) due(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probing {
		return never
	}
	wait := never
	if m.state == stateDown || m.state == stateSlow {
		wait = m.retry.Sub(now)
	}
	if !m.check.IsZero() {
		wait = min(wait, m.check.Sub(now))
	}
	return wait
}

// never is until a time that is not known.
const never = time.Hour
