package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A world is a bucket, proxies in front of it, and a client.
type world struct {
	t       *testing.T
	net     network
	bucket  *mem.Store
	origin  *spy            // the bucket as the client sees it
	proxies map[string]*spy // the bucket as each proxy sees it
	group   *Group
	log     journal // of the client
}

// A journal is what was logged.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// inWorld runs test in a bubble of time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bucket := mem.New(t)
		test(t, &world{t: t, bucket: bucket, origin: &spy{Store: bucket}, proxies: make(map[string]*spy)})
	})
}

// proxy starts a proxy that is delay away.
func (w *world) proxy(addr string, delay time.Duration) *host {
	w.t.Helper()
	s := &spy{Store: w.bucket}
	w.proxies[addr] = s
	return w.net.serve(w.t, addr, delay, Handler(Server{Tickets: nominal, Store: serving(s)}))
}

// plain returns the settings of a group without TLS.
func plain(id int64, addrs ...string) GroupSettings {
	s := GroupSettings{ID: id, NoSSL: true}
	for _, addr := range addrs {
		s.Members = append(s.Members, Member{Address: addr})
	}
	return s
}

// client makes the client. It runs until the test ends.
func (w *world) client(groups ...GroupSettings) *Group {
	w.group = New(Config{
		Origin: w.origin,
		Groups: groups,
		Ticket: func() string { return storetest.Key(0).Volume.String() },
		Dial:   w.net.Dial,
		Log:    slog.New(slog.NewTextHandler(&w.log, nil)),
	})
	w.group.Probe(w.t.Context())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.group.Run(ctx); close(done) }()
	w.t.Cleanup(func() { cancel(); <-done })
	return w.group
}

// bucketTakes makes the bucket that slow for the client.
func (w *world) bucketTakes(d time.Duration) {
	w.origin.do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, d) })
}

// fill puts n blocks into the bucket.
func (w *world) fill(n int) {
	w.t.Helper()
	for i := range n {
		if err := w.bucket.Put(w.t.Context(), storetest.Key(i), block(i)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func block(i int) []byte { return storetest.Data(storetest.Key(i), 1000+i) }

// read gets block i and checks it.
func (w *world) read(i int) error {
	got, err := w.group.Get(w.t.Context(), storetest.Key(i), 0, -1)
	if err == nil && !bytes.Equal(got, block(i)) {
		err = fmt.Errorf("block %d: %d wrong bytes", i, len(got))
	}
	return err
}

// readAll reads n blocks and returns how long it took.
func (w *world) readAll(n int) time.Duration {
	w.t.Helper()
	start := time.Now()
	for i := range n {
		if err := w.read(i); err != nil {
			w.t.Fatal(err)
		}
	}
	return time.Since(start)
}

func (w *world) wantChosen(id int64) {
	w.t.Helper()
	if got := w.group.Status(); got.Chosen != id {
		w.t.Fatalf("group %d is chosen, want %d:\n%v", got.Chosen, id, got)
	}
}

// pause takes d, or until the client goes away.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) state(addr string) string { return w.member(addr).State }

// error returns why a proxy is not used.
func (w *world) error(addr string) string { return w.member(addr).Error }

func (w *world) member(addr string) MemberStatus {
	for _, g := range w.group.Status().Groups {
		for _, m := range g.Members {
			if m.Address == addr {
				return m
			}
		}
	}
	return MemberStatus{State: "unknown"}
}

func TestTheNearestGroupIsChosen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(30)
		w.proxy("far:1", 10*time.Millisecond)
		w.proxy("near:1", time.Millisecond)
		w.proxy("near:2", 2*time.Millisecond)
		w.proxy("middle:1", 5*time.Millisecond)
		g := w.client(plain(1, "far:1"), plain(2, "near:1", "near:2"), plain(3, "middle:1"))
		w.wantChosen(2)
		for i, want := range []time.Duration{20 * time.Millisecond, 2 * time.Millisecond, 10 * time.Millisecond} {
			if got := g.Status().Groups[i].RTT; got != want {
				t.Errorf("group %d is measured to be %v away, want %v", i+1, got, want)
			}
		}
		w.readAll(30)
		if n := w.origin.seen(); n > 0 {
			t.Errorf("%d reads went to the bucket and not to the proxies", n)
		}
		for i := range 30 {
			owner := w.group.view.Load().chosen.ring.Owners(storetest.Key(i).Hash(), 1)[0]
			if !w.proxies[owner].asked(storetest.Key(i)) {
				t.Errorf("block %d was not read through its owner %s", i, owner)
			}
		}
	})
}

