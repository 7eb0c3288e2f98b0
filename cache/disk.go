package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
)

const (
	// maxFlights bounds the whole blocks that are fetched at the same time,
	// of at most 8 MiB each.
	maxFlights = 64

	// maxFilling bounds the bytes of blocks that wait to be written to the
	// disk. What comes while it is reached is not kept: a slow disk must not
	// slow down who reads from a faster store.
	maxFilling = 64 << 20

	// maxEntries bounds the index, at some 250 bytes each.
	maxEntries = 4 << 20

	// oneReading is for how long uses of a block count as one: a program
	// that reads a block in many pieces does not make it popular.
	oneReading = 10 // seconds

	// restamp is how much older than its last use a file's time may be. The
	// time is what the order of eviction is remade from after a restart.
	restamp = 3600 // seconds
)

// A DiskConfig says what a [Disk] is.
type DiskConfig struct {
	// Dir is the folder, for this Disk alone; it is made if it is not there.
	// Whoever can read it can read the blocks, as far as they are not
	// encrypted.
	Dir   string
	Quota Quota

	// Verify checks a whole sealed block, and returns its CRC-32C, as
	// [seal.Verify] does. It must be there.
	Verify func(key store.Key, sealed []byte) (sum uint32, err error)

	// Whole has a Get of a part of a block that is not here fetch and keep
	// all of it, as a cache that many share should. Otherwise it is passed
	// on, and only whole blocks that go by are kept.
	Whole bool

	// Direct has copies written past the kernel's page cache, which costs a
	// fraction: for who keeps in memory what was read or written last.
	Direct bool

	Log *slog.Logger
}

// Disk is a Store that keeps sealed blocks on a local disk, in front of another
// Store.
//
// Blocks that were fetched whole or put are written to the disk after the caller
// has its answer. Their files never take more than the quota: room is made
// before a file is written. What was written is found again after a restart,
// without reading it; what it contains is checked when it is first used. A
// damaged file is removed and its block fetched again.
//
// Besides copies it keeps dirty blocks, which are on stable storage here and not
// known to be in the Store below: [Disk.PutDirty] makes one, [Disk.Clean] makes it
// a copy like others. They take part of the quota and are never evicted.
//
// A disk that fails or hangs is taken out of use, and tried again later; all
// goes to the Store below meanwhile. Only reading a dirty block is tried
// nevertheless.
type Disk struct {
	cfg     DiskConfig
	next    store.Store
	files   files
	flights *flights
	count   counters
	health  health
	filling atomic.Int64  // bytes that wait to be written
	writing chan struct{} // bounds the dirty blocks that are being written
	rescues chan struct{} // bounds the reads from a disk that is out of use
	synced  *commit       // of the dirty folder

	lock    io.Closer      // of the folder
	wg      sync.WaitGroup // background work
	scanned chan struct{}  // closed when the index is complete
	closing chan struct{}

	mu      sync.Mutex
	index   map[store.Key]*entry // guarded by mu
	busy    map[store.Key]*hold  // files being written, moved or removed; guarded by mu
	removed map[store.Key]bool   // during the scan, which may come across them nevertheless; guarded by mu
	fifo    *fifo                // guarded by mu
	used    int64                // sum of charges, of files being written and of damaged ones too; guarded by mu
	limits  limits               // guarded by mu
	warned  time.Time            // of a damaged copy; guarded by mu
	refused time.Time            // a dirty block for which there was no room; guarded by mu
	unknown bool                 // a file of another kind was seen; guarded by mu
}

// A hold makes somebody the only one to write, move or remove a block's file.
// What is held is not evicted.
type hold struct {
	done      chan struct{} // closed when it is over
	forgotten bool          // the block was deleted meanwhile; guarded by Disk.mu
}

