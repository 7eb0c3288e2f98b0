package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	Attempt  time.Duration // for a request to a member that answers probes; default 60 s
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
		{&t.Attempt, time.Minute},
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

	// Lock order: mu before the mu of a member. Nobody talks to a server
	// while holding either.
	mu      sync.Mutex
	all     map[memberKey]*member // guarded by mu
	groups  []*proxyGroup         // as in the settings; guarded by mu
	settled bool                  // the choice was made with all groups measured; guarded by mu
	fresh   bool                  // settings changed since the last round; guarded by mu
	next    time.Time             // when the next round is to begin; guarded by mu
	since   time.Time             // when the choice was made; guarded by mu
}

// A view is what a request needs to know.
type view struct {
	chosen     *proxyGroup // nil: the bucket
	maxProxied int64
}

// A proxyGroup is a proxy group with its members. It is not changed, but replaced.
type proxyGroup struct {
	settings GroupSettings
	ring     *hashring.Ring
	members  map[string]*member // by address
}

// A memberKey tells members apart: one with another pin is another.
type memberKey struct {
	Member
	noSSL bool
}

// groupStats count what happened since the start. Fields only grow.
type groupStats struct {
	proxied   atomic.Int64 // operations that a proxy did
	direct    atomic.Int64 // operations that went to the bucket, no proxy being asked
	fallbacks atomic.Int64 // operations that went to the bucket as the proxies failed
	failovers atomic.Int64 // requests that were sent to a member that is not the owner
	checks    atomic.Int64 // missing blocks that were looked for in the bucket
	found     atomic.Int64 // of them: those that were there
	switches  atomic.Int64 // changes of the group, or to the bucket and back
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
	v := &view{maxProxied: maxProxied, chosen: g.view.Load().chosen}
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
	g.all, g.fresh = all, true
	if v.chosen != nil {
		v.chosen = g.groupOf(v.chosen.settings.ID)
	}
	g.view.Store(v)
	g.choose()
	g.poke()
}

// is reports whether p has the settings s.
func (p *proxyGroup) is(s GroupSettings) bool {
	t := p.settings
	return t.ID == s.ID && t.Name == s.Name && t.NoSSL == s.NoSSL && slices.Equal(t.Members, s.Members)
}

// build returns the group of s, with the members that are there already and new
// ones, and adds them to all. g.mu must be held.
func (g *Group) build(s GroupSettings, all map[memberKey]*member) *proxyGroup {
	s.Members = slices.Clone(s.Members)
	p := &proxyGroup{settings: s, members: make(map[string]*member)}
	var names []string
	for _, settings := range s.Members {
		key := memberKey{settings, s.NoSSL}
		m := all[key]
		if m == nil {
			m = g.all[key]
		}
		if m == nil {
			m = newMember(settings, s.NoSSL, &g.cfg, g.doubt, g.reconsider)
		}
		all[key], p.members[settings.Address] = m, m
		names = append(names, settings.Address)
	}
	p.ring = hashring.New(names...)
	return p
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
func (g *Group) Get(ctx context.Context, key store.Key, off, n int64) (data []byte, err error) {
	err = g.do(ctx, key,
		func(ctx context.Context, c *Client) error { data, err = c.Get(ctx, key, off, n); return err },
		func() error { data, err = g.cfg.Origin.Get(ctx, key, off, n); return err })
	if err != nil {
		return nil, err
	}
	return data, nil
}

// GetFrames implements [store.FrameGetter]. Without a proxy it is not supported,
// unless the bucket does.
func (g *Group) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	err = g.do(ctx, key,
		func(ctx context.Context, c *Client) error {
			head, frames, err = c.GetFrames(ctx, key, off, n)
			return err
		},
		func() error { head, frames, err = store.GetFrames(ctx, g.cfg.Origin, key, off, n); return err })
	if err != nil {
		return nil, nil, err
	}
	return head, frames, nil
}

