package fuse

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestAReadLeavesTheAtimeThatWasSet(t *testing.T) {
	_, a, b := twoMounts(t)
	put(t, filepath.Join(a, "f"), pattern(100_000, 1))
	at := time.Unix(1000, 7)
	must(t, "utimes", os.Chtimes(filepath.Join(a, "f"), at, at))
	for _, dir := range []string{a, b} {
		expect(t, "read", filepath.Join(dir, "f"), pattern(100_000, 1))
		var st syscall.Stat_t
		must(t, "stat", syscall.Stat(filepath.Join(dir, "f"), &st))
		if got := time.Unix(st.Atim.Unix()); !got.Equal(at) {
			t.Errorf("atime %v after a read, want %v", got, at)
		}
	}
}
