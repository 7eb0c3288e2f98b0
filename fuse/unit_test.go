package fuse

import (
	"context"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// Random writes, cuts and merges of dirty blocks, against plain bytes.
func TestDirtyBlocksHoldWhatWasWritten(t *testing.T) {
	const size = 5 * chunkSize
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 0))
		d, mem := &dirty{}, int64(0)
		lent := 0
		move := func(d *dirty) {
			if d.loan == nil && r.IntN(12) == 0 {
				lent++
				mem += d.move(store.NewLoan(make([]byte, size), 0, func() { lent-- }))
			}
		}
		want, set := make([]byte, size), make([]bool, size)
		for step := range 60 {
			switch r.IntN(8) {
			case 0:
				n := r.IntN(size)
				mem -= d.cut(n)
				clear(set[n:])
			case 1: // what d has is older than what is written to a new one
				newer := &dirty{since: time.Now()}
				lo := r.IntN(size - 1)
				p := make([]byte, 1+r.IntN(min(size-lo, 2*chunkSize)))
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				move(newer)
				mem += newer.write(lo, p)
				copy(want[lo:], p)
				for i := range p {
					set[lo+i] = true
				}
				if r.IntN(2) == 0 {
					lo, hi := someRange(r, size)
					mem -= newer.punch(lo, hi)
					clear(want[lo:hi])
					for i := range hi - lo {
						set[lo+i] = true
					}
				}
				mem += newer.under(d)
				d = newer
			case 2, 3:
				lo, hi := someRange(r, size)
				mem -= d.punch(lo, hi)
				clear(want[lo:hi])
				for i := range hi - lo {
					set[lo+i] = true
				}
			default:
				lo := r.IntN(size - 1)
				p := make([]byte, 1+r.IntN(min(size-lo, 1<<r.IntN(17))))
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				move(d)
				mem += d.write(lo, p)
				copy(want[lo:], p)
				for i := range p {
					set[lo+i] = true
				}
			}
			check(t, d, want, set, seed, step)
			checkSums(t, d)
			if mem != d.mem() {
				t.Fatalf("seed %d step %d: %d bytes accounted for, and it has %d", seed, step, mem, d.mem())
			}
		}
		if freed := d.free(); freed != mem || d.mem() != 0 || lent != 0 {
			t.Errorf("seed %d: %d bytes given back, want %d; %d blocks are not", seed, freed, mem, lent)
		}
	}
}

// checkSums wants the noted checksums to be those of the bytes.
func checkSums(t *testing.T, d *dirty) {
	t.Helper()
	if d.loan == nil {
		return
	}
	for i := range len(d.loan.Data()) / chunkSize {
		is, known := d.loan.PartSum(i)
		if want := store.Sum(t.Context(), d.loan.Data()[i*chunkSize:][:chunkSize]); known && is != want {
			t.Fatalf("the checksum of part %d is noted as %08x, and is %08x", i, is, want)
		}
	}
}

func someRange(r *rand.Rand, size int) (lo, hi int) {
	lo = r.IntN(size - 1)
	return lo, lo + 1 + r.IntN(size-lo)
}

func check(t *testing.T, d *dirty, want []byte, set []bool, seed uint64, step int) {
	t.Helper()
	got := make([]byte, len(want))
	for i := range got {
		got[i] = want[i] + 1
	}
	d.read(0, got)
	n := 0
	for i := range got {
		if set[i] {
			n++
		}
		if is := got[i] == want[i]; is != set[i] {
			t.Fatalf("seed %d step %d: byte %d written: %v, want %v", seed, step, i, is, set[i])
		}
	}
	touched := d.touched()
	sum := 0
	for _, s := range touched {
		sum += s.hi - s.lo
	}
	if sum != n {
		t.Fatalf("seed %d step %d: %d bytes are dirty, want %d", seed, step, sum, n)
	}
	for _, list := range []spans{d.spans, d.zero, touched} {
		for i := range list {
			if list[i].lo >= list[i].hi || i > 0 && list[i].lo <= list[i-1].hi {
				t.Fatalf("seed %d step %d: spans %v are not apart", seed, step, list)
			}
		}
	}
	if both := d.spans.both(d.zero); len(both) > 0 {
		t.Fatalf("seed %d step %d: %v is written and punched", seed, step, both)
	}
	for _, g := range touched.gaps(len(want)) {
		if set[g.lo] || set[g.hi-1] || d.covers(g.lo, g.hi) {
			t.Fatalf("seed %d step %d: %v is not a gap of %v", seed, step, g, d.spans)
		}
	}
}

