package remote

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Status is what a Group does, for people.
type Status struct {
	Chosen     int64         `json:"chosen"` // id of the group that is used; 0: none, the bucket is used directly
	Since      time.Time     `json:"since"`  // when that was chosen
	MaxProxied int64         `json:"maxProxied"`
	Groups     []GroupStatus `json:"groups"`
	Bucket     Latencies     `json:"bucket,omitzero"` // of the bucket, as far as it was used
	Counts     Counts        `json:"counts"`
}

// Latencies say how long the last requests took.
type Latencies struct {
	Small Latency `json:"small,omitzero"` // reads of less than 256 KiB
	Large Latency `json:"large,omitzero"` // other reads
	Put   Latency `json:"put,omitzero"`
}

// A Latency is of the last requests of a kind, at most 128. It is exact to an
// eighth. Of a request that was given up as the bucket was quicker, the time until
// then counts.
type Latency struct {
	Samples int           `json:"samples"`
	P50     time.Duration `json:"p50Nanos"` // half of them took not longer
	P95     time.Duration `json:"p95Nanos"` // 95 of 100
}

// A GroupStatus is a proxy group as this client sees it.
type GroupStatus struct {
	ID      int64          `json:"id"`
	Name    string         `json:"name,omitempty"`
	Chosen  bool           `json:"chosen"`
	Usable  bool           `json:"usable"` // a member can be used
	RTT     time.Duration  `json:"rttNanos"`
	Members []MemberStatus `json:"members"`
	Former  []string       `json:"former,omitempty"` // addresses of those that are not members any more: only searched for missing blocks
}

// A MemberStatus is a proxy as this client sees it.
type MemberStatus struct {
	Address  string        `json:"address"`
	State    string        `json:"state"` // new (not probed yet), up, trial (answers again, or was slow), down, slow
	Since    time.Time     `json:"since"`
	RTT      time.Duration `json:"rttNanos"`
	Error    string        `json:"error,omitempty"` // why it is down or slow
	Requests int64         `json:"requests"`        // that have ended
	Share    float64       `json:"share"`           // of the requests of all members of all groups
	Failures int64         `json:"failures"`
	Beaten   int64         `json:"beaten"` // requests that the bucket answered before, which were sent there as well
	Active   int64         `json:"active"` // requests under way
	Latency  Latencies     `json:"latency,omitzero"`
}

// Counts are numbers since the start. They only grow.
type Counts struct {
	Proxied       int64 `json:"proxied"`       // operations that went through proxies
	Direct        int64 `json:"direct"`        // operations that went to the bucket without asking a proxy
	Fallbacks     int64 `json:"fallbacks"`     // operations that went to the bucket as the proxies failed
	Failovers     int64 `json:"failovers"`     // requests sent to a proxy as the block's owner was down
	RetriesDenied int64 `json:"retriesDenied"` // operations not sent to another proxy as too many failed: they went to the bucket
	Checks        int64 `json:"checks"`        // blocks that a proxy did not find and that were looked for in the bucket
	Found         int64 `json:"found"`         // of them: those that were there
	Switches      int64 `json:"switches"`      // changes of group, or to the bucket and back
	Hedged        int64 `json:"hedged"`        // operations sent to the bucket as well, as a proxy took long
	HedgesWon     int64 `json:"hedgesWon"`     // of them: those that the bucket answered before
	HedgesDenied  int64 `json:"hedgesDenied"`  // operations that were not, as there were too many of them
	Compared      int64 `json:"compared"`      // operations sent to a proxy and the bucket, to compare them
	Bypasses      int64 `json:"bypasses"`      // times that a proxy was found slower than the bucket
	Searched      int64 `json:"searched"`      // blocks that were neither at their proxy nor in the bucket, and searched for
	FoundAtPeer   int64 `json:"foundAtPeer"`   // of them: those that another proxy had
}

// Status returns what g does now.
func (g *Group) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.view.Load()
	s := Status{Since: g.since, MaxProxied: v.maxProxied, Bucket: latencies(&g.latency), Counts: g.stats.counts()}
	if v.chosen != nil {
		s.Chosen = v.chosen.settings.ID
	}
	for _, p := range g.groups {
		gs := GroupStatus{ID: p.settings.ID, Name: p.settings.Name, Chosen: p == v.chosen}
		gs.RTT, gs.Usable = p.rtt()
		gs.Members = []MemberStatus{}
		for _, addr := range slices.Sorted(maps.Keys(p.members)) {
			gs.Members = append(gs.Members, p.members[addr].status())
		}
		for _, m := range p.former {
			gs.Former = append(gs.Former, m.settings.Address)
		}
		s.Groups = append(s.Groups, gs)
	}
	s.share(g.groups)
	return s
}

// share says which part of all requests each member had.
func (s *Status) share(groups []*proxyGroup) {
	var sum int64
	counted := make(map[*member]bool) // groups may share members
	for _, p := range groups {
		for _, m := range p.members {
			if !counted[m] {
				counted[m] = true
				sum += m.stats.requests.Load()
			}
		}
	}
	for _, g := range s.Groups {
		for i := range g.Members {
			g.Members[i].Share = float64(g.Members[i].Requests) / float64(max(sum, 1))
		}
	}
}

