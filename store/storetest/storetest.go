// Package storetest examines a [store.Store]: whatever passes keeps the
// promises of the interface, as far as they can be seen from outside.
package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"flexfs/store"
)

// sizes are those of the blocks that are put: around nothing, around the frames
// of a sealed block (128 KiB), and several frames.
var sizes = []int{0, 1, 100, 4096, 128<<10 - 1, 128 << 10, 128<<10 + 1, 700_001}

// Run examines the stores that open returns, each of which must be empty and
// independent of the others. [store.Lister] and [store.BulkDeleter] are examined
// in a Store that implements them.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s store.Store)
	}{
		{"MissingBlock", testMissing},
		{"WholeBlocks", testWhole},
		{"Ranges", testRanges},
		{"LargestBlock", testLargest},
		{"PutAgain", testPutAgain},
		{"KeysAreDistinct", testKeys},
		{"Delete", testDelete},
		{"DeleteAll", testDeleteAll},
		{"PutKeepsNothing", testPutKeepsNothing},
		{"GetsAreIndependent", testGetsAreIndependent},
		{"Concurrent", testConcurrent},
		{"EndedContext", testEndedContext},
		{"List", testList},
		{"ListStops", testListStops},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// Key returns the i-th of a series of different keys of one volume.
func Key(i int) store.Key {
	return store.Key{
		Volume: store.Volume{0xf1, 0xe8, 15: 1},
		Ino:    uint64(i/3) + 1,
		Index:  uint32(i % 3),
		Gen:    store.Gen{Session: 1, Seq: uint64(i)},
	}
}

// Data returns n bytes that belong to key: half of them compress well.
func Data(key store.Key, n int) []byte {
	random := rand.NewPCG(key.Hash(), key.Gen.Session^key.Gen.Seq)
	data := make([]byte, 0, n+8)
	for len(data) < n {
		if i := len(data); i>>12&1 == 0 {
			data = binary.LittleEndian.AppendUint64(data, random.Uint64())
		} else {
			data = binary.LittleEndian.AppendUint64(data, uint64(i>>7))
		}
	}
	return data[:n]
}

func put(t *testing.T, s store.Store, key store.Key, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Fatalf("Put of %d bytes as %v: %v", len(data), key, err)
	}
}

func want(t *testing.T, s store.Store, key store.Key, off, n int64, want []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), key, off, n)
	if err != nil {
		t.Fatalf("Get(%v, %d, %d): %v", key, off, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("Get(%v, %d, %d) returned %d bytes that are not the %d wanted", key, off, n, len(got), len(want))
	}
}

func wantMissing(t *testing.T, s store.Store, key store.Key) {
	t.Helper()
	for _, r := range [][2]int64{{0, -1}, {0, 10}, {5, 10}, {5, -1}} {
		data, err := s.Get(t.Context(), key, r[0], r[1])
		if !errors.Is(err, store.ErrNotExist) {
			t.Errorf("Get(%d, %d) of a missing block returned %d bytes and error %v, want ErrNotExist", r[0], r[1], len(data), err)
		}
	}
}

func testMissing(t *testing.T, s store.Store) {
	wantMissing(t, s, Key(1))
	put(t, s, Key(2), Data(Key(2), 10))
	wantMissing(t, s, Key(1))
}

func testWhole(t *testing.T, s store.Store) {
	for i, size := range sizes {
		data := Data(Key(i), size)
		put(t, s, Key(i), data)
		want(t, s, Key(i), 0, -1, data)
		want(t, s, Key(i), 0, int64(size), data)
		want(t, s, Key(i), 0, store.MaxBlock, data)
	}
}

func testRanges(t *testing.T, s store.Store) {
	for i, size := range sizes {
		key, data := Key(i), Data(Key(i), size)
		put(t, s, key, data)
		edges := []int64{0, 1, 4096, 128<<10 - 1, 128 << 10, int64(size) / 2, int64(size) - 1, int64(size), int64(size) + 1, store.MaxBlock, 1 << 40}
		for _, off := range edges {
			for _, n := range []int64{-1, 0, 1, 4096, 200_000, int64(size), 1 << 40} {
				if off >= 0 {
					want(t, s, key, off, n, store.Clip(data, off, n))
				}
			}
		}
	}
}

