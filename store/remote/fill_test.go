package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/cache"
	"flexfs/hashring"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
	"flexfs/store/writeback"
)

// A filled is a proxy's way to its bucket, by way of its peers.
type filled struct {
	t      *testing.T
	s      store.Store
	bucket *spy
	order  []*far // the peers, in the order of what they are for block 0
}

// inFilled runs test in a bubble of time with n peers. The bucket has block 0.
func inFilled(t *testing.T, n int, test func(t *testing.T, p *Peers, f *filled)) {
	t.Helper()
	inGroup(t, n, func(t *testing.T, w *world, p *Peers, order []*far) {
		w.fill(1)
		f := &filled{t: t, bucket: &spy{Store: w.bucket}, order: order}
		f.s = p.Fill(f.bucket)
		p.cfg.Verify = func(key store.Key, data []byte) (uint32, error) {
			if key != storetest.Key(0) || !bytes.Equal(data, block(0)) {
				return 0, errors.New("not the block")
			}
			return crc32.Checksum(data, castagnoli), nil
		}
		test(t, p, f)
	})
}

// want reads block 0 and checks how often peers and the bucket were asked, as in
// "1 0 bucket", and how long it took.
func (f *filled) want(ctx context.Context, want string, within time.Duration) {
	f.t.Helper()
	start := time.Now()
	data, err := f.s.Get(ctx, storetest.Key(0), 0, -1)
	if err != nil || !bytes.Equal(data, block(0)) {
		f.t.Errorf("got %d bytes: %v", len(data), err)
	}
	if took := time.Since(start); took > within {
		f.t.Errorf("it took %v, want %v", took, within)
	}
	f.wantAsked(want)
}

func (f *filled) wantAsked(want string) {
	f.t.Helper()
	var got []string
	for _, far := range f.order {
		got = append(got, fmt.Sprint(far.held.seen()))
	}
	if f.bucket.seen() > 0 {
		got = append(got, "bucket")
	}
	if got := strings.Join(got, " "); got != want {
		f.t.Errorf("asked: %s, want %s", got, want)
	}
}

const quick = 20 * time.Millisecond

func TestTwoPeersAreAskedBeforeTheBucket(t *testing.T) {
	inFilled(t, 4, func(t *testing.T, p *Peers, f *filled) {
		f.want(asClient(t), "1 1 0 0 bucket", quick)
		f.order[2].holds(t, 0)
		f.want(asClient(t), "1 1 0 0 bucket", quick)
		f.order[1].holds(t, 0)
		f.want(asClient(t), "1 1 0 0", quick)
		f.order[0].holds(t, 0)
		f.want(asClient(t), "1 0 0 0", quick)
		if s := p.Stats(); s.Asked != 4 || s.Filled != 2 || s.FilledBytes != 2000 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestWhatIsNotAskedOfPeers(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		f.order[0].holds(t, 0)
		key := storetest.Key(0)
		f.want(t.Context(), "0 0 bucket", 0)                         // without a ticket
		f.want(store.WithVerify(asClient(t)), "0 0 bucket", 0)       // after damage
		if _, err := f.s.Get(asClient(t), key, 10, 20); err != nil { // a part
			t.Error(err)
		}
		f.wantAsked("0 0 bucket")
		if _, err := f.s.Get(asClient(t), key, 0, 0); err != nil { // whether it is there
			t.Error(err)
		}
		f.wantAsked("0 0 bucket")
		if _, _, err := store.GetFrames(asClient(t), f.s, key, 0, 10); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		f.wantAsked("0 0")
		// A peer asks so: nobody is asked in turn.
		if _, err := f.s.Get(store.WithLocal(asClient(t)), key, 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Error(err)
		}
		if _, _, err := store.GetFrames(store.WithLocal(asClient(t)), f.s, key, 0, 10); !errors.Is(err, store.ErrNotExist) {
			t.Error(err)
		}
		f.wantAsked("0 0")
	})
}

func TestPeersAreAskedForAWhileOnly(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		s := p.view.Load().settings
		time.Sleep(time.Hour - time.Second)
		f.want(asClient(t), "1 1 bucket", quick)
		time.Sleep(time.Second)
		f.want(asClient(t), "0 0 bucket", quick)
		s.Name = "other"
		p.Update(s)
		f.want(asClient(t), "0 0 bucket", quick)
		s.Members = s.Members[:len(s.Members)-1]
		s.Former = p.view.Load().settings.Members[len(s.Members):]
		p.Update(s) // admin does not say when: now
		f.want(asClient(t), "1 1 bucket", quick)
		time.Sleep(time.Hour)
		f.want(asClient(t), "0 0 bucket", quick)
	})
}

