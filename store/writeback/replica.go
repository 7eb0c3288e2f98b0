package writeback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flexfs/store"
)

// Why a proxy takes no copy.
var (
	errLeaving = errors.New("this proxy is about to leave") // it gets rid of what it has
	errSelf    = errors.New("this proxy has taken the block itself: its group lists it under two addresses")
)

// Keep stores a copy of a block that the proxy at the address from has taken and
// will upload. When it returns nil the copy is on stable storage, and will be
// uploaded from here should from not do it. If it fails, for lack of room, there
// may be a copy nevertheless. It neither keeps nor changes data.
func (s *Store) Keep(ctx context.Context, key store.Key, data []byte, from string) error {
	if from == s.cfg.Self && from != "" {
		return errSelf // the same disk twice is not two
	}
	s.mu.Lock()
	if s.draining > 0 {
		s.mu.Unlock()
		return errLeaving
	}
	b := s.blockOf(key, time.Now())
	b.volume.values = context.WithoutCancel(ctx)
	b.putting++
	s.mu.Unlock()
	err := s.cfg.Local.PutDirty(ctx, key, data)
	dirty := err == nil || s.cfg.Local.IsDirty(key)
	s.kept(b, from, dirty)
	if err != nil {
		return fmt.Errorf("writeback: keep a copy of %v: %w", key, err)
	}
	s.count.copies.Add(1)
	s.count.copiesBytes.Add(int64(len(data)))
	return nil
}

// kept notes whether there is a copy now: then it waits for from.
func (s *Store) kept(b *block, from string, dirty bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.putting--
	switch {
	case !dirty && b.putting == 0 && b.where == idle:
		s.remove(b, false)
	case !dirty || b.own && b.where != idle:
		// Nothing new: it is not there, or is uploaded from here.
	case b.own && b.putting > 0:
		// The Put at work decides.
	case b.own || s.draining > 0:
		s.enqueue(b)
	default:
		b.from, b.lost = from, false
		s.await(b, time.Now().Add(s.cfg.Timing.Takeover+jitter(s.cfg.Timing.Takeover/2)))
	}
}

// Uploaded says that the bucket has the blocks: copies of them are dirty no
// more. It never fails.
func (s *Store) Uploaded(_ context.Context, keys []store.Key) error {
	for _, key := range keys {
		s.cfg.Local.Clean(key)
		s.mu.Lock()
		if b := s.blocks[key]; b != nil && b.putting == 0 && b.where != uploading {
			s.remove(b, true)
		}
		s.mu.Unlock()
	}
	return nil
}

// Pending reports whether this proxy has the block and is going to upload it. It
// says no if it has not been able to for long, so that another one tries.
func (s *Store) Pending(key store.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blocks[key]
	if b == nil || !b.own || b.lost || b.deleted || s.stopped {
		return false
	}
	v := b.volume
	return v.failures == 0 || time.Since(v.since) < helpless*s.cfg.Timing.Takeover
}

// helpless is after how many times Timing.Takeover without a successful upload a
// proxy does not claim any more that it will upload a volume's blocks.
const helpless = 20
