package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// members sets the addresses of the site's group.
func (s *site) members(list ...string) {
	s.t.Helper()
	update[ProxyGroup](s.bench, map[string]any{"addresses": append([]string{}, list...)}, s.group.ID)
}

// told is what mounts are told about the site's group: members and former
// members.
func (s *site) told() string {
	s.t.Helper()
	groups := fetch[MountSettings](s.bench, s.token.Token).Groups
	if len(groups) == 0 {
		return "no group"
	}
	return addressesOf(groups[0])
}

func addressesOf(g GroupSettings) string {
	list := func(members []Member) string {
		var names []string
		for _, m := range members {
			names = append(names, m.Address)
		}
		return strings.Join(names, " ")
	}
	return list(g.Members) + " | " + list(g.Former)
}

func (s *site) wantTold(want string) {
	s.t.Helper()
	if got := s.told(); got != want {
		s.t.Errorf("mounts are told of %q, want %q", got, want)
	}
}

// dirty reports that a proxy of the site's group has n blocks to upload.
func (s *site) dirty(addr string, n int64) ReportAnswer {
	s.t.Helper()
	answer, err := s.client(s.group.Token).Report(s.t.Context(), ProxyReport{Address: addr, DirtyBlocks: n, DirtyBytes: n << 22, DiskOK: true})
	if err != nil {
		s.t.Fatalf("report of %s: %v", addr, err)
	}
	return answer
}

func TestARemovedMemberIsRememberedWithItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.members("a:1", "b:1", "c:1")
		for i, addr := range []string{"a:1", "b:1", "c:1"} {
			if _, err := s.enrol(s.group.Token, addr, somePin(byte(i))); err != nil {
				t.Fatal(err)
			}
		}
		update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
		s.wantTold("a:1 b:1 c:1 | ")
		time.Sleep(time.Hour)

		s.members("a:1", "c:1")
		for _, g := range []GroupSettings{fetch[MountSettings](s.bench, s.token.Token).Groups[0], fetch[ProxySettings](s.bench, s.group.Token).Group} {
			if len(g.Former) != 1 || g.Former[0] != (Member{"b:1", somePin(1)}) || !g.ChangedAt.Equal(now()) {
				t.Errorf("former members %v, changed at %v; want b:1 with its key, now", g.Former, g.ChangedAt)
			}
		}
		if g := get[ProxyGroup](s.bench, 1); len(g.Former) != 1 || !g.Former[0].RemovedAt.Equal(now()) {
			t.Errorf("the group shows former members %+v", g.Former)
		}

		// It says again which key it has: that is no proxy that waits.
		if got, err := s.enrol(s.group.Token, "b:1", somePin(1)); err != nil || got.Member {
			t.Errorf("the removed proxy enrols: %+v, %v", got, err)
		}
		if g := get[ProxyGroup](s.bench, 1); len(g.Waiting) != 0 {
			t.Errorf("waiting: %v", g.Waiting)
		}

		// It is added again: its key is known, and it is no former member.
		s.members("b:1", "a:1", "c:1")
		s.wantTold("b:1 a:1 c:1 | ")
		if pin := s.pinOf("b:1"); pin != somePin(1) {
			t.Errorf("added again it has the pin %q", pin)
		}
	})
}

func TestOnlyAChangeOfMembersCountsAsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		changedAt := func() time.Time { return fetch[ProxySettings](s.bench, s.group.Token).Group.ChangedAt }
		if at := changedAt(); !at.IsZero() {
			t.Errorf("a new group was changed at %v", at)
		}
		for _, c := range []struct {
			what    string
			fields  map[string]any
			changes bool
		}{
			{"another field", map[string]any{"writeThrough": true}, false},
			{"the same", map[string]any{"addresses": []string{"proxy1.example.com:443", "PROXY2.example.com:0443"}}, false},
			{"another order", map[string]any{"addresses": []string{"proxy2.example.com:443", "proxy1.example.com:443"}}, false},
			{"an added one", map[string]any{"addresses": []string{"proxy2.example.com:443", "proxy1.example.com:443", "a:1"}}, true},
			{"a replaced one", map[string]any{"addresses": []string{"proxy2.example.com:443", "proxy1.example.com:443", "b:1"}}, true},
			{"a removed one", map[string]any{"addresses": []string{"proxy2.example.com:443", "proxy1.example.com:443"}}, true},
			{"none left", map[string]any{"addresses": []string{}}, true},
		} {
			time.Sleep(time.Minute)
			before := changedAt()
			update[ProxyGroup](s.bench, c.fields, 1)
			if at := changedAt(); at.Equal(before) == c.changes || c.changes && !at.Equal(now()) {
				t.Errorf("%s: changed at %v, before %v, now %v", c.what, at, before, now())
			}
		}
	})
}

