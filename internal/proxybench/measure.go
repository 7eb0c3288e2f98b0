package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/internal/measure"
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
	s.busy = measure.Foreign(after.all-before.all, after.idle-before.idle, s.server+s.client)
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
		cpu, err := measure.CPU(pid)
		if err != nil {
			return u, fmt.Errorf("CPU time of %s: %w", t.name, err)
		}
		u.server += cpu
	}
	if u.client, err = measure.OwnCPU(); err != nil {
		return u, err
	}
	u.all, u.idle, err = measure.Machine()
	return u, err
}

// Of a sample.

func (s *sample) gib() float64       { return float64(s.bytes) / (1 << 30) }
func (s *sample) rate() float64      { return s.gib() / s.wall.Seconds() }
func (s *sample) serverCPU() float64 { return s.server.Seconds() / s.gib() }
func (s *sample) clientCPU() float64 { return s.client.Seconds() / s.gib() }
func (s *sample) foreign() float64   { return s.busy }
func (s *sample) p50() float64       { return measure.Median(s.took, time.Duration.Seconds) }
