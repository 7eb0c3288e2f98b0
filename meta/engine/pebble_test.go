package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flexfs/meta/engine"
	"flexfs/meta/engine/enginetest"
)

func TestPebble(t *testing.T) {
	for _, opt := range []engine.Options{{}, {NoSync: true}} {
		t.Run(fmt.Sprintf("no sync %v", opt.NoSync), func(t *testing.T) {
			enginetest.Run(t, func(t *testing.T) engine.Engine { return open(t, t.TempDir(), opt) })
		})
	}
}

func TestMemory(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) engine.Engine {
		m, err := engine.OpenMemory()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	})
}

func open(t *testing.T, dir string, opt engine.Options) *engine.Pebble {
	t.Helper()
	p, err := engine.OpenPebble(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// fill puts n keys of 1 KiB each.
func fill(t *testing.T, e engine.Engine, n int) {
	t.Helper()
	c, err := e.Update(context.Background(), nil, func(tx engine.Tx) error {
		for i := range n {
			if err := tx.Put(fmt.Appendf(nil, "key %06d", i), fmt.Appendf(nil, "%01024d", i*7919)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// verify returns how many keys of fill are there, and fails if one is wrong.
func verify(e engine.Engine) (n int, err error) {
	err = e.View(context.Background(), func(r engine.Reader) error {
		return r.Scan([]byte("key"), []byte("kez"), false, func(k, v []byte) (bool, error) {
			if want := fmt.Sprintf("%01024d", n*7919); string(v) != want || string(k) != fmt.Sprintf("key %06d", n) {
				return false, fmt.Errorf("key %q has a wrong value", k)
			}
			n++
			return true, nil
		})
	})
	return n, err
}

func TestWhatWasCommittedIsThereAfterReopening(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, engine.Options{})
	fill(t, p, 1000)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir, engine.Options{})
	if n, err := verify(p); n != 1000 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
}

func TestACheckpointIsADatabase(t *testing.T) {
	p := open(t, t.TempDir(), engine.Options{})
	fill(t, p, 1000)
	dir := filepath.Join(t.TempDir(), "copy")
	if err := p.Checkpoint(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	fill(t, p, 2000)
	if n, err := verify(open(t, dir, engine.Options{})); n != 1000 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
	if err := p.Checkpoint(context.Background(), dir); err == nil {
		t.Error("a checkpoint was written over another")
	}
}

func TestADatabaseInUseIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, engine.Options{})
	_, err := engine.OpenPebble(dir, engine.Options{})
	if !errors.Is(err, engine.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
}

func TestAFolderThatIsNoDatabaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.OpenPebble(dir, engine.Options{}); err == nil {
		t.Error("it was opened")
	}
	if _, err := engine.OpenPebble(filepath.Join(dir, "letter.txt"), engine.Options{}); err == nil {
		t.Error("a file was opened")
	}
}

// TestADamagedDatabaseIsNeverAnsweredFrom cuts, empties, removes and changes each
// file of a database: what is then read is right or an error, and never a
// database that is empty or short.
func TestADamagedDatabaseIsNeverAnsweredFrom(t *testing.T) {
	good := t.TempDir()
	p := open(t, good, engine.Options{})
	fill(t, p, 500)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(good)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func(data []byte) []byte{
		"cut":     func(data []byte) []byte { return data[:len(data)/2] },
		"emptied": func(data []byte) []byte { return nil },
		"changed": func(data []byte) []byte {
			for i := len(data) / 4; i < len(data)/2; i++ {
				data[i] ^= 0x55
			}
			return data
		},
		"removed": nil,
	}
	for _, name := range names {
		for how, damage := range damages {
			t.Run(how+" "+name.Name(), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "db")
				if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
					t.Fatal(err)
				}
				spoil(t, filepath.Join(dir, name.Name()), damage)
				n, err := reopen(dir)
				if err == nil && n != 500 {
					t.Errorf("%d keys of 500, and no error", n)
				}
				if err != nil && !errors.Is(err, engine.ErrCorrupt) {
					t.Errorf("the error does not say that the database is damaged: %v", err)
				}
			})
		}
	}
}

func spoil(t *testing.T, path string, damage func([]byte) []byte) {
	t.Helper()
	if damage == nil {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, damage(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func reopen(dir string) (int, error) {
	p, err := engine.OpenPebble(dir, engine.Options{})
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return verify(p)
}

func TestAfterACrashTheCommitsAreAPrefix(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			m, err := engine.OpenMemory()
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			const acknowledged, all = 50, 80
			for i := range all {
				c, err := m.Update(context.Background(), nil, func(tx engine.Tx) error {
					return tx.Put(fmt.Appendf(nil, "key %06d", i), fmt.Appendf(nil, "%01024d", i*7919))
				})
				if err == nil && i < acknowledged {
					err = c.Wait()
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			crashed, err := m.Crash(int(seed%3)*50, seed)
			if err != nil {
				t.Fatal(err)
			}
			defer crashed.Close()
			if n, err := verify(crashed); err != nil || n < acknowledged {
				t.Errorf("%d keys, %v", n, err)
			}
		})
	}
}
