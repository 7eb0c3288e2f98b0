// Package enginetest examines engines: whatever passes it can keep a tree.
package enginetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"testing"

	"flexfs/meta/engine"
)

// Run examines the engines that open returns. Each is empty at first; open
// takes care of closing it.
func Run(t *testing.T, open func(t *testing.T) engine.Engine) {
	for _, tc := range []struct {
		name string
		test func(*testing.T, engine.Engine)
	}{
		{"a value that was put is found", testPutGet},
		{"a transaction sees its own writes", testOwnWrites},
		{"a failed transaction did nothing", testRollback},
		{"a view does not change", testSnapshot},
		{"a scan goes through a range in order", testScan},
		{"a range is deleted", testDeleteRange},
		{"added numbers sum up", testAdd},
		{"adds at the same time are all counted", testAddConcurrent},
		{"transactions that share a lock follow each other", testLocks},
		{"a lock that is taken in a transaction counts", testTryLock},
		{"what is too large is refused", testLimits},
		{"an ended context is an error", testContext},
		{"a closed engine says so", testClosed},
		{"random transactions do what a map does", testRandom},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, open(t)) })
	}
}

var ctx = context.Background()

func key(s string) []byte { return []byte(s) }

// update runs a transaction and waits for it.
func update(t *testing.T, e engine.Engine, fn func(engine.Tx) error) {
	t.Helper()
	c, err := e.Update(ctx, nil, fn)
	if err == nil {
		err = errors.Join(c.Wait(), c.Wait()) // twice does no harm
	}
	if err != nil {
		t.Fatalf("update: %v", err)
	}
}

func put(t *testing.T, e engine.Engine, pairs ...string) {
	t.Helper()
	update(t, e, func(tx engine.Tx) error {
		for i := 0; i < len(pairs); i += 2 {
			if err := tx.Put(key(pairs[i]), key(pairs[i+1])); err != nil {
				return err
			}
		}
		return nil
	})
}

// list returns what is from <= key < to as text.
func list(t *testing.T, r engine.Reader, from, to string, reverse bool) string {
	t.Helper()
	var b bytes.Buffer
	err := r.Scan(key(from), key(to), reverse, func(k, v []byte) (bool, error) {
		fmt.Fprintf(&b, "%s=%s ", k, v)
		return true, nil
	})
	if err != nil {
		t.Errorf("scan: %v", err)
	}
	return b.String()
}

func want(t *testing.T, e engine.Engine, all string) {
	t.Helper()
	view(t, e, func(r engine.Reader) error {
		if got := list(t, r, "a", "zz", false); got != all {
			t.Errorf("the engine has %q, want %q", got, all)
		}
		return nil
	})
}

