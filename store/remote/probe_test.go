package remote

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store/mem"
)

// Clients that all started at the same moment do not all measure at the same
// moment, neither then nor after a change of settings that all hear of.
func TestRoundsAreSpreadOverTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, parts = 1000, 10
		groups := []GroupSettings{plain(1, "a:1")}
		answer := &ready{header: http.Header{headerProxy: {"1"}}}
		var all []*Group
		for range clients {
			g := New(Config{Origin: mem.New(nil), Groups: groups, transport: func(Member) http.RoundTripper { return answer }})
			g.Probe(t.Context())
			all = append(all, g)
		}
		spread := func(what string, interval time.Duration) {
			t.Helper()
			var count [parts + 1]int
			for _, g := range all {
				count[max(0, min(g.untilRound()*parts/interval, parts))]++
			}
			for i, n := range count[:parts] {
				if n < clients/parts/2 || n > clients/parts*2 {
					t.Errorf("%s: of %d clients, %d begin a round in part %d of %d of %v: %v", what, clients, n, i, parts, interval, count)
				}
			}
		}
		round := all[0].cfg.Timing.Round
		spread("at the start", round)
		for range 3 {
			time.Sleep(round)
			for _, g := range all {
				g.Probe(t.Context())
			}
		}
		for _, g := range all {
			if wait := g.untilRound(); wait < round*9/10 || wait > round {
				t.Fatalf("the next round begins in %v, want about %v", wait, round)
			}
			g.Update([]GroupSettings{plain(1, "a:1", "a:2")}, 0)
		}
		spread("after a change", round/20)
	})
}

// Of big groups, few members are measured in a round, by each client others.
func TestARoundMeasuresAFewMembers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		probes := make(map[string]int)
		var settings []GroupSettings
		for id := range 3 {
			var addrs []string
			for i := range 16 {
				addr := fmt.Sprintf("%c:%d", 'a'+id, i)
				addrs = append(addrs, addr)
				h := Handler(Server{Tickets: nominal, Store: serving(w.bucket)})
				w.net.serve(t, addr, time.Millisecond*time.Duration(id+1), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path == healthPath {
						w.net.mu.Lock()
						probes[addr]++
						w.net.mu.Unlock()
					}
					h.ServeHTTP(rw, r)
				}))
			}
			settings = append(settings, plain(int64(id+1), addrs...))
		}
		g := w.client(settings...)
		w.wantChosen(1)
		w.net.mu.Lock()
		if len(probes) != 48 {
			t.Errorf("%d of 48 members were measured at first, want all", len(probes))
		}
		w.net.mu.Unlock()
		time.Sleep(g.cfg.Timing.Round + time.Second)
		w.net.mu.Lock()
		clear(probes)
		w.net.mu.Unlock()
		const rounds = 20
		time.Sleep(rounds * g.cfg.Timing.Round)
		sum := 0
		w.net.mu.Lock()
		for _, n := range probes {
			sum += n
		}
		w.net.mu.Unlock()
		perRound := samples * (perRoundChosen + 2*perRoundOther + 3)
		if sum < rounds*perRound*9/10 || sum > rounds*perRound*12/10 {
			t.Errorf("%d requests in %d rounds, want about %d in each", sum, rounds, perRound)
		}
		lots := make(map[string]bool)
		for range 20 {
			other := New(Config{Origin: w.bucket, Groups: settings[:1], Dial: w.net.Dial})
			other.Probe(t.Context())
			other.mu.Lock()
			for _, m := range other.groups[0].draw(nil)[:perRoundChosen] {
				lots[m.settings.Address] = true
			}
			other.mu.Unlock()
			other.closeIdle()
		}
		if len(lots) < 12 {
			t.Errorf("20 clients measure %d of 16 members", len(lots))
		}
	})
}