func TestLocksGiveWayWhereTheyOverlap(t *testing.T) {
	lock := func(kind uint32, owner, start, end uint64) meta.Lock {
		return meta.Lock{Type: kind, Owner: owner, Start: start, End: end}
	}
	const r, w, u = syscall.F_RDLCK, syscall.F_WRLCK, syscall.F_UNLCK
	var held []meta.Lock
	for _, l := range []meta.Lock{lock(w, 1, 0, 99), lock(w, 2, 200, lockEnd), lock(r, 1, 20, 29), lock(u, 1, 25, 49), lock(u, 2, 0, 299)} {
		held = applyLock(held, l)
	}
	want := []meta.Lock{lock(w, 1, 0, 19), lock(r, 1, 20, 24), lock(w, 1, 50, 99), lock(w, 2, 300, lockEnd)}
	slices.SortFunc(held, func(a, b meta.Lock) int { return int(min(a.Start, 1000)) - int(min(b.Start, 1000)) })
	if !slices.Equal(held, want) {
		t.Errorf("held are %v, want %v", held, want)
	}
	if held = applyLock(held, lock(u, 1, 0, lockEnd)); len(held) != 1 {
		t.Errorf("after owner 1 released all: %v", held)
	}
}

func TestInvalsSince(t *testing.T) {
	var v invals
	start := v.now()
	v.add(7)
	if !v.since(start, 7) || v.since(start, 8) {
		t.Error("7 was named, and 8 was not")
	}
	later := v.now()
	if v.since(later, 7) {
		t.Error("7 was not named later")
	}
	v.addAll()
	if !v.since(later, 8) || v.since(v.now(), 8) {
		t.Error("everything was named, and not after that")
	}
	later = v.now()
	for i := range maxInvals {
		v.add(meta.Ino(100 + i))
	}
	if !v.since(later, 8) {
		t.Error("it is not known any more whether 8 was named")
	}
}

func TestTheBudgetIsHandedOutInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(16 << 20)
		if !b.try(10 << 20) {
			t.Fatal("an empty budget has no 10 MiB")
		}
		var order []int
		got := make(chan int, 3)
		for i, n := range []int64{10 << 20, 1 << 20, 20 << 20} {
			go func() {
				if err := b.acquire(context.Background(), n); err != nil {
					t.Error(err)
				}
				got <- i
			}()
			synctest.Wait()
		}
		if b.try(1 << 20) {
			t.Error("somebody got ahead of those who wait")
		}
		if len(got) != 0 {
			t.Error("the small one did not wait for its turn")
		}
		b.release(10 << 20)
		order = append(order, <-got, <-got)
		synctest.Wait()
		if len(got) != 0 {
			t.Error("20 MiB were handed out while others had 11")
		}
		b.release(11 << 20)
		order = append(order, <-got) // more than there is, for one who is alone
		slices.Sort(order[:2])
		if !slices.Equal(order, []int{0, 1, 2}) {
			t.Errorf("the order was %v", order)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := b.acquire(ctx, 1); err != context.Canceled {
			t.Errorf("acquire with an ended context: %v", err)
		}
		b.release(20 << 20)
		if used, _ := b.Used(); used != 0 {
			t.Errorf("%d bytes are in use at the end", used)
		}
	})
}

// What is kept of files that were read does not stop a writer who wants all.
func TestWhoIsAloneGetsWhatHeAsksFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(16 << 20)
		if !b.tryAhead(2<<20) || !b.tryKeep(2<<20) || !b.tryAhead(2<<20) {
			t.Fatal("there is no room for read-ahead, and for what is kept")
		}
		for _, n := range []int64{16 << 20, 20 << 20} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := b.acquire(ctx, n); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
			cancel()
			b.release(n)
		}
	})
}

func TestModesConvertBothWays(t *testing.T) {
	for _, kind := range []uint32{syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK} {
		for perm := uint32(0); perm < 0o10000; perm += 0o111 {
			if got := unixMode(fileMode(kind | perm)); got != kind|perm {
				t.Fatalf("mode %o becomes %o", kind|perm, got)
			}
		}
	}
}

func TestSequentialReadsAreTold(t *testing.T) {
	const n = 128 << 10
	for name, c := range map[string]struct {
		offs []uint64
		want bool
	}{
		"from the start":            {[]uint64{0, n, 2 * n}, true},
		"out of order by a little":  {[]uint64{0, 2 * n, n, 3 * n}, true},
		"here and there":            {[]uint64{500 << 20, 3 << 20, 900 << 20}, false},
		"sequential, then far away": {[]uint64{0, n, 2 * n, 800 << 20}, false},
		"only once":                 {[]uint64{0}, false},
	} {
		var s stream
		var got bool
		for _, off := range c.offs {
			got = s.saw(off, n)
		}
		if got != c.want {
			t.Errorf("%s: sequential is %v", name, got)
		}
	}
}
