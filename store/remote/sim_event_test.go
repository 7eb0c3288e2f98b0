package remote

import (
	"fmt"
	"slices"
	"time"

	"flexfs/hashring"
)

// A simEvent is something that happens in a simulation, and perhaps ends.
type simEvent struct {
	name   string
	begin  func()
	wait   time.Duration // that begin takes
	lasts  time.Duration // 0: it does not end
	finish func()

	// What is looked at when it has ended: how long it is until all mounts
	// send requests to these proxies again, or use a group again.
	back  func() []*simProxy // nil: there are none
	any   bool
	later bool // they are trusted again step by step: it takes a while
	alone bool // it is one proxy: a mount waits for it once

	restful bool // a mount's group is not concerned: it must not be changed
	change  *simChange
}

// A simChange is how the members of a group are to change.
type simChange struct {
	group        int64
	was          *hashring.Ring
	comes, goes  []string
	owners       []string // by block
	moved, stray int      // blocks; of them: neither from one that went nor to one that came
	ideal        float64
}

// events returns what is to happen, one after the other.
func (s *simulation) events() []simEvent {
	first, second := s.settings[0].ID, s.settings[1].ID
	few := []simEvent{
		s.fails("a proxy dies and comes back", simDead, false, s.member(first, 1)),
		s.joins(first, s.cfg.members+1),
		s.fails("packets to a proxy vanish", simSilent, false, s.member(first, 2)),
		s.leaves(second, 1),
		s.fails("a proxy is hung", simHung, false, s.member(second, 0)),
		s.vanishes("all proxies of a group vanish", first),
		s.vanishes("all proxies vanish"),
	}
	if !s.cfg.all {
		return few
	}
	return s.many()
}

// many returns all that may happen.
func (s *simulation) many() []simEvent {
	a, b, c, d := s.settings[0].ID, s.settings[1].ID, s.settings[2].ID, s.settings[3].ID
	return []simEvent{
		s.fails("a proxy dies, and comes back with its disk", simDead, false, s.member(a, 1)),
		s.fails("a proxy dies, and comes back with an empty disk", simDead, true, s.member(d, 2)),
		s.joins(a, s.cfg.members+1),
		s.fails("packets to a proxy vanish", simSilent, false, s.member(c, 3)),
		s.fails("a proxy stands still", simFrozen, false, s.member(a, 4)),
		s.leaves(b, 5),
		s.slows(10, s.member(a, 6)),
		s.slows(100, s.member(b, 8)),
		s.fails("a proxy answers probes only", simHung, false, s.member(b, 7)),
		s.replaces(c, 0),
		s.rolls("all proxies of a group are restarted, one by one", a, false, 5*time.Second, 10*time.Second),
		s.shuffles(d),
		s.ails("three proxies of a group die", simDead, 1, false, func() []*simProxy { return s.members(c)[5:8] }),
		s.dissociates(b),
		s.isolates(0),
		s.empties(c),
		s.loses(),
		s.vanishes("all proxies of a group vanish", a),
		s.supersedes(d, 5),
		s.rolls("the same, with empty disks", b, true, 10*time.Second, 25*time.Second),
		s.vanishes("all proxies vanish"),
	}
}

func (s *simulation) groupAt(id int64) int {
	return slices.IndexFunc(s.settings, func(g GroupSettings) bool { return g.ID == id })
}

// members returns the proxies of a group as it is now.
func (s *simulation) members(id int64) []*simProxy {
	var all []*simProxy
	for _, m := range s.settings[s.groupAt(id)].Members {
		all = append(all, s.proxyAt(m.Address))
	}
	return all
}

func (s *simulation) member(id int64, i int) *simProxy { return s.members(id)[i] }

// fails has a proxy fail for a while. It is a member at the beginning.
func (s *simulation) fails(name string, mode simMode, wipe bool, p *simProxy) simEvent {
	e := s.ails(name, mode, 1, wipe, func() []*simProxy { return []*simProxy{p} })
	e.alone = true
	return e
}

// slows has a proxy take several times as long for all.
func (s *simulation) slows(times int, p *simProxy) simEvent {
	return s.ails(fmt.Sprintf("a proxy is %d times as slow", times), simSlow, time.Duration(times), false,
		func() []*simProxy { return []*simProxy{p} })
}

// vanishes has packets to all members of groups vanish for a while: of all groups
// if there are no ids.
func (s *simulation) vanishes(name string, ids ...int64) simEvent {
	e := s.ails(name, simSilent, 1, false, func() []*simProxy {
		var all []*simProxy
		for _, g := range s.settings {
			if len(ids) == 0 || slices.Contains(ids, g.ID) {
				all = append(all, s.members(g.ID)...)
			}
		}
		return all
	})
	e.any = len(ids) == 0
	return e
}

// ails has proxies fail for a while, which are asked for when it begins.
func (s *simulation) ails(name string, mode simMode, slower time.Duration, wipe bool, who func() []*simProxy) simEvent {
	var proxies []*simProxy
	return simEvent{
		name: name, lasts: s.cfg.lasts, later: mode == simSlow || mode == simHung,
		begin: func() {
			proxies = who()
			for _, p := range proxies {
				p.become(mode, slower)
			}
		},
		finish: func() {
			for _, p := range proxies {
				if wipe {
					p.wipe()
				}
				p.become(simWell, 1)
			}
		},
		back: func() []*simProxy { return proxies },
	}
}

