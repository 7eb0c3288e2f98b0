package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// stripes is how many mutexes the locks of Updates are spread over. Two keys
// may share one: that costs time, not correctness.
const stripes = 4096

// Options of a Pebble. The zero value is usable.
type Options struct {
	CacheSize int64 // bytes of memory for what was read; 0: 64 MiB. What was written takes up to 192 MiB more.

	// NoSync acknowledges commits before they are on stable storage: a crash
	// of the machine loses the last moments, in order.
	NoSync bool

	Log *slog.Logger // nil: none
}

// A Pebble is an Engine in one folder of a local disk, for one process.
type Pebble struct {
	db     *pebble.DB
	noSync bool
	seed   maphash.Seed
	lock   [stripes]sync.Mutex // taken in the order of their indexes

	visible atomic.Uint64 // counts the commits that are in the log
	durable atomic.Uint64 // so many of them, from the first on, are on stable storage

	open   sync.RWMutex // held for reading while something runs
	closed bool         // guarded by open
}

// OpenPebble opens the database in dir, or makes one if dir is missing or empty.
// The error says what to do if the database is in use, damaged or not one.
func OpenPebble(dir string, opt Options) (*Pebble, error) {
	return openPebble(vfs.Default, dir, opt)
}

func openPebble(fs vfs.FS, dir string, opt Options) (*Pebble, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.CacheSize == 0 {
		opt.CacheSize = 64 << 20
	}
	found, err := findDatabase(fs, dir)
	if err != nil {
		return nil, err
	}
	db, err := pebble.Open(dir, pebbleOptions(logFS{fs}, found, opt))
	if err != nil {
		return nil, openError(fs, dir, err)
	}
	return &Pebble{db: db, noSync: opt.NoSync, seed: maphash.MakeSeed()}, nil
}

const (
	// memTable bounds the latest writes, which are in memory and in the log:
	// what is asked for soon after it was written is not read back from a table,
	// and what is overwritten soon never gets there.
	memTable = 64 << 20

	// memTables is how many there may be: one is written to, the others to disk.
	memTables = 3

	// blockSize and indexSize are of tables: a file's inline contents and a few
	// names fit a block, and the index of a table has one level.
	blockSize = 16 << 10
	indexSize = 256 << 10
)

func pebbleOptions(fs vfs.FS, found bool, opt Options) *pebble.Options {
	o := &pebble.Options{
		FS:                          fs,
		CacheSize:                   opt.CacheSize + memTables*memTable, // it counts them, too
		MemTableSize:                memTable,
		MemTableStopWritesThreshold: memTables,
		Merger:                      &pebble.Merger{Name: "flexfs.sum", Merge: mergeSum},
		FormatMajorVersion:          pebble.FormatValueSeparation,
		ErrorIfNotExists:            found,
		Logger:                      pebbleLog{opt.Log},
		// By default damage ends the process. The reader's error is enough.
		EventListener: &pebble.EventListener{DataCorruption: func(info pebble.DataCorruptionInfo) {
			opt.Log.Error("database is damaged", "err", info.String())
		}},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].BlockSize = blockSize
		o.Levels[i].IndexBlockSize = indexSize
	}
	return o
}

// begin keeps the engine open until done is called.
func (p *Pebble) begin(ctx context.Context) (done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.open.RLock()
	if p.closed {
		p.open.RUnlock()
		return nil, fmt.Errorf("engine: %w", ErrClosed)
	}
	return p.open.RUnlock, nil
}

// View implements Engine.
func (p *Pebble) View(ctx context.Context, fn func(Reader) error) error {
	done, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	snap := p.db.NewSnapshot()
	defer snap.Close()
	r := reader{from: snap}
	defer r.close()
	return fn(&r)
}

// Update implements Engine.
func (p *Pebble) Update(ctx context.Context, locks [][]byte, fn func(Tx) error) (Commit, error) {
	done, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	held := p.acquire(locks)
	defer held.release()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := p.db.NewIndexedBatch()
	tx := transaction{reader: reader{from: p.db}, b: b, held: held}
	err = fn(&tx)
	tx.close()
	if err == nil {
		err = tx.err
	}
	if err != nil || b.Empty() {
		b.Close()
		return new(commit), err
	}
	return p.commit(b)
}

