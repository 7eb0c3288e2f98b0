package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"flexfs/store"
	"flexfs/store/storetest"
)

func wantOpened(t *testing.T, d *Disk, i int, block []byte) *Opened {
	t.Helper()
	o, err := d.Open(t.Context(), storetest.Key(i))
	if err != nil {
		t.Fatalf("Open(block %d): %v", i, err)
	}
	t.Cleanup(func() { o.Close() })
	if o.Size != int64(len(block)) || o.CRC != store.Sum(t.Context(), block) {
		t.Errorf("block %d has %d bytes and checksum %x, want %d and %x", i, o.Size, o.CRC, len(block), store.Sum(t.Context(), block))
	}
	return o
}

func wantNotOpened(t *testing.T, d *Disk, i int) {
	t.Helper()
	o, err := d.Open(t.Context(), storetest.Key(i))
	if err == nil {
		o.Close()
	}
	if !errors.Is(err, store.ErrNotExist) {
		t.Errorf("Open(block %d): error %v, want that it is not here", i, err)
	}
}

func TestAnOpenedFileIsTheVerifiedBlock(t *testing.T) {
	next, blocks := newSealed(t, 2, 100_000)
	cfg := DiskConfig{Dir: t.TempDir(), Whole: true}
	d := openDisk(t, next, cfg)
	wantNotOpened(t, d, 0)
	wantBlock(t, d, 0, blocks[0], 0, -1)
	d.idle()
	if err := d.PutDirty(t.Context(), storetest.Key(1), blocks[1]); err != nil {
		t.Fatal(err)
	}
	var opened []*Opened
	for i, b := range blocks {
		opened = append(opened, wantOpened(t, d, i, b))
		if _, err := d.Open(store.WithVerify(t.Context()), storetest.Key(i)); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("a reader who does not believe the file: error %v", err)
		}
		if err := d.Delete(t.Context(), storetest.Key(i)); err != nil {
			t.Fatal(err)
		}
		wantNotOpened(t, d, i)
	}
	for i, b := range blocks {
		if got, err := io.ReadAll(opened[i].File); err != nil || !bytes.Equal(got, b) {
			t.Errorf("block %d: %d bytes, error %v, after it was deleted", i, len(got), err)
		}
		opened[i].Sent(100)
	}
	if s := d.Stats(); s.Hits != 2 || s.HitBytes != 200 {
		t.Errorf("%d hits with %d bytes, want 2 with 200", s.Hits, s.HitBytes)
	}
}

func TestAFileOfAnEarlierRunIsOpenedOnlyOnceVerified(t *testing.T) {
	next, blocks := newSealed(t, 3, 100_000)
	cfg := DiskConfig{Dir: t.TempDir(), Whole: true}
	d := openDisk(t, next, cfg)
	wantBlock(t, d, 0, blocks[0], 0, -1)
	wantBlock(t, d, 2, blocks[2], 0, -1)
	d.idle()
	if err := d.PutDirty(t.Context(), storetest.Key(1), blocks[1]); err != nil {
		t.Fatal(err)
	}
	closeDisk(t, d)
	d = openDisk(t, next, cfg)
	for i, b := range blocks {
		wantNotOpened(t, d, i)
		wantFrames(t, d, i, b) // their own checksums are not the file's
		wantNotOpened(t, d, i)
		wantBlock(t, d, i, b, 10, 10)
		wantOpened(t, d, i, b)
	}
	if err := os.Truncate(cfg.Dir+"/"+cleanFile(storetest.Key(2)), 10); err != nil {
		t.Fatal(err)
	}
	wantNotOpened(t, d, 2)
	wantBlock(t, d, 2, blocks[2], 0, -1)
}
