package writeback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// Put implements [store.Store]. It returns nil when the block is on the stable
// storage of this proxy and of another, or in the bucket; the bucket is turned
// to when one of the two fails or takes long. If Put fails, the block may be
// uploaded nevertheless.
func (s *Store) Put(ctx context.Context, key store.Key, data []byte) error {
	if s.cfg.WriteThrough(key.Volume) || s.isDraining() {
		s.count.asked.Add(1)
		return s.cfg.Blocks.Put(ctx, key, data)
	}
	b := s.begin(ctx, key)
	w := &write{store: s, key: key, data: data}
	err := w.run(ctx)
	s.end(b, w)
	return err
}

func (s *Store) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining > 0
}

// begin notes that a block is being put. From now on it counts as pending here.
func (s *Store) begin(ctx context.Context, key store.Key) *block {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blockOf(key, time.Now())
	b.volume.values = context.WithoutCancel(ctx)
	b.putting++
	b.own, b.deleted, b.lost = true, false, false
	return b
}

// end notes how the Put went: the block has to be uploaded, or is in the bucket,
// or is nowhere.
func (s *Store) end(b *block, w *write) {
	dirty := w.both() || s.cfg.Local.IsDirty(w.key)
	if dirty && w.stored {
		s.cfg.Local.Clean(w.key)
		dirty = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.putting--
	b.addPeer(w.peer)
	if dirty && !b.deleted {
		if w.held != nil && b.data == nil {
			b.data, w.held = w.held, nil
		}
		s.enqueue(b)
	}
	s.unhold(w.held)
	if b.putting == 0 && b.where != uploading && (!dirty || b.deleted) {
		s.remove(b, w.stored || b.deleted)
	}
}

// A write is a Put that is under way, in up to three ways at once.
type write struct {
	store *Store
	key   store.Key
	data  []byte

	work   sync.WaitGroup
	local  chan error
	copies chan copied
	bucket chan error

	kept    bool   // it is here, durably
	peer    string // who has a copy, durably
	stored  bool   // the bucket has it
	through bool   // the bucket has been turned to
	refused bool   // and has failed
	halved  bool   // one of the two copies has failed
	errs    []error
	held    []byte // a copy of data, if there is memory for it
}

// copied is the result of Peers.Copy.
type copied struct {
	peer string
	err  error
}

// both reports whether two members have the block.
func (w *write) both() bool { return w.kept && w.peer != "" }

// run writes the block. Nobody uses its data any more when it returns.
func (w *write) run(parent context.Context) error {
	ctx, cancel := context.WithCancel(parent)
	w.local, w.copies, w.bucket = make(chan error, 1), make(chan copied, 1), make(chan error, 1)
	w.work.Go(func() { w.local <- w.store.cfg.Local.PutDirty(ctx, w.key, w.data) })
	w.work.Go(func() {
		peer, err := w.store.cfg.Peers.Copy(ctx, w.key, w.data)
		w.copies <- copied{peer, err}
	})
	w.held = w.store.hold(w.data)
	err := w.wait(ctx)
	cancel()
	w.work.Wait()
	w.settle()
	return err
}

// wait waits until the block is on two disks, or in the bucket, or can come to
// neither.
func (w *write) wait(ctx context.Context) error {
	patience := time.NewTimer(w.store.cfg.Timing.Patience)
	defer patience.Stop()
	for {
		select {
		case err := <-w.local:
			w.hearLocal(ctx, err)
		case c := <-w.copies:
			w.hearCopy(ctx, c)
		case <-patience.C:
			w.turn(ctx, &w.store.count.late)
		case err := <-w.bucket:
			w.hearBucket(err)
		}
		switch {
		case w.stored:
			return nil
		case w.both():
			w.store.count.acknowledged.Add(1)
			w.store.count.acknowledgedBytes.Add(int64(len(w.data)))
			return nil
		case w.refused && w.halved:
			return fmt.Errorf("writeback: put %v: %w", w.key, errors.Join(w.errs...))
		}
	}
}

func (w *write) hearLocal(ctx context.Context, err error) {
	if w.kept = err == nil; !w.kept {
		w.halve(ctx, &w.store.count.noRoom, err)
	}
}

func (w *write) hearCopy(ctx context.Context, c copied) {
	switch {
	case c.err == nil && c.peer != "":
		w.peer = c.peer
	case c.err == nil:
		w.halve(ctx, &w.store.count.peer, errors.New("a copy is kept nobody knows where"))
	case errors.Is(c.err, errors.ErrUnsupported):
		w.halve(ctx, &w.store.count.alone, c.err)
	default:
		w.halve(ctx, &w.store.count.peer, c.err)
	}
}

func (w *write) hearBucket(err error) {
	if w.stored = err == nil; !w.stored {
		w.refused = true
		w.errs = append(w.errs, err)
	}
}

// halve notes that there will not be two copies.
func (w *write) halve(ctx context.Context, cause *atomic.Int64, err error) {
	w.halved = true
	w.errs = append(w.errs, err)
	w.turn(ctx, cause)
}

// turn turns to the bucket, for the given cause.
func (w *write) turn(ctx context.Context, cause *atomic.Int64) {
	if w.through {
		return
	}
	w.through = true
	cause.Add(1)
	w.work.Go(func() { w.bucket <- w.store.cfg.Bucket.Put(ctx, w.key, w.data) })
}

// settle takes in what has happened since the outcome was known.
func (w *write) settle() {
	select {
	case err := <-w.local:
		w.kept = err == nil
	default:
	}
	select {
	case c := <-w.copies:
		w.peer = c.peer
	default:
	}
	select {
	case err := <-w.bucket:
		w.stored = w.stored || err == nil
	default:
	}
}
