package coherence

import (
	"os"
	"testing"
	"time"

	"flexfs/internal/faultnet"
)

// A read asks how long the file is, if that is not known any more. Whatever is
// taken back while it waits for the answer, it goes by that and not by what was
// known before.
func TestAReadGoesByTheLengthThatItAskedFor(t *testing.T) {
	w := New(t, Options{Mounts: 2})
	here, there := w.Mounts[0], w.Mounts[1]
	w.must("write", os.WriteFile(there.Path("f"), []byte("short"), 0o644))
	f, err := os.Open(here.Path("f"))
	w.must("open", err)
	defer f.Close()
	w.must("make the line long", here.Net.Set(faultnet.Line{Latency: 5 * time.Millisecond}))
	buf := make([]byte, 5000)
	for round := range 20 {
		w.must("cut", os.Truncate(there.Path("f"), 5))
		if n, _ := f.ReadAt(buf, 0); n != 5 {
			t.Errorf("round %d: %d bytes are read of a file of 5", round, n)
		}
		w.must("lengthen", os.Truncate(there.Path("f"), 10_000))
		changed := make(chan error, 1)
		if round%2 == 0 {
			here.Net.Cut()
			changed <- nil
		} else {
			go func() { changed <- there.overwrite("f") }()
		}
		time.Sleep(time.Duration(round) * 300 * time.Microsecond)
		if n, err := f.ReadAt(buf, 4000); n != len(buf) {
			t.Errorf("round %d: read %d bytes of %d (%v)", round, n, len(buf), err)
		}
		w.must("change", <-changed)
	}
}

// overwrite changes bytes of a file, and not its length.
func (m *Mount) overwrite(name string) error {
	f, err := os.OpenFile(m.Path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("other"), 3000); err != nil {
		return err
	}
	return f.Close()
}
