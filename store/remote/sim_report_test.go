package remote

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"flexfs/store"
)

// A simReport is what a simulation found.
type simReport struct {
	flaps  int64               // changes of group for no reason
	quiet  time.Duration       // in which they would have been seen
	far    int                 // mounts that used a group though another was clearly nearer; the most of all quiet times
	owned  float64             // the most blocks that a member of a group owned, by the mean
	shares map[string]simShare // of requests in quiet times, by proxy
	rest   simTally            // of all quiet times
	ops    int64               // operations in quiet times
	back   time.Duration       // from when a proxy is back to when all mounts send requests to it, at most
	later  time.Duration       // the same of proxies that had answered probes, but been of no use
	wait   time.Duration       // that an operation took, at most
}

// A simShare is how many requests a proxy had, and how many its group's members
// had on average.
type simShare struct{ got, mean float64 }

// A simTally counts what was done.
type simTally struct {
	requests, astray, misses, moved, filled, news, fetched, uploads, probes int64 // by proxies
	gets, puts                                                              int64 // requests of mounts to the bucket
	switches                                                                int64 // changes of a mount's group
}

func (s *simulation) tally() simTally {
	t := simTally{gets: s.direct.gets.Load(), puts: s.direct.puts.Load()}
	for _, p := range s.all() {
		t.requests += p.requests.Load()
		t.astray += p.astray.Load()
		t.misses += p.misses.Load()
		t.moved += p.moved.Load()
		t.filled += p.filled.Load()
		t.news += p.news.Load()
		t.fetched += p.fetched.Load()
		t.uploads += p.uploads.Load()
		t.probes += p.probes.Load()
	}
	for _, m := range s.mounts {
		t.switches += m.switches()
	}
	return t
}

// plus returns t and n times u.
func (t simTally) plus(n int64, u simTally) simTally {
	return simTally{
		t.requests + n*u.requests, t.astray + n*u.astray, t.misses + n*u.misses, t.moved + n*u.moved, t.filled + n*u.filled, t.news + n*u.news,
		t.fetched + n*u.fetched, t.uploads + n*u.uploads, t.probes + n*u.probes,
		t.gets + n*u.gets, t.puts + n*u.puts, t.switches + n*u.switches,
	}
}

// String says what came of caches.
func (t simTally) String() string {
	return fmt.Sprintf("%d misses of proxies, %d of them as the block had moved, %d of these another member had; %d misses of new blocks; bucket GETs: %d of proxies, %d of mounts",
		t.misses, t.moved, t.filled, t.news, t.fetched, t.gets)
}

// settle is how long after an event mounts may go on to change their group: it
// takes three rounds to see that a gain lasts.
const settle = time.Minute

// steady is how long all has to be well for it to be over.
const steady = 15 * time.Second

// happen lets an event happen, and looks at what came of it.
func (s *simulation) happen(e simEvent) {
	phase := &simPhase{name: e.name, began: s.now(), bound: simWaitBound}
	if e.later { // how long a proxy may be silent depends on what it was like
		phase.bound *= 2
	}
	before := s.tally()
	s.phase.Store(phase)
	s.change.Store(nil)
	if e.change != nil {
		s.lookBefore(e.change)
	}
	e.begin()
	found := ""
	if e.lasts > 0 {
		time.Sleep(e.lasts)
		e.finish()
		found = s.recover(e)
	}
	time.Sleep(settle)
	if e.change != nil {
		found = s.lookAfter(e.change)
	}
	d := s.tally().plus(-1, before)
	s.t.Logf("%v: %s%s\n%v\n%v; the group was changed %d times", phase.began.Round(time.Second), e.name, found, phase, d, d.switches)
	s.checkPhase(e, phase, d)
}

