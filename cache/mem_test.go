package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func openMem(t testing.TB, next store.Store, window, main int64) *Mem {
	t.Helper()
	m, err := newMem(next, window, main)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func TestMemIsAStore(t *testing.T) {
	for name, size := range map[string][2]int64{
		"roomy":           {64 << 20, 64 << 20},
		"window only":     {1 << 20, 0},
		"small":           {300_000, 500_000},
		"too small to be": {1000, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				return openMem(t, mem.New(t), size[0], size[1])
			})
		})
	}
}

func TestTheBudgetIsDividedWithoutRemainder(t *testing.T) {
	for _, size := range []int64{1 << 20, 16 << 20, 50 << 20, 64 << 20, 256 << 20, 1 << 30} {
		m, err := NewMem(mem.New(t), size)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Stats().Limit; got != size {
			t.Errorf("of %d bytes %d are used", size, got)
		}
		m.Close()
	}
	if _, err := NewMem(mem.New(t), 100); err == nil {
		t.Error("100 bytes are accepted as a cache")
	}
}

func TestABlockThatWasJustReadIsInMemory(t *testing.T) {
	next := newSpy(t)
	m := openMem(t, next, 64<<10, 256<<10)
	next.fill(t, 200, 10_000)
	for i := range 200 { // many times what fits: every one is a newcomer to a full cache
		get(t, m, i, 10_000, 0, -1)
		get(t, m, i, 10_000, 0, -1)
		get(t, m, i, 10_000, 5000, 100)
	}
	next.reached(t, 200, 0)
}

func TestPartsThatWereReadAreKept(t *testing.T) {
	next := newSpy(t)
	const size = 2<<20 + 1000 // the last part is short
	m := openMem(t, next, 1<<20, 7<<20)
	next.fill(t, 2, size)
	get(t, m, 0, size, 4096, 4096)
	next.reached(t, 0, 1)
	get(t, m, 0, size, 60_000, 4096)
	if b, ok := m.Peek(storetest.Key(0), 4096, 100); !ok || len(b) != 100 {
		t.Errorf("Peek of what was read: %d bytes, %v", len(b), ok)
	}
	next.reached(t, 0, 1)
	get(t, m, 0, size, partSize-10, 20) // of two parts, one of which is here
	next.reached(t, 0, 2)
	get(t, m, 0, size, partSize-10, 30)
	get(t, m, 0, size, 2<<20+900, 4096)
	next.reached(t, 0, 3)
	get(t, m, 0, size, 2<<20+900, 4096)
	get(t, m, 0, size, 2<<20+990, 100)
	next.reached(t, 0, 3)
	get(t, m, 1, size, 4096, 4096) // another block
	next.reached(t, 0, 4)

	if err := m.Delete(t.Context(), storetest.Key(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Get(t.Context(), storetest.Key(0), 4096, 4096); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("a part of a block that was deleted: %v", err)
	}
}

// However a block is read: what is fetched of it is no more than 40 times what is
// asked for, and a block of which much is asked comes as a whole in the end.
func TestWhatIsFetchedIsWorthIt(t *testing.T) {
	const size = 4 << 20
	for _, n := range []int64{4096, 16 << 10, 128 << 10, 512 << 10} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			next := newSpy(t)
			m := openMem(t, next, 16<<20, 0)
			next.fill(t, 1, size)
			r := rand.New(rand.NewPCG(1, 1))
			asked := int64(0)
			for range 200 {
				get(t, m, 0, size, r.Int64N(size/n)*n, n)
				asked += n
				if got := next.bytes.Load(); got > worth*asked {
					t.Fatalf("%d bytes were fetched for %d", got, asked)
				}
			}
			if next.whole.Load() != 1 {
				t.Errorf("after %d bytes were asked for, the whole block was fetched %d times", asked, next.whole.Load())
			}
		})
	}
}

func TestWhatWasAskedLongAgoDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := newSpy(t)
		m, err := newMem(next, 64<<20, 0) // ristretto's ticker would never let a bubble end
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		const size, n = 4 << 20, 64 << 10
		next.fill(t, 1, size)
		get(t, m, 0, size, 0, n)
		time.Sleep(useMemory + time.Second)
		get(t, m, 0, size, 1<<20, n)
		next.reached(t, 0, 2)
		get(t, m, 0, size, 2<<20, n)
		next.reached(t, 1, 2)
		get(t, m, 0, size, 1<<20, 1<<20)
		next.reached(t, 1, 2)
	})
}

func TestAPartThatIsAllOfABlockIsKept(t *testing.T) {
	next := newSpy(t)
	m := openMem(t, next, 1<<20, 0)
	next.fill(t, 1, 1000)
	get(t, m, 0, 1000, 0, 4096)
	get(t, m, 0, 1000, 500, 4096)
	next.reached(t, 0, 1)
}

