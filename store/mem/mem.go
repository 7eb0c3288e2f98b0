// Package mem is a block store in memory, for tests. It is stricter than a
// bucket: it notices when a block changes under its key, and when somebody
// writes to bytes that Get handed out.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"flexfs/store"
)

// TB is the part of testing.TB that a Store reports to.
type TB interface {
	Errorf(format string, args ...any)
	Cleanup(func())
}

// A Store is a [store.Store] in memory. Get hands out the one copy it has, as a
// cache would.
type Store struct {
	tb TB // nil if nobody is to be told

	mu sync.Mutex
	m  map[store.Key]*block // guarded by mu; includes the deleted
}

// A block is what is known about a key. A deleted one has no data, but is
// remembered: no other bytes may ever come under its key.
type block struct {
	data    []byte
	deleted bool
	size    int
	crc     uint32 // of data, as it was put
	put     time.Time
}

// New returns an empty Store. Breaches of the contract of [store.Store] are
// errors of tb's test; with a nil tb only the breaching Put hears of it.
func New(tb TB) *Store {
	s := &Store{tb: tb, m: make(map[store.Key]*block)}
	if tb != nil {
		tb.Cleanup(s.checkAll)
	}
	return s
}

func (s *Store) complain(format string, args ...any) error {
	if s.tb != nil {
		s.tb.Errorf(format, args...)
	}
	return fmt.Errorf(format, args...)
}

// check complains if somebody changed the block's bytes. s.mu must be held.
func (s *Store) check(key store.Key, b *block) {
	if !b.deleted && checksum(b.data) != b.crc {
		s.complain("mem: somebody wrote to the bytes of block %v that Get handed out", key)
		b.crc = checksum(b.data) // once is enough
	}
}

func (s *Store) checkAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, b := range s.m {
		s.check(key, b)
	}
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mem: get %v: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.m[key]
	if b == nil || b.deleted {
		return nil, fmt.Errorf("mem: get %v: %w", key, store.ErrNotExist)
	}
	s.check(key, b)
	return store.Clip(b.data, off, n), nil
}

// Put implements [store.Store]. Other bytes under a key that ever had some are
// refused.
func (s *Store) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("mem: put %v: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.m[key]
	switch {
	case b == nil:
		s.m[key] = &block{data: bytes.Clone(data), size: len(data), crc: checksum(data), put: time.Now()}
		return nil
	case b.size != len(data) || b.crc != checksum(data):
		return s.complain("mem: block %v changed under its key", key)
	case b.deleted:
		b.data, b.deleted, b.put = bytes.Clone(data), false, time.Now()
	}
	s.check(key, b)
	return nil
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, key store.Key) error {
	return s.DeleteAll(ctx, []store.Key{key})
}

// DeleteAll implements [store.BulkDeleter].
func (s *Store) DeleteAll(ctx context.Context, keys []store.Key) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("mem: delete: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		if b := s.m[key]; b != nil {
			s.check(key, b)
			b.data, b.deleted = nil, true
		}
	}
	return nil
}

// List implements [store.Lister]. It lists the blocks there are when it is called.
func (s *Store) List(ctx context.Context, volume store.Volume, fn func(store.Listed) error) error {
	for _, key := range s.Keys() {
		s.mu.Lock()
		b := *s.m[key]
		s.mu.Unlock()
		if key.Volume != volume || b.deleted {
			continue
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("mem: list: %w", err)
		}
		if err := fn(store.Listed{Key: key, Size: int64(b.size), Modified: b.put}); err != nil {
			return err
		}
	}
	return nil
}

// Keys returns the keys of the blocks there are, of all volumes.
func (s *Store) Keys() []store.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []store.Key
	for key, b := range s.m {
		if !b.deleted {
			keys = append(keys, key)
		}
	}
	return keys
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }
