package fuse

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"

	"flexfs/meta"
)

// Who was told that a change is given up must not see it done later.
func TestAChangeThatIsGivenUpInTheQueueIsNotDone(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	gate := &gateMeta{Meta: fs.meta}
	fs.meta = gate
	gate.close()
	mkdir := func(ctx context.Context, name string) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := fs.gather.do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: name, Mode: syscall.S_IFDIR | 0o755})
			done <- err
		}()
		return done
	}
	queued := func(n int) func() bool {
		return func() bool {
			fs.gather.mu.Lock()
			defer fs.gather.mu.Unlock()
			return fs.gather.busy && len(fs.gather.queue) == n
		}
	}
	first := mkdir(t.Context(), "first")
	w.await("the first", queued(0))
	ctx, cancel := context.WithCancel(t.Context())
	given := mkdir(ctx, "given up")
	w.await("the second", queued(1))
	last := mkdir(t.Context(), "last")
	w.await("the third", queued(2))
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("it was not given up: %v", err)
	}
	gate.open()
	must(t, "make", errors.Join(<-first, <-last))
	if got := gate.sent(); !slices.Equal(got, []string{"make first", "make last"}) {
		t.Errorf("the service was asked for %q", got)
	}
}
