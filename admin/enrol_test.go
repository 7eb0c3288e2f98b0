package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func (s *site) enrol(token, addr, pin string) (Enrolled, error) {
	return s.client(token).Enrol(s.t.Context(), Enrolment{addr, pin})
}

// pinOf is what mounts are told about a member of the group.
func (s *site) pinOf(addr string) string {
	s.t.Helper()
	for _, m := range fetch[MountSettings](s.bench, s.token.Token).Groups[0].Members {
		if m.Address == addr {
			return m.Pin
		}
	}
	s.t.Fatalf("%s is not a member", addr)
	return ""
}

func TestAProxyEnrolsItsKey(t *testing.T) {
	s := newSite(t)
	got, err := s.enrol(s.group.Token, "Proxy1.example.com:443", somePin(1))
	if err != nil || !got.Member {
		t.Errorf("Enrol: %+v, %v", got, err)
	}
	if pin := s.pinOf("proxy1.example.com:443"); pin != somePin(1) {
		t.Errorf("mounts are told the pin %q", pin)
	}
	if pin := s.pinOf("proxy2.example.com:443"); pin != "" {
		t.Errorf("the other member has the pin %q", pin)
	}
	changed := s.db.changes()
	if got, err := s.enrol(s.group.Token, "proxy1.example.com:443", somePin(1)); err != nil || !got.Member {
		t.Errorf("again: %+v, %v", got, err)
	}
	select {
	case <-changed:
		t.Error("an enrolment without news woke those who wait")
	default:
	}
}

func TestAnotherKeyIsNotAcceptedUntilAnOperatorSaysSo(t *testing.T) {
	const addr = "proxy1.example.com:443"
	s := newSite(t)
	if _, err := s.enrol(s.group.Token, addr, somePin(1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := s.enrol(s.group.Token, addr, somePin(2))
		wantRefused(t, err, http.StatusConflict, "", "differs", "update proxy-group 1 --resetPins")
	}
	g := get[ProxyGroup](s.bench, 1)
	if g.Pins[addr] != somePin(1) || g.RefusedPins[addr] != somePin(2) {
		t.Errorf("pins %v, refused %v", g.Pins, g.RefusedPins)
	}
	if n := s.log.count("it is not trusted"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, s.log)
	}
	update[ProxyGroup](s.bench, map[string]any{"resetPins": true}, 1)
	if g := get[ProxyGroup](s.bench, 1); len(g.Pins)+len(g.RefusedPins) != 0 {
		t.Errorf("after the reset: pins %v, refused %v", g.Pins, g.RefusedPins)
	}
	if _, err := s.enrol(s.group.Token, addr, somePin(2)); err != nil || s.pinOf(addr) != somePin(2) {
		t.Errorf("after the reset: %v, pin %q", err, s.pinOf(addr))
	}
}

func TestARefusedKeyIsForgottenWhenTheRightOneIsBack(t *testing.T) {
	const addr = "proxy1.example.com:443"
	s := newSite(t)
	for _, pin := range []string{somePin(1), somePin(2), somePin(1)} {
		s.enrol(s.group.Token, addr, pin)
	}
	if g := get[ProxyGroup](s.bench, 1); g.Pins[addr] != somePin(1) || len(g.RefusedPins) != 0 {
		t.Errorf("pins %v, refused %v", g.Pins, g.RefusedPins)
	}
}

func TestAProxyThatIsNoMemberWaits(t *testing.T) {
	s := newSite(t)
	got, err := s.enrol(s.group.Token, "proxy3.example.com:443", somePin(3))
	if err != nil || got.Member {
		t.Errorf("Enrol: %+v, %v; want no member", got, err)
	}
	g := get[ProxyGroup](s.bench, 1)
	if len(g.Addresses) != 2 || g.Waiting["proxy3.example.com:443"] != somePin(3) {
		t.Errorf("members %v, waiting %v", g.Addresses, g.Waiting)
	}
	update[ProxyGroup](s.bench, map[string]any{"addresses": append(g.Addresses, "proxy3.example.com:443")}, 1)
	if g := get[ProxyGroup](s.bench, 1); len(g.Waiting) != 0 || s.pinOf("proxy3.example.com:443") != somePin(3) {
		t.Errorf("added: waiting %v, pins %v", g.Waiting, g.Pins)
	}
	for i := range 2 * maxWaitingMembers {
		if _, err := s.enrol(s.group.Token, fmt.Sprintf("p%d:1", i), somePin(1)); err != nil {
			t.Fatal(err)
		}
	}
	if g := get[ProxyGroup](s.bench, 1); len(g.Waiting) != maxWaitingMembers {
		t.Errorf("%d are waiting, want at most %d", len(g.Waiting), maxWaitingMembers)
	}
}

