package cache

import (
	"errors"
	"testing"

	"flexfs/store"
	"flexfs/store/storetest"
)

// local asks for what is held here.
func local(t *testing.T, d *Disk, i int) ([]byte, error) {
	t.Helper()
	return d.Get(store.WithLocal(t.Context()), storetest.Key(i), 0, -1)
}

func putDirty(t testing.TB, d *Disk, i, size int) {
	t.Helper()
	key := storetest.Key(i)
	if err := d.PutDirty(t.Context(), key, storetest.Data(key, size)); err != nil {
		t.Fatalf("PutDirty(block %d): %v", i, err)
	}
}

func TestADirtyBlockIsReadAndSurvivesARestart(t *testing.T) {
	next := newSpy(t)
	cfg := DiskConfig{Dir: t.TempDir(), Verify: anything, Whole: true}
	d := openDisk(t, next, cfg)
	putDirty(t, d, 1, 5000)
	putDirty(t, d, 2, 6000)
	for range 2 {
		get(t, d, 1, 5000, 0, -1)
		get(t, d, 2, 6000, 100, 50)
		if !d.IsDirty(storetest.Key(1)) || d.IsDirty(storetest.Key(3)) {
			t.Error("IsDirty is wrong")
		}
		<-d.Scanned()
		if b := d.Dirty(); len(b) != 2 || b[0].Size+b[1].Size != 11000 {
			t.Errorf("dirty are %v", b)
		}
		if s := d.Stats(); s.DirtyBlocks != 2 || s.DirtyBytes != charge(5000)+charge(6000) || s.OldestDirty.IsZero() {
			t.Errorf("stats are %+v", s)
		}
		closeDisk(t, d)
		d = openDisk(t, next, cfg)
	}
	<-d.Scanned()
	d.Clean(storetest.Key(1))
	if err := d.Delete(t.Context(), storetest.Key(2)); err != nil {
		t.Fatal(err)
	}
	if s := d.Stats(); s.DirtyBlocks != 0 || !s.OldestDirty.IsZero() || s.Bytes != charge(5000) || len(d.Dirty()) != 0 {
		t.Errorf("stats are %+v", s)
	}
	closeDisk(t, d)
	d = openDisk(t, next, cfg)
	get(t, d, 1, 5000, 0, -1)
	if _, err := local(t, d, 2); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("a deleted block: error %v", err)
	}
	next.reached(t, 0, 0)
}
