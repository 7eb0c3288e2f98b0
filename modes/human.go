package modes

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// sizeUnits are the suffixes of a size, in lower case. As usual for storage a
// lone letter is a power of 1024.
var sizeUnits = map[string]float64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	"p": 1 << 50, "pib": 1 << 50, "pb": 1e15,
}

// parseSize parses a number of bytes like 4MiB, 64M, 1.5g or 1048576.
func parseSize(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	i := len(t)
	for i > 0 && t[i-1] >= 'a' && t[i-1] <= 'z' {
		i--
	}
	unit, known := sizeUnits[t[i:]]
	number := strings.TrimSpace(t[:i])
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n < 0 || strings.Trim(number, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is not a size: give a number of bytes, or one like 64M or 4MiB", s)
	}
	if n *= unit; n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is too large a size", s)
	}
	return int64(n), nil
}

// formatSize prints n so that parseSize returns it again, and short if n is a
// whole number of a unit.
func formatSize(n int64) string {
	if n <= 0 {
		return strconv.FormatInt(n, 10)
	}
	for _, unit := range []struct {
		name  string
		shift uint
	}{{"PiB", 50}, {"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n&(1<<unit.shift-1) == 0 {
			return strconv.FormatInt(n>>unit.shift, 10) + unit.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// roundSize prints n for people, with three digits that count.
func roundSize(n int64) string {
	v, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	if unit == "B" || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// An Amount is a number of bytes or a share of something whose size is known
// later, such as the machine's memory or a disk.
type Amount struct {
	Bytes   int64
	Percent float64 // if not 0 it counts, and Bytes does not
}

// parseAmount parses a size or a percentage.
func parseAmount(s string) (Amount, error) {
	t := strings.TrimSpace(s)
	number, isPercent := strings.CutSuffix(t, "%")
	if !isPercent {
		n, err := parseSize(s)
		if err != nil {
			return Amount{}, fmt.Errorf("%q is neither a size like 10GiB nor a percentage like 80%%", s)
		}
		return Amount{Bytes: n}, nil
	}
	p, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !(p > 0 && p <= 100) {
		return Amount{}, fmt.Errorf("%q is not a percentage between 0%% and 100%%", s)
	}
	return Amount{Percent: p}, nil
}

// String prints a so that parseAmount returns it again.
func (a Amount) String() string {
	if a.Percent != 0 {
		return strconv.FormatFloat(a.Percent, 'f', -1, 64) + "%"
	}
	return formatSize(a.Bytes)
}

// Of returns the bytes that a is of total.
func (a Amount) Of(total int64) int64 {
	if a.Percent != 0 {
		return int64(a.Percent / 100 * float64(total))
	}
	return a.Bytes
}

// parseDuration parses what time.ParseDuration does, days and weeks, and plain
// seconds: 90, 1h30m, 7d, 2w.
func parseDuration(s string) (time.Duration, error) {
	t := strings.TrimSpace(s)
	bad := fmt.Errorf("%q is not a duration: give seconds, or one like 30s, 1h30m, 7d or 2w", s)
	if n, err := strconv.ParseInt(t, 10, 64); err == nil {
		return scaleDuration(float64(n), time.Second, bad)
	}
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if number, ok := strings.CutSuffix(t, suffix); ok {
			n, err := strconv.ParseFloat(number, 64)
			if err != nil {
				return 0, bad
			}
			return scaleDuration(n, unit, bad)
		}
	}
	d, err := time.ParseDuration(t)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

func scaleDuration(n float64, unit time.Duration, bad error) (time.Duration, error) {
	if !(n >= 0) || n*float64(unit) >= math.MaxInt64 {
		return 0, bad
	}
	return time.Duration(n * float64(unit)), nil
}

// formatDuration prints d so that parseDuration returns it again.
func formatDuration(d time.Duration) string {
	switch day := 24 * time.Hour; {
	case d > 0 && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d%time.Second == 0 && d < time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + "s"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parseAtTime parses a moment of the past: a second since 1970, or if negative how
// many seconds ago it was. The clock of this machine is not asked.
func parseAtTime(s string) (int64, error) {
	t, err := time.Parse(time.RFC3339, strings.TrimSpace(s))
	if err == nil && t.Unix() > 0 {
		return t.Unix(), nil
	}
	d, err := parseDuration(s)
	if _, plain := strconv.Atoi(s); err != nil || d < time.Second || plain == nil {
		return 0, fmt.Errorf("%q is no time of the past: give one like 2026-11-01T12:00:00Z, or how long ago it was, like 2h or 7d", s)
	}
	return -int64(d / time.Second), nil
}

// formatAtTime prints at so that parseAtTime returns it again.
func formatAtTime(at int64) string {
	switch {
	case at > 0:
		return time.Unix(at, 0).UTC().Format(time.RFC3339)
	case at < 0:
		return formatDuration(time.Duration(-at) * time.Second)
	}
	return ""
}

// parseRetention parses a volume's retention and returns its seconds: a
// duration, 0 for none, -1 or forever for no end.
func parseRetention(s string) (int64, error) {
	if t := strings.ToLower(strings.TrimSpace(s)); t == "-1" || t == "forever" {
		return -1, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a retention: give a duration like 7d, 0 for no history, or forever", s)
	}
	if d%time.Second != 0 {
		return 0, fmt.Errorf("retention %q is not a whole number of seconds", s)
	}
	return int64(d / time.Second), nil
}

// formatRetention prints seconds so that parseRetention returns them again.
func formatRetention(seconds int64) string {
	if seconds < 0 {
		return "forever"
	}
	if seconds == 0 {
		return "0"
	}
	return formatDuration(time.Duration(seconds) * time.Second)
}
