package writeback

import (
	"context"
	"testing"
	"time"

	"flexfs/store"
)

// A hungDisk answers nobody; who wants something of it waits as long as it does.
type hungDisk struct{ *process }

func (hungDisk) PutDirty(ctx context.Context, _ store.Key, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

func (hungDisk) Clean(store.Key)           { time.Sleep(time.Minute) }
func (hungDisk) IsDirty(store.Key) bool    { return false }
func (hungDisk) Dirty() []store.DirtyBlock { return nil }

func TestADiskThatHangsDelaysNoAnswerFromTheBucket(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		p, _ := w.node("P").running()
		s := New(Config{Blocks: tier{p}, Local: hungDisk{p}, Peers: p, Bucket: far{p}, Timing: w.timing})
		key, data := numbered(1)
		start := time.Now()
		if err := s.Put(t.Context(), key, data); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > w.timing.Patience+time.Second {
			t.Errorf("Put took %v", took)
		}
		if n := s.Stats().Waiting; n != 0 {
			t.Errorf("%d blocks wait", n)
		}
	})
}