// Groups that are equally far, as far as can be measured, are no choice: all
// clients at one place use the same, and share its cache.
func TestNearTiesAreBrokenAlike(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i, delay := range []time.Duration{140 * time.Microsecond, 60 * time.Microsecond, 100 * time.Microsecond, 20 * time.Millisecond, 22 * time.Millisecond} {
			w.proxy(fmt.Sprintf("h:%d", i), delay)
		}
		for _, c := range []struct {
			groups []GroupSettings
			want   int64
		}{
			{[]GroupSettings{plain(7, "h:0"), plain(3, "h:1"), plain(5, "h:2")}, 3},
			{[]GroupSettings{plain(2, "h:0"), plain(3, "h:1"), plain(5, "h:2")}, 2},
			{[]GroupSettings{plain(5, "h:1"), plain(3, "h:2"), plain(4, "h:0")}, 3},
			{[]GroupSettings{plain(2, "h:3"), plain(1, "h:4")}, 1}, // 40 and 44 ms
			{[]GroupSettings{plain(2, "h:1"), plain(1, "h:3")}, 2},
		} {
			g := New(Config{Origin: w.bucket, Groups: c.groups, Dial: w.net.Dial})
			g.Probe(t.Context())
			if got := g.Status().Chosen; got != c.want {
				t.Errorf("group %d is chosen, want %d:\n%v", got, c.want, g.Status())
			}
			g.closeIdle()
		}
	})
}

// An idle member is not probed because others are busy, and one that answers is
// not because some answers take long.
func TestHealthyMembersAreNotDoubted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.seal(100)
		w.proxy("a:1", time.Millisecond)
		w.proxy("b:1", 10*time.Millisecond)
		var probes atomic.Int64
		h := Handler(Server{Tickets: nominal, Store: serving(w.proxies["a:1"])})
		w.net.serve(t, "a:1", time.Millisecond, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == healthPath {
				probes.Add(1)
			}
			h.ServeHTTP(rw, r)
		}))
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.bucketTakes(100 * time.Millisecond)
		time.Sleep(15 * time.Second)
		probes.Store(0)
		for i := range 600 { // a minute
			if i%10 == 0 {
				w.takes("a:1", 90*time.Millisecond)
			} else {
				w.takes("a:1", time.Millisecond)
			}
			w.all(1, ways["get"])
			time.Sleep(95 * time.Millisecond)
		}
		if most, n := int64(8*samples), probes.Load(); n > most {
			t.Errorf("in a minute there were %d probes, want at most %d", n, most)
		}
	})
}

func TestStatusTellsOfLatencies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.seal(100)
		w.proxy("a:1", 2*time.Millisecond)
		w.proxy("a:2", 2*time.Millisecond)
		former := plain(1, "a:1", "a:2")
		former.Former = []Member{{Address: "a:3"}}
		g := w.client(former)
		for _, way := range ways {
			w.all(100, way)
		}
		s := g.Status()
		if got := s.Groups[0].Former; !slices.Equal(got, []string{"a:3"}) || len(s.Groups[0].Members) != 2 {
			t.Errorf("the former members are %v", got)
		}
		var share float64
		for _, m := range s.Groups[0].Members {
			share += m.Share
			for _, l := range []Latency{m.Latency.Small, m.Latency.Large, m.Latency.Put} {
				if l.Samples < 20 || l.P50 < 3*time.Millisecond || l.P50 > 10*time.Millisecond || l.P95 < l.P50 {
					t.Errorf("%s has a latency %+v", m.Address, l)
				}
			}
		}
		if share < 0.99 || share > 1.01 {
			t.Errorf("the shares are %v in all", share)
		}
		for _, want := range []string{"of requests, small reads ", ", large reads ", ", writes ", "former"} {
			if !strings.Contains(s.String(), want) {
				t.Errorf("the status lacks %q:\n%v", want, s)
			}
		}
		text, err := json.Marshal(s)
		var back Status
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if err != nil || back.String() != s.String() {
			t.Errorf("as JSON, error %v, it is\n%v", err, back)
		}
		if size := len(text) / 3; size > 700 {
			t.Errorf("a member takes %d bytes of JSON", size)
		}
	})
}
