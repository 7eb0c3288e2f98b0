package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// A member that answers probes may still be of no use: its disk hangs, or it has
// more to do than it can. It is slow if the bucket does the same in a fraction of
// the time, and only then: when the bucket itself is slow so are the proxies, and
// to leave them would make things worse. So there is no verdict without a
// comparison, of the same requests at the same time. There are two ways to it.
//
// A member that looks slow by its running latency is compared: some of its
// requests, paid for from the budget of hedges, are sent to the bucket as well
// (see call.race). If it loses several in a row clearly it is slow.
//
// A member is silent for as long as requests of a class wait for it and it
// answers none of them. If meanwhile the bucket answered one of them, which was
// hedged, and could have answered a few more, the member is slow, and whoever
// waits for it is let go.
//
// After a pause a slow member is on trial: single requests are made with it in
// comparison with the bucket, until it does not lose several in a row. The pause
// gets longer if that does not last.
const (
	slowRatio = 2                     // of the bucket's time, and
	slowFloor = 25 * time.Millisecond // more than that is slow
	slowRaces = 3                     // comparisons in a row that make or end a slow member

	suspectSamples = 20               // before a member may look slow
	bucketSamples  = 8                // before the bucket's running latency counts
	bucketAge      = 30 * time.Second // that it may have
	acquittal      = 10 * time.Second // for which a member that won a comparison does not look slow

	silentRatio  = 5       // of what nearly all requests took is a long silence
	silentBucket = 3       // of what the bucket took
	putSpeed     = 2 << 20 // bytes per second that a write may take longer for

	maxSlowPause  = 15 * time.Second
	slowProbation = 2 * time.Minute // after which a slow spell is not a continuation of the last
)

// errWentSlow is the error of a request that was given up as its member is slow.
var errWentSlow = errors.New("remote: the proxy was found to be slower than the bucket")

// A pace is what is known of a member's slowness. It is guarded by its mu.
type pace struct {
	silence  [classes]quiet
	judged   bool      // was found slow, and has not shown yet that it is not
	wins     int       // comparisons in a row, of a judged member
	losses   int       // comparisons in a row, of another
	spells   int       // times that it was found slow, not long after each other
	cleared  time.Time // when it last showed that it is not slow
	checking bool      // a request that waits for it is being made by the bucket
}

// A quiet is how long a member has not answered requests that waited for it.
type quiet struct {
	waiting int           // requests under way
	from    time.Time     // when the first of them began, or another was answered
	before  time.Duration // the same for those that ended since the last answer, as the bucket was much quicker
	bucket  time.Duration // the longest that the bucket took for one of all these; 0: it did none
}

func (p *pace) enter(c class) {
	if c == classOther {
		return
	}
	s := &p.silence[c]
	if s.waiting == 0 {
		s.from = time.Now()
	}
	s.waiting++
}

func (p *pace) leave(c class, end ending) {
	if c == classOther {
		return
	}
	s := &p.silence[c]
	if s.waiting > 0 { // else all has been forgotten since
		s.waiting--
	}
	if end == answered {
		*s = quiet{waiting: s.waiting, from: time.Now()}
	}
}

// lasted returns how long the silence has lasted.
func (s *quiet) lasted() time.Duration {
	if s.waiting == 0 {
		return s.before
	}
	return s.before + time.Since(s.from)
}

// bearable returns how long a member may be silent about requests of a class,
// of which one has so many bytes to send.
func (m *member) bearable(c class, size int) time.Duration {
	d := m.timing.Hang
	if _, p95, ok := m.latency[c].known(suspectSamples); ok {
		d = max(d, silentRatio*p95)
	}
	return d + time.Duration(size)*time.Second/putSpeed
}

// outdone notes that the bucket took so long for a request of class c, which the
// member had not answered after the time waited.
func (m *member) outdone(alive context.Context, c class, size int, waited, bucket time.Duration) {
	m.mu.Lock()
	if m.alive != alive {
		m.mu.Unlock()
		return
	}
	s := &m.pace.silence[c]
	s.bucket = max(s.bucket, bucket)
	if s.waiting == 0 && isSlower(waited, bucket) {
		s.before += waited
	}
	m.mu.Unlock()
	m.listen(alive, c, size)
}

// listen finds a member slow that has been silent for too long while the bucket
// was not. Otherwise it returns after how long to listen again, and whether the
// bucket needs to be asked to know.
func (m *member) listen(alive context.Context, c class, size int) (wait time.Duration, ask bool) {
	bound := m.bearable(c, size)
	m.mu.Lock()
	if m.alive != alive {
		m.mu.Unlock()
		return never, false
	}
	s := &m.pace.silence[c]
	lasted, bucket := s.lasted(), s.bucket
	m.mu.Unlock()
	if lasted < bound {
		return bound - lasted, false
	}
	if bucket == 0 {
		return m.timing.Hang / 4, true
	}
	if rest := silentBucket*bucket - lasted; rest > 0 {
		return rest, false
	}
	m.slow(alive, fmt.Errorf("remote: no answer to %v for %v, in which the bucket took %v", c, short(lasted), short(bucket)))
	return never, false
}

