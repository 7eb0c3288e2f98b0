package remote

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

// ways are those to move block i of a sealed bucket.
var ways = map[string]func(w *world, i int) error{
	"get":    func(w *world, i int) error { return w.readSealed(i, 0, -1) },
	"frames": func(w *world, i int) error { return w.readSealed(i, 10, 100) },
	"put": func(w *world, i int) error {
		key := storetest.Key(1000 + i)
		return w.group.Put(w.t.Context(), key, storetest.Data(key, 10_000))
	},
}

// readSealed gets a part of block i, as a mount does, and checks it.
func (w *world) readSealed(i int, off, n int64) error {
	got, err := seal.New(w.group, seal.Options{}).Get(w.t.Context(), storetest.Key(i), off, n)
	if err == nil && !bytes.Equal(got, store.Clip(block(i), off, n)) {
		err = fmt.Errorf("block %d: %d wrong bytes", i, len(got))
	}
	return err
}

// seal puts n sealed blocks into the bucket.
func (w *world) seal(n int) {
	w.t.Helper()
	s := seal.New(w.bucket, seal.Options{})
	for i := range n {
		if err := s.Put(w.t.Context(), storetest.Key(i), block(i)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// all does what way does for n blocks at once, and returns how long it took.
func (w *world) all(n int, way func(w *world, i int) error) time.Duration {
	w.t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := way(w, i); err != nil {
				w.t.Errorf("block %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

// hang makes a proxy answer probes only.
func (w *world) hang(addr string) {
	w.proxies[addr].do(func(ctx context.Context, _ string, _ store.Key) error { <-ctx.Done(); return ctx.Err() })
}

// takes makes a proxy that slow with blocks.
func (w *world) takes(addr string, d time.Duration) {
	w.proxies[addr].do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, d) })
}

// However the proxies go away, and whatever is asked of them, everybody together
// waits for them once.
func TestProxiesThatGoAwayCostOneTimeoutInAll(t *testing.T) {
	for state, bound := range map[string]time.Duration{"refuses": 100 * time.Millisecond, "lost": 1600 * time.Millisecond, "mute": 1600 * time.Millisecond} {
		for name, way := range ways {
			t.Run(state+"/"+name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					const blocks = 64
					w.seal(blocks)
					var hosts []*host
					for _, addr := range []string{"a:1", "a:2", "a:3", "b:1", "b:2"} {
						hosts = append(hosts, w.proxy(addr, time.Millisecond))
					}
					w.client(plain(1, "a:1", "a:2", "a:3"), plain(2, "b:1", "b:2"))
					w.bucketTakes(10 * time.Millisecond)
					w.all(blocks, way)
					for _, h := range hosts {
						h.become(state)
					}
					if took := w.all(blocks, way); took > bound {
						t.Errorf("64 at once took %v, want at most %v:\n%v", took, bound, w.group.Status())
					}
					time.Sleep(time.Second)
					if took := w.all(blocks, way); took > 30*time.Millisecond {
						t.Errorf("64 at once took %v when all was known to be gone", took)
					}
					start := time.Now()
					for i := range 20 {
						if err := way(w, i); err != nil {
							t.Error(err)
						}
					}
					if took := time.Since(start); took > 20*30*time.Millisecond {
						t.Errorf("20 in a row took %v", took)
					}
					for _, h := range hosts {
						h.become("")
					}
					time.Sleep(5 * time.Second)
					w.wantChosen(1)
					w.all(blocks, way) // one of them is each member's trial
					w.origin.seen()
					w.all(blocks, way)
					if n := w.origin.seen(); n > 0 {
						t.Errorf("%d of 64 went to the bucket when the proxies were back for 5 s:\n%v", n, w.group.Status())
					}
				})
			})
		}
	}
}

// A member that answers probes, but no requests, is found out by everybody once.
func TestAHungMemberCostsOneTimeoutInAll(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			for _, members := range []int{1, 3} {
				t.Run(fmt.Sprint(members), func(t *testing.T) { testHungMember(t, members, way) })
			}
		})
	}
}

func testHungMember(t *testing.T, members int, way func(*world, int) error) {
	inWorld(t, func(t *testing.T, w *world) {
		const blocks = 64
		w.seal(blocks)
		addrs := []string{"a:1", "a:2", "a:3"}[:members]
		for _, addr := range addrs {
			w.proxy(addr, time.Millisecond)
		}
		w.client(plain(1, addrs...))
		w.bucketTakes(20 * time.Millisecond)
		w.hang("a:1")
		start := time.Now()
		w.all(blocks, way)
		bound := w.group.cfg.Timing.Hang + 500*time.Millisecond
		if took := time.Since(start); took > bound {
			t.Errorf("64 at once took %v, want at most %v", took, bound)
		}
		if got := w.state("a:1"); got != "slow" {
			t.Errorf("the member is %s, want slow:\n%v", got, w.group.Status())
		}
		if text := w.group.Status().String(); !strings.Contains(text, "no answer to") {
			t.Errorf("the status does not say why:\n%s", text)
		}
		for range 60 { // two minutes: trials cost nobody much
			if took := w.all(8, way); took > 100*time.Millisecond {
				t.Fatalf("8 at once took %v later", took)
			}
			time.Sleep(2 * time.Second)
		}
		if n := w.group.Status().Groups[0].Members[0].Requests; n > 64+16 {
			t.Errorf("the member was sent %d requests", n)
		}
	})
}

