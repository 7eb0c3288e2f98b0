package cache

import (
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func anything(store.Key, []byte) error { return nil }

func openDisk(t *testing.T, next store.Store, cfg DiskConfig) *Disk {
	t.Helper()
	d, err := OpenDisk(next, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestDiskIsAStore(t *testing.T) {
	for name, cfg := range map[string]DiskConfig{
		"roomy":   {Quota: Quota{Bytes: 1 << 30}},
		"whole":   {Quota: Quota{Bytes: 1 << 30}, Whole: true},
		"small":   {Quota: Quota{Bytes: 500_000}, Whole: true},
		"a part":  {Quota: Quota{Percent: 1}, Whole: true},
		"no room": {Quota: Quota{Bytes: 1}, Whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				cfg.Dir, cfg.Verify = t.TempDir(), anything
				return openDisk(t, mem.New(t), cfg)
			})
		})
	}
}
