// Package writeback lets a proxy acknowledge a block before the bucket has it:
// when it is on the stable storage of two members of the group.
//
// The proxy that takes a block from a client keeps it on its own disk and has
// another member keep a copy, both marked dirty. Then it answers, and uploads
// the block in the background. When the bucket has the block it is dirty no
// more, neither here nor, as soon as the other member is told, there. A member
// that is not told asks; and if the first one is gone, or will not do it,
// uploads the block itself. Blocks never change, so it does no harm if both do.
//
// What a disk holds dirty is all that is known after a restart: each such block
// is looked for in the bucket, and uploaded if it is not there. So whatever
// happens to any one member at any moment, loss of its disk included, what was
// acknowledged stays readable and reaches the bucket.
//
// When two members cannot keep a block, because there is but one, or a disk has
// no room, it is put into the bucket before the answer: write-through.
package writeback

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"flexfs/store"
)

// Local is the disk of this proxy. Its methods may be called concurrently.
type Local interface {
	// Get returns the bytes that the disk itself holds, if the context is of
	// [store.WithLocal]; with [store.WithVerify] only if they pass their
	// checksum. Otherwise the error wraps [store.ErrNotExist] or
	// [store.ErrCorrupt].
	Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error)

	// PutDirty stores a block. When it returns nil the block is on stable
	// storage, is found by reads, and stays, also over restarts, until Clean.
	// If it fails the block may be there nevertheless. It does not use data
	// any more when it has returned.
	PutDirty(ctx context.Context, key store.Key, data []byte) error

	// Clean says that the bucket has the block. Its copy may go. Cleaning a
	// block that is not dirty does nothing. A block may be dirty again after
	// a crash.
	Clean(key store.Key)

	// Dirty returns the dirty blocks, oldest first. It is complete when
	// Scanned is closed; until then blocks of an earlier run may be missing.
	Dirty() []store.DirtyBlock
	IsDirty(key store.Key) bool
	Scanned() <-chan struct{}
}

// Peers are the other members of the group. The context of each call has the
// values of the context of a Put or Keep of a block of the same volume, if there
// was one since the start. Methods may be called concurrently, and return when
// their context ends.
type Peers interface {
	// Copy has the best other member that can be reached keep a durable copy,
	// and returns its address. If it fails, a member may have a copy
	// nevertheless. An error that wraps [errors.ErrUnsupported] says that
	// there is no other member.
	Copy(ctx context.Context, key store.Key, data []byte) (peer string, err error)

	// Uploaded tells peer that the bucket has the blocks, which are of one
	// volume and at most [MaxBatch].
	Uploaded(ctx context.Context, peer string, keys []store.Key) error

	// Pending asks peer whether it has the block and is going to upload it.
	Pending(ctx context.Context, peer string, key store.Key) (bool, error)

	// Down reports whether peer is known not to answer. It asks nobody.
	Down(peer string) bool
}

// MaxBatch bounds the blocks of which a peer is told at once.
const MaxBatch = 500

// Config is what a [Store] needs.
type Config struct {
	Self   string      // this proxy's address, as other members are told it; "": not known
	Blocks store.Store // the tiers, with the bucket below them: for reads, and to delete
	Local  Local
	Peers  Peers
	Bucket store.Store

	// WriteThrough reports whether blocks of the volume are not to be
	// acknowledged before the bucket has them. Nil: none. What is dirty
	// already is not affected.
	WriteThrough func(store.Volume) bool

	// Memory bounds the bytes of blocks that are kept in memory until they are
	// uploaded, so that they need not be read from the disk again. Default
	// 64 MiB. Uploads of others take up to 128 MiB more.
	Memory int64

	Log    *slog.Logger // nil: nothing is logged
	Timing Timing       // zero fields have the defaults
}

// Timing says how long a Store waits for what.
type Timing struct {
	Takeover time.Duration // for the news that a block was uploaded, before its proxy is asked; default 15 s
	Patience time.Duration // for the two copies of a Put, before the bucket is turned to as well; default 3 s
	Batch    time.Duration // that the news of an upload waits for more; default 50 ms
	Answer   time.Duration // for a peer's answer to a question or news; default 5 s
	Upload   time.Duration // for one attempt of an upload; default 2 minutes
	Retry    time.Duration // after a first failure; doubled after each further one; default 500 ms
	MaxRetry time.Duration // that Retry grows to; default 15 s
	Report   time.Duration // between two log lines that say the same; default 1 minute
}

