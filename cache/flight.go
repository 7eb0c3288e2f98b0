package cache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// flightTimeout bounds a fetch. Stores below have shorter bounds for each
// request of theirs; this one is for what they forgot.
const flightTimeout = 2 * time.Minute

// flights are the fetches under way, one per block. A fetch belongs to all who
// wait for it: it goes on when the one who began it leaves, and ends early only
// when nobody waits any more.
type flights struct {
	slots chan struct{} // bounds the fetches, and so the bytes they hold
	wg    sync.WaitGroup

	mu sync.Mutex
	m  map[flightKey]*flight // guarded by mu
}

// A flightKey keeps apart the fetches that verify on the way: who needs one
// must not be given the bytes of another.
type flightKey struct {
	key    store.Key
	verify bool
}

type flight struct {
	cancel    context.CancelFunc
	forgotten atomic.Bool   // keep no copy: the block was deleted meanwhile, or nobody waits
	done      chan struct{} // closed when data and err are there
	data      []byte
	sum       uint32 // the CRC-32C of data, if who fetched it knows
	err       error

	waiters int  // guarded by flights.mu
	landed  bool // guarded by flights.mu
}

func newFlights(max int) *flights {
	return &flights{slots: make(chan struct{}, max), m: make(map[flightKey]*flight)}
}

// do returns the block that fetch returns, or what a fetch of it that is under
// way returns. After a success of its own fetch, and not waited for, it calls
// after, if there is one; until that returns, who asks is given the same bytes.
func (g *flights) do(ctx context.Context, k flightKey, fetch func(context.Context, *flight) ([]byte, error), after func(*flight)) (data []byte, joined bool, err error) {
	g.mu.Lock()
	f := g.m[k]
	if joined = f != nil; !joined {
		f = &flight{done: make(chan struct{})}
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTimeout)
		f.cancel = cancel
		g.m[k] = f
		g.wg.Go(func() { g.fly(own, k, f, fetch, after) })
	}
	f.waiters++
	g.mu.Unlock()
	data, err = g.wait(ctx, k, f)
	return data, joined, err
}

// join is do for a fetch that is under way; if none is, ok is false.
func (g *flights) join(ctx context.Context, k flightKey) (data []byte, ok bool, err error) {
	g.mu.Lock()
	f := g.m[k]
	if f == nil {
		g.mu.Unlock()
		return nil, false, nil
	}
	f.waiters++
	g.mu.Unlock()
	data, err = g.wait(ctx, k, f)
	return data, true, err
}

func (g *flights) wait(ctx context.Context, k flightKey, f *flight) ([]byte, error) {
	select {
	case <-f.done:
		return f.data, f.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.waiters--; f.waiters == 0 && !f.landed {
		f.cancel()
		f.forgotten.Store(true) // should it succeed nevertheless
		g.remove(k, f)          // who comes now starts anew
	}
	return nil, context.Cause(ctx)
}

// fly runs one fetch.
func (g *flights) fly(ctx context.Context, k flightKey, f *flight, fetch func(context.Context, *flight) ([]byte, error), after func(*flight)) {
	defer f.cancel()
	select {
	case g.slots <- struct{}{}:
		f.data, f.err = fetch(ctx, f)
		<-g.slots
	case <-ctx.Done():
		f.err = context.Cause(ctx)
	}
	g.mu.Lock()
	f.landed = true
	if f.err != nil || after == nil {
		g.remove(k, f)
	}
	g.mu.Unlock()
	close(f.done)
	if f.err != nil || after == nil {
		return
	}
	after(f)
	g.mu.Lock()
	g.remove(k, f)
	g.mu.Unlock()
}

// land makes data, which has this CRC-32C and which nobody changes, what do and
// join find, until after has returned. It is not waited for. If the block is under
// way already, nothing happens. When it is over, and nobody found data, done is
// called.
func (g *flights) land(k flightKey, data []byte, sum uint32, after func(*flight), done func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m[k] != nil {
		done()
		return
	}
	f := &flight{done: make(chan struct{}), data: data, sum: sum, landed: true}
	close(f.done)
	g.m[k] = f
	g.wg.Go(func() {
		after(f)
		g.mu.Lock()
		g.remove(k, f)
		found := f.waiters > 0
		g.mu.Unlock()
		if !found {
			done()
		}
	})
}

// forget has the fetches of the block that are under way leave no copy behind,
// and lets nobody join them any more.
func (g *flights) forget(key store.Key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, verify := range []bool{false, true} {
		k := flightKey{key, verify}
		if f := g.m[k]; f != nil {
			f.forgotten.Store(true)
			delete(g.m, k)
		}
	}
}

// remove takes f off the list, if it is still on it. g.mu must be held.
func (g *flights) remove(k flightKey, f *flight) {
	if g.m[k] == f {
		delete(g.m, k)
	}
}
