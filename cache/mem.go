package cache

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/dgraph-io/ristretto/v2"

	"flexfs/store"
)

const (
	// overhead is what a block costs in memory beside its bytes: its entry,
	// and its key and places in the maps of two libraries.
	overhead = 512

	// minMain is the least memory that a main part is made for: below, it
	// would hold a handful of blocks, and its policy has nothing to choose
	// from.
	minMain = 4 * (store.MaxBlock + overhead)

	// bulk is the length of a range that is worth all of its block: who reads so
	// much at once goes on reading.
	bulk = 1 << 20
)

// Mem is a Store that keeps whole blocks in memory, in front of another.
//
// Memory has two parts. New blocks enter the window, which keeps the last used.
// What the window lets go is offered to the main part, a ristretto cache, which
// keeps what is asked for most; but not what was written and never asked for. So a block that was just read or written is
// here, whatever the main part thinks of it, and a long scan passes through the
// window without disturbing the main part.
//
// ristretto adds blocks some time after it was given them, counts none that
// wait for that, and may refuse or lose any. So Mem itself counts the bytes that
// ristretto holds in whatever state, and gives it no more than fits.
//
// A Get of a small range (below 1 MiB) of a block that is not here fetches and
// keeps the parts of 128 KiB that it lies in. When so much is asked of a block that
// fetching all of it costs no more than 40 bytes for each byte asked, it is fetched as
// a whole, as it is for larger ranges. Get returns slices of what it keeps.
type Mem struct {
	next    store.Store
	flights *flights
	count   counters

	main    *ristretto.Cache[string, *memBlock] // nil: all is window
	maxMain int64                               // bytes
	held    atomic.Int64                        // bytes that main has, in its queue or in place
	inMain  atomic.Int64                        // blocks, likewise

	mu        sync.Mutex
	window    map[place]*list.Element // of *memBlock; guarded by mu
	order     *list.List              // of the window, last used first; guarded by mu
	windowed  int64                   // bytes; guarded by mu
	maxWindow int64
	uses      uses // guarded by mu
}

// A memBlock is a block in memory, or a part of one.
type memBlock struct {
	place
	data []byte
	loan *store.Loan // of data, if it is lent and was given to nobody; guarded by Mem.mu
}

// cost is what a block of these bytes takes from the budget.
func cost(data []byte) int64 { return int64(cap(data)) + overhead }

func (b *memBlock) cost() int64 { return cost(b.data) }

// NewMem returns a Mem in front of next, a Store of plain blocks, that holds at
// most maxBytes. Fetches under way come on top: no more than a quarter of
// maxBytes, or 8 blocks. Close releases it.
func NewMem(next store.Store, maxBytes int64) (*Mem, error) {
	window := max(maxBytes/4, 2*(store.MaxBlock+overhead))
	if maxBytes-window < minMain {
		return newMem(next, maxBytes, 0)
	}
	return newMem(next, window, maxBytes-window)
}