func testLargest(t *testing.T, s store.Store) {
	key, data := Key(1), Data(Key(1), store.MaxBlock)
	put(t, s, key, data)
	want(t, s, key, 0, -1, data)
	want(t, s, key, store.MaxBlock-7, 100, data[store.MaxBlock-7:])
}

func testPutAgain(t *testing.T, s store.Store) {
	key, data := Key(1), Data(Key(1), 300_000)
	put(t, s, key, data)
	put(t, s, key, data)
	want(t, s, key, 0, -1, data)
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	put(t, s, key, data)
	want(t, s, key, 1000, 1000, data[1000:2000])
}

// testKeys puts blocks whose keys differ in one part, and wants each back.
func testKeys(t *testing.T, s store.Store) {
	keys := []store.Key{
		{},
		{Volume: store.Volume{1}},
		{Volume: store.Volume{15: 1}},
		{Ino: 1},
		{Ino: 1<<64 - 1},
		{Index: 1},
		{Index: 1<<32 - 1},
		{Gen: store.Gen{Session: 1}},
		{Gen: store.Gen{Session: 1<<64 - 1}},
		{Gen: store.Gen{Seq: 1}},
		{Gen: store.Gen{Seq: 1<<64 - 1}},
		{Ino: 0x11, Index: 0x1},
		{Ino: 0x1, Index: 0x11},
		{Gen: store.Gen{Session: 0x11, Seq: 0x1}},
		{Gen: store.Gen{Session: 0x1, Seq: 0x11}},
	}
	for i, key := range keys {
		put(t, s, key, []byte(fmt.Sprint("block ", i)))
	}
	for i, key := range keys {
		want(t, s, key, 0, -1, []byte(fmt.Sprint("block ", i)))
	}
}

func testDelete(t *testing.T, s store.Store) {
	if err := s.Delete(t.Context(), Key(1)); err != nil {
		t.Errorf("Delete of a missing block: %v", err)
	}
	put(t, s, Key(1), Data(Key(1), 1000))
	put(t, s, Key(2), Data(Key(2), 1000))
	want(t, s, Key(1), 10, 10, Data(Key(1), 1000)[10:20]) // a cache on the way may have it now
	for range 2 {
		if err := s.Delete(t.Context(), Key(1)); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantMissing(t, s, Key(1))
	}
	want(t, s, Key(2), 0, -1, Data(Key(2), 1000))
}

func testDeleteAll(t *testing.T, s store.Store) {
	var keys []store.Key
	for i := range 30 {
		keys = append(keys, Key(i))
		if i%2 == 0 {
			put(t, s, Key(i), Data(Key(i), 10))
		}
	}
	put(t, s, Key(100), Data(Key(100), 10))
	for range 2 {
		if err := store.DeleteAll(t.Context(), s, keys); err != nil {
			t.Fatalf("DeleteAll: %v", err)
		}
	}
	for _, key := range keys {
		if _, err := s.Get(t.Context(), key, 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Fatalf("Get of %v after DeleteAll: error %v, want ErrNotExist", key, err)
		}
	}
	want(t, s, Key(100), 0, -1, Data(Key(100), 10))
	if err := store.DeleteAll(t.Context(), s, nil); err != nil {
		t.Errorf("DeleteAll of nothing: %v", err)
	}
}

func testPutKeepsNothing(t *testing.T, s store.Store) {
	data := Data(Key(1), 300_000)
	original := bytes.Clone(data)
	put(t, s, Key(1), data)
	if !bytes.Equal(data, original) {
		t.Fatal("Put changed the caller's bytes")
	}
	for i := range data {
		data[i] = ^data[i] // the caller's right, once Put has returned
	}
	want(t, s, Key(1), 0, -1, original)
	want(t, s, Key(1), 5, 1000, original[5:1005])
}

func testGetsAreIndependent(t *testing.T, s store.Store) {
	a, b := Data(Key(1), 300_000), Data(Key(2), 300_000)
	put(t, s, Key(1), a)
	put(t, s, Key(2), b)
	for _, r := range [][2]int64{{0, -1}, {1000, 5000}, {128<<10 - 10, 20}} {
		first, err := s.Get(t.Context(), Key(1), r[0], r[1])
		if err != nil {
			t.Fatal(err)
		}
		want(t, s, Key(2), r[0], r[1], store.Clip(b, r[0], r[1]))
		if !bytes.Equal(first, store.Clip(a, r[0], r[1])) {
			t.Errorf("the bytes of one Get(%d, %d) changed with the next", r[0], r[1])
		}
	}
}