func TestAdminSaysWhenMembersChanged(t *testing.T) {
	for name, test := range map[string]struct {
		ago  time.Duration
		open bool
	}{
		"just now":                 {0, true},
		"not long ago":             {50 * time.Minute, true},
		"long ago":                 {61 * time.Minute, false},
		"by a clock that is ahead": {-24 * time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			inFilled(t, 1, func(t *testing.T, p *Peers, f *filled) {
				s := p.view.Load().settings
				time.Sleep(2 * time.Hour)
				s.ChangedAt = time.Now().Add(-test.ago)
				p.Update(s)
				if p.open() != test.open {
					t.Errorf("peers are asked: %v", p.open())
				}
				time.Sleep(time.Hour + time.Second)
				p.Update(s) // again, with the same ChangedAt
				if p.open() {
					t.Error("peers are asked an hour later")
				}
			})
		})
	}
}

// Questions that never help end, until members change or one helps after all.
func TestPeersAreAskedAsLongAsThatPays(t *testing.T) {
	inFilled(t, 1, func(t *testing.T, p *Peers, f *filled) {
		for range maxFruitless - 1 {
			f.want(asClient(t), "1 bucket", quick)
		}
		f.order[0].holds(t, 0)
		f.want(asClient(t), "1", quick)
		f.order[0].held.Store.Delete(t.Context(), storetest.Key(0))
		for range maxFruitless {
			f.want(asClient(t), "1 bucket", quick)
		}
		f.want(asClient(t), "0 bucket", quick)
		s := p.view.Load().settings
		s.ChangedAt = time.Now()
		p.Update(s)
		f.want(asClient(t), "1 bucket", quick)
	})
}

// A peer may have what the bucket does not have yet, or cannot give now.
func TestPeersAreAskedWhenTheBucketFails(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		time.Sleep(2 * time.Hour)
		f.order[1].holds(t, 0)
		f.bucket.do(func(context.Context, string, store.Key) error { return errors.New("no bucket") })
		f.want(asClient(t), "1 1 bucket", quick)
		f.bucket.do(nil)
		if err := f.bucket.Store.Delete(t.Context(), storetest.Key(0)); err != nil {
			t.Fatal(err)
		}
		f.want(asClient(t), "1 1 bucket", quick)
		f.order[1].held.Store.Delete(t.Context(), storetest.Key(0))
		if _, err := f.s.Get(asClient(t), storetest.Key(0), 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("a block that is nowhere: %v", err)
		}
	})
}

func TestAPeerThatIsDownIsPassedOver(t *testing.T) {
	for state, once := range map[string]time.Duration{"refuses": quick, "lost": 1340 * time.Millisecond} {
		t.Run(state, func(t *testing.T) {
			inFilled(t, 4, func(t *testing.T, p *Peers, f *filled) {
				f.order[0].become(state)
				f.order[2].holds(t, 0)
				f.want(asClient(t), "0 1 0 0 bucket", once)
				f.want(asClient(t), "0 1 1 0", quick)
			})
		})
	}
}

// The second peer does not wait for the first to be found dead.
func TestASlowPeerIsHedged(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		f.order[0].become("lost")
		f.order[1].holds(t, 0)
		f.want(asClient(t), "0 1", 220*time.Millisecond)
	})
}

