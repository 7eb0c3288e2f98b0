package remote

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

// holding is a proxy that holds some blocks itself, and has others from the
// bucket.
type holding struct {
	store.Store
	held *mem.Store
}

func (h *holding) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := h.held.Get(ctx, key, off, n)
	if err == nil || store.IsLocal(ctx) {
		return data, err
	}
	return h.Store.Get(ctx, key, off, n)
}

// holder starts a proxy that may hold blocks that are not in the bucket.
func (w *world) holder(addr string) *holding {
	w.proxy(addr, time.Millisecond)
	s := w.proxies[addr]
	h := &holding{Store: w.bucket, held: mem.New(w.t)}
	s.Store = h
	return h
}

// give puts sealed block i into a store.
func (w *world) give(s store.Store, i int) {
	w.t.Helper()
	if err := seal.New(s, seal.Options{}).Put(w.t.Context(), storetest.Key(i), block(i)); err != nil {
		w.t.Fatal(err)
	}
}

// A block that is on its way to the bucket is found, whoever has it.
func TestABlockOnItsWayIsFoundWhereverItIs(t *testing.T) {
	former := plain(2, "b:1")
	former.Former = []Member{{Address: "b:9"}}
	for name, c := range map[string]struct {
		groups []GroupSettings
		limit  int64
		holder string
		state  string // of the chosen group's member
	}{
		"a member that is not its owner": {groups: []GroupSettings{plain(1, "a:1", "a:2", "a:3")}, holder: "a:2"},
		"another group":                  {groups: []GroupSettings{plain(1, "a:1"), plain(2, "b:1")}, holder: "b:1"},
		"a former member":                {groups: []GroupSettings{plain(1, "a:1"), former}, holder: "b:9"},
		"no group can be used":           {groups: []GroupSettings{former}, holder: "b:9", state: "refuses"},
		"beyond maxProxied":              {groups: []GroupSettings{plain(1, "a:1")}, limit: 1, holder: "a:1"},
	} {
		for _, way := range []string{"get", "frames"} {
			t.Run(name+"/"+way, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					holders := make(map[string]*holding)
					for _, addr := range []string{"a:1", "a:2", "a:3", "b:1", "b:9"} {
						holders[addr] = w.holder(addr)
					}
					if c.state != "" {
						w.net.host("b:1").become(c.state)
					}
					g := w.client(c.groups...)
					g.Update(c.groups, c.limit)
					for i := range 20 {
						w.give(holders[c.holder].held, i)
					}
					start := time.Now()
					for i := range 20 {
						if err := ways[way](w, i); err != nil {
							t.Fatal(err)
						}
					}
					if took := time.Since(start); took > 20*30*time.Millisecond {
						t.Errorf("20 reads took %v", took)
					}
					n := g.Status().Counts
					if n.FoundAtPeer == 0 || n.FoundAtPeer > n.Searched || n.Searched > 40 {
						t.Errorf("counted %+v", n)
					}
				})
			})
		}
	}
}

// What is uploaded, or comes back, while the block is searched for is found.
func TestASearchGoesOnForAWhile(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("a:1")
		b := w.holder("b:1")
		w.net.host("b:1").become("lost")
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.give(b.held, 0)
		back := time.AfterFunc(5*time.Second, func() { w.net.host("b:1").become("") })
		defer back.Stop()
		start := time.Now()
		if err := ways["get"](w, 0); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < 5*time.Second || took > 10*time.Second {
			t.Errorf("found after %v, want it soon after 5s", took)
		}
		up := time.AfterFunc(3*time.Second, func() { w.give(w.bucket, 1) })
		defer up.Stop()
		if err := ways["get"](w, 1); err != nil {
			t.Error(err)
		}
		for _, members := range [][]string{{"a:1"}, {"b:1"}, {"a:1", "b:1"}} {
			w.group.Update([]GroupSettings{plain(1, members...)}, 0)
			start = time.Now()
			_, err := w.group.Get(t.Context(), storetest.Key(7), 0, -1)
			if took := time.Since(start); !errors.Is(err, store.ErrNotExist) || took < 10*time.Second || took > 12*time.Second {
				t.Errorf("a block that is nowhere: after %v, error %v", took, err)
			}
		}
	})
}

func TestWithoutGroupsTheBucketIsBelieved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.client()
		start := time.Now()
		_, err := w.group.Get(t.Context(), storetest.Key(7), 0, -1)
		if took := time.Since(start); !errors.Is(err, store.ErrNotExist) || took > 0 {
			t.Errorf("after %v, error %v", took, err)
		}
	})
}

// Many who want one block search for it once, and nobody is told that a block is
// nowhere because others search, too.
func TestSearchesAreBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("a:1")
		other := w.holder("b:1")
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		up := time.AfterFunc(time.Second, func() { w.give(other.held, 0) })
		defer up.Stop()
		w.all(50, func(w *world, _ int) error { return ways["get"](w, 0) })
		if n := w.group.Status().Counts; n.Searched > 3 {
			t.Errorf("50 readers of one block searched %d times", n.Searched)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		first := make(chan error)
		go func() {
			_, err := w.group.Get(ctx, storetest.Key(5), 0, -1)
			first <- err
		}()
		time.Sleep(100 * time.Millisecond)
		later := time.AfterFunc(4*time.Second, func() { w.give(other.held, 5) })
		defer later.Stop()
		if err := ways["get"](w, 5); err != nil {
			t.Errorf("the search of another who gave up: %v", err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gave up: %v", err)
		}
		start := time.Now()
		var missing atomic.Int64
		w.all(64, func(w *world, i int) error {
			_, err := w.group.Get(w.t.Context(), storetest.Key(100+i), 0, -1)
			switch {
			case errors.Is(err, store.ErrNotExist):
				missing.Add(1)
				return nil
			case errors.Is(err, errBusy):
				return nil
			}
			return fmt.Errorf("got error %v", err)
		})
		if took, n := time.Since(start), missing.Load(); n < 64 || took > 12*time.Second {
			t.Errorf("%d were searched for, in %v", n, took)
		}
	})
}

