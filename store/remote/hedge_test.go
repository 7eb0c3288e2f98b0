package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

func TestAReadThatTakesLongIsHedged(t *testing.T) {
	for _, name := range []string{"get", "frames"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.seal(100)
				w.proxy("a:1", time.Millisecond)
				w.client(plain(1, "a:1"))
				w.bucketTakes(10 * time.Millisecond)
				late := func(d, want time.Duration) {
					t.Helper()
					w.takes("a:1", d)
					if took := w.all(1, ways[name]); took > want {
						t.Errorf("a read took %v, want at most %v", took, want)
					}
					w.takes("a:1", 0)
				}
				late(time.Second, defaultHedge+15*time.Millisecond) // nothing is known yet
				w.all(100, ways[name])
				late(time.Second, minHedge+15*time.Millisecond)
				if n := w.group.Status().Counts; n.Hedged != 2 || n.HedgesWon != 2 {
					t.Errorf("counted %+v, want 2 hedges that won", n)
				}
				late(12*time.Millisecond, 15*time.Millisecond)
				if n := w.group.Status(); n.Counts.Hedged != 3 || n.Counts.HedgesWon != 2 || n.Groups[0].Members[0].Beaten != 2 {
					t.Errorf("counted %+v, want one more hedge, which did not win:\n%v", n.Counts, n)
				}
			})
		})
	}
}

// In the long run one read in twenty is hedged, however many take long.
func TestHedgesKeepToTheirBudget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", 0)
		w.client(plain(1, "a:1"))
		w.bucketTakes(time.Second) // so that nobody is found slow
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(1, 2))
		w.proxies["a:1"].do(func(ctx context.Context, _ string, _ store.Key) error {
			mu.Lock()
			late := r.IntN(2) == 0
			mu.Unlock()
			if late {
				return pause(ctx, 1500*time.Millisecond)
			}
			return nil
		})
		const reads = 2000
		w.readMany(reads)
		n := w.group.Status().Counts
		if most, extra := int64(reads*hedgeShare/1000+hedgeBurst), n.Hedged+n.Compared; extra > most || extra < most-2 {
			t.Errorf("%d of %d reads were sent to the bucket as well, want %d: %+v", extra, reads, most, n)
		}
		if n.HedgesDenied == 0 {
			t.Error("no hedge was denied")
		}
	})
}

// readMany reads block 0 again and again.
func (w *world) readMany(n int) {
	w.t.Helper()
	for range n {
		if err := w.read(0); err != nil {
			w.t.Fatal(err)
		}
	}
}

// The answer of a proxy that is cut off and that of the bucket are not mixed,
// whoever is first.
func TestHedgesAreNotMixed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const blocks = 50
		w.seal(blocks)
		for _, addr := range []string{"a:1", "a:2"} {
			w.proxy(addr, 100*time.Microsecond)
		}
		g := w.client(plain(1, "a:1", "a:2"))
		g.hedges.tokens.Store(1e9) // each may be hedged
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(3, 4))
		varied := func(ctx context.Context, _ string, _ store.Key) error {
			mu.Lock()
			d, fails := time.Duration(r.IntN(12))*time.Millisecond, r.IntN(20) == 0
			mu.Unlock()
			if err := pause(ctx, d); err != nil {
				return err
			}
			if fails {
				return errors.New("now and then")
			}
			return nil
		}
		for _, s := range w.proxies {
			s.do(func(ctx context.Context, op string, key store.Key) error {
				if key.Hash()%8 == 0 {
					pause(ctx, minHedge+5*time.Millisecond)
				}
				return varied(ctx, op, key)
			})
		}
		w.origin.do(func(ctx context.Context, op string, key store.Key) error {
			if err := varied(ctx, op, key); ctx.Err() != nil {
				return err
			}
			return nil
		})
		for range 20 {
			w.all(blocks, func(w *world, i int) error { // as seal would ask again if it was damaged
				want, _ := w.bucket.Get(t.Context(), storetest.Key(i), 0, -1)
				got, err := g.Get(t.Context(), storetest.Key(i), 0, -1)
				if err == nil && !bytes.Equal(got, want) {
					err = fmt.Errorf("got %d bytes, and others than %d", len(got), len(want))
				}
				return err
			})
			w.all(blocks, func(w *world, i int) error {
				head, frames, _ := seal.GetFrames(t.Context(), w.bucket, storetest.Key(i), 10, 100)
				h, f, err := g.GetFrames(t.Context(), storetest.Key(i), 10, 100)
				if err == nil && (!bytes.Equal(h, head) || !bytes.Equal(f, frames)) {
					err = fmt.Errorf("got %d and %d bytes, and others than %d and %d", len(h), len(f), len(head), len(frames))
				}
				return err
			})
		}
		if n := g.Status().Counts; n.HedgesWon < 20 || n.Hedged == n.HedgesWon {
			t.Errorf("counted %+v, want hedges that won and others", n)
		}
	})
}