// What a connection costs to make is paid once and says nothing about reads.
func TestMakingAConnectionDoesNotCount(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", time.Millisecond).slow = 300 * time.Millisecond
		w.proxy("b:1", 3*time.Millisecond)
		w.client(plain(1, "a:1"), plain(2, "b:1"))
		w.wantChosen(1)
		if got := w.group.Status().Groups[0].RTT; got != 2*time.Millisecond {
			t.Errorf("measured %v, want 2ms", got)
		}
	})
}

// A probe may have time for one answer only, the one that needs a connection.
func TestTheFirstAnswerIsAMeasurement(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.proxy("a:1", 150*time.Millisecond)
		h.slow = 300 * time.Millisecond
		w.client(plain(1, "a:1"))
		if got := w.group.Status().Groups[0].RTT; got != 300*time.Millisecond {
			t.Errorf("measured %v, want 300ms", got)
		}
	})
}

// A deadline of one request must not end the next on its connection.
func TestAConnectionIsGoodForLong(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		h := w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		for range 5 {
			w.readAll(1)
			time.Sleep(2 * bodyTimeout) // probes go on
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.dials != 1 {
			t.Errorf("%d connections were made, want 1", h.dials)
		}
	})
}

// The pauses before a member that passes probes is tried again grow.
func TestAMemberThatFailsWhenUsedIsTriedLessAndLess(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		none := func(store.Volume) (store.Store, error) { return nil, errors.New("not my volume") }
		w.net.serve(t, "a:1", 0, Handler(Server{Tickets: nominal, Store: none}))
		g := w.client(plain(1, "a:1"))
		for range 300 {
			w.readAll(1)
			time.Sleep(time.Second)
		}
		if got := g.Status().Groups[0].Members[0].Requests; got < 5 || got > 16 {
			t.Errorf("in 5 minutes it was tried %d times, want pauses of 2, 4, 8, 16 and then 30 seconds", got)
		}
	})
}

// What is known of a member, and its connections, outlive a change of the others.
func TestMembersThatStayAreNotProbedAfresh(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(30)
		w.proxy("a:1", time.Millisecond)
		w.proxy("a:2", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.group.Update([]GroupSettings{plain(1, "a:1", "a:2")}, 0)
		w.readAll(30) // at once: nothing has been probed since
		if n := w.origin.seen(); n > 0 {
			t.Errorf("%d reads went to the bucket, though a member stayed", n)
		}
	})
}

// Measurements that follow each other closely do not make up a lasting gain.
func TestManyMeasurementsInARoundAreOne(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", 10*time.Millisecond)
		b := w.proxy("b:1", 12*time.Millisecond)
		g := w.client(plain(1, "a:1"), plain(2, "b:1"))
		time.Sleep(5 * g.cfg.Timing.Round)
		b.is(2 * time.Millisecond)
		for range 10 {
			g.Probe(t.Context())
		}
		w.wantChosen(1)
	})
}

// sick are the ways in which a proxy may be of no use, and what is said of it.
var sick = map[string]struct {
	serve  http.HandlerFunc // nil: as a proxy does
	become func(h *host)
	tls    bool // the client's side
	says   string
}{
	"refuses":            {become: func(h *host) { h.become("refuses") }, says: "connection refused"},
	"packets vanish":     {become: func(h *host) { h.become("lost") }, says: "no answer to a probe within 1s"},
	"accepts, is silent": {become: func(h *host) { h.become("mute") }, says: "no answer to a probe within 1s"},
	"handshake hangs":    {become: func(h *host) { h.become("mute") }, tls: true, says: "no answer to a probe within 1s"},
	"no TLS":             {tls: true, says: "HTTP response to HTTPS client"},
	"slow to connect":    {become: func(h *host) { h.slow = time.Minute }, says: "no answer to a probe within 1s"},
	"too far":            {become: func(h *host) { h.is(2 * time.Second) }, says: "no answer to a probe within 1s"},
	"rubbish":            {serve: func(w http.ResponseWriter, _ *http.Request) { raw(w, "220 ready\r\n") }, says: "malformed HTTP"},
	"status 500":         {serve: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, says: "HTTP status 500"},
	"another server":     {serve: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "welcome") }, says: "not from a proxy"},
}

