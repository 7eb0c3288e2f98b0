// Package soak is for tests that take long: random work that goes on for as
// long as the environment says, from a seed that it may say too.
package soak

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// Variables of the environment: for how many minutes each test goes on, and the
// seed that repeats what happened.
const (
	minutesVar = "FLEXFS_SOAK_MINUTES"
	seedVar    = "FLEXFS_SOAK_SEED"
)

// A Soak is a long test at work.
type Soak struct {
	*rand.Rand
	Seed     uint64
	Deadline time.Time // when the random work is to end; what follows may take its time
}

// Start begins a long test, whose name must begin with TestSoak. It skips the
// test unless the environment says how long to go on, and logs the seed. What
// runs at the same time must not share the Rand: see [Soak.Part].
func Start(t testing.TB) *Soak {
	t.Helper()
	text := os.Getenv(minutesVar)
	if text == "" {
		t.Skipf("a long test: %s says how many minutes it takes (make soak)", minutesVar)
	}
	minutes, err := strconv.ParseFloat(text, 64)
	if err != nil || !(minutes > 0 && minutes < 1e6) {
		t.Fatalf("%s=%s is not a number of minutes like 60 or 0.5", minutesVar, text)
	}
	seed := rand.Uint64()
	if text := os.Getenv(seedVar); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s=%s is not a seed: they are numbers", seedVar, text)
		}
	}
	s := &Soak{Seed: seed, Deadline: time.Now().Add(time.Duration(minutes * float64(time.Minute)))}
	s.Rand = s.Part(0)
	t.Logf("seed %d until %s; %s=%[1]d repeats its choices", seed, s.Deadline.Format(time.TimeOnly), seedVar)
	return s
}

// Part returns a source of random numbers of its own, for a part of the test
// that runs beside others: the same for the same seed and n.
func (s *Soak) Part(n uint64) *rand.Rand { return rand.New(rand.NewPCG(s.Seed, n)) }

// Over reports whether the random work is to end.
func (s *Soak) Over() bool { return !time.Now().Before(s.Deadline) }
