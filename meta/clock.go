package meta

import (
	"sync"
	"time"
)

// A clock is what a client knows of the service's. It is never ahead of it, and
// behind by as little as the answers allow: so files are given times that all
// clients agree on, whatever their own clocks say. Times of this machine are
// counted from an epoch, by the monotonic clock.
type clock struct {
	mu     sync.Mutex
	known  bool
	offset time.Duration // of the service's clock, since 1970, to ours
	most   time.Duration // it is no more than that
}

// heard notes an answer that tells the service's time and came between sent and
// received.
func (c *clock) heard(at Time, sent, received time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := since1970(at) - received
	c.most = since1970(at) - sent
	if !c.known || c.offset < least || c.offset > c.most { // better, or the service's clock was set
		c.known, c.offset = true, least
	}
}

// saw notes a time that the service gave to something before received.
func (c *clock) saw(at Time, received time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if least := since1970(at) - received; c.known && c.offset < least && least <= c.most {
		c.offset = least
	}
}

// at returns the service's time at a time of ours.
func (c *clock) at(now time.Duration) Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		return TimeOf(time.Now())
	}
	return TimeOf(time.Unix(0, int64(now+c.offset)))
}

func since1970(t Time) time.Duration {
	return time.Duration(t.Sec)*time.Second + time.Duration(t.Nsec)
}
