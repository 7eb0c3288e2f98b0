package measure

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CPU returns the CPU time of a process with all its threads, to the nanosecond:
// the clock that clock_getcpuclockid(3) returns.
func CPU(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|scheduled), &ts); err != nil {
		return 0, err
	}
	return time.Duration(ts.Nano()), nil
}

// OwnCPU returns the CPU time of this process.
func OwnCPU() (time.Duration, error) { return rusage(syscall.RUSAGE_SELF) }

// ChildrenCPU returns the CPU time of this process's children that have ended and
// were waited for.
func ChildrenCPU() (time.Duration, error) { return rusage(syscall.RUSAGE_CHILDREN) }

func rusage(who int) (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(who, &r); err != nil {
		return 0, err
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}

// Machine returns the time of all CPUs, and the part that they were idle.
func Machine() (all, idle time.Duration, err error) {
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

// Foreign returns which share of the machine others had, of the given times of
// all CPUs, of their idleness, and of our own processes.
func Foreign(all, idle, ours time.Duration) float64 {
	if all <= 0 {
		return 0
	}
	return max(0, 1-float64(ours)/float64(all)-float64(idle)/float64(all))
}
