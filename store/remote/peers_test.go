package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A far is a proxy as its peers see it.
type far struct {
	*host
	*keeper
	held  *spy         // what it holds itself
	pings atomic.Int64 // probes
}

// far starts a proxy that is a millisecond away.
func (w *world) far(addr string) *far {
	w.t.Helper()
	f := &far{keeper: new(keeper), held: &spy{Store: mem.New(w.t)}}
	h := Handler(Server{Tickets: nominal, Store: serving(f.held), Replica: f.keeper})
	f.host = w.net.serve(w.t, addr, time.Millisecond, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == healthPath {
			f.pings.Add(1)
		}
		h.ServeHTTP(rw, r)
	}))
	return f
}

// holds makes f hold block i.
func (f *far) holds(t *testing.T, i int) {
	t.Helper()
	if err := f.held.Store.Put(t.Context(), storetest.Key(i), block(i)); err != nil {
		t.Fatal(err)
	}
}

// peers makes the peers of the proxy self, which run until the test ends.
func (w *world) peers(self string, s GroupSettings) *Peers {
	p := NewPeers(PeersConfig{Self: self, Dial: w.net.Dial})
	p.Update(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { p.Run(ctx); close(done) }()
	w.t.Cleanup(func() { cancel(); <-done })
	time.Sleep(10 * time.Millisecond) // they answer their first probe in 2
	return p
}

// inGroup runs test in a bubble of time with the peers of self:1, which are
// given in the order of what they are for block 0.
func inGroup(t *testing.T, n int, test func(t *testing.T, w *world, p *Peers, order []*far)) {
	t.Helper()
	inWorld(t, func(t *testing.T, w *world) {
		s := plain(1, "self:1")
		all := make(map[string]*far)
		for i := range n {
			addr := fmt.Sprintf("p%d:1", i)
			s.Members = append(s.Members, Member{Address: addr})
			all[addr] = w.far(addr)
		}
		p := w.peers("self:1", s)
		var order []*far
		for _, addr := range p.view.Load().others.Owners(storetest.Key(0).Hash(), -1) {
			order = append(order, all[addr])
		}
		test(t, w, p, order)
	})
}

// asClient is the context of a client's request.
func asClient(t *testing.T) context.Context { return WithTicket(t.Context(), testVolume) }

// copied puts block i to a peer and returns how long that took.
func copied(t *testing.T, p *Peers, i int) (string, time.Duration, error) {
	start := time.Now()
	peer, err := p.Copy(asClient(t), storetest.Key(i), block(i))
	return peer, time.Since(start), err
}

// wantCopy copies block 0 and checks who keeps it.
func wantCopy(t *testing.T, p *Peers, want *far, within time.Duration) {
	t.Helper()
	key := storetest.Key(0)
	peer, took, err := copied(t, p, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := want.of(key); got != "1000 bytes from self:1" || took > within {
		t.Errorf("%s keeps the copy, after %v; the one that should, within %v, keeps %q", peer, took, within, got)
	}
	if err := p.Uploaded(asClient(t), peer, []store.Key{key}); err != nil || want.of(key) != "" {
		t.Errorf("after its upload the copy is still %q: %v", want.of(key), err)
	}
}

func TestTheBestOtherMemberKeepsTheCopy(t *testing.T) {
	inGroup(t, 5, func(t *testing.T, w *world, p *Peers, order []*far) {
		wantCopy(t, p, order[0], 10*time.Millisecond)
		order[0].fails(ErrFull)
		wantCopy(t, p, order[1], 15*time.Millisecond)
		order[1].fails(errors.New("disk on fire"))
		wantCopy(t, p, order[2], 20*time.Millisecond)
		order[2].fails(ErrFull)
		if _, _, err := copied(t, p, 0); !errors.Is(err, ErrFull) || order[3].count() > 0 {
			t.Errorf("after %d tries: %v, and the next keeps %d", maxTries, err, order[3].count())
		}
		for _, f := range order {
			f.fails(nil)
		}
		wantCopy(t, p, order[0], 10*time.Millisecond) // refusals are nobody's fault
		if s := p.Stats(); s.Copies != 4 || s.CopyBytes != 4000 || s.CopyFailures != 1+2+3 || s.CopyNobody != 1 || s.Uploaded != 4 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// A bad ticket is the client's fault, not the peer's.
func TestATicketThatEndedTakesNoPeerOutOfUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.net.serve(t, "a:1", 0, Handler(Server{Replica: new(keeper), Tickets: func(text string) (ticket.Ticket, error) {
			if text != testVolume {
				return ticket.Ticket{}, ticket.ErrExpired
			}
			return nominal(text)
		}, Store: serving(mem.New(t))}))
		p := w.peers("self:1", plain(1, "self:1", "a:1"))
		key := storetest.Key(0)
		for range 3 {
			if _, err := p.Copy(WithTicket(t.Context(), "old"), key, block(0)); err == nil || err == errNoPeer {
				t.Errorf("copied with an old ticket: %v", err)
			}
			if peer, err := p.Copy(asClient(t), key, block(0)); err != nil || peer != "a:1" {
				t.Errorf("copied to %q: %v", peer, err)
			}
		}
	})
}

func TestAPeerThatIsGoneCostsLittleAndOnce(t *testing.T) {
	for state, cost := range map[string]time.Duration{
		"refuses": 10 * time.Millisecond,   // its connections end
		"lost":    1320 * time.Millisecond, // it says nothing any more
		"mute":    1320 * time.Millisecond, // it takes requests, and says nothing
	} {
		t.Run(state, func(t *testing.T) {
			inGroup(t, 3, func(t *testing.T, w *world, p *Peers, order []*far) {
				wantCopy(t, p, order[0], 10*time.Millisecond)
				time.Sleep(time.Second)
				order[0].become(state)
				peer, took, err := copied(t, p, 0)
				if err != nil || order[1].count() != 1 || took > cost {
					t.Fatalf("copied to %s within %v (want %v): %v", peer, took, cost, err)
				}
				wantCopy(t, p, order[1], 10*time.Millisecond)
				time.Sleep(10 * time.Second)
				wantCopy(t, p, order[1], 10*time.Millisecond)
				order[0].become("")
				time.Sleep(5 * time.Second)
				wantCopy(t, p, order[0], 10*time.Millisecond)
			})
		})
	}
}

// When one is found dead all others are probed: who died with it costs no more.
func TestPeersThatDieTogetherAreFoundDeadTogether(t *testing.T) {
	inGroup(t, 5, func(t *testing.T, w *world, p *Peers, order []*far) {
		time.Sleep(time.Second)
		for _, f := range order[:3] {
			f.become("lost")
		}
		wantCopy(t, p, order[3], 2400*time.Millisecond)
	})
}

// A peer that fails while nobody asks for anything is known to by the next probe.
func TestAnIdlePeerIsProbed(t *testing.T) {
	inGroup(t, 3, func(t *testing.T, w *world, p *Peers, order []*far) {
		order[0].become("lost")
		time.Sleep(7 * time.Second)
		wantCopy(t, p, order[1], 10*time.Millisecond)
	})
}

// The machine is well but its disk hangs: health answers, copies do not.
func TestAPeerThatOnlyAnswersProbesIsGivenUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stuck := make(chan struct{})
		h := Handler(Server{Tickets: nominal})
		w.net.serve(t, "a:1", 0, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, blocksPath) {
				<-stuck
			}
			h.ServeHTTP(rw, r)
		}))
		defer close(stuck)
		w.far("b:1")
		p := w.peers("self:1", plain(1, "self:1", "a:1", "b:1"))
		late := 0
		for i := range 20 {
			peer, took, err := copied(t, p, i)
			if err != nil || peer != "b:1" || took > 6*time.Second {
				t.Fatalf("copied to %q after %v: %v", peer, took, err)
			}
			if took > time.Second {
				late++
			}
		}
		if late != 1 {
			t.Errorf("%d of 20 copies waited for the peer, want 1", late)
		}
		if p.Down("a:1") {
			t.Error("a peer that answers probes is said to be down")
		}
	})
}