// away is a bucket that cannot be reached.
type away struct{ store.Store }

func (away) Get(context.Context, store.Key, int64, int64) ([]byte, error) {
	return nil, errors.New("the bucket is away")
}

// While the bucket is away a block that only another member has is read there.
func TestWithoutTheBucketBlocksAreReadWhereverTheyAre(t *testing.T) {
	for _, way := range []string{"get", "frames"} {
		t.Run(way, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				owners := map[string]*holding{"a:1": w.holder("a:1"), "a:2": w.holder("a:2")}
				for i := range 10 {
					w.give(owners["a:1"].held, i) // the owner of some
				}
				for _, h := range owners {
					h.Store = away{h.Store}
				}
				w.client(plain(1, "a:1", "a:2"))
				w.origin.do(func(context.Context, string, store.Key) error { return errors.New("the bucket is away") })
				start := time.Now()
				for i := range 10 {
					if err := ways[way](w, i); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("10 reads took %v", took)
				}
				if n := w.group.Status().Counts.FoundAtPeer; n == 0 {
					t.Error("no block was read from another than its owner")
				}
				if err := ways[way](w, 99); err == nil {
					t.Error("a block was read that nobody has")
				}
			})
		})
	}
}

// Searches for blocks that are nowhere keep nobody else from a block that is at a proxy.
func TestSearchesInVainHoldNobodyUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("a:1")
		other := w.holder("b:1")
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.give(other.held, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var vain sync.WaitGroup
		for i := range 64 {
			vain.Go(func() { w.group.Get(ctx, storetest.Key(100+i), 0, -1) })
		}
		time.Sleep(2 * time.Second)
		start := time.Now()
		if err := ways["get"](w, 0); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		cancel()
		vain.Wait()
	})
}

// Whoever waits for another's search waits no longer than for one of their own.
func TestAFailedSearchIsNotRepeatedByAllWhoWaited(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("a:1")
		w.client(plain(1, "a:1"))
		start := time.Now()
		w.origin.do(func(context.Context, string, store.Key) error {
			if time.Since(start) > time.Second {
				return fmt.Errorf("the bucket: %w", context.DeadlineExceeded)
			}
			return nil
		})
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if _, err := w.group.Get(t.Context(), storetest.Key(7), 0, -1); err == nil {
					t.Error("read")
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Whoever gives up while searching for others does not tell them that the block is nowhere.
func TestWhoGivesUpASearchDoesNotEndIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("a:1")
		other := w.holder("b:1")
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.origin.Store = stubborn{w.bucket}
		w.origin.do(func(context.Context, string, store.Key) error { time.Sleep(100 * time.Millisecond); return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
		defer cancel()
		go w.group.Get(ctx, storetest.Key(0), 0, -1)
		time.Sleep(time.Millisecond)
		up := time.AfterFunc(2*time.Second, func() { w.give(other.held, 0) })
		defer up.Stop()
		if err := ways["get"](w, 0); err != nil {
			t.Error(err)
		}
	})
}

// stubborn answers also who has given up.
type stubborn struct{ store.Store }

func (s stubborn) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	return s.Store.Get(context.WithoutCancel(ctx), key, off, n)
}

// While the bucket is away blocks that nobody has keep nobody from those that a proxy has.
func TestWithoutTheBucketVainReadsHoldNobodyUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := map[string]*holding{"a:1": w.holder("a:1"), "b:1": w.holder("b:1"), "b:2": w.holder("b:2")}
		w.give(h["b:1"].held, 0)
		for _, h := range h {
			h.Store = away{h.Store}
		}
		w.client(plain(1, "a:1"), plain(2, "b:1", "b:2"))
		w.net.host("b:2").become("lost")
		w.origin.do(func(context.Context, string, store.Key) error { return errors.New("the bucket is away") })
		ctx, cancel := context.WithCancel(t.Context())
		var vain sync.WaitGroup
		for i := range 40 {
			vain.Go(func() {
				for ctx.Err() == nil {
					w.group.Get(ctx, storetest.Key(100+i), 0, -1)
				}
			})
		}
		time.Sleep(2 * time.Second)
		start := time.Now()
		if err := ways["get"](w, 0); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		cancel()
		vain.Wait()
	})
}

// A member that says it has the block and does not send it keeps nobody from
// another that does.
func TestAHolderThatHangsIsNotWaitedForAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.holder("c:1")
		hangs, has := w.holder("a:1"), w.holder("b:1")
		g := w.client(plain(1, "c:1"), plain(2, "a:1"), plain(3, "b:1"))
		w.give(hangs.held, 0)
		w.give(has.held, 0)
		w.proxies["a:1"].Store = hanging{hangs}
		w.proxies["b:1"].Store = slowly{has} // answers after the one that hangs
		start := time.Now()
		if err := ways["get"](w, 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > g.cfg.Timing.Hang+time.Second {
			t.Errorf("the read took %v", took)
		}
	})
}

// hanging says that it has blocks, and sends none.
type hanging struct{ store.Store }

func (s hanging) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if n == 0 {
		return s.Store.Get(ctx, key, off, n)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// slowly answers after a while.
type slowly struct{ store.Store }

func (s slowly) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	time.Sleep(100 * time.Millisecond)
	return s.Store.Get(ctx, key, off, n)
}
