package writeback

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds = flag.Int("seeds", 100, "random schedules to play")
	seed  = flag.Uint64("seed", 0, "the one random schedule to play")
)

// Random schedules of bursts of Puts, lost messages, full disks, a bucket that is
// away, members that leave, and one member at a time that fails in all ways,
// again and again.
func TestRandomSchedules(t *testing.T) {
	for i := range uint64(max(1, *seeds/sparse)) {
		if *seed != 0 {
			i = *seed - 1
		}
		t.Run(fmt.Sprintf("seed=%d", i+1), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playRandom(t, rand.New(rand.NewPCG(i+1, 0))) })
		})
		if *seed != 0 || t.Failed() {
			break
		}
	}
}

// A chaos is what a random schedule does.
type chaos struct {
	w      *world
	mu     sync.Mutex
	r      *rand.Rand // guarded by mu
	victim string     // who may fail; guarded by mu
	puts   int        // under way; guarded by mu
	calm   bool       // nothing more happens; guarded by mu
}

func playRandom(t *testing.T, r *rand.Rand) {
	w := newWorld(t, 3+r.IntN(2))
	c := &chaos{w: w, r: r, victim: "P"}
	w.dice = c.roll
	w.slow = time.Duration(r.IntN(3000)) * time.Millisecond
	if r.IntN(3) == 0 {
		w.timing.Takeover = time.Second
	}
	for _, n := range w.nodes {
		n.disk.drops = r.IntN(2) == 0
	}
	stop := w.start()
	defer stop()
	blocks := 0
	for range 3 + r.IntN(4) {
		blocks += c.burst(blocks)
		c.pause()
		c.change()
	}
	c.end()
	w.settle()
	w.check()
}

// burst puts some blocks at the same time, and waits for the answers.
func (c *chaos) burst(first int) int {
	c.mu.Lock()
	n := 1 + c.r.IntN(6)
	orders := make([][]*node, n)
	for i := range orders {
		orders[i] = slices.Clone(c.w.nodes)
		c.r.Shuffle(len(orders[i]), func(a, b int) { orders[i][a], orders[i][b] = orders[i][b], orders[i][a] })
	}
	c.puts += n
	c.mu.Unlock()
	var work sync.WaitGroup
	for i := range n {
		key, data := numbered(first + i)
		c.w.setOrder(key, orders[i])
		work.Go(func() {
			if !c.w.put(key, data) && !c.w.isAway() {
				c.w.t.Errorf("block %d was not acknowledged", first+i)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.puts--
		})
	}
	work.Wait()
	return n
}

func (c *chaos) pause() {
	c.mu.Lock()
	d := time.Duration(c.r.Int64N(int64(time.Minute)))
	if c.r.IntN(2) == 0 {
		d /= 100
	}
	c.mu.Unlock()
	time.Sleep(d)
}

// change changes what is no failure of a member, and, if nothing depends on one
// any more, who is the next to fail.
func (c *chaos) change() {
	c.mu.Lock()
	what, which := c.r.IntN(8), c.w.nodes[c.r.IntN(len(c.w.nodes))]
	c.mu.Unlock()
	switch what {
	case 0:
		c.w.setAway(true)
	case 1, 2:
		c.w.setAway(false)
	case 3:
		which.setFull(true)
	case 4:
		which.setFull(false)
	case 5:
		c.w.removeMember(which.name)
	}
	if c.settled() {
		c.mu.Lock()
		c.victim = which.name
		c.mu.Unlock()
	}
}

func (n *node) setFull(full bool) {
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	n.disk.full = full
}

// settled reports whether the bucket has all that was acknowledged, and all
// members run.
func (c *chaos) settled() bool {
	for _, n := range c.w.nodes {
		n.mu.Lock()
		well := n.proc != nil && !time.Now().Before(n.thaw)
		n.mu.Unlock()
		if !well {
			return false
		}
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	for key := range c.w.acked {
		if _, err := c.w.bucket.Get(c.w.t.Context(), key, 0, 0); err != nil {
			return false
		}
	}
	return true
}

// end has all be well from now on.
func (c *chaos) end() {
	c.mu.Lock()
	c.calm = true
	c.mu.Unlock()
	c.w.setAway(false)
	for _, n := range c.w.nodes {
		n.setFull(false)
	}
}

// roll is the world's dice.
func (c *chaos) roll(string) *fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch p := c.r.IntN(100); {
	case c.calm:
		return nil
	case p < 4:
		return &fault{lost: true}
	case p < 8:
		return &fault{replyLost: true}
	case p < 16:
		return &fault{node: c.victim, when: []string{"before", "middle", "after"}[c.r.IntN(3)], what: harms[c.r.IntN(len(harms))]}
	}
	return nil
}
