package fuse

import (
	"container/list"
	"context"
	"sync"
)

// A Budget bounds the bytes that mounts of this process hold for dirty data and
// for read-ahead. Those who wait get their share in the order in which they
// came.
type Budget struct {
	max int64

	mu      sync.Mutex
	used    int64
	ahead   int64 // part of used that is read-ahead
	kept    int64 // part of used that stocks have
	waiters list.List
	press   map[*FS]func() // told when somebody must wait
}

type waiter struct {
	n     int64
	ready chan struct{}
}

// DefaultBudget is the size of a mount's own Budget, in bytes.
const DefaultBudget = 256 << 20

// NewBudget returns a Budget of size bytes, but at least 16 MiB: less than two of
// the largest blocks would make every writer wait for itself.
func NewBudget(size int64) *Budget {
	return &Budget{max: max(size, 16<<20), press: map[*FS]func(){}}
}

// Used returns how many bytes are taken, and how many there are.
func (b *Budget) Used() (used, max int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.max
}

// try takes n bytes if they are free and nobody waits.
func (b *Budget) try(n int64) bool {
	var all int64
	return b.tryPart(n, &all, n)
}

// tryAhead takes n bytes for read-ahead, which never gets more than a quarter:
// readers that stand still must not stop writers.
func (b *Budget) tryAhead(n int64) bool { return b.tryPart(n, &b.ahead, b.max/4) }

// tryKeep takes n bytes for a stock.
func (b *Budget) tryKeep(n int64) bool { return b.tryPart(n, &b.kept, b.max) }

// tryPart is try for bytes that count in part, too, which may have most of them.
func (b *Budget) tryPart(n int64, part *int64, most int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiters.Len() > 0 || b.used+n > b.max || *part+n > most {
		return false
	}
	b.used += n
	*part += n
	return true
}

// acquire takes n bytes, and waits for them until ctx ends.
func (b *Budget) acquire(ctx context.Context, n int64) error {
	w := &waiter{n: n, ready: make(chan struct{})}
	b.mu.Lock()
	el := b.waiters.PushBack(w)
	b.wake()
	b.mu.Unlock()

	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // at the same time
		b.used -= n
	default:
		b.waiters.Remove(el)
	}
	b.wake()
	return context.Cause(ctx)
}

// force takes n bytes whether or not they are free: for data that is in memory
// already and only moves.
func (b *Budget) force(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

func (b *Budget) release(n int64) {
	var all int64
	b.releasePart(n, &all)
}

func (b *Budget) releaseAhead(n int64) { b.releasePart(n, &b.ahead) }

func (b *Budget) releaseKept(n int64) { b.releasePart(n, &b.kept) }

func (b *Budget) releasePart(n int64, part *int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	*part -= n
	b.wake()
}

// wake hands free bytes to those who have waited longest. b.mu is held.
func (b *Budget) wake() {
	for el := b.waiters.Front(); el != nil; el = b.waiters.Front() {
		w := el.Value.(*waiter)
		// Somebody alone gets what he asks for, however much it is: what is
		// kept, or read ahead, may stay for ever.
		if b.used+w.n > b.max && b.used > b.ahead+b.kept {
			b.pressure()
			return
		}
		b.used += w.n
		b.waiters.Remove(el)
		close(w.ready)
	}
}

// short reports whether somebody waits.
func (b *Budget) short() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiters.Len() > 0
}

// pressure asks the mounts to write out what they can. b.mu is held.
func (b *Budget) pressure() {
	for _, f := range b.press {
		f()
	}
}

// join makes press be called when somebody waits. It must not block.
func (b *Budget) join(fs *FS, press func()) {
	b.mu.Lock()
	b.press[fs] = press
	b.mu.Unlock()
}

func (b *Budget) leave(fs *FS) {
	b.mu.Lock()
	delete(b.press, fs)
	b.mu.Unlock()
}
