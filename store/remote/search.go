package remote

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// A block that neither its proxy nor the bucket has may be on its way to the
// bucket: another proxy has it and will upload it, perhaps one of another group,
// or one that is not a member any more. It is searched for.

const (
	maxAsks      = 512 // at once, of all searches
	searchPause  = 200 * time.Millisecond
	searchPauses = 4 * time.Second // at most
)

var errBusy = errors.New("remote: too many blocks are being searched for")

// searches are those under way.
type searches struct {
	slots chan struct{} // one is taken by each question to a member

	mu    *sync.Mutex
	byKey map[store.Key]*search // guarded by mu
}

func newSearches() searches {
	return searches{slots: make(chan struct{}, maxAsks), mu: new(sync.Mutex), byKey: make(map[store.Key]*search)}
}

// A search is one of a block, for all who want it. The rest is set when done is
// closed.
type search struct {
	done   chan struct{}
	holder *member // has it; nil: the bucket has, or nobody
	err    error   // nil: it was found
	gaveUp bool    // who searched did, and err is why
}

// elsewhere does op, if it is a read, with a member that has the block itself: the
// bucket failed with err. If it has failed as such, and not for want of the block,
// nobody is waited for.
func (g *Group) elsewhere(ctx context.Context, op *operation, err error) (outcome, error) {
	v := g.view.Load()
	switch {
	case !op.isRead() || len(v.groups) == 0 || store.IsLocal(ctx) || ctx.Err() != nil:
		return outcome{}, err
	case errors.Is(err, errors.ErrUnsupported) || errors.Is(err, store.ErrCorrupt):
		return outcome{}, err
	case errors.Is(err, store.ErrNotExist):
		return g.searchFor(ctx, op, err)
	}
	g.stats.searched.Add(1)
	out, holder, _ := g.askAll(ctx, op, time.Now().Add(g.cfg.Timing.Search))
	if holder == nil {
		return outcome{}, err
	}
	g.stats.foundAtPeer.Add(1)
	return out, nil
}

// searchFor does the read op, for a block that is not in the bucket, which
// answered notThere.
func (g *Group) searchFor(ctx context.Context, op *operation, notThere error) (outcome, error) {
	for {
		g.search.mu.Lock()
		s := g.search.byKey[op.key]
		if s == nil {
			s = &search{done: make(chan struct{})}
			g.search.byKey[op.key] = s
			g.search.mu.Unlock()
			return g.lead(ctx, s, op, notThere)
		}
		g.search.mu.Unlock()
		select {
		case <-s.done:
		case <-ctx.Done():
			return outcome{}, ctx.Err()
		}
		switch {
		case s.err == nil && s.holder != nil:
			if out, err := g.fetch(ctx, op, s.holder); err == nil {
				return out, nil
			}
			return g.direct(ctx, op, true) // it was uploaded meanwhile
		case s.err == nil:
			return g.direct(ctx, op, true)
		case ctx.Err() == nil && s.gaveUp:
			continue
		}
		return outcome{}, s.err
	}
}

// lead searches for all who want the block.
func (g *Group) lead(ctx context.Context, s *search, op *operation, notThere error) (out outcome, err error) {
	defer func() {
		s.err = err
		g.search.mu.Lock()
		delete(g.search.byKey, op.key)
		g.search.mu.Unlock()
		close(s.done)
	}()
	g.stats.searched.Add(1)
	deadline := time.Now().Add(g.cfg.Timing.Search)
	pause := searchPause
	for {
		var busy error
		if out, s.holder, busy = g.askAll(ctx, op, deadline.Add(g.cfg.Timing.Probe)); s.holder != nil {
			g.stats.foundAtPeer.Add(1)
			g.cfg.Log.Info("a block is not in the bucket yet: a proxy has it", "block", op.key.String(), "proxy", s.holder.settings.Address)
			return out, nil
		}
		if out, err = g.direct(ctx, op, true); err == nil {
			return out, nil
		}
		if s.gaveUp = ctx.Err() != nil; s.gaveUp {
			return outcome{}, ctx.Err()
		}
		left := time.Until(deadline)
		if left <= 0 {
			if errors.Is(err, store.ErrNotExist) {
				err = cmp.Or(busy, notThere)
			}
			return outcome{}, err
		}
		t := time.NewTimer(min(pause, left))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			s.gaveUp = true
			return outcome{}, ctx.Err()
		}
		pause = min(2*pause, searchPauses)
	}
}