// commit makes a batch visible. The caller holds its locks: so transactions
// that contend become durable in the order they became visible.
//
// The log is synced when somebody waits, and not before: of a sequence of
// commits only the last one has to be waited for, and costs one sync.
func (p *Pebble) commit(b *pebble.Batch) (Commit, error) {
	if err := p.db.Apply(b, pebble.NoSync); err != nil {
		return nil, fmt.Errorf("engine: commit: %w", damage(err))
	}
	b.Close()
	if p.noSync {
		return new(commit), nil
	}
	return &commit{p: p, n: p.visible.Add(1)}, nil
}

// A held is the locks of a transaction.
type held struct {
	p     *Pebble
	index []int // of the stripes
}

// acquire takes the stripes of locks.
func (p *Pebble) acquire(locks [][]byte) *held {
	h := &held{p, make([]int, len(locks), len(locks)+1)}
	for i, key := range locks {
		h.index[i] = p.stripe(key)
	}
	slices.Sort(h.index)
	h.index = slices.Compact(h.index)
	for _, i := range h.index {
		p.lock[i].Lock()
	}
	return h
}

func (p *Pebble) stripe(key []byte) int { return int(maphash.Bytes(p.seed, key) % stripes) }

// try takes one stripe more, out of order: so it does not wait.
func (h *held) try(key []byte) bool {
	i := h.p.stripe(key)
	if slices.Contains(h.index, i) {
		return true
	}
	if !h.p.lock[i].TryLock() {
		return false
	}
	h.index = append(h.index, i)
	return true
}

func (h *held) release() {
	for _, i := range h.index {
		h.p.lock[i].Unlock()
	}
}

// Checkpoint implements Engine.
func (p *Pebble) Checkpoint(ctx context.Context, dir string) error {
	done, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := p.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return fmt.Errorf("engine: checkpoint: %w", damage(err))
	}
	return nil
}

// Close implements Engine. It writes out what is in memory first, so that the
// next open has no log to replay.
func (p *Pebble) Close() error {
	p.open.Lock()
	defer p.open.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if err := errors.Join(p.db.Flush(), p.db.Close()); err != nil {
		return fmt.Errorf("engine: close: %w", damage(err))
	}
	p.durable.Store(p.visible.Load())
	return nil
}

// A commit is the nth one of an engine: at least n are in the log before what
// is written to it from then on.
type commit struct {
	p *Pebble // nil: nothing to wait for
	n uint64
}

func (c *commit) Wait() error {
	if c.p == nil || c.p.durable.Load() >= c.n {
		return nil
	}
	return c.p.sync()
}

// sync makes all durable that is visible. Those who ask at the same time share
// the syncs of the log.
func (p *Pebble) sync() error {
	done, err := p.begin(context.Background())
	if err != nil {
		return err
	}
	defer done()
	n := p.visible.Load()
	if err := p.db.LogData(nil, pebble.Sync); err != nil {
		return fmt.Errorf("engine: sync: %w", damage(err))
	}
	for {
		old := p.durable.Load()
		if old >= n || p.durable.CompareAndSwap(old, n) {
			return nil
		}
	}
}

// A reader is a Reader of a snapshot, a batch, or the database: what a transaction
// reads before its first write, it reads there, with less work.
type reader struct {
	from interface {
		Get(key []byte) ([]byte, io.Closer, error)
		NewIter(*pebble.IterOptions) (*pebble.Iterator, error)
	}
	got []io.Closer // what keeps the results of Get valid
}

func (r *reader) close() {
	for _, c := range r.got {
		c.Close()
	}
	r.got = nil
}

func (r *reader) Get(key []byte) ([]byte, error) {
	v, c, err := r.from.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("engine: get: %w", damage(err))
	}
	r.got = append(r.got, c)
	if v == nil {
		v = []byte{}
	}
	return v, nil
}

// fewKeys is how many keys are cheaper to get one by one than with an iterator.
const fewKeys = 4

