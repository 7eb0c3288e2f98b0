package admin

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/internal/ticket"
)

func fetch[T MountSettings | ProxySettings | MetaSettings](b *bench, token string) T {
	b.t.Helper()
	got, err := Fetch(b.t.Context(), b.client(token), Fetched[T]{}, 0)
	if err != nil || got.ETag == "" || !got.Changed {
		b.t.Fatalf("settings: %+v, %v", got, err)
	}
	return got.Settings
}

func TestMountSettingsAreWhatAMountNeeds(t *testing.T) {
	s := newSite(t)
	far := create[ProxyGroup](s.bench, map[string]any{"providerCode": "aws", "regionCode": "eu-west-1", "addresses": []string{"far:80"}, "noSSL": true})
	create[VolumeProxyGroup](s.bench, map[string]any{"volumeID": "my-volume", "proxyGroupID": far.ID})
	other := create[Volume](s.bench, map[string]any{"name": "other", "metaStoreID": 1, "blockStoreID": 1})
	create[VolumeProxyGroup](s.bench, map[string]any{"volumeID": "other", "proxyGroupID": far.ID})
	update[Volume](s.bench, map[string]any{"flags": "noExec"}, "my-volume")
	token := create[VolumeToken](s.bench, map[string]any{"volumeID": "my-volume", "mountPath": "/data", "flags": "ro,noExec"})

	got := fetch[MountSettings](s.bench, token.Token)
	if got.Volume.ID != s.volume.ID || got.MountPath != "/data" || !slices.Equal(got.Flags, []string{"noExec", "ro"}) {
		t.Errorf("volume %s, path %s, flags %q", got.Volume.ID, got.MountPath, got.Flags)
	}
	if got.BlockStore.Bucket != "genomes" || got.BlockStore.Username != "AKIDEXAMPLE" || got.BlockStore.Password != "bucket-secret" {
		t.Errorf("block store %+v", got.BlockStore)
	}
	if got.Meta != (Member{Address: "meta.example.com:9000"}) {
		t.Errorf("meta %+v", got.Meta)
	}
	want := []GroupSettings{
		{ID: s.group.ID, ProviderCode: "aws", RegionCode: "us-east-1", Members: []Member{{Address: "proxy1.example.com:443"}, {Address: "proxy2.example.com:443"}}},
		{ID: far.ID, ProviderCode: "aws", RegionCode: "eu-west-1", NoSSL: true, Members: []Member{{Address: "far:80"}}},
	}
	if fmt.Sprint(got.Groups) != fmt.Sprint(want) {
		t.Errorf("groups %+v, want %+v", got.Groups, want)
	}
	proxy := fetch[ProxySettings](s.bench, far.Token)
	if len(proxy.Volumes) != 2 || proxy.Group.ID != far.ID || !slices.ContainsFunc(proxy.Volumes, func(v VolumeSettings) bool {
		return v.Volume.ID == other.ID && v.BlockStore.Password == "bucket-secret"
	}) {
		t.Errorf("settings of the proxies: %+v", proxy)
	}
	if near := fetch[ProxySettings](s.bench, s.group.Token); len(near.Volumes) != 1 || near.Volumes[0].Volume.ID != s.volume.ID {
		t.Errorf("settings of the near proxies: %+v", near)
	}
}

func TestTicketsSayWhatTheTokenAllows(t *testing.T) {
	s := newSite(t)
	reader := create[VolumeToken](s.bench, map[string]any{"volumeID": "my-volume", "mountPath": "/data", "flags": "ro"})
	var keys []ed25519.PublicKey
	for _, key := range fetch[ProxySettings](s.bench, s.group.Token).TicketKeys {
		keys = append(keys, key)
	}
	if meta := fetch[MetaSettings](s.bench, s.meta.Token); len(meta.TicketKeys) != 1 || !keys[0].Equal(ed25519.PublicKey(meta.TicketKeys[0])) {
		t.Errorf("the metadata server is told the keys %x, proxies %x", meta.TicketKeys, keys)
	}
	for token, want := range map[string]ticket.Ticket{
		s.token.Token: {Volume: s.volume.ID, Write: true, MountPath: "/", Name: "volume token 1"},
		reader.Token:  {Volume: s.volume.ID, Write: false, MountPath: "/data", Name: "volume token 2"},
	} {
		got := fetch[MountSettings](s.bench, token)
		tick, err := ticket.Verify(got.Ticket, keys, time.Now())
		want.Expires = got.Expires.Unix()
		if err != nil || tick != want {
			t.Errorf("ticket %+v, %v; want %+v", tick, err, want)
		}
		if left := time.Until(got.Expires); left < ticketLife-time.Minute || left > ticketLife+time.Second {
			t.Errorf("the ticket lasts %v", left)
		}
	}
}

