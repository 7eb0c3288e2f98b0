package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/storetest"
)

// A lax is a correct store whose parts a test replaces with wrong ones.
type lax struct {
	mu sync.Mutex
	m  map[store.Key][]byte

	key  func(store.Key) store.Key
	keep func([]byte) []byte
	get  func(block []byte, off, n int64) ([]byte, error)
	miss func() ([]byte, error)
	del  func(there bool) error
	list func(err error) error
}

func newLax() *lax {
	return &lax{
		m:    make(map[store.Key][]byte),
		key:  func(key store.Key) store.Key { return key },
		keep: bytes.Clone,
		get:  func(block []byte, off, n int64) ([]byte, error) { return store.Clip(block, off, n), nil },
		miss: func() ([]byte, error) { return nil, store.ErrNotExist },
		del:  func(bool) error { return nil },
		list: func(err error) error { return err },
	}
}

func (s *lax) Get(_ context.Context, key store.Key, off, n int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	block, ok := s.m[s.key(key)]
	if !ok {
		return s.miss()
	}
	return s.get(block, off, n)
}

func (s *lax) Put(_ context.Context, key store.Key, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[s.key(key)] = s.keep(data)
	return nil
}

func (s *lax) Delete(_ context.Context, key store.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, there := s.m[s.key(key)]
	err := s.del(there)
	if err == nil {
		delete(s.m, s.key(key))
	}
	return err
}

func (s *lax) List(_ context.Context, volume store.Volume, fn func(store.Listed) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.m {
		if key.Volume == volume {
			if err := s.list(fn(store.Listed{Key: key, Modified: time.Now()})); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *lax) DeleteAll(ctx context.Context, keys []store.Key) error {
	for _, key := range keys {
		if err := s.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// faults are the ways in which the suite must find a store wanting, and the
// test of it that does.
var faults = map[string]struct {
	test string
	set  func(s *lax)
}{
	"none":             {"", func(s *lax) {}},
	"missing is empty": {"MissingBlock", func(s *lax) { s.miss = func() ([]byte, error) { return nil, nil } }},
	"missing is vague": {"MissingBlock", func(s *lax) { s.miss = func() ([]byte, error) { return nil, errors.New("hm") } }},
	"keeps the slice":  {"PutKeepsNothing", func(s *lax) { s.keep = func(b []byte) []byte { return b } }},
	"delete needs a block": {"Delete", func(s *lax) {
		s.del = func(there bool) error { return map[bool]error{false: store.ErrNotExist}[there] }
	}},
	"delete all stops": {"DeleteAll", func(s *lax) {
		s.del = func(there bool) error { return map[bool]error{false: store.ErrNotExist}[there] }
	}},
	"versions are one": {"KeysAreDistinct", func(s *lax) { s.key = func(key store.Key) store.Key { key.Gen = store.Gen{}; return key } }},
	"large numbers are cut": {"KeysAreDistinct", func(s *lax) {
		s.key = func(key store.Key) store.Key { key.Ino = uint64(uint32(key.Ino >> 63)); return key }
	}},
	"list goes on":      {"ListStops", func(s *lax) { s.list = func(error) error { return nil } }},
	"offset is ignored": {"Ranges", func(s *lax) { s.get = func(b []byte, _, n int64) ([]byte, error) { return store.Clip(b, 0, n), nil } }},
	"length is ignored": {"Ranges", func(s *lax) {
		s.get = func(b []byte, off, _ int64) ([]byte, error) { return store.Clip(b, off, -1), nil }
	}},
	"past the end fails": {"Ranges", func(s *lax) {
		s.get = func(b []byte, off, n int64) ([]byte, error) {
			if off > int64(len(b)) {
				return nil, errors.New("range not satisfiable")
			}
			return store.Clip(b, off, n), nil
		}
	}},
	"gets share a buffer": {"GetsAreIndependent", func(s *lax) {
		shared := make([]byte, store.MaxBlock)
		s.get = func(b []byte, off, n int64) ([]byte, error) {
			return shared[:copy(shared, store.Clip(b, off, n))], nil
		}
	}},
}

const faultVariable = "STORETEST_FAULT"

// TestVictim is run by TestTheSuiteFindsFaults, in a process of its own.
func TestVictim(t *testing.T) {
	fault, ok := faults[os.Getenv(faultVariable)]
	if !ok {
		t.Skip("a part of TestTheSuiteFindsFaults")
	}
	storetest.Run(t, func(t *testing.T) store.Store {
		s := newLax()
		fault.set(s)
		return s
	})
}

func TestTheSuiteFindsFaults(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$", "-test.v")
			cmd.Env = append(os.Environ(), faultVariable+"="+name)
			out, err := cmd.CombinedOutput()
			if fault.test == "" {
				if err != nil {
					t.Errorf("a correct store fails: %v\n%s", err, out)
				}
				return
			}
			if !strings.Contains(string(out), "--- FAIL: TestVictim/"+fault.test+" ") {
				t.Errorf("%s did not find it: %v", fault.test, err)
			}
		})
	}
}
