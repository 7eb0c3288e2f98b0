//go:build race

package writeback

// With the race detector, only every so many faults and schedules are tried: they
// take ten times as long, and a race shows up in a few of them.
const sparse = 8
