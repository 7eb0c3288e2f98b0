package remote

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/hashring"
	"flexfs/store"
)

var (
	simMounts = flag.Int("sim.mounts", 0, "mounts of TestSimulation; 0 is a small one")
	simHours  = flag.Float64("sim.hours", 2, "its time, if there are -sim.mounts")
	simSeed   = flag.Uint64("sim.seed", 0, "what it begins from; 0 draws one")
)

// A simConfig says how large a simulation is.
type simConfig struct {
	seed    uint64
	mounts  int
	groups  int
	members int // of a group
	files   int
	blocks  int           // of a file
	cache   int           // blocks that a proxy can hold
	think   time.Duration // between what a mount's programs do, on average
	lasts   time.Duration // each failure
	time    time.Duration
	all     bool // everything that may happen does
}

// TestSimulation runs mounts with the real [Group] and its real settings, and
// proxies with the real [Handler], over a simulated network, for simulated hours
// in which members come, go and fail. No operation may fail, whatever happens. The
// time, the network, the caches and the bucket are not real, and blocks are a few
// bytes. `make sim` runs a large one and prints what docs/proxy-groups.md quotes.
//
// What the programs do and what happens depends on the seed only. How long the
// network takes, when a mount probes whom, and what is done first of what is due
// at the same time, does not repeat.
func TestSimulation(t *testing.T) {
	cfg := simConfig{
		mounts: 40, groups: 2, members: 4,
		files: 100, blocks: 50, cache: 4000,
		think: 8 * time.Second, lasts: 45 * time.Second, time: 18 * time.Minute,
	}
	if *simMounts > 0 {
		cfg = simConfig{
			mounts: *simMounts, groups: 4, members: 16,
			files: 2000, blocks: 100, cache: 25000,
			think: 20 * time.Second, lasts: 90 * time.Second, time: time.Duration(*simHours * float64(time.Hour)), all: true,
		}
	}
	if cfg.all {
		defer debug.SetGCPercent(debug.SetGCPercent(400)) // there is much that lives long
	}
	if cfg.seed = *simSeed; cfg.seed == 0 {
		cfg.seed = rand.Uint64N(1e6) + 1
	}
	synctest.Test(t, func(t *testing.T) { newSimulation(t, cfg).play() })
}

var simVolume = store.Volume{1: 7, 15: 42}

// A simulation is one volume, its groups, and its mounts.
type simulation struct {
	t        *testing.T
	cfg      simConfig
	rand     *rand.Rand // of what happens
	began    time.Time
	ctx      context.Context // until the end
	end      context.CancelFunc
	wg       sync.WaitGroup  // of all that runs
	working  context.Context // while programs run
	halt     context.CancelFunc
	programs sync.WaitGroup
	cut      atomic.Pointer[simCut]
	loss     atomic.Uint64 // of a million round trips
	phase    atomic.Pointer[simPhase]
	change   atomic.Pointer[simChange] // of members, until something else happens
	settings []GroupSettings
	mounts   []*simMount
	report   simReport

	failed, wrong atomic.Int64
	direct        struct{ gets, puts atomic.Int64 } // requests of mounts to the bucket

	mu      sync.RWMutex
	proxies map[string]*simProxy // guarded by mu
	bucket  map[uint64]bool      // what was put into it; guarded by mu
	recent  []store.Key          // what was acknowledged last; guarded by mu
	acked   int                  // how much was; guarded by mu
}

// A simPhase is a part of a simulation's time.
type simPhase struct {
	name    string
	began   time.Duration
	bound   time.Duration // of each operation
	waits   simWaits
	waiters atomic.Int64 // mounts that waited for long
	again   atomic.Int64 // operations that began after their mount had waited, and waited for long all the same
}

func newSimulation(t *testing.T, cfg simConfig) *simulation {
	s := &simulation{
		t: t, cfg: cfg, rand: rand.New(rand.NewPCG(cfg.seed, 1<<63)), began: time.Now(),
		proxies: make(map[string]*simProxy), bucket: make(map[uint64]bool),
		report: simReport{shares: make(map[string]simShare)},
	}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.working, s.halt = context.WithCancel(s.ctx)
	s.cut.Store(&simCut{site: -1, changed: make(chan struct{})})
	s.loss.Store(simLoss)
	s.phase.Store(&simPhase{name: "start", bound: simWaitBound})
	for g := range cfg.groups {
		s.settings = append(s.settings, s.newGroup(int64(g+1), g))
	}
	s.tell(s.settings, 0)
	s.warm()
	for id := range cfg.mounts {
		s.mounts = append(s.mounts, s.newMount(id))
	}
	return s
}