func TestSickGroupsCostAtMostTheProbe(t *testing.T) {
	for name, c := range sick {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fill(1)
				addrs := []string{"b:1"}
				for i := range 16 {
					addrs = append(addrs, fmt.Sprintf("a:%d", i))
				}
				for _, addr := range addrs {
					h := w.proxy(addr, time.Millisecond)
					if c.serve != nil {
						h = w.net.serve(t, addr, time.Millisecond, c.serve)
					}
					if c.become != nil {
						c.become(h)
					}
				}
				w.proxy("c:1", 5*time.Millisecond)
				groups := []GroupSettings{plain(1, addrs[1:]...), plain(2, "b:1"), plain(3, "c:1")}
				groups[0].NoSSL, groups[1].NoSSL = !c.tls, !c.tls
				start := time.Now()
				w.client(groups...)
				if took := time.Since(start); took > time.Second {
					t.Errorf("the first choice took %v, more than a probe's second", took)
				}
				w.wantChosen(3)
				if took := w.readAll(1); took > 100*time.Millisecond {
					t.Errorf("then a read took %v", took)
				}
				for _, addr := range addrs {
					if text := w.error(addr); !strings.Contains(text, c.says) {
						t.Errorf("of %s it is said %q, want %q", addr, text, c.says)
					}
					if text := w.log.String(); !strings.Contains(text, "proxy="+addr+" ") || !strings.Contains(text, c.says) {
						t.Errorf("the log does not name %s and %q:\n%s", addr, c.says, text)
					}
				}
			})
		})
	}
}

func TestGroupThatDiesCostsOneTimeoutInAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const blocks = 60
		w.fill(blocks)
		var hosts []*host
		var addrs []string
		for i := range 4 {
			addrs = append(addrs, fmt.Sprintf("a:%d", i))
			hosts = append(hosts, w.proxy(addrs[i], time.Millisecond))
		}
		g := w.client(plain(1, addrs...))
		w.wantChosen(1)
		w.readAll(blocks)
		for _, h := range hosts {
			h.become("lost")
		}
		start := time.Now()
		var wg sync.WaitGroup
		for i := range blocks {
			wg.Go(func() {
				if err := w.read(i); err != nil {
					t.Errorf("read %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		bound := g.cfg.Timing.Patience + g.cfg.Timing.Probe
		if took := time.Since(start); took > bound {
			t.Errorf("%d reads at once took %v when the group died, want at most %v", blocks, took, bound)
		}
		synctest.Wait() // for the last probe to be noted, at the same moment
		w.wantChosen(0)
		if took := w.readAll(blocks); took > 0 {
			t.Errorf("%d reads after that took %v, want no time", blocks, took)
		}
	})
}

func TestReadsOneByOneOfADeadGroupCostOneTimeoutInAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(40)
		a, b := w.proxy("a:1", time.Millisecond), w.proxy("a:2", time.Millisecond)
		g := w.client(plain(1, "a:1", "a:2"))
		a.become("lost")
		b.become("lost")
		bound := g.cfg.Timing.Patience + g.cfg.Timing.Probe
		if took := w.readAll(40); took > bound {
			t.Errorf("40 reads took %v, want at most %v", took, bound)
		}
	})
}

func TestAGroupThatFailsIsLeftForTheNextAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(20)
		near := w.proxy("near:1", time.Millisecond)
		w.proxy("far:1", 10*time.Millisecond)
		w.client(plain(1, "near:1"), plain(2, "far:1"))
		w.wantChosen(1)
		near.become("refuses")
		w.readAll(20)
		w.wantChosen(2)
		if n := w.origin.seen(); n > 0 {
			t.Errorf("%d reads went to the bucket, though a group was left", n)
		}
	})
}

