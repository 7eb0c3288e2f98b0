package fuse

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/meta/tree"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
)

// newShortWorld returns a world where sessions end soon, and what nobody needs
// is deleted from the bucket after 8 s.
func newShortWorld(t *testing.T) *world {
	t.Helper()
	volume, err := store.ParseVolume(testVolume)
	if err != nil {
		t.Fatal(err)
	}
	bucket := mem.New(t)
	key := func(ref tree.BlockRef) store.Key {
		return store.Key{Volume: volume, Ino: uint64(ref.Ino), Index: ref.Index, Gen: store.Gen(ref.Gen)}
	}
	w := newWorldOf(t, func(c *tree.Config) {
		c.Lease, c.Keep, c.Grace = time.Second, 8*time.Second, time.Nanosecond
		c.Delete = func(ctx context.Context, _ string, refs []tree.BlockRef) error {
			for _, ref := range refs {
				if err := bucket.Delete(ctx, key(ref)); err != nil {
					return err
				}
			}
			return nil
		}
		c.List = func(ctx context.Context, _ string, fn func(tree.Object) error) error {
			return bucket.List(ctx, volume, func(l store.Listed) error {
				ref := tree.BlockRef{Ino: meta.Ino(l.Key.Ino), Index: l.Key.Index, Gen: meta.Gen(l.Key.Gen)}
				return fn(tree.Object{Ref: ref, Size: l.Size, Modified: l.Modified})
			})
		}
	})
	w.bucket.Store = bucket
	return w
}

func (w *world) objects() int { return len(w.bucket.Store.(*mem.Store).Keys()) }

// loseSessions makes the service end all sessions, and returns when fs has a new
// one.
func (w *world) loseSessions(fs *FS) {
	w.t.Helper()
	was := fs.meta.Session()
	w.breakConnections(func() { time.Sleep(2500 * time.Millisecond) })
	w.await("a new session", func() bool { return fs.meta.Session() != was })
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("no %s", what)
		}
	}
}

func TestAnUnlinkedFileOutlivesALostSession(t *testing.T) {
	w := newShortWorld(t)
	fs, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	const size = 3 * testBlockSize
	put(t, filepath.Join(a, "f"), pattern(size, 3))
	put(t, filepath.Join(a, "g"), pattern(size, 4))
	f, err := os.OpenFile(filepath.Join(a, "f"), os.O_RDWR|syscall.O_DIRECT, 0)
	must(t, "open", err)
	defer f.Close()
	st, err := f.Stat()
	must(t, "stat", err)
	ino := meta.Ino(st.Sys().(*syscall.Stat_t).Ino)
	must(t, "unlink", os.Remove(filepath.Join(b, "f")))
	must(t, "unlink", os.Remove(filepath.Join(b, "g")))
	w.loseSessions(fs)
	w.await("collection of what is not in use", func() bool { return w.objects() <= 3 })
	time.Sleep(2 * time.Second)
	if _, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpGetattr, Ino: ino}); err != nil {
		t.Errorf("the service does not have the file any more: %v", err)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(size, 3)) {
		t.Errorf("read: %v; the contents are what they were: %v", err, bytes.Equal(got, pattern(size, 3)))
	}
	if n := w.objects(); n != 3 {
		t.Errorf("the bucket has %d objects, not 3", n)
	}
	must(t, "close", f.Close())
	w.await("collection after the last close", func() bool { return w.objects() == 0 })
}

func TestWhatWasUploadedUnderALostSessionIsCommittedUnderTheNext(t *testing.T) {
	w := newShortWorld(t)
	fs, dir := w.mount("one", Config{})
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	defer f.Close()
	want := pattern(3*testBlockSize+1000, 5)
	_, err = f.Write(want)
	must(t, "write", err)
	w.await("upload of the whole blocks", func() bool { return w.objects() == 3 })
	w.loseSessions(fs)
	must(t, "fsync", f.Sync())
	if _, err := w.srv.Reconcile(t.Context(), testVolume, true, nil); err != nil {
		t.Error(err)
	}
	other := w.newFS("two", Config{}) // nothing is cached there
	dir2 := w.mountFS(other)
	expect(t, "after the loss of the session", filepath.Join(dir2, "f"), want)
	st, err := f.Stat()
	must(t, "stat", err)
	rep, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpBlocks, Ino: meta.Ino(st.Sys().(*syscall.Stat_t).Ino), Limit: 10})
	must(t, "blocks", err)
	if len(rep.Blocks) != 4 {
		t.Errorf("the file has %d blocks, not 4", len(rep.Blocks))
	}
	for _, k := range rep.Blocks {
		if k.Gen.Session != fs.meta.Session() {
			t.Errorf("block %d is of session %d, the session is %d", k.Index, k.Gen.Session, fs.meta.Session())
		}
	}
	w.await("removal of the first versions", func() bool { return w.objects() == 4 })
}

// laterSession pretends that the session was lost.
type laterSession struct {
	Meta
	later atomic.Bool
}

func (m *laterSession) Session() uint64 {
	if m.later.Load() {
		return m.Meta.Session() + 1
	}
	return m.Meta.Session()
}

func TestWrittenDataThatIsGoneIsReportedOnce(t *testing.T) {
	w := newShortWorld(t)
	fs := w.newFS("one", Config{})
	m := &laterSession{Meta: fs.meta}
	fs.meta = m
	fs.blocks = seal.New(w.bucket, seal.Options{Codec: seal.LZ4}) // without a cache
	dir := w.mountFS(fs)
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, "create", err)
	defer f.Close()
	_, err = f.Write(pattern(testBlockSize, 1))
	must(t, "write", err)
	w.await("upload of the block", func() bool { return w.objects() == 1 })
	m.later.Store(true)
	bucket := w.bucket.Store.(*mem.Store)
	must(t, "delete", bucket.DeleteAll(t.Context(), bucket.Keys()))
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v, want EIO", err)
	}
	must(t, "the next fsync", f.Sync())
}
