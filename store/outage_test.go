package store_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A bucket that can go away, and be slow to say so.
type away struct {
	store.Store
	gone  atomic.Bool
	calls atomic.Int64
	slow  time.Duration
}

var errAway = errors.New("the bucket is away")

func (a *away) try() error {
	a.calls.Add(1)
	if !a.gone.Load() {
		return nil
	}
	time.Sleep(a.slow)
	return errAway
}

func (a *away) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if err := a.try(); err != nil {
		return nil, err
	}
	return a.Store.Get(ctx, key, off, n)
}

func (a *away) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := a.try(); err != nil {
		return err
	}
	return a.Store.Put(ctx, key, data)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestOutlast(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		o := store.NewOutage(0, quiet())
		return o.Outlast(o.Watch(mem.New(t)))
	})
}

func TestABucketThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &away{Store: mem.New(t)}
		o := store.NewOutage(0, quiet())
		s := o.Outlast(o.Watch(bucket))
		key := store.Key{Ino: 1}
		bucket.gone.Store(true)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Put(t.Context(), key, []byte("x")); err != nil {
				t.Errorf("a write that had to wait: %v", err)
			}
		})
		time.Sleep(24 * time.Hour)
		if got := o.Away().Round(time.Second); got != 24*time.Hour {
			t.Errorf("it is away for %v, want a day", got)
		}
		bucket.gone.Store(false)
		began := time.Now()
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second || o.Away() != 0 {
			t.Errorf("that it is back is noticed after %v; away for %v", took, o.Away())
		}
		if _, err := s.Get(t.Context(), key, 0, -1); err != nil {
			t.Error(err)
		}
	})
}

func TestWhoWaitsForABucketCanBeInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &away{Store: mem.New(t)}
		bucket.gone.Store(true)
		o := store.NewOutage(0, quiet())
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := o.Outlast(o.Watch(bucket)).Get(ctx, store.Key{}, 0, -1)
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

func TestABucketThatStaysAwayIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 5 * time.Minute
		bucket := &away{Store: mem.New(t)}
		bucket.gone.Store(true)
		o := store.NewOutage(limit, quiet())
		s := o.Outlast(o.Watch(bucket))
		for i, want := range []time.Duration{limit, 0} { // the second waits for nothing
			began := time.Now()
			err := s.Put(t.Context(), store.Key{}, nil)
			if took := time.Since(began).Round(time.Second); !errors.Is(err, errAway) || took != want {
				t.Errorf("write %d: after %v, want %v: %v", i, took, want, err)
			}
		}
		bucket.gone.Store(false)
		if err := s.Put(t.Context(), store.Key{}, nil); err != nil {
			t.Errorf("it is back: %v", err)
		}
	})
}

// One that hangs, and does not even say so, is given up as well.
func TestABucketThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 5 * time.Minute
		o := store.NewOutage(limit, quiet())
		s := o.Outlast(o.Watch(hung{}))
		for i, most := range []time.Duration{limit, 10 * time.Second} {
			began := time.Now()
			err := s.Put(t.Context(), store.Key{}, nil)
			if took := time.Since(began); err == nil || took > most || o.Away() < limit {
				t.Errorf("write %d: after %v, want at most %v: %v; away for %v", i, took, most, err, o.Away())
			}
		}
	})
}

// hung does not answer.
type hung struct{ store.Store }

func (hung) Put(ctx context.Context, _ store.Key, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

// What a bucket says about a block is an answer, outage or not.
func TestAnswersAreNotOutages(t *testing.T) {
	for _, answer := range []error{store.ErrNotExist, store.ErrCorrupt, fs.ErrPermission} {
		s := &stub{errs: []error{answer}}
		o := store.NewOutage(0, quiet())
		if _, err := o.Outlast(o.Watch(s)).Get(t.Context(), store.Key{}, 0, -1); !errors.Is(err, answer) || o.Away() != 0 {
			t.Errorf("after %q: %v, away for %v", answer, err, o.Away())
		}
	}
	// And what goes wrong above the store has nothing to do with it.
	s := &stub{errs: []error{errFlaky}}
	o := store.NewOutage(0, quiet())
	if _, err := o.Outlast(s).Get(t.Context(), store.Key{}, 0, -1); !errors.Is(err, errFlaky) {
		t.Errorf("the error is %v", err)
	}
}

// Behind a store that does not even refuse, few operations hang: the others wait
// without holding anything.
func TestFewOperationsTryDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := &away{Store: mem.New(t), slow: time.Minute}
		bucket.gone.Store(true)
		o := store.NewOutage(0, quiet())
		watched := o.Watch(bucket)
		watched.Put(t.Context(), store.Key{}, nil)
		bucket.calls.Store(0)
		var failed atomic.Int64
		for range 100 {
			go func() {
				if watched.Put(t.Context(), store.Key{}, nil) != nil {
					failed.Add(1)
				}
			}()
		}
		synctest.Wait()
		if tried, failed := bucket.calls.Load(), failed.Load(); tried > 10 || failed != 100-tried {
			t.Errorf("%d of 100 try, %d failed at once", tried, failed)
		}
		time.Sleep(time.Hour)
	})
}
