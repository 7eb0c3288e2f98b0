package remote

import (
	"fmt"
	"strings"
	"time"
)

// A Status is what a Group does, for people.
type Status struct {
	Chosen     int64         `json:"chosen"` // id of the group that is used; 0: none, the bucket is used directly
	Since      time.Time     `json:"since"`  // when that was chosen
	MaxProxied int64         `json:"maxProxied"`
	Groups     []GroupStatus `json:"groups"`
	Counts     Counts        `json:"counts"`
}

// A GroupStatus is a proxy group as this client sees it.
type GroupStatus struct {
	ID      int64          `json:"id"`
	Name    string         `json:"name,omitempty"`
	Chosen  bool           `json:"chosen"`
	Usable  bool           `json:"usable"` // a member can be used
	RTT     time.Duration  `json:"rttNanos"`
	Members []MemberStatus `json:"members"`
}

// A MemberStatus is a proxy as this client sees it.
type MemberStatus struct {
	Address  string        `json:"address"`
	State    string        `json:"state"` // new (not probed yet), up, trial (answers again), down
	Since    time.Time     `json:"since"`
	RTT      time.Duration `json:"rttNanos"`
	Error    string        `json:"error,omitempty"` // why it is down
	Requests int64         `json:"requests"`
	Failures int64         `json:"failures"`
	Active   int64         `json:"active"` // requests under way
}

// Counts are numbers since the start. They only grow.
type Counts struct {
	Proxied   int64 `json:"proxied"`   // operations that a proxy did
	Direct    int64 `json:"direct"`    // operations that went to the bucket without asking a proxy
	Fallbacks int64 `json:"fallbacks"` // operations that went to the bucket as the proxies failed
	Failovers int64 `json:"failovers"` // requests sent to a proxy as the block's owner was down
	Checks    int64 `json:"checks"`    // blocks that a proxy did not find and that were looked for in the bucket
	Found     int64 `json:"found"`     // of them: those that were there
	Switches  int64 `json:"switches"`  // changes of group, or to the bucket and back
}

// Status returns what g does now.
func (g *Group) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.view.Load()
	s := Status{Since: g.since, MaxProxied: v.maxProxied, Counts: g.stats.counts()}
	if v.chosen != nil {
		s.Chosen = v.chosen.settings.ID
	}
	for _, p := range g.groups {
		gs := GroupStatus{ID: p.settings.ID, Name: p.settings.Name, Chosen: p == v.chosen}
		gs.RTT, gs.Usable = p.rtt()
		for _, m := range p.sorted() {
			gs.Members = append(gs.Members, m.status())
		}
		s.Groups = append(s.Groups, gs)
	}
	return s
}

func (s *groupStats) counts() Counts {
	return Counts{
		Proxied:   s.proxied.Load(),
		Direct:    s.direct.Load(),
		Fallbacks: s.fallbacks.Load(),
		Failovers: s.failovers.Load(),
		Checks:    s.checks.Load(),
		Found:     s.found.Load(),
		Switches:  s.switches.Load(),
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
		Active:   m.stats.active.Load(),
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
	return b.String()
}

func (g GroupStatus) write(b *strings.Builder) {
	mark, rtt := " ", "not reachable"
	if g.Chosen {
		mark = "*"
	}
	if g.Usable {
		rtt = "round trip " + short(g.RTT)
	}
	name := ""
	if g.Name != "" {
		name = " (" + g.Name + ")"
	}
	fmt.Fprintf(b, "%s group %d%s: %s\n", mark, g.ID, name, rtt)
	for _, m := range g.Members {
		fmt.Fprintf(b, "    %-32s %-6s", m.Address, m.State)
		if m.RTT > 0 {
			fmt.Fprintf(b, " %8s", short(m.RTT))
		}
		if m.Error != "" {
			fmt.Fprintf(b, " %s", m.Error)
		}
		b.WriteByte('\n')
	}
}

// short rounds a duration to what a person reads.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