func TestADeadMemberIsPassedOverForTheNextInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const blocks = 60
		w.fill(blocks)
		addrs := []string{"a:1", "a:2", "a:3"}
		hosts := make(map[string]*host)
		for _, addr := range addrs {
			hosts[addr] = w.proxy(addr, time.Millisecond)
		}
		g := w.client(plain(1, addrs...))
		ring := g.view.Load().chosen.ring
		hosts["a:2"].become("lost")
		bound := g.cfg.Timing.Patience + g.cfg.Timing.Probe + blocks*10*time.Millisecond
		if took := w.readAll(blocks); took > bound {
			t.Errorf("%d reads took %v, want at most %v", blocks, took, bound)
		}
		w.wantChosen(1)
		if n := w.origin.seen(); n > hedgeBurst {
			t.Errorf("%d reads went to the bucket, not only those that were hedged", n)
		}
		w.readAll(blocks)
		if n := w.origin.seen(); n > 0 {
			t.Errorf("%d reads went to the bucket after the member was known to be dead", n)
		}
		for i := range blocks {
			owners := ring.Owners(storetest.Key(i).Hash(), 2)
			if owners[0] == "a:2" && !w.proxies[owners[1]].asked(storetest.Key(i)) {
				t.Errorf("block %d was not read through %s, the next after a:2", i, owners[1])
			}
		}
		hosts["a:2"].become("")
		time.Sleep(5 * time.Second)
		w.proxies["a:2"].seen()
		w.readAll(blocks)
		if got := w.state("a:2"); got != "up" {
			t.Errorf("the member that is back is %s", got)
		}
		for i := range blocks {
			if ring.Owners(storetest.Key(i).Hash(), 1)[0] == "a:2" && !w.proxies["a:2"].asked(storetest.Key(i)) {
				t.Errorf("block %d is not read through a:2 again", i)
			}
		}
	})
}

func TestTheBucketIsUsedWhileAllGroupsAreGone(t *testing.T) {
	for name, fail := range map[string]string{"refuse": "refuses", "packets vanish": "lost"} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fill(10)
				a, b := w.proxy("a:1", time.Millisecond), w.proxy("b:1", 2*time.Millisecond)
				w.client(plain(1, "a:1"), plain(2, "b:1"))
				a.become(fail)
				b.become(fail)
				w.readAll(10)
				w.wantChosen(0)
				time.Sleep(5 * time.Minute)
				w.origin.seen()
				if took := w.readAll(10); took > 0 || w.origin.seen() != 10 {
					t.Errorf("reads from the bucket took %v", took)
				}
				a.become("")
				b.become("")
				time.Sleep(5 * time.Second)
				w.wantChosen(1)
				w.readAll(10)
				if n := w.origin.seen(); n > 0 {
					t.Errorf("%d reads went to the bucket after the groups were back", n)
				}
			})
		})
	}
}

func TestNoGroupsIsTheBucket(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(3)
		w.client()
		w.readAll(3)
		time.Sleep(time.Minute)
		w.readAll(3)
	})
}

func TestWithoutRunTheBucketIsUsed(t *testing.T) {
	w := &world{t: t, bucket: mem.New(t)}
	w.fill(3)
	w.group = New(Config{Origin: w.bucket, Groups: []GroupSettings{plain(1, "nobody.invalid:1")}, Ticket: func() string { return "" }})
	w.readAll(3)
}

func TestOnlyAClearAndLastingGainChangesTheGroup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		a, b := w.proxy("a:1", 10*time.Millisecond), w.proxy("b:1", 12*time.Millisecond)
		g := w.client(plain(1, "a:1"), plain(2, "b:1"))
		round := g.cfg.Timing.Round
		w.wantChosen(1)
		b.is(8 * time.Millisecond)
		time.Sleep(20 * round)
		w.wantChosen(1) // better, but not clearly

		b.is(2 * time.Millisecond)
		time.Sleep(3 * round / 2)
		w.wantChosen(1) // clearly better, but not for long
		b.is(10 * time.Millisecond)
		time.Sleep(10 * round)
		w.wantChosen(1)

		b.is(2 * time.Millisecond)
		time.Sleep(5 * round)
		w.wantChosen(2)
		if got := g.Status().Counts.Switches; got != 2 {
			t.Errorf("the group was changed %d times, want 2: to group 1 and to group 2", got)
		}
		a.is(150 * time.Microsecond)
		time.Sleep(20 * round)
		w.wantChosen(1)
		b.is(80 * time.Microsecond) // half of it, and yet not much less
		time.Sleep(20 * round)
		w.wantChosen(1)
	})
}

// A line that is full for a while makes round trips long, but not the way.
func TestABusyLineDoesNotChangeTheGroup(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.proxy("a:1", time.Millisecond)
		w.proxy("b:1", 5*time.Millisecond)
		g := w.client(plain(1, "a:1"), plain(2, "b:1"))
		for range 20 {
			a.is(50 * time.Millisecond)
			time.Sleep(3 * g.cfg.Timing.Round / 2)
			w.wantChosen(1)
			a.is(time.Millisecond)
			time.Sleep(3 * g.cfg.Timing.Round / 2)
			w.wantChosen(1)
		}
	})
}