func TestARetiredVolumeIsNotMounted(t *testing.T) {
	s := newSite(t)
	if err := Delete[Volume](t.Context(), s.account, "my-volume"); err != nil {
		t.Fatal(err)
	}
	_, err := Fetch(t.Context(), s.client(s.token.Token), Fetched[MountSettings]{}, 0)
	wantRefused(t, err, http.StatusForbidden, "", "my-volume", "deleted")
	if got := fetch[ProxySettings](s.bench, s.group.Token); len(got.Volumes) != 1 || got.Volumes[0].Volume.RetiredAt == nil {
		t.Errorf("proxies, which may have blocks to upload, are told of %+v", got.Volumes)
	}
	if got := fetch[MetaSettings](s.bench, s.meta.Token); len(got.Volumes) != 1 || got.Volumes[0].Volume.RetiredAt == nil {
		t.Errorf("the metadata server is told of %+v", got.Volumes)
	}
}

// get returns the answer to a request for settings.
func poll(b *bench, token, path, etag string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil).WithContext(b.t.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	rec := httptest.NewRecorder()
	b.handler.ServeHTTP(rec, r)
	return rec
}

func TestTheTagIsThatOfTheSettingsWithoutTheTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		first := poll(s.bench, s.token.Token, "/v1/settings/mount", "")
		tag := first.Header().Get("ETag")
		time.Sleep(10 * time.Second)
		if again := poll(s.bench, s.token.Token, "/v1/settings/mount", ""); again.Header().Get("ETag") != tag || again.Body.String() == first.Body.String() {
			t.Error("10 s later the tag changed or the ticket did not")
		}
		for _, header := range []string{tag, "W/" + tag, `"x", ` + tag} {
			if rec := poll(s.bench, s.token.Token, "/v1/settings/mount", header); rec.Code != http.StatusNotModified || rec.Body.Len() != 0 || rec.Header().Get("ETag") != tag {
				t.Errorf("If-None-Match %s: %d %s", header, rec.Code, rec.Body)
			}
		}
		for _, header := range []string{`"x"`, "*x", strings.Trim(tag, `"`)} {
			if rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait=30s", header); rec.Code != http.StatusOK {
				t.Errorf("If-None-Match %s: %d", header, rec.Code)
			}
		}
		seen := map[string]bool{tag: true}
		for i, change := range []func(){
			func() {
				update[ProxyGroup](s.bench, map[string]any{"addresses": []string{"proxy2.example.com:443", "proxy1.example.com:443"}}, 1)
			},
			func() { update[Volume](s.bench, map[string]any{"maxProxied": 3}, "my-volume") },
			func() { update[MetaStore](s.bench, map[string]any{"address": "other:1"}, 1) },
			func() { update[BlockStore](s.bench, map[string]any{"password": "new"}, 1) },
			func() { update[VolumeToken](s.bench, map[string]any{"flags": "ro"}, 1) },
		} {
			change()
			tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
			if seen[tag] {
				t.Errorf("change %d did not change the tag", i)
			}
			seen[tag] = true
		}
	})
}

func TestARequestWaitsForAChangeOfItsSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		start := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			time.Sleep(5 * time.Second) // of no interest to the mount
			create[Provider](s.bench, map[string]any{"code": "minio"})
			time.Sleep(5 * time.Second)
			update[ProxyGroup](s.bench, map[string]any{"addresses": []string{"proxy3:443"}}, 1)
		})
		rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait=30s", tag)
		if took := time.Since(start); took != 10*time.Second || rec.Code != http.StatusOK || !strings.Contains(rec.Body.String(), "proxy3:443") {
			t.Errorf("answered after %v with %d %s, want the change after 10 s", took, rec.Code, rec.Body)
		}
	})
}

func TestAWaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		for text, want := range map[string]time.Duration{"30s": 30 * time.Second, "0s": 0, "1h": maxWait, "": 0} {
			start := time.Now()
			rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait="+text, tag)
			if took := time.Since(start); took != want || rec.Code != http.StatusNotModified || rec.Header().Get(headerTicket) == "" {
				t.Errorf("wait=%s: %d after %v, ticket %q; want 304 after %v with a new ticket", text, rec.Code, took, rec.Header().Get(headerTicket), want)
			}
		}
		for _, text := range []string{"30", "x", "-1s"} {
			if rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait="+text, tag); rec.Code != http.StatusBadRequest {
				t.Errorf("wait=%s: %d", text, rec.Code)
			}
		}
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			s.db.Close()
		}()
		if rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait=30s", tag); time.Since(start) != time.Second || rec.Code != http.StatusServiceUnavailable {
			t.Errorf("when the database closed: %d after %v", rec.Code, time.Since(start))
		}
	})
}

func TestATokenThatEndsWhileItsBearerWaitsIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			time.Sleep(time.Second)
			if err := Delete[VolumeToken](t.Context(), s.account, "1"); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait=30s", tag)
		if took := time.Since(start); took != time.Second || rec.Code != http.StatusUnauthorized {
			t.Errorf("%d after %v, want 401 after 1 s", rec.Code, took)
		}
	})
}

func TestManyWaitAndAllAreWoken(t *testing.T) {
	const mounts = 500
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		var wg sync.WaitGroup
		start := time.Now()
		for range mounts {
			wg.Go(func() {
				rec := poll(s.bench, s.token.Token, "/v1/settings/mount?wait=60s", tag)
				if took := time.Since(start); took != time.Second || rec.Code != http.StatusOK {
					t.Errorf("%d after %v, want 200 after 1 s", rec.Code, took)
				}
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		update[ProxyGroup](s.bench, map[string]any{"addresses": []string{"proxy3:443"}}, 1)
		wg.Wait()
	})
}

func TestAnEndedCallerIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		tag := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := Fetch(ctx, s.client(s.token.Token), Fetched[MountSettings]{ETag: tag}, 30*time.Second)
		if err == nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestAServerShutsDownWhileMountsWait(t *testing.T) {
	s := newSite(t)
	srv := httptest.NewServer(s.handler)
	defer srv.Close()
	c := &Client{URL: srv.URL, Token: s.token.Token, HTTP: srv.Client()}
	first, err := Fetch(t.Context(), c, Fetched[MountSettings]{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan Fetched[MountSettings])
	go func() {
		next, err := Fetch(t.Context(), c, first, 30*time.Second)
		if err != nil {
			t.Error(err)
		}
		changed <- next
	}()
	update[Volume](s.bench, map[string]any{"notes": "changed"}, "my-volume")
	next := <-changed
	if !next.Changed || next.Settings.Volume.Notes != "changed" {
		t.Errorf("got %+v", next)
	}
	done := make(chan error)
	go func() {
		_, err := Fetch(t.Context(), c, next, 30*time.Second)
		done <- err
	}()
	s.db.Close()
	srv.Close() // waits for requests
	<-done
}

func TestHealth(t *testing.T) {
	s := newSite(t)
	if status, text := s.send("", "GET", "/v1/health", ""); status != http.StatusOK || text != "{\"status\":\"ok\"}\n" {
		t.Errorf("%d %s", status, text)
	}
	s.db.Close()
	if status, text := s.send("", "GET", "/v1/health", ""); status != http.StatusServiceUnavailable {
		t.Errorf("with a closed database: %d %s", status, text)
	}
}