// rolls restarts the proxies of a group, one by one.
func (s *simulation) rolls(name string, id int64, wipe bool, down, up time.Duration) simEvent {
	proxies := s.members(id)
	takes := time.Duration(len(proxies)) * (down + up)
	return simEvent{name: name, back: func() []*simProxy { return proxies }, wait: takes, lasts: time.Second, finish: func() {}, begin: func() {
		for _, p := range proxies {
			p.become(simDead, 1)
			time.Sleep(down)
			if wipe {
				p.wipe()
			}
			p.become(simWell, 1)
			time.Sleep(up)
		}
	}}
}

// isolates cuts a site off from all others.
func (s *simulation) isolates(site int) simEvent {
	return simEvent{
		name: "a site is cut off from the others", lasts: s.cfg.lasts,
		begin: func() { s.isolate(site) }, finish: func() { s.isolate(-1) },
	}
}

// loses loses packets everywhere.
func (s *simulation) loses() simEvent {
	return simEvent{
		name: "2 % of all packets are lost", lasts: s.cfg.lasts, restful: true,
		begin: func() { s.loss.Store(20000) }, finish: func() { s.loss.Store(simLoss) },
	}
}

// edit returns an event that changes the settings of one group.
func (s *simulation) edit(name string, c *simChange, f func(members []Member) []Member) simEvent {
	return simEvent{name: name, restful: true, change: c, begin: func() {
		groups := slices.Clone(s.settings)
		g := &groups[s.groupAt(c.group)]
		was := g.Members
		c.was = hashring.New(addresses(was)...)
		g.Members = f(slices.Clone(was))
		g.Former = nil
		for _, m := range was {
			if !slices.Contains(g.Members, m) {
				g.Former = append(g.Former, m)
			}
		}
		if !sameMembers(was, g.Members) {
			g.ChangedAt = time.Now()
		}
		s.change.Store(c)
		s.set(groups)
	}}
}

func sameMembers(a, b []Member) bool {
	x, y := addresses(a), addresses(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// joins adds a member to a group.
func (s *simulation) joins(id int64, n int) simEvent {
	at := s.groupAt(id)
	m := s.newMember(id, n, s.siteOf(id))
	c := &simChange{group: id, comes: []string{m.Address}, ideal: 1 / float64(len(s.settings[at].Members)+1)}
	return s.edit("a proxy is added", c, func(members []Member) []Member { return append(members, m) })
}

// leaves removes a member from a group.
func (s *simulation) leaves(id int64, i int) simEvent {
	members := s.settings[s.groupAt(id)].Members
	c := &simChange{group: id, goes: []string{members[i].Address}, ideal: 1 / float64(len(members))}
	return s.edit("a proxy is removed", c, func(members []Member) []Member {
		return slices.DeleteFunc(members, func(m Member) bool { return m.Address == c.goes[0] })
	})
}

// replaces removes a member of a group and adds another.
func (s *simulation) replaces(id int64, i int) simEvent {
	members := s.settings[s.groupAt(id)].Members
	m := s.newMember(id, 100+i, s.siteOf(id))
	n := float64(len(members))
	c := &simChange{group: id, goes: []string{members[i].Address}, comes: []string{m.Address}, ideal: 2/n - 1/n/n}
	return s.edit("a proxy is replaced", c, func(members []Member) []Member {
		members[slices.IndexFunc(members, func(m Member) bool { return m.Address == c.goes[0] })] = m
		return members
	})
}

// shuffles changes the order of the members.
func (s *simulation) shuffles(id int64) simEvent {
	return s.edit("the members are listed in another order", &simChange{group: id}, func(members []Member) []Member {
		s.rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		return members
	})
}

func (s *simulation) siteOf(id int64) int { return s.members(id)[0].site }

// dissociates takes a group from the volume for a while.
func (s *simulation) dissociates(id int64) simEvent {
	var was []GroupSettings
	return simEvent{
		name: "a group is taken from the volume, and given back", lasts: 2 * time.Minute,
		begin: func() {
			was = s.settings
			s.set(slices.DeleteFunc(slices.Clone(was), func(g GroupSettings) bool { return g.ID == id }))
		},
		finish: func() { s.set(was) },
	}
}

// empties takes all members from a group for a while.
func (s *simulation) empties(id int64) simEvent {
	var was []Member
	set := func(members, former []Member) {
		groups := slices.Clone(s.settings)
		g := &groups[s.groupAt(id)]
		was, g.Members, g.Former, g.ChangedAt = g.Members, members, former, time.Now()
		s.set(groups)
	}
	return simEvent{
		name: "a group has no members for a while", lasts: 2 * time.Minute,
		begin:  func() { set(nil, s.settings[s.groupAt(id)].Members) },
		finish: func() { set(was, nil) },
	}
}

// supersedes deletes a group and makes a new one at its site.
func (s *simulation) supersedes(id, next int64) simEvent {
	g := s.newGroup(next, s.siteOf(id))
	g.ChangedAt = time.Now()
	return simEvent{name: "a group is deleted, and a new one made", begin: func() {
		groups := slices.DeleteFunc(slices.Clone(s.settings), func(g GroupSettings) bool { return g.ID == id })
		s.set(append(groups, g))
	}}
}
