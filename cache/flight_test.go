package cache

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"flexfs/store"
	"flexfs/store/storetest"
)

// caches are what both kinds of cache promise alike.
func caches(t *testing.T, test func(t *testing.T, next *spy, c store.Store)) {
	t.Run("Mem", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next := newSpy(t)
			m, err := newMem(next, 64<<20, 0) // ristretto's ticker would never let a bubble end
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			test(t, next, m)
		})
	})
	t.Run("Disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next := newSpy(t)
			d := openFake(t, next, newFakeFiles(), DiskConfig{Whole: true})
			test(t, next, d)
		})
	})
}

func TestManyWhoAskForABlockCauseOneFetch(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.fill(t, 1, 1000)
		release := make(chan struct{})
		next.hook = func(context.Context, store.Key) error { <-release; return nil }
		answers := make(chan error, 20)
		for range 20 {
			go func() {
				data, err := c.Get(t.Context(), storetest.Key(0), 0, -1)
				if err == nil && len(data) != 1000 {
					err = errors.New("wrong length")
				}
				answers <- err
			}()
		}
		synctest.Wait()
		close(release)
		for range 20 {
			if err := <-answers; err != nil {
				t.Error(err)
			}
		}
		next.reached(t, 1, 0)
	})
}

func TestWhoLeavesAFetchDoesNotEndItForTheOthers(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.fill(t, 1, 1000)
		release := make(chan struct{})
		next.hook = func(ctx context.Context, _ store.Key) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error), make(chan error)
		ask := func(ctx context.Context, answer chan error) {
			_, err := c.Get(ctx, storetest.Key(0), 0, -1)
			answer <- err
		}
		go ask(ctx, first)
		synctest.Wait()
		go ask(t.Context(), second)
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who left got error %v, want Canceled", err)
		}
		close(release)
		if err := <-second; err != nil {
			t.Errorf("who stayed got error %v", err)
		}
		next.reached(t, 1, 0)
	})
}

func TestAFetchThatNobodyWaitsForEnds(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.fill(t, 1, 1000)
		ended := make(chan struct{})
		next.hook = func(ctx context.Context, _ store.Key) error {
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		answer := make(chan error)
		go func() {
			_, err := c.Get(ctx, storetest.Key(0), 0, -1)
			answer <- err
		}()
		synctest.Wait()
		cancel()
		<-answer
		<-ended
		next.hook = nil
		get(t, c, 0, 1000, 0, -1) // and the next one starts anew
	})
}

func TestAFetchThatHangsEndsAfterItsTime(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.hook = func(ctx context.Context, _ store.Key) error {
			<-ctx.Done()
			return ctx.Err()
		}
		if _, err := c.Get(t.Context(), storetest.Key(0), 0, -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v, want that the deadline passed", err)
		}
	})
}

func TestAFailedFetchIsNotRemembered(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.fill(t, 1, 1000)
		broken := errors.New("broken")
		next.hook = func(context.Context, store.Key) error { return broken }
		if _, err := c.Get(t.Context(), storetest.Key(0), 0, -1); !errors.Is(err, broken) {
			t.Fatalf("error is %v, want the store's", err)
		}
		next.hook = nil
		get(t, c, 0, 1000, 0, -1)
	})
}

func TestABlockDeletedWhileItIsFetchedIsNotKept(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		next.fill(t, 1, 1000)
		fetched, release := make(chan struct{}), make(chan struct{})
		slow := &late{Store: next.Store, fetched: fetched, release: release}
		switch c := c.(type) {
		case *Mem:
			c.next = slow
		case *Disk:
			c.next = slow
		}
		answer := make(chan error)
		go func() {
			_, err := c.Get(t.Context(), storetest.Key(0), 0, -1)
			answer <- err
		}()
		<-fetched
		if err := c.Delete(t.Context(), storetest.Key(0)); err != nil {
			t.Fatal(err)
		}
		close(release)
		if err := <-answer; err != nil {
			t.Fatal(err) // it was there when the fetch began
		}
		synctest.Wait()
		slow.fetched = nil
		if _, err := c.Get(t.Context(), storetest.Key(0), 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("error after the Delete is %v, want ErrNotExist", err)
		}
	})
}

// late has its answer but does not give it until it is released.
type late struct {
	store.Store
	fetched, release chan struct{}
}

func (l *late) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := l.Store.Get(ctx, key, off, n)
	if l.fetched != nil {
		close(l.fetched)
		<-l.release
	}
	return data, err
}

func TestAPutThatFailedIsNotKept(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Put(ctx, storetest.Key(0), []byte("block")); err == nil {
			t.Fatal("the store below takes no Put with an ended context")
		}
		synctest.Wait()
		if _, err := c.Get(t.Context(), storetest.Key(0), 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("error is %v, want ErrNotExist", err)
		}
	})
}

func TestWhatWasPutIsHere(t *testing.T) {
	caches(t, func(t *testing.T, next *spy, c store.Store) {
		for i := range 3 {
			if err := c.Put(t.Context(), storetest.Key(i), storetest.Data(storetest.Key(i), 5000)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 { // at once, and
			get(t, c, i, 5000, 100, 200)
		}
		synctest.Wait()
		for i := range 3 { // when it has found its place
			get(t, c, i, 5000, 0, -1)
		}
		next.reached(t, 0, 0)
	})
}