func TestMembersChangeUnderReads(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const blocks = 100
		w.fill(blocks)
		for i := range 6 {
			w.proxy(fmt.Sprintf("a:%d", i), time.Millisecond)
		}
		w.proxy("b:1", 500*time.Microsecond)
		w.proxy("dead:1", 0).become("lost")
		g := w.client(plain(1, "a:1", "a:2", "a:3"))

		stop := make(chan struct{})
		var readers sync.WaitGroup
		var slowest time.Duration
		var mu sync.Mutex
		for r := range 8 {
			readers.Go(func() {
				for i := r; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					start := time.Now()
					if err := w.read(i % blocks); err != nil {
						t.Errorf("reader %d: %v", r, err)
						return
					}
					took := time.Since(start)
					time.Sleep(10 * time.Millisecond)
					mu.Lock()
					slowest = max(slowest, took)
					mu.Unlock()
				}
			})
		}
		for _, step := range []struct {
			why    string
			groups []GroupSettings
			busy   []string // that must be used
			idle   []string // that must not
		}{
			{"add one", []GroupSettings{plain(1, "a:1", "a:2", "a:3", "a:4")}, []string{"a:1", "a:2", "a:3", "a:4"}, nil},
			{"remove one", []GroupSettings{plain(1, "a:2", "a:3", "a:4")}, []string{"a:2", "a:3", "a:4"}, []string{"a:1"}},
			{"replace one", []GroupSettings{plain(1, "a:2", "a:5", "a:4")}, []string{"a:2", "a:5", "a:4"}, []string{"a:1", "a:3"}},
			{"replace all", []GroupSettings{plain(1, "a:0", "a:1")}, []string{"a:0", "a:1"}, []string{"a:2", "a:3", "a:4", "a:5"}},
			{"add a dead one", []GroupSettings{plain(1, "a:0", "a:1", "dead:1")}, []string{"a:0", "a:1"}, []string{"dead:1"}},
			{"add a nearer group", []GroupSettings{plain(1, "a:0", "a:1"), plain(2, "b:1")}, []string{"b:1"}, []string{"a:0", "a:1"}},
			{"remove the nearer group", []GroupSettings{plain(1, "a:0", "a:1")}, []string{"a:0", "a:1"}, []string{"b:1"}},
			{"remove all", nil, nil, []string{"a:0", "a:1", "b:1"}},
			{"and back", []GroupSettings{plain(1, "a:1", "a:2", "a:3")}, []string{"a:1", "a:2", "a:3"}, nil},
		} {
			g.Update(step.groups, 0)
			time.Sleep(1600 * time.Millisecond) // until a round begins, and a probe's time: a dead member holds it up
			for _, s := range w.proxies {
				s.seen()
			}
			time.Sleep(100 * time.Millisecond)
			for _, addr := range step.busy {
				if w.proxies[addr].seen() == 0 {
					t.Errorf("%s: %s is not used:\n%v", step.why, addr, g.Status())
				}
			}
			for _, addr := range step.idle {
				if n := w.proxies[addr].seen(); n > 0 {
					t.Errorf("%s: %s was used %d times:\n%v", step.why, addr, n, g.Status())
				}
			}
		}
		close(stop)
		readers.Wait()
		if slowest > 50*time.Millisecond {
			t.Errorf("a read took %v while members changed", slowest)
		}
	})
}

// The settings are fetched again and again. If that were a change, small
// differences would change the group.
func TestTheSameSettingsChangeNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", 10*time.Millisecond)
		b := w.proxy("b:1", 11*time.Millisecond)
		g := w.client(plain(1, "a:1"), plain(2, "b:1"))
		b.is(5 * time.Millisecond)
		for range 10 {
			g.Update([]GroupSettings{plain(1, "a:1"), plain(2, "b:1")}, 0)
			time.Sleep(time.Second)
		}
		w.wantChosen(1)
	})
}

