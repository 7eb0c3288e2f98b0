package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A directory that moves back and forth between others, on one mount and then on
// the other, is found whatever else is being renamed there.
func TestADirectoryThatMovedElsewhereIsFoundWhileOthersAreRenamed(t *testing.T) {
	w := newWorld(t)
	_, one := w.mount("one", Config{})
	_, two := w.mount("two", Config{})
	for _, dir := range []string{"a", "b", "busy", "busy/1", "busy/2", "a/d", "a/d/below"} {
		if err := os.Mkdir(filepath.Join(one, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var busy sync.WaitGroup
	defer busy.Wait()
	defer close(stop)
	for i := range 3 {
		from, to := fmt.Sprintf("%s/busy/1/f%d", two, i), fmt.Sprintf("%s/busy/2/f%d", two, i)
		if err := os.WriteFile(from, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				os.Rename(from, to)
				from, to = to, from
			}
		})
	}
	at, other := "a/d", "b/d"
	for i := range 100 {
		if _, err := os.Lstat(filepath.Join(two, at, "below")); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := os.Rename(filepath.Join(one, at), filepath.Join(one, other)); err != nil {
			t.Fatal(err)
		}
		at, other = other, at
	}
}