// newGroup makes the proxies of a group at a site.
func (s *simulation) newGroup(id int64, site int) GroupSettings {
	g := GroupSettings{ID: id, NoSSL: true}
	for i := range s.cfg.members {
		g.Members = append(g.Members, s.newMember(id, i+1, site))
	}
	return g
}

func (s *simulation) newMember(group int64, n, site int) Member {
	addr := fmt.Sprintf("10.%d.0.%d:9040", group, n)
	p := s.newProxy(addr, group, site)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proxies[addr] = p
	return Member{Address: addr}
}

// warm fills the caches of all proxies with the blocks that they own.
func (s *simulation) warm() {
	for _, g := range s.settings {
		ring := hashring.New(addresses(g.Members)...)
		for file := range s.cfg.files {
			for b := range s.cfg.blocks {
				key := s.block(uint64(file), b)
				s.proxyAt(ring.Owners(key.Hash(), 1)[0]).keep(simID(key))
			}
		}
	}
}

func addresses(members []Member) []string {
	var names []string
	for _, m := range members {
		names = append(names, m.Address)
	}
	return names
}

// now returns how long the simulation has been running, in its own time.
func (s *simulation) now() time.Duration { return time.Since(s.began) }

func (s *simulation) spawn(f func()) { s.wg.Go(f) }

func (s *simulation) proxyAt(addr string) *simProxy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.proxies[addr]
}

// all returns the proxies in order of their addresses.
func (s *simulation) all() []*simProxy {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []*simProxy
	for _, p := range s.proxies {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *simProxy) int { return slices.Compare([]byte(a.addr), []byte(b.addr)) })
	return all
}

// block returns the name of a block that was there from the beginning.
func (s *simulation) block(file uint64, index int) store.Key {
	return store.Key{Volume: simVolume, Ino: file + 1, Index: uint32(index), Gen: store.Gen{Session: 1, Seq: 1}}
}

// stored reports whether the bucket has a block.
func (s *simulation) stored(key store.Key) bool {
	if key.Gen.Session == 1 {
		return true
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bucket[simID(key)]
}

// keep puts a block into the bucket.
func (s *simulation) keep(key store.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bucket[simID(key)] = true
}

// acknowledge makes known that a block was written.
func (s *simulation) acknowledge(key store.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recent) == 1000 {
		s.recent = slices.Clone(s.recent[900:])
	}
	s.recent = append(s.recent, key)
	s.acked++
}

// news returns up to n blocks of those that were written last.
func (s *simulation) news(n int) []store.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.recent[max(0, len(s.recent)-n):])
}

// set changes the settings of the volume. Proxies hear of it within 2 s, mounts
// within 10 s, each by itself.
func (s *simulation) set(groups []GroupSettings) {
	s.settings = groups
	s.tell(groups, 2*time.Second)
	for _, m := range s.mounts {
		after := rand.N(10 * time.Second)
		s.spawn(func() {
			if simWait(s.ctx, after) == nil {
				m.group.Update(groups, 0)
			}
		})
	}
}

// tell tells the proxies who is in their groups.
func (s *simulation) tell(groups []GroupSettings, within time.Duration) {
	for _, g := range groups {
		members := addresses(g.Members)
		v := &simView{members: hashring.New(members...), union: hashring.New(append(members, addresses(g.Former)...)...)}
		if !g.ChangedAt.IsZero() {
			v.changed = g.ChangedAt.Sub(s.began)
		}
		for _, addr := range append(addresses(g.Former), addresses(g.Members)...) {
			p := s.proxyAt(addr)
			s.spawn(func() {
				if within == 0 || simWait(s.ctx, rand.N(within)) == nil {
					p.view.Store(v)
				}
			})
		}
	}
}

// play runs the simulation.
func (s *simulation) play() {
	defer s.wg.Wait()
	defer s.end()
	s.t.Logf("seed %d: %d mounts, %d groups of %d proxies, %v", s.cfg.seed, s.cfg.mounts, s.cfg.groups, s.cfg.members, s.cfg.time)
	for _, m := range s.mounts {
		s.programs.Go(m.run)
	}
	time.Sleep(time.Minute)
	events := s.events()
	for i, e := range events {
		if s.now() > s.cfg.time {
			s.t.Logf("there was no time for the last %d of %d events", len(events)-i, len(events))
			break
		}
		s.happen(e)
		s.rest(s.pause(events[i+1:]))
	}
	s.finish()
}

// pause returns how long to rest before the next event, if all of them are to take
// place.
func (s *simulation) pause(next []simEvent) time.Duration {
	left := s.cfg.time - s.now()
	for _, e := range next {
		left -= e.wait + e.lasts + settle
		if e.lasts > 0 {
			left -= steady
		}
	}
	return left / time.Duration(len(next)+1)
}