// checkPhase compares what came of an event with what is promised.
func (s *simulation) checkPhase(e simEvent, p *simPhase, d simTally) {
	s.report.wait = max(s.report.wait, time.Duration(p.waits.max.Load()))
	if e.restful && d.switches > 0 {
		s.t.Errorf("%s: mounts changed their group %d times", e.name, d.switches)
	}
	again := p.waiters.Load() / 50
	if e.later { // what it needs to show that it works may take another wait
		again = p.waiters.Load()/4 + 1
	}
	if e.alone && p.again.Load() > again {
		s.t.Errorf("%s: %d mounts waited, %d times again", e.name, p.waiters.Load(), p.again.Load())
	}
}

// String says how long operations took.
func (p *simPhase) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations", p.waits.all.Load())
	for i, bound := range simBounds {
		fmt.Fprintf(&b, ", %d > %v", p.waits.over[i].Load(), bound)
	}
	fmt.Fprintf(&b, ", max %v; %d mounts waited, %d times again", time.Duration(p.waits.max.Load()).Round(time.Millisecond), p.waiters.Load(), p.again.Load())
	return b.String()
}

// simRecover is how long to wait for that.
const simRecover = 3 * time.Minute

// recover waits until all mounts send requests to those who are back, and use the
// nearest group.
func (s *simulation) recover(e simEvent) string {
	var back []*simProxy
	if e.back != nil {
		back = e.back()
	}
	start := s.now()
	var used, home time.Duration // when it was not so yet, the last time
	for i := 0; s.now()-start < min(simRecover, max(used, home)+steady); i++ {
		if s.unused(back, e) {
			used = s.now() - start
		}
		if i%10 == 0 && s.far() > 0 {
			home = s.now() - start
		}
		time.Sleep(100 * time.Millisecond)
	}
	text := fmt.Sprintf("; all mounts use the nearest group again after %v", home.Round(time.Second))
	if len(back) == 0 {
		return text
	}
	if e.later {
		s.report.later = max(s.report.later, used)
	} else {
		s.report.back = max(s.report.back, used)
	}
	return fmt.Sprintf("; all mounts that can use it again after %v", used.Round(100*time.Millisecond)) + text
}

// unused reports whether a mount does not send requests to one of those who are
// back and of its group, or, if any would do, still goes to the bucket.
func (s *simulation) unused(back []*simProxy, e simEvent) bool {
	for _, m := range s.mounts {
		if e.any && m.chosen() == 0 {
			return true
		}
		for _, p := range back {
			if m.shuns(p.addr, e.later) {
				return true
			}
		}
	}
	return false
}

// rest lets time pass. Nothing happens, so no mount has a reason to change its
// group.
func (s *simulation) rest(length time.Duration) {
	if length < 20*time.Second {
		s.t.Log("there is no time to rest")
		return
	}
	phase := &simPhase{name: "nothing happens", began: s.now(), bound: simWaitBound}
	s.phase.Store(phase)
	before, by := s.tally(), s.requests()
	time.Sleep(length)
	d, r, far := s.tally().plus(-1, before), &s.report, s.far()
	s.share(by)
	s.t.Logf("%v: nothing happens\n%v\n%v\n%d of %d requests not to the owner; the group was changed %d times; %d mounts use one that is not the nearest",
		phase.began.Round(time.Second), phase, d, d.astray, d.requests, d.switches, far)
	r.flaps += d.switches
	r.quiet += length
	r.rest = r.rest.plus(1, d)
	r.ops += phase.waits.all.Load()
	r.far, r.wait = max(r.far, far), max(r.wait, time.Duration(phase.waits.max.Load()))
}

// far counts the mounts that use a group though another is clearly nearer, in
// truth and not as measured.
func (s *simulation) far() int {
	n := 0
	for _, m := range s.mounts {
		var used, least time.Duration
		for _, g := range s.settings {
			if len(g.Members) == 0 {
				continue
			}
			d := s.link(m, g.Members[0].Address).base
			if least == 0 || d < least {
				least = d
			}
			if g.ID == m.chosen() {
				used = d
			}
		}
		if used == 0 || clearly(least*(100+100*simSway)/100, used*(100-100*simSway)/100) {
			n++
		}
	}
	return n
}

