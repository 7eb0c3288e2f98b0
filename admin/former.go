package admin

import (
	"net/http"
	"slices"
	"time"
)

// A proxy that is no longer a member of its group, a group that a volume no
// longer uses and a group that was deleted may still hold blocks that the
// bucket lacks. So what was taken away is remembered until it has drained:
// mounts and proxies learn where to ask, and its proxies can still fetch
// settings. It is forgotten without anybody doing anything: what is remembered
// depends on the time of asking.

const (
	// maxFormer bounds the former members of a group that are remembered.
	maxFormer = 64

	// keepDrained is how long a former member is remembered after it reported
	// that it has nothing left to upload: others may want its blocks.
	keepDrained = time.Hour

	// keepSilent is how long it is remembered after its last report, and an
	// association after it was deleted.
	keepSilent = 7 * 24 * time.Hour

	// drainSettle is how long after its removal a proxy may not know of it and
	// take blocks as a member does: no report counts as the end until then.
	drainSettle = 10 * time.Second

	// seenEvery is how exactly the time of a former member's last report is
	// kept in the file.
	seenEvery = time.Hour
)

// forgotten tells whether nobody needs to know of the former member any more.
func (f FormerMember) forgotten(at time.Time) bool {
	if !f.DrainedAt.IsZero() {
		return at.Sub(f.DrainedAt) >= keepDrained
	}
	last := f.RemovedAt
	if f.SeenAt.After(last) {
		last = f.SeenAt
	}
	return at.Sub(last) >= keepSilent
}

// heard returns what is to be remembered after a report that came at a time.
func (f FormerMember) heard(r ProxyReport, at time.Time) FormerMember {
	if at.Sub(f.SeenAt) >= seenEvery {
		f.SeenAt = at
	}
	switch {
	case r.DirtyBlocks > 0:
		f.DrainedAt = time.Time{}
	case f.DrainedAt.IsZero() && at.Sub(f.RemovedAt) >= drainSettle:
		f.DrainedAt = at
	}
	return f
}

// formerAt returns the former members that are to be known of.
func (g *ProxyGroup) formerAt(at time.Time) []FormerMember {
	return slices.DeleteFunc(slices.Clone(g.Former), func(f FormerMember) bool { return f.forgotten(at) })
}

// over tells whether a deleted group has nothing left to drain.
func (g *ProxyGroup) over(at time.Time) bool {
	return !g.RemovedAt.IsZero() && len(g.formerAt(at)) == 0
}

// over tells whether a deleted association is history.
func (vg *VolumeProxyGroup) over(at time.Time) bool {
	return !vg.RemovedAt.IsZero() && at.Sub(vg.RemovedAt) >= keepSilent
}

// follow brings Former and ChangedAt in step with Addresses, which were those
// of was.
func (g *ProxyGroup) follow(was *ProxyGroup, at time.Time) {
	changed := false
	former := g.formerAt(at)
	for _, addr := range was.Addresses {
		if !slices.Contains(g.Addresses, addr) {
			former = append(former, FormerMember{Address: addr, Pin: was.Pins[addr], RemovedAt: at})
			changed = true
		}
	}
	for _, addr := range g.Addresses {
		changed = changed || !slices.Contains(was.Addresses, addr)
		i := slices.IndexFunc(former, func(f FormerMember) bool { return f.Address == addr })
		if i < 0 {
			continue
		}
		if !g.NoSSL && g.Pins[addr] == "" { // it is the server that it was
			g.Pins = with(g.Pins, addr, former[i].Pin)
		}
		former = slices.Delete(former, i, i+1)
	}
	g.Former = boundFormer(former)
	if changed {
		g.ChangedAt = at
	}
}

// boundFormer drops those that matter least if there are too many: the drained
// ones, then the oldest. The list is in the order of removal.
func boundFormer(list []FormerMember) []FormerMember {
	for len(list) > maxFormer {
		i := max(0, slices.IndexFunc(list, func(f FormerMember) bool { return !f.DrainedAt.IsZero() }))
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		return nil
	}
	return list
}