func TestAGroupCanBeEmptiedAndNotMadeEmpty(t *testing.T) {
	s := newSite(t)
	s.members()
	s.wantTold(" | proxy1.example.com:443 proxy2.example.com:443")
	for _, fields := range []map[string]any{{"addresses": []string{}}, {}} {
		_, err := Create[ProxyGroup](t.Context(), s.account, at(fields))
		wantRefused(t, err, http.StatusBadRequest, "addresses")
	}
	s.members("proxy2.example.com:443")
	s.wantTold("proxy2.example.com:443 | proxy1.example.com:443")
}

func TestAFormerMemberIsForgottenAnHourAfterItDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.members("a:1", "b:1")
		update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
		s.dirty("b:1", 0)
		s.members("a:1")
		if got := s.dirty("b:1", 0); got.Member || !got.Former {
			t.Errorf("the removed proxy is told %+v", got)
		}
		time.Sleep(keepDrained + time.Minute) // it may not have known that it was removed
		s.wantTold("a:1 | b:1")

		s.dirty("b:1", 0)
		time.Sleep(keepDrained - time.Minute)
		s.dirty("b:1", 0) // the hour is that after the first report
		s.wantTold("a:1 | b:1")
		time.Sleep(time.Minute)
		s.wantTold("a:1 | ")
		if got := s.dirty("b:1", 0); got.Former {
			t.Error("a forgotten proxy is told that it is a former member")
		}
		if g := get[ProxyGroup](s.bench, 1); len(g.Former) != 0 || len(g.Status) != 1 {
			t.Errorf("shown: former %v, status of %d", g.Former, len(g.Status))
		}
	})
}

func TestAFormerMemberThatIsDirtyAgainStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.members("proxy1.example.com:443")
		time.Sleep(time.Minute)
		s.dirty("proxy2.example.com:443", 0)
		time.Sleep(keepDrained / 2)
		s.dirty("proxy2.example.com:443", 1)
		time.Sleep(keepDrained)
		s.wantTold("proxy1.example.com:443 | proxy2.example.com:443")
	})
}

func TestASilentFormerMemberIsForgottenAfterAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.members("proxy1.example.com:443")
		for range 3 * 24 { // for three days it has something left
			s.dirty("proxy2.example.com:443", 7)
			time.Sleep(time.Hour)
		}
		time.Sleep(keepSilent - time.Hour - time.Minute)
		s.wantTold("proxy1.example.com:443 | proxy2.example.com:443")
		time.Sleep(time.Minute)
		s.wantTold("proxy1.example.com:443 | ")
	})
}

func TestAFormerMembersTimesSurviveARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/admin.db"
		g := &ProxyGroup{Addresses: []string{"a:1", "b:1"}, ProviderCode: "aws", RegionCode: "us-east-1"}
		reopen(t, path, func(db *DB) {
			if _, _, err := db.Bootstrap(); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Create(FindTable("proxy-groups"), at(map[string]any{"addresses": g.Addresses}), 1); err != nil {
				t.Fatal(err)
			}
			if err := db.Update(FindTable("proxy-groups"), map[string]any{"addresses": []string{"a:1"}}, "1"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if err := db.noteDrain(1, ProxyReport{Address: "b:1"}, now()); err != nil {
				t.Fatal(err)
			}
		})
		time.Sleep(keepDrained - time.Second)
		for _, want := range []int{1, 0} {
			reopen(t, path, func(db *DB) {
				shown, err := db.Show(FindTable("proxy-groups"), "1")
				if err != nil || len(shown.(*ProxyGroup).Former) != want {
					t.Errorf("former members %+v, %v; want %d", shown, err, want)
				}
			})
			time.Sleep(time.Second)
		}
	})
}

// reopen opens a database for do.
func reopen(t *testing.T, path string, do func(*DB)) {
	t.Helper()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	do(db)
}

func TestFormerMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		var all []string
		for i := range maxFormer + 3 {
			all = append(all, fmt.Sprintf("p%d:1", i))
		}
		s.members(all...)
		update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
		s.members(all[maxFormer:]...)
		time.Sleep(time.Minute)
		s.dirty("p5:1", 0)
		s.members()
		former := get[ProxyGroup](s.bench, 1).Former
		if len(former) != maxFormer {
			t.Fatalf("%d are remembered, want %d", len(former), maxFormer)
		}
		for _, f := range former {
			if slices.Contains([]string{"p5:1", "p0:1", "p1:1"}, f.Address) {
				t.Errorf("%s is remembered: the drained one goes first, then the oldest", f.Address)
			}
		}
	})
}

func TestAReportWakesNobody(t *testing.T) {
	s := newSite(t)
	s.members("proxy1.example.com:443")
	tag := poll(s.bench, s.group.Token, "/v1/settings/proxy", "").Header().Get("ETag")
	changed := s.db.changes()
	s.dirty("proxy1.example.com:443", 3)
	s.dirty("proxy2.example.com:443", 3)
	select {
	case <-changed:
		t.Error("a report woke those who wait for settings")
	default:
	}
	if again := poll(s.bench, s.group.Token, "/v1/settings/proxy", "").Header().Get("ETag"); again != tag {
		t.Error("a report changed the tag of the settings")
	}
}

func TestAVolumeThatLeavesAGroupStillAsksIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		if err := Delete[VolumeProxyGroup](t.Context(), s.account, "my-volume", "1"); err != nil {
			t.Fatal(err)
		}
		s.wantTold(" | proxy1.example.com:443 proxy2.example.com:443")
		if got := fetch[ProxySettings](s.bench, s.group.Token); len(got.Volumes) != 1 || len(got.Group.Members) != 2 {
			t.Errorf("the proxies, which may have blocks to upload, are told of %+v", got)
		}
		if list, err := List[VolumeProxyGroup](t.Context(), s.account, nil); err != nil || len(list) != 0 {
			t.Errorf("listed: %+v, %v", list, err)
		}
		wantRefused(t, Delete[VolumeProxyGroup](t.Context(), s.account, "my-volume", "1"), http.StatusNotFound, "")

		time.Sleep(keepSilent)
		s.wantTold("no group")
		if got := fetch[ProxySettings](s.bench, s.group.Token); len(got.Volumes) != 0 {
			t.Errorf("a week later proxies are told of %+v", got.Volumes)
		}
		create[VolumeProxyGroup](s.bench, map[string]any{"volumeID": "my-volume", "proxyGroupID": 1})
		s.wantTold("proxy1.example.com:443 proxy2.example.com:443 | ")
	})
}

func TestAGroupInUseIsDeletedByForceOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		groups := FindTable("proxy-groups")
		create[Volume](s.bench, map[string]any{"name": "other", "metaStoreID": 1, "blockStoreID": 1})
		create[VolumeProxyGroup](s.bench, map[string]any{"volumeID": "other", "proxyGroupID": 1})
		wantRefused(t, Delete[ProxyGroup](t.Context(), s.account, "1"), http.StatusConflict, "", "volume my-volume", "volume other", "force")
		wantRefused(t, s.account.DeleteByForce(t.Context(), FindTable("regions"), "aws", "us-east-1"), http.StatusBadRequest, "force")

		if err := s.account.DeleteByForce(t.Context(), groups, "1"); err != nil {
			t.Fatal(err)
		}
		for _, table := range []string{"proxy-groups", "volume-proxy-groups"} {
			var list []any
			if err := s.account.List(t.Context(), FindTable(table), nil, &list); err != nil || len(list) != 0 {
				t.Errorf("%s: %v, %v", table, list, err)
			}
		}

		// Mounts give it no more blocks, and ask it for what only it has. Its
		// proxies can still report and upload.
		s.wantTold(" | proxy1.example.com:443 proxy2.example.com:443")
		if got := fetch[ProxySettings](s.bench, s.group.Token); len(got.Volumes) != 2 || len(got.Group.Members) != 0 || len(got.Group.Former) != 2 {
			t.Errorf("its proxies are told %+v", got)
		}
		time.Sleep(time.Minute)
		for i := range 2 {
			if got := s.dirty(fmt.Sprintf("proxy%d.example.com:443", i+1), 1-int64(i)); !got.Former {
				t.Errorf("its proxy %d is told %+v", i+1, got)
			}
		}
		shown := get[ProxyGroup](s.bench, 1)
		if shown.RemovedAt.IsZero() || len(shown.Status) != 2 || shown.Status[0].State != StateDraining || shown.Status[1].State != StateDrained {
			t.Errorf("shown: %+v", shown)
		}

		// It cannot be used any more.
		wantRefused(t, Update[ProxyGroup](t.Context(), s.account, map[string]any{"addresses": []string{"a:1"}}, "1"), http.StatusConflict, "", "deleted")
		_, err := Create[VolumeProxyGroup](t.Context(), s.account, map[string]any{"volumeID": "my-volume", "proxyGroupID": 1})
		wantRefused(t, err, http.StatusConflict, "", "deleted")
		wantRefused(t, Delete[ProxyGroup](t.Context(), s.account, "1"), http.StatusConflict, "", "force")

		// An hour after the last drained it is gone.
		s.dirty("proxy1.example.com:443", 0)
		time.Sleep(keepDrained)
		s.wantTold("no group")
		_, err = s.client(s.group.Token).Report(t.Context(), ProxyReport{Address: "proxy1.example.com:443"})
		wantRefused(t, err, http.StatusUnauthorized, "")
		if err := Delete[VolumeToken](t.Context(), s.account, "1"); err != nil { // any deletion clears away
			t.Fatal(err)
		}
		_, err = Get[ProxyGroup](t.Context(), s.account, "1")
		wantRefused(t, err, http.StatusNotFound, "")
	})
}