// One bad answer takes a member out of use for a while, but what others are
// waiting for goes on.
func TestARequestThatFailsDoesNotEndOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(3)
		w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.bucketTakes(30 * time.Second)
		w.proxies["a:1"].do(func(ctx context.Context, _ string, key store.Key) error {
			if key == storetest.Key(1) {
				panic(http.ErrAbortHandler) // the connection ends
			}
			return pause(ctx, 10*time.Second)
		})
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := w.read(0); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(5 * time.Second)
		wg.Go(func() {
			if err := w.read(2); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		wg.Go(func() {
			if err := w.read(1); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		if got := w.state("a:1"); got != "down" {
			t.Errorf("the member is %s", got)
		}
		wg.Wait()
		if took := time.Since(start); took < 36*time.Second || took > 37*time.Second {
			t.Errorf("all took %v, want 6s and then the bucket's 30s for the one that failed", took)
		}
		if n := w.group.Status().Counts; n.Proxied != 2 || n.Fallbacks != 1 {
			t.Errorf("counted %+v, want just block 1 read from the bucket", n)
		}
	})
}

// A member that breaks one connection and then says nothing on the others.
func TestOthersAreNotLeftWaitingWhenAMemberIsDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(10)
		h := w.proxy("a:1", time.Millisecond)
		g := w.client(plain(1, "a:1"))
		w.proxies["a:1"].do(func(ctx context.Context, _ string, key store.Key) error {
			if key == storetest.Key(0) {
				h.become("lost")
				panic(http.ErrAbortHandler)
			}
			return pause(ctx, 100*time.Millisecond)
		})
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := w.read(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > 2*g.cfg.Timing.Probe {
			t.Errorf("it took %v", took)
		}
	})
}

func TestRequestsToARemovedMemberGoOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", 0)
		w.proxy("a:2", 0)
		g := w.client(plain(1, "a:1"))
		w.bucketTakes(time.Minute)
		w.proxies["a:1"].do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, 20*time.Second) })
		done := make(chan error)
		go func() { done <- w.read(0) }()
		time.Sleep(time.Second)
		g.Update([]GroupSettings{plain(1, "a:2")}, 0)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := g.Status().Counts; n.Proxied != 1 || n.HedgesWon != 0 || w.proxies["a:2"].seen() != 0 {
			t.Errorf("the read was made again: %+v", n)
		}
	})
}

func TestMaxProxiedIsForTheFirstBlocks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(9) // three blocks of three files
		w.proxy("a:1", 0)
		g := w.client(plain(1, "a:1"))
		for limit, want := range []int{0: 9, 1: 3, 2: 6, 3: 9} {
			g.Update([]GroupSettings{plain(1, "a:1")}, int64(limit))
			w.readAll(9)
			if got, direct := w.proxies["a:1"].seen(), w.origin.seen(); got != want || direct != 9-want {
				t.Errorf("with a limit of %d, %d reads went through the proxy and %d to the bucket, want %d and %d", limit, got, direct, want, 9-want)
			}
		}
	})
}

func TestAMissingBlockIsLookedForInTheBucket(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", 0)
		w.client(plain(1, "a:1"))
		w.proxies["a:1"].do(func(context.Context, string, store.Key) error {
			return fmt.Errorf("cache: %w", store.ErrNotExist)
		})
		w.readAll(1)
		if got := w.group.Status().Counts; got.Checks != 1 || got.Found != 1 {
			t.Errorf("counted %+v, want one check that found the block", got)
		}
		_, err := w.group.Get(t.Context(), storetest.Key(7), 0, -1)
		if !errors.Is(err, store.ErrNotExist) {
			t.Errorf("a block that is in no place: %v", err)
		}
		if got := w.state("a:1"); got != "up" {
			t.Errorf("the proxy is %s after answering that a block does not exist", got)
		}
	})
}

// A proxy whose bucket fails still has its cache: it stays in use.
func TestAProxyThatCannotReachTheBucketIsNotPassedOver(t *testing.T) {
	for name, failure := range map[string]error{"fails": errors.New("the bucket does not answer"), "corrupt": store.ErrCorrupt} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.fill(10)
				w.proxy("a:1", 0)
				w.proxy("a:2", 0)
				w.client(plain(1, "a:1", "a:2"))
				for _, s := range w.proxies {
					s.do(func(context.Context, string, store.Key) error { return failure })
				}
				w.readAll(10)
				if n := w.origin.seen(); n != 10 {
					t.Errorf("%d reads went to the bucket, want 10", n)
				}
				if n := w.proxies["a:1"].seen() + w.proxies["a:2"].seen(); n != 10 {
					t.Errorf("%d reads went to proxies, want 10: one each", n)
				}
				w.wantChosen(1)
			})
		})
	}
}

func TestAnErrorNamesBothWays(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", 0)
		w.client(plain(1, "a:1"))
		lost := errors.New("the bucket is on fire")
		w.proxies["a:1"].do(func(context.Context, string, store.Key) error { return errors.New("the disk is full") })
		w.origin.do(func(context.Context, string, store.Key) error { return lost })
		err := w.read(0)
		if !errors.Is(err, lost) || !strings.Contains(err.Error(), "the disk is full") {
			t.Errorf("got error %v", err)
		}
	})
}