// OpenDisk opens the folder, with what it has from earlier. Close gives it up.
func OpenDisk(next store.Store, cfg DiskConfig) (*Disk, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("cache: the disk cache needs a folder")
	case cfg.Verify == nil:
		return nil, errors.New("cache: the disk cache needs a way to verify blocks")
	case cfg.Quota.Bytes <= 0 && cfg.Quota.Percent <= 0:
		return nil, errors.New("cache: the disk cache needs a quota")
	}
	f, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("cache: open disk folder: %w", err)
	}
	f.direct = cfg.Direct
	d, err := newDisk(next, cfg, f)
	if err != nil {
		f.Close()
		return nil, err
	}
	d.lock = f
	d.wg.Go(d.tend)
	return d, nil
}

func newDisk(next store.Store, cfg DiskConfig, f files) (*Disk, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	total, free, err := f.space()
	if err != nil {
		return nil, fmt.Errorf("cache: size of the disk: %w", err)
	}
	return &Disk{
		cfg: cfg, next: next, files: f,
		flights: newFlights(maxFlights),
		writing: make(chan struct{}, maxWriting), rescues: make(chan struct{}, maxRescues), synced: newCommit(),
		health:  health{patience: patience},
		scanned: make(chan struct{}), closing: make(chan struct{}),
		index: make(map[store.Key]*entry), busy: make(map[store.Key]*hold), removed: make(map[store.Key]bool), fifo: newFIFO(),
		limits: limits{quota: cfg.Quota.limit(0, total, free)},
	}, nil
}

// Close ends background work, waiting for it as long as for a disk that hangs,
// and gives the folder up. No other method may be at work, or be called after.
func (d *Disk) Close() error {
	close(d.closing)
	idle := make(chan struct{})
	go func() {
		d.wg.Wait()
		d.flights.wg.Wait()
		close(idle)
	}()
	t := time.NewTimer(d.health.patience)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		return fmt.Errorf("cache: close %s: the disk does not answer", d.cfg.Dir)
	}
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// Stats returns the counters.
func (d *Disk) Stats() Stats {
	s := d.count.stats()
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Bytes, s.Blocks, s.Limit = d.used, int64(len(d.index)), d.limits.now(time.Now())
	l := &d.fifo.lists[dirty]
	s.DirtyBytes, s.DirtyBlocks = l.bytes, int64(l.len)
	if l.front != nil {
		s.OldestDirty = time.Unix(l.front.stamped, 0)
	}
	return s
}

// InUse reports whether the disk is in use: not after it failed, until it works
// again.
func (d *Disk) InUse() bool { return !d.health.down.Load() }

// ChecksWhole implements [store.Checker].
func (d *Disk) ChecksWhole() {}

// Get implements [store.Store]. A whole block was checked: when it was read from its
// file or fetched, or, if it is being written to its file, by who put it.
func (d *Disk) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	whole := off == 0 && (n < 0 || n >= seal.MaxSealed)
	part, _, held := d.copyOf(ctx, key, whole, true, func(src source) (data, _ []byte, err error) {
		data, err = src(off, n)
		return data, nil, err
	})
	if held == nil {
		d.count.hit(store.IsLocal(ctx), len(part))
		return part, nil
	}
	data, fetched, err := d.miss(ctx, key, whole || d.cfg.Whole && n != 0, held)
	switch {
	case err != nil:
		return nil, err
	case fetched:
		return store.Clip(data, off, n), nil
	}
	d.count.ranges.Add(1)
	data, err = d.next.Get(ctx, key, off, n)
	return data, absent(err, held)
}

// GetFrames implements [store.FrameGetter].
func (d *Disk) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	split := func(src source) (head, frames []byte, err error) { return frameRange(src, key, off, n) }
	// The frames are checked by themselves; there is no need to verify the block.
	head, frames, held := d.copyOf(ctx, key, false, false, split)
	if held == nil {
		d.count.hit(store.IsLocal(ctx), len(head)+len(frames))
		return head, frames, nil
	}
	data, fetched, err := d.miss(ctx, key, d.cfg.Whole, held)
	switch {
	case err != nil:
		return nil, nil, err
	case fetched:
		return split(inMemory(data))
	}
	d.count.ranges.Add(1)
	head, frames, err = store.GetFrames(ctx, d.next, key, off, n)
	return head, frames, absent(err, held)
}