func TestAPeerThatIsTooSlowIsNotAskedForAWhile(t *testing.T) {
	inFilled(t, 1, func(t *testing.T, p *Peers, f *filled) {
		f.order[0].holds(t, 0)
		f.order[0].held.do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, 5*time.Second) })
		f.want(asClient(t), "1 bucket", 2*time.Second)
		f.want(asClient(t), "0 bucket", 0)
		if peer, _, err := copied(t, p, 0); err != nil { // it is in use for all else
			t.Errorf("copied to %q: %v", peer, err)
		}
		f.order[0].held.do(nil)
		time.Sleep(10 * time.Second)
		f.want(asClient(t), "1", quick)
		if s := p.Stats(); s.Late != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestAPeersRubbishIsNotTheBlock(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		if err := f.order[0].held.Store.Put(t.Context(), storetest.Key(0), []byte("rubbish")); err != nil {
			t.Fatal(err)
		}
		f.want(asClient(t), "1 1 bucket", quick)
		f.want(asClient(t), "0 1 bucket", quick)
		if s := p.Stats(); s.Rejected != 1 || s.Filled != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// A client that goes away ends the questions, and the bucket is not blamed.
func TestAFillEndsWithItsRequest(t *testing.T) {
	inFilled(t, 2, func(t *testing.T, p *Peers, f *filled) {
		for _, far := range f.order {
			far.held.do(func(ctx context.Context, _ string, _ store.Key) error { return pause(ctx, time.Minute) })
		}
		ctx, cancel := context.WithTimeout(asClient(t), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := f.s.Get(ctx, storetest.Key(0), 0, -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get = %v", err)
		}
		if took := time.Since(start); took > 50*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// likelyFor returns whom a proxy asks for key in the group s, everybody being up.
func likelyFor(p *Peers, key store.Key) []string {
	var names []string
	first, second := p.likely(key)
	for _, m := range []*peer{first, second} {
		if m != nil {
			names = append(names, m.settings.Address)
		}
	}
	return names
}

// When members change, each block that moves is asked for where it was: always
// after one member came, went or was replaced, and mostly after more.
func TestThePreviousOwnerIsAsked(t *testing.T) {
	const blocks = 200
	for _, test := range []struct {
		name     string
		add, go_ int
		least    float64 // of the blocks that move
	}{
		{"one comes", 1, 0, 1},
		{"one goes", 0, 1, 1},
		{"one is replaced", 1, 1, 1},
		{"two come", 2, 0, 1},
		{"two go", 0, 2, 1},
		{"three come", 3, 0, 0.85},
		{"six come", 6, 0, 0.7},
		{"two are replaced", 2, 2, 0.9},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			moved, found := 0, 0
			for range 40 {
				n := test.go_ + 1 + r.IntN(12)
				var names []string
				for range n + test.add {
					names = append(names, fmt.Sprintf("proxy-%d.example.com:9040", r.IntN(1<<30)))
				}
				before, after, gone := names[:n], names[test.go_:], names[:test.go_]
				old, now := hashring.New(before...), hashring.New(after...)
				views := make(map[string]*Peers)
				s := plain(1, after...)
				for _, name := range gone {
					s.Former = append(s.Former, Member{Address: name})
				}
				for i := range blocks {
					key := storetest.Key(0)
					key.Index = uint32(i)
					owner, was := now.Owners(key.Hash(), 1)[0], old.Owners(key.Hash(), 1)[0]
					if owner == was {
						continue
					}
					p := views[owner]
					if p == nil {
						p = NewPeers(PeersConfig{Self: owner})
						p.Update(s)
						for _, m := range p.list() {
							m.healthy(time.Millisecond)
						}
						views[owner] = p
					}
					moved++
					for _, name := range likelyFor(p, key) {
						if name == was {
							found++
						}
					}
				}
			}
			share := float64(found) / float64(moved)
			t.Logf("%d blocks moved, %.1f %% were asked for where they were", moved, 100*share)
			if moved == 0 || share < test.least {
				t.Errorf("%.3f of the %d blocks that moved are asked for where they were, want %.2f", share, moved, test.least)
			}
		})
	}
}

// When a proxy was away, what others stood in for is asked for there.
func TestTheStandInIsAsked(t *testing.T) {
	p := NewPeers(PeersConfig{Self: "a:1"})
	s := plain(1, "a:1", "b:1", "c:1", "d:1")
	p.Update(s)
	for _, m := range p.list() {
		m.healthy(time.Millisecond)
	}
	ring := hashring.New("a:1", "b:1", "c:1", "d:1")
	without := hashring.New("b:1", "c:1", "d:1")
	for i := range 100 {
		key := storetest.Key(0)
		key.Index = uint32(i)
		if ring.Owners(key.Hash(), 1)[0] != "a:1" {
			continue
		}
		if asked, stood := likelyFor(p, key), without.Owners(key.Hash(), 1)[0]; asked[0] != stood {
			t.Errorf("%s stood in for block %d, and %v are asked", stood, i, asked)
		}
	}
}

// A tierOf is a proxy with a cache on disk, peers and a bucket.
type tierOf struct {
	addr  string
	peers *Peers
	disk  *cache.Disk
	stop  func() // ends what it serves and does
}

// tier starts a proxy over TCP.
func tier(t *testing.T, ln net.Listener, bucket store.Store) *tierOf {
	t.Helper()
	tr := &tierOf{addr: ln.Addr().String()}
	tr.peers = NewPeers(PeersConfig{Self: tr.addr, Verify: seal.Verify})
	disk, err := cache.OpenDisk(tr.peers.Fill(bucket), cache.DiskConfig{
		Dir: t.TempDir(), Quota: cache.Quota{Bytes: 1 << 30}, Verify: seal.Verify, Whole: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	tr.disk = disk
	back := writeback.New(writeback.Config{
		Blocks: disk, Local: disk, Peers: tr.peers, Bucket: bucket,
		Timing: writeback.Timing{Takeover: 50 * time.Millisecond},
	})
	srv := NewHTTPServer(Handler(Server{Tickets: nominal, Store: serving(back), Verify: seal.Verify, Replica: back}), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln) })
	wg.Go(func() { tr.peers.Run(ctx) })
	wg.Go(func() { back.Run(ctx) })
	tr.stop = sync.OnceFunc(func() { srv.Close(); cancel(); wg.Wait(); disk.Close() })
	t.Cleanup(tr.stop)
	return tr
}

// tiers starts n proxies over TCP, which know who is there.
func tiers(t *testing.T, n int, bucket store.Store) []*tierOf {
	t.Helper()
	var all []*tierOf
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tier(t, ln, bucket))
	}
	return all
}

// use makes them a group, everybody being up.
func use(all, members, former []*tierOf) GroupSettings {
	s := plain(1)
	for _, tr := range members {
		s.Members = append(s.Members, Member{Address: tr.addr})
	}
	for _, tr := range former {
		s.Former = append(s.Former, Member{Address: tr.addr})
	}
	for _, tr := range all {
		tr.peers.Update(s)
		for _, m := range tr.peers.list() {
			m.healthy(time.Millisecond)
		}
	}
	return s
}

// However many clients read, and whatever happens to the group, each block is
// read from the bucket once.
func TestABlockIsReadFromTheBucketOnce(t *testing.T) {
	const blocks, clients = 24, 8
	bucket := &spy{Store: mem.New(t)}
	sealer := seal.NewSealer(seal.Options{})
	for i := range blocks {
		key := storetest.Key(i)
		sealed, err := sealer.Encode(nil, key, block(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := bucket.Store.Put(t.Context(), key, sealed); err != nil {
			t.Fatal(err)
		}
	}
	all := tiers(t, 4, bucket)
	readAll := func(s GroupSettings) {
		t.Helper()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				g := New(Config{Origin: mem.New(nil), Groups: []GroupSettings{s}, Ticket: func() string { return testVolume }})
				g.Probe(t.Context())
				plain := sealer.Over(g)
				for i := range blocks {
					got, err := plain.Get(t.Context(), storetest.Key(i), 0, -1)
					if err != nil || !bytes.Equal(got, block(i)) {
						t.Errorf("block %d: %d bytes: %v", i, len(got), err)
					}
				}
				for _, m := range g.list() {
					m.idle()
				}
			})
		}
		wg.Wait()
	}
	for _, step := range []struct {
		name            string
		members, former []*tierOf
		reads           int
	}{
		{"two proxies", all[:2], nil, blocks},
		{"a third comes", all[:3], nil, 0},
		{"the first goes", all[1:3], all[:1], 0},
		{"the second is replaced", all[2:], all[:2], 0},
	} {
		readAll(use(all, step.members, step.former))
		if n := bucket.seen(); n != step.reads {
			t.Errorf("%s: %d blocks were read from the bucket %d times, want %d", step.name, blocks, n, step.reads)
		}
	}
}

