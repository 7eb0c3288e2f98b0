package writeback

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A scenario is a course of events, to which one fault more is added.
type scenario struct {
	name   string
	nodes  int
	victim string // the only node that may fail; "": any one
	setUp  func(w *world)
}

// once returns a hook that does something at the step of that name.
func once(name string, do func()) func(string) {
	return func(step string) {
		if step == name {
			do()
		}
	}
}

var scenarios = []scenario{
	{name: "nothing else", nodes: 3, setUp: func(*world) {}},
	{name: "two members", nodes: 2, setUp: func(*world) {}},
	{name: "slow bucket", nodes: 3, setUp: func(w *world) { w.slow = 40 * time.Second }},
	{name: "no news", nodes: 3, setUp: func(w *world) { w.always["news"] = fault{lost: true} }},
	{name: "no room at the first", nodes: 3, setUp: func(w *world) { w.node("P").disk.full = true }},
	{name: "no room at the second", nodes: 3, setUp: func(w *world) { w.node("S").disk.full = true }},
	{name: "no room at all", nodes: 3, setUp: func(w *world) {
		for _, n := range w.nodes {
			n.disk.full = true
		}
	}},
	{name: "first dies after the answer", nodes: 3, victim: "P", setUp: func(w *world) {
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{down: time.Minute}) })
	}},
	{name: "first dies with its disk after the answer", nodes: 3, victim: "P", setUp: func(w *world) {
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{down: 10 * time.Second, wipe: true}) })
	}},
	{name: "first freezes after the answer", nodes: 3, victim: "P", setUp: func(w *world) {
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{freeze: time.Minute}) })
	}},
	{name: "first restarts after the answer", nodes: 3, victim: "P", setUp: func(w *world) {
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{down: 100 * time.Millisecond}) })
	}},
	{name: "second restarts after the answer", nodes: 3, victim: "S", setUp: func(w *world) {
		w.slow = 5 * time.Second
		w.on = once("upload@P#1", func() { w.node("S").suffer(harm{down: 100 * time.Millisecond}) })
	}},
	{name: "second freezes during the copy", nodes: 3, victim: "S", setUp: func(w *world) {
		w.on = once("write@S#1", func() { w.node("S").suffer(harm{freeze: 30 * time.Second}) })
	}},
	{name: "first is removed", nodes: 3, setUp: func(w *world) {
		w.slow = 3 * time.Second
		w.on = once("upload@P#1", func() { w.removeMember("P") })
	}},
	{name: "damaged blocks vanish", nodes: 3, victim: "P", setUp: func(w *world) {
		w.node("P").disk.drops = true
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{down: time.Second, rot: true}) })
	}},
	{name: "bucket away", nodes: 3, setUp: func(w *world) {
		w.setAway(true)
		time.AfterFunc(time.Minute, func() { w.setAway(false) })
	}},
}

func (w *world) setAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

func (w *world) isAway() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.away
}

// removeMember takes a node out of the group: it goes on, but takes nothing new.
func (w *world) removeMember(name string) {
	n := w.node(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed, n.out = true, true
}

// run plays the scenario with a fault at a step. It returns the steps, and
// whether the fault has happened.
func (sc scenario) run(t *testing.T, at string, f fault) (steps []step, fired bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sc.nodes)
		sc.setUp(w)
		if at != "" {
			w.faults[at] = f
		}
		stop := w.start()
		defer stop()
		time.Sleep(time.Second)
		key, data := numbered(1)
		if !w.put(key, data) {
			t.Error("the block was not acknowledged")
		}
		// Long enough for a fault that comes late, and all that follows.
		w.settle()
		w.check()
		w.mu.Lock()
		defer w.mu.Unlock()
		steps, fired = w.steps, w.fired
	})
	return steps, fired
}

// faultsAt returns all that may happen at a step.
func (sc scenario) faultsAt(s step) []fault {
	all := []fault{{lost: true}}
	if s.local && !strings.HasPrefix(s.name, "write") {
		all = nil // reading and cleaning cannot fail by themselves
	}
	whens := []string{"before", "after"}
	switch {
	case strings.HasPrefix(s.name, "write"):
		whens = []string{"before", "middle", "after"}
	case !s.local:
		all = append(all, fault{replyLost: true})
	}
	for _, node := range []string{s.from, s.to} {
		if node == "" || node == "client" || sc.victim != "" && node != sc.victim {
			continue
		}
		for _, when := range whens {
			for _, h := range harms {
				all = append(all, fault{node: node, when: when, what: h})
			}
		}
	}
	return all
}

// maxSame bounds how many steps of the same kind of a scenario are tried.
const maxSame = 2

// Every step of every scenario, and every fault that may happen there to the
// network or to one member.
func TestFaultMatrix(t *testing.T) {
	all, cells, fired := 0, 0, 0
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			steps, _ := sc.run(t, "", fault{})
			for _, s := range steps {
				if nth(s.name) > maxSame {
					continue
				}
				for _, f := range sc.faultsAt(s) {
					if all++; all%sparse != 0 {
						continue
					}
					cells++
					t.Run(fmt.Sprintf("%s %v", s.name, f), func(t *testing.T) {
						if _, hit := sc.run(t, s.name, f); hit {
							fired++
						}
					})
				}
			}
		})
	}
	t.Logf("%d faults were tried, %d of them happened", cells, fired)
	if fired < cells*9/10 {
		t.Errorf("only %d of %d faults happened", fired, cells)
	}
}

// nth returns the number of a step among those of its kind.
func nth(name string) (n int) {
	for i := range name {
		if name[i] == '#' {
			fmt.Sscanf(name[i+1:], "%d", &n)
		}
	}
	return n
}