// absent returns err, the error of the store below, unless that says that there
// is no such block and held, the error from here, knows better.
func absent(err, held error) error {
	if errors.Is(err, store.ErrNotExist) && !errors.Is(held, errNotHeld) {
		return held
	}
	return err
}

// Put implements [store.Store].
func (d *Disk) Put(ctx context.Context, key store.Key, data []byte) error {
	kept, err := d.put(ctx, key, data)
	if kept {
		d.land(ctx, key, bytes.Clone(data), func() {})
	}
	return err
}

// Borrow implements [store.Borrower]: the block is written to the disk from where it
// is.
func (d *Disk) Borrow(ctx context.Context, key store.Key, l *store.Loan) error {
	kept, err := d.put(ctx, key, l.Data())
	if kept {
		l.Keep()
		d.land(ctx, key, l.Data(), l.Done)
	}
	return err
}

// put puts a block below, and reports whether it is to be written to the disk.
func (d *Disk) put(ctx context.Context, key store.Key, data []byte) (bool, error) {
	if err := d.next.Put(ctx, key, data); err != nil {
		return false, err
	}
	if d.IsDirty(key) {
		d.Clean(key)
	}
	if !d.usable() || d.filling.Load()+int64(len(data)) > maxFilling {
		d.count.dropped.Add(1)
		return false, nil
	}
	return true, nil
}

// land has a block that was put written to the disk. It calls done when it was, unless
// a Get was given the same bytes meanwhile.
func (d *Disk) land(ctx context.Context, key store.Key, data []byte, done func()) {
	d.flights.land(flightKey{key: key}, data, store.Sum(ctx, data), func(f *flight) { d.fill(key, f) }, done)
}

// Delete implements [store.Store].
func (d *Disk) Delete(ctx context.Context, key store.Key) error {
	err := d.next.Delete(ctx, key)
	d.forget(key)
	return err
}

// DeleteAll implements [store.BulkDeleter].
func (d *Disk) DeleteAll(ctx context.Context, keys []store.Key) error {
	err := store.DeleteAll(ctx, d.next, keys)
	for _, key := range keys {
		d.forget(key)
	}
	return err
}

func (d *Disk) forget(key store.Key) {
	d.flights.forget(key)
	d.mu.Lock()
	if h := d.busy[key]; h != nil {
		h.forgotten = true
	}
	d.mu.Unlock()
	if e, _ := d.find(context.Background(), key); e != nil {
		d.drop(e)
	}
}

// miss returns the whole block, if it is to be fetched or is being fetched. held
// says why the block was not read here.
func (d *Disk) miss(ctx context.Context, key store.Key, whole bool, held error) (data []byte, fetched bool, err error) {
	if store.IsLocal(ctx) {
		d.count.localMisses.Add(1)
		return nil, false, held
	}
	d.count.misses.Add(1)
	k := flightKey{key, store.MustVerify(ctx)}
	joined := true
	if whole {
		fetched = true
		data, joined, err = d.flights.do(ctx, k, d.fetcher(key), func(f *flight) { d.fill(key, f) })
	} else {
		data, fetched, err = d.flights.join(ctx, k)
	}
	if fetched && joined {
		d.count.joined.Add(1)
	}
	return data, fetched, absent(err, held)
}

