package store_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func TestLimit(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return store.Limit(mem.New(t), 2) })
}

// flaky fails every second operation: half of those that fail were done.
type flaky struct {
	store.Store
	n atomic.Int64
}

func (f *flaky) do(op func() error) error {
	switch f.n.Add(1) % 4 {
	case 1:
		return errFlaky // the request did not arrive
	case 3:
		return errors.Join(op(), errFlaky) // the answer was lost
	}
	return op()
}

func (f *flaky) Get(ctx context.Context, key store.Key, off, n int64) (data []byte, err error) {
	err = f.do(func() error {
		data, err = f.Store.Get(ctx, key, off, n)
		return err
	})
	return data, err
}

func (f *flaky) Put(ctx context.Context, key store.Key, data []byte) error {
	return f.do(func() error { return f.Store.Put(ctx, key, data) })
}

func (f *flaky) Delete(ctx context.Context, key store.Key) error {
	return f.do(func() error { return f.Store.Delete(ctx, key) })
}

// A slow store takes a second for everything, and knows the most operations it
// was asked for at once.
type slow struct {
	store.Store
	busy, most atomic.Int64
}

func (s *slow) work() {
	n := s.busy.Add(1)
	for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
	}
	time.Sleep(time.Second)
	s.busy.Add(-1)
}

func (s *slow) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	s.work()
	return s.Store.Get(ctx, key, off, n)
}

func (s *slow) Put(ctx context.Context, key store.Key, data []byte) error {
	s.work()
	return s.Store.Put(ctx, key, data)
}

func (s *slow) Delete(ctx context.Context, key store.Key) error {
	s.work()
	return s.Store.Delete(ctx, key)
}

func TestLimitLetsSoManyWorkAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := &slow{Store: mem.New(t)}
		s := store.Limit(next, 3)
		start := time.Now()
		done := make(chan error)
		for i := range 12 {
			go func() {
				key := storetest.Key(i)
				switch i % 4 {
				case 0:
					done <- s.Put(t.Context(), key, nil)
				case 1:
					done <- s.Delete(t.Context(), key)
				case 2:
					done <- store.DeleteAll(t.Context(), s, []store.Key{key})
				default:
					if _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrNotExist) {
						done <- err
					}
					done <- nil
				}
			}()
		}
		for range 12 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if most, took := next.most.Load(), time.Since(start); most != 3 || took != 4*time.Second {
			t.Errorf("%d at once, %v in all; want 3 and 4 s", most, took)
		}
	})
}

func TestLimitLetsTheImpatientGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := &slow{Store: mem.New(t)}
		s := store.Limit(next, 1)
		go s.Put(t.Context(), storetest.Key(1), nil)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := s.Put(ctx, storetest.Key(2), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put while another is at work: %v", err)
		}
		time.Sleep(time.Second)
		if err := s.Put(ctx, storetest.Key(2), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put with an ended context and a free slot: %v", err)
		}
	})
}
