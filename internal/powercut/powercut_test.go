package powercut

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// What was synced is there after a power cut, whatever becomes of the rest; and
// what was not may be lost, or the disk would prove nothing.
func TestWhatWasSyncedIsThereAfterAPowerCut(t *testing.T) {
	dir := t.TempDir()
	d := New(t, dir)
	synced := map[string][]byte{}
	lost := 0
	for round := range 4 {
		var loose []string
		for i := range 20 {
			name := filepath.Join(dir, fmt.Sprint(round, "-", i))
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte{byte(1 + rand.IntN(255))}, 1+rand.IntN(20_000))
			if _, err := f.Write(data); err != nil {
				t.Fatal(err)
			}
			if i < 10 {
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				synced[name] = data
			} else {
				loose = append(loose, name)
			}
			f.Close()
		}
		d.Cut(func() bool { return rand.IntN(4) < round })
		if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err == nil {
			f, _ := os.Open(filepath.Join(dir, "x"))
			if err := f.Sync(); err == nil {
				t.Error("a disk without power took something")
			}
			f.Close()
		}
		d.Restore()
		for name, want := range synced {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("round %d: %s, which was synced, has %d bytes, not %d: %v", round, filepath.Base(name), len(got), len(want), err)
			}
		}
		for _, name := range loose {
			if _, err := os.Stat(name); err != nil {
				lost++
			}
		}
	}
	if lost == 0 {
		t.Error("nothing was lost that was not synced")
	}
}