// Slow is not dead: a proxy may wait for a bucket that is far away.
func TestASlowAnswerOfALiveMemberIsWaitedFor(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.bucketTakes(39800 * time.Millisecond)
		w.proxies["a:1"].do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, 40*time.Second) })
		w.readAll(1)
		if n := w.origin.seen(); n != 1 || w.state("a:1") != "up" || w.group.Status().Counts.Proxied != 1 {
			t.Errorf("it was sent to the bucket %d times, want once, as well; and the member is %s", n, w.state("a:1"))
		}
	})
}

func TestAMemberThatDiesInASlowRequestIsFoundOut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		h := w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.proxies["a:1"].do(func(ctx context.Context, _ string, _ store.Key) error {
			err := pause(ctx, 10*time.Second)
			h.become("lost")
			return err
		})
		if took := w.readAll(1); took > 13*time.Second {
			t.Errorf("the read took %v, want it to end soon after 10s", took)
		}
	})
}

func TestTheCallersCancellationIsNoFault(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(1)
		w.proxy("a:1", time.Millisecond)
		w.client(plain(1, "a:1"))
		w.bucketTakes(time.Minute)
		w.proxies["a:1"].do(func(ctx context.Context, _ string, _ store.Key) error { <-ctx.Done(); return ctx.Err() })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := w.group.Get(ctx, storetest.Key(0), 0, -1)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v", err)
		}
		if n := w.origin.seen(); n != 1 || w.state("a:1") != "up" {
			t.Errorf("%d reads of the bucket, want the hedge, and the member is %s", n, w.state("a:1"))
		}
	})
}

func TestAPutGoesOnWithTheNextMember(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		hosts := map[string]*host{"a:1": w.proxy("a:1", 0), "a:2": w.proxy("a:2", 0)}
		w.client(plain(1, "a:1", "a:2"))
		key, data := storetest.Key(1), storetest.Data(storetest.Key(1), 3<<20)
		owners := w.group.view.Load().chosen.ring.Owners(key.Hash(), -1)
		w.proxies[owners[0]].do(func(context.Context, string, store.Key) error {
			hosts[owners[0]].become("refuses") // the answer is lost
			return errors.New("dying")
		})
		if err := w.group.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		if !w.proxies[owners[1]].asked(key) || w.origin.seen() > 0 {
			t.Error("the next member in order did not get the block")
		}
		hosts[owners[1]].become("refuses")
		key = storetest.Key(2)
		if err := w.group.Put(t.Context(), key, storetest.Data(key, 3<<20)); err != nil {
			t.Fatal(err)
		}
		if !w.origin.asked(key) {
			t.Error("the bucket did not get the block that no proxy took")
		}
		for i := 1; i <= 2; i++ {
			got, err := w.bucket.Get(t.Context(), storetest.Key(i), 0, -1)
			if err != nil || !bytes.Equal(got, storetest.Data(storetest.Key(i), 3<<20)) {
				t.Errorf("block %d in the bucket is %d bytes, error %v", i, len(got), err)
			}
		}
	})
}

// A member that has no room, while the bucket fails, is not the only one.
func TestAPutThatOneMemberCannotDoIsDoneByAnother(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", 0)
		w.proxy("a:2", 0)
		w.client(plain(1, "a:1", "a:2"))
		away := func(context.Context, string, store.Key) error { return errors.New("the bucket does not answer") }
		w.origin.do(away)
		w.proxies["a:1"].do(away)
		for i := range 10 {
			if err := w.group.Put(t.Context(), storetest.Key(i), block(i)); err != nil {
				t.Error(err)
			}
		}
		if state := w.state("a:1"); state != "up" {
			t.Errorf("the member with no room is %s", state)
		}
		w.proxies["a:2"].do(away)
		w.proxies["a:1"].seen()
		w.proxies["a:2"].seen()
		if err := w.group.Put(t.Context(), storetest.Key(11), block(11)); err == nil {
			t.Error("a block is nowhere, and acknowledged")
		}
		if n := w.proxies["a:1"].seen() + w.proxies["a:2"].seen(); n != 2 {
			t.Errorf("%d members were asked, want both, once", n)
		}
	})
}