// The proxy that took a block is gone before the bucket has it: who keeps the copy
// has it read, by way of any member, and uploads it.
func TestABlockSurvivesTheProxyThatTookIt(t *testing.T) {
	const blocks = 8
	bucket := &spy{Store: mem.New(t)}
	var mu sync.Mutex
	works, arrived := false, make(chan store.Key, 100)
	bucket.do(func(_ context.Context, op string, key store.Key) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case !works:
			return errors.New("no bucket")
		case op == "put":
			arrived <- key
		}
		return nil
	})
	all := tiers(t, 3, bucket)
	use(all, all, nil)
	client := func(tr *tierOf) *Client {
		return &Client{URL: "http://" + tr.addr, HTTP: &http.Client{Transport: &http.Transport{}}, Ticket: func() string { return testVolume }}
	}
	took := client(all[0])
	sealer := seal.NewSealer(seal.Options{})
	for i := range blocks {
		key := storetest.Key(i)
		sealed, err := sealer.Encode(nil, key, block(i))
		if err != nil {
			t.Fatal(err)
		}
		if err := took.Put(t.Context(), key, sealed); err != nil {
			t.Fatal(err)
		}
	}
	took.HTTP.CloseIdleConnections()
	all[0].stop()
	if n := len(bucket.Store.(*mem.Store).Keys()); n > 0 {
		t.Fatalf("%d blocks are in the bucket", n)
	}
	for _, tr := range all[1:] {
		c := client(tr)
		defer c.HTTP.CloseIdleConnections()
		for i := range blocks {
			got, err := sealer.Over(c).Get(t.Context(), storetest.Key(i), 0, -1)
			if err != nil || !bytes.Equal(got, block(i)) {
				t.Errorf("block %d: %d bytes: %v", i, len(got), err)
			}
		}
	}
	mu.Lock()
	works = true
	mu.Unlock()
	missing := make(map[store.Key]bool)
	for i := range blocks {
		missing[storetest.Key(i)] = true
	}
	for deadline := time.After(time.Minute); len(missing) > 0; {
		select {
		case key := <-arrived:
			delete(missing, key)
		case <-deadline:
			t.Fatalf("%d blocks are not uploaded", len(missing))
		}
	}
}