// testConcurrent has everybody put, get and delete blocks, some of them the
// same: it finds what the race detector and mixed-up answers show.
func testConcurrent(t *testing.T, s store.Store) {
	const workers, rounds = 8, 12
	ctx := t.Context()
	shared := Data(Key(0), 200_000)
	put(t, s, Key(0), shared)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range rounds {
				key := Key(1000*(w+1) + i)
				if err := concurrentRound(ctx, s, r, key, shared); err != nil {
					t.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func concurrentRound(ctx context.Context, s store.Store, r *rand.Rand, key store.Key, shared []byte) error {
	data := Data(key, r.IntN(200_000))
	if err := s.Put(ctx, key, data); err != nil {
		return err
	}
	if err := s.Put(ctx, Key(0), shared); err != nil {
		return fmt.Errorf("the shared block: %w", err)
	}
	off, n := r.Int64N(200_000), r.Int64N(200_000)
	for _, block := range []struct {
		key  store.Key
		data []byte
	}{{key, data}, {Key(0), shared}} {
		got, err := s.Get(ctx, block.key, off, n)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, store.Clip(block.data, off, n)) {
			return fmt.Errorf("Get(%v, %d, %d): %d wrong bytes", block.key, off, n, len(got))
		}
	}
	if r.IntN(2) == 0 {
		return s.Delete(ctx, key)
	}
	return nil
}

// testEndedContext wants no success that did not happen: with an ended context
// an operation may fail, or be right.
func testEndedContext(t *testing.T, s store.Store) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	data := Data(Key(1), 1000)
	if err := s.Put(ended, Key(1), data); err == nil {
		want(t, s, Key(1), 0, -1, data)
	}
	put(t, s, Key(1), data)
	if got, err := s.Get(ended, Key(1), 0, -1); err == nil && !bytes.Equal(got, data) {
		t.Error("Get with an ended context returned wrong bytes and no error")
	} else if errors.Is(err, store.ErrNotExist) {
		t.Error("Get with an ended context said that a block that exists does not")
	}
	want(t, s, Key(1), 0, -1, data)
}

func list(t *testing.T, l store.Lister, volume store.Volume) []string {
	t.Helper()
	var names []string
	err := l.List(t.Context(), volume, func(found store.Listed) error {
		key := found.Key
		if age := time.Since(found.Modified); age > time.Hour || age < -time.Hour {
			t.Errorf("List says that %v was put at %v", key, found.Modified)
		}
		if key.Volume != volume {
			t.Errorf("List of %v returned %v", volume, key)
		}
		names = append(names, key.String())
		return nil
	})
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	slices.Sort(names)
	return names
}

func testList(t *testing.T, s store.Store) {
	l, ok := s.(store.Lister)
	if !ok {
		t.Skip("not a store.Lister")
	}
	if got := list(t, l, Key(0).Volume); len(got) != 0 {
		t.Fatalf("an empty store lists %v", got)
	}
	var wanted []string
	for i := range 25 {
		put(t, s, Key(i), Data(Key(i), i))
		wanted = append(wanted, Key(i).String())
	}
	other := Key(1)
	other.Volume[0]++
	put(t, s, other, nil)
	put(t, s, Key(26), nil)
	if err := s.Delete(t.Context(), Key(26)); err != nil {
		t.Fatal(err)
	}
	slices.Sort(wanted)
	if got := list(t, l, Key(0).Volume); !slices.Equal(got, wanted) {
		t.Errorf("List returned %v, want %v", got, wanted)
	}
	if got := list(t, l, other.Volume); !slices.Equal(got, []string{other.String()}) {
		t.Errorf("List of the other volume returned %v, want %v", got, other)
	}
}

func testListStops(t *testing.T, s store.Store) {
	l, ok := s.(store.Lister)
	if !ok {
		t.Skip("not a store.Lister")
	}
	for i := range 5 {
		put(t, s, Key(i), nil)
	}
	enough := errors.New("enough")
	calls := 0
	err := l.List(t.Context(), Key(0).Volume, func(store.Listed) error {
		calls++
		return enough
	})
	if !errors.Is(err, enough) || calls != 1 {
		t.Errorf("List with a failing fn called it %d times and returned %v, want 1 call and its error", calls, err)
	}
}
