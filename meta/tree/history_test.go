package tree

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// state returns the keys and values of the tables that have history, and the
// history: by key, by second.
func (w *world) state(t *testing.T) (now map[string]string, past map[string]map[int64]string) {
	t.Helper()
	now, past = map[string]string{}, map[string]map[int64]string{}
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		return r.Scan([]byte{0, 0, 0, 1}, []byte{0, 0, 0, 2}, false, func(key, value []byte) (bool, error) {
			switch key[4] {
			case tableInode, tableDentry:
				now[string(key[4:])] = string(value)
			case tableHistory:
				n := len(key) - 8
				of := string(key[5 : n-1])
				if past[of] == nil {
					past[of] = map[int64]string{}
				}
				past[of][int64(binary.BigEndian.Uint64(key[n:]))] = string(value)
			}
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return now, past
}

// at returns what a key had at the beginning of a second.
func at(key string, second int64, now map[string]string, past map[string]map[int64]string) (string, bool) {
	best := int64(never)
	for s := range past[key] {
		if s >= second {
			best = min(best, s)
		}
	}
	if best == never {
		v, ok := now[key]
		return v, ok
	}
	v := past[key][best]
	return v[1:], v[0] == 1
}

func TestTheStateOfEverySecondCanBeTold(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.config.Retention = -1
				p := &player{rand.New(rand.NewPCG(seed, 5)), w.hello("rw:"), newModel()}
				before := map[int64]map[string]string{}
				for range 40 {
					time.Sleep(time.Second)
					before[time.Now().Unix()], _ = w.state(t)
					for range p.IntN(10) {
						p.step()
					}
				}
				now, past := w.state(t)
				for second, want := range before {
					for key, value := range want {
						if got, ok := at(key, second, now, past); !ok || got != value {
							t.Fatalf("second %d, key %q: %q, %v; it was %q", second, key, got, ok, value)
						}
					}
					for key := range now {
						_, was := want[key]
						if _, ok := at(key, second, now, past); ok && !was && !unborn(want, "", key) {
							t.Fatalf("second %d: key %q was not there", second, key)
						}
					}
				}
			})
		})
	}
}

// unborn tells whether a key is of an inode, or is a name in a directory, that was
// not there: nothing of it is recorded then, as no name leads to it. Before a key
// there is the prefix of all.
func unborn(there map[string]string, prefix, key string) bool {
	attributes := prefix + string(tableInode) + key[len(prefix)+1:len(prefix)+9] + "\x00"
	_, was := there[attributes]
	return !was
}

func TestRetentionWithoutEndKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.config.Retention = -1
		w.run(t)
		c := w.hello("rw:")
		defer c.pinging(t)()
		f := c.file(meta.Root, "f")
		c.write(f, 0, 2)
		c.write(f, 0, 2)
		c.ok(on(meta.OpUnlink, meta.Root, "f"))
		c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
		time.Sleep(24 * time.Hour)
		if n := w.deletes(); n != 0 {
			t.Errorf("%d blocks were deleted", n)
		}
		c.attr(f)
	})
}
