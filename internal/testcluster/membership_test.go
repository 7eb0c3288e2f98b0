package testcluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/traffic"
	"flexfs/modes"
)

// blockSize is the smallest there is: many blocks in little data.
const blockSize = 256 << 10

// longest is more than any call of a program may take, whatever the proxies do:
// twice what is promised, as the tests' machines are busy.
const longest = 10 * time.Second

// lease is long: a busy machine is not to be taken for a dead mount.
const lease = 30 * time.Second

// busy mounts the volume twice, with little memory for blocks, and starts
// programs on both mounts.
func busy(t *testing.T, c *Cluster) (*traffic.Traffic, []*Mount) {
	t.Helper()
	var mounts []*Mount
	var dirs []string
	for range 2 {
		m := c.Mount(func(m *modes.Mount) { m.MemCapacity = 16 << 20 })
		mounts, dirs = append(mounts, m), append(dirs, m.Dir)
	}
	for _, m := range mounts {
		c.Await("a group is in use", func() error { return chosen(m) })
	}
	return traffic.Start(t, dirs...), mounts
}

// verified ends the programs and reads all that they wrote by a fresh mount. It
// wants the mounts to have used proxies: else the programs proved nothing.
func verified(t *testing.T, c *Cluster, tr *traffic.Traffic, mounts []*Mount) {
	t.Helper()
	tr.Stop()
	for _, m := range mounts {
		if n := m.Stats().Proxies.Counts; n.Proxied < n.Direct+n.Fallbacks {
			t.Errorf("a mount used proxies too little: %+v", n)
		}
	}
	tr.Verify(c.Mount(nil).Dir)
	t.Logf("in all: %v", tr.Total())
}

// knows returns an error unless the mount has just these members of groups.
func knows(m *Mount, groups map[*Group][]*Proxy) error {
	var want, got []string
	for _, members := range groups {
		for _, p := range members {
			want = append(want, p.Addr)
		}
	}
	for _, g := range m.Stats().Proxies.Groups {
		for _, member := range g.Members {
			got = append(got, member.Address)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("the members are %v, want %v", got, want)
	}
	return nil
}

// uses returns an error unless the mount uses the group; nil is the bucket.
func uses(m *Mount, g *Group) error {
	want := int64(0)
	if g != nil {
		want = g.ID
	}
	if got := m.Stats().Proxies.Chosen; got != want {
		return fmt.Errorf("group %d is in use, want %d", got, want)
	}
	return nil
}

// Groups and their members change in every way while programs read and write on
// two mounts. No call fails, none reads anything else than was written, and
// none takes long.
func TestMembersAndGroupsChangeUnderTraffic(t *testing.T) {
	c := Start(t, Options{Groups: 2, Members: 3, FaultyNet: true, Lease: lease, Volume: map[string]any{"blockSize": blockSize}})
	near, far := c.Groups[0], c.Groups[1]
	far.SetLine(faultnet.Line{Latency: 3 * time.Millisecond})
	tr, mounts := busy(t, c)

	p := near.Proxies
	members := map[*Group][]*Proxy{near: p, far: far.Proxies}
	set := func(g *Group, list ...*Proxy) {
		c.SetMembers(g, list...)
		members[g] = list
	}
	tr.Do(50)
	tr.Phase("before")
	for _, step := range []struct {
		name string
		do   func()
		uses **Group // afterwards
	}{
		{"a member is added", func() { set(near, p[0], p[1], p[2], c.AddProxy(near)) }, &near},
		{"a member is removed", func() { p = near.Proxies; set(near, p[0], p[2], p[3]) }, &near},
		{"the removed one ends", func() { p[1].Stop() }, &near},
		{"a member is replaced", func() { set(near, c.AddProxy(near), p[2], p[3]) }, &near},
		{"members are reordered", func() { p = near.Proxies; set(near, p[3], p[2], p[4]) }, &near},
		{"all members are replaced", func() { set(near, p[0], c.AddProxy(near)) }, &near},
		{"the volume's group is taken away", func() { c.Dissociate(near); delete(members, near) }, &far},
		{"the volume's group is given back", func() { c.Associate(near); p = near.Proxies; members[near] = []*Proxy{p[0], p[5]} }, &near},
		{"the group is emptied", func() { set(near) }, &far},
		{"the group is filled again", func() { set(near, p[3], p[4], p[5]) }, &near},
		{"the group is deleted", func() { c.DeleteGroup(near); delete(members, near); near = nil }, &far},
		{"the last group is deleted", func() { c.DeleteGroup(far); delete(members, far); far = nil }, &far},
		{"a group is made", func() { near = c.AddGroup(2); members[near] = near.Proxies }, &near},
	} {
		step.do()
		for _, m := range mounts {
			c.Await(step.name+" and the mounts know", func() error { return knows(m, members) })
			c.Await(step.name+" and the mounts use the right group", func() error { return uses(m, *step.uses) })
		}
		tr.Do(30)
		if r := tr.Phase(step.name); r.Max > longest {
			t.Errorf("%s: a call took %v", step.name, r.Max)
		}
	}
	verified(t, c, tr, mounts)
}
