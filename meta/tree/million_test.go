package tree

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"flexfs/internal/soak"
	"flexfs/meta"
)

// A directory of a million files is removed in one request, and taken apart
// until nothing of it is left.
func TestSoakATreeOfAMillionFilesIsRemovedAtOnce(t *testing.T) {
	soak.Start(t)
	w := newWorld(t)
	w.keep = time.Second
	w.start()
	w.run(t)
	c := w.hello("rw:")
	defer c.pinging(t)()
	d := c.dir(meta.Root, "d")
	const files, callers = 1_000_000, 32
	began := time.Now()
	var wg sync.WaitGroup
	for k := range callers {
		wg.Go(func() {
			for i := k; i < files; i += callers {
				r := c.send(&meta.Request{
					Op: meta.OpMake, Slot: uint16(1 + k), Seq: uint32(i/callers + 1), Ino: d, Name: fmt.Sprintf("f%07d", i), Mode: reg,
				})
				if r.Errno != 0 {
					t.Error(r.Errno, r.Msg)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("made in %v", time.Since(began))
	if got := c.attr(d).Size; got != files {
		t.Fatalf("the directory has %d entries", got)
	}
	began = time.Now()
	c.ok(on(meta.OpRemoveTree, meta.Root, "d"))
	t.Logf("removed in %v", time.Since(began))
	c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{d}})
	began = time.Now()
	for end := began.Add(20 * time.Minute); w.count(t, tableInode) > 1 || w.count(t, tableDelayed) > 0; time.Sleep(5 * time.Second) {
		if time.Now().After(end) {
			t.Fatalf("after %v %d records are left", time.Since(began), w.count(t, tableInode))
		}
		t.Logf("after %v %d records are left, %d things to do", time.Since(began).Round(time.Second), w.count(t, tableInode), w.count(t, tableDelayed))
	}
	t.Logf("taken apart in %v", time.Since(began))
	if got := c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs; got.Inodes != 1 || got.Bytes != 0 {
		t.Errorf("%+v in use, want the root", got)
	}
}
