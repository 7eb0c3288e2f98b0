package cache

import "testing"

func TestParseQuota(t *testing.T) {
	for s, want := range map[string]Quota{
		"90%":     {Percent: 90},
		"0.5%":    {Percent: 0.5},
		"10GiB":   {Bytes: 10 << 30},
		"10G":     {Bytes: 10 << 30},
		"10g":     {Bytes: 10 << 30},
		"10GB":    {Bytes: 10e9},
		"1.5 TiB": {Bytes: 3 << 39},
		"4096":    {Bytes: 4096},
		"64M":     {Bytes: 64 << 20},
	} {
		got, err := ParseQuota(s)
		if err != nil || got != want {
			t.Errorf("ParseQuota(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := ParseQuota(got.String()); err != nil || again != got {
			t.Errorf("%+v prints as %q, which parses as %+v, %v", got, got.String(), again, err)
		}
	}
	for _, s := range []string{"", "%", "0", "0%", "-1", "101%", "10%%", "10%G", "G", "10XB", "ten", "1e400", "NaN", "Inf", "9999999P"} {
		if got, err := ParseQuota(s); err == nil {
			t.Errorf("ParseQuota(%q) = %+v, want an error", s, got)
		}
	}
}

func TestAPartOfTheDiskLeavesTheRestFree(t *testing.T) {
	for _, tc := range []struct {
		name                    string
		used, total, free, want int64
	}{
		{"all ours", 0, 1000, 1000, 900},
		{"full of ours", 900, 1000, 100, 900},
		{"others have a half", 0, 1000, 500, 400},
		{"others came while we were there", 600, 1000, 50, 550},
		{"others have it all", 0, 1000, 0, 0},
	} {
		if got := (Quota{Percent: 90}).limit(tc.used, tc.total, tc.free); got != tc.want {
			t.Errorf("%s: limit is %d, want %d", tc.name, got, tc.want)
		}
	}
}
