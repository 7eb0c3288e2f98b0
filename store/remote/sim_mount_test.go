package remote

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// A simMount is a mount: a real [Group], and programs that read and write.
type simMount struct {
	sim     *simulation
	id      int
	site    int
	stretch []float64 // by site: how much farther than others of its site it is
	phase   []float64 // by site: when in 20 minutes the way is longest
	rand    *rand.Rand
	zipf    *rand.Zipf
	group   *Group
	written uint64

	attempts atomic.Int64 // requests for blocks to proxies, but for those of searches

	mu       sync.Mutex
	waitedIn *simPhase // the last phase in which it waited for long; guarded by mu
	waited   time.Time // when the first such wait of that phase was over; guarded by mu
}

func (s *simulation) newMount(id int) *simMount {
	m := &simMount{sim: s, id: id, site: id % len(simSites), rand: rand.New(rand.NewPCG(s.cfg.seed, uint64(id)))}
	for range simSites[0] {
		m.stretch = append(m.stretch, 0.98+0.04*m.rand.Float64())
		m.phase = append(m.phase, m.rand.Float64())
	}
	m.zipf = rand.NewZipf(m.rand, 1.1, 8, uint64(s.cfg.files-1))
	m.group = New(Config{
		Origin:    simBucket{sim: s, gets: &s.direct.gets, puts: &s.direct.puts},
		Groups:    s.settings,
		Ticket:    simVolume.String,
		transport: func(member Member) http.RoundTripper { return s.link(m, member.Address) },
	})
	return m
}

// run runs the mount until the simulation ends, and its programs a little less long.
func (m *simMount) run() {
	ctx := m.sim.ctx
	if simWait(ctx, time.Duration(m.rand.Int64N(int64(10*time.Second)))) != nil {
		return
	}
	m.group.Probe(ctx)
	m.sim.spawn(func() { m.group.Run(ctx) })
	for m.think() {
		switch p := m.rand.Float64(); {
		case p < 0.6:
			m.readSome()
		case p < 0.7:
			m.readNews()
		case p < 0.9:
			m.scan()
		default:
			m.write()
		}
	}
}

// think waits for what a program does between files.
func (m *simMount) think() bool {
	d := time.Duration(m.rand.ExpFloat64() * float64(m.sim.cfg.think))
	return simWait(m.sim.working, d) == nil
}

// readSome reads a few blocks of a file, one after the other.
func (m *simMount) readSome() {
	file := m.zipf.Uint64()
	for range 1 + m.rand.IntN(4) {
		m.read(m.sim.block(file, m.rand.IntN(m.sim.cfg.blocks)))
	}
}

// scan reads blocks in a row, four at a time.
func (m *simMount) scan() {
	file, from := m.zipf.Uint64(), m.rand.IntN(m.sim.cfg.blocks)
	var wg sync.WaitGroup
	for lane := range 4 {
		wg.Go(func() {
			for i := lane; i < 16; i += 4 {
				m.read(m.sim.block(file, (from+i)%m.sim.cfg.blocks))
			}
		})
	}
	wg.Wait()
}

// readNews reads blocks that others wrote a moment ago.
func (m *simMount) readNews() {
	for _, key := range m.sim.news(1 + m.rand.IntN(3)) {
		m.read(key)
	}
}

// write writes a few blocks of a file of the mount's own.
func (m *simMount) write() {
	for range 1 + m.rand.IntN(3) {
		m.written++
		key := store.Key{Volume: simVolume, Ino: 1 << 40, Index: uint32(m.written % 1000), Gen: store.Gen{Session: uint64(m.id + 2), Seq: m.written}}
		key.Ino += uint64(m.id)
		m.do("put", key, func(ctx context.Context) error { return m.group.Put(ctx, key, simBlock(key)) })
		m.sim.acknowledge(key)
		if m.rand.IntN(4) == 0 { // another is told of it at once
			m.sim.mounts[m.rand.IntN(len(m.sim.mounts))].read(key)
		}
	}
}

