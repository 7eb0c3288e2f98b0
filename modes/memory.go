package modes

import (
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

// minMemory is the least memory for blocks that a mount or a proxy works in:
// some of the largest to keep, and some under way.
const minMemory = 64 << 20

// memory returns the bytes that a is of this machine's memory, and refuses a
// size that is too small to work in.
func (a Amount) memory() (int64, error) {
	n := a.Of(machineMemory())
	if n < minMemory && a.Percent == 0 {
		return 0, usagef("--memCapacity: %s is less than %s, the least to work in", a, formatSize(minMemory))
	}
	return max(n, minMemory), nil
}

// limitMemory tells the garbage collector to keep the process near limit. Most of
// its memory are blocks, which cost nothing to mark: collecting more often than
// usual keeps it small. GOMEMLIMIT and GOGC override it.
func limitMemory(limit int64) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}

// machineMemory returns the bytes of memory that this process may use: the
// machine's, or less if a control group says so.
func machineMemory() int64 {
	total := int64(math.MaxInt64)
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		total = int64(info.Totalram) * int64(info.Unit)
	}
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 {
			total = min(total, n)
		}
	}
	return total
}
