package modes

import (
	"fmt"
	"strings"
	"time"

	"flexfs/admin"
)

// formatStatus says how the members of a proxy group are, a line each.
func formatStatus(list []admin.MemberStatus, now time.Time) string {
	var lines []string
	for _, s := range list {
		lines = append(lines, s.Address+" "+strings.Join(memberWords(s, now), ", "))
	}
	return strings.Join(lines, "\n")
}

func memberWords(s admin.MemberStatus, now time.Time) []string {
	var words []string
	if s.Former {
		words = append(words, "removed")
	}
	switch s.State {
	case admin.StateSilent:
		return append(words, silence(s))
	case admin.StateDrained:
		return append(words, "drained")
	case admin.StateDraining:
		if s.DirtyBlocks > 0 {
			words = append(words, "draining: "+uploads(s, now)+" left")
		} else {
			words = append(words, "draining")
		}
	case admin.StateDiskFailed:
		words = append(words, "its disk is not in use", uploads(s, now)+" to upload")
	default:
		words = append(words, "ok", uploads(s, now)+" to upload",
			fmt.Sprintf("cache %s of %s", roundSize(s.Bytes), roundSize(s.Limit)))
		if asked := s.Hits + s.Misses; asked > 0 {
			words = append(words, fmt.Sprintf("%.0f%% hits", 100*float64(s.Hits)/float64(asked)))
		}
	}
	return append(words, "reported "+sinceText(s.ReportedAt, now)+" ago")
}

// silence says since when there has been no report, and what the last one
// said was left to do.
func silence(s admin.MemberStatus) string {
	text := "no report"
	if !s.ReportedAt.IsZero() {
		text += " since " + s.ReportedAt.Format(time.RFC3339)
	}
	if s.DirtyBlocks > 0 {
		text += fmt.Sprintf(", then with %s in %s to upload", roundSize(s.DirtyBytes), blocks(s.DirtyBlocks))
	}
	return text
}

// uploads says how much is to be uploaded.
func uploads(s admin.MemberStatus, now time.Time) string {
	if s.DirtyBlocks == 0 {
		return "nothing"
	}
	text := fmt.Sprintf("%s in %s", roundSize(s.DirtyBytes), blocks(s.DirtyBlocks))
	if !s.OldestDirty.IsZero() {
		text += " (oldest " + sinceText(s.OldestDirty, now) + ")"
	}
	return text
}

func blocks(n int64) string {
	if n == 1 {
		return "1 block"
	}
	return fmt.Sprintf("%d blocks", n)
}

// sinceText is how long ago t was; the clock of another machine may be ahead.
func sinceText(t, now time.Time) string {
	return formatDuration(max(0, now.Sub(t)).Truncate(time.Second))
}
