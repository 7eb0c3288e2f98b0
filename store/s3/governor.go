package s3

import (
	"context"
	"sync"
	"time"
)

// shrinkEvery is the least time between two halvings of a governor's limit: the
// requests that were in flight together fail together, and count as one.
const shrinkEvery = time.Second

// A governor bounds the requests in flight. The bound is halved when the store
// asks to slow down, and grows back by one per as many successes as it is high.
type governor struct {
	max int

	mu      sync.Mutex
	limit   float64         // between 1 and max; guarded by mu
	busy    int             // requests in flight; guarded by mu
	shrunk  time.Time       // when limit was halved last; guarded by mu
	waiting []chan struct{} // first come first; closed when it is one's turn; guarded by mu
}

func newGovernor(max int) *governor {
	return &governor{max: max, limit: float64(max)}
}

// acquire waits for the right to send a request, to be given back with release.
func (g *governor) acquire(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.mu.Lock()
	if len(g.waiting) == 0 && g.busy < int(g.limit) {
		g.busy++
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		g.leave(turn)
		return context.Cause(ctx)
	}
}

// leave gives up waiting, or the turn if it came at that moment.
func (g *governor) leave(turn chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return
		}
	}
	g.busy--
	g.admit()
}

func (g *governor) release(success bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy--
	if success {
		g.limit = min(g.limit+1/g.limit, float64(g.max))
	}
	g.admit()
}

// admit lets as many go on as there is room for. g.mu must be held.
func (g *governor) admit() {
	for len(g.waiting) > 0 && g.busy < int(g.limit) {
		close(g.waiting[0])
		g.waiting = g.waiting[1:]
		g.busy++
	}
}

// shrink halves the limit, unless that was done a moment ago.
func (g *governor) shrink() (limit int, shrunk bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.shrunk) < shrinkEvery {
		return int(g.limit), false
	}
	g.shrunk = time.Now()
	g.limit = max(g.limit/2, 1)
	return int(g.limit), true
}
