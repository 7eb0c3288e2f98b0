package testcluster

import (
	"testing"

	"flexfs/store"
)

// warm has the file read until the members of the group hold all of its blocks
// that they own.
func warm(t *testing.T, c *Cluster, g *Group, name string, data []byte, keys map[store.Key]bool, members []*Proxy) {
	t.Helper()
	for range 5 {
		have := 0
		for _, p := range members {
			have += len(heldOf(t, p, keys, members))
		}
		if have == len(keys) {
			return
		}
		readAll(t, c, g, name, data)
	}
	t.Fatal("reading a file again and again does not warm the proxies")
}

// When a warm group gets a new member, and when it loses one, the blocks that
// move come from the proxies that have them, and hardly any from the bucket. Each
// block is on one proxy only: with write-back, more would be there already.
func TestMovedBlocksComeFromPeers(t *testing.T) {
	bucket := newBucket(t)
	c := Start(t, Options{Groups: 1, Members: 3, BlockStore: bucket.settings, Volume: map[string]any{"blockSize": blockSize, "writeThrough": true}})
	g := c.Groups[0]
	data := contents(41, many*blockSize)
	m := c.Mount(nil)
	write(t, m.Path("a"), data)
	m.Unmount()
	c.Await("all blocks are in the bucket", func() error { return clean(g.Proxies...) })
	all := bucket.keys()
	bucket.is(away)
	defer bucket.is(0)

	c.AddProxy(g)
	p := g.Proxies
	for _, step := range []struct {
		name    string
		was, is []*Proxy // the members
	}{
		{"a member is added", p[:3], p},
		{"a member is removed", p, p[1:]},
	} {
		warm(t, c, g, "a", data, all, step.was)
		before := bucket.gets.Load()
		c.SetMembers(g, step.is...)
		counts := readAll(t, c, g, "a", data)
		gets, moves := bucket.gets.Load()-before, moved(all, step.was, step.is)
		// The mount itself asks the bucket when a proxy is slow to answer.
		mounts := counts.Hedged + counts.Compared + counts.Direct + counts.Fallbacks + counts.Checks
		filled := int64(0)
		for _, p := range step.is {
			filled += p.Stats().Peers.Filled
		}
		t.Logf("%s: %d blocks move, %d were had from peers so far, %d requests to the bucket, of which the mount made %d", step.name, moves, filled, gets, mounts)
		if filled == 0 || moves < many/10 {
			t.Errorf("%s: %d blocks move, and %d were had from peers", step.name, moves, filled)
		}
		if gets -= mounts; gets*20 >= int64(moves) {
			t.Errorf("%s: proxies asked the bucket %d times when %d blocks moved", step.name, gets, moves)
		}
	}
}

// moved returns how many of keys have another owner.
func moved(keys map[store.Key]bool, was, is []*Proxy) (n int) {
	before, after := map[*Proxy]map[store.Key]bool{}, map[*Proxy]map[store.Key]bool{}
	placed(before, keys, was...)
	placed(after, keys, is...)
	for p, owned := range after {
		for key := range owned {
			if !before[p][key] {
				n++
			}
		}
	}
	return n
}
