package cache

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A spy is a store below a cache. It counts what reaches it and can be made to
// fail or wait.
type spy struct {
	*mem.Store
	whole, part atomic.Int64 // Gets
	bytes       atomic.Int64 // that they returned
	hook        func(ctx context.Context, key store.Key) error
}

func newSpy(t *testing.T) *spy { return &spy{Store: mem.New(t)} }

func (s *spy) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if off == 0 && n < 0 {
		s.whole.Add(1)
	} else {
		s.part.Add(1)
	}
	if s.hook != nil {
		if err := s.hook(ctx, key); err != nil {
			return nil, err
		}
	}
	data, err := s.Store.Get(ctx, key, off, n)
	s.bytes.Add(int64(len(data)))
	return bytes.Clone(data), err // not all of the block's memory with a part of it
}

// fill puts n blocks of size bytes below.
func (s *spy) fill(t *testing.T, n, size int) {
	t.Helper()
	for i := range n {
		if err := s.Put(t.Context(), storetest.Key(i), storetest.Data(storetest.Key(i), size)); err != nil {
			t.Fatal(err)
		}
	}
}

// reached fails the test if other than so many Gets reached the store.
func (s *spy) reached(t *testing.T, whole, part int64) {
	t.Helper()
	if w, p := s.whole.Load(), s.part.Load(); w != whole || p != part {
		t.Fatalf("%d whole and %d ranged Gets reached the store, want %d and %d", w, p, whole, part)
	}
}

// get wants a range of a block of size bytes.
func get(t *testing.T, s store.Store, i, size int, off, n int64) {
	t.Helper()
	key := storetest.Key(i)
	got, err := s.Get(t.Context(), key, off, n)
	if err != nil {
		t.Fatalf("Get(block %d, %d, %d): %v", i, off, n, err)
	}
	if !bytes.Equal(got, store.Clip(storetest.Data(key, size), off, n)) {
		t.Fatalf("Get(block %d, %d, %d) returned %d wrong bytes", i, off, n, len(got))
	}
}
