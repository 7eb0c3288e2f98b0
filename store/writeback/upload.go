package writeback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flexfs/store"
)

// An upload is what a goroutine does with a block.
type upload struct {
	block *block
	data  []byte // nil: to be read from the disk
	look  bool   // look whether the bucket has it
}

// Outcomes of an upload.
var (
	errThere = errors.New("the bucket has it already")
	errGone  = errors.New("it is not dirty any more")
	errLost  = errors.New("the copy here cannot be read")
)

// run does an upload.
func (s *Store) run(ctx context.Context, u upload) {
	size, err := s.put(ctx, u)
	if err == nil || err == errThere {
		s.finished(u.block, size, err == errThere)
	} else {
		s.failed(ctx, u.block, err)
	}
}

// put brings the block into the bucket.
func (s *Store) put(ctx context.Context, u upload) (size int, err error) {
	key := u.block.key
	if u.look {
		_, err := s.cfg.Bucket.Get(ctx, key, 0, 0)
		if err == nil {
			return 0, errThere
		}
		if !errors.Is(err, store.ErrNotExist) {
			return 0, err
		}
	}
	data := u.data
	if data == nil {
		data, err = s.cfg.Local.Get(store.WithVerify(store.WithLocal(ctx)), key, 0, -1)
		switch {
		case err != nil && ctx.Err() != nil:
			return 0, err
		case err != nil && !s.cfg.Local.IsDirty(key):
			return 0, errGone
		case err != nil:
			return 0, fmt.Errorf("%w: %w", errLost, err)
		}
	}
	return len(data), s.cfg.Bucket.Put(ctx, key, data)
}

// finished notes that the bucket has the block: first here, then, by and by,
// where the copies are.
func (s *Store) finished(b *block, size int, found bool) {
	if found {
		s.count.found.Add(1)
	} else {
		s.count.uploads.Add(1)
		s.count.uploadedBytes.Add(int64(size))
	}
	lag := time.Since(b.since)
	s.count.lag.Store(int64(lag))
	s.count.lagSum.Add(int64(lag))
	s.cfg.Local.Clean(b.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	v := b.volume
	if v.failures > 0 {
		s.cfg.Log.Info("the bucket of a volume takes blocks again", "volume", v.id.String(), "waiting", v.ready.Len(), "failed_for", time.Since(v.since).Round(time.Second))
	}
	v.failures, v.report = 0, report{}
	s.landed(b)
	if b.again && !b.deleted {
		b.again, b.attempts = false, 0
		s.move(b, ready)
		return
	}
	s.remove(b, true)
}

// failed notes that the block is not in the bucket.
func (s *Store) failed(ctx context.Context, b *block, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.landed(b)
	switch {
	case b.deleted:
		s.remove(b, true)
		return
	case err == errGone:
		s.remove(b, false)
		return
	case errors.Is(err, errLost):
		s.lose(b, err)
		b.attempts++
	case ctx.Err() != context.Canceled: // then Run has ended
		s.bucketFailed(b.volume, err)
		b.attempts++
	}
	b.look, b.again = true, false
	s.release(b)
	s.await(b, time.Now().Add(s.cfg.Timing.pause(b.attempts)))
}

// lose notes that the block cannot be read here, for now. s.mu must be held.
func (s *Store) lose(b *block, err error) {
	if b.lost {
		return
	}
	b.lost = true
	s.count.lost.Add(1)
	if n, ok := s.losses.due(1, s.cfg.Timing.Report); ok {
		s.cfg.Log.Error("blocks that wait for their upload cannot be read here; the other members that have them are to upload them", "blocks", n, "one", b.key.String(), "err", err)
	}
}

// bucketFailed notes that a volume's bucket has failed: it is left alone for a
// while. s.mu must be held.
func (s *Store) bucketFailed(v *volume, err error) {
	s.count.failures.Add(1)
	if v.failures == 0 {
		v.since = time.Now()
	}
	v.failures++
	v.until = time.Now().Add(s.cfg.Timing.pause(v.failures))
	if n, ok := v.report.due(1, s.cfg.Timing.Report); ok {
		s.cfg.Log.Warn("the bucket of a volume does not take blocks, which wait on the disk", "volume", v.id.String(),
			"waiting", v.ready.Len()+1, "failures", n, "since", v.since, "err", err)
	}
}

// landed notes that an upload has ended. s.mu must be held.
func (s *Store) landed(b *block) {
	b.volume.active--
	s.active--
	close(b.done)
	s.move(b, idle)
}