func newMem(next store.Store, maxWindow, maxMain int64) (*Mem, error) {
	if maxWindow <= overhead {
		return nil, fmt.Errorf("cache: %d bytes of memory are too few for any block", maxWindow)
	}
	inFlight := min(max((maxWindow+maxMain)/4/store.MaxBlock, 8), 128)
	m := &Mem{
		next: next, flights: newFlights(int(inFlight)),
		maxMain: maxMain, maxWindow: maxWindow,
		window: make(map[place]*list.Element), order: list.New(),
		uses: uses{max: maxUses, keep: useMemory},
	}
	if maxMain == 0 {
		return m, nil
	}
	// What waits in ristretto's queue needs room beside what is in place.
	slack := max(maxMain/8, min(2*(store.MaxBlock+overhead), maxMain/2))
	main, err := ristretto.NewCache(&ristretto.Config[string, *memBlock]{
		MaxCost:            maxMain - slack,
		NumCounters:        min(max(10*maxMain/(64<<10), 10_000), 10_000_000), // 10 for each block of 64 KiB
		BufferItems:        64,
		IgnoreInternalCost: true, // it is in overhead
		ShouldUpdate:       func(_, _ *memBlock) bool { return false },
		OnEvict:            func(*ristretto.Item[*memBlock]) { m.count.evictions.Add(1) },
		OnReject:           func(*ristretto.Item[*memBlock]) { m.count.evictions.Add(1) },
		OnExit:             m.exit,
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	m.main = main
	return m, nil
}

// Close waits for fetches under way and releases the memory. No other method may
// be at work, or be called after.
func (m *Mem) Close() {
	m.flights.wg.Wait()
	if m.main != nil {
		m.main.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order.Init()
	clear(m.window)
	m.windowed = 0
}

// Stats returns the counters.
func (m *Mem) Stats() Stats {
	s := m.count.stats()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Bytes = m.windowed + m.held.Load()
	s.Blocks = int64(m.order.Len()) + m.inMain.Load()
	s.Limit = m.maxWindow + m.maxMain
	return s
}

// Get implements [store.Store]. A Get that must verify is not answered from
// memory, where there are no checksums.
func (m *Mem) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	verify := store.MustVerify(ctx)
	if verify {
		m.drop(key)
	} else if part, ok := m.find(key, off, n); ok {
		m.count.hit(store.IsLocal(ctx), len(part))
		return part, nil
	}
	if store.IsLocal(ctx) {
		return m.local(ctx, key, off, n)
	}
	m.count.misses.Add(1)
	whole, u := n < 0 || n >= bulk, (*use)(nil)
	if !whole {
		whole, u = m.proven(key, n)
	}
	if whole {
		data, joined, err := m.flights.do(ctx, flightKey{key, verify}, m.fetcher(key), nil)
		return m.joined(data, joined, err, off, n)
	}
	if data, ok, err := m.flights.join(ctx, flightKey{key, verify}); ok {
		return m.joined(data, true, err, off, n)
	}
	return m.pass(func(off, n int64) ([]byte, error) { return m.next.Get(ctx, key, off, n) }, key, u, off, n)
}

// Peek implements [store.Peeker]. What is not here is not counted: a Get follows.
func (m *Mem) Peek(key store.Key, off, n int64) ([]byte, bool) {
	part, ok := m.find(key, off, n)
	if ok {
		m.count.hit(false, len(part))
	}
	return part, ok
}

// find returns bytes of a block if they are here.
func (m *Mem) find(key store.Key, off, n int64) ([]byte, bool) {
	if b := m.lookup(place{Key: key}); b != nil {
		return store.Clip(b.data, off, n), true
	}
	return m.fromParts(key, off, n)
}

// local asks the next store only if it is a cache too.
func (m *Mem) local(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	m.count.localMisses.Add(1)
	if _, ok := m.next.(keeper); !ok {
		return nil, notHeld(key)
	}
	return m.next.Get(ctx, key, off, n)
}

func (m *Mem) joined(data []byte, joined bool, err error, off, n int64) ([]byte, error) {
	if joined {
		m.count.joined.Add(1)
	}
	if err != nil {
		return nil, err
	}
	return store.Clip(data, off, n), nil
}

// fetcher returns the flight that brings the block here.
func (m *Mem) fetcher(key store.Key) func(context.Context, *flight) ([]byte, error) {
	return func(ctx context.Context, f *flight) ([]byte, error) {
		if !store.MustVerify(ctx) {
			if b := m.lookup(place{Key: key}); b != nil { // it came while this one was getting ready
				return b.data, nil
			}
		}
		data, err := m.next.Get(ctx, key, 0, -1)
		if err != nil {
			return nil, err
		}
		m.dropParts(key)
		m.insert(place{Key: key}, data, f.forgotten.Load)
		return data, nil
	}
}

// Put implements [store.Store]. A block that was put is kept.
func (m *Mem) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := m.next.Put(ctx, key, data); err != nil {
		return err
	}
	if at := (place{Key: key}); m.lookup(at) == nil {
		m.insert(at, bytes.Clone(data), never)
	}
	return nil
}

// Borrow implements [store.Borrower]. The block is kept where it is while it is in
// the window; if nobody has asked for it when it leaves, its memory is given back.
func (m *Mem) Borrow(ctx context.Context, key store.Key, l *store.Loan) error {
	if err := store.Lend(ctx, m.next, key, l); err != nil {
		return err
	}
	l.Keep()
	if !m.add(&memBlock{place{Key: key}, l.Data(), l}, never) {
		l.Done()
	}
	return nil
}

// Delete implements [store.Store].
func (m *Mem) Delete(ctx context.Context, key store.Key) error {
	err := m.next.Delete(ctx, key)
	m.forget(key)
	return err
}

// DeleteAll implements [store.BulkDeleter].
func (m *Mem) DeleteAll(ctx context.Context, keys []store.Key) error {
	err := store.DeleteAll(ctx, m.next, keys)
	for _, key := range keys {
		m.forget(key)
	}
	return err
}

func (m *Mem) forget(key store.Key) {
	m.flights.forget(key)
	m.drop(key)
}

// lookup returns the block, or the part of it, if it is here.
func (m *Mem) lookup(at place) *memBlock {
	if m.main != nil {
		// Asked first also for what is in the window, so that it knows what
		// is asked for often.
		if b, ok := m.main.Get(mainKey(at)); ok && b.place == at {
			return b
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.window[at]
	if e == nil {
		return nil
	}
	m.order.MoveToFront(e)
	b := e.Value.(*memBlock)
	b.loan = nil
	return b
}

func never() bool { return false }

// insert puts a block, or a part of it, into the window, unless it was deleted
// meanwhile. Nobody changes data any more.
func (m *Mem) insert(at place, data []byte, deleted func() bool) {
	m.add(&memBlock{place: at, data: data}, deleted)
}

// add is insert, and reports whether b is in the window.
func (m *Mem) add(b *memBlock, deleted func() bool) bool {
	if b.cost() > m.maxWindow {
		m.count.dropped.Add(1)
		return false
	}
	if m.main != nil && m.held.Load()+b.cost() > m.maxMain {
		m.main.Wait() // its queue is long: let it catch up
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.window[b.place] != nil || deleted() {
		return false // if it is deleted later than here, drop finds it
	}
	for m.windowed+b.cost() > m.maxWindow {
		m.expel()
	}
	m.windowed += b.cost()
	m.window[b.place] = m.order.PushFront(b)
	return true
}

// expel offers the block in the window that was not used for longest to the main
// part, unless nobody has asked for it since it was written. m.mu must be held.
func (m *Mem) expel() {
	b := m.leave(m.order.Back())
	switch {
	case b.loan != nil:
		m.count.evictions.Add(1)
		b.loan.Done()
	case m.main == nil:
		m.count.evictions.Add(1)
	case m.held.Add(b.cost()) > m.maxMain:
		m.held.Add(-b.cost())
		m.count.dropped.Add(1)
	default:
		m.inMain.Add(1)
		if !m.main.Set(mainKey(b.place), b, b.cost()) {
			m.exit(b)
			m.count.dropped.Add(1)
		}
	}
}

// leave takes a block out of the window. m.mu must be held.
func (m *Mem) leave(e *list.Element) *memBlock {
	b := m.order.Remove(e).(*memBlock)
	delete(m.window, b.place)
	m.windowed -= b.cost()
	return b
}

// exit is told of each block that ristretto has no longer, whatever the reason,
// and of nil when it had none.
func (m *Mem) exit(b *memBlock) {
	if b != nil {
		m.inMain.Add(-1)
		m.held.Add(-b.cost())
	}
}

// drop removes the block and its parts.
func (m *Mem) drop(key store.Key) {
	m.dropAt(place{Key: key})
	m.dropParts(key)
}

// dropParts removes the parts of the block, and forgets what was asked of it.
func (m *Mem) dropParts(key store.Key) {
	m.mu.Lock()
	u := m.uses.forget(key)
	m.mu.Unlock()
	for i := range int32(maxParts) {
		if u != nil && u.parts&(1<<i) != 0 {
			m.dropAt(place{key, i + 1})
		}
	}
}

func (m *Mem) dropAt(at place) {
	m.mu.Lock()
	if e := m.window[at]; e != nil {
		if b := m.leave(e); b.loan != nil {
			b.loan.Done()
		}
	}
	m.mu.Unlock()
	if m.main != nil {
		m.main.Del(mainKey(at))
	}
}

// mainKey returns the place as bytes: ristretto checks only keys of that kind for
// collisions of their hash.
func mainKey(at place) string {
	b := make([]byte, 0, 16+8+4+8+8+4)
	b = append(b, at.Volume[:]...)
	b = binary.LittleEndian.AppendUint64(b, at.Ino)
	b = binary.LittleEndian.AppendUint32(b, at.Index)
	b = binary.LittleEndian.AppendUint64(b, at.Gen.Session)
	b = binary.LittleEndian.AppendUint64(b, at.Gen.Seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(at.part))
	return unsafe.String(&b[0], len(b)) // nobody changes b
}
