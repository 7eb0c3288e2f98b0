package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxTrials bounds the operations that try, during an outage, whether it is
	// over. The others fail at once, so that nothing piles up behind a store that
	// does not answer, and what caches hold stays within reach.
	maxTrials = 4

	// trialTime is how long an operation may take that begins when the outage was
	// given up already.
	trialTime = 3 * time.Second

	// outagePause is how long an operation waits before it tries again.
	outagePause = time.Second
)

// An Outage knows whether a store fails, and since when. [Outage.Watch] goes
// around the store itself, below all caches; [Outage.Outlast] is for those who
// would rather wait than see an error, above them.
//
// Gets and Puts are told apart: a store that is full, or of which caches answer
// for some blocks, may do the one and not the other.
type Outage struct {
	limit time.Duration
	log   *slog.Logger
	gets  outage
	puts  outage
}

// outage is the state of one kind of operation.
type outage struct {
	what string

	mu     sync.Mutex
	since  time.Time     // of the first failure after the last success; zero: there is none
	last   error         // the newest failure
	trials int           // operations that try whether it is over
	back   chan struct{} // closed when it is over
}

// NewOutage returns an Outage that is given up after limit: from then on, until
// the store is back, operations fail. Zero is never.
func NewOutage(limit time.Duration, log *slog.Logger) *Outage {
	o := &Outage{limit: limit, log: log}
	o.gets.what, o.puts.what = "read", "written"
	return o
}

// Away returns for how long the store has failed: 0 if it does not.
func (o *Outage) Away() time.Duration { return max(o.gets.away(), o.puts.away()) }

func (k *outage) away() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.awayLocked()
}

func (k *outage) awayLocked() time.Duration {
	if k.since.IsZero() {
		return 0
	}
	return max(time.Since(k.since), 1)
}

// A failure is an error of the store itself, in distinction from an answer, and
// from what went wrong above it.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// enter begins an operation. During an outage only some get through.
func (k *outage) enter() (trial bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.since.IsZero():
		return false, nil
	case k.trials == maxTrials:
		return false, &failure{fmt.Errorf("store: not tried, since others fail: %w", k.last)}
	}
	k.trials++
	return true, nil
}

// leave notes what came of an operation, and marks what is a failure.
func (k *outage) leave(ctx context.Context, log *slog.Logger, trial bool, err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if trial {
		k.trials--
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return err // whose fault it is is not known
	case err == nil || isAnswer(ctx, err):
		if away := k.awayLocked(); away > 0 {
			log.Info("blocks can be "+k.what+" again", "after", away.Round(time.Second))
			k.since, k.last = time.Time{}, nil
			close(k.back)
		}
		return err
	}
	k.beginLocked(log, time.Now(), err)
	return &failure{err}
}

// do does op on the store that is watched.
func (o *Outage) do(ctx context.Context, k *outage, op func() error) error {
	trial, err := k.enter()
	if err != nil {
		return err
	}
	return k.leave(ctx, o.log, trial, op())
}

// outlast does op until it does not fail with a failure of the store, ctx ends,
// or the outage is given up.
func (o *Outage) outlast(ctx context.Context, k *outage, op func(context.Context) error) error {
	began := time.Now()
	for {
		waited := max(time.Since(began), k.away())
		err, late := o.within(ctx, waited, op)
		if late {
			err = k.blame(o.log, began, err)
		}
		var f *failure
		if err == nil || ctx.Err() != nil || !errors.As(err, &f) {
			return err
		}
		wait := outagePause
		if o.limit > 0 {
			waited := max(time.Since(began), k.away())
			if waited >= o.limit {
				return fmt.Errorf("store: given up after %v: %w", waited.Round(time.Second), err)
			}
			wait = min(wait, o.limit-waited)
		}
		if !k.pause(ctx, wait) {
			return fmt.Errorf("store: %w while waiting for the end of: %w", context.Cause(ctx), err)
		}
	}
}

// within does op for as long as is left of the limit, and reports whether it took
// longer.
func (o *Outage) within(ctx context.Context, waited time.Duration, op func(context.Context) error) (err error, late bool) {
	if o.limit == 0 {
		return op(ctx), false
	}
	bounded, cancel := context.WithTimeout(ctx, max(o.limit-waited, trialTime))
	defer cancel()
	err = op(bounded)
	return err, err != nil && bounded.Err() != nil && ctx.Err() == nil
}

// blame notes that an operation that began at that time did not end in time.
func (k *outage) blame(log *slog.Logger, began time.Time, err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.beginLocked(log, began, err)
	return &failure{err}
}

// beginLocked notes a failure. k.mu is held.
func (k *outage) beginLocked(log *slog.Logger, since time.Time, err error) {
	k.last = err
	if k.since.IsZero() {
		log.Warn("blocks cannot be "+k.what+": what needs to waits", "err", err)
		k.since, k.back = since, make(chan struct{})
	}
}

// pause waits for d or for the end of the outage, and reports whether ctx
// outlived it.
func (k *outage) pause(ctx context.Context, d time.Duration) bool {
	k.mu.Lock()
	back := k.back
	if k.since.IsZero() {
		back = nil // it is over, and the operation failed all the same
	}
	k.mu.Unlock()
	t := time.NewTimer(jitter(d))
	defer t.Stop()
	select {
	case <-back:
		return true
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Watch returns s, seen by o. s should try more than once before it fails.
func (o *Outage) Watch(s Store) Store { return &watched{o, s} }

type watched struct {
	o    *Outage
	next Store
}

func (w *watched) Get(ctx context.Context, key Key, off, n int64) (data []byte, err error) {
	err = w.o.do(ctx, &w.o.gets, func() error { data, err = w.next.Get(ctx, key, off, n); return err })
	return data, err
}

func (w *watched) GetFrames(ctx context.Context, key Key, off, n int64) (head, frames []byte, err error) {
	err = w.o.do(ctx, &w.o.gets, func() error { head, frames, err = GetFrames(ctx, w.next, key, off, n); return err })
	return head, frames, err
}

func (w *watched) Put(ctx context.Context, key Key, data []byte) error {
	return w.o.do(ctx, &w.o.puts, func() error { return w.next.Put(ctx, key, data) })
}

func (w *watched) Delete(ctx context.Context, key Key) error { return w.next.Delete(ctx, key) }

// Outlast returns a Store whose Gets and Puts wait until what they need is back,
// however often that fails, for as long as the outage is not given up. Its errors
// wrap those of s.
func (o *Outage) Outlast(s Store) Store { return &outlasting{o, s} }

type outlasting struct {
	o    *Outage
	next Store
}

func (w *outlasting) Get(ctx context.Context, key Key, off, n int64) (data []byte, err error) {
	err = w.o.outlast(ctx, &w.o.gets, func(ctx context.Context) error { data, err = w.next.Get(ctx, key, off, n); return err })
	return data, err
}

// Peek passes the question on: what is in memory is there in an outage, too.
func (w *outlasting) Peek(key Key, off, n int64) ([]byte, bool) { return Peek(w.next, key, off, n) }

func (w *outlasting) Put(ctx context.Context, key Key, data []byte) error {
	return w.o.outlast(ctx, &w.o.puts, func(ctx context.Context) error { return w.next.Put(ctx, key, data) })
}

func (w *outlasting) Borrow(ctx context.Context, key Key, l *Loan) error {
	return w.o.outlast(ctx, &w.o.puts, func(ctx context.Context) error { return Lend(ctx, w.next, key, l) })
}

func (w *outlasting) Delete(ctx context.Context, key Key) error { return w.next.Delete(ctx, key) }
