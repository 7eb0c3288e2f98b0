package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAClientSaysWhatAnswered(t *testing.T) {
	for name, handle := range map[string]http.HandlerFunc{
		"is that the address": func(w http.ResponseWriter, r *http.Request) { http.Error(w, "Bad Gateway", http.StatusBadGateway) },
		"answered 404":        func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); w.Write([]byte("{}")) },
		"not settings":        func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("<html>")) },
		"settings":            func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("{}")) }, // without an ETag
		"EOF":                 func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	} {
		srv := httptest.NewServer(handle)
		c := &Client{URL: srv.URL + "/", Token: "secret-token"}
		_, err := Fetch(t.Context(), c, Fetched[MountSettings]{}, 0)
		var refused *Error
		if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "secret-token") {
			t.Errorf("got %v, want an error that says %q and is no refusal", err, name)
		}
		srv.Close()
	}
	c := &Client{URL: "http://admin invalid/", Token: "secret-token"}
	if _, err := List[Provider](t.Context(), c, nil); err == nil {
		t.Error("a wrong URL was accepted")
	}
}

func TestAListingIsInTheOrderOfKeys(t *testing.T) {
	b := newBench(t)
	for _, code := range []string{"minio", "ceph", "wasabi"} {
		create[Provider](b, map[string]any{"code": code})
	}
	list, err := List[Provider](t.Context(), b.account, nil)
	var codes []string
	for _, p := range list {
		codes = append(codes, p.Code)
	}
	if got := strings.Join(codes, " "); err != nil || got != "aws ceph local minio wasabi" {
		t.Errorf("providers %q, %v", got, err)
	}
	regions, err := List[Region](t.Context(), b.account, map[string][]string{"providerCode": {"aws"}, "code": {"us-east-1"}})
	if err != nil || len(regions) != 1 || regions[0].Name != "N. Virginia" {
		t.Errorf("regions %v, %v", regions, err)
	}
}

// flaky is a network that can be down.
type flaky struct {
	*bench
	down  atomic.Bool
	calls atomic.Int64
}

func (f *flaky) RoundTrip(r *http.Request) (*http.Response, error) {
	f.calls.Add(1)
	if f.down.Load() {
		return nil, errors.New("connection refused")
	}
	return f.bench.RoundTrip(r)
}

func TestFollowAppliesChangesAtOnceAndSurvivesAdmin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		net := &flaky{bench: s.bench}
		c := &Client{URL: "http://admin", Token: s.token.Token, HTTP: &http.Client{Transport: net}}
		first, err := Fetch(t.Context(), c, Fetched[MountSettings]{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		applied := make(chan Fetched[MountSettings], 1000)
		log := &safeBuffer{}
		done := make(chan bool)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			Follow(ctx, c, first, 10*time.Second, slog.New(slog.NewTextHandler(log, nil)), func(f Fetched[MountSettings]) { applied <- f })
			close(done)
		}()

		// Quiet: an answer each 10 s, with a new ticket.
		time.Sleep(25 * time.Second)
		synctest.Wait()
		for range 2 {
			if f := <-applied; f.Changed || f.Settings.Ticket == first.Settings.Ticket || f.Settings.Volume.ID != s.volume.ID || !f.Settings.Expires.After(first.Settings.Expires) {
				t.Errorf("quiet: %+v", f)
			}
		}
		// A change: at once.
		start := time.Now()
		update[Volume](s.bench, map[string]any{"notes": "one"}, "my-volume")
		if f := <-applied; !f.Changed || f.Settings.Volume.Notes != "one" || time.Since(start) > time.Second {
			t.Errorf("change: %+v after %v", f, time.Since(start))
		}
		// Away and back.
		net.down.Store(true)
		time.Sleep(2 * time.Minute)
		for len(applied) > 0 {
			<-applied
		}
		update[Volume](s.bench, map[string]any{"notes": "two"}, "my-volume")
		net.down.Store(false)
		start = time.Now()
		if f := <-applied; f.Settings.Volume.Notes != "two" || time.Since(start) > 11*time.Second {
			t.Errorf("back: %+v after %v", f, time.Since(start))
		}
		if log.count("going on with the last ones") != 1 || log.count("gives settings again") != 1 {
			t.Errorf("log:\n%s", log)
		}
		cancel()
		<-done
		if n := net.calls.Load(); n > 30 {
			t.Errorf("%d requests in some three minutes", n)
		}
	})
}
