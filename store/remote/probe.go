package remote

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	samples     = 4  // requests of a probe; the quickest counts
	perRound    = 16 // members of a group that are measured in a round
	maxProbes   = 32 // at once
	lastingGain = 3  // rounds in a row in which another group must be clearly better
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
	g.round = time.Now()
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
	return time.Until(g.round.Add(g.cfg.Timing.Round))
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

// nearest returns the group with the shortest round trip, and that of current.
// Both may be nil: groups that cannot be used do not count. g.mu must be held.
func (g *Group) nearest(current *proxyGroup) (best *proxyGroup, least time.Duration, used *proxyGroup, now time.Duration) {
	for _, p := range g.groups {
		rtt, ok := p.rtt()
		if !ok {
			continue
		}
		if best == nil || rtt < least {
			best, least = p, rtt
		}
		if p == current {
			used, now = p, rtt
		}
	}
	return best, least, used, now
}

// rtt returns the round trip to the nearest member that can be used.
func (p *proxyGroup) rtt() (rtt time.Duration, ok bool) {
	for _, m := range p.members {
		if r, usable := m.usable(); usable && (!ok || r < rtt) {
			rtt, ok = r, true
		}
	}
	return rtt, ok
}

// choose leaves a group that cannot be used any more, and the bucket as soon as
// there is a group. g.mu must be held.
func (g *Group) choose() {
	current := g.view.Load().chosen
	best, rtt, used, _ := g.nearest(current)
	if used != nil || best == nil && current == nil {
		return
	}
	g.use(best, rtt)
	if g.settled { // there may be a better one that was not measured lately
		g.settled, g.round = false, time.Time{}
	}
}

// compare chooses at the end of a round, when all groups have been measured. In
// a round with fresh settings a clear gain need not have lasted. g.mu must be held.
func (g *Group) compare(fresh bool) {
	best, rtt, used, now := g.nearest(g.view.Load().chosen)
	settled := g.settled
	g.settled = true
	switch {
	case best == used: // or both are nil
		g.wins = 0
		return
	case used == nil, !settled:
		g.use(best, rtt)
		return
	case !clearly(rtt, now):
		g.wins = 0
		return
	}
	if best.settings.ID != g.rival {
		g.rival, g.wins = best.settings.ID, 0
	}
	g.wins++
	if fresh || g.wins >= lastingGain {
		g.use(best, rtt)
	}
}

// use changes to the group p, or to the bucket if p is nil. g.mu must be held.
func (g *Group) use(p *proxyGroup, rtt time.Duration) {
	g.wins = 0
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
