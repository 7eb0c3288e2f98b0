package fuse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"

	"flexfs/meta"
	"flexfs/meta/tree"
)

// A silentMeta never answers.
type silentMeta struct{}

func (silentMeta) Do(ctx context.Context, _ *meta.Request) (*meta.Reply, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
func (silentMeta) Session() uint64       { return 1 }
func (silentMeta) Volume() meta.Volume   { return meta.Volume{BlockSize: testBlockSize} }
func (silentMeta) LeaseUntil() time.Time { return time.Now().Add(time.Hour) }
func (silentMeta) Now() meta.Time        { return meta.TimeOf(time.Now()) }

// A signal that does not kill ends a call, soon while a server is away and late
// otherwise.
func TestASignalEndsACallThatWaits(t *testing.T) {
	for name, c := range map[string]struct{ away, want time.Duration }{
		"a server is away":  {time.Second, 2 * time.Second},
		"all are reachable": {0, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fs := New(Config{Meta: silentMeta{}, Away: func() time.Duration { return c.away }})
				ctx, signal := context.WithCancel(t.Context())
				call := fs.newCall(ctx, func() {})
				defer call.end(true)
				const before = 5 * time.Minute // nothing ends it but the signal
				start := time.Now()
				time.AfterFunc(before, signal)
				err := call.handle(&fuseops.LookUpInodeOp{Parent: fuseops.RootInodeID, Name: "f"})
				if took := time.Since(start) - before; err != syscall.EINTR || took < c.want || took > c.want+lookAgain {
					t.Errorf("%v, %v after the signal, want EINTR after %v", err, took, c.want)
				}
			})
		})
	}
}

// The program hears of it.
func TestASignalEndsACallOfAProgram(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	w := newWorld(t)
	fs := w.newFS("one", Config{Away: func() time.Duration { return time.Second }})
	m := &gateMeta{Meta: fs.meta}
	fs.meta = m
	dir := w.mountFS(fs)
	m.close()
	defer m.open()
	thread, ended := make(chan int), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		thread <- unix.Gettid()
		ended <- syscall.Mkdir(filepath.Join(dir, "d"), 0o755)
	}()
	tid, start := <-thread, time.Now()
	select {
	case err := <-ended:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	must(t, "signal", unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.EINTR) || time.Since(start) < grace {
			t.Errorf("%v after %v, want EINTR after %v", err, time.Since(start), grace)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits on after a signal")
	}
}

// A ticket that ended while admin was away is refused when the mount connects again.
// That is waited for as a service that is away is.
func TestCallsWaitForATicketThatIsGood(t *testing.T) {
	var ended atomic.Bool
	w := newWorldOf(t, func(c *tree.Config) {
		authorize := c.Authorize
		c.Authorize = func(token string) (tree.Grant, error) {
			if ended.Load() {
				return tree.Grant{}, errors.New("ticket has expired")
			}
			return authorize(token)
		}
	})
	fs := w.newFS("one", Config{})
	ended.Store(true)
	must(t, "a call on the connection that there is", fs.do(&fuseops.MkDirOp{Parent: fuseops.RootInodeID, Name: "a", Mode: os.ModeDir | 0o755}))
	w.breakConnections(func() {})
	done := make(chan error, 1)
	go func() {
		done <- fs.do(&fuseops.MkDirOp{Parent: fuseops.RootInodeID, Name: "b", Mode: os.ModeDir | 0o755})
	}()
	select {
	case err := <-done:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	ended.Store(false)
	must(t, "a call that waited", <-done)
}
