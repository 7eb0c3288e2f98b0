package coherence

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"flexfs/internal/soak"
)

// Who looks a name up may get to run only after it has changed elsewhere. What it
// was told is then not taken for true by those who ask later.
func TestANameIsNotBelievedThatWasLookedUpBeforeItChanged(t *testing.T) {
	w := New(t, Options{Mounts: 2})
	here, there := w.Mounts[0], w.Mounts[1]
	w.must("mkdir", os.Mkdir(there.Path("d"), 0o755))
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("d/%d", i))
		w.must("write", os.WriteFile(there.Path(names[i]), nil, 0o644))
	}
	each := func(from, to string) {
		for _, name := range names {
			w.must("rename", os.Rename(there.Path(name+from), there.Path(name+to)))
		}
	}
	// They share one processor, of which those that look get little.
	start := func(script string) {
		cmd := exec.Command("taskset", "-c", "0", "sh", "-c", script)
		w.must("start", cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	start("while :; do :; done")
	for i := range 6 {
		start(fmt.Sprintf("cd %s; exec 2>&-; renice -n 15 $$; while :; do for i in %s; do test -e $i; done; done", here.Dir, strings.Join(append(names[i*5:], names[:i*5]...), " ")))
	}
	for round := range 20 {
		each("", "away")
		each("away", "") // on the way back it is looked up again
		time.Sleep(time.Duration(round%8) * 10 * time.Millisecond)
		each("", "away")
		time.Sleep(time.Duration(round%9) * 10 * time.Millisecond)
		for _, name := range names {
			if _, err := os.Stat(here.Path(name)); !os.IsNotExist(err) {
				t.Errorf("round %d: %s: %v, after it was renamed", round, name, err)
			}
		}
		each("away", "")
	}
}

// What a program is reading of a directory is not believed either, however long it
// takes to get on with it, up to a second: the machine must have little else to do.
func TestSoakNamesAreNotBelievedThatAreListedWhileTheyChange(t *testing.T) {
	s := soak.Start(t)
	w := New(t, Options{Mounts: 2})
	here, there := w.Mounts[0], w.Mounts[1]
	w.must("mkdir", os.Mkdir(there.Path("d"), 0o755))
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("d/%d", i))
		w.must("write", os.WriteFile(there.Path(names[i]), nil, 0o644))
	}
	for i := range 10 { // on one processor, of which those that read get little
		script := "while :; do :; done"
		if i < 4 {
			script = fmt.Sprintf("cd %s; exec 2>&- >&-; renice -n 19 $$; while :; do for i in d/*; do :; done; done", here.Dir)
		}
		cmd := exec.Command("taskset", "-c", "0", "bash", "-c", script)
		w.must("start", cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	tries := 0
	for ; !s.Over(); tries++ {
		name := names[tries%len(names)]
		w.must("rename", os.Rename(there.Path(name), there.Path(name+"away")))
		if _, err := os.Stat(here.Path(name)); !os.IsNotExist(err) {
			t.Errorf("try %d: %s: %v, after it was renamed", tries, name, err)
		}
		w.must("rename", os.Rename(there.Path(name+"away"), there.Path(name)))
	}
	t.Logf("%d names changed", tries)
}
