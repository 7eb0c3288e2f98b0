package writeback

import (
	"context"
	"sync"
	"time"

	"flexfs/store"
)

const (
	// maxUploads bounds the uploads at work: at most maxUploads × 8 MiB that
	// are read from the disk for them.
	maxUploads = 16

	// maxOfVolume bounds those of one volume: when its bucket stops to
	// answer, some are left for the others until that is noticed.
	maxOfVolume = 12

	// maxTrying bounds those to buckets that fail, of which each volume has
	// one: some are left for those that work.
	maxTrying = 6

	// newest is how often the newest block is taken instead of the oldest: of
	// a long queue both ends get on.
	newest = 4

	// watchEvery is how often it is looked, while there are copies of others,
	// whether one of these is known to be down.
	watchEvery = time.Second
)

// Run uploads what is dirty, tells the peers, and takes over what they leave,
// until ctx ends. Then it ends what is under way and waits for that; what is
// still dirty waits on the disk for the next start. It is to be called once.
func (s *Store) Run(ctx context.Context) {
	defer s.stop()
	var work sync.WaitGroup
	defer work.Wait()
	scanned := s.cfg.Local.Scanned()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var sweep, watch time.Time // when they are due
	for {
		now := time.Now()
		if !now.Before(sweep) {
			s.sweep()
			sweep = now.Add(s.cfg.Timing.Takeover)
		}
		if !now.Before(watch) {
			s.watchPeers()
			watch = now.Add(watchEvery)
		}
		next, copies := s.start(ctx, &work, now)
		if copies {
			next = earliest(next, watch)
		}
		timer.Reset(max(0, time.Until(earliest(next, sweep))))
		select {
		case <-ctx.Done():
			return
		case <-scanned:
			scanned, sweep = nil, time.Time{}
		case <-s.wake:
		case <-timer.C:
		}
	}
}

func (s *Store) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
}

// earliest returns the earlier time; zero is never.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// sweep takes in the dirty blocks that nobody knows about: those of an earlier
// run, and those of a write that failed half way.
func (s *Store) sweep() {
	dirty := s.cfg.Local.Dirty()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range dirty {
		if s.blocks[d.Key] == nil {
			b := s.blockOf(d.Key, d.Since)
			b.look = true
			s.enqueue(b)
		}
	}
}

// start begins all that is due now. It returns when the next is, and whether
// there may be copies of others.
func (s *Store) start(ctx context.Context, work *sync.WaitGroup, now time.Time) (next time.Time, copies bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.timed) > 0 && !s.timed[0].due.After(now) {
		if b := s.timed[0]; b.own {
			s.move(b, ready)
		} else {
			s.move(b, asking)
			s.asks[b.from] = append(s.asks[b.from], b)
		}
	}
	if len(s.timed) > 0 {
		next = s.timed[0].due
	}
	for peer := range s.asks {
		if !s.asking[peer] {
			s.asking[peer] = true
			work.Go(func() { s.ask(ctx, peer) })
		}
	}
	next = earliest(next, s.uploads(ctx, work, now))
	return earliest(next, s.mails(ctx, work, now)), len(s.timed) > 0
}

// uploads begins uploads. It returns when one can be begun for which it is too
// early now. s.mu must be held.
func (s *Store) uploads(ctx context.Context, work *sync.WaitGroup, now time.Time) (next time.Time) {
	for s.active < maxUploads {
		v, later := s.pick(now)
		if v == nil {
			return later
		}
		b := v.take()
		s.move(b, uploading)
		v.active++
		s.active++
		own, cancel := background(ctx, v.values, s.cfg.Timing.Upload)
		b.done = make(chan struct{})
		u := upload{block: b, data: b.data, look: b.look}
		work.Go(func() {
			defer cancel()
			s.run(own, u)
		})
	}
	return time.Time{}
}

// pick returns the volume whose turn it is, or nil and when there will be one
// again, if that depends on the time. s.mu must be held.
func (s *Store) pick(now time.Time) (*volume, time.Time) {
	trying := 0
	for _, v := range s.order {
		if v.failures > 0 {
			trying += v.active
		}
	}
	var later time.Time
	for range s.order {
		s.turn = (s.turn + 1) % len(s.order)
		v := s.order[s.turn]
		switch {
		case v.ready.Len() == 0 || v.active >= maxOfVolume:
		case v.failures == 0:
			return v, time.Time{}
		case v.active > 0 || trying >= maxTrying:
		case now.Before(v.until):
			later = earliest(later, v.until)
		default:
			return v, time.Time{}
		}
	}
	return nil, later
}

// take returns the block to be uploaded next: the oldest, but now and then the
// newest, and also after a failure: it may have been the block's own fault. The
// Store's mu must be held.
func (v *volume) take() *block {
	v.takes++
	e := v.ready.Front()
	if v.takes%newest == 0 || v.failures > 0 {
		e = v.ready.Back()
	}
	return e.Value.(*block)
}

// background returns the context of work that Run does: it has the values of one
// context, and ends with another, or after a time.
func background(run, values context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(values, limit)
	stop := context.AfterFunc(run, cancel)
	return ctx, func() { stop(); cancel() }
}

// Drain uploads all that is dirty here, copies too, and returns nil when there is
// nothing left, and the peers have been told. Until it returns, the Store takes
// no copies and writes through. If ctx ends before, it returns the cause; the rest
// stays on the disk. Run must be running.
func (s *Store) Drain(ctx context.Context) error {
	s.leave(1)
	defer s.leave(-1)
	select {
	case <-s.cfg.Local.Scanned():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		s.sweep()
		s.mu.Lock()
		left, quiet := len(s.blocks)+len(s.news), s.quiet
		s.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-quiet:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave begins or ends a Drain: all copies are this proxy's to upload.
func (s *Store) leave(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining += n
	if s.draining == 0 {
		return
	}
	for _, b := range s.blocks {
		if !b.own && b.where != idle {
			b.look = true
			s.enqueue(b)
		}
	}
}

// watchPeers has the copies of peers that are down be dealt with at once.
func (s *Store) watchPeers() {
	s.mu.Lock()
	peers := make(map[string]bool)
	for _, b := range s.timed {
		if !b.own {
			peers[b.from] = false
		}
	}
	s.mu.Unlock()
	for peer := range peers {
		peers[peer] = s.cfg.Peers.Down(peer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*block
	for _, b := range s.timed {
		if !b.own && peers[b.from] {
			due = append(due, b)
		}
	}
	for _, b := range due {
		s.move(b, asking)
		s.asks[b.from] = append(s.asks[b.from], b)
	}
}

var _ store.Store = (*Store)(nil)
