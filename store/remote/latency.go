package remote

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// A class is the requests whose times may be compared.
type class int

const (
	classSmall class = iota // a Get or GetFrames of less than smallGet bytes
	classLarge              // one of more, or of all there is
	classPut
	classOther // of these nothing is recorded
	classes    = int(classOther)
)

// smallGet is from how many bytes on that are asked for a Get is a large one.
const smallGet = 256 << 10

var classNames = [...]string{"small reads", "large reads", "writes", "others"}

func (c class) String() string { return classNames[c] }

const (
	latencyWindow = 128         // samples that count
	latencyStale  = time.Minute // samples are forgotten when none came for so long
	latencySlots  = 4*27 + 1    // up to 2^37 ns, 137 s
	latencyUnit   = time.Nanosecond << 10
)

// A latency is how long the last requests of a class took: the last
// latencyWindow of them, in a histogram. Its slots are a quarter of a power of
// two wide (about 1 µs and less is the first), so that a quantile is off by at
// most an eighth; a sample that leaves the window is taken out of its slot. It is
// of a fixed size, record allocates nothing, and the quantiles are read without
// a lock.
type latency struct {
	p50, p95 atomic.Int64 // nanoseconds
	samples  atomic.Int32 // that count

	mu     sync.Mutex
	counts [latencySlots]uint8  // guarded by mu
	ring   [latencyWindow]uint8 // the slots of the samples; guarded by mu
	next   int                  // in ring; guarded by mu
	last   time.Time            // of the last sample; guarded by mu
}

// record adds a sample.
func (l *latency) record(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last) > latencyStale {
		l.clear()
	}
	l.last = now
	n := l.samples.Load()
	if n == latencyWindow {
		l.counts[l.ring[l.next]]--
	} else {
		n++
		l.samples.Store(n)
	}
	slot := slotOf(took)
	l.counts[slot]++
	l.ring[l.next] = uint8(slot)
	l.next = (l.next + 1) % latencyWindow
	if n < 32 || l.next%8 == 0 {
		l.p50.Store(int64(l.quantile(n, 50)))
		l.p95.Store(int64(l.quantile(n, 95)))
	}
}

// reset forgets all samples.
func (l *latency) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear()
}

// clear is reset with l.mu held.
func (l *latency) clear() {
	l.counts = [latencySlots]uint8{}
	l.next = 0
	l.samples.Store(0)
	l.p50.Store(0)
	l.p95.Store(0)
}

// known returns the median and the 95th percentile, if at least n samples count.
func (l *latency) known(n int32) (p50, p95 time.Duration, ok bool) {
	if l.samples.Load() < n {
		return 0, 0, false
	}
	return time.Duration(l.p50.Load()), time.Duration(l.p95.Load()), true
}

// fresh is known for samples of which the last came not longer than age ago.
func (l *latency) fresh(n int32, age time.Duration) (p50 time.Duration, ok bool) {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	if time.Since(last) > age {
		return 0, false
	}
	p50, _, ok = l.known(n)
	return p50, ok
}

// quantile returns what percent of n samples do not exceed. l.mu must be held.
func (l *latency) quantile(n int32, percent int32) time.Duration {
	rank := (n*percent + 99) / 100
	for slot, count := range l.counts {
		if rank -= int32(count); rank <= 0 {
			return middleOf(slot)
		}
	}
	return middleOf(latencySlots - 1)
}

// slotOf returns the slot of a sample.
func slotOf(d time.Duration) int {
	v := uint64(max(d, 0)) >> 8 // so that 4 is latencyUnit
	if v < 4 {
		return 0
	}
	octave := bits.Len64(v) - 3 // 0 for 4 to 7
	return min(4*octave+int(v>>octave)-3, latencySlots-1)
}

// middleOf returns a duration in the middle of a slot.
func middleOf(slot int) time.Duration {
	if slot == 0 {
		return latencyUnit / 2
	}
	octave, quarter := (slot-1)/4, (slot-1)%4
	width := latencyUnit << octave / 4
	return latencyUnit<<octave + width*time.Duration(quarter) + width/2
}