// Put implements [store.Store].
func (g *Group) Put(ctx context.Context, key store.Key, data []byte) error {
	return g.do(ctx, key,
		func(ctx context.Context, c *Client) error { return c.Put(ctx, key, data) },
		func() error { return g.cfg.Origin.Put(ctx, key, data) })
}

// Delete implements [store.Store].
func (g *Group) Delete(ctx context.Context, key store.Key) error {
	return g.do(ctx, key,
		func(ctx context.Context, c *Client) error { return c.Delete(ctx, key) },
		func() error { return g.cfg.Origin.Delete(ctx, key) })
}

// do does an operation through the proxies, or else directly.
func (g *Group) do(ctx context.Context, key store.Key, far func(context.Context, *Client) error, direct func() error) error {
	v := g.view.Load()
	if v.chosen == nil || v.maxProxied > 0 && int64(key.Index) >= v.maxProxied {
		g.stats.direct.Add(1)
		return direct()
	}
	err := g.through(ctx, v.chosen, key, far)
	switch {
	case err == nil || errors.Is(err, ErrReadOnly):
		g.stats.proxied.Add(1)
		return err
	case ctx.Err() != nil:
		return err
	case errors.Is(err, store.ErrNotExist):
		return g.lookAgain(key, direct)
	}
	g.stats.fallbacks.Add(1)
	if failed := direct(); failed != nil {
		return fmt.Errorf("%w (and by way of the proxies: %v)", failed, err)
	}
	return nil
}

// lookAgain asks the bucket for a block that a proxy says does not exist. Only
// the bucket knows that.
func (g *Group) lookAgain(key store.Key, direct func() error) error {
	g.stats.checks.Add(1)
	err := direct()
	if err == nil {
		g.stats.found.Add(1)
		g.cfg.Log.Warn("a proxy does not find a block that is there", "block", key.String())
	}
	return err
}

// through does an operation through the group p, and if all members that may be
// asked fail, through the group that is chosen instead.
func (g *Group) through(ctx context.Context, p *proxyGroup, key store.Key, op func(context.Context, *Client) error) error {
	err := g.try(ctx, p, key, op)
	if !isMembers(err) || ctx.Err() != nil {
		return err
	}
	if next := g.view.Load().chosen; next != nil && next != p {
		return g.try(ctx, next, key, op)
	}
	return err
}

// try does an operation through a member of p: the owner of key or, should it
// fail or be known to have failed, the next in order.
func (g *Group) try(ctx context.Context, p *proxyGroup, key store.Key, op func(context.Context, *Client) error) error {
	err := errPassed
	tries := 0
	for i, name := range p.ring.Owners(key.Hash(), -1) {
		failed := p.members[name].do(ctx, op)
		if failed == errPassed {
			continue
		}
		if i > 0 {
			g.stats.failovers.Add(1)
		}
		if !isMembers(failed) || ctx.Err() != nil {
			return failed
		}
		err = failed
		if tries++; tries == maxTries {
			break
		}
	}
	return err
}

// isMembers reports whether another member may do better.
func isMembers(err error) bool {
	var r *refusal
	return isFault(err) || errors.As(err, &r) && r.code == codeDamaged
}

// reconsider chooses again after a member went up or down.
func (g *Group) reconsider() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.choose()
	g.poke()
}

// doubt has m probed, for which a request has been waiting for long, and all
// members that it could be sent to instead: if one is dead others may be, too,
// and are to be found dead all at once.
func (g *Group) doubt(m *member) {
	m.doubted()
	if p := g.view.Load().chosen; p != nil {
		for _, other := range p.members {
			other.doubted()
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

// sorted returns the members, in order of their addresses.
func (p *proxyGroup) sorted() []*member {
	names := p.ring.Owners(0, -1)
	slices.Sort(names)
	all := make([]*member, len(names))
	for i, name := range names {
		all[i] = p.members[name]
	}
	return all
}