func TestKeysOfRemovedMembersAreDropped(t *testing.T) {
	s := newSite(t)
	for i, addr := range s.group.Addresses {
		if _, err := s.enrol(s.group.Token, addr, somePin(byte(i))); err != nil {
			t.Fatal(err)
		}
		s.enrol(s.group.Token, addr, somePin(9))
	}
	update[ProxyGroup](s.bench, map[string]any{"addresses": s.group.Addresses[1:]}, 1)
	want := map[string]string{s.group.Addresses[1]: somePin(1)}
	if g := get[ProxyGroup](s.bench, 1); !maps.Equal(g.Pins, want) || len(g.RefusedPins) != 1 {
		t.Errorf("pins %v, refused %v; want those of the member that is left", g.Pins, g.RefusedPins)
	}
	update[ProxyGroup](s.bench, map[string]any{"noSSL": true}, 1)
	if g := get[ProxyGroup](s.bench, 1); len(g.Pins)+len(g.RefusedPins) != 0 {
		t.Errorf("without TLS: pins %v, refused %v", g.Pins, g.RefusedPins)
	}
	if _, err := s.enrol(s.group.Token, s.group.Addresses[1], ""); err != nil {
		t.Errorf("without TLS and key: %v", err)
	}
}

func TestAMetadataServerEnrolsItsKey(t *testing.T) {
	s := newSite(t)
	if got, err := s.enrol(s.meta.Token, "meta.example.com:9000", somePin(1)); err != nil || !got.Member {
		t.Errorf("Enrol: %+v, %v", got, err)
	}
	if got := fetch[MountSettings](s.bench, s.token.Token).Meta.Pin; got != somePin(1) {
		t.Errorf("mounts are told the pin %q", got)
	}
	_, err := s.enrol(s.meta.Token, "meta.example.com:9000", somePin(2))
	wantRefused(t, err, http.StatusConflict, "", "update meta-store 1 --resetPin")
	if m := get[MetaStore](s.bench, 1); m.Pin != somePin(1) || m.RefusedPin != somePin(2) {
		t.Errorf("pin %s, refused %s", m.Pin, m.RefusedPin)
	}
	update[MetaStore](s.bench, map[string]any{"resetPin": true}, 1)
	if got, err := s.enrol(s.meta.Token, "10.0.0.9:9000", somePin(2)); err != nil || got.Member {
		t.Errorf("at an address of its own: %+v, %v", got, err)
	}
	if m := get[MetaStore](s.bench, 1); m.Pin != somePin(2) || m.RefusedPin != "" || m.Address != "meta.example.com:9000" {
		t.Errorf("got %+v", m)
	}
	update[MetaStore](s.bench, map[string]any{"address": "meta2.example.com:9000"}, 1)
	if m := get[MetaStore](s.bench, 1); m.Pin != "" {
		t.Errorf("another server has the pin %s of the one before", m.Pin)
	}
}