// requests returns how many requests each proxy has had.
func (s *simulation) requests() map[string]int64 {
	n := make(map[string]int64)
	for _, p := range s.all() {
		n[p.addr] = p.requests.Load()
	}
	return n
}

// share notes how many requests each proxy has had since before, and how many its
// share of its group's was.
func (s *simulation) share(before map[string]int64) {
	now := s.requests()
	for _, g := range s.settings {
		var sum int64
		for _, m := range g.Members {
			sum += now[m.Address] - before[m.Address]
		}
		for _, m := range g.Members {
			h := s.report.shares[m.Address]
			h.got += float64(now[m.Address] - before[m.Address])
			h.mean += float64(sum) / float64(len(g.Members))
			s.report.shares[m.Address] = h
		}
	}
}

// skew returns the largest of all shares, by the mean. Proxies with too few
// requests to say are passed over.
func (r *simReport) skew() float64 {
	worst := 0.0
	for _, h := range r.shares {
		if h.mean >= 400 {
			worst = max(worst, h.got/h.mean)
		}
	}
	return worst
}

// keys returns the blocks that were there from the beginning.
func (s *simulation) keys() []store.Key {
	keys := make([]store.Key, 0, s.cfg.files*s.cfg.blocks)
	for file := range s.cfg.files {
		for b := range s.cfg.blocks {
			keys = append(keys, s.block(uint64(file), b))
		}
	}
	return keys
}

// lookBefore notes who owns what before the members of a group change.
func (s *simulation) lookBefore(c *simChange) {
	for _, key := range s.keys() {
		c.owners = append(c.owners, s.mounts[0].owner(c.group, key))
	}
}

// lookAfter compares who owns what, and asks all mounts whether they agree.
func (s *simulation) lookAfter(c *simChange) string {
	blocks := make(map[string]int)
	keys := s.keys()
	for i, key := range keys {
		owner := s.mounts[0].owner(c.group, key)
		blocks[owner]++
		if owner == c.owners[i] {
			continue
		}
		c.moved++
		if !slices.Contains(c.goes, c.owners[i]) && !slices.Contains(c.comes, owner) {
			c.stray++
		}
	}
	for _, key := range keys[:100] {
		want := s.mounts[0].owner(c.group, key)
		for _, m := range s.mounts {
			if got := m.owner(c.group, key); got != want {
				s.t.Fatalf("for mount %d, %s owns %v, for mount 0 it is %s", m.id, got, key, want)
			}
		}
	}
	most := 0
	for _, n := range blocks {
		most = max(most, n)
	}
	s.report.owned = max(s.report.owned, float64(most*len(blocks))/float64(len(keys)))
	ideal := c.ideal * float64(len(keys))
	if c.stray > 0 || float64(c.moved) > 1.1*ideal || float64(c.moved) < 0.9*ideal {
		s.t.Errorf("%d blocks moved, want %.0f; %d of them between members that stay", c.moved, ideal, c.stray)
	}
	return fmt.Sprintf("; %d of %d blocks moved (%.2f %%; ideal %.2f %%), %d between members that stay",
		c.moved, len(keys), 100*float64(c.moved)/float64(len(keys)), 100*c.ideal, c.stray)
}