// fetcher returns the flight that brings a block here.
func (d *Disk) fetcher(key store.Key) func(context.Context, *flight) ([]byte, error) {
	return func(ctx context.Context, f *flight) ([]byte, error) {
		// It may have come while this one was getting ready.
		data, _, held := d.copyOf(ctx, key, true, true, func(src source) (data, _ []byte, err error) {
			data, err = src(0, -1)
			return data, nil, err
		})
		if held == nil {
			f.sum = store.Sum(ctx, data)
			return data, nil
		}
		data, err := d.next.Get(ctx, key, 0, -1)
		if err != nil {
			return nil, err
		}
		sum, bad := d.cfg.Verify(key, data)
		if bad != nil && !store.MustVerify(ctx) {
			if data, err = d.next.Get(store.WithVerify(ctx), key, 0, -1); err != nil {
				return nil, err
			}
			sum, bad = d.cfg.Verify(key, data)
		}
		if bad != nil {
			return nil, fmt.Errorf("cache: fetch %v: %w", key, corrupt(bad))
		}
		f.sum = sum
		return data, nil
	}
}

// corrupt returns err as one that wraps [store.ErrCorrupt].
func corrupt(err error) error {
	if errors.Is(err, store.ErrCorrupt) {
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
}

// fill writes the block of a flight that has landed to the disk.
func (d *Disk) fill(key store.Key, f *flight) {
	size := int64(len(f.data))
	defer d.filling.Add(-size)
	if d.filling.Add(size) > maxFilling || !d.usable() || !d.scanDone() || !d.keep(key, f) {
		d.count.dropped.Add(1)
	}
}

// scanDone waits until the index is complete: before, nobody knows how much room
// there is. It reports whether there is any more use in going on.
func (d *Disk) scanDone() bool {
	select {
	case <-d.closing:
		return false
	case <-d.scanned:
		return true
	}
}

// keep makes room for a block and writes it. It reports whether the block is on
// the disk, or was deleted meanwhile.
func (d *Disk) keep(key store.Key, f *flight) bool {
	have, h := d.claim(key)
	if h == nil {
		return have
	}
	defer d.release(key, h)
	e := newEntry(key, f.data, f.sum)
	if !d.reserve(charge(e.size)) {
		return false
	}
	err := d.files.write(e.name(), f.data)
	if d.settle(e, f, h, err) {
		return err == nil
	}
	d.unlink(e, h)
	return true
}

// newEntry returns the entry of a block that is being written and has this CRC-32C.
func newEntry(key store.Key, data []byte, sum uint32) *entry {
	t := now()
	return &entry{key: key, size: int64(len(data)), verified: true, crc: sum, used: t, stamped: t}
}

// settle indexes an entry after its file was written. It reports false if the
// block was deleted meanwhile.
func (d *Disk) settle(e *entry, f *flight, h *hold, err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.used -= charge(e.size)
		d.hurt("write", err)
		return true
	}
	if f.forgotten.Load() || h.forgotten {
		e.bad = true
		return false
	}
	d.index[e.key] = e // if the block is deleted later than here, forget finds it
	d.fifo.add(e)
	return true
}

// claim returns a hold of the block's file, which the caller ends with release,
// unless it is there already or somebody else holds it. A bad file that is still
// there is removed.
func (d *Disk) claim(key store.Key) (have bool, h *hold) {
	d.mu.Lock()
	e := d.index[key]
	if d.busy[key] != nil || e != nil && !e.bad {
		d.mu.Unlock()
		return e != nil, nil
	}
	if e == nil {
		h = d.hold(key)
		d.mu.Unlock()
		return false, h
	}
	h = d.leave(e)
	d.mu.Unlock()
	if !d.unlink(e, h) {
		return false, nil
	}
	return false, h
}

// hold makes a hold. d.mu must be held.
func (d *Disk) hold(key store.Key) *hold {
	h := &hold{done: make(chan struct{})}
	d.busy[key] = h
	return h
}

// release ends a hold, if it has not ended.
func (d *Disk) release(key store.Key, h *hold) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.end(key, h)
}

// end is release with d.mu held.
func (d *Disk) end(key store.Key, h *hold) {
	if d.busy[key] == h {
		delete(d.busy, key)
		close(h.done)
	}
}