func view(t *testing.T, e engine.Engine, fn func(engine.Reader) error) {
	t.Helper()
	if err := e.View(ctx, fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

func testPutGet(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1", "b", "", "c", "3")
	view(t, e, func(r engine.Reader) error {
		a, err := r.Get(key("a"))
		if err != nil || string(a) != "1" {
			t.Errorf("a is %q, %v", a, err)
		}
		if b, err := r.Get(key("b")); err != nil || b == nil || len(b) != 0 {
			t.Errorf("b is %#v, %v; want empty and not nil", b, err)
		}
		if no, err := r.Get(key("no")); err != nil || no != nil {
			t.Errorf("no is %#v, %v; want nil", no, err)
		}
		all, err := r.MGet(key("c"), key("no"), key("a"))
		if err != nil || len(all) != 3 || string(all[0]) != "3" || all[1] != nil || string(all[2]) != "1" {
			t.Errorf("MGet: %q, %v", all, err)
		}
		many, err := r.MGet(key("c"), key("no"), key("a"), key("b"), key("z"), key("a"), key("0"))
		if err != nil || len(many) != 7 || string(many[0]) != "3" || many[1] != nil || string(many[2]) != "1" ||
			many[3] == nil || len(many[3]) != 0 || many[4] != nil || string(many[5]) != "1" || many[6] != nil {
			t.Errorf("MGet of many: %q, %v", many, err)
		}
		if string(a) != "1" {
			t.Errorf("a became %q while the view lasted", a)
		}
		return nil
	})
}

func testOwnWrites(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1", "b", "2", "c", "3")
	update(t, e, func(tx engine.Tx) error {
		k := key("d")
		v := key("4")
		if err := errors.Join(tx.Put(k, v), tx.Delete(key("b")), tx.Put(key("a"), key("9"))); err != nil {
			return err
		}
		k[0], v[0] = 'x', 'x' // the engine keeps no slice
		if got := list(t, tx, "a", "z", false); got != "a=9 c=3 d=4 " {
			t.Errorf("in the transaction: %q", got)
		}
		if b, err := tx.Get(key("b")); b != nil || err != nil {
			t.Errorf("b is %q, %v", b, err)
		}
		return nil
	})
	want(t, e, "a=9 c=3 d=4 ")
}

func testRollback(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1")
	fail := errors.New("no")
	_, err := e.Update(ctx, nil, func(tx engine.Tx) error {
		return errors.Join(tx.Put(key("a"), key("2")), tx.Put(key("b"), key("2")), tx.Add(key("n"), 1), fail)
	})
	if !errors.Is(err, fail) {
		t.Errorf("update: %v", err)
	}
	want(t, e, "a=1 ")
	if err := e.View(ctx, func(engine.Reader) error { return fail }); !errors.Is(err, fail) {
		t.Errorf("view: %v", err)
	}
}

func testSnapshot(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1")
	view(t, e, func(r engine.Reader) error {
		put(t, e, "a", "2", "b", "2")
		if got := list(t, r, "a", "z", false); got != "a=1 " {
			t.Errorf("the view has %q", got)
		}
		return nil
	})
	want(t, e, "a=2 b=2 ")
}

func testScan(t *testing.T, e engine.Engine) {
	put(t, e, "b", "2", "a", "1", "c", "3", "b\x00", "0", "b\xff", "9")
	view(t, e, func(r engine.Reader) error {
		for _, tc := range []struct {
			from, to string
			reverse  bool
			want     string
		}{
			{"a", "c", false, "a=1 b=2 b\x00=0 b\xff=9 "},
			{"a", "c", true, "b\xff=9 b\x00=0 b=2 a=1 "},
			{"b\x00", "b\xff", false, "b\x00=0 "},
			{"c", "c", false, ""},
			{"d", "z", true, ""},
		} {
			if got := list(t, r, tc.from, tc.to, tc.reverse); got != tc.want {
				t.Errorf("%q to %q, reverse %v: %q, want %q", tc.from, tc.to, tc.reverse, got, tc.want)
			}
		}
		n := 0
		err := r.Scan(key("a"), key("z"), false, func(_, _ []byte) (bool, error) { n++; return n < 2, nil })
		if n != 2 || err != nil {
			t.Errorf("a scan that is stopped at 2: %d, %v", n, err)
		}
		fail := errors.New("no")
		if err := r.Scan(key("a"), key("z"), false, func(_, _ []byte) (bool, error) { return true, fail }); !errors.Is(err, fail) {
			t.Errorf("a scan that fails: %v", err)
		}
		return nil
	})
}

func testDeleteRange(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1", "b", "2", "c", "3", "d", "4")
	update(t, e, func(tx engine.Tx) error {
		if err := errors.Join(tx.Put(key("bb"), key("5")), tx.DeleteRange(key("b"), key("d")), tx.Put(key("c"), key("6"))); err != nil {
			return err
		}
		if got := list(t, tx, "a", "z", false); got != "a=1 c=6 d=4 " {
			t.Errorf("in the transaction: %q", got)
		}
		return nil
	})
	want(t, e, "a=1 c=6 d=4 ")
}

func number(t *testing.T, r engine.Reader, k string) int64 {
	t.Helper()
	b, err := r.Get(key(k))
	if err != nil || b != nil && len(b) != 8 {
		t.Errorf("%s is %q, %v", k, b, err)
		return 0
	}
	if b == nil {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

func testAdd(t *testing.T, e engine.Engine) {
	for _, step := range []struct {
		do   func(engine.Tx) error
		want int64
	}{
		{func(tx engine.Tx) error { return tx.Add(key("n"), 5) }, 5},
		{func(tx engine.Tx) error { return errors.Join(tx.Add(key("n"), -7), tx.Add(key("n"), 1)) }, -1},
		{func(tx engine.Tx) error { return tx.Put(key("n"), binary.BigEndian.AppendUint64(nil, 100)) }, 100},
		{func(tx engine.Tx) error { return tx.Add(key("n"), 1) }, 101},
		{func(tx engine.Tx) error { return errors.Join(tx.Delete(key("n")), tx.Add(key("n"), 3)) }, 3},
		{func(tx engine.Tx) error { return tx.Delete(key("n")) }, 0},
	} {
		update(t, e, func(tx engine.Tx) error {
			err := step.do(tx)
			if got := number(t, tx, "n"); got != step.want {
				t.Errorf("in the transaction n is %d, want %d", got, step.want)
			}
			return err
		})
		view(t, e, func(r engine.Reader) error {
			if got := number(t, r, "n"); got != step.want {
				t.Errorf("n is %d, want %d", got, step.want)
			}
			return nil
		})
	}
}

func testAddConcurrent(t *testing.T, e engine.Engine) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := e.Update(ctx, nil, func(tx engine.Tx) error { return tx.Add(key("n"), 1) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, e, func(r engine.Reader) error {
		if got := number(t, r, "n"); got != 400 {
			t.Errorf("n is %d, want 400", got)
		}
		return nil
	})
}

func testLocks(t *testing.T, e engine.Engine) {
	var wg sync.WaitGroup
	for i := range 8 {
		locks := [][]byte{key("a"), key("b"), key("a"), key(fmt.Sprint(i))}
		if i%2 == 0 {
			slices.Reverse(locks)
		}
		wg.Go(func() {
			for range 50 {
				_, err := e.Update(ctx, locks, func(tx engine.Tx) error {
					n := number(t, tx, "n")
					return tx.Put(key("n"), binary.BigEndian.AppendUint64(nil, uint64(n+1)))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, e, func(r engine.Reader) error {
		if got := number(t, r, "n"); got != 400 {
			t.Errorf("n is %d, want 400", got)
		}
		return nil
	})
}

// testTryLock has some take the lock before they start and others when they
// have started: they wait for no lock then, so no two wait for each other.
func testTryLock(t *testing.T, e engine.Engine) {
	var wg sync.WaitGroup
	busy := errors.New("the lock is not free")
	for i := range 8 {
		first := [][]byte{key(fmt.Sprint(i % 2))}
		wg.Go(func() {
			for n := 0; n < 50; {
				locks := first
				if i%4 == 0 {
					locks = [][]byte{key("n")}
				}
				_, err := e.Update(ctx, locks, func(tx engine.Tx) error {
					for _, k := range []string{"n", fmt.Sprint(1 - i%2)} {
						if !tx.TryLock(key(k)) {
							return busy
						}
					}
					return tx.Put(key("n"), binary.BigEndian.AppendUint64(nil, uint64(number(t, tx, "n")+1)))
				})
				switch {
				case err == nil:
					n++
				case errors.Is(err, busy):
					runtime.Gosched()
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	view(t, e, func(r engine.Reader) error {
		if got := number(t, r, "n"); got != 400 {
			t.Errorf("n is %d, want 400", got)
		}
		return nil
	})
}

func testLimits(t *testing.T, e engine.Engine) {
	for name, fn := range map[string]func(engine.Tx) error{
		"key":   func(tx engine.Tx) error { return tx.Put(make([]byte, engine.MaxKey+1), nil) },
		"value": func(tx engine.Tx) error { return tx.Put(key("b"), make([]byte, engine.MaxValue+1)) },
		"transaction": func(tx engine.Tx) error {
			for i := range engine.MaxTx/engine.MaxValue + 1 {
				if err := tx.Put(key(fmt.Sprint("c", i)), make([]byte, engine.MaxValue)); err != nil {
					return err
				}
			}
			return nil
		},
		"key whose error is not looked at": func(tx engine.Tx) error {
			tx.Put(make([]byte, engine.MaxKey+1), nil)
			return nil
		},
	} {
		_, err := e.Update(ctx, nil, func(tx engine.Tx) error {
			if err := tx.Put(key("a"), key("1")); err != nil {
				return err
			}
			return fn(tx)
		})
		if !errors.Is(err, engine.ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		want(t, e, "")
	}
	update(t, e, func(tx engine.Tx) error {
		return errors.Join(
			tx.Put(bytes.Repeat(key("k"), engine.MaxKey), make([]byte, engine.MaxValue)),
			tx.Put(key("l"), make([]byte, engine.MaxTx-engine.MaxValue*102)))
	})
}

func testContext(t *testing.T, e engine.Engine) {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := e.View(ended, func(engine.Reader) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("view: %v", err)
	}
	_, err := e.Update(ended, nil, func(tx engine.Tx) error { return tx.Put(key("a"), nil) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("update: %v", err)
	}
	want(t, e, "")
}

func testClosed(t *testing.T, e engine.Engine) {
	put(t, e, "a", "1")
	if err := e.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := e.View(ctx, func(engine.Reader) error { return nil }); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("view: %v", err)
	}
	if _, err := e.Update(ctx, nil, func(engine.Tx) error { return nil }); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("update: %v", err)
	}
	if err := e.Checkpoint(ctx, t.TempDir()+"/copy"); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("checkpoint: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

// testRandom compares random transactions with a map.
func testRandom(t *testing.T, e engine.Engine) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	model := map[string]string{}
	name := func() string { return string(rune('a' + rng.IntN(20))) }
	for i := range 300 {
		next := map[string]string{}
		for k, v := range model {
			next[k] = v
		}
		fail := rng.IntN(4) == 0
		c, err := e.Update(ctx, nil, func(tx engine.Tx) error {
			for range rng.IntN(6) {
				if err := randomWrite(rng, tx, next, name); err != nil {
					return err
				}
			}
			if fail {
				return errors.New("no")
			}
			return nil
		})
		if (err != nil) != fail {
			t.Fatalf("seed %d, step %d: %v", seed, i, err)
		}
		if err == nil {
			model = next
			if err := c.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		want(t, e, text(model))
	}
}

func randomWrite(rng *rand.Rand, tx engine.Tx, m map[string]string, name func() string) error {
	a, b := name(), name()
	switch rng.IntN(4) {
	case 0:
		delete(m, a)
		return tx.Delete(key(a))
	case 1:
		if a > b {
			a, b = b, a
		}
		for k := range m {
			if k >= a && k < b {
				delete(m, k)
			}
		}
		return tx.DeleteRange(key(a), key(b))
	}
	v := fmt.Sprint(rng.IntN(1000))
	m[a] = v
	return tx.Put(key(a), key(v))
}

func text(m map[string]string) string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v+" ")
	}
	sort.Strings(all)
	var b bytes.Buffer
	for _, s := range all {
		b.WriteString(s)
	}
	return b.String()
}