// finish says what the simulation found, and checks it.
func (s *simulation) finish() {
	s.halt()
	s.programs.Wait()
	time.Sleep(2 * simTakeover) // for the last uploads
	t, r := s.tally(), &s.report
	proxies := float64(s.cfg.groups * s.cfg.members)
	var c simCounts
	for _, m := range s.mounts {
		c.add(m)
	}
	share := func(n int64) float64 { return 100 * float64(n) / float64(c.ops) }
	s.t.Logf(`seed %d, %d mounts, %d groups of %d proxies, %v:
operations                       %d; failed: %d, with wrong bytes: %d; the longest took %v
requests to proxies              %d; retries %.3f %% of all operations, not allowed %d; to the bucket as proxies failed %d
hedges                           %.3f %% of all operations, the bucket was first in %.3f %%, not allowed %.3f %%
blocks not uploaded yet          %d were searched for among all proxies, and %d found
quiet times                      %.0f hours of mounts, %d operations
  changes of group               %d
  mounts not at their nearest    %d
  requests not to the owner      %d of %d
  share of requests, max/mean    %.3f
  bucket GETs                    %d of proxies, of them %d of new blocks; %d of mounts
share of blocks, max/mean        %.3f
changes of members               %d blocks asked for that had moved, %d came from another member, %d from the bucket
blocks acknowledged              %d, in the bucket %d
a proxy that is back is used     by all mounts after %v at most; one that had answered probes, but was of no use, after %v
probes                           %.1f per second and proxy
`, s.cfg.seed, s.cfg.mounts, s.cfg.groups, s.cfg.members, s.now().Round(time.Second),
		c.ops, s.failed.Load(), s.wrong.Load(), r.wait.Round(time.Millisecond),
		t.requests, share(c.retries), c.retriesDenied, c.fallbacks,
		share(c.hedges), share(c.hedgesWon), share(c.hedgesDenied),
		c.searched, c.found,
		r.quiet.Hours()*float64(s.cfg.mounts), r.ops,
		r.flaps, r.far, r.rest.astray, r.rest.requests, r.skew(), r.rest.fetched, r.rest.news, r.rest.gets,
		r.owned,
		t.moved, t.filled, t.moved-t.filled,
		s.acked, len(s.bucket),
		r.back.Round(100*time.Millisecond), r.later.Round(100*time.Millisecond),
		float64(t.probes)/s.now().Seconds()/proxies)
	s.check(c, t)
}

// What is promised, as far as it is not said where it is checked.
const (
	simWaitBound = 3 * time.Second // for an operation, whatever fails
	simBackBound = 5 * time.Second // from when a proxy is back to when it is used
	simHedges    = 0.05            // of all operations
	simRetries   = 0.1             // of all operations
)

// check compares what was found with what is promised.
func (s *simulation) check(c simCounts, tally simTally) {
	r, t := &s.report, s.t
	if n := s.failed.Load(); n > 0 {
		t.Errorf("%d operations failed, %d with wrong bytes", n, s.wrong.Load())
	}
	if s.acked != len(s.bucket) {
		t.Errorf("%d blocks were acknowledged, %d are in the bucket", s.acked, len(s.bucket))
	}
	if r.back > simBackBound {
		t.Errorf("a proxy was back for %v before all used it again", r.back)
	}
	if rate := float64(r.flaps) / r.quiet.Hours() / float64(s.cfg.mounts); rate > 0.01 {
		t.Errorf("mounts changed their group %d times for no reason", r.flaps)
	}
	if r.far > s.cfg.mounts/100 {
		t.Errorf("%d mounts used a group that was not their nearest", r.far)
	}
	if r.rest.astray > r.rest.requests/100 {
		t.Errorf("%d of %d requests did not go to the owner, though nothing happened", r.rest.astray, r.rest.requests)
	}
	if skew := r.skew(); skew > 1.25 {
		t.Errorf("a proxy had %.2f times its share of requests", skew)
	}
	if tally.moved-tally.filled > tally.moved/50 {
		t.Errorf("of %d blocks that moved, %d came from the bucket", tally.moved, tally.moved-tally.filled)
	}
	burst := int64(s.cfg.mounts)
	if limit := int64(simHedges*float64(c.ops)) + burst*hedgeBurst; c.hedges > limit {
		t.Errorf("there were %d hedges, want %d at most", c.hedges, limit)
	}
	if limit := int64(simRetries*float64(c.ops)) + burst*retryBurst; c.retries > limit {
		t.Errorf("there were %d retries, want %d at most", c.retries, limit)
	}
}