// One read after the other of a hung member: the time is what counts, not how
// often it was hedged.
func TestReadsOneByOneOfAHungMemberCostOneTimeoutInAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(200)
		w.proxy("a:1", time.Millisecond)
		g := w.client(plain(1, "a:1"))
		w.bucketTakes(20 * time.Millisecond)
		w.hang("a:1")
		took := w.readAll(200)
		if bound := g.cfg.Timing.Hang + 500*time.Millisecond + 200*20*time.Millisecond; took > bound {
			t.Errorf("200 reads took %v, want at most %v", took, bound)
		}
	})
}

// While the bucket is slow, or does not answer at all, the proxies are not to
// blame.
func TestASlowBucketMakesNoMemberSlow(t *testing.T) {
	for name, way := range ways {
		for _, d := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond, 3 * time.Second, 20 * time.Second} {
			t.Run(fmt.Sprint(name, d), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.seal(50)
					w.proxy("a:1", time.Millisecond)
					w.proxy("a:2", time.Millisecond)
					w.client(plain(1, "a:1", "a:2"))
					w.bucketTakes(10 * time.Millisecond)
					w.takes("a:1", 12*time.Millisecond)
					w.takes("a:2", 12*time.Millisecond)
					for range 10 {
						w.all(20, way)
					}
					w.bucketTakes(d)
					w.takes("a:1", d+2*time.Millisecond)
					w.takes("a:2", d+2*time.Millisecond)
					for range 10 {
						w.all(50, way)
					}
					if n := w.group.Status(); n.Counts.Bypasses != 0 || n.Chosen != 1 {
						t.Errorf("proxies were found slow %d times when the bucket took %v:\n%v", n.Counts.Bypasses, d, n)
					}
				})
			})
		}
	}
}

// What a proxy has to wait for may take longer than what the client waits for.
func TestAMissOfASlowBucketMakesNoMemberSlow(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.seal(20)
		w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.bucketTakes(1500 * time.Millisecond)
		w.takes("a:1", 3*time.Second)
		for range 10 {
			w.all(20, ways["get"])
		}
		if n := w.group.Status(); n.Counts.Bypasses != 0 {
			t.Errorf("the proxy was found slow %d times:\n%v", n.Counts.Bypasses, n)
		}
	})
}

// A proxy slower than the bucket is bypassed, and used again when it is not.
func TestASlowMemberIsBypassedAndComesBack(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.seal(64)
				w.proxy("a:1", time.Millisecond)
				w.proxy("a:2", time.Millisecond)
				g := w.client(plain(1, "a:1", "a:2"))
				w.bucketTakes(20 * time.Millisecond)
				work := func(d time.Duration) {
					for range d / (2 * time.Second) {
						w.all(8, way)
						time.Sleep(2 * time.Second)
					}
				}
				work(40 * time.Second)
				w.takes("a:1", 400*time.Millisecond)
				work(90 * time.Second)
				if got := w.state("a:1"); got == "up" || g.Status().Counts.Bypasses == 0 {
					t.Fatalf("the member is %s:\n%v", got, g.Status())
				}
				if got := w.state("a:2"); got != "up" {
					t.Errorf("the other member is %s", got)
				}
				if text := g.Status().String(); !strings.Contains(text, "take longer than") {
					t.Errorf("the status does not say why:\n%s", text)
				}
				bypasses := g.Status().Counts.Bypasses
				before := g.Status().Groups[0].Members[0].Requests
				work(15 * time.Minute)
				if n := g.Status().Groups[0].Members[0].Requests - before; n > 65 {
					t.Errorf("in a quarter of an hour %d requests were sent to the slow member", n)
				}
				if n := g.Status().Counts.Bypasses - bypasses; n > 65 {
					t.Errorf("it was tried %d times in a quarter of an hour, want pauses that get longer", n)
				}
				w.proxies["a:1"].do(nil)
				work(30 * time.Second)
				if got := w.state("a:1"); got != "up" {
					t.Errorf("the member that is well again is %s", got)
				}
			})
		})
	}
}

// A member of another group than the chosen is tried, too: with copies of what
// is done anyway.
func TestASlowGroupIsLeftAndComesBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.seal(64)
		w.proxy("a:1", time.Millisecond)
		w.proxy("b:1", 8*time.Millisecond)
		g := w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.bucketTakes(50 * time.Millisecond)
		w.takes("a:1", time.Second)
		for range 30 {
			w.all(16, ways["get"])
		}
		w.wantChosen(2)
		switches := g.Status().Counts.Switches
		for range 300 {
			w.all(10, ways["get"])
			time.Sleep(2 * time.Second)
		}
		if n := g.Status().Counts.Switches - switches; n > 0 {
			t.Errorf("the group was changed %d times while the nearer one was slow", n)
		}
		w.proxies["a:1"].do(nil)
		for range 300 {
			w.all(10, ways["get"])
			time.Sleep(2 * time.Second)
		}
		w.wantChosen(1)
	})
}