func TestAMemberThatWasRemovedCopiesNothing(t *testing.T) {
	inGroup(t, 2, func(t *testing.T, w *world, p *Peers, order []*far) {
		s := plain(1, "p0:1")
		s.Former = []Member{{Address: "self:1"}, {Address: "p1:1"}}
		p.Update(s)
		if _, _, err := copied(t, p, 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("copied: %v", err)
		}
		key := storetest.Key(0)
		order[0].holds(t, 0)
		if data, err := p.Fill(mem.New(t)).Get(asClient(t), key, 0, -1); err != nil || len(data) != 1000 {
			t.Errorf("filled with %d bytes: %v", len(data), err)
		}
	})
}

func TestFormerMembersKeepNoCopies(t *testing.T) {
	inGroup(t, 2, func(t *testing.T, w *world, p *Peers, order []*far) {
		members := p.view.Load().settings.Members
		s := plain(1)
		for _, m := range members {
			if w.net.host(m.Address) == order[0].host {
				s.Former = append(s.Former, m)
			} else {
				s.Members = append(s.Members, m)
			}
		}
		p.Update(s)
		wantCopy(t, p, order[1], 10*time.Millisecond)
		order[0].copies = map[store.Key]string{storetest.Key(0): "x"}
		former := s.Former[0].Address
		if pending, err := p.Pending(asClient(t), former, storetest.Key(0)); !pending || err != nil {
			t.Errorf("a former member is asked what it will upload: %v, %v", pending, err)
		}
		if pending, err := p.Pending(asClient(t), former, storetest.Key(1)); pending || err != nil {
			t.Errorf("and what it will not: %v, %v", pending, err)
		}
		order[0].become("refuses")
		time.Sleep(7 * time.Second)
		if !p.Down(former) {
			t.Error("a former member that is gone is not known to be")
		}
		if _, err := p.Pending(asClient(t), former, storetest.Key(0)); err == nil {
			t.Error("who is down said what it will upload")
		}
	})
}

