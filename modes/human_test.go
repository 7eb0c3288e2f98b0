package modes

import (
	"testing"
	"time"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "4MiB": 4 << 20, "4mib": 4 << 20, "64M": 64 << 20, "1.5g": 3 << 29,
		"10 GiB": 10 << 30, "1kb": 1000, "2TB": 2e12, "7P": 7 << 50, "12b": 12,
	} {
		if n, err := parseSize(text); err != nil || n != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "4XB", "1e9", "0x10", "inf", "nan", "9000000P", "4 M B", "5%"} {
		if n, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", text, n)
		}
	}
	for _, n := range []int64{0, 1, 1023, 1024, 1025, 4 << 20, 3 << 29, 1 << 50, 1<<62 + 1} {
		if back, err := parseSize(formatSize(n)); n < 1<<53 && (err != nil || back != n) {
			t.Errorf("parseSize(formatSize(%d)) = %d, %v", n, back, err)
		}
	}
}

func TestAmounts(t *testing.T) {
	for text, want := range map[string]Amount{
		"80%": {Percent: 80}, "2.5%": {Percent: 2.5}, "100%": {Percent: 100}, "10G": {Bytes: 10 << 30}, "0": {},
	} {
		a, err := parseAmount(text)
		if err != nil || a != want {
			t.Errorf("parseAmount(%q) = %v, %v; want %v", text, a, err, want)
		}
		if back, err := parseAmount(a.String()); err != nil || back != a {
			t.Errorf("parseAmount(%q) = %v, %v; want %v", a.String(), back, err, a)
		}
	}
	for _, text := range []string{"", "%", "0%", "101%", "-5%", "NaN%", "ten"} {
		if a, err := parseAmount(text); err == nil {
			t.Errorf("parseAmount(%q) = %v; want an error", text, a)
		}
	}
	if got := (Amount{Percent: 25}).Of(1000); got != 250 {
		t.Errorf("25%% of 1000 is %d", got)
	}
	if got := (Amount{Bytes: 7}).Of(1000); got != 7 {
		t.Errorf("7 bytes of 1000 are %d", got)
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90": 90 * time.Second, "30s": 30 * time.Second, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond,
		"7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "0.5d": 12 * time.Hour,
	} {
		d, err := parseDuration(text)
		if err != nil || d != want {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", text, d, err, want)
		}
		if back, err := parseDuration(formatDuration(d)); err != nil || back != d {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", formatDuration(d), back, err, d)
		}
	}
	for _, text := range []string{"", "d", "-5", "-1h", "1y", "inf", "NaNd", "999999999999999"} {
		if d, err := parseDuration(text); err == nil {
			t.Errorf("parseDuration(%q) = %v; want an error", text, d)
		}
	}
}

func TestTimesOfThePast(t *testing.T) {
	for text, want := range map[string]int64{
		"2026-11-01T12:00:00Z": 1793534400, "2026-11-01T13:00:00+01:00": 1793534400, "2026-11-01T12:00:00.9Z": 1793534400,
		"2h": -7200, "7d": -604800, "1.5s": -1,
	} {
		at, err := parseAtTime(text)
		if err != nil || at != want {
			t.Errorf("parseAtTime(%q) = %d, %v; want %d", text, at, err, want)
		}
		if back, err := parseAtTime(formatAtTime(at)); err != nil || back != at {
			t.Errorf("parseAtTime(%q) = %d, %v; want %d", formatAtTime(at), back, err, at)
		}
	}
	for _, text := range []string{"", "now", "0s", "10ms", "-2h", "2026-11-01", "2026-11-01 12:00:00", "1793534400", "1960-01-01T00:00:00Z"} {
		if at, err := parseAtTime(text); err == nil {
			t.Errorf("parseAtTime(%q) = %d; want an error", text, at)
		}
	}
}

func TestRetention(t *testing.T) {
	for text, want := range map[string]int64{"7d": 604800, "604800": 604800, "-1": -1, "forever": -1, "0": 0, "1h": 3600} {
		n, err := parseRetention(text)
		if err != nil || n != want {
			t.Errorf("parseRetention(%q) = %d, %v; want %d", text, n, err, want)
		}
		if back, err := parseRetention(formatRetention(n)); err != nil || back != n {
			t.Errorf("parseRetention(%q) = %d, %v; want %d", formatRetention(n), back, err, n)
		}
	}
	for _, text := range []string{"", "-2", "1500ms", "always"} {
		if n, err := parseRetention(text); err == nil {
			t.Errorf("parseRetention(%q) = %d; want an error", text, n)
		}
	}
}
