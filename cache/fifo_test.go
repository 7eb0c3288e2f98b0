package cache

import (
	"math/rand/v2"
	"testing"

	"flexfs/store"
	"flexfs/store/storetest"
)

// play runs keys through a fifo with room for so many entries and returns how
// many were hits.
func play(room int, keys []int) (hits int) {
	f := newFIFO()
	index := make(map[store.Key]*entry)
	for _, i := range keys {
		key := storetest.Key(i)
		if e := index[key]; e != nil {
			hits++
			f.use(e)
			continue
		}
		if len(index) == room {
			delete(index, f.evict().key)
		}
		e := &entry{key: key}
		index[key] = e
		f.add(e)
	}
	return hits
}

func TestAScanPassesByTheFIFO(t *testing.T) {
	var keys []int
	for range 3 {
		for i := range 50 {
			keys = append(keys, i)
		}
	}
	base := len(keys)
	for i := range 5000 {
		keys = append(keys, 1000+i)
	}
	for i := range 50 {
		keys = append(keys, i)
	}
	if hits, want := play(100, keys), base-50+45; hits < want {
		t.Errorf("%d hits, want at least %d: the scan evicted what is used again and again", hits, want)
	}
}

// TestTheFIFOFindsWhatIsPopular compares with the simplest thing that could be
// there: on skewed keys, more hits than a plain queue.
func TestTheFIFOFindsWhatIsPopular(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	zipf := rand.NewZipf(r, 1.1, 1, 10_000)
	keys := make([]int, 100_000)
	for i := range keys {
		keys[i] = int(zipf.Uint64())
	}
	got, plain := play(250, keys), playPlain(250, keys)
	if got < plain+len(keys)/20 {
		t.Errorf("%d hits of %d; a plain queue has %d", got, len(keys), plain)
	}
}

func playPlain(room int, keys []int) (hits int) {
	var line []int
	here := make(map[int]bool)
	for _, i := range keys {
		if here[i] {
			hits++
			continue
		}
		if len(line) == room {
			delete(here, line[0])
			line = line[1:]
		}
		line, here[i] = append(line, i), true
	}
	return hits
}

func TestAnEvictedEntryThatReturnsIsWelcome(t *testing.T) {
	f := newFIFO()
	f.add(&entry{key: storetest.Key(1)})
	if e := f.evict(); e == nil || e.key != storetest.Key(1) {
		t.Fatalf("evicted %v", e)
	}
	again := &entry{key: storetest.Key(1)}
	f.add(again)
	if again.queue != main {
		t.Errorf("it is in queue %d, want the main one", again.queue)
	}
}

func TestQueuesCountTheirBytes(t *testing.T) {
	f := newFIFO()
	r := rand.New(rand.NewPCG(3, 3))
	var all []*entry
	for i := range 2000 {
		switch {
		case r.IntN(3) > 0 || len(all) == 0:
			e := &entry{key: storetest.Key(r.IntN(500)), size: r.Int64N(20_000)}
			all = append(all, e)
			f.add(e)
		case r.IntN(2) == 0:
			f.use(all[r.IntN(len(all))])
		default:
			f.remove(all[r.IntN(len(all))])
		}
		if i%3 == 0 {
			f.evict()
		}
		for q := small; q <= main; q++ {
			n, bytes := 0, int64(0)
			for e := f.lists[q].front; e != nil; e = e.next {
				n, bytes = n+1, bytes+charge(e.size)
			}
			if l := f.lists[q]; l.len != n || l.bytes != bytes {
				t.Fatalf("step %d: queue %d says %d entries of %d bytes, and has %d of %d", i, q, l.len, l.bytes, n, bytes)
			}
		}
	}
	for f.evict() != nil {
	}
	if f.lists[small].bytes != 0 || f.lists[main].bytes != 0 {
		t.Error("empty queues have bytes")
	}
}
