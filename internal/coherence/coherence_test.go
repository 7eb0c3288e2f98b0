package coherence

import (
	"fmt"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/soak"
)

// Whatever is done on one of three mounts is seen on the others when it has
// returned, and all of it is as on one machine.
func TestThreeMountsDoWhatOneMachineDoes(t *testing.T) {
	w := New(t, Options{})
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := NewPlayer(t, w, seed)
			for range 150 {
				p.Step()
			}
			p.End()
		})
	}
}

// So it is though connections break and the service dies and is started again.
func TestThreeMountsDoWhatOneMachineDoesThoughConnectionsBreak(t *testing.T) {
	w := New(t, Options{Lease: 3 * time.Second})
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			p := NewPlayer(t, w, 100+seed)
			for step := range 100 {
				p.fault(step)
				p.Step()
			}
			p.End()
		})
	}
}

// fault breaks something, now and then.
func (p *Player) fault(step int) {
	switch p.IntN(40) {
	case 0, 1, 2:
		m := p.IntN(len(p.w.Mounts))
		p.Log = append(p.Log, fmt.Sprintf("   mount %d loses its connection", m))
		p.w.Mounts[m].Net.Cut()
	case 5, 6, 7, 8: // what is asked is done, and the answers get lost
		m := p.IntN(len(p.w.Mounts))
		p.Log = append(p.Log, fmt.Sprintf("   mount %d hears nothing, and then loses its connection", m))
		line := p.w.Mounts[m].Net
		p.w.must("mute", line.Set(faultnet.Line{State: faultnet.Mute}))
		p.muted.Go(func() {
			time.Sleep(10 * time.Millisecond)
			line.Cut()
			line.Set(faultnet.Line{})
		})
	case 3:
		p.Log = append(p.Log, "   all lose their connections")
		p.w.Cut()
	case 4:
		p.Log = append(p.Log, "   the service dies")
		p.muted.Wait() // else it would open the line to the service that died
		p.w.Crash(p.IntN(101), uint64(step))
	}
}

// Random seeds for as long as is asked for, with and without faults.
func TestSoakCoherence(t *testing.T) {
	s := soak.Start(t)
	seeds, lost := 0, 0
	for n := uint64(0); !s.Over(); n++ {
		seed := s.Seed + n
		seeds++
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := New(t, Options{Lease: 3 * time.Second})
			p := NewPlayer(t, w, seed)
			p.session = w.sessions()
			defer func() {
				if t.Skipped() {
					lost++
				}
			}()
			for step := 0; step < 1000 && !s.Over(); step++ {
				if seed%2 == 0 {
					p.fault(step)
				}
				p.Step()
			}
			p.End()
		})
	}
	t.Logf("%d seeds; a session was lost in %d", seeds, lost)
	if lost >= 2 && 20*lost > seeds {
		t.Errorf("%d of %d seeds tell nothing", lost, seeds)
	}
}
