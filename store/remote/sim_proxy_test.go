package remote

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/hashring"
	"flexfs/store"
)

const (
	simLanes    = 4                      // blocks that a proxy sends at once
	simServe    = 4 * time.Millisecond   // what one takes: 4 MiB, in one of the lanes
	simSync     = 3 * time.Millisecond   // to make a block durable on a proxy's disk
	simBeside   = 300 * time.Microsecond // round trip between members of a group
	simTakeover = 15 * time.Second       // after what time a member uploads another's block
	simFill     = time.Hour              // for how long after a change members are asked for blocks
)

// A simProxy is a proxy with the real [Handler]. What is behind it is simulated:
// a cache of which only the names of the blocks are kept, blocks that wait for
// their upload, and the other members of its group.
type simProxy struct {
	sim     *simulation
	addr    string
	group   int64
	site    int
	handler http.Handler
	bucket  simBucket
	state   atomic.Pointer[simState]
	view    atomic.Pointer[simView]

	probes   atomic.Int64 // requests for its health
	requests atomic.Int64 // requests for blocks
	astray   atomic.Int64 // of them: while another was the block's owner
	misses   atomic.Int64 // of blocks that were there from the beginning
	moved    atomic.Int64 // of them: the block was another's before the last change of members
	filled   atomic.Int64 // of these: another member had it
	news     atomic.Int64 // misses of others
	fetched  atomic.Int64 // requests to the bucket
	uploads  atomic.Int64

	mu      sync.Mutex
	held    map[uint64]bool          // what the cache holds; guarded by mu
	order   []uint64                 // in which it came, oldest first; guarded by mu
	dirty   map[uint64]simDirty      // what the bucket may not have; guarded by mu
	flights map[uint64]chan struct{} // closed when it is there; guarded by mu
	lanes   [simLanes]time.Duration  // until when each is busy; guarded by mu
	started time.Duration            // guarded by mu
}

// A simView is what a proxy knows of its group.
type simView struct {
	members, union *hashring.Ring // the members; and the former ones too
	changed        time.Duration
}

// A simDirty is a block that waits for its upload.
type simDirty struct {
	key  store.Key
	from *simProxy // that uploads it; nil: this one
}

func (s *simulation) newProxy(addr string, group int64, site int) *simProxy {
	p := &simProxy{
		sim: s, addr: addr, group: group, site: site,
		held: make(map[uint64]bool), dirty: make(map[uint64]simDirty), flights: make(map[uint64]chan struct{}),
	}
	p.bucket = simBucket{sim: s, gets: &p.fetched, puts: &p.uploads}
	p.handler = Handler(Server{Tickets: nominal, Store: serving(p)})
	p.state.Store(&simState{mode: simWell, slower: 1, run: 1, changed: make(chan struct{})})
	p.view.Store(&simView{members: hashring.New(addr), union: hashring.New(addr)})
	return p
}

// become changes the proxy's health. One that was dead starts afresh, and looks
// after what it was to upload.
func (p *simProxy) become(mode simMode, slower time.Duration) {
	was := p.state.Load()
	next := &simState{mode: mode, slower: slower, run: was.run, changed: make(chan struct{})}
	started := was.mode == simDead && mode != simDead
	if started {
		next.run++
	}
	p.state.Store(next)
	close(was.changed)
	if !started {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started = p.sim.now()
	for id, d := range p.dirty {
		p.sim.spawn(func() { p.upload(next.run, id, d.key, nil) })
	}
}

// wipe takes the proxy's disk away.
func (p *simProxy) wipe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.held)
	clear(p.dirty)
	p.order = nil
}

// talks reports whether another member reaches it.
func (p *simProxy) talks() bool {
	switch p.state.Load().mode {
	case simWell, simSlow:
		return true
	}
	return false
}

// act waits until the proxy can do something, and reports whether it is still the
// same run of it.
func (p *simProxy) act(run int) bool {
	for {
		s := p.state.Load()
		switch {
		case s.run != run || s.mode == simDead || p.sim.ctx.Err() != nil:
			return false
		case s.mode != simSilent && s.mode != simFrozen:
			return true
		}
		select {
		case <-s.changed:
		case <-p.sim.ctx.Done():
		}
	}
}

// work takes the time that d of work takes, after that which came before.
func (p *simProxy) work(ctx context.Context, d time.Duration) error {
	d = p.state.Load().slower * time.Duration(float64(d)*(0.5+rand.Float64()))
	now := p.sim.now()
	p.mu.Lock()
	lane := &p.lanes[0]
	for i := range p.lanes {
		if p.lanes[i] < *lane {
			lane = &p.lanes[i]
		}
	}
	*lane = max(*lane, now) + d
	until := *lane
	p.mu.Unlock()
	return simWait(ctx, until-now)
}

// holds reports whether the proxy has the block itself.
func (p *simProxy) holds(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, dirty := p.dirty[id]
	return dirty || p.held[id]
}

// keep puts a block into the cache, and the oldest out of it if it is full.
func (p *simProxy) keep(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[id] {
		return
	}
	if len(p.order) >= p.sim.cfg.cache {
		delete(p.held, p.order[0])
		p.order = p.order[1:]
	}
	p.held[id] = true
	p.order = append(p.order, id)
}

// Get implements [store.Store].
func (p *simProxy) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	id := simID(key)
	if !p.holds(id) {
		if store.IsLocal(ctx) {
			return nil, store.ErrNotExist
		}
		if key.Gen.Session == 1 {
			p.misses.Add(1)
		} else {
			p.news.Add(1)
		}
		if err := p.fetch(ctx, key, id); err != nil {
			return nil, err
		}
	}
	if !store.IsLocal(ctx) && !p.owns(p.view.Load().members, key) {
		p.astray.Add(1)
	}
	if err := p.work(ctx, simServe); err != nil {
		return nil, err
	}
	return store.Clip(simBlock(key), off, n), nil
}

// fetch gets a block into the cache: from other members if it pays to ask them,
// else from the bucket. Who asks for the same block meanwhile waits for it.
func (p *simProxy) fetch(ctx context.Context, key store.Key, id uint64) error {
	p.mu.Lock()
	done := p.flights[id]
	if done != nil {
		p.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !p.holds(id) {
			return store.ErrNotExist
		}
		return nil
	}
	done = make(chan struct{})
	p.flights[id] = done
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.flights, id)
		p.mu.Unlock()
		close(done)
	}()
	ctx = context.WithoutCancel(ctx)
	moved := p.hasJustGot(key)
	if moved {
		p.moved.Add(1)
	}
	if p.fill(ctx, key, id) {
		if moved {
			p.filled.Add(1)
		}
		p.keep(id)
		return nil
	}
	_, err := p.bucket.Get(ctx, key, 0, -1)
	if err == nil {
		p.keep(id)
	}
	return err
}

// owns reports whether a block is this proxy's among members.
func (p *simProxy) owns(members *hashring.Ring, key store.Key) bool {
	return members.Len() > 0 && members.Owners(key.Hash(), 1)[0] == p.addr
}

// hasJustGot reports whether a block is this proxy's since the last change of
// members.
func (p *simProxy) hasJustGot(key store.Key) bool {
	c := p.sim.change.Load()
	return key.Gen.Session == 1 && c != nil && c.group == p.group && !p.owns(c.was, key) && p.owns(p.view.Load().members, key)
}

// fill asks the two members for a block that are the first in its order beside
// this one.
func (p *simProxy) fill(ctx context.Context, key store.Key, id uint64) bool {
	v := p.view.Load()
	p.mu.Lock()
	since := p.sim.now() - max(v.changed, p.started)
	p.mu.Unlock()
	if since > simFill {
		return false
	}
	asked := 0
	for _, addr := range v.union.Owners(key.Hash(), 3) {
		other := p.sim.proxyAt(addr)
		if other == p || asked == 2 || !other.talks() {
			continue
		}
		asked++
		if simWait(ctx, simBeside) == nil && other.holds(id) && other.work(ctx, simServe) == nil {
			return true
		}
	}
	return false
}

// Put implements [store.Store]: the block is acknowledged when this proxy and
// another have it, and uploaded then.
func (p *simProxy) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := p.work(ctx, simServe+simSync); err != nil {
		return err
	}
	id, run := simID(key), p.state.Load().run
	second := p.second(key)
	if second == nil {
		err := p.bucket.Put(ctx, key, data)
		if err == nil {
			p.keep(id)
		}
		return err
	}
	if err := second.work(ctx, simServe+simSync+simBeside); err != nil {
		return err
	}
	second.adopt(id, key, p)
	p.mu.Lock()
	_, known := p.dirty[id]
	p.dirty[id] = simDirty{key: key}
	p.mu.Unlock()
	if !known {
		p.sim.spawn(func() { p.upload(run, id, key, second) })
	}
	return nil
}

// second returns who keeps the copy of a block: the first other member in its
// order that can be reached.
func (p *simProxy) second(key store.Key) *simProxy {
	v := p.view.Load()
	for _, addr := range v.members.Owners(key.Hash(), -1) {
		if other := p.sim.proxyAt(addr); other != p && other.talks() {
			return other
		}
	}
	return nil
}

// adopt keeps a copy of a block for another member, and uploads it if that one
// does not do it.
func (p *simProxy) adopt(id uint64, key store.Key, from *simProxy) {
	run := p.state.Load().run
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.dirty[id]; ok {
		return
	}
	p.dirty[id] = simDirty{key, from}
	p.sim.spawn(func() {
		for {
			if simWait(p.sim.ctx, simTakeover) != nil || !p.act(run) || !p.pending(id) {
				return
			}
			if !from.talks() || !from.pending(id) {
				p.upload(run, id, key, nil)
				return
			}
		}
	})
}

func (p *simProxy) pending(id uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.dirty[id]
	return ok
}

// upload puts a block into the bucket, and tells who has the copy.
func (p *simProxy) upload(run int, id uint64, key store.Key, second *simProxy) {
	if !p.act(run) || !p.pending(id) || p.bucket.Put(p.sim.ctx, key, nil) != nil || !p.act(run) {
		return
	}
	p.clean(id)
	if second != nil && second.talks() {
		second.clean(id)
	}
}

// clean notes that the bucket has a block.
func (p *simProxy) clean(id uint64) {
	p.mu.Lock()
	_, ok := p.dirty[id]
	delete(p.dirty, id)
	p.mu.Unlock()
	if ok {
		p.keep(id)
	}
}

// Delete implements [store.Store].
func (p *simProxy) Delete(context.Context, store.Key) error { return errSimBucket }

// simID stands for a block's name.
func simID(key store.Key) uint64 {
	return key.Hash() ^ key.Gen.Session*0x9e3779b97f4a7c15 ^ key.Gen.Seq*0xff51afd7ed558ccd
}

// simBlock returns the bytes of a block: few, and of no other.
func simBlock(key store.Key) []byte {
	return binary.BigEndian.AppendUint64([]byte("block of the simulation "), simID(key))
}
