package remote

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	samples   = 3  // requests of a probe; the quickest counts
	maxProbes = 64 // at once
)

// Members of a group that are measured in a round, besides those that are new:
// there may be many, and many who measure. They are always the same, as long as
// they can be used, or else no gain could be seen to last; for each client they
// are others. One more is drawn each time.
const (
	perRoundChosen = 3
	perRoundOther  = 2
)

// aged is the number of rounds after which a measurement is old.
const aged = 5

// To change the group leaves a warm cache: it must be worth it.
const (
	clearRatio = 0.7
	clearGain  = 200 * time.Microsecond
)

// What differs by less is equally far, as far as can be measured: then all clients
// choose the group with the lowest id, so that those at one place share a cache.
const (
	nearTie  = 200 * time.Microsecond
	tieRatio = 0.2
)

// clearly reports whether a round trip of a is much better than one of b.
func clearly(a, b time.Duration) bool {
	return float64(a) < clearRatio*float64(b) && b-a > clearGain
}

// Run measures the groups and keeps the choice good until ctx is done; then it
// closes idle connections, and no member is compared with the bucket any more. It
// is to be called once.
func (g *Group) Run(ctx context.Context) {
	defer g.closeIdle()
	defer g.races.end()
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
	fresh := g.fresh
	g.fresh = false
	g.next = time.Now().Add(jitter(g.cfg.Timing.Round))
	if fresh { // as for everybody else, at this moment
		g.next = time.Now().Add(rand.N(g.cfg.Timing.Round))
	}
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

// sample returns the members to measure in a round: all that are new, and a few
// of the others of each group. g.mu must be held.
func (g *Group) sample() []*member {
	picked := make(map[*member]bool)
	chosen := g.view.Load().chosen
	for _, p := range g.groups {
		n := perRoundOther
		if p == chosen {
			n = perRoundChosen
		}
		usable := p.draw(picked)
		for i, m := range usable {
			if i < n {
				picked[m] = true
			}
		}
		if len(usable) > n {
			picked[usable[n+rand.IntN(len(usable)-n)]] = true
		}
	}
	return slices.Collect(maps.Keys(picked))
}

// draw returns the members of p that can be used, in the order of their lots, and
// adds the new ones to picked. Those that are down are probed anyway.
func (p *proxyGroup) draw(picked map[*member]bool) []*member {
	var usable []*member
	for _, m := range p.members {
		switch _, ok := m.usable(); {
		case ok:
			usable = append(usable, m)
		case m.isNew():
			picked[m] = true
		}
	}
	slices.SortFunc(usable, func(a, b *member) int { return cmp.Compare(a.lot, b.lot) })
	return usable
}

// untilRound returns how long it is to the next round.
func (g *Group) untilRound() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fresh {
		return min(time.Until(g.soon), time.Until(g.next))
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

// least returns the least of what of says of the members. What was measured long
// ago only counts if there is nothing else.
func (p *proxyGroup) least(of func(*member) (time.Duration, bool)) (least time.Duration, ok bool) {
	if p == nil {
		return 0, false
	}
	var newest time.Time
	for _, m := range p.members {
		if _, has := of(m); has {
			newest = later(newest, m.measured())
		}
	}
	for _, m := range p.members {
		d, has := of(m)
		if has && newest.Sub(m.measured()) < aged*m.timing.Round && (!ok || d < least) {
			least, ok = d, true
		}
	}
	return least, ok
}

// nearest returns the group for which of says the least, or nil if it says
// nothing of any; of those that are about equal it is the one with the lowest id.
// g.mu must be held.
func (g *Group) nearest(of func(*member) (time.Duration, bool)) (best *proxyGroup, rtt time.Duration) {
	rtts := make(map[*proxyGroup]time.Duration) // members change meanwhile: each group is asked once
	for _, p := range g.groups {
		d, ok := p.least(of)
		if !ok {
			continue
		}
		rtts[p] = d
		if best == nil || d < rtts[best] {
			best = p
		}
	}
	least := rtts[best]
	for p, d := range rtts {
		if p.settings.ID < best.settings.ID && isTie(d, least) {
			best = p
		}
	}
	return best, rtts[best]
}

// isTie reports whether a round trip cannot be told from the least one.
func isTie(d, least time.Duration) bool {
	return d-least < max(nearTie, time.Duration(tieRatio*float64(least)))
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
	if !g.settled {
		return
	}
	g.settled, g.next = false, time.Now() // there may be a better one that was not measured lately
	if current == nil {                   // or one that is back, too, and will be probed until then
		g.next = g.next.Add(g.cfg.Timing.Pause + g.cfg.Timing.Probe/4)
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
	g.findShadow()
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