func (t *Timing) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Takeover, 15 * time.Second},
		{&t.Patience, 3 * time.Second},
		{&t.Batch, 50 * time.Millisecond},
		{&t.Answer, 5 * time.Second},
		{&t.Upload, 2 * time.Minute},
		{&t.Retry, 500 * time.Millisecond},
		{&t.MaxRetry, 15 * time.Second},
		{&t.Report, time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

const defaultMemory = 64 << 20 // bytes

// Store is the blocks of a proxy: a [store.Store] whose Put returns when the
// block is on two members. It also is what other members ask and tell: Keep,
// Uploaded, Pending. All methods may be called concurrently.
//
// Somebody must call Run, once, which uploads. Without it blocks stay dirty.
type Store struct {
	cfg   Config
	count counters
	wake  chan struct{} // something is to be done; holds one

	// Nobody calls Local, Peers or Bucket while holding mu.
	mu       sync.Mutex
	blocks   map[store.Key]*block     // dirty ones, and those that are being put; guarded by mu
	volumes  map[store.Volume]*volume // guarded by mu
	order    []*volume                // the same; guarded by mu
	turn     int                      // whose turn it is in order; guarded by mu
	timed    timed                    // guarded by mu
	asks     map[string][]*block      // blocks that a peer is to be asked about, by peer; guarded by mu
	asking   map[string]bool          // peers that are being asked; guarded by mu
	news     map[mailbox]*mail        // guarded by mu
	sending  int                      // mails on their way; guarded by mu
	active   int                      // uploads at work; guarded by mu
	held     int64                    // bytes of blocks kept in memory; guarded by mu
	draining int                      // Drains at work; guarded by mu
	stopped  bool                     // Run has ended; guarded by mu
	losses   report                   // of blocks that cannot be read; guarded by mu
	took     report                   // of blocks taken over; guarded by mu
	quiet    chan struct{}            // closed when there is nothing left to do, then replaced; guarded by mu
}

// New returns a Store. It does nothing by itself: see Run.
func New(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.WriteThrough == nil {
		cfg.WriteThrough = func(store.Volume) bool { return false }
	}
	if cfg.Memory <= 0 {
		cfg.Memory = defaultMemory
	}
	cfg.Timing.setDefaults()
	return &Store{
		cfg:     cfg,
		wake:    make(chan struct{}, 1),
		blocks:  make(map[store.Key]*block),
		volumes: make(map[store.Volume]*volume),
		asks:    make(map[string][]*block),
		asking:  make(map[string]bool),
		news:    make(map[mailbox]*mail),
		quiet:   make(chan struct{}),
	}
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	return s.cfg.Blocks.Get(ctx, key, off, n)
}

// GetFrames implements [store.FrameGetter].
func (s *Store) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	return store.GetFrames(ctx, s.cfg.Blocks, key, off, n)
}

// Delete implements [store.Store]. The block is not uploaded any more, unless
// another member does it that has heard of no upload.
func (s *Store) Delete(ctx context.Context, key store.Key) error {
	return s.DeleteAll(ctx, []store.Key{key})
}

// DeleteAll implements [store.BulkDeleter].
func (s *Store) DeleteAll(ctx context.Context, keys []store.Key) error {
	for _, key := range keys {
		if err := s.giveUp(ctx, key); err != nil {
			return err
		}
	}
	return store.DeleteAll(ctx, s.cfg.Blocks, keys)
}

// giveUp has a block not be uploaded any more. It waits for an upload that is
// under way, which might bring the block back after it was deleted.
func (s *Store) giveUp(ctx context.Context, key store.Key) error {
	s.mu.Lock()
	b := s.blocks[key]
	if b == nil {
		s.mu.Unlock()
		return nil
	}
	b.deleted = true
	if b.where != uploading {
		s.remove(b, true)
		s.mu.Unlock()
		return nil
	}
	done := b.done
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// poke wakes Run.
func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
