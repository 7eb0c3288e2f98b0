// Package cache keeps copies of blocks close to who reads them: [Mem] plain
// ones in memory, [Disk] sealed ones on a local disk, where they survive a
// restart. Both are a [store.Store] in front of another, and fetch a block once
// however many ask for it at the same time.
//
// A block's bytes never change under its key, so nothing here is ever
// invalidated. And nothing depends on a copy being here: a cache that is full,
// slow, damaged or gone costs time, not answers.
package cache

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// Stats tell what a cache did since it was opened. Those that tell what is so now
// aside they only grow.
type Stats struct {
	Hits        int64 `json:"hits"`        // Gets answered from here
	Misses      int64 `json:"misses"`      // Gets that were not; Joined and Ranges are among them
	Joined      int64 `json:"joined"`      // Gets that waited for a fetch that was under way
	Ranges      int64 `json:"ranges"`      // Gets of a range that were passed on as such
	HitBytes    int64 `json:"hitBytes"`    // that Hits answered
	LocalHits   int64 `json:"localHits"`   // Gets of what is held here only (see [store.WithLocal]) that were answered; not among Hits
	LocalMisses int64 `json:"localMisses"` // those that were not; not among Misses
	Evictions   int64 `json:"evictions"`   // blocks that made room for others
	Dropped     int64 `json:"dropped"`     // blocks that came and were not kept: too large, too many at once, no room
	Corrupt     int64 `json:"corrupt"`     // copies that failed their checksum
	Errors      int64 `json:"errors"`      // of the disk

	Bytes  int64 `json:"bytes"`  // held now, overhead included
	Blocks int64 `json:"blocks"` // held now
	Limit  int64 `json:"limit"`  // that Bytes never exceeds, unless it shrinks below what is dirty

	DirtyBytes  int64     `json:"dirtyBytes"`           // of Bytes
	DirtyBlocks int64     `json:"dirtyBlocks"`          // of Blocks: they wait to be uploaded
	OldestDirty time.Time `json:"oldestDirty,omitzero"` // when the first of them came; zero: there are none
	DirtyLost   int64     `json:"dirtyLost"`            // dirty blocks whose file was found damaged or gone
}

// counters are the part of Stats that grows.
type counters struct {
	hits, misses, joined, ranges, hitBytes atomic.Int64
	evictions, dropped, corrupt, errors    atomic.Int64
	localHits, localMisses, lost           atomic.Int64
}

func (c *counters) stats() Stats {
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Joined: c.joined.Load(), Ranges: c.ranges.Load(), HitBytes: c.hitBytes.Load(),
		LocalHits: c.localHits.Load(), LocalMisses: c.localMisses.Load(), DirtyLost: c.lost.Load(),
		Evictions: c.evictions.Load(), Dropped: c.dropped.Load(), Corrupt: c.corrupt.Load(), Errors: c.errors.Load(),
	}
}

// hit counts a Get that was answered with n bytes.
func (c *counters) hit(local bool, n int) {
	if local {
		c.localHits.Add(1)
		return
	}
	c.hits.Add(1)
	c.hitBytes.Add(int64(n))
}

// A keeper is a cache of this package: what is asked for what it holds itself goes
// no further.
type keeper interface{ keeps() }

func (*Mem) keeps()  {}
func (*Disk) keeps() {}

var errNotHeld = errors.New("not held here")

// notHeld is the error of a Get of a block that is not here, when it was asked to
// go no further.
func notHeld(key store.Key) error {
	return fmt.Errorf("cache: %v: %w: %w", key, errNotHeld, store.ErrNotExist)
}
