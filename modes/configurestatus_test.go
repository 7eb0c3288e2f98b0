package modes

import (
	"testing"
	"time"

	"flexfs/admin"
)

func TestMembersAreDescribedToPeople(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	heard := now.Add(-3 * time.Second)
	for _, c := range []struct {
		status admin.MemberStatus
		want   string
	}{
		{admin.MemberStatus{State: admin.StateOK, ReportedAt: heard, Bytes: 512 << 20, Limit: 2 << 30, Hits: 1, Misses: 2},
			"p:1 ok, nothing to upload, cache 512 MiB of 2.0 GiB, 33% hits, reported 3s ago"},
		{admin.MemberStatus{State: admin.StateOK, ReportedAt: now.Add(time.Hour), DirtyBytes: 4 << 20, DirtyBlocks: 1, OldestDirty: now.Add(-90 * time.Second)},
			"p:1 ok, 4.0 MiB in 1 block (oldest 1m30s) to upload, cache 0 B of 0 B, reported 0s ago"},
		{admin.MemberStatus{State: admin.StateDiskFailed, ReportedAt: heard}, "p:1 its disk is not in use, nothing to upload, reported 3s ago"},
		{admin.MemberStatus{State: admin.StateSilent}, "p:1 no report"},
		{admin.MemberStatus{State: admin.StateSilent, ReportedAt: heard, DirtyBytes: 12 << 20, DirtyBlocks: 3},
			"p:1 no report since 2026-03-01T11:59:57Z, then with 12.0 MiB in 3 blocks to upload"},
		{admin.MemberStatus{State: admin.StateSilent, Former: true, ReportedAt: heard}, "p:1 removed, no report since 2026-03-01T11:59:57Z"},
		{admin.MemberStatus{State: admin.StateDraining, Former: true, ReportedAt: heard, DirtyBytes: 12 << 20, DirtyBlocks: 3},
			"p:1 removed, draining: 12.0 MiB in 3 blocks left, reported 3s ago"},
		{admin.MemberStatus{State: admin.StateDraining, Former: true, ReportedAt: heard}, "p:1 removed, draining, reported 3s ago"},
		{admin.MemberStatus{State: admin.StateDrained, Former: true, ReportedAt: heard}, "p:1 removed, drained"},
	} {
		c.status.Address = "p:1"
		if got := formatStatus([]admin.MemberStatus{c.status}, now); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