func TestADeletedGroupIsForgottenByForce(t *testing.T) {
	s := newSite(t)
	for range 2 {
		if err := s.account.DeleteByForce(t.Context(), FindTable("proxy-groups"), "1"); err != nil {
			t.Fatal(err)
		}
	}
	s.wantTold("no group")
	_, err := Get[ProxyGroup](t.Context(), s.account, "1")
	wantRefused(t, err, http.StatusNotFound, "")
	_, err = Fetch(t.Context(), s.client(s.group.Token), Fetched[ProxySettings]{}, 0)
	wantRefused(t, err, http.StatusUnauthorized, "")
}

func TestAGroupThatNoVolumeUsedIsGoneAtOnce(t *testing.T) {
	s := newSite(t)
	g := create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"p:9"}}))
	if err := Delete[ProxyGroup](t.Context(), s.account, fmt.Sprint(g.ID)); err != nil {
		t.Fatal(err)
	}
	_, err := Get[ProxyGroup](t.Context(), s.account, fmt.Sprint(g.ID))
	wantRefused(t, err, http.StatusNotFound, "")
}

// Whatever the order of updates, reports and enrolments, no member that was
// taken out is lost: it is a member or a former one.
func TestConcurrentUpdatesLoseNoFormerMember(t *testing.T) {
	s := newSite(t)
	var all []string
	for i := range 12 {
		all = append(all, fmt.Sprintf("p%d:1", i))
	}
	s.members(all...)
	update[ProxyGroup](s.bench, map[string]any{"forgetFormer": true}, 1)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { s.members(slices.Delete(slices.Clone(all), i, i+1)...) })
		wg.Go(func() { s.dirty(all[i], int64(i)) })
		wg.Go(func() { s.enrol(s.group.Token, all[i], somePin(byte(i))) })
	}
	wg.Wait()
	g := get[ProxyGroup](s.bench, 1)
	for _, addr := range all {
		if slices.Contains(g.Addresses, addr) == (g.former(addr) != nil) {
			t.Errorf("%s: members %v, former %v", addr, g.Addresses, g.Former)
		}
	}
}

// An update that fails leaves nobody removed.
func TestARefusedUpdateRemovesNobody(t *testing.T) {
	s := newSite(t)
	for _, fields := range []map[string]any{
		{"addresses": []string{"a:1", "a"}},
		{"addresses": []string{}, "token": s.meta.Token},
		{"addresses": []string{}, "former": []any{}, "providerCode": "local"},
	} {
		if err := Update[ProxyGroup](t.Context(), s.account, fields, "1"); err == nil {
			t.Errorf("%v was accepted", fields)
		}
	}
	s.wantTold("proxy1.example.com:443 proxy2.example.com:443 | ")
	if at := fetch[ProxySettings](s.bench, s.group.Token).Group.ChangedAt; !at.IsZero() {
		t.Errorf("changed at %v", at)
	}
}
