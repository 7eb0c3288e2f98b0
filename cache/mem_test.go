package cache

import (
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func openMem(t *testing.T, next store.Store, window, main int64) *Mem {
	t.Helper()
	m, err := newMem(next, window, main)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func TestMemIsAStore(t *testing.T) {
	for name, size := range map[string][2]int64{
		"roomy":           {64 << 20, 64 << 20},
		"window only":     {1 << 20, 0},
		"small":           {300_000, 500_000},
		"too small to be": {1000, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				return openMem(t, mem.New(t), size[0], size[1])
			})
		})
	}
}