// What a client says who will upload its block is not somebody to connect to.
func TestStrangersAreNotAsked(t *testing.T) {
	inGroup(t, 1, func(t *testing.T, w *world, p *Peers, order []*far) {
		f := w.far("stranger:1")
		if _, err := p.Pending(asClient(t), "stranger:1", storetest.Key(0)); !errors.Is(err, errUnknownPeer) {
			t.Errorf("Pending = %v", err)
		}
		if err := p.Uploaded(asClient(t), "stranger:1", []store.Key{storetest.Key(0)}); !errors.Is(err, errUnknownPeer) {
			t.Errorf("Uploaded = %v", err)
		}
		if p.Down("stranger:1") || f.dials > 0 {
			t.Errorf("a stranger is known, and was connected to %d times", f.dials)
		}
	})
}

func TestAProxyAloneHasNoPeers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peers("self:1", plain(1, "self:1"))
		if _, _, err := copied(t, p, 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("copied: %v", err)
		}
	})
}

// Probes of all members by all members must not be what a group does.
func TestProbesAreFew(t *testing.T) {
	for _, n := range []int{3, 15, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inGroup(t, n, func(t *testing.T, w *world, p *Peers, order []*far) {
				time.Sleep(time.Minute)
				total := int64(0)
				for _, f := range order {
					pings := f.pings.Load()
					if pings < 3 || pings > 15 {
						t.Errorf("a peer was probed %d times in a minute", pings)
					}
					total += pings
				}
				if total > 60/5*2*fewPeers {
					t.Errorf("%d peers were probed %d times in a minute", n, total)
				}
			})
		})
	}
}

func TestPeersThatStayKeepTheirStateAndConnections(t *testing.T) {
	inGroup(t, 3, func(t *testing.T, w *world, p *Peers, order []*far) {
		s := p.view.Load().settings
		for range 3 {
			w.far("new:1")
			s.Members = append(slices.Clone(s.Members), Member{Address: "new:1"})
			p.Update(s)
			s.Members = s.Members[:len(s.Members)-1]
			p.Update(s)
		}
		wantCopy(t, p, order[0], 5*time.Millisecond)
		if order[0].dials != 1 {
			t.Errorf("%d connections were made", order[0].dials)
		}
		if got := p.Members(); len(got) != 3 || got[0].Address != "p0:1" || got[0].State != "up" {
			t.Errorf("members: %+v", got)
		}
	})
}

// With TLS: a peer that has another key than the settings say is no peer.
func TestAPeerWithTheWrongKeyIsNotUsed(t *testing.T) {
	kept := [2]*keeper{new(keeper), new(keeper)}
	s := GroupSettings{ID: 1, Members: []Member{{Address: "self:1"}}}
	for _, k := range kept {
		m := secure(t, Handler(Server{Tickets: nominal, Store: serving(mem.New(t)), Replica: k}))
		s.Members = append(s.Members, m)
	}
	s.Members[1].Pin = s.Members[2].Pin
	p := NewPeers(PeersConfig{Self: "self:1"})
	p.Update(s)
	for _, m := range p.list() {
		p.probe(t.Context(), m)
		defer m.idle()
	}
	for i := range 10 {
		peer, err := p.Copy(asClient(t), storetest.Key(i), block(i))
		if err != nil || peer != s.Members[2].Address {
			t.Errorf("copied to %q: %v", peer, err)
		}
	}
	if !p.Down(s.Members[1].Address) || kept[0].count() > 0 || kept[1].count() != 10 {
		t.Errorf("the peers keep %d and %d copies", kept[0].count(), kept[1].count())
	}
}
