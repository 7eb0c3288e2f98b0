package cache

import (
	"bytes"
	"time"

	"flexfs/store"
)

const (
	// partSize is the unit in which parts of blocks are fetched and kept: that of
	// a sealed block's frames, so that less would not be cheaper.
	partSize = 128 << 10

	// maxParts bounds the parts of a block.
	maxParts = store.MaxBlock / partSize

	// worth is how many bytes may be fetched for each byte that is asked for,
	// before a block as a whole is: reads that are few and far between cost no
	// more than the parts they lie in, which is 32 for each of 4 KiB.
	worth = 40

	// usual is how long blocks are taken to be before they are fetched.
	usual = 4 << 20

	// useMemory is for how long what was asked of a block counts.
	useMemory = 30 * time.Second

	// maxUses bounds the blocks of which that is remembered, twice.
	maxUses = 4096
)

// A place is where a block, or a part of it, is kept.
type place struct {
	store.Key
	part int32 // counted from 1; 0: the whole block
}

// A use is what was asked of one block of which no whole copy is here.
type use struct {
	at      time.Time // last
	asked   int64     // bytes, in parts
	fetched int64     // bytes
	parts   uint64    // a bit for each that was kept, and may be here yet
}

// uses remembers what was asked of blocks: at least of the last max, at most of
// twice as many.
type uses struct {
	max      int
	keep     time.Duration
	now, old map[store.Key]*use
}

// find returns what is known of the block's use, or nil.
func (r *uses) find(key store.Key) *use {
	if u := r.now[key]; u != nil {
		return u
	}
	return r.old[key]
}

// note notes that n bytes of the block are asked for.
func (r *uses) note(key store.Key, n int64, now time.Time) *use {
	u := r.find(key)
	if u == nil {
		u = &use{}
	}
	if now.Sub(u.at) > r.keep {
		u.asked, u.fetched = 0, 0
	}
	u.at = now
	u.asked += n
	if r.now[key] == nil {
		delete(r.old, key)
		if r.now == nil || len(r.now) >= r.max {
			r.now, r.old = make(map[store.Key]*use), r.now
		}
		r.now[key] = u
	}
	return u
}

// forget takes back what is known of the block's use.
func (r *uses) forget(key store.Key) *use {
	u := r.find(key)
	delete(r.now, key)
	delete(r.old, key)
	return u
}

// bits returns those of the parts that hold the n bytes from off, or none if
// these are no bytes that parts could hold.
func bits(off, n int64) (first, last int64, mask uint64) {
	if off < 0 || n <= 0 || n >= bulk {
		return 0, 0, 0
	}
	first, last = off/partSize, (off+n-1)/partSize
	if last >= maxParts {
		return 0, 0, 0
	}
	return first, last, (1<<(last+1) - 1) &^ (1<<first - 1)
}

// fromParts returns bytes of a block from the parts of it that are here.
func (m *Mem) fromParts(key store.Key, off, n int64) ([]byte, bool) {
	first, last, mask := bits(off, n)
	if mask == 0 {
		return nil, false
	}
	m.mu.Lock()
	u := m.uses.find(key)
	here := u != nil && u.parts&mask == mask
	if here {
		m.uses.note(key, n, time.Now())
	}
	m.mu.Unlock()
	if !here {
		return nil, false
	}
	var out []byte
	for i := first; i <= last; i++ {
		b := m.lookup(place{key, int32(i + 1)})
		if b == nil {
			return nil, false
		}
		at := max(off-i*partSize, 0)
		piece := store.Clip(b.data, at, n-int64(len(out)))
		if first == last {
			return piece, true
		}
		if out = append(out, piece...); len(b.data) < partSize {
			break // the block ends here
		}
	}
	return out, true
}

// proven reports whether so much is asked of a block, n bytes included and not for
// the first time, that it should be fetched as a whole; else it returns the block's
// use.
func (m *Mem) proven(key store.Key, n int64) (bool, *use) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.uses.note(key, n, time.Now())
	return u.fetched > 0 && u.asked*worth >= u.fetched+usual, u
}

// pass reads the parts below that a range lies in, and keeps them. An answer that
// is all of the block is kept as such.
func (m *Mem) pass(read func(off, n int64) ([]byte, error), key store.Key, u *use, off, n int64) ([]byte, error) {
	m.count.ranges.Add(1)
	first, last, mask := bits(off, n)
	if mask == 0 {
		return read(off, n)
	}
	from, to := first*partSize, (last+1)*partSize
	data, err := read(from, to-from)
	if err != nil {
		return nil, err
	}
	if from == 0 && int64(len(data)) < to {
		m.insert(place{Key: key}, data, never)
		return store.Clip(data, off, n), nil
	}
	kept := uint64(0)
	for i := first; i <= last; i++ {
		part := store.Clip(data, (i-first)*partSize, partSize)
		if len(part) == 0 {
			break
		}
		if first != last { // each may go alone
			part = bytes.Clone(part)
		}
		m.insert(place{key, int32(i + 1)}, part, never)
		kept |= 1 << i
	}
	m.mu.Lock()
	u.fetched += int64(len(data))
	u.parts |= kept
	m.mu.Unlock()
	return store.Clip(data, off-from, n), nil
}
