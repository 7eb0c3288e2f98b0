package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"flexfs/store"
)

// A read that a proxy has not answered after the time in which it nearly always
// does is sent to the bucket as well: it is hedged, if also the bucket's usual time
// is over. (The next proxy would have to ask the bucket, too.) This is how long to
// wait for that.
const (
	minHedge     = 5 * time.Millisecond
	maxHedge     = time.Second
	defaultHedge = 200 * time.Millisecond // when it is not known
	hedgeSamples = 20                     // to know it
)

// Extra requests per thousand, and how many at once: see budget.
const (
	hedgeShare, hedgeBurst = 50, 10
	retryShare, retryBurst = 100, 20
)

// maxDoubt bounds the time before a member is doubted of which it is known that
// it takes long.
const maxDoubt = time.Second

var (
	errBeaten  = errors.New("remote: the bucket was quicker")
	errTimeout = errors.New("remote: the proxy took too long")
	errSpent   = errors.New("remote: too many requests failed to try another proxy")
)

// A call is one operation on its way through the proxies. Its caller's goroutine
// makes one attempt after the other, each with another member. A timer watches,
// and does what is due when an attempt takes long; if the operation is hedged it
// is the first good answer that ends it.
type call struct {
	g   *Group
	ctx context.Context // the caller's
	op  operation

	mayHedge bool // send it to the bucket as well
	tries    int  // attempts so far

	mu    sync.Mutex
	timer *time.Timer // runs while there is an attempt; guarded by mu
	now   attempt     // guarded by mu; written only by the caller's goroutine
	hedge *hedge      // guarded by mu; set once
}

// An attempt is a request to a member.
type attempt struct {
	m      *member // nil: there is none
	alive  context.Context
	cancel context.CancelCauseFunc
	began  time.Time
	due    [events]time.Time
}

// What may be due. A zero time is never.
const (
	eventHedge  = iota // send it to the bucket as well
	eventDoubt         // have the member probed
	eventSilent        // see whether the member is slow
	eventEnd           // give up
	events
)

// A hedge is the operation sent to the bucket as well. The result is there when
// done is closed.
type hedge struct {
	done   chan struct{}
	cancel context.CancelFunc
	out    outcome
	err    error
	took   time.Duration
}

// isGood reports whether the hedge has ended with what is wanted.
func (h *hedge) isGood() bool {
	select {
	case <-h.done:
		return h.err == nil
	default:
		return false
	}
}

// through does the operation through the group p, and if all members that may be
// asked fail, through the group that is chosen instead.
func (c *call) through(p *proxyGroup) (outcome, error) {
	out, err := c.try(p)
	if !isMembers(err) || c.ctx.Err() != nil || errors.Is(err, errSpent) || c.hedged() {
		return out, err
	}
	if next := c.g.view.Load().chosen; next != nil && next != p {
		return c.try(next)
	}
	return out, err
}

// try does the operation through a member of p: the owner of the block or, should
// it fail or be known to have failed, the next in order.
func (c *call) try(p *proxyGroup) (outcome, error) {
	err := errPassed
	tries := 0
	for i, name := range p.ring.Owners(c.op.key.Hash(), -1) {
		out, failed := c.attempt(p.members[name])
		if failed == errPassed {
			continue
		}
		if errors.Is(failed, errSpent) {
			return out, fmt.Errorf("%w; the last: %w", failed, err)
		}
		if i > 0 {
			c.g.stats.failovers.Add(1)
		}
		if !isMembers(failed) && !c.isPutRefused(failed) || c.ctx.Err() != nil {
			return out, failed
		}
		err = failed
		if tries++; tries == maxTries {
			break
		}
	}
	return outcome{}, err
}

// isMembers reports whether another member may do better.
func isMembers(err error) bool {
	var r *refusal
	return isFault(err) || errors.As(err, &r) && r.code == codeDamaged
}

