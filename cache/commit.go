package cache

import "sync"

// A commit has one call do the work of all that wait for it. A sync of a folder
// makes everything durable that is in it, so one is enough for all who put
// something there before it began.
type commit struct {
	slot chan struct{} // of capacity 1; taken during a call

	mu   sync.Mutex
	next *round // that has not begun; guarded by mu
}

func newCommit() *commit { return &commit{slot: make(chan struct{}, 1)} }

// A round is a call that some wait for.
type round struct {
	done chan struct{}
	err  error // when done is closed
}

// do returns after a call of f that began after do was called, and what f
// returned. All callers must give the same f.
func (c *commit) do(f func() error) error {
	c.mu.Lock()
	r := c.next
	first := r == nil
	if first {
		r = &round{done: make(chan struct{})}
		c.next = r
	}
	c.mu.Unlock()
	if first {
		c.run(r, f)
	}
	<-r.done
	return r.err
}

func (c *commit) run(r *round, f func() error) {
	c.slot <- struct{}{}
	defer func() { <-c.slot }()
	c.mu.Lock()
	c.next = nil // who comes now may be too late for this one
	c.mu.Unlock()
	r.err = f()
	close(r.done)
}
