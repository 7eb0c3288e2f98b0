package writeback

import (
	"context"
	"testing"
	"time"

	"flexfs/store"
)

// A mirror is a group in which this proxy has a second address: who it takes for
// another member is itself.
type mirror struct {
	*process
	store *Store
}

func (m *mirror) Copy(ctx context.Context, key store.Key, data []byte) (string, error) {
	return "alias of P", m.store.Keep(ctx, key, data, "P")
}

func TestACopyOnTheSameDiskIsNone(t *testing.T) {
	play(t, 1, func(t *testing.T, w *world) {
		time.Sleep(time.Second) // until the disk is scanned
		p, _ := w.node("P").running()
		m := &mirror{process: p}
		m.store = New(Config{Self: "P", Blocks: tier{p}, Local: p, Peers: m, Bucket: far{p}, Timing: w.timing})
		key, data := numbered(1)
		w.setAway(true)
		if err := m.store.Put(t.Context(), key, data); err == nil {
			t.Error("a block is acknowledged that is on one disk and not in the bucket")
		}
		w.setAway(false)
		if err := m.store.Put(t.Context(), key, data); err != nil {
			t.Error(err)
		}
		if n := m.store.Stats().Acknowledged; n != 0 {
			t.Errorf("%d blocks count as being on two members", n)
		}
	})
}
