// Package cache keeps copies of blocks close to who reads them: [Mem] plain
// ones in memory, [Disk] sealed ones on a local disk, where they survive a
// restart. Both are a [store.Store] in front of another, and fetch a block once
// however many ask for it at the same time.
//
// A block's bytes never change under its key, so nothing here is ever
// invalidated. And nothing depends on a copy being here: a cache that is full,
// slow, damaged or gone costs time, not answers.
package cache

import "sync/atomic"

// Stats tell what a cache did since it was opened. Except for Bytes, Blocks and
// Limit they only grow.
type Stats struct {
	Hits      int64 `json:"hits"`      // Gets answered from here
	Misses    int64 `json:"misses"`    // Gets that were not; Joined and Ranges are among them
	Joined    int64 `json:"joined"`    // Gets that waited for a fetch that was under way
	Ranges    int64 `json:"ranges"`    // Gets of a range that were passed on as such
	HitBytes  int64 `json:"hitBytes"`  // that Hits answered
	Evictions int64 `json:"evictions"` // blocks that made room for others
	Dropped   int64 `json:"dropped"`   // blocks that came and were not kept: too large, too many at once, no room
	Corrupt   int64 `json:"corrupt"`   // copies that failed their checksum
	Errors    int64 `json:"errors"`    // of the disk

	Bytes  int64 `json:"bytes"`  // held now, overhead included
	Blocks int64 `json:"blocks"` // held now
	Limit  int64 `json:"limit"`  // that Bytes never exceeds
}

// counters are the part of Stats that grows.
type counters struct {
	hits, misses, joined, ranges, hitBytes atomic.Int64
	evictions, dropped, corrupt, errors    atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Joined: c.joined.Load(), Ranges: c.ranges.Load(), HitBytes: c.hitBytes.Load(),
		Evictions: c.evictions.Load(), Dropped: c.dropped.Load(), Corrupt: c.corrupt.Load(), Errors: c.errors.Load(),
	}
}

func (c *counters) hit(n int) {
	c.hits.Add(1)
	c.hitBytes.Add(int64(n))
}
