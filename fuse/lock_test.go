package fuse

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// noRoom is a service that has room for shared locks only.
type noRoom struct{ Meta }

func (m *noRoom) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Op == meta.OpSetlk && req.Lock.Type == syscall.F_WRLCK {
		return nil, &meta.Error{Op: req.Op, Errno: syscall.ENOLCK, Msg: "there are too many"}
	}
	return m.Meta.Do(ctx, req)
}

// A lock that could not be changed is there still: a close gives it up.
func TestALockThatCannotBeChangedIsReleased(t *testing.T) {
	for name, flock := range map[string]bool{"flock": true, "fcntl": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fs, other := w.newFS("one", Config{}), w.newFS("other", Config{})
			ctx := t.Context()
			rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: syscall.S_IFREG | 0o644})
			must(t, "make", err)
			fs.learn(&rep.Attr, rep.Block, false, 0)
			in := fs.inode(rep.Attr.Ino)
			fs.meta = &noRoom{fs.meta}
			c := fs.newCall(ctx, func() {})
			defer c.end(true)
			lock := func(typ uint32) error {
				return c.setLock(&fuseops.SetLkOp{
					Inode: fuseops.InodeID(in.ino), Owner: 1, Flock: flock, Lock: fuseops.FileLock{Type: typ, End: 9},
				})
			}
			must(t, "lock", lock(syscall.F_RDLCK))
			if err := lock(syscall.F_WRLCK); refusal(err) != syscall.ENOLCK {
				t.Fatalf("the change says %v", err)
			}
			must(t, "close", c.unlockForGood(in, 1, flock))
			_, err = other.meta.Do(ctx, &meta.Request{
				Op: meta.OpSetlk, Ino: in.ino, Lock: meta.Lock{Type: syscall.F_WRLCK, Flock: flock, Owner: 2, End: 9},
			})
			must(t, "the other's lock", err)
		})
	}
}

// Linux would let both wait for ever. A mount is not told which locks are of open
// files, so the second is refused.
func TestOpenFilesThatWaitInACircleAreRefused(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	name := filepath.Join(dir, "f")
	put(t, name, make([]byte, 2))
	lock := func(f *os.File, typ int16, at int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: typ, Start: at, Len: 1})
	}
	var files [2]*os.File
	for i := range files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, "open", err)
		defer f.Close()
		must(t, "lock", lock(f, unix.F_WRLCK, int64(i)))
		files[i] = f
	}
	first := make(chan error, 1)
	go func() { first <- lock(files[0], unix.F_WRLCK, 1) }()
	select {
	case err := <-first:
		t.Fatalf("the first does not wait: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	second := make(chan error, 1)
	go func() { second <- lock(files[1], unix.F_WRLCK, 0) }()
	select {
	case err := <-second:
		if err != unix.EDEADLK {
			t.Errorf("the second: %v, want EDEADLK", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the second waits, too")
	}
	must(t, "unlock", lock(files[1], unix.F_UNLCK, 1))
	must(t, "the first", <-first)
}
