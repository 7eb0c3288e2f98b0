package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A sample is one run of several clients against a target.
type sample struct {
	bytes  int64
	wall   time.Duration
	server time.Duration // CPU of its processes
	client time.Duration // CPU of this one
	took   []time.Duration
	busy   float64 // share of the machine that others used meanwhile
}

// An operation is done by a client on its own connection. It is the nth of all
// clients together, and returns how many bytes it moved and how long that took.
type operation func(c *conn, n int64) (int64, time.Duration, error)

// run has clients do op again and again for a time.
func run(ctx context.Context, t *target, clients int, during time.Duration, op operation) (*sample, error) {
	conns := make([]*conn, clients)
	for i := range conns {
		c, err := t.dial(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[i] = c
	}
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	var s sample
	before, err := used(t)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			var bytes int64
			var took []time.Duration
			var err error
			for err == nil && time.Since(start) < during && ctx.Err() == nil {
				var n int64
				var d time.Duration
				n, d, err = op(c, next.Add(1))
				bytes, took = bytes+n, append(took, d)
			}
			mu.Lock()
			defer mu.Unlock()
			s.bytes += bytes
			s.took = append(s.took, took...)
			if err != nil {
				failed = fmt.Errorf("%s: %w", t.name, err)
			}
		})
	}
	wg.Wait()
	s.wall = time.Since(start)
	after, err := used(t)
	if err != nil {
		return nil, err
	}
	s.server, s.client = after.server-before.server, after.client-before.client
	if all := after.all - before.all; all > 0 {
		s.busy = max(0, 1-float64(s.server+s.client)/float64(all)-float64(after.idle-before.idle)/float64(all))
	}
	if failed == nil {
		failed = ctx.Err()
	}
	return &s, failed
}

// usage is CPU time since some past moment.
type usage struct {
	server, client time.Duration
	all, idle      time.Duration // of the machine
}

func used(t *target) (u usage, err error) {
	for _, pid := range t.pids {
		cpu, err := cpuOf(pid)
		if err != nil {
			return u, fmt.Errorf("CPU time of %s: %w", t.name, err)
		}
		u.server += cpu
	}
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return u, err
	}
	u.client = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	u.all, u.idle, err = machine()
	return u, err
}

// cpuOf returns the CPU time of a process with all its threads, to the
// nanosecond: the clock that clock_getcpuclockid(3) returns.
func cpuOf(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// machine returns the time of all CPUs, and the part that they were idle.
func machine() (all, idle time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line)[1:9] { // the rest is in these already
		var ticks int64
		if _, err := fmt.Sscan(field, &ticks); err != nil {
			return 0, 0, err
		}
		d := time.Duration(ticks) * time.Second / 100
		all += d
		if i == 3 || i == 4 { // idle, and waiting for a disk
			idle += d
		}
	}
	return all, idle, nil
}

// median returns the middle one of what f says of each.
func median[T any](all []T, f func(T) float64) float64 {
	var list []float64
	for _, x := range all {
		list = append(list, f(x))
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	if n := len(list); n%2 == 0 {
		return (list[n/2-1] + list[n/2]) / 2
	}
	return list[len(list)/2]
}

// Of a sample.

func (s *sample) gib() float64       { return float64(s.bytes) / (1 << 30) }
func (s *sample) rate() float64      { return s.gib() / s.wall.Seconds() }
func (s *sample) serverCPU() float64 { return s.server.Seconds() / s.gib() }
func (s *sample) clientCPU() float64 { return s.client.Seconds() / s.gib() }
func (s *sample) foreign() float64   { return s.busy }
func (s *sample) p50() float64       { return median(s.took, time.Duration.Seconds) }
