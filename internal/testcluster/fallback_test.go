package testcluster

import (
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
			verified(t, c, tr)
		})
	}
}

// What is wrong with the way to proxies that can be used costs time only.
func TestTrafficGoesOnOverABadLine(t *testing.T) {
	c := Start(t, Options{Groups: 1, Members: 3, FaultyNet: true, Timing: usual, Lease: lease, Volume: map[string]any{"blockSize": blockSize}})
	g := c.Groups[0]
	tr, _ := busy(t, c)
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
			g.SetLine(faultnet.Line{})
			for range 5 {
				for _, p := range g.Proxies {
					p.Net.Cut()
				}
				tr.Do(5)
			}
		}},
		{"one is refused", func() { g.Proxies[0].SetLine(faultnet.Line{State: faultnet.Refused}) }},
		{"another is frozen", func() {
			g.Proxies[0].SetLine(faultnet.Line{})
			g.Proxies[1].SetLine(faultnet.Line{State: faultnet.Frozen})
		}},
		{"the third loses everything", func() {
			g.Proxies[1].SetLine(faultnet.Line{})
			g.Proxies[2].SetLine(faultnet.Line{State: faultnet.Lost})
		}},
		{"the first does not answer", func() {
			g.Proxies[2].SetLine(faultnet.Line{})
			g.Proxies[0].SetLine(faultnet.Line{State: faultnet.Mute})
		}},
		{"the second is slow", func() {
			g.Proxies[0].SetLine(faultnet.Line{})
			g.Proxies[1].SetLine(faultnet.Line{Latency: 150 * time.Millisecond})
		}},
	} {
		step.do()
		tr.Do(40)
		if r := tr.Phase(step.name); r.Max > longest {
			t.Errorf("%s: a call took %v", step.name, r.Max)
		}
	}
	verified(t, c, tr)
}