// A reader that wants a copy checked, or only what is there, gets what it asked for.
func TestSomeReadsAreNotHedged(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", 0)
		w.client(plain(1, "a:1"))
		w.takes("a:1", time.Second)
		for name, ctx := range map[string]context.Context{"verify": store.WithVerify(t.Context()), "local": store.WithLocal(t.Context())} {
			if _, err := w.group.Get(ctx, storetest.Key(0), 0, -1); err != nil && name == "verify" {
				t.Error(err)
			}
		}
		if n := w.group.Status().Counts.Hedged; n != 0 {
			t.Errorf("%d were hedged", n)
		}
	})
}

// When many requests fail not all of them may try the next member.
func TestRetriesKeepToTheirBudget(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(200)
		for _, addr := range []string{"a:1", "a:2"} {
			w.net.serve(t, addr, time.Millisecond, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set(headerProxy, "1")
				if r.URL.Path != healthPath {
					w.Header().Set(headerError, string(codeDamaged))
					w.WriteHeader(statusOf[codeDamaged])
				}
			}))
		}
		w.client(plain(1, "a:1", "a:2"))
		w.all(200, func(w *world, i int) error { return w.read(i) })
		n := w.group.Status()
		var requests int64
		for _, m := range n.Groups[0].Members {
			requests += m.Requests
		}
		if most := int64(200 + retryBurst + 200*retryShare/1000); requests > most || requests < most-retryBurst {
			t.Errorf("200 reads made %d requests to proxies, want at most %d", requests, most)
		}
	})
}

func TestABudgetIsEarned(t *testing.T) {
	b := newBudget(50, 10)
	took := 0
	for range 20 {
		if b.take() {
			took++
		}
	}
	for range 1000 {
		b.earn()
		if b.take() {
			took++
		}
	}
	if took != 60 {
		t.Errorf("took %d tokens, want 10 and 1000/20", took)
	}
	for range 10000 {
		b.earn()
	}
	for took = 0; b.take(); took++ {
	}
	if took != 10 {
		t.Errorf("%d tokens were kept, want 10", took)
	}
}

func TestLatenciesAreThoseOfTheLastRequests(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	l := new(latency)
	for _, scale := range []float64{1e3, 1e5, 1e7, 1e9, 3e10, 2e3} { // ns
		var all []time.Duration
		for range 500 {
			d := time.Duration(scale * (0.1 + r.ExpFloat64()))
			l.record(d)
			all = append(all, d)
		}
		last := slices.Sorted(slices.Values(all[len(all)-latencyWindow-4:])) // quantiles are up to 8 samples old
		p50, p95, _ := l.known(latencyWindow)
		for _, q := range []struct {
			got      time.Duration
			from, to int
		}{{p50, 54, 78}, {p95, 114, 131}} {
			if lo, hi := last[q.from]*85/100-512, last[q.to]*115/100+512; q.got < lo || q.got > hi {
				t.Errorf("at %v: got %v, want between %v and %v", time.Duration(scale), q.got, lo, hi)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { l.record(time.Millisecond) }); n != 0 {
		t.Errorf("record allocates %v times", n)
	}
}

func TestSlotsOfLatencies(t *testing.T) {
	for d := time.Duration(1); d < 2*time.Minute; d += d/7 + 1 {
		got := middleOf(slotOf(d))
		if diff := (got - d).Abs(); diff > d/8+1 && diff > latencyUnit {
			t.Errorf("%v is counted as %v", d, got)
		}
	}
	for _, d := range []time.Duration{-1, 0, 1 << 62} {
		slotOf(d) // is in range
		new(latency).record(d)
	}
}