func (r *reader) MGet(keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	if len(keys) > fewKeys {
		return values, r.seek(keys, values)
	}
	for i, key := range keys {
		var err error
		if values[i], err = r.Get(key); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// seek gets the values of keys, in the order of keys, which costs a third of as
// many Gets if they are near each other.
func (r *reader) seek(keys, values [][]byte) error {
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(keys[a], keys[b]) })
	it, err := r.from.NewIter(&pebble.IterOptions{LowerBound: keys[order[0]]})
	if err != nil {
		return fmt.Errorf("engine: seek: %w", damage(err))
	}
	defer it.Close()
	for _, i := range order {
		if !it.SeekGE(keys[i]) {
			break
		}
		if !bytes.Equal(it.Key(), keys[i]) {
			continue
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("engine: seek: %w", damage(err))
		}
		values[i] = append(make([]byte, 0, len(v)), v...)
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("engine: seek: %w", damage(err))
	}
	return nil
}

func (r *reader) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	it, err := r.from.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return fmt.Errorf("engine: scan: %w", damage(err))
	}
	defer it.Close()
	start, next := it.First, it.Next
	if reverse {
		start, next = it.Last, it.Prev
	}
	for ok := start(); ok; ok = next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("engine: scan: %w", damage(err))
		}
		if more, err := fn(it.Key(), v); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("engine: scan: %w", damage(err))
	}
	return nil
}

// A transaction is a Tx. A write that fails fails the transaction, whether its
// error is looked at or not.
type transaction struct {
	reader
	b    *pebble.Batch
	held *held
	err  error
}

// check refuses a write that is too large, and notes that there is one.
func (t *transaction) check(key, value []byte) error {
	t.from = t.b
	switch {
	case len(key) > MaxKey:
		return t.fail(fmt.Errorf("engine: a key of %d bytes is %w", len(key), ErrTooLarge))
	case len(value) > MaxValue:
		return t.fail(fmt.Errorf("engine: a value of %d bytes is %w", len(value), ErrTooLarge))
	case t.b.Len()+len(key)+len(value) > MaxTx:
		return t.fail(fmt.Errorf("engine: more than %d bytes written are %w", MaxTx, ErrTooLarge))
	}
	return nil
}

func (t *transaction) fail(err error) error {
	if err != nil && t.err == nil {
		t.err = err
	}
	return err
}

func (t *transaction) Put(key, value []byte) error {
	if err := t.check(key, value); err != nil {
		return err
	}
	return t.fail(t.b.Set(key, value, nil))
}

func (t *transaction) Delete(key []byte) error {
	if err := t.check(key, nil); err != nil {
		return err
	}
	return t.fail(t.b.Delete(key, nil))
}

func (t *transaction) DeleteRange(from, to []byte) error {
	if err := t.check(from, to); err != nil {
		return err
	}
	return t.fail(t.b.DeleteRange(from, to, nil))
}

func (t *transaction) TryLock(key []byte) bool { return t.held.try(key) }

func (t *transaction) Add(key []byte, delta int64) error {
	var v [8]byte
	binary.BigEndian.PutUint64(v[:], uint64(delta))
	if err := t.check(key, v[:]); err != nil {
		return err
	}
	return t.fail(t.b.Merge(key, v[:], nil))
}

// A sum is the merge of the numbers that were added to a key. It does not
// depend on their order.
type sum struct{ n uint64 }

func mergeSum(_, value []byte) (pebble.ValueMerger, error) {
	s := new(sum)
	return s, s.add(value)
}

func (s *sum) add(value []byte) error {
	if len(value) != 8 {
		return fmt.Errorf("engine: a number was added to a value of %d bytes: %w", len(value), ErrCorrupt)
	}
	s.n += binary.BigEndian.Uint64(value)
	return nil
}

func (s *sum) MergeNewer(value []byte) error { return s.add(value) }
func (s *sum) MergeOlder(value []byte) error { return s.add(value) }

func (s *sum) Finish(bool) ([]byte, io.Closer, error) {
	return binary.BigEndian.AppendUint64(nil, s.n), nil, nil
}