func latencies(all *[classes]latency) Latencies {
	var out [classes]Latency
	for i := range all {
		p50, p95, _ := all[i].known(0)
		out[i] = Latency{Samples: int(all[i].samples.Load()), P50: p50, P95: p95}
	}
	return Latencies{Small: out[classSmall], Large: out[classLarge], Put: out[classPut]}
}

func (s *groupStats) counts() Counts {
	return Counts{
		Proxied:       s.proxied.Load(),
		Direct:        s.direct.Load(),
		Fallbacks:     s.fallbacks.Load(),
		Failovers:     s.failovers.Load(),
		RetriesDenied: s.retriesDenied.Load(),
		Checks:        s.checks.Load(),
		Found:         s.found.Load(),
		Switches:      s.switches.Load(),
		Hedged:        s.hedged.Load(),
		HedgesWon:     s.hedgesWon.Load(),
		HedgesDenied:  s.hedgesDenied.Load(),
		Compared:      s.compared.Load(),
		Bypasses:      s.bypasses.Load(),
		Searched:      s.searched.Load(),
		FoundAtPeer:   s.foundAtPeer.Load(),
	}
}

func (m *member) status() MemberStatus {
	rtt, _ := m.usable()
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MemberStatus{
		Address:  m.settings.Address,
		State:    m.state.String(),
		Since:    m.since,
		RTT:      rtt,
		Requests: m.stats.requests.Load(),
		Failures: m.stats.failures.Load(),
		Beaten:   m.stats.beaten.Load(),
		Active:   m.stats.active.Load(),
		Latency:  latencies(&m.latency),
	}
	if m.err != nil && m.state != stateUp {
		s.Error = m.err.Error()
	}
	return s
}

// String returns the status as a few lines of text.
func (s Status) String() string {
	var b strings.Builder
	if s.Chosen == 0 {
		fmt.Fprintf(&b, "directly to the bucket since %s\n", s.Since.Format(time.DateTime))
	} else {
		fmt.Fprintf(&b, "through proxy group %d since %s\n", s.Chosen, s.Since.Format(time.DateTime))
	}
	for _, g := range s.Groups {
		g.write(&b)
	}
	if text := s.Bucket.String(); text != "" {
		fmt.Fprintf(&b, "  bucket: %s\n", text)
	}
	s.Counts.write(&b)
	return b.String()
}

func (g GroupStatus) write(b *strings.Builder) {
	mark, rtt := " ", "not reachable"
	if g.Chosen {
		mark = "*"
	}
	switch {
	case g.Usable:
		rtt = "round trip " + short(g.RTT)
	case len(g.Members) == 0:
		rtt = "no members"
	}
	name := ""
	if g.Name != "" {
		name = " (" + g.Name + ")"
	}
	fmt.Fprintf(b, "%s group %d%s: %s\n", mark, g.ID, name, rtt)
	for _, m := range g.Members {
		m.write(b)
	}
	for _, addr := range g.Former {
		fmt.Fprintf(b, "    %-32s former\n", addr)
	}
}

func (m MemberStatus) write(b *strings.Builder) {
	fmt.Fprintf(b, "    %-32s %-6s", m.Address, m.State)
	if m.RTT > 0 {
		fmt.Fprintf(b, " %8s", short(m.RTT))
	}
	if m.Requests > 0 {
		fmt.Fprintf(b, "  %.0f%% of requests", 100*m.Share)
	}
	if text := m.Latency.String(); text != "" {
		fmt.Fprintf(b, ", %s", text)
	}
	if m.Error != "" {
		fmt.Fprintf(b, "  %s", m.Error)
	}
	b.WriteByte('\n')
}

// String returns the latencies that are known, or nothing.
func (l Latencies) String() string {
	var known []string
	for c, l := range []Latency{classSmall: l.Small, classLarge: l.Large, classPut: l.Put} {
		if l.Samples > 0 {
			known = append(known, fmt.Sprintf("%v %s (95%%: %s)", class(c), short(l.P50), short(l.P95)))
		}
	}
	return strings.Join(known, ", ")
}

// write says what is out of the ordinary.
func (c Counts) write(b *strings.Builder) {
	if c.Hedged+c.HedgesDenied > 0 {
		fmt.Fprintf(b, "  sent to the bucket as well: %d, which was quicker for %d; denied to %d\n", c.Hedged, c.HedgesWon, c.HedgesDenied)
	}
	if c.Bypasses > 0 {
		fmt.Fprintf(b, "  proxies found slower than the bucket: %d times\n", c.Bypasses)
	}
	if c.RetriesDenied > 0 {
		fmt.Fprintf(b, "  not sent to another proxy as too many failed: %d\n", c.RetriesDenied)
	}
	if c.Searched > 0 {
		fmt.Fprintf(b, "  blocks searched for: %d, of which proxies had %d\n", c.Searched, c.FoundAtPeer)
	}
}

// short rounds a duration to what a person reads.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
