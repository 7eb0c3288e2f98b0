package meta

import (
	"testing"
	"time"
)

func at(d time.Duration) Time { return TimeOf(time.Unix(0, int64(d))) }

// The estimate is never ahead of the service's clock, follows it when it is set, and
// is not behind what was seen of it.
func TestTheServicesClockIsKnownAndNeverOvertaken(t *testing.T) {
	const year = 365 * 24 * time.Hour
	var c clock
	service := 30*year + 17*time.Second // when ours is at 0: it is years ahead, or behind, of any other
	check := func(now, lag time.Duration) {
		t.Helper()
		got, is := since1970(c.at(now)), service+now
		if got > is || got < is-lag {
			t.Errorf("at %v it is taken to be %v from what it is, want 0 to %v behind", now, got-is, lag)
		}
	}
	c.heard(at(service+30*time.Millisecond), 0, 100*time.Millisecond) // 30 ms there, 70 ms back
	check(time.Second, 70*time.Millisecond)
	c.heard(at(service+2*time.Second), 2*time.Second-5*time.Millisecond, 2*time.Second+5*time.Millisecond)
	check(3*time.Second, 5*time.Millisecond)
	c.heard(at(service+4*time.Second), 3*time.Second, 5*time.Second) // tells less
	check(5*time.Second, 5*time.Millisecond)
	c.saw(at(service+5*time.Second), 5*time.Second+time.Millisecond)
	check(6*time.Second, time.Millisecond)
	c.saw(at(service+year), 6*time.Second) // given before the service's clock was set back
	check(7*time.Second, 2*time.Second)
	for _, by := range []time.Duration{-10 * year, 20 * year, -time.Minute} {
		service += by
		c.heard(at(service+8*time.Second), 8*time.Second-time.Millisecond, 8*time.Second+time.Millisecond)
		check(9*time.Second, time.Millisecond)
	}
}

// The monotonic clock stands still while a machine sleeps. A lease that ended
// meanwhile by the clock on the wall has ended.
func TestALeaseEndsWhileTheMachineSleeps(t *testing.T) {
	c := NewClient(ClientConfig{})
	defer c.Close()
	asleep := time.Duration(0)
	c.wall = func() time.Time { return time.Now().Add(asleep) }
	c.extend(time.Now(), time.Hour)
	if !c.LeaseValid() {
		t.Fatal("a new lease is not valid")
	}
	asleep = 2 * time.Hour
	if c.LeaseValid() {
		t.Error("the lease is valid after two hours of sleep")
	}
	c.extend(time.Now(), time.Hour+time.Minute) // of a request from before
	if c.LeaseValid() {
		t.Error("an answer from before the sleep makes it valid")
	}
}
