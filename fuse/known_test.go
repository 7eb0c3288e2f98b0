package fuse

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// A wedge is a metadata service with something between it and the mount.
type wedge struct {
	Meta
	do func(ctx context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error)
}

func (w *wedge) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	next := func() (*meta.Reply, error) { return w.Meta.Do(ctx, req) }
	if w.do == nil {
		return next()
	}
	return w.do(ctx, req, next)
}

// wedged returns an FS that is not mounted, and what is between it and its
// service.
func (w *world) wedged(name string) (*FS, *wedge) {
	fs := w.newFS(name, Config{})
	g := &wedge{Meta: fs.meta}
	fs.meta = g
	return fs, g
}

// run answers an operation as if the kernel had sent it.
func run(t *testing.T, fs *FS, op any) error {
	c := fs.newCall(t.Context(), func() {})
	defer c.end(true)
	return c.handle(op)
}

func makeDir(t *testing.T, fs *FS, parent fuseops.InodeID, name string) fuseops.InodeID {
	t.Helper()
	op := &fuseops.MkDirOp{Parent: parent, Name: name, Mode: 0o755}
	must(t, "mkdir", run(t, fs, op))
	return op.Entry.Child
}

// there reports whether a name is found.
func there(t *testing.T, fs *FS, dir fuseops.InodeID, name string) bool {
	t.Helper()
	op := &fuseops.LookUpInodeOp{Parent: dir, Name: name}
	err := run(t, fs, op)
	if err != nil && err != syscall.ENOENT {
		t.Fatalf("lookup of %q: %v", name, err)
	}
	return err == nil && op.Entry.Child != 0
}

func TestAnAnswerOvertakenByOurOwnChangeIsNotKept(t *testing.T) {
	w := newWorld(t)
	fs, g := w.wedged("one")
	d := makeDir(t, fs, fuseops.RootInodeID, "d")
	makeDir(t, fs, d, "x")
	fs.forgetNames(fs.node(d), []string{"x"})
	g.do = func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		rep, err := next()
		if req.Op == meta.OpLookup { // the answer is on its way
			g.do = nil
			must(t, "rename", run(t, fs, &fuseops.RenameOp{OldParent: d, OldName: "x", NewParent: d, NewName: "y"}))
		}
		return rep, err
	}
	if !there(t, fs, d, "x") {
		t.Error("the lookup before the rename says that it was not there")
	}
	if there(t, fs, d, "x") {
		t.Error("the old name is still there")
	}
	if !there(t, fs, d, "y") {
		t.Error("the new name is not there")
	}
}

func TestAChangeWithoutAnswerIsAskedFor(t *testing.T) {
	w := newWorld(t)
	fs, g := w.wedged("one")
	d := makeDir(t, fs, fuseops.RootInodeID, "d")
	if there(t, fs, d, "x") {
		t.Fatal("it is there before it is made")
	}
	g.do = func(ctx context.Context, _ *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		g.do = nil
		if _, err := next(); err != nil {
			t.Error(err)
		}
		return nil, context.DeadlineExceeded
	}
	if err := run(t, fs, &fuseops.MkDirOp{Parent: d, Name: "x", Mode: 0o755}); err != syscall.EIO {
		t.Fatalf("mkdir without an answer: %v", err)
	}
	if !there(t, fs, d, "x") {
		t.Error("what was made is believed to be absent")
	}
}

func TestATrimmedDirectoryIsAskedFor(t *testing.T) {
	w := newWorld(t)
	fs, g := w.wedged("one")
	d := makeDir(t, fs, fuseops.RootInodeID, "d")
	makeDir(t, fs, d, "x")
	asked := 0
	g.do = func(_ context.Context, _ *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		asked++
		return next()
	}
	look := func() {
		if !there(t, fs, d, "x") || there(t, fs, d, "y") {
			t.Error("x is not there, or y is")
		}
	}
	if look(); asked != 0 {
		t.Errorf("%d requests for what is known", asked)
	}
	list := []meta.Inval{{Ino: meta.Ino(d), Attr: true, Data: true, Entries: true}}
	fs.Stale(list)
	fs.Inval(list)
	if look(); asked != 2 {
		t.Errorf("%d requests after all of the directory was taken back, want 2", asked)
	}
}

// A close releases locks only if there may be any, and that includes those whose
// request was not answered.
func TestCloseReleasesLocksThatMayBeHeld(t *testing.T) {
	w := newWorld(t)
	fs, g := w.wedged("one")
	make := &fuseops.CreateFileOp{Parent: fuseops.RootInodeID, Name: "f", Mode: 0o644}
	must(t, "create", run(t, fs, make))
	file := make.Entry.Child
	released, during := 0, func() {}
	var fail error
	g.do = func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
		rep, err := next()
		switch {
		case req.Op != meta.OpSetlk:
		case req.Lock.Type == syscall.F_UNLCK:
			released++
		default:
			during()
			if fail != nil {
				return nil, fail
			}
		}
		return rep, err
	}
	lock := func() error {
		return run(t, fs, &fuseops.SetLkOp{Inode: file, Handle: make.Handle, Owner: 7,
			Lock: fuseops.FileLock{Type: syscall.F_WRLCK, End: lockEnd}})
	}
	closes := func(what string, owner uint64, want int) {
		t.Helper()
		released = 0
		must(t, "flush", run(t, fs, &fuseops.FlushFileOp{Inode: file, Handle: make.Handle, LockOwner: owner}))
		if released != want {
			t.Errorf("%s: %d requests to release, want %d", what, released, want)
		}
	}
	closes("without a lock", 7, 0)
	must(t, "lock", lock())
	closes("by another", 8, 0)
	closes("with a lock", 7, 1)
	closes("again", 7, 0)
	fail = context.DeadlineExceeded
	if err := lock(); err == nil {
		t.Fatal("a lock without an answer is granted")
	}
	closes("after a lock without an answer", 7, 1)
	closes("again", 7, 0)
	fail = nil
	during = func() { closes("while one is asked for", 7, 1) }
	must(t, "lock", lock())
	closes("granted after that", 7, 1)
}