func TestVerificationBypassesMemory(t *testing.T) {
	next := newSpy(t)
	m := openMem(t, next, 1<<20, 1<<20)
	next.fill(t, 1, 1000)
	get(t, m, 0, 1000, 0, -1)
	next.hook = func(ctx context.Context, _ store.Key) error {
		if !store.MustVerify(ctx) {
			return errors.New("the wish to verify was lost on the way")
		}
		return nil
	}
	if _, err := m.Get(store.WithVerify(t.Context()), storetest.Key(0), 0, -1); err != nil {
		t.Fatal(err)
	}
	next.reached(t, 2, 0)
}

// TestAScanLeavesWhatIsAskedForOften reads a small set again and again, then
// much more than fits, once: the set must still be here.
func TestAScanLeavesWhatIsAskedForOften(t *testing.T) {
	if raceDetector {
		t.Skip("ristretto learns nothing under the race detector")
	}
	const size, hot, scan = 4000, 40, 2000
	next := newSpy(t)
	m := openMem(t, next, 20*(size+overhead), 100*(size+overhead))
	next.fill(t, hot+scan, size)
	for range 20 {
		for i := range hot {
			get(t, m, i, size, 0, -1)
		}
		time.Sleep(time.Millisecond) // on a busy machine ristretto loses what it has no time to count
	}
	for i := range scan {
		get(t, m, hot+i, size, 0, -1)
	}
	before := next.whole.Load()
	for i := range hot {
		get(t, m, i, size, 0, -1)
	}
	if lost := next.whole.Load() - before; lost > hot/4 {
		t.Errorf("%d of %d blocks that were asked for often are gone after a scan", lost, hot)
	}
}

// TestMemKeepsItsBudget does random operations from several goroutines: answers
// must be right, and the bytes within the budget at every moment.
func TestMemKeepsItsBudget(t *testing.T) {
	for name, size := range map[string][2]int64{"both parts": {100_000, 300_000}, "window only": {150_000, 0}} {
		t.Run(name, func(t *testing.T) {
			m := openMem(t, mem.New(t), size[0], size[1])
			stop := make(chan struct{})
			var watch sync.WaitGroup
			watch.Go(func() {
				for {
					s := m.Stats()
					if s.Bytes > s.Limit || s.Bytes < 0 || s.Blocks < 0 {
						t.Errorf("%d bytes in %d blocks are held, of %d", s.Bytes, s.Blocks, s.Limit)
						return
					}
					if held := m.held.Load(); held > m.maxMain {
						t.Errorf("the main part has %d bytes, of %d", held, m.maxMain)
						return
					}
					select {
					case <-stop:
						return
					default:
						runtime.Gosched()
					}
				}
			})
			randomOps(t, m, 0, 4, 1000, 20_000)
			close(stop)
			watch.Wait()
			if m.main != nil {
				m.main.Wait()
			}
			if s := m.Stats(); s.Hits == 0 || s.Evictions == 0 {
				t.Errorf("the test does not test: %+v", s)
			}
		})
	}
}