// reserve takes bytes from the quota, after evicting what is needed for that. It
// reports whether it could.
func (d *Disk) reserve(bytes int64) bool {
	limit := d.limit()
	for bytes <= limit {
		d.mu.Lock()
		if d.used+bytes <= limit && len(d.index) < maxEntries {
			d.used += bytes
			d.mu.Unlock()
			return true
		}
		if bytes > 0 && d.used-d.fifo.evictable()+bytes > limit {
			d.mu.Unlock()
			return false // all room is promised to files being written, or has dirty blocks
		}
		e := d.fifo.evict()
		var h *hold
		if e != nil {
			h = d.leave(e)
		}
		d.mu.Unlock()
		if e == nil || !d.expel(e, h) {
			return false // there is nothing more to evict, or the disk fails
		}
		d.count.evictions.Add(1)
	}
	return false
}

// trim evicts what exceeds the quota, which may have become smaller.
func (d *Disk) trim() { d.reserve(0) }

// leave takes e off the index, and returns a hold for its file to be removed.
// d.mu must be held.
func (d *Disk) leave(e *entry) *hold {
	delete(d.index, e.key)
	d.fifo.remove(e)
	return d.hold(e.key)
}

// expel removes the file of an entry that has left, and ends the hold.
func (d *Disk) expel(e *entry, h *hold) bool {
	ok := d.unlink(e, h)
	d.release(e.key, h)
	return ok
}

// unlink removes the file of an entry that has left, and gives its bytes back to
// the quota. An entry whose file cannot be removed returns, and the hold ends.
func (d *Disk) unlink(e *entry, h *hold) bool {
	err := d.files.remove(e.name())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		d.used -= charge(e.size)
		if d.removed != nil {
			d.removed[e.key] = true
		}
		return true
	}
	d.hurt("remove", err)
	d.index[e.key] = e
	d.fifo.push(main, e)
	d.end(e.key, h)
	return false
}

// drop removes a block. If its file cannot be removed now, nobody reads it any
// more, and eviction tries again.
func (d *Disk) drop(e *entry) {
	d.mu.Lock()
	if d.index[e.key] != e {
		d.mu.Unlock()
		return
	}
	e.bad = true
	if h := d.busy[e.key]; h != nil {
		h.forgotten = true // who holds it removes it
		d.mu.Unlock()
		return
	}
	if !d.usable() {
		d.fifo.remove(e)
		d.fifo.push(main, e)
		d.mu.Unlock()
		return
	}
	h := d.leave(e)
	d.mu.Unlock()
	d.guard(context.Background(), func() { d.expel(e, h) })
}

// find returns the block's entry if there is one that may be read, and whether
// its file is known to be good.
func (d *Disk) find(ctx context.Context, key store.Key) (e *entry, verified bool) {
	if e, verified = d.indexed(key); e == nil && !d.isScanned() && d.usable() {
		d.adopt(ctx, key)
		return d.indexed(key)
	}
	return e, verified
}

func (d *Disk) indexed(key store.Key) (e *entry, verified bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e = d.index[key]; e == nil || e.bad {
		return nil, false
	}
	return e, e.verified
}

// use notes that a copy was used, and that it was found good, with this checksum.
func (d *Disk) use(e *entry, verified bool, crc uint32) {
	d.mu.Lock()
	if verified {
		e.verified, e.crc = true, crc
	}
	t := now()
	if t-e.used >= oneReading {
		d.fifo.use(e)
		e.used = t
	}
	stamp := t-e.stamped >= restamp && !e.inDirty // whose time says since when it is dirty
	if stamp {
		e.stamped = t
	}
	d.mu.Unlock()
	if stamp {
		// If it fails, only the order of eviction after a restart suffers.
		d.guard(context.Background(), func() { _ = d.files.touch(cleanFile(e.key)) })
	}
}

// now is in seconds.
func now() int64 { return time.Now().Unix() }