func (m *simMount) read(key store.Key) {
	m.do("get", key, func(ctx context.Context) error {
		got, err := m.group.Get(ctx, key, 0, -1)
		if err == nil && !bytes.Equal(got, simBlock(key)) {
			m.sim.wrong.Add(1)
			err = fmt.Errorf("%d wrong bytes", len(got))
		}
		return err
	})
}

// do does an operation and notes how it went.
func (m *simMount) do(verb string, key store.Key, op func(context.Context) error) {
	s := m.sim
	phase, start := s.phase.Load(), time.Now()
	err := op(s.ctx)
	if err != nil && s.failed.Add(1) <= 20 {
		s.t.Errorf("%v, %s: mount %d: %s %v after %v: %v", s.now(), phase.name, m.id, verb, key, time.Since(start), err)
	}
	took := time.Since(start)
	phase.waits.add(took)
	if took > phase.bound {
		s.t.Errorf("%v, %s: mount %d: %s %v took %v", s.now(), phase.name, m.id, verb, key, took)
	}
	if took < simLong {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.waitedIn != phase:
		m.waitedIn, m.waited = phase, time.Now()
		phase.waiters.Add(1)
	case start.After(m.waited):
		phase.again.Add(1)
	}
}

// simLong is what a program calls waiting.
const simLong = 500 * time.Millisecond

// simWaits counts operations by how long they took.
type simWaits struct {
	over [len(simBounds)]atomic.Int64
	all  atomic.Int64
	max  atomic.Int64
}

var simBounds = [...]time.Duration{100 * time.Millisecond, simLong, 1400 * time.Millisecond, 5 * time.Second}

func (w *simWaits) add(d time.Duration) {
	w.all.Add(1)
	for i, bound := range simBounds {
		if d > bound {
			w.over[i].Add(1)
		}
	}
	for {
		was := w.max.Load()
		if int64(d) <= was || w.max.CompareAndSwap(was, int64(d)) {
			return
		}
	}
}

// The rest is all that the simulation knows of the insides of a Group.

// chosen returns the id of the group that m uses; 0: none, the bucket.
func (m *simMount) chosen() int64 {
	if p := m.group.view.Load().chosen; p != nil {
		return p.settings.ID
	}
	return 0
}

// shuns reports whether m uses the group that addr is a member of, but sends no
// requests there. That it was found slow is not a reason, unless slow is true.
func (m *simMount) shuns(addr string, slow bool) bool {
	p := m.group.view.Load().chosen
	if p == nil || p.members[addr] == nil {
		return false
	}
	to := p.members[addr]
	_, sends := to.usable()
	to.mu.Lock()
	defer to.mu.Unlock()
	return !sends && (slow || !to.pace.judged)
}

// owner returns who owns a block in the group with the id; "": nobody.
func (m *simMount) owner(id int64, key store.Key) string {
	m.group.mu.Lock()
	p := m.group.groupOf(id)
	m.group.mu.Unlock()
	if p == nil || p.ring.Len() == 0 {
		return ""
	}
	return p.ring.Owners(key.Hash(), 1)[0]
}

func (m *simMount) switches() int64 { return m.group.stats.switches.Load() }

// simCounts are numbers of all mounts.
type simCounts struct {
	ops, fallbacks, retries, retriesDenied int64
	hedges, hedgesWon, hedgesDenied        int64
	searched, found                        int64
}

func (c *simCounts) add(m *simMount) {
	s := &m.group.stats
	c.ops += s.proxied.Load() + s.direct.Load() + s.fallbacks.Load() + s.checks.Load()
	c.retries += max(0, m.attempts.Load()-s.proxied.Load()-s.fallbacks.Load()-s.checks.Load())
	c.fallbacks += s.fallbacks.Load()
	c.retriesDenied += s.retriesDenied.Load()
	c.hedges += s.hedged.Load()
	c.hedgesWon += s.hedgesWon.Load()
	c.hedgesDenied += s.hedgesDenied.Load()
	c.searched += s.searched.Load()
	c.found += s.foundAtPeer.Load()
}
