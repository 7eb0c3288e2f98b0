package writeback

import (
	"bytes"
	"container/heap"
	"container/list"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"flexfs/store"
)

// A block is one that is dirty here, or is being put. The Store's mu guards all
// fields but key, volume and since.
type block struct {
	key    store.Key
	volume *volume
	since  time.Time // when it came

	own     bool     // to be uploaded from here; otherwise it is a copy, and from uploads it
	from    string   // who has given the copy
	peers   []string // who have copies, and are to be told
	data    []byte   // the bytes, if they are kept in memory
	look    bool     // the bucket may have it: look before uploading
	lost    bool     // it could not be read here: others must not count on this copy
	again   bool     // it was put again during its upload
	deleted bool

	putting  int // Puts and Keeps at work
	attempts int // uploads that failed
	where    place
	due      time.Time     // if timed
	index    int           // if timed: in the heap
	element  *list.Element // if ready: in the volume's list
	done     chan struct{} // if uploading: closed when it has ended
}

// A place is where a block waits, or what is done with it.
type place int

const (
	idle      place = iota // nowhere: it is being put
	ready                  // in its volume's list, for an upload
	timed_                 // in the heap, for its time
	asking                 // its proxy is being asked
	uploading              // by a goroutine
	gone                   // not in Store.blocks any more
)

// A volume is what is known of a volume and its bucket. The Store's mu guards
// it.
type volume struct {
	id     store.Volume
	values context.Context // of the latest Put or Keep, which shows our right to peers
	ready  list.List       // of *block, oldest first
	active int             // uploads at work
	takes  int             // uploads begun

	failures int       // in a row
	since    time.Time // of the first of them
	until    time.Time // no upload before
	report   report
}

// timed is a heap of blocks by their due time.
type timed []*block

func (h timed) Len() int           { return len(h) }
func (h timed) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h timed) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timed) Push(x any) {
	b := x.(*block)
	b.index = len(*h)
	*h = append(*h, b)
}
func (h *timed) Pop() any {
	n := len(*h) - 1
	b := (*h)[n]
	(*h)[n] = nil
	*h = (*h)[:n]
	return b
}

// volumeOf returns the volume, making it if it is not there. s.mu must be held.
func (s *Store) volumeOf(id store.Volume) *volume {
	v := s.volumes[id]
	if v == nil {
		v = &volume{id: id, values: context.Background()}
		s.volumes[id] = v
		s.order = append(s.order, v)
	}
	return v
}

// blockOf returns the block, making it if it is not there. s.mu must be held.
func (s *Store) blockOf(key store.Key, since time.Time) *block {
	b := s.blocks[key]
	if b == nil {
		b = &block{key: key, volume: s.volumeOf(key.Volume), since: since}
		s.blocks[key] = b
	}
	return b
}

// move takes b from where it is to another place; to timed_ by await. s.mu must
// be held.
func (s *Store) move(b *block, to place) {
	switch b.where {
	case ready:
		b.volume.ready.Remove(b.element)
		b.element = nil
	case timed_:
		heap.Remove(&s.timed, b.index)
	}
	b.where = to
	switch to {
	case ready:
		if b.attempts > 0 {
			b.element = b.volume.ready.PushFront(b)
		} else {
			b.element = b.volume.ready.PushBack(b)
		}
	case timed_:
		heap.Push(&s.timed, b)
	}
	s.poke()
}

// await has b wait until due. s.mu must be held.
func (s *Store) await(b *block, due time.Time) {
	s.move(b, idle)
	b.due = due
	s.move(b, timed_)
}

// enqueue has b, which is this proxy's to upload from now on, uploaded. s.mu
// must be held.
func (s *Store) enqueue(b *block) {
	b.own = true
	switch b.where {
	case idle, timed_, asking:
		s.move(b, ready)
	case uploading:
		b.again = true
	}
}

// remove forgets b, telling those who have copies that the bucket has it, or that
// nobody needs it. A block that is being put again stays. s.mu must be held.
func (s *Store) remove(b *block, tell bool) {
	s.release(b)
	if tell {
		for _, peer := range b.peers {
			s.tell(peer, b)
		}
	}
	b.peers = nil
	if b.putting > 0 {
		s.move(b, idle)
		return
	}
	s.move(b, gone)
	delete(s.blocks, b.key)
	s.checkQuiet()
}

// checkQuiet tells who waits for it that there is nothing left to do. s.mu must
// be held.
func (s *Store) checkQuiet() {
	if len(s.blocks) == 0 && len(s.news) == 0 {
		close(s.quiet)
		s.quiet = make(chan struct{})
	}
}

// hold returns a copy of data to keep in memory, or nil if there is no room.
func (s *Store) hold(data []byte) []byte {
	s.mu.Lock()
	if s.held+int64(len(data)) > s.cfg.Memory {
		s.mu.Unlock()
		return nil
	}
	s.held += int64(len(data))
	s.mu.Unlock()
	return bytes.Clone(data)
}

// unhold gives back what hold returned. s.mu must be held.
func (s *Store) unhold(data []byte) { s.held -= int64(len(data)) }

// release lets go of the block's bytes in memory. s.mu must be held.
func (s *Store) release(b *block) {
	s.unhold(b.data)
	b.data = nil
}

// addPeer notes that peer has a copy. s.mu must be held.
func (b *block) addPeer(peer string) {
	if peer != "" && !slices.Contains(b.peers, peer) {
		b.peers = append(b.peers, peer)
	}
}

// jitter returns a random duration between half and all of d, so that proxies
// that failed together do not come back together.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// pause returns how long to wait after the n-th failure in a row.
func (t *Timing) pause(n int) time.Duration {
	d := t.Retry
	for ; n > 1 && d < t.MaxRetry; n-- {
		d *= 2
	}
	return jitter(min(d, t.MaxRetry))
}

// A report limits log lines that say the same.
type report struct {
	last time.Time
	n    int // what happened since
}

// due counts n more and reports whether it is time for a line, with how many
// there were since the last one.
func (r *report) due(n int, period time.Duration) (int, bool) {
	r.n += n
	now := time.Now()
	if !r.last.IsZero() && now.Sub(r.last) < period {
		return 0, false
	}
	n = r.n
	r.last, r.n = now, 0
	return n, true
}
