package fuse

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"flexfs/meta"
)

// An answer that was asked for before this mount changed the file must not be
// believed when it comes after the file was forgotten here.
func TestAnOldAnswerAboutAForgottenFileIsNotKept(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	ctx := t.Context()
	do := func(req *meta.Request) *meta.Reply {
		t.Helper()
		c := fs.newCall(ctx, func() {})
		defer c.end(true)
		rep, err := c.do(req)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	made := do(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: syscall.S_IFREG | 0o644})
	fs.learn(&made.Attr, nil, made.Cache, fs.invals.now())
	do(&meta.Request{Op: meta.OpLink, Ino: made.Attr.Ino, Ino2: meta.Root, Name: "g"})

	seq := fs.invals.now()
	old := do(&meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "g"}) // and takes its time to arrive
	rep := do(&meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: "f"})
	fs.unlinked(&rep.Attr, rep.Cache, fs.invals.now())
	fs.drop(fs.inode(rep.Attr.Ino))
	if fs.known(rep.Attr.Ino) != nil {
		t.Fatal("the file is not forgotten")
	}
	in := fs.learn(&old.Attr, old.Block, old.Cache, seq)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.attr.Nlink != 1 && in.valid {
		t.Errorf("it is believed to have %d names", in.attr.Nlink)
	}
}

// The same on a mount, with many at it.
func TestLinksAreCountedWhileOthersLook(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	f, g := filepath.Join(dir, "f"), filepath.Join(dir, "g")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		var st syscall.Stat_t
		for {
			select {
			case <-stop:
				return
			default:
				syscall.Lstat(g, &st)
				os.ReadDir(dir)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 200 {
		put(t, f, nil)
		must(t, "link", os.Link(f, g))
		must(t, "unlink", os.Remove(f))
		var st syscall.Stat_t
		must(t, "stat", syscall.Lstat(g, &st))
		if st.Nlink != 1 {
			t.Fatalf("it has %d names", st.Nlink)
		}
		must(t, "unlink", os.Remove(g))
	}
}
