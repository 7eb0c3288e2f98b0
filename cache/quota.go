package cache

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// A Quota is how much of a disk a [Disk] may use: a number of bytes, or a part
// of the file system that its folder is on. As a part, it also bounds how full
// the file system gets: what others put there makes the cache smaller.
type Quota struct {
	Bytes   int64   // if Percent is 0
	Percent float64 // of the file system's size
}

var units = map[string]float64{
	"": 1, "B": 1,
	"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50,
	"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "PIB": 1 << 50,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15,
}

// ParseQuota parses a percentage, like 90%, or a size, like 10GiB, 10G (the
// same), 10GB (decimal), or a number of bytes.
func ParseQuota(s string) (Quota, error) {
	bad := fmt.Errorf("cache: quota %q is not like 90%% or 10GiB", s)
	number := strings.TrimRight(s, "%BKMGTPIbkmgtpi")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(v > 0) || math.IsInf(v, 0) {
		return Quota{}, bad
	}
	unit := s[len(number):]
	if unit == "%" {
		if v > 100 {
			return Quota{}, bad
		}
		return Quota{Percent: v}, nil
	}
	factor, ok := units[strings.ToUpper(unit)]
	if !ok || v*factor < 1 || v*factor > 1<<62 {
		return Quota{}, bad
	}
	return Quota{Bytes: int64(v * factor)}, nil
}

// String returns a form that [ParseQuota] parses.
func (q Quota) String() string {
	if q.Percent > 0 {
		return strconv.FormatFloat(q.Percent, 'g', -1, 64) + "%"
	}
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if size := int64(units[strings.ToUpper(unit)]); q.Bytes > 0 && q.Bytes%size == 0 {
			return strconv.FormatInt(q.Bytes/size, 10) + unit
		}
	}
	return strconv.FormatInt(q.Bytes, 10)
}

// limit returns the bytes that may be used when used are, on a file system of
// total bytes of which free are free.
func (q Quota) limit(used, total, free int64) int64 {
	if q.Percent == 0 {
		return q.Bytes
	}
	most := int64(float64(total) * q.Percent / 100)
	return max(min(most, used+free-(total-most)), 0)
}