// An absence that the service will not take back is asked for again.
func TestAnAbsenceWithoutALeaseIsNotKept(t *testing.T) {
	for _, leased := range []bool{true, false} {
		w := newWorld(t)
		fs, g := w.wedged("one")
		d := makeDir(t, fs, fuseops.RootInodeID, "d")
		fs.Stale([]meta.Inval{{Ino: meta.Ino(d), Attr: true, Entries: true}}) // it is not known to be empty
		asked := 0
		g.do = func(_ context.Context, req *meta.Request, next func() (*meta.Reply, error)) (*meta.Reply, error) {
			rep, err := next()
			var refused *meta.Error
			if req.Op == meta.OpLookup && errors.As(err, &refused) {
				asked++
				if !refused.Cache {
					t.Error("the service gave no lease on an absence")
				}
				refused.Cache = leased
			}
			return rep, err
		}
		for range 2 {
			if there(t, fs, d, "x") {
				t.Fatal("a name is there that nobody made")
			}
		}
		if want := map[bool]int{true: 1, false: 2}[leased]; asked != want {
			t.Errorf("leased %v: the service was asked %d times, not %d", leased, asked, want)
		}
	}
}

// The end of a session ends its locks: others may have had them since. Who held
// one learns that, and nothing written under it is stored.
func TestLocksThatAreLostAreNotUsedAnyMore(t *testing.T) {
	for _, flock := range []bool{false, true} {
		w := newWorld(t)
		fs := w.newFS("one", Config{})
		in := newFile(t, fs, "f")
		handle := fs.open(in, 0)
		lock := func(owner uint64) error {
			return run(t, fs, &fuseops.SetLkOp{Inode: fuseops.InodeID(in.ino), Handle: handle, Owner: owner, Flock: flock,
				Lock: fuseops.FileLock{Type: syscall.F_RDLCK, End: lockEnd}})
		}
		write := func() error {
			return run(t, fs, &fuseops.WriteFileOp{Inode: fuseops.InodeID(in.ino), Handle: handle, Data: []byte("new")})
		}
		fsync := func() error { return run(t, fs, &fuseops.SyncFileOp{Inode: fuseops.InodeID(in.ino), Handle: handle}) }
		must(t, "write", write())
		fs.Lost()
		must(t, "fsync after a loss without locks", fsync())
		must(t, "lock", lock(7))
		must(t, "write", write())
		fs.Lost()
		for what, err := range map[string]error{"fsync": fsync(), "write": write(), "lock": lock(7)} {
			if err != syscall.EIO {
				t.Errorf("%s after the locks were lost: %v, want EIO", what, err)
			}
		}
		must(t, "lock of another", lock(8))
		must(t, "the second fsync", fsync())
		if flock {
			must(t, "close", run(t, fs, &fuseops.ReleaseFileHandleOp{Handle: handle, FlockUnlock: true, LockOwner: 7}))
			handle = fs.open(in, 0)
		} else {
			must(t, "close", run(t, fs, &fuseops.FlushFileOp{Inode: fuseops.InodeID(in.ino), Handle: handle, LockOwner: 7}))
		}
		must(t, "write after the close", write())
		must(t, "lock after the close", lock(7))
		must(t, "fsync", fsync())
	}
}

// A name that is taken out is known for a moment while the directory is known to have
// one less, or the other way round. It must not pass for one that is not known.
func TestADirectoryIsNotTakenForKnownWhileANameIsTakenOut(t *testing.T) {
	for name, take := range map[string]func(d fuseops.InodeID) any{
		"unlink": func(d fuseops.InodeID) any { return &fuseops.UnlinkOp{Parent: d, Name: "a"} },
		"rename": func(d fuseops.InodeID) any {
			return &fuseops.RenameOp{OldParent: d, OldName: "a", NewParent: fuseops.RootInodeID, NewName: "a"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fs := w.newFS("one", Config{})
			for i := range 300 {
				d := makeDir(t, fs, fuseops.RootInodeID, fmt.Sprint("d", i))
				for _, name := range []string{"a", "c"} {
					must(t, "mknod", run(t, fs, &fuseops.MkNodeOp{Parent: d, Name: name, Mode: 0o644}))
				}
				dir := fs.node(d)
				fs.forgetNames(dir, []string{"c"})
				stop, stopped := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(stopped)
					for {
						select {
						case <-stop:
							return
						default:
							dir.mu.Lock()
							dir.lacks("b")
							dir.mu.Unlock()
						}
					}
				}()
				must(t, name, run(t, fs, take(d)))
				close(stop)
				<-stopped
				if !there(t, fs, d, "c") {
					t.Fatalf("in directory %d a name is not there that was not taken out", i)
				}
			}
		})
	}
}
