package engine

import (
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Memory is an Engine for tests: a Pebble on a file system in memory that
// knows what was synced.
type Memory struct {
	*Pebble
	fs *vfs.MemFS
}

// OpenMemory returns an empty Memory.
func OpenMemory() (*Memory, error) { return openMemory(vfs.NewCrashableMem()) }

func openMemory(fs *vfs.MemFS) (*Memory, error) {
	p, err := openPebble(fs, "db", Options{CacheSize: 8 << 20})
	if err != nil {
		return nil, err
	}
	return &Memory{p, fs}, nil
}

// Crash returns what is found after a loss of power at this moment: all that
// was synced, and of the rest each piece with a probability of percent. The
// original goes on as if nothing had happened.
func (m *Memory) Crash(percent int, seed uint64) (*Memory, error) {
	return openMemory(m.fs.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: percent,
		RNG:                 rand.New(rand.NewPCG(seed, 0)),
	}))
}
