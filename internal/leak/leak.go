// Package leak finds what a test leaves behind in its process: goroutines of ours,
// and descriptors.
package leak

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is for what is ending on its own, such as connections whose other end
// is closed.
const patience = 10 * time.Second

var checking sync.Map // the tests that do

// Check makes the test fail if something that was not there before is left when it
// ends, and all that was given to Cleanup after Check has been done. Tests that
// check must not run in parallel. If one checks several times the first counts: what
// was there before the others may come and go while it runs.
func Check(t testing.TB) {
	t.Helper()
	if _, again := checking.LoadOrStore(t, true); again {
		return
	}
	before := take()
	t.Cleanup(func() {
		t.Helper()
		checking.Delete(t)
		if t.Failed() || t.Skipped() {
			return // what ended early need not be tidy
		}
		left := before.left()
		for deadline := time.Now().Add(patience); left != "" && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
			left = before.left()
		}
		if left != "" {
			t.Errorf("the test leaves behind:\n%s", left)
		}
	})
}

// A census is what a process has at a time.
type census struct {
	goroutines map[string]bool // by their numbers, which are used once
	files      map[string]int  // how many descriptors, by what they are of
}

func take() census {
	c := census{map[string]bool{}, files()}
	for _, g := range goroutines() {
		c.goroutines[number(g)] = true
	}
	return c
}

// left tells what there is now that is not in the census: "" if there is nothing.
func (c census) left() string {
	var b strings.Builder
	for _, g := range goroutines() {
		if !c.goroutines[number(g)] && ours(g) {
			fmt.Fprintf(&b, "%s\n\n", g)
		}
	}
	now, more := files(), 0
	for name, n := range now {
		more += n - c.files[name]
	}
	for name, n := range c.files {
		if now[name] == 0 {
			more -= n
		}
	}
	if more > 0 {
		maps.DeleteFunc(now, func(name string, n int) bool { return n <= c.files[name] })
		fmt.Fprintf(&b, "%d descriptors more, among them %v", more, now)
	}
	return b.String()
}

// goroutines returns the stacks of all goroutines.
func goroutines() []string {
	b := make([]byte, 1<<20)
	for {
		if n := runtime.Stack(b, true); n < len(b) {
			return strings.Split(strings.TrimSpace(string(b[:n])), "\n\n")
		}
		b = make([]byte, 2*len(b))
	}
}

// number returns what a stack begins with: "goroutine 7".
func number(stack string) string {
	head, _, _ := strings.Cut(stack, " [")
	return head
}

// ours tells whether a goroutine runs code of this module, or was started by it.
func ours(stack string) bool { return strings.Contains(stack, "flexfs/") }

// files counts the descriptors of this process by what they are of. What Go itself
// opens once, to wait for all the others, is not among them.
func files() map[string]int {
	count := map[string]int{}
	all, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range all {
		name, err := os.Readlink(fd)
		if err != nil || strings.HasPrefix(name, "anon_inode:[event") {
			continue // also the one that listed them
		}
		count[name]++
	}
	return count
}
