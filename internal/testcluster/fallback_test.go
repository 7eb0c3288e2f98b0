package testcluster

import (
	"fmt"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/traffic"
	"flexfs/store/remote"
)

// usual are the times that mounts have without a test.
var usual = remote.Timing{Probe: time.Second, Round: 10 * time.Second, Pause: 2 * time.Second}

// resumed is how soon a group is used again that can be reached again: twice
// what is promised.
const resumed = 10 * time.Second

// maxSlow bounds the calls that wait when all proxies fail: two for each of the
// programs, where one is promised.
const maxSlow = 8

// Whatever happens to all proxies of all groups at once, programs go on, through
// the bucket. They wait once, not for each block. Soon after the proxies are
// back they are in use again.
func TestTrafficGoesOnWithoutProxies(t *testing.T) {
	for name, line := range map[string]faultnet.Line{
		"refused": {State: faultnet.Refused},
		"frozen":  {State: faultnet.Frozen},
		"lost":    {State: faultnet.Lost},
		"mute":    {State: faultnet.Mute},
		"far":     {Latency: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c := Start(t, Options{FaultyNet: true, Timing: usual, Lease: lease, Volume: map[string]any{"blockSize": blockSize}})
			tr, mounts := busy(t, c)
			tr.Do(50)
			before := tr.Phase("before")
			for _, g := range c.Groups {
				g.SetLine(line)
			}
			for _, m := range mounts {
				c.Await("the bucket is in use", func() error { return uses(m, nil) })
			}
			tr.Do(50)
			during := tr.Phase(name)
			if during.Slow > maxSlow {
				t.Errorf("%d calls waited for dead proxies", during.Slow)
			}
			for _, g := range c.Groups {
				g.SetLine(faultnet.Line{})
			}
			begin := time.Now()
			for _, m := range mounts {
				c.Await("a group is in use again", func() error { return chosen(m) })
			}
			took := time.Since(begin)
			tr.Do(20)
			after := tr.Phase("after")
			t.Logf("resumed after %v", took)
			if took > resumed {
				t.Errorf("a group was used again after %v", took)
			}
			for _, r := range []traffic.Report{before, during, after} {
				if r.Max > longest {
					t.Errorf("a call took %v", r.Max)
				}
			}
			verified(t, c, tr, nil)
		})
	}
}

// reaches returns an error unless the mount reaches all proxies, and may use them.
func reaches(m *Mount) error {
	for _, g := range m.Stats().Proxies.Groups {
		for _, member := range g.Members {
			if member.State != "up" && member.State != "slow" {
				return fmt.Errorf("proxy %s is %s", member.Address, member.State)
			}
		}
	}
	return nil
}

// What is wrong with the way to proxies that can be used costs time only.
func TestTrafficGoesOnOverABadLine(t *testing.T) {
	bucket := newBucket(t)
	c := Start(t, Options{Groups: 1, Members: 3, FaultyNet: true, BlockStore: bucket.settings, Timing: usual, Lease: lease, Volume: map[string]any{"blockSize": blockSize}})
	bucket.is(50 * time.Millisecond) // so that mounts do not prefer it
	defer bucket.is(0)
	g := c.Groups[0]
	tr, mounts := busy(t, c)
	tr.Do(50)
	tr.Phase("before")
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"connections are cut, again and again", func() { g.SetLine(faultnet.Line{CutAfter: 400 << 10}) }},
		{"30 ms away, with jitter", func() { g.SetLine(faultnet.Line{Latency: 15 * time.Millisecond, Jitter: 10 * time.Millisecond}) }},
		{"a narrow line", func() { g.SetLine(faultnet.Line{Rate: 4 << 20}) }},
		{"all connections are cut", func() {
			for range 5 {
				for _, p := range g.Proxies {
					p.Net.Cut()
				}
				tr.Do(5)
			}
		}},
		{"one is refused", func() { g.Proxies[0].SetLine(faultnet.Line{State: faultnet.Refused}) }},
		{"another is frozen", func() {
			g.Proxies[1].SetLine(faultnet.Line{State: faultnet.Frozen})
		}},
		{"the third loses everything", func() {
			g.Proxies[2].SetLine(faultnet.Line{State: faultnet.Lost})
		}},
		{"the first does not answer", func() {
			g.Proxies[0].SetLine(faultnet.Line{State: faultnet.Mute})
		}},
		{"the second is slow", func() {
			g.Proxies[1].SetLine(faultnet.Line{Latency: 150 * time.Millisecond})
		}},
	} {
		step.do()
		begin := time.Now()
		tr.Do(40)
		time.Sleep(time.Until(begin.Add(time.Second)))
		if r := tr.Phase(step.name); r.Max > longest {
			t.Errorf("%s: a call took %v", step.name, r.Max)
		}
		g.SetLine(faultnet.Line{})
		for _, m := range mounts {
			c.Await("all proxies are used again", func() error { return reaches(m) })
		}
	}
	verified(t, c, tr, mounts)
}
