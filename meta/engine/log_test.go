package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// putAndWait commits a key and waits until it is durable.
func putAndWait(t *testing.T, p *Pebble, key string, value []byte) {
	t.Helper()
	c, err := p.Update(context.Background(), nil, func(tx Tx) error { return tx.Put([]byte(key), value) })
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantKeys(t *testing.T, p *Pebble, keys int) {
	t.Helper()
	err := p.View(context.Background(), func(r Reader) error {
		for i := range keys {
			if v, err := r.Get(fmt.Append(nil, "k", i)); err != nil || v == nil {
				return fmt.Errorf("key %d is missing: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// logSize returns the size of the newest log.
func logSize(t *testing.T, dir string) int64 {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal("no log", err)
	}
	info, err := os.Stat(logs[len(logs)-1])
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestASyncOfTheLogSeldomFindsItLonger(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	p, err := OpenPebble(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const commits, size = 600, 10_000
	grown, last := 0, int64(-1)
	for i := range commits {
		putAndWait(t, p, fmt.Sprint("k", i), make([]byte, size))
		if n := logSize(t, dir); n != last {
			grown, last = grown+1, n
		}
	}
	if most := commits*size/zeroStep + 2; grown > most || grown < 2 {
		t.Errorf("%d commits of %d bytes made the log longer %d times, want 2 to %d", commits, size, grown, most)
	}
}

// A database whose process is killed ends in zeros, and so does one that was opened
// and killed again before it had anything to write.
func TestALogThatEndsInZerosIsReplayed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "db")
	keys := 0
	for round := range 4 {
		p, err := OpenPebble(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		wantKeys(t, p, keys)
		for range round * 100 {
			putAndWait(t, p, fmt.Sprint("k", keys), make([]byte, 5000))
			keys++
		}
		next := filepath.Join(t.TempDir(), "db")
		if err := os.CopyFS(next, os.DirFS(dir)); err != nil { // as it is now, as a kill leaves it
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		dir = next
	}
	p, err := OpenPebble(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	wantKeys(t, p, keys)
}

// A disk without room for zeros may have room for the records.
func TestALogWithoutZerosIsWritten(t *testing.T) {
	mem, tries := vfs.NewCrashableMem(), 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt && strings.HasSuffix(op.Path, ".log") {
			tries++
			return errors.New("no room")
		}
		return nil
	}))
	p, err := openPebble(fs, "db", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const keys = 40
	for i := range keys {
		putAndWait(t, p, fmt.Sprint("k", i), make([]byte, 100_000))
	}
	if tries == 0 {
		t.Error("no zeros were to be written")
	}
	after, err := openPebble(mem.CrashClone(vfs.CrashCloneCfg{}), "db", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	wantKeys(t, after, keys)
}
