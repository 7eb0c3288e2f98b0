package coherence

import (
	"fmt"
	"os"
	"testing"
	"time"

	"flexfs/internal/faultnet"
)

// A mount that was told that a name is going to change elsewhere may still move a
// file to that name itself. It is not to believe the name then, though it told
// nobody but its own kernel.
func TestANameIsNotBelievedThatAFileIsMovedToWhileItChanges(t *testing.T) {
	w := New(t, Options{})
	one, other, third := w.Mounts[0], w.Mounts[1], w.Mounts[2]
	w.must("mkdir", os.Mkdir(one.Path("d"), 0o755))
	for round := range 30 {
		from, to := fmt.Sprint("d/from", round), fmt.Sprint("d/to", round)
		w.must("write", os.WriteFile(one.Path(from), []byte("from"), 0o644))
		w.must("write", os.WriteFile(one.Path(to), []byte("to"), 0o644))
		for _, m := range w.Mounts {
			for _, name := range []string{from, to} {
				_, err := os.Stat(m.Path(name))
				w.must("stat", err)
			}
		}
		// Both changes have to be told to who does not answer for a while.
		w.must("freeze", third.Net.Set(faultnet.Line{State: faultnet.Frozen}))
		removed, moved := make(chan error, 1), make(chan error, 1)
		go func() { removed <- os.Remove(other.Path(to)) }()
		time.Sleep(20 * time.Millisecond)
		go func() { moved <- os.Rename(one.Path(from), one.Path(to)) }()
		time.Sleep(20 * time.Millisecond)
		w.must("thaw", third.Net.Set(faultnet.Line{}))
		w.must("remove", <-removed)
		w.must("rename", <-moved)
		_, want := os.Stat(third.Path(to))
		for i, m := range w.Mounts {
			if _, err := os.Stat(m.Path(to)); os.IsNotExist(err) != os.IsNotExist(want) {
				t.Errorf("round %d: mount %d says of the name: %v; the third: %v", round, i, err, want)
			}
		}
	}
}