// mayCheck reports whether the caller is to have its request made by the bucket, to
// know how long that takes. It then must call checked.
func (m *member) mayCheck() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	ok := !m.pace.checking
	m.pace.checking = true
	return ok
}

func (m *member) checked() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pace.checking = false
}

// took notes how long a request took. Of one that the bucket was quicker with, it
// is only known that it would have taken longer.
func (m *member) took(c class, end ending, took time.Duration, err error) {
	l := &m.latency[c]
	switch {
	case end == answered && err == nil:
		l.record(took)
	case end == beaten && int64(took) > l.p50.Load():
		l.record(took)
	}
}

// looksSlow reports whether the member is to be compared with the bucket, whose
// running latency is given.
func (m *member) looksSlow(c class, bucket *latency) bool {
	l := &m.latency[c]
	p50 := time.Duration(l.p50.Load())
	if p50 <= slowFloor || l.samples.Load() < suspectSamples {
		return false
	}
	if b, ok := bucket.fresh(bucketSamples, bucketAge); ok && !isSlower(p50, b) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == stateUp && time.Since(m.pace.cleared) > acquittal
}

// isSlower reports whether the time of a proxy is clearly longer than that of
// the bucket.
func isSlower(proxy, bucket time.Duration) bool { return proxy > slowRatio*bucket+slowFloor }

// compared notes the outcome of a comparison with the bucket: the member had
// answered, or had not after a time that is too long compared to the bucket's.
func (m *member) compared(alive context.Context, c class, won bool, proxy, bucket time.Duration) {
	m.mu.Lock()
	if m.alive != alive {
		m.mu.Unlock()
		return
	}
	p := &m.pace
	m.trying, p.checking = false, false
	back := false
	switch {
	case won && p.judged:
		p.wins++
		back = p.wins >= slowRaces && m.state == stateTrial
	case won:
		p.losses, p.cleared = 0, time.Now()
	default:
		p.losses++
	}
	guilty := !won && (p.judged || p.losses >= slowRaces)
	if back {
		p.judged, p.wins, p.losses, p.cleared = false, 0, 0, time.Now()
		m.strikes = 0
		m.set(stateUp)
	}
	m.mu.Unlock()
	switch {
	case back:
		m.forget()
		m.log.Info("proxy is used again")
		m.changed()
	case guilty:
		m.slow(alive, fmt.Errorf("remote: %v take longer than %v, and the bucket %v", c, short(proxy), short(bucket)))
	}
}

// undecided notes that a comparison came to nothing.
func (m *member) undecided(alive context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.alive == alive {
		m.trying, m.pace.checking = false, false
	}
}

// slow takes the member out of use for a while, and lets all requests go that
// wait for it.
func (m *member) slow(alive context.Context, err error) {
	m.mu.Lock()
	if m.alive != alive || !m.inUse() {
		m.mu.Unlock()
		return
	}
	p := &m.pace
	again := p.judged
	if !again && time.Since(p.cleared) > slowProbation {
		p.spells = 0
	}
	pause := min(m.timing.Pause<<min(p.spells, 20), max(m.timing.Pause, maxSlowPause))
	*p = pace{judged: true, spells: p.spells + 1, cleared: p.cleared}
	m.kill(errWentSlow)
	m.err, m.retry = err, time.Now().Add(pause)
	m.trying, m.rtts, m.check = false, nil, time.Time{}
	m.set(stateSlow)
	m.mu.Unlock()
	if m.bypasses != nil {
		m.bypasses.Add(1)
	}
	level := slog.LevelWarn
	if again {
		level = slog.LevelDebug
	}
	m.log.Log(context.Background(), level, "proxy is passed over", "err", err, "pause", pause)
	m.idle()
	m.changed()
}

// inUse reports whether requests are sent to the member. m.mu must be held.
func (m *member) inUse() bool { return m.state == stateUp || m.state == stateTrial }

// forget makes the member's latencies start afresh.
func (m *member) forget() {
	for i := range m.latency {
		m.latency[i].reset()
	}
}

// firstListen returns after how long a request that begins is to see whether the
// member is slow.
func (m *member) firstListen(c class, size int) time.Duration {
	bound := m.bearable(c, size)
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(bound-m.pace.silence[c].before, minHedge)
}

// withdraw ends a request that was begun, but not made.
func (m *member) withdraw(c class) {
	m.stats.active.Add(-1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trying = false
	m.pace.leave(c, gaveUp)
}

// isJudged reports whether the member is on trial as it was slow.
func (m *member) isJudged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == stateTrial && m.pace.judged
}
