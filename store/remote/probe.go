package remote

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	samples   = 4  // requests of a probe; the quickest counts
	perRound  = 16 // members of a group that are measured in a round
	maxProbes = 32 // at once
)

// To change the group leaves a warm cache: it must be worth it.
const (
	clearRatio = 0.7
	clearGain  = 200 * time.Microsecond
)

// clearly reports whether a round trip of a is much better than one of b.
func clearly(a, b time.Duration) bool {
	return float64(a) < clearRatio*float64(b) && b-a > clearGain
}

// Run measures the groups and keeps the choice good until ctx is done; then it
// closes idle connections. It is to be called once.
func (g *Group) Run(ctx context.Context) {
	defer g.closeIdle()
	var wg sync.WaitGroup
	defer wg.Wait()
	ended := make(chan struct{}, 1) // the round that was running
	running := false
	for ctx.Err() == nil {
		wait := never
		if !running {
			if wait = g.untilRound(); wait <= 0 {
				running, wait = true, never
				wg.Go(func() { g.Probe(ctx); ended <- struct{}{} })
			}
		}
		now := time.Now()
		for _, m := range g.list() {
			due := m.due(now)
			if due <= 0 {
				wg.Go(func() { g.probe(ctx, m) })
				continue
			}
			wait = min(wait, due)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-ended:
			running = false
		case <-g.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// Probe measures all groups at once and chooses one, in not much more time than
// Timing.Probe, whatever the groups do. Run does it again and again; to call it
// before says sooner what there is.
func (g *Group) Probe(ctx context.Context) {
	g.mu.Lock()
	g.next = time.Now().Add(jitter(g.cfg.Timing.Round))
	fresh := g.fresh
	g.fresh = false
	members := g.sample()
	g.mu.Unlock()
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() { g.probe(ctx, m) })
	}
	wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	if ctx.Err() == nil {
		g.compare(fresh)
	}
}

// probe probes one member when its turn comes, and wakes Run afterwards.
func (g *Group) probe(ctx context.Context, m *member) {
	alive, ok := m.beginProbe()
	if !ok {
		return
	}
	defer g.poke()
	defer m.endProbe()
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
		m.probe(ctx, alive)
	case <-ctx.Done():
	}
}

// sample returns the members to measure in a round: all that are new, and the
// others of small groups. g.mu must be held.
func (g *Group) sample() []*member {
	picked := make(map[*member]bool)
	for _, p := range g.groups {
		n := 0
		for _, m := range p.members { // in random order
			if n < perRound || m.isNew() {
				picked[m] = true
				n++
			}
		}
	}
	members := make([]*member, 0, len(picked))
	for m := range picked {
		members = append(members, m)
	}
	return members
}

// untilRound returns how long it is to the next round.
func (g *Group) untilRound() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fresh {
		return 0
	}
	return time.Until(g.next)
}

// list returns all members.
func (g *Group) list() []*member {
	g.mu.Lock()
	defer g.mu.Unlock()
	members := make([]*member, 0, len(g.all))
	for _, m := range g.all {
		members = append(members, m)
	}
	return members
}

func (g *Group) closeIdle() {
	for _, m := range g.list() {
		m.idle()
	}
}

// rtt returns the round trip to the nearest member that can be used.
func (p *proxyGroup) rtt() (rtt time.Duration, ok bool) { return p.least((*member).usable) }

// least returns the least of what of says of the members.
func (p *proxyGroup) least(of func(*member) (time.Duration, bool)) (least time.Duration, ok bool) {
	if p == nil {
		return 0, false
	}
	for _, m := range p.members {
		if d, has := of(m); has && (!ok || d < least) {
			least, ok = d, true
		}
	}
	return least, ok
}

// nearest returns the group for which of says the least, or nil if it says
// nothing of any. g.mu must be held.
func (g *Group) nearest(of func(*member) (time.Duration, bool)) (best *proxyGroup, least time.Duration) {
	for _, p := range g.groups {
		if d, ok := p.least(of); ok && (best == nil || d < least) {
			best, least = p, d
		}
	}
	return best, least
}

// choose leaves a group that cannot be used any more, and the bucket as soon as
// there is a group. g.mu must be held.
func (g *Group) choose() {
	current := g.view.Load().chosen
	if _, ok := current.rtt(); ok {
		return
	}
	best, rtt := g.nearest((*member).usable)
	if best == current { // both nil
		return
	}
	g.use(best, rtt)
	if g.settled { // there may be a better one that was not measured lately
		g.settled, g.next = false, time.Time{}
	}
}

// compare chooses at the end of a round, when all groups have been measured. A
// group that can be used is only changed for a clear and lasting gain: the other's
// worst measurement of the window is much better than its best one. In a round
// with fresh settings the gain need not have lasted. g.mu must be held.
func (g *Group) compare(fresh bool) {
	current := g.view.Load().chosen
	now, ok := current.rtt()
	settled := g.settled
	g.settled = true
	of := (*member).lasting
	if fresh || !settled || !ok {
		of = (*member).usable
	}
	best, rtt := g.nearest(of)
	if best == current || ok && (best == nil || settled && !clearly(rtt, now)) {
		return
	}
	g.use(best, rtt)
}

// use changes to the group p, or to the bucket if p is nil. g.mu must be held.
func (g *Group) use(p *proxyGroup, rtt time.Duration) {
	v := *g.view.Load()
	if v.chosen == p {
		return
	}
	v.chosen = p
	g.view.Store(&v)
	g.since = time.Now()
	g.stats.switches.Add(1)
	if p == nil {
		g.cfg.Log.Warn("no proxy group can be reached: going to the bucket directly")
		return
	}
	g.cfg.Log.Info("using a proxy group", "group", p.settings.ID, "name", p.settings.Name, "rtt", rtt, "members", len(p.members))
}

// jitter spreads what many mounts do at the same interval.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }
