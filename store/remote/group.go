package remote

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/hashring"
	"flexfs/store"
)

// A Member is a proxy: where it is and what key it must have (see package
// tlspin; with no pin, a certificate of a trusted authority is needed).
type Member struct {
	Address string // host:port
	Pin     string
}

// GroupSettings are a proxy group.
type GroupSettings struct {
	ID      int64
	Name    string // for people; may be empty
	NoSSL   bool   // its members speak HTTP without TLS
	Members []Member

	// Former were members not long ago. Nobody writes to them any more, but
	// they may hold blocks that are not in the bucket yet, and warm ones. An
	// address is among Members or Former, not both, unless its pin changed.
	Former []Member

	// ChangedAt is when Members changed last; zero: not known, or never.
	ChangedAt time.Time
}

// Config is what a [Group] needs.
type Config struct {
	Origin     store.Store     // the bucket of sealed blocks, for when there is no proxy
	Groups     []GroupSettings // see Update
	MaxProxied int64           // see Update
	Ticket     func() string   // returns the ticket to show to proxies
	Log        *slog.Logger    // nil: nothing is logged

	Timing Timing // zero fields have the defaults

	// Dial makes connections; nil is TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// transport replaces the connections to a member; nil is HTTP over what
	// Dial makes. Tests set it. Round trips are measured with the hooks of
	// net/http/httptrace, which it must call.
	transport func(Member) http.RoundTripper
}

// Timing says how long a Group waits for what.
type Timing struct {
	Probe    time.Duration // for the answer to a probe; default 1 s
	Round    time.Duration // between measurements of all groups; default 10 s
	Pause    time.Duration // before a member that failed is probed again; default 2 s
	Patience time.Duration // for a request, before its group is probed; default 300 ms
	Hang     time.Duration // for any answer of a member that answers probes, while the bucket does; default 2 s
	Attempt  time.Duration // for a request to a member that answers probes; default 60 s
	Search   time.Duration // for a block that is nowhere, before that is believed; default 10 s
}

func (t *Timing) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Probe, time.Second},
		{&t.Round, 10 * time.Second},
		{&t.Pause, 2 * time.Second},
		{&t.Patience, 300 * time.Millisecond},
		{&t.Hang, 2 * time.Second},
		{&t.Attempt, time.Minute},
		{&t.Search, 10 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

// maxTries bounds the members of a group that one request is sent to.
const maxTries = 3

// A Group is the proxy groups of a volume, and the bucket behind them, as one
// [store.Store]. It uses the group with the shortest round trip, in which each
// block has its owner; it passes over members that fail, and turns to the bucket
// while it has no group.
//
// Somebody must call Run, which measures the groups: until then the bucket is
// used.
type Group struct {
	cfg   Config
	view  atomic.Pointer[view]
	stats groupStats
	wake  chan struct{} // something is due; holds one
	slots chan struct{} // one is taken by each probe

	latency [classes]latency       // of the bucket
	hedges  *budget                // of operations that are sent to the bucket as well
	retries *budget                // of operations that are sent to another member, as one failed
	shadow  atomic.Pointer[member] // on trial, but not in the chosen group
	doubted atomic.Int64           // when all members of the group were doubted last, in Unix nanoseconds
	search  searches
	races   *races

	// Lock order: mu before the mu of a member. Nobody talks to a server
	// while holding either.
	mu      sync.Mutex
	all     map[memberKey]*member // guarded by mu
	groups  []*proxyGroup         // as in the settings; guarded by mu
	settled bool                  // the choice was made with all groups measured; guarded by mu
	fresh   bool                  // settings changed since the last round; guarded by mu
	soon    time.Time             // fresh: when to begin a round for that; guarded by mu
	next    time.Time             // when the next round is to begin; guarded by mu
	since   time.Time             // when the choice was made; guarded by mu
}

// A view is what a request needs to know.
type view struct {
	chosen     *proxyGroup // nil: the bucket
	maxProxied int64
	groups     []*proxyGroup // all, as in the settings
}

// A proxyGroup is a proxy group with its members. It is not changed, but replaced.
type proxyGroup struct {
	settings GroupSettings
	ring     *hashring.Ring
	members  map[string]*member // by address
	former   []*member          // that may have blocks, but own none
}

// A memberKey tells members apart: one with another pin is another.
type memberKey struct {
	Member
	noSSL bool
}

// groupStats count what happened since the start. Fields only grow.
type groupStats struct {
	proxied       atomic.Int64 // operations that a proxy did
	direct        atomic.Int64 // operations that went to the bucket, no proxy being asked
	fallbacks     atomic.Int64 // operations that went to the bucket as the proxies failed
	failovers     atomic.Int64 // requests that were sent to a member that is not the owner
	retriesDenied atomic.Int64 // requests that were not sent to another member, as too many failed
	checks        atomic.Int64 // missing blocks that were looked for in the bucket
	found         atomic.Int64 // of them: those that were there
	switches      atomic.Int64 // changes of the group, or to the bucket and back
	hedged        atomic.Int64 // operations that were sent to the bucket as well, as a member took long
	hedgesWon     atomic.Int64 // of them: those that the bucket did before
	hedgesDenied  atomic.Int64 // operations that were not, as there were too many
	compared      atomic.Int64 // operations that were done by a member and the bucket, to compare them
	bypasses      atomic.Int64 // times that a member was found slow
	searched      atomic.Int64 // blocks that were not in the bucket and were searched for
	foundAtPeer   atomic.Int64 // of them: those that another proxy had
}

// New returns a Group. It does nothing by itself: see Run.
func New(cfg Config) *Group {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Timing.setDefaults()
	g := &Group{
		cfg:   cfg,
		wake:  make(chan struct{}, 1),
		slots: make(chan struct{}, maxProbes),
		all:   make(map[memberKey]*member),
		since: time.Now(),

		hedges:  newBudget(hedgeShare, hedgeBurst),
		retries: newBudget(retryShare, retryBurst),
		search:  newSearches(),
		races:   newRaces(),
	}
	g.view.Store(&view{})
	g.Update(cfg.Groups, cfg.MaxProxied)
	return g
}

// Update changes the settings: the groups, and how many of the first blocks of a
// file go through proxies (0: all). Requests under way go on, and what is known
// of members that stay is kept. A member that is new is used when it has
// answered a probe. Settings that are as before change nothing.
func (g *Group) Update(groups []GroupSettings, maxProxied int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := &view{maxProxied: maxProxied, chosen: g.view.Load().chosen, groups: g.groups}
	if slices.EqualFunc(g.groups, groups, (*proxyGroup).is) {
		g.view.Store(v)
		return
	}
	all := make(map[memberKey]*member)
	g.groups = g.groups[:0:0]
	for _, s := range groups {
		g.groups = append(g.groups, g.build(s, all))
	}
	for key, m := range g.all {
		if all[key] == nil {
			m.idle()
		}
	}
	g.all, g.fresh, v.groups = all, true, g.groups
	g.soon = time.Now()
	if v.chosen != nil { // all clients hear of a change at the same moment
		g.soon = g.soon.Add(rand.N(g.cfg.Timing.Round / 20))
		v.chosen = cmp.Or(g.groupOf(v.chosen.settings.ID), &proxyGroup{ring: hashring.New()}) // what is gone has no members
	}
	g.view.Store(v)
	g.choose()
	g.findShadow()
	g.poke()
}

// is reports whether p has the settings s.
func (p *proxyGroup) is(s GroupSettings) bool {
	t := p.settings
	return t.ID == s.ID && t.Name == s.Name && t.NoSSL == s.NoSSL && slices.Equal(t.Members, s.Members) && slices.Equal(t.Former, s.Former)
}

// build returns the group of s, with the members that are there already and new
// ones, and adds them to all. g.mu must be held.
func (g *Group) build(s GroupSettings, all map[memberKey]*member) *proxyGroup {
	s.Members, s.Former = slices.Clone(s.Members), slices.Clone(s.Former)
	p := &proxyGroup{settings: s, members: make(map[string]*member)}
	var names []string
	for _, settings := range s.Members {
		p.members[settings.Address] = g.member(memberKey{settings, s.NoSSL}, all)
		names = append(names, settings.Address)
	}
	for _, settings := range s.Former {
		p.former = append(p.former, g.member(memberKey{settings, s.NoSSL}, all))
	}
	p.ring = hashring.New(names...)
	return p
}

// member returns the member that is there already or a new one, and adds it to
// all. g.mu must be held.
func (g *Group) member(key memberKey, all map[memberKey]*member) *member {
	m := all[key]
	if m == nil {
		m = g.all[key]
	}
	if m == nil {
		m = newMember(key.Member, key.noSSL, &g.cfg, g.doubt, g.reconsider)
		m.bypasses = &g.stats.bypasses
	}
	all[key] = m
	return m
}

// groupOf returns the group with the id, or nil. g.mu must be held.
func (g *Group) groupOf(id int64) *proxyGroup {
	for _, p := range g.groups {
		if p.settings.ID == id {
			return p
		}
	}
	return nil
}

// Get implements [store.Store].
func (g *Group) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	out, err := g.do(ctx, operation{kind: kindGet, key: key, off: off, n: n})
	return out.data, err
}

// GetFrames implements [store.FrameGetter]. Without a proxy it is not supported,
// unless the bucket does.
func (g *Group) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	out, err := g.do(ctx, operation{kind: kindFrames, key: key, off: off, n: n})
	return out.data, out.frames, err
}

// Put implements [store.Store].
func (g *Group) Put(ctx context.Context, key store.Key, data []byte) error {
	_, err := g.do(ctx, operation{kind: kindPut, key: key, data: data})
	return err
}

// Delete implements [store.Store].
func (g *Group) Delete(ctx context.Context, key store.Key) error {
	_, err := g.do(ctx, operation{kind: kindDelete, key: key})
	return err
}

// do does an operation through the proxies, or else directly.
func (g *Group) do(ctx context.Context, op operation) (outcome, error) {
	v := g.view.Load()
	g.tryShadow(ctx, &op)
	if v.chosen == nil || v.maxProxied > 0 && int64(op.key.Index) >= v.maxProxied {
		g.stats.direct.Add(1)
		out, err := g.direct(ctx, &op, false)
		if err != nil {
			return g.elsewhere(ctx, &op, err)
		}
		return out, nil
	}
	g.hedges.earn()
	g.retries.earn()
	c := &call{g: g, ctx: ctx, op: op, mayHedge: op.isRead() && !store.MustVerify(ctx) && !store.IsLocal(ctx)}
	defer c.end()
	out, err := c.through(v.chosen)
	switch {
	case err == nil || errors.Is(err, ErrReadOnly):
		g.stats.proxied.Add(1)
		return out.orNothing(err)
	case ctx.Err() != nil:
		return outcome{}, err
	case errors.Is(err, store.ErrNotExist):
		return g.lookAgain(c)
	}
	g.stats.fallbacks.Add(1)
	out, failed := c.bucket()
	if failed != nil {
		out, failed = g.elsewhere(ctx, &op, failed)
	}
	if failed != nil {
		return outcome{}, fmt.Errorf("%w (and by way of the proxies: %v)", failed, err)
	}
	return out, nil
}

// orNothing returns what was read, if there was no error.
func (out outcome) orNothing(err error) (outcome, error) {
	if err != nil {
		return outcome{}, err
	}
	return out, nil
}

// lookAgain asks the bucket for a block that a proxy says does not exist: its
// cache does not have it all. Then it is searched for.
func (g *Group) lookAgain(c *call) (outcome, error) {
	g.stats.checks.Add(1)
	out, err := c.bucket()
	if err != nil {
		return g.elsewhere(c.ctx, &c.op, err)
	}
	g.stats.found.Add(1)
	g.cfg.Log.Warn("a proxy does not find a block that is there", "block", c.op.key.String())
	return out, nil
}

// direct does an operation without the proxies, and notes how long it took.
func (g *Group) direct(ctx context.Context, op *operation, whole bool) (outcome, error) {
	began := time.Now()
	out, err := op.near(ctx, g.cfg.Origin, whole)
	if class := op.class(); err == nil && class != classOther {
		g.latency[class].record(time.Since(began))
	}
	return out, err
}

// compares reports whether a request to m is to be done by the bucket as well, to
// compare them.
func (g *Group) compares(m *member, c class) bool {
	if !m.looksSlow(c, &g.latency[c]) || !m.mayCheck() {
		return false
	}
	if !g.hedges.take() {
		m.checked()
		return false
	}
	return true
}

// tryShadow sends a copy of op to a member on trial that no operation would go
// through: its group is not chosen, and would not be otherwise.
func (g *Group) tryShadow(ctx context.Context, op *operation) {
	m := g.shadow.Load()
	if m == nil || op.kind == kindDelete || store.MustVerify(ctx) || store.IsLocal(ctx) {
		return
	}
	alive, judged, err := m.enter(op.class(), true)
	if err != nil {
		return
	}
	if !judged { // not any more
		m.withdraw(op.class())
		return
	}
	if !g.races.begin(1) {
		m.withdraw(op.class())
		return
	}
	c := &call{g: g, op: *op}
	c.op.data = bytes.Clone(op.data)
	shadow, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.ctx = shadow
	go func() {
		defer g.races.Done()
		defer cancel()
		defer context.AfterFunc(g.races.life, cancel)()
		c.race(m, alive, c.op)
	}()
}

// reconsider chooses again after a member went up or down.
func (g *Group) reconsider() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.choose()
	g.findShadow()
	g.poke()
}

// findShadow looks for a member for tryShadow. g.mu must be held.
func (g *Group) findShadow() {
	var found *member
	chosen := g.view.Load().chosen
	for _, p := range g.groups {
		for _, m := range p.members {
			if p != chosen && m.isJudged() {
				found = m
			}
		}
	}
	g.shadow.Store(found)
}

// doubt has m probed, for which a request has been waiting for long, and all
// members of all groups that it could be sent to instead: if one is dead others may be, too,
// and are to be found dead all at once.
func (g *Group) doubt(m *member) {
	m.doubted()
	now, last := time.Now().UnixNano(), g.doubted.Load()
	if now-last >= int64(g.cfg.Timing.Patience/2) && g.doubted.CompareAndSwap(last, now) {
		for _, p := range g.view.Load().groups {
			for _, other := range p.members {
				other.doubted()
			}
		}
	}
	g.poke()
}

// poke wakes Run.
func (g *Group) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}