// randomOps runs workers that put, get and delete blocks of up to size bytes.
// Each has blocks of its own, of which it knows whether they exist (none, at
// first), and all read those that they share.
func randomOps(t *testing.T, s store.Store, first, workers, ops, size int) {
	t.Helper()
	shared := randomBlocks(0, 30, size)
	for i, data := range shared {
		if err := s.Put(t.Context(), storetest.Key(i), data); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			c := &client{s: s, r: rand.New(rand.NewPCG(uint64(w), 7)), shared: shared, exists: make(map[int]bool)}
			c.own = randomBlocks(1000*(first+w+1), 60, size)
			for op := range ops {
				if err := c.do(t.Context()); err != nil {
					t.Errorf("worker %d, operation %d: %v", w, op, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func randomBlocks(first, n, size int) map[int][]byte {
	blocks := make(map[int][]byte)
	for i := first; i < first+n; i++ {
		blocks[i] = storetest.Data(storetest.Key(i), int(storetest.Key(i).Hash()%uint64(size)))
	}
	return blocks
}

// A client does random operations and knows what each must answer.
type client struct {
	s           store.Store
	r           *rand.Rand
	own, shared map[int][]byte
	exists      map[int]bool
}

func (c *client) do(ctx context.Context) error {
	i := c.r.IntN(30)
	if c.r.IntN(3) == 0 {
		return c.check(ctx, i, c.shared[i], true)
	}
	for i = range c.own {
		break // a random one
	}
	switch p := c.r.IntN(100); {
	case p < 15:
		c.exists[i] = true
		return c.s.Put(ctx, storetest.Key(i), c.own[i])
	case p < 22:
		c.exists[i] = false
		return c.s.Delete(ctx, storetest.Key(i))
	}
	return c.check(ctx, i, c.own[i], c.exists[i])
}

// check reads a block or a part of it.
func (c *client) check(ctx context.Context, i int, want []byte, exists bool) error {
	off, n := int64(0), int64(-1)
	if c.r.IntN(2) == 0 {
		off, n = c.r.Int64N(int64(len(want)+1)), c.r.Int64N(int64(len(want)+1))
	}
	if c.r.IntN(20) == 0 {
		ctx = store.WithVerify(ctx)
	}
	data, err := c.s.Get(ctx, storetest.Key(i), off, n)
	switch {
	case !exists && !errors.Is(err, store.ErrNotExist):
		return fmt.Errorf("Get of the missing block %d: error %v", i, err)
	case !exists:
		return nil
	case err != nil:
		return err
	case !bytes.Equal(data, store.Clip(want, off, n)):
		return fmt.Errorf("Get of block %d (%d, %d): %d wrong bytes", i, off, n, len(data))
	}
	return nil
}

// TestTheHeapStaysWithinTheBudget counts what the garbage collector finds alive,
// while far more than the budget goes through as fast as it can.
func TestTheHeapStaysWithinTheBudget(t *testing.T) {
	const budget, size = 48 << 20, 1 << 20
	m := openMem(t, zeros{}, budget/4, budget*3/4)
	alive := func() int64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	before, most := alive(), int64(0)
	for round := range 5 { // what is allocated during a collection counts as alive: nothing must be
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					if _, err := m.Get(t.Context(), storetest.Key(round*400+w*50+i), 0, size); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		most = max(most, alive()-before)
	}
	if limit := int64(budget + budget/16); most > limit {
		t.Errorf("%d MiB are alive, want at most %d", most>>20, limit>>20)
	}
	if most < budget/2 {
		t.Errorf("only %d MiB are alive: the cache does not cache", most>>20)
	}
}

// zeros has every block: a MiB of zeros.
type zeros struct{ store.Store }

func (zeros) Get(context.Context, store.Key, int64, int64) ([]byte, error) {
	return make([]byte, 1<<20), nil
}

// TestKeysOfTheMainPartDiffer makes sure that every part of a key counts.
func TestKeysOfTheMainPartDiffer(t *testing.T) {
	seen := make(map[string]place)
	for _, at := range []place{
		{}, {Key: store.Key{Volume: store.Volume{1}}}, {Key: store.Key{Volume: store.Volume{15: 1}}}, {Key: store.Key{Ino: 1}},
		{Key: store.Key{Index: 1}}, {Key: store.Key{Gen: store.Gen{Session: 1}}}, {Key: store.Key{Gen: store.Gen{Seq: 1}}}, {part: 1},
	} {
		if other, ok := seen[mainKey(at)]; ok {
			t.Errorf("%v and %v have the same name", at, other)
		}
		seen[mainKey(at)] = at
	}
}

func BenchmarkMemHit(b *testing.B) {
	m := openMem(b, mem.New(nil), 16<<20, 48<<20)
	key := storetest.Key(1)
	if err := m.Put(b.Context(), key, make([]byte, 4<<20)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(4096)
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := m.Get(b.Context(), key, off, 4096); err != nil {
			b.Fatal(err)
		}
		off = (off + 4096) % (4 << 20)
	}
}

// What is lent to memory is kept where it is until it leaves the window. Then its
// memory is free again, and nobody has it any more; unless it was asked for.
func TestWhatIsLentIsKeptWithoutACopy(t *testing.T) {
	const size, window = 200_000, 5
	next := newSpy(t)
	m := openMem(t, next, window*(size+overhead), 100*size)
	var back [2 * window]atomic.Bool
	for i := range back {
		key := storetest.Key(i)
		data := storetest.Data(key, size)
		l := store.NewLoan(data, 0, func() { back[i].Store(true) })
		if err := store.Lend(t.Context(), m, key, l); err != nil {
			t.Fatal(err)
		}
		l.Done()
		if back[i].Load() {
			t.Fatalf("block %d is not kept", i)
		}
		if i%2 == 0 {
			if got, ok := m.Peek(key, 0, -1); !ok || &got[0] != &data[0] || len(got) != len(data) {
				t.Errorf("memory has another copy of block %d, or none: %v", i, ok)
			}
		}
	}
	for i := range back {
		if got, want := back[i].Load(), i < window && i%2 == 1; got != want {
			t.Errorf("the memory of block %d is free: %v, want %v", i, got, want)
		}
	}
	for i := range back {
		get(t, m, i, size, 0, -1)
	}
}
