package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAGroupShowsHowItsMembersAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.members("a:1", "b:1", "c:1", "d:1", "e:1")
		update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
		time.Sleep(time.Hour)
		s.members("a:1", "b:1", "c:1")
		time.Sleep(time.Minute)
		full := ProxyReport{
			Address: "A:01", DirtyBytes: 12 << 20, DirtyBlocks: 3, OldestDirty: now().Add(-5 * time.Second),
			Bytes: 1 << 30, Limit: 10 << 30, Blocks: 256, Hits: 93, Misses: 7, DiskOK: true, Started: now().Add(-time.Hour),
		}
		for _, r := range []ProxyReport{full, {Address: "b:1"}, {Address: "d:1", DirtyBlocks: 3, DirtyBytes: 5}, {Address: "e:1"}} {
			if _, err := s.client(s.group.Token).Report(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		check := func(want map[string]string) {
			t.Helper()
			status := get[ProxyGroup](s.bench, 1).Status
			for _, m := range status {
				if want[m.Address] != m.State || m.Former != strings.Contains("d:1 e:1", m.Address) {
					t.Errorf("%s is %s, former %v; want %s", m.Address, m.State, m.Former, want[m.Address])
				}
			}
			if len(status) != len(want) {
				t.Errorf("%d members shown, want %d", len(status), len(want))
			}
		}
		check(map[string]string{"a:1": StateOK, "b:1": StateDiskFailed, "c:1": StateSilent, "d:1": StateDraining, "e:1": StateDrained})

		got := get[ProxyGroup](s.bench, 1).Status[0]
		want := MemberStatus{Address: "a:1", State: StateOK, ReportedAt: now().Add(-10 * time.Second),
			DirtyBytes: full.DirtyBytes, DirtyBlocks: 3, OldestDirty: full.OldestDirty, Bytes: full.Bytes, Limit: full.Limit,
			Blocks: 256, Hits: 93, Misses: 7, DiskOK: true, Started: full.Started}
		if got != want {
			t.Errorf("shown %+v, want %+v", got, want)
		}
		time.Sleep(silentAfter)
		check(map[string]string{"a:1": StateSilent, "b:1": StateSilent, "c:1": StateSilent, "d:1": StateSilent, "e:1": StateDrained})
		if _, text := s.send(s.account.Token, "GET", "/v1/configure/proxy-groups", ""); strings.Contains(text, "status") {
			t.Errorf("a listing has the status: %s", text)
		}
	})
}

func TestReportsArePutInOrder(t *testing.T) {
	s := newSite(t)
	whole := members(ProxyReport{Address: "proxy1.example.com:443", OldestDirty: now(), Started: now()})
	for _, c := range []struct{ field, value, words string }{
		{"address", `"proxy1.example.com"`, "port"},
		{"address", `7`, "type"},
		{"address", `null`, "type"},
		{"dirtyBytes", `-1`, "negative"},
		{"dirtyBlocks", `-1`, "negative"},
		{"bytes", `-1`, "negative"},
		{"limit", `-1`, "negative"},
		{"blocks", `-1`, "negative"},
		{"hits", `-1`, "negative"},
		{"misses", `1.5`, "type"},
		{"diskOK", `"yes"`, "type"},
		{"started", `"yesterday"`, "type"},
		{"oldestDirty", `1`, "type"},
		{"password", `"x"`, "no such field"},
	} {
		fields := map[string]json.RawMessage{}
		for name, value := range whole {
			fields[name] = value
		}
		fields[c.field] = json.RawMessage(c.value)
		body, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		status, text := s.send(s.group.Token, "POST", "/v1/proxies/report", string(body))
		if status != http.StatusBadRequest || !strings.Contains(text, c.words) || !strings.Contains(text, `"field":"`+c.field+`"`) {
			t.Errorf("%s %s: %d %s", c.field, c.value, status, text)
		}
	}
	for _, body := range []string{"", "[]", `{"address":"proxy1.example.com:443"`, `{}`} {
		if status, text := s.send(s.group.Token, "POST", "/v1/proxies/report", body); status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", body, status, text)
		}
	}
	for _, m := range get[ProxyGroup](s.bench, 1).Status {
		if m.State != StateSilent {
			t.Errorf("a refused report was taken: %+v", m)
		}
	}
}

// Only what the group has is kept: nobody can fill the memory.
func TestReportsAreBounded(t *testing.T) {
	s := newSite(t)
	client := s.client(s.group.Token)
	for i := range 100 {
		got, err := client.Report(t.Context(), ProxyReport{Address: fmt.Sprintf("stranger%d:1", i)})
		if err != nil || got.Member || got.Former {
			t.Errorf("a stranger: %+v, %v", got, err)
		}
	}
	if got := s.dirty("proxy1.example.com:443", 1); !got.Member {
		t.Errorf("a member: %+v", got)
	}
	s.dirty("proxy2.example.com:443", 1)
	s.members("proxy1.example.com:443")
	update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
	s.dirty("proxy1.example.com:443", 1)
	if n := len(s.db.reports.last[1]); n != 1 {
		t.Errorf("%d reports are kept, want 1", n)
	}
	for range 2 {
		if err := s.account.DeleteByForce(t.Context(), FindTable("proxy-groups"), "1"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.db.reports.last); n != 0 {
		t.Errorf("reports of %d groups are kept after the group is gone", n)
	}
}

// A group's token speaks for its own members only.
func TestAReportIsAboutTheOwnGroup(t *testing.T) {
	s := newSite(t)
	other := create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"proxy1.example.com:443"}}))
	if _, err := s.client(other.Token).Report(t.Context(), ProxyReport{Address: "proxy1.example.com:443", DiskOK: true}); err != nil {
		t.Fatal(err)
	}
	if got := get[ProxyGroup](s.bench, 1).Status[0]; got.State != StateSilent {
		t.Errorf("the other group's report is shown: %+v", got)
	}
}

func TestStatusSentBackIsIgnored(t *testing.T) {
	s := newSite(t)
	s.dirty("proxy1.example.com:443", 1)
	var shown map[string]any
	if err := s.account.Get(t.Context(), FindTable("proxy-groups"), &shown, "1"); err != nil {
		t.Fatal(err)
	}
	s.dirty("proxy1.example.com:443", 2) // meanwhile
	shown["writeThrough"] = true
	if err := s.account.Update(t.Context(), FindTable("proxy-groups"), shown, "1"); err != nil {
		t.Fatal(err)
	}
	g := get[ProxyGroup](s.bench, 1)
	if !g.WriteThrough || g.Status[0].DirtyBlocks != 2 {
		t.Errorf("%+v", g)
	}
	err := s.db.view(func(tx *tx) error {
		r, err := tx.load(FindTable("proxy-groups"), numKey(1))
		if err == nil && r.(*ProxyGroup).Status != nil {
			t.Error("the status is in the file")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReportsComeWhileTheGroupChanges(t *testing.T) {
	s := newSite(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 50 {
				s.dirty(fmt.Sprintf("proxy%d.example.com:443", 1+(w+i)%2), int64(i%2))
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			s.members(fmt.Sprintf("proxy%d.example.com:443", 1+i%2))
			get[ProxyGroup](s.bench, 1)
		}
	})
	wg.Wait()
}
