package remote

import (
	"context"
	"fmt"
	"time"

	"flexfs/store"
)

// maxFruitless is after how many misses in a row that no peer could help with
// peers are not asked any more, until members change.
const maxFruitless = 200

// Fill returns next, a bucket, behind the peers: for a while after the members
// changed or this proxy started, a whole block is asked for at the two peers that
// would have owned it before, or stood in while this proxy was away, and from
// next if they do not hold it. The while ends early if that does not pay. Later,
// and for all else, peers are asked only if next fails.
//
// A block that a client wants checked ([store.MustVerify]) is not taken from
// peers. Questions are asked with the client's ticket; without one there are
// none. Somebody above must see to it that one miss is one Get.
func (p *Peers) Fill(next store.Store) store.Store { return &fill{p, next} }

type fill struct {
	peers *Peers
	next  store.Store
}

// Get implements [store.Store].
func (f *fill) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if store.IsLocal(ctx) {
		return nil, notHeld(key)
	}
	whole := off == 0 && n < 0
	ask := whole && ticketOf(ctx) != "" && !store.MustVerify(ctx)
	early := ask && f.peers.open()
	if early {
		if data := f.peers.get(ctx, key); data != nil {
			return data, nil
		}
	}
	data, err := f.next.Get(ctx, key, off, n)
	if err != nil && ask && !early && ctx.Err() == nil {
		if data := f.peers.get(ctx, key); data != nil {
			return data, nil
		}
	}
	return data, err
}

// GetFrames implements [store.FrameGetter].
func (f *fill) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	if store.IsLocal(ctx) {
		return nil, nil, notHeld(key)
	}
	return store.GetFrames(ctx, f.next, key, off, n)
}

// Put implements [store.Store].
func (f *fill) Put(ctx context.Context, key store.Key, data []byte) error {
	return f.next.Put(ctx, key, data)
}

// Delete implements [store.Store].
func (f *fill) Delete(ctx context.Context, key store.Key) error { return f.next.Delete(ctx, key) }

// DeleteAll implements [store.BulkDeleter].
func (f *fill) DeleteAll(ctx context.Context, keys []store.Key) error {
	return store.DeleteAll(ctx, f.next, keys)
}

var (
	_ store.FrameGetter = (*fill)(nil)
	_ store.BulkDeleter = (*fill)(nil)
)

func notHeld(key store.Key) error {
	return fmt.Errorf("remote: get %v: %w in what this proxy holds", key, store.ErrNotExist)
}

// open reports whether peers may well have what this proxy does not.
func (p *Peers) open() bool {
	began := later(p.start, p.view.Load().changed)
	return time.Since(began) < p.cfg.Timing.Window && p.fruitless.Load() < maxFruitless
}

// get returns the whole block from one of the two peers that most likely hold
// it, or nil.
func (p *Peers) get(ctx context.Context, key store.Key) []byte {
	first, second := p.likely(key)
	if first == nil {
		return nil
	}
	p.stats.asked.Add(1)
	ctx, cancel := context.WithTimeout(store.WithLocal(ctx), p.cfg.Timing.Fill)
	defer cancel()
	data := p.either(ctx, key, first, second)
	if data == nil {
		p.fruitless.Add(1)
		return nil
	}
	p.fruitless.Store(0)
	p.stats.filled.Add(1)
	p.stats.filledBytes.Add(int64(len(data)))
	return data
}

// likely returns the first two usable peers of the order of all that are members
// or were. The owner before a change is one of them: if this proxy was added, the
// old owner is next in order; if the old owner was removed, it comes before this
// one.
func (p *Peers) likely(key store.Key) (first, second *peer) {
	v := p.view.Load()
	now := time.Now().UnixNano()
	for _, name := range v.union.Owners(key.Hash(), -1) {
		m := v.peers[name]
		if _, ok := m.usable(); !ok || m.muted.Load() > now {
			continue
		}
		if first != nil {
			return first, m
		}
		first = m
	}
	return first, nil
}

// either returns the block from first, or else from second, which may be nil.
// The second is asked when the first does not have it, or takes its time. A
// question that is still open then ends with ctx.
func (p *Peers) either(ctx context.Context, key store.Key, first, second *peer) []byte {
	answers := make(chan []byte, 2)
	asked := 1
	go func() { answers <- p.from(ctx, first, key) }()
	hedge := time.NewTimer(p.cfg.Timing.Hedge)
	defer hedge.Stop()
	for got := 0; got < asked; {
		select {
		case data := <-answers:
			if got++; data != nil {
				return data
			}
		case <-hedge.C:
		}
		if second != nil {
			asked++
			m := second
			second = nil
			go func() { answers <- p.from(ctx, m, key) }()
		}
	}
	return nil
}

// from returns the block from the peer m, or nil.
func (p *Peers) from(ctx context.Context, m *peer, key store.Key) (data []byte) {
	err := m.ask(ctx, func(ctx context.Context, c *Client) (err error) {
		data, err = c.Get(ctx, key, 0, -1)
		return err
	})
	switch {
	case err == nil:
	case context.Cause(ctx) == context.DeadlineExceeded:
		p.stats.late.Add(1)
		m.mute(p.cfg.Timing.Mute)
		return nil
	default:
		return nil
	}
	if p.cfg.Verify == nil {
		return data
	}
	if _, err := p.cfg.Verify(key, data); err != nil {
		p.stats.rejected.Add(1)
		m.mute(p.cfg.Timing.Mute)
		p.cfg.Log.Warn("a peer answered with what is not the block", "proxy", m.settings.Address, "block", key.String(), "err", err)
		return nil
	}
	return data
}

// mute has the peer not asked for blocks for a while.
func (m *peer) mute(d time.Duration) { m.muted.Store(time.Now().Add(d).UnixNano()) }