func TestWrongEnrolmentsAreRefused(t *testing.T) {
	s := newSite(t)
	for body, field := range map[string]string{
		``:                                   "",
		`[]`:                                 "",
		`{}`:                                 "address",
		`{"address":1}`:                      "",
		`{"address":"proxy1"}`:               "address",
		`{"address":"proxy1:443","pin":"x"}`: "pin",
		`{"address":"proxy1:443","colour":"red"}`: "colour",
	} {
		status, text := s.send(s.group.Token, "POST", "/v1/enrol", body)
		if status != http.StatusBadRequest || field != "" && !strings.Contains(text, `"field":"`+field+`"`) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}

// fakeServers show keys by address.
type fakeServers struct {
	mu    sync.Mutex
	pins  map[string]string
	asked map[string]int
	busy  atomic.Int32
	most  atomic.Int32
}

func (f *fakeServers) set(addr, pin string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pins[addr] = pin
}

func (f *fakeServers) fetch(ctx context.Context, addr string) (string, error) {
	n := f.busy.Add(1)
	defer f.busy.Add(-1)
	for most := f.most.Load(); n > most && !f.most.CompareAndSwap(most, n); most = f.most.Load() {
	}
	f.mu.Lock()
	f.asked[addr]++
	pin := f.pins[addr]
	f.mu.Unlock()
	switch pin {
	case "":
		return "", errors.New("connection refused")
	case "hangs":
		<-ctx.Done()
		return "", ctx.Err()
	}
	return pin, nil
}

// startLearner runs a learner over fake servers until the test ends.
func startLearner(t *testing.T, s *site) *fakeServers {
	f := &fakeServers{pins: map[string]string{}, asked: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	l := &Learner{DB: s.db, Fetch: f.fetch, Log: slog.New(slog.NewTextHandler(s.log, nil))}
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

func TestKeysAreLearntAtFirstContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		f := startLearner(t, s)
		time.Sleep(time.Minute) // nobody is up
		for i, addr := range append(s.group.Addresses, s.meta.Address) {
			f.set(addr, somePin(byte(i+1)))
		}
		time.Sleep(10 * time.Second)
		for i, addr := range s.group.Addresses {
			if got := s.pinOf(addr); got != somePin(byte(i+1)) {
				t.Errorf("%s has the pin %q", addr, got)
			}
		}
		if got := get[MetaStore](s.bench, 1).Pin; got != somePin(3) {
			t.Errorf("the metadata server has the pin %q", got)
		}
		if n := s.log.count("learnt and pinned"); n != 3 {
			t.Errorf("%d keys were logged, want 3:\n%s", n, s.log)
		}

		// A member that is added is asked soon.
		f.set("proxy3:443", somePin(4))
		update[ProxyGroup](s.bench, map[string]any{"addresses": []string{"proxy3:443"}}, 1)
		time.Sleep(2 * time.Second)
		if got := s.pinOf("proxy3:443"); got != somePin(4) {
			t.Errorf("the new member has the pin %q", got)
		}
	})
}

func TestALearnerNoticesAnotherKeyAndDoesNotTakeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		f := startLearner(t, s)
		addr := s.group.Addresses[0]
		f.set(addr, somePin(1))
		time.Sleep(10 * time.Second)
		f.set(addr, somePin(2))
		time.Sleep(time.Hour)
		g := get[ProxyGroup](s.bench, 1)
		if g.Pins[addr] != somePin(1) || g.RefusedPins[addr] != somePin(2) {
			t.Errorf("pins %v, refused %v", g.Pins, g.RefusedPins)
		}
		if n := s.log.count("it is not trusted"); n != 1 {
			t.Errorf("%d warnings, want one:\n%s", n, s.log)
		}
		update[ProxyGroup](s.bench, map[string]any{"resetPins": true}, 1)
		time.Sleep(2 * time.Second)
		if got := s.pinOf(addr); got != somePin(2) {
			t.Errorf("after the reset the pin is %q", got)
		}
	})
}

func TestALearnerIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		var addrs []string
		f := &fakeServers{pins: map[string]string{}, asked: map[string]int{}}
		for i := range 40 {
			addrs = append(addrs, fmt.Sprintf("p%d:1", i))
			f.set(addrs[i], "hangs")
		}
		update[ProxyGroup](s.bench, map[string]any{"addresses": addrs}, 1)
		create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"plain:1"}, "noSSL": true}))
		l := &Learner{DB: s.db, Fetch: f.fetch, Log: slog.New(slog.NewTextHandler(s.log, nil))}
		start := time.Now()
		if err := l.round(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if most := f.most.Load(); most != maxFetches {
			t.Errorf("%d servers were asked at a time, want %d", most, maxFetches)
		}
		if took := time.Since(start); took > 6*fetchTimeout {
			t.Errorf("a round over %d dead servers took %v", len(addrs), took)
		}
		if f.asked["plain:1"] != 0 {
			t.Error("a proxy without TLS was asked for its key")
		}
	})
}

func TestAKeyThatArrivesLateIsNotGivenToAnother(t *testing.T) {
	s := newSite(t)
	log := slog.New(slog.DiscardHandler)
	for _, gone := range []server{
		{FindTable("proxy-groups"), 1, "removed:443", false},
		{FindTable("proxy-groups"), 77, "p:443", false},
		{FindTable("meta-stores"), 1, "moved:443", false},
	} {
		if err := s.db.noteKey(gone, somePin(1), log); err != nil {
			t.Error(err)
		}
	}
	if g, m := get[ProxyGroup](s.bench, 1), get[MetaStore](s.bench, 1); len(g.Pins)+len(g.Waiting) != 0 || m.Pin != "" {
		t.Errorf("pins %v, waiting %v, meta %q", g.Pins, g.Waiting, m.Pin)
	}
	if err := s.db.noteKey(server{FindTable("proxy-groups"), 1, s.group.Addresses[0], false}, "x", log); err == nil {
		t.Error("a pin that is none was kept")
	}
}