// isPutRefused reports whether a member could not do a Put because the bucket
// failed: it has no room itself, or no other member to keep a copy, which may not
// be so for the next one.
func (c *call) isPutRefused(err error) bool {
	var r *refusal
	return c.op.kind == kindPut && errors.As(err, &r) && r.code == codeOrigin
}

// attempt makes a request to m, and the hedge's answer its own if that is first.
// It returns errPassed if m is passed over.
func (c *call) attempt(m *member) (outcome, error) {
	class := c.op.class()
	alive, judged, err := m.enter(class, c.mayRace())
	if err != nil {
		return outcome{}, err
	}
	if c.tries++; c.tries > 1 && !c.g.retries.take() {
		c.g.stats.retriesDenied.Add(1)
		m.withdraw(class)
		return outcome{}, errSpent
	}
	if judged || c.tries == 1 && c.mayRace() && c.g.compares(m, class) {
		op := c.op
		op.data = bytes.Clone(op.data) // the member may have it for longer than the caller
		return c.race(m, alive, op)
	}
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	defer context.AfterFunc(alive, func() { cancel(context.Cause(alive)) })()
	began := c.watch(m, alive, cancel)
	out, err := c.op.far(ctx, m.client)
	h, took := c.unwatch(), time.Since(began)
	end := c.endingOf(ctx, err)
	m.leave(alive, class, end, took, err)
	switch end {
	case beaten:
		c.g.stats.hedgesWon.Add(1)
		m.outdone(alive, class, len(c.op.data), took, h.took)
		return h.out, nil
	case released:
		return outcome{}, context.Cause(ctx)
	}
	return out, err
}

// endingOf returns how the attempt with ctx ended.
func (c *call) endingOf(ctx context.Context, err error) ending {
	switch cause := context.Cause(ctx); {
	case !isFault(err):
		return answered
	case cause == errBeaten:
		return beaten
	case cause == errWentDown || cause == errWentSlow:
		return released
	case c.ctx.Err() != nil:
		return gaveUp
	}
	return faulty
}

// mayRace reports whether the operation may be done by a member and the bucket.
func (c *call) mayRace() bool { return c.mayHedge || c.op.kind == kindPut }

