package engine

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// logSyncs returns a file system in memory that counts how often a log is synced.
func logSyncs() (vfs.FS, *atomic.Int64) {
	n := new(atomic.Int64)
	return errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if strings.HasSuffix(op.Path, ".log") {
				n.Add(1)
			}
		}
		return nil
	})), n
}

func TestOnlyTheLastCommitIsWaitedFor(t *testing.T) {
	fs, syncs := logSyncs()
	p, err := openPebble(fs, "db", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	syncs.Store(0)
	var commits []Commit
	for i := range 10 {
		c, err := p.Update(context.Background(), nil, func(tx Tx) error { return tx.Put(fmt.Append(nil, i), nil) })
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, c)
	}
	if n := syncs.Load(); n != 0 {
		t.Errorf("%d syncs before somebody waits", n)
	}
	for i := range commits {
		if err := commits[9-i].Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs for 10 commits, want 1", n)
	}
}

func TestWhatWasWaitedForIsThereAfterACrashWithAllBeforeIt(t *testing.T) {
	m, err := OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	put := func(key string) Commit {
		c, err := m.Update(context.Background(), nil, func(tx Tx) error { return tx.Put([]byte(key), []byte("x")) })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	put("a")
	b := put("b")
	put("c")
	if err := b.Wait(); err != nil {
		t.Fatal(err)
	}
	after, err := m.Crash(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	err = after.View(context.Background(), func(r Reader) error {
		for _, key := range []string{"a", "b"} {
			if v, err := r.Get([]byte(key)); err != nil || string(v) != "x" {
				t.Errorf("%s is %q, %v", key, v, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