// drains returns the group as it is for those who no longer use it: with no
// members to give blocks to, and all of them to ask.
func (s GroupSettings) drains() GroupSettings {
	s.Former = append(slices.Clone(s.Members), s.Former...)
	s.Members = []Member{}
	return s
}

// dissolve deletes a group. If volumes used it, it is remembered, without
// members and volumes, until its proxies have drained.
func (tx *tx) dissolve(g *ProxyGroup, force bool) error {
	if !g.RemovedAt.IsZero() {
		if !force {
			return refuse(http.StatusConflict, "%s was deleted at %s and is remembered until its proxies have drained: delete it by force to forget it at once",
				g.title(), g.RemovedAt.Format(time.RFC3339))
		}
		return tx.purge(g)
	}
	uses, err := tx.usesOf(g)
	if err != nil {
		return err
	}
	var users []string
	for _, vg := range uses {
		if vg.RemovedAt.IsZero() {
			users = append(users, tx.describe(vg))
		}
	}
	if len(users) > 0 && !force {
		return inUse(g.title(), "delete that first, or delete by force: mounts then go on with their other groups or the bucket", users)
	}
	if len(uses) == 0 {
		return tx.purge(g)
	}
	at := now()
	for _, vg := range uses {
		if vg.RemovedAt.IsZero() {
			vg.RemovedAt = at
		}
		if err := tx.put(FindTable("volume-proxy-groups"), vg); err != nil {
			return err
		}
	}
	was := *g
	g.Addresses, g.Pins, g.RefusedPins, g.Waiting, g.RemovedAt = []string{}, nil, nil, nil, at
	g.follow(&was, at)
	return tx.put(FindTable("proxy-groups"), g)
}

// usesOf are the associations of a group, deleted ones too.
func (tx *tx) usesOf(g *ProxyGroup) (list []*VolumeProxyGroup, err error) {
	return list, tx.each(FindTable("volume-proxy-groups"), func(r record) error {
		if vg := r.(*VolumeProxyGroup); vg.ProxyGroupID == g.ID {
			list = append(list, vg)
		}
		return nil
	})
}

// purge removes a group and its associations for good.
func (tx *tx) purge(g *ProxyGroup) error {
	uses, err := tx.usesOf(g)
	if err != nil {
		return err
	}
	for _, vg := range uses {
		if err := tx.bucket(FindTable("volume-proxy-groups")).Delete(vg.key()); err != nil {
			return err
		}
	}
	if err := tx.index(g, nil); err != nil {
		return err
	}
	tx.dirty, tx.purged = true, append(tx.purged, g.ID)
	return tx.bucket(FindTable("proxy-groups")).Delete(g.key())
}

// sweep removes for good what is remembered no longer.
func (tx *tx) sweep(at time.Time) error {
	var groups []*ProxyGroup
	err := tx.each(FindTable("proxy-groups"), func(r record) error {
		if g := r.(*ProxyGroup); g.over(at) {
			groups = append(groups, g)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := tx.purge(g); err != nil {
			return err
		}
	}
	var uses [][]byte
	err = tx.each(FindTable("volume-proxy-groups"), func(r record) error {
		if vg := r.(*VolumeProxyGroup); vg.over(at) {
			uses = append(uses, vg.key())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range uses {
		if err := tx.bucket(FindTable("volume-proxy-groups")).Delete(key); err != nil {
			return err
		}
	}
	return nil
}

// gone tells whether an object was deleted and is only remembered.
func gone(r record) bool {
	switch r := r.(type) {
	case *ProxyGroup:
		return !r.RemovedAt.IsZero()
	case *VolumeProxyGroup:
		return !r.RemovedAt.IsZero()
	}
	return false
}