// watch begins an attempt.
func (c *call) watch(m *member, alive context.Context, cancel context.CancelCauseFunc) time.Time {
	class, now := c.op.class(), time.Now()
	a := attempt{m: m, alive: alive, cancel: cancel, began: now}
	a.due[eventEnd] = now.Add(m.timing.Attempt)
	delay, doubt := defaultHedge, m.timing.Patience
	if class != classOther {
		if _, p95, ok := m.latency[class].known(hedgeSamples); ok {
			bucket, _, _ := c.g.latency[class].known(bucketSamples) // sooner it would hardly be the first
			delay = min(max(p95, bucket, minHedge), maxHedge)
			doubt = max(doubt, min(2*p95, maxDoubt))
		}
		a.due[eventSilent] = now.Add(m.firstListen(class, len(c.op.data)))
	}
	a.due[eventDoubt] = now.Add(doubt)
	if c.mayHedge {
		a.due[eventHedge] = now.Add(delay)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = a
	if c.hedge != nil && c.hedge.isGood() {
		cancel(errBeaten)
	}
	wait := c.now.next().Sub(now)
	if c.timer == nil {
		c.timer = time.AfterFunc(wait, c.tick)
	} else {
		c.timer.Reset(wait)
	}
	return now
}

// next returns when something is due.
func (a *attempt) next() time.Time {
	first := a.due[eventEnd]
	for _, t := range a.due {
		if !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

// unwatch ends the attempt, and returns the hedge if there is one.
func (c *call) unwatch() *hedge {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = attempt{}
	c.timer.Stop()
	return c.hedge
}

// tick does what is due in the attempt under way.
func (c *call) tick() {
	c.mu.Lock()
	a := c.now
	var is [events]bool
	for i, t := range a.due {
		if is[i] = a.m != nil && !t.IsZero() && !time.Now().Before(t); is[i] {
			c.now.due[i] = time.Time{}
		}
	}
	if is[eventDoubt] {
		c.now.due[eventDoubt] = time.Now().Add(a.m.timing.Probe)
	}
	c.mu.Unlock()
	if is[eventEnd] {
		a.cancel(errTimeout)
		return
	}
	switch {
	case is[eventDoubt] || is[eventHedge] && time.Since(a.began) >= a.m.timing.Patience/2:
		c.g.doubt(a.m)
	case is[eventHedge]: // that is not rare
		a.m.doubted()
		c.g.poke()
	}
	if is[eventHedge] {
		c.hedgeIfAllowed(&a)
	}
	if is[eventSilent] {
		c.listen(&a)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now.m != nil {
		c.timer.Reset(time.Until(c.now.next()))
	}
}

// hedgeIfAllowed sends the operation to the bucket as well if there is a token.
func (c *call) hedgeIfAllowed(a *attempt) {
	if c.hedged() {
		return
	}
	if !c.g.hedges.take() {
		c.g.stats.hedgesDenied.Add(1)
		return
	}
	c.startHedge(a, false)
}

// listen sees whether the member of the attempt is slow, for which the operation
// may have to be sent to the bucket as well.
func (c *call) listen(a *attempt) {
	class, size := c.op.class(), len(c.op.data)
	wait, ask := a.m.listen(a.alive, class, size)
	if age := time.Since(a.began); !ask && age >= a.m.bearable(class, size) {
		ask = true // others are answered, but not this one
	}
	if ask && !c.hedged() && a.m.mayCheck() {
		c.startHedge(a, true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now.m == a.m {
		c.now.due[eventSilent] = time.Now().Add(wait)
	}
}

// hedged reports whether the operation was sent to the bucket as well.
func (c *call) hedged() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hedge != nil
}

// startHedge sends the operation to the bucket as well.
func (c *call) startHedge(a *attempt, check bool) {
	ctx, cancel := context.WithCancel(c.ctx)
	h := &hedge{done: make(chan struct{}), cancel: cancel}
	c.mu.Lock()
	if c.now.m != a.m || c.hedge != nil { // it has ended
		c.mu.Unlock()
		cancel()
		if check {
			a.m.checked()
		}
		return
	}
	c.hedge = h
	c.mu.Unlock()
	c.g.stats.hedged.Add(1)
	go func() {
		c.runHedge(ctx, h, a.m)
		if check {
			a.m.checked()
		}
	}()
}

// runHedge sends the operation, that waits for m, to the bucket, and ends the
// attempt under way if the answer is good.
func (c *call) runHedge(ctx context.Context, h *hedge, m *member) {
	began := time.Now()
	out, err := c.g.direct(ctx, &c.op, true)
	c.mu.Lock()
	h.out, h.err, h.took = out, err, time.Since(began)
	a := c.now
	if err == nil && a.m != nil {
		a.cancel(errBeaten)
	}
	close(h.done)
	c.mu.Unlock()
	if a.m == m && errors.Is(err, store.ErrNotExist) { // not what is wanted, but an answer
		m.outdone(a.alive, c.op.class(), len(c.op.data), 0, h.took)
	}
}

// bucket does the operation without the proxies, which failed. A hedge is that
// already.
func (c *call) bucket() (outcome, error) {
	c.mu.Lock()
	h := c.hedge
	c.mu.Unlock()
	if h == nil {
		return c.g.direct(c.ctx, &c.op, true)
	}
	<-h.done // its context is c.ctx
	return h.out, h.err
}

// end ends the call. The caller has its data back afterwards.
func (c *call) end() {
	if h := c.hedge; h != nil { // nobody sets it any more
		h.cancel()
		if c.op.kind == kindPut {
			<-h.done
		}
	}
}

// A result is what a side of a race came to.
type result struct {
	out  outcome
	err  error
	took time.Duration
}

// races are those under way, which Run waits for.
type races struct {
	life context.Context // ends with Run
	kill context.CancelFunc

	sync.WaitGroup
	mu sync.Mutex // held to add to none
}

func newRaces() *races {
	r := new(races)
	r.life, r.kill = context.WithCancel(context.Background())
	return r
}

// begin adds n goroutines, unless all is over.
func (r *races) begin(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.life.Err() != nil {
		return false
	}
	r.Add(n)
	return true
}

// end ends all races.
func (r *races) end() {
	r.mu.Lock()
	r.kill()
	r.mu.Unlock()
	r.Wait()
}

// race does op, whose data is nobody else's, through m and by the bucket at the same time. The first
// good answer counts, and what the member does is judged. It may go on when race
// has returned, but not for much longer than the bucket took.
func (c *call) race(m *member, alive context.Context, op operation) (outcome, error) {
	if !c.g.races.begin(3) { // Run has ended
		m.withdraw(op.class())
		m.undecided(alive)
		return outcome{}, errPassed
	}
	defer c.g.races.Done() // not before judge is counted
	c.g.stats.compared.Add(1)
	far, endFar := context.WithTimeout(context.WithoutCancel(c.ctx), m.timing.Attempt)
	release := context.AfterFunc(alive, endFar)
	stop := context.AfterFunc(c.g.races.life, endFar)
	near, endNear := context.WithTimeout(c.ctx, m.timing.Attempt)
	defer endNear()
	proxy, bucket := make(chan result, 1), make(chan result, 1)
	began := time.Now()
	go func() {
		defer c.g.races.Done()
		out, err := op.far(far, m.client)
		release()
		stop()
		proxy <- result{out, err, time.Since(began)}
	}()
	go func() {
		defer c.g.races.Done()
		out, err := c.g.direct(near, &op, true)
		bucket <- result{out, err, time.Since(began)}
	}()
	class := op.class()
	var b result
	select {
	case p := <-proxy:
		endFar()
		m.leave(alive, class, endingOf(c.ctx, alive, p.err), p.took, p.err)
		if p.err == nil || errors.Is(p.err, ErrReadOnly) {
			m.compared(alive, class, true, p.took, 0)
			return p.out, p.err
		}
		m.undecided(alive)
		if b = <-bucket; b.err == nil || isFault(p.err) {
			return b.out, b.err
		}
		return p.out, p.err
	case b = <-bucket:
	}
	if b.err == nil {
		c.g.races.Go(func() { judge(m, alive, class, b.took, began, proxy, endFar) })
		return b.out, nil
	}
	// The bucket cannot do it, and so there is no comparison.
	defer context.AfterFunc(c.ctx, endFar)()
	t := time.NewTimer(m.bearable(class, len(op.data)))
	defer t.Stop()
	var p result
	select {
	case p = <-proxy:
	case <-t.C:
		endFar()
		p = <-proxy
	}
	endFar()
	m.leave(alive, class, endingOf(c.ctx, alive, p.err), p.took, p.err)
	if p.err == nil {
		m.compared(alive, class, true, p.took, b.took)
	}
	m.undecided(alive)
	return p.out, p.err
}

// judge waits for the member's side of a race, which the bucket won, until it is
// clearly slower.
func judge(m *member, alive context.Context, c class, bucket time.Duration, began time.Time, proxy <-chan result, end func()) {
	defer end()
	bound := slowRatio*bucket + slowFloor
	t := time.NewTimer(bound - time.Since(began))
	defer t.Stop()
	select {
	case p := <-proxy:
		m.leave(alive, c, endingOf(context.Background(), alive, p.err), p.took, p.err)
		if isFault(p.err) {
			m.undecided(alive)
			return
		}
		m.compared(alive, c, !isSlower(p.took, bucket), p.took, bucket)
	case <-t.C:
		end()
		p := <-proxy
		m.leave(alive, c, beaten, p.took, p.err)
		m.compared(alive, c, false, bound, bucket)
	}
}