// askAll asks all members that there are and were whether they have the block of
// op themselves, and reads it from the first that does. It returns errBusy if some
// were not asked until the deadline, as others ask too much.
func (g *Group) askAll(ctx context.Context, op *operation, deadline time.Time) (outcome, *member, error) {
	asks, cancel := context.WithDeadline(store.WithLocal(ctx), deadline)
	defer cancel()
	members := g.view.Load().everybody(op.key)
	holders := make(chan *member, len(members))
	var busy atomic.Bool
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() {
			select {
			case g.search.slots <- struct{}{}:
				defer func() { <-g.search.slots }()
			case <-asks.Done():
				busy.Store(true)
				return
			}
			if m.has(asks, op.key) {
				holders <- m
			}
		})
	}
	go func() { wg.Wait(); close(holders) }()
	if out, m := g.fetchFirst(ctx, op, holders); m != nil {
		return out, m, nil
	}
	if busy.Load() {
		return outcome{}, nil, errBusy
	}
	return outcome{}, nil, nil
}

// fetchFirst does op with the holders that come, one after the other, until one has
// done it. The next does not wait for one that is silent for too long.
func (g *Group) fetchFirst(ctx context.Context, op *operation, holders <-chan *member) (outcome, *member) {
	type answer struct {
		out outcome
		m   *member // nil: it failed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	silent := time.NewTimer(0)
	defer silent.Stop()
	for next, waiting := (<-chan *member)(nil), 0; ; {
		select {
		case <-silent.C:
			next = holders
		case m, ok := <-next:
			if next = nil; !ok {
				if holders = nil; waiting == 0 {
					return outcome{}, nil
				}
				continue
			}
			waiting++
			silent.Reset(g.cfg.Timing.Hang)
			go func() {
				out, err := g.fetch(ctx, op, m)
				if err != nil {
					m = nil
				}
				select {
				case answers <- answer{out, m}:
				case <-ctx.Done():
				}
			}()
		case a := <-answers:
			if waiting--; a.m != nil || holders == nil && waiting == 0 {
				return a.out, a.m
			}
			next = holders
		}
	}
}

// has asks the member whether it has the block itself. It does so also if the
// member is down, or is none any more: it may be back.
func (m *member) has(ctx context.Context, key store.Key) bool {
	ctx, cancel := context.WithTimeout(ctx, m.timing.Probe)
	defer cancel()
	_, err := m.client.Get(ctx, key, 0, 0)
	return err == nil
}

// fetch does op with a member that has the block itself.
func (g *Group) fetch(ctx context.Context, op *operation, m *member) (outcome, error) {
	ctx, cancel := context.WithTimeout(store.WithLocal(ctx), g.cfg.Timing.Search)
	defer cancel()
	return op.far(ctx, m.client)
}

// everybody returns all members and then all former members of all groups, each
// first those of the chosen group, in the order in which the block is to be looked
// for.
func (v *view) everybody(key store.Key) []*member {
	var list []*member
	seen := make(map[*member]bool)
	add := func(m *member) {
		if !seen[m] {
			seen[m] = true
			list = append(list, m)
		}
	}
	groups := slices.Clone(v.groups)
	if at := slices.Index(groups, v.chosen); at > 0 {
		groups[0], groups[at] = groups[at], groups[0]
	}
	for _, p := range groups {
		for _, name := range p.ring.Owners(key.Hash(), -1) {
			add(p.members[name])
		}
	}
	for _, p := range groups { // there may be many, long gone
		for _, m := range p.former {
			add(m)
		}
	}
	return list
}
