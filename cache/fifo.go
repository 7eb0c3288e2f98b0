package cache

import (
	"hash/maphash"

	"flexfs/store"
)

const (
	// maxFreq is as high as an entry's count of uses goes.
	maxFreq = 3

	// minGhosts is the least number of evicted entries that are remembered.
	minGhosts = 1 << 12
)

// A queue is where an entry is.
type queue uint8

const (
	nowhere queue = iota
	small
	main
	dirty // in order of arrival; nothing is evicted from it
)

// An entry is what the index knows of a block on disk. Its fields are guarded by
// Disk.mu, but for key and size, which do not change.
type entry struct {
	key  store.Key
	size int64 // of the file

	queue      queue
	freq       uint8
	verified   bool   // the file was found good since the cache was opened
	bad        bool   // the file could not be removed, though it should: not to be read
	inDirty    bool   // the file is in the dirty folder; it may be for a while after the block is dirty no more
	crc        uint32 // CRC-32C of the file, if verified
	used       int64  // seconds: arrival, or the last use that counted
	stamped    int64  // seconds: the time of the file
	prev, next *entry
}

// name returns where the file is.
func (e *entry) name() string {
	if e.inDirty {
		return dirtyFile(e.key)
	}
	return cleanFile(e.key)
}

// charge is what an entry takes from the quota: its file in whole pages, and
// its name and inode.
func charge(size int64) int64 { return (size+4095)&^4095 + 512 }

// A fifo decides what is evicted: S3-FIFO. New entries go through a small queue;
// those that are used in it move to the main queue, the others leave, and are
// remembered for a while: if they return, they are admitted to the main queue.
// The end of the main queue gets another round for each use. A scan, however
// long, passes through the small queue.
type fifo struct {
	lists    [4]entryList // by queue
	seed     maphash.Seed
	now, old map[uint64]struct{} // ghosts, of two generations
}

func newFIFO() *fifo {
	return &fifo{seed: maphash.MakeSeed(), now: make(map[uint64]struct{}), old: make(map[uint64]struct{})}
}

// An entryList is a queue. New entries are put at the back.
type entryList struct {
	front, back *entry
	len         int
	bytes       int64 // sum of charges
}

func (f *fifo) push(q queue, e *entry) {
	l := &f.lists[q]
	e.queue, e.prev, e.next = q, l.back, nil
	if l.back == nil {
		l.front = e
	} else {
		l.back.next = e
	}
	l.back = e
	l.len++
	l.bytes += charge(e.size)
}

// remove takes e off its queue, if it is in one.
func (f *fifo) remove(e *entry) {
	if e.queue == nowhere {
		return
	}
	l := &f.lists[e.queue]
	if e.prev == nil {
		l.front = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		l.back = e.prev
	} else {
		e.next.prev = e.prev
	}
	e.queue, e.prev, e.next = nowhere, nil, nil
	l.len--
	l.bytes -= charge(e.size)
}

// add admits a new entry.
func (f *fifo) add(e *entry) {
	if f.wasGhost(e.key) {
		f.push(main, e)
	} else {
		f.push(small, e)
	}
}

// use counts a use of e.
func (f *fifo) use(e *entry) { e.freq = min(e.freq+1, maxFreq) }

// evict takes off and returns the entry that is missed least, or nil if there is
// none.
func (f *fifo) evict() *entry {
	s, m := &f.lists[small], &f.lists[main]
	for {
		switch {
		case s.front != nil && (m.front == nil || s.bytes > (s.bytes+m.bytes)/10):
			e := s.front
			f.remove(e)
			if e.freq == 0 {
				f.remember(e.key)
				return e
			}
			e.freq = 0
			f.push(main, e)
		case m.front != nil:
			e := m.front
			f.remove(e)
			if e.freq == 0 {
				return e
			}
			e.freq--
			f.push(main, e)
		default:
			return nil
		}
	}
}

// evictable returns the bytes of the entries that evict can take off.
func (f *fifo) evictable() int64 { return f.lists[small].bytes + f.lists[main].bytes }

// remember makes a ghost of an evicted entry. As many are remembered as there
// are entries in the main queue, at most twice that.
func (f *fifo) remember(key store.Key) {
	if len(f.now) >= max(f.lists[main].len, minGhosts) {
		f.now, f.old = f.old, f.now
		clear(f.now)
	}
	f.now[maphash.Comparable(f.seed, key)] = struct{}{}
}

// wasGhost reports whether the entry was evicted not long ago, and forgets it.
func (f *fifo) wasGhost(key store.Key) bool {
	h := maphash.Comparable(f.seed, key)
	_, now := f.now[h]
	_, old := f.old[h]
	delete(f.now, h)
	delete(f.old, h)
	return now || old
}
