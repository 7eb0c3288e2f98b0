package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// While the service is away a mount can be ended, whatever programs wait for.
func TestUnmountWhileTheServiceIsAway(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	var away atomic.Bool
	asked := make(chan struct{}, 100)
	hook(fs, func(ctx context.Context, _ *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		if !away.Load() {
			return next()
		}
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	dir := t.TempDir()
	m, err := fs.Mount(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH); fs.cancel() })
	away.Store(true)
	made := make(chan error, 1)
	go func() { made <- os.Mkdir(filepath.Join(dir, "d"), 0o755) }()
	<-asked
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.Unmount(ctx) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("that its users were cut off is not said")
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for ever")
	}
	if err := <-made; err == nil {
		t.Error("a directory was made without the service")
	}
}

// A mount whose data could not be stored does not end as if all were well.
func TestUnmountTellsOfDataThatIsNotStored(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	dir := t.TempDir()
	m, err := fs.Mount(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH); fs.cancel() })
	w.bucket.setFail(func(op string, _ store.Key) error { return errors.New("the bucket is away") })
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 100<<10), 0o644); err == nil {
		t.Error("close says that all is stored")
	}
	if err := m.Unmount(t.Context()); err == nil {
		t.Error("the unmount says that all is stored")
	}
}

// The service goes away, and the mount is told to end, in the moment in which it
// begins.
func TestAMountThatBeginsEndsWithItsContext(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	asked := make(chan struct{}, 100)
	var first atomic.Bool
	hook(fs, func(ctx context.Context, _ *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		if first.CompareAndSwap(false, true) { // for the root
			reply, err := next()
			fs.Lost() // what was told does not hold any more
			return reply, err
		}
		asked <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	dir := t.TempDir()
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH); fs.cancel() })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := fs.Mount(ctx, dir)
		ended <- err
	}()
	select {
	case <-asked: // by the kernel
	case err := <-ended:
		t.Fatalf("the mount was there without another question: error %v", err)
	}
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it says that it is mounted")
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for ever")
	}
}