func TestDeleteRemovesFromTheBucketAlsoWithoutProxies(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(4)
		h := w.proxy("a:1", 0)
		w.client(plain(1, "a:1"))
		for i := range 4 {
			if i == 2 {
				h.become("refuses")
			}
			if err := w.group.Delete(t.Context(), storetest.Key(i)); err != nil {
				t.Error(err)
			}
		}
		if left := w.bucket.Keys(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// A proxy that has not heard of the volume, or of admin's new key, is of no use
// now, but others are.
func TestAMemberThatRefusesTheTicketIsPassedOver(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fill(30)
		w.proxy("a:1", 0)
		none := func(store.Volume) (store.Store, error) { return nil, errors.New("not my volume") }
		w.net.serve(t, "a:2", 0, Handler(Server{Tickets: nominal, Store: none}))
		g := w.client(plain(1, "a:1", "a:2"))
		w.readAll(30)
		if n := w.origin.seen(); n != 0 {
			t.Errorf("%d reads went to the bucket", n)
		}
		for _, m := range g.Status().Groups[0].Members {
			if m.Address == "a:2" && (m.State != "down" || m.Requests != 1 || !strings.Contains(m.Error, "not my volume")) {
				t.Errorf("the member that does not serve the volume: %+v", m)
			}
		}
	})
}

func TestStatusIsForPeople(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("near:443", 500*time.Microsecond)
		w.proxy("far:443", 20*time.Millisecond)
		w.proxy("gone:443", 0).become("refuses")
		groups := []GroupSettings{plain(1, "near:443", "gone:443"), plain(2, "far:443"), plain(3, "gone:443")}
		groups[0].Name = "onprem/dc1"
		g := w.client(groups...)
		got := g.Status().String()
		for _, want := range []string{"through proxy group 1 since", "* group 1 (onprem/dc1): round trip 1ms", "  group 2: round trip 40ms",
			"  group 3: not reachable", "near:443", "connection refused"} {
			if !strings.Contains(got, want) {
				t.Errorf("the status lacks %q:\n%s", want, got)
			}
		}
		g.Update(nil, 0)
		if got := g.Status().String(); !strings.Contains(got, "directly to the bucket since") {
			t.Errorf("without groups:\n%s", got)
		}
	})
}

// To lose the group in use to the settings is a change as any other.
func TestADeletedGroupIsLeftAsOneThatFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.proxy("a:1", time.Millisecond)
		g := w.client(plain(1, "a:1"))
		time.Sleep(time.Minute)
		was := g.Status()
		g.Update(nil, 0)
		is := g.Status()
		if is.Chosen != 0 || time.Since(is.Since) > 0 || is.Counts.Switches != was.Counts.Switches+1 {
			t.Errorf("%+v", is)
		}
	})
}

// A group without members, or with former ones only, is never chosen, and shown as what it is.
func TestAnEmptiedGroupIsShownAsWhatItIs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, addr := range []string{"a:1", "b:1"} {
			w.proxy(addr, time.Millisecond)
		}
		emptied := plain(1)
		emptied.Former = []Member{{Address: "b:1"}}
		g := w.client(emptied, plain(2, "a:1"), plain(3))
		time.Sleep(time.Minute)
		w.wantChosen(2)
		text := g.Status().String()
		for _, want := range []string{"group 1: no members\n", "b:1                              former\n", "group 3: no members\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("it does not say %q:\n%s", want, text)
			}
		}
	})
}

// Tickets end when admin is away for long: everything goes on by way of the
// bucket, and by way of the proxies when there are tickets again.
func TestTicketsThatEndLeaveTheBucket(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.seal(20)
		var over atomic.Bool
		tickets := func(text string) (ticket.Ticket, error) {
			if over.Load() {
				return ticket.Ticket{}, ticket.ErrExpired
			}
			return nominal(text)
		}
		for _, addr := range []string{"a:1", "a:2"} {
			w.net.serve(t, addr, time.Millisecond, Handler(Server{Tickets: tickets, Store: serving(w.bucket)}))
		}
		g := w.client(plain(1, "a:1", "a:2"))
		over.Store(true)
		for range 300 {
			w.all(20, ways["get"])
			time.Sleep(time.Second)
		}
		if text := g.Status().String(); !strings.Contains(text, "ticket has expired") {
			t.Errorf("it does not say why:\n%s", text)
		}
		over.Store(false)
		start, was := time.Now(), g.Status().Counts.Proxied
		for g.Status().Counts.Proxied < was+10 && time.Since(start) < time.Minute {
			w.all(20, ways["get"])
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > maxPause+time.Second {
			t.Errorf("the proxies were used again after %v", took)
		}
	})
}
