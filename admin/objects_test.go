package admin

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWrongValuesAreRefused(t *testing.T) {
	s := newSite(t)
	long := strings.Repeat("x", maxText+1)
	for _, c := range []struct {
		table string
		with  map[string]any // other than the sample
		field string
		words string
	}{
		{"accounts", map[string]any{"name": " "}, "name", "empty"},
		{"accounts", map[string]any{"name": "a\x1b[1m"}, "name", "control"},
		{"accounts", map[string]any{"email": long}, "email", "more than 255"},
		{"accounts", map[string]any{"token": "secret"}, "token", "UUID"},
		{"providers", map[string]any{"code": "A B"}, "code", `"A B" is not a code`},
		{"providers", map[string]any{"code": ""}, "code", "is not a code"},
		{"regions", map[string]any{"code": "x/y"}, "code", "is not a code"},
		{"regions", map[string]any{"providerCode": "nowhere"}, "providerCode", "provider nowhere does not exist"},
		{"block-stores", map[string]any{"providerCode": "nowhere"}, "providerCode", "provider nowhere does not exist"},
		{"block-stores", map[string]any{"regionCode": "mars"}, "regionCode", "region aws/mars does not exist"},
		{"block-stores", map[string]any{"regionCode": ""}, "regionCode", "is missing"},
		{"block-stores", map[string]any{"apiCode": "ftp"}, "apiCode", "s3, dir"},
		{"block-stores", map[string]any{"bucket": "Bucket"}, "bucket", "bucket name"},
		{"block-stores", map[string]any{"prefix": "/a"}, "prefix", "slashes"},
		{"block-stores", map[string]any{"username": "u"}, "password", "missing"},
		{"block-stores", map[string]any{"password": "p"}, "username", "missing"},
		{"block-stores", map[string]any{"address": "s3.example.com"}, "address", "https://"},
		{"block-stores", map[string]any{"apiCode": "dir", "bucket": "folder"}, "bucket", "absolute path"},
		{"block-stores", map[string]any{"apiCode": "dir", "bucket": "/folder", "username": "u", "password": "p"}, "apiCode", "no username"},
		{"meta-stores", map[string]any{"address": "meta"}, "address", "no port"},
		{"meta-stores", map[string]any{"regionCode": "mars"}, "regionCode", "does not exist"},
		{"proxy-groups", map[string]any{"addresses": []string{}}, "addresses", "at least one"},
		{"proxy-groups", map[string]any{"addresses": []string{"p:443", "p:70000"}}, "addresses", "70000"},
		{"proxy-groups", map[string]any{"addresses": []string{"p:443", "P:0443"}}, "addresses", "p:443 is there twice"},
		{"proxy-groups", map[string]any{"addresses": slices.Repeat([]string{"p:1"}, maxMembers+1)}, "addresses", "more than 1024"},
		{"proxy-groups", map[string]any{"addresses": "p:1,p:2"}, "addresses", "list of texts"},
		{"proxy-groups", map[string]any{"providerCode": "nowhere"}, "providerCode", "does not exist"},
		{"proxy-groups", map[string]any{"pins": map[string]string{"p:1": somePin(1)}}, "pins", "set by admin"},
		{"volumes", map[string]any{"name": "a b"}, "name", "volume name"},
		{"volumes", map[string]any{"name": newUUID()}, "name", "looks like an id"},
		{"volumes", map[string]any{"metaStoreID": 9}, "metaStoreID", "meta-store 9 does not exist"},
		{"volumes", map[string]any{"blockStoreID": 9}, "blockStoreID", "block-store 9 does not exist"},
		{"volumes", map[string]any{"blockStoreID": 0}, "blockStoreID", "missing"},
		{"volumes", map[string]any{"accountID": 9}, "accountID", "account 9 does not exist"},
		{"volumes", map[string]any{"blockSize": 3 << 20}, "blockSize", "256KiB"},
		{"volumes", map[string]any{"blockSize": "4MiB"}, "blockSize", "number of bytes"},
		{"volumes", map[string]any{"inlineMax": 1 << 20}, "inlineMax", "65536"},
		{"volumes", map[string]any{"inlineMax": -1}, "inlineMax", "0 to"},
		{"volumes", map[string]any{"compression": "gzip"}, "compression", "lz4, zstd, none"},
		{"volumes", map[string]any{"retention": -2}, "retention", "-1"},
		{"volumes", map[string]any{"retention": int64(math.MaxInt64)}, "retention", "-1"},
		{"volumes", map[string]any{"retention": "7d"}, "retention", "number of seconds"},
		{"volumes", map[string]any{"maxBlocks": -1}, "maxBlocks", "0 to"},
		{"volumes", map[string]any{"maxInodes": -1}, "maxInodes", "0 to"},
		{"volumes", map[string]any{"maxProxied": -1}, "maxProxied", "0 to"},
		{"volumes", map[string]any{"maxProxied": 1e30}, "maxProxied", "whole number"},
		{"volumes", map[string]any{"flags": "rw"}, "flags", "noExec"},
		{"volumes", map[string]any{"notes": long}, "notes", "more than 4096"},
		{"volumes", map[string]any{"id": newUUID()}, "id", "set by admin"},
		{"volumes", map[string]any{"retiredAt": "2026-01-01T00:00:00Z"}, "retiredAt", "set by admin"},
		{"volume-proxy-groups", map[string]any{"volumeID": "no-volume"}, "volumeID", `volume "no-volume" does not exist`},
		{"volume-proxy-groups", map[string]any{"volumeID": newUUID()}, "volumeID", "does not exist"},
		{"volume-proxy-groups", map[string]any{"proxyGroupID": 77}, "proxyGroupID", "proxy-group 77 does not exist"},
		{"volume-proxy-groups", map[string]any{"proxyGroupID": "1"}, "proxyGroupID", "whole number"},
		{"volume-tokens", map[string]any{"volumeID": "no-volume"}, "volumeID", "does not exist"},
		{"volume-tokens", map[string]any{"mountPath": "data"}, "mountPath", "absolute path"},
		{"volume-tokens", map[string]any{"flags": "x"}, "flags", "is none of"},
	} {
		fields := maps.Clone(samples[c.table].make)
		maps.Copy(fields, c.with)
		err := s.account.Create(t.Context(), FindTable(c.table), fields, new(any))
		if err == nil {
			t.Errorf("%s with %v was accepted", c.table, c.with)
			continue
		}
		wantRefused(t, err, http.StatusBadRequest, c.field, c.words)
	}
}

func TestWhatExistsIsNotMadeAgain(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		table  string
		fields map[string]any
		field  string
	}{
		{"providers", map[string]any{"code": "aws"}, ""},
		{"regions", map[string]any{"providerCode": "aws", "code": "us-east-1"}, ""},
		{"volumes", map[string]any{"name": "my-volume", "metaStoreID": 1, "blockStoreID": 1}, "name"},
		{"volume-proxy-groups", map[string]any{"volumeID": "my-volume", "proxyGroupID": 1}, ""},
		{"volume-proxy-groups", map[string]any{"volumeID": s.volume.ID, "proxyGroupID": 1}, ""},
		{"volume-tokens", map[string]any{"volumeID": "my-volume", "token": s.account.Token}, "token"},
		{"accounts", map[string]any{"name": "x", "token": s.token.Token}, "token"},
	} {
		err := s.account.Create(t.Context(), FindTable(c.table), c.fields, new(any))
		wantRefused(t, err, http.StatusConflict, c.field)
	}
	create[Volume](s.bench, map[string]any{"name": "second", "metaStoreID": 1, "blockStoreID": 1})
	err := Update[Volume](t.Context(), s.account, map[string]any{"name": "my-volume"}, "second")
	wantRefused(t, err, http.StatusConflict, "name", "exists already")
	update[Volume](s.bench, map[string]any{"name": "my-volume"}, "my-volume") // its own
}

func TestWhatDoesNotExistIsNotFound(t *testing.T) {
	s := newSite(t)
	for _, table := range Tables {
		for _, id := range []string{"999", "-1", "0", "x", newUUID(), "%00", "9999999999999999999999", "my volume"} {
			parts := slices.Repeat([]string{id}, len(table.Key))
			wantRefused(t, s.account.Get(t.Context(), table, new(any), parts...), http.StatusNotFound, "", "does not exist")
			wantRefused(t, s.account.Update(t.Context(), table, map[string]any{}, parts...), http.StatusNotFound, "", "does not exist")
			wantRefused(t, s.account.Delete(t.Context(), table, parts...), http.StatusNotFound, "", "does not exist")
		}
	}
	wantRefused(t, s.account.Get(t.Context(), FindTable("volumes"), new(any), ".."), http.StatusNotFound, "")
	wantRefused(t, s.account.Get(t.Context(), FindTable("regions"), new(any), "aws"), http.StatusNotFound, "", "providerCode and code")
}

func TestWhatIsInUseIsNotDeleted(t *testing.T) {
	s := newSite(t)
	remove := func(table string, id ...string) error {
		return s.account.Delete(t.Context(), FindTable(table), id...)
	}
	for _, c := range []struct {
		table, id, user string
	}{
		{"providers", "aws", "region aws/us-east-1"},
		{"regions", "aws/us-east-1", "block store 1 (genomes)"},
		{"regions", "aws/us-east-1", "meta store 1 (meta.example.com:9000)"},
		{"regions", "aws/us-east-1", "proxy group 1"},
		{"block-stores", "1", "volume my-volume"},
		{"meta-stores", "1", "volume my-volume"},
		{"accounts", "1", "volume my-volume"},
		{"proxy-groups", "1", "volume my-volume"},
	} {
		err := remove(c.table, strings.Split(c.id, "/")...)
		wantRefused(t, err, http.StatusConflict, "", c.user, "in use", "first")
		if refused, ok := err.(*Error); ok && !slices.Contains(refused.UsedBy, c.user) {
			t.Errorf("delete %s %s: usedBy is %q, without %q", c.table, c.id, refused.UsedBy, c.user)
		}
	}

	for _, step := range []string{"volume-proxy-groups my-volume/1", "proxy-groups 1", "volume-tokens 1", "volumes my-volume"} {
		table, id, _ := strings.Cut(step, " ")
		if err := remove(table, strings.Split(id, "/")...); err != nil {
			t.Errorf("delete %s: %v", step, err)
		}
	}
	wantRefused(t, remove("block-stores", "1"), http.StatusConflict, "", "retired volumes", s.volume.ID)
}

func TestTheLastAccountStays(t *testing.T) {
	b := newBench(t)
	wantRefused(t, Delete[Account](t.Context(), b.account, "1"), http.StatusConflict, "", "the only one")
	second := create[Account](b, map[string]any{"name": "second"})
	if err := Delete[Account](t.Context(), b.account, "1"); err != nil {
		t.Fatal(err)
	}
	_, err := List[Account](t.Context(), b.account, nil)
	wantRefused(t, err, http.StatusUnauthorized, "", "not known")
	if list, err := List[Account](t.Context(), b.client(second.Token), nil); err != nil || len(list) != 1 {
		t.Errorf("accounts after the first was deleted: %v, %v", list, err)
	}
}

func TestManyUsersAreCutShort(t *testing.T) {
	s := newSite(t)
	for i := range 30 {
		create[Volume](s.bench, map[string]any{"name": fmt.Sprint("v", i), "metaStoreID": 1, "blockStoreID": 1})
	}
	err := Delete[BlockStore](t.Context(), s.account, "1")
	wantRefused(t, err, http.StatusConflict, "", "and 11 more")
	if refused, ok := err.(*Error); ok && len(refused.UsedBy) != maxUsers {
		t.Errorf("%d users named", len(refused.UsedBy))
	}
}

func TestADeletedVolumeIsRetired(t *testing.T) {
	s := newSite(t)
	if err := Delete[Volume](t.Context(), s.account, "my-volume"); err != nil {
		t.Fatal(err)
	}
	v := get[Volume](s.bench, s.volume.ID)
	if v.RetiredAt == nil || time.Since(*v.RetiredAt) > time.Minute {
		t.Errorf("retiredAt is %v", v.RetiredAt)
	}
	_, err := Get[Volume](t.Context(), s.account, "my-volume")
	wantRefused(t, err, http.StatusNotFound, "")
	if list, err := List[Volume](t.Context(), s.account, nil); err != nil || len(list) != 0 {
		t.Errorf("volumes: %v, %v; want none", list, err)
	}
	if list, err := List[Volume](t.Context(), s.account, map[string][]string{"retired": {"true"}}); err != nil || len(list) != 1 {
		t.Errorf("volumes with the retired: %v, %v; want one", list, err)
	}
	wantRefused(t, Delete[Volume](t.Context(), s.account, v.ID), http.StatusConflict, "", "already")
	wantRefused(t, Update[Volume](t.Context(), s.account, map[string]any{"notes": "x"}, v.ID), http.StatusConflict, "", "deleted")
	_, err = Create[VolumeToken](t.Context(), s.account, map[string]any{"volumeID": v.ID})
	wantRefused(t, err, http.StatusConflict, "", "deleted")
	_, err = Create[VolumeProxyGroup](t.Context(), s.account, map[string]any{"volumeID": v.ID, "proxyGroupID": 1})
	wantRefused(t, err, http.StatusConflict, "", "deleted")

	next := create[Volume](s.bench, map[string]any{"name": "my-volume", "metaStoreID": 1, "blockStoreID": 1})
	if got := get[Volume](s.bench, "my-volume"); got.ID != next.ID {
		t.Errorf("the name leads to %s, want the new volume %s", got.ID, next.ID)
	}
}

func TestVolumesAreNamedByNameOrId(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"my-volume", s.volume.ID} {
		if v := get[Volume](s.bench, name); v.ID != s.volume.ID {
			t.Errorf("volume %s is %s", name, v.ID)
		}
		if vg := get[VolumeProxyGroup](s.bench, name, 1); vg.VolumeID != s.volume.ID {
			t.Errorf("volume proxy group %s/1 is of %s", name, vg.VolumeID)
		}
		found, err := List[VolumeToken](t.Context(), s.account, map[string][]string{"volumeID": {name}})
		if err != nil || len(found) != 1 {
			t.Errorf("tokens of volume %s: %v, %v", name, found, err)
		}
	}
	_, err := List[VolumeToken](t.Context(), s.account, map[string][]string{"volumeID": {"no-volume"}})
	wantRefused(t, err, http.StatusNotFound, "", "no-volume")
	_, err = List[Volume](t.Context(), s.account, map[string][]string{"retired": {"perhaps"}})
	wantRefused(t, err, http.StatusBadRequest, "retired")
}

func TestVolumesBelongToTheAccountThatMadeThem(t *testing.T) {
	s := newSite(t)
	second := create[Account](s.bench, map[string]any{"name": "second"})
	v, err := Create[Volume](t.Context(), s.client(second.Token), map[string]any{"name": "theirs", "metaStoreID": 1, "blockStoreID": 1})
	if err != nil || v.AccountID != second.ID {
		t.Errorf("accountID is %d, %v; want %d", v.AccountID, err, second.ID)
	}
}

func TestSecretsAreShownOnlyWhereTheyMay(t *testing.T) {
	s := newSite(t)
	secrets := []string{"bucket-secret", s.account.Token, s.token.Token, s.group.Token, s.meta.Token}
	shows := func(what, text string, may ...string) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(text, secret) != slices.Contains(may, secret) {
				t.Errorf("%s: has secret %q: %v", what, secret, strings.Contains(text, secret))
			}
		}
	}
	for _, table := range Tables {
		_, text := s.send(s.account.Token, "GET", table.path(), "")
		shows("list "+table.Name, text)
		_, text = s.send(s.account.Token, "GET", table.path()+"?token="+s.token.Token+"&password=bucket-secret", "")
		shows("filter "+table.Name, text)
	}
	one := func(path string) string {
		_, text := s.send(s.account.Token, "GET", "/v1/configure/"+path, "")
		return text
	}
	shows("show account", one("accounts/1"), s.account.Token)
	shows("show volume token", one("volume-tokens/1"), s.token.Token)
	shows("show proxy group", one("proxy-groups/1"), s.group.Token)
	shows("show meta store", one("meta-stores/1"), s.meta.Token)
	shows("show block store", one("block-stores/1"))

	// What is refused does not repeat them either.
	for _, request := range []string{
		`POST accounts {"name":"x","token":"` + s.token.Token + `"}`,
		`POST accounts {"name":"x","token":"` + s.token.Token + `x"}`,
		`POST accounts {"name":"x","token":["` + s.token.Token + `"]}`,
		`PUT block-stores/1 {"password":["bucket-secret"]}`,
		`PUT block-stores/1 {"password":"bucket-secret","username":""}`,
		`PUT block-stores/1 {"password":"bucket-secret\u0000"}`,
		`PUT block-stores/1 {"address":"https://u:bucket-secret@host"}`,
		`PUT block-stores/1 {"address":"https://u:bucket-secret@host:x"}`,
		`PUT block-stores/1 {"password":"bucket-secret","bucket":"other"}`,
		`PUT block-stores/1 "bucket-secret"`,
	} {
		f := strings.SplitN(request, " ", 3)
		status, text := s.send(s.account.Token, f[0], "/v1/configure/"+f[1], f[2])
		if status < 400 {
			t.Errorf("%s was accepted", request)
		}
		shows(request, text)
	}

	// Nor does anything that a proxy or a mount says or is refused.
	for _, request := range []string{
		"POST /v1/proxies/report " + `{"address":"proxy1.example.com:443","diskOK":true}`,
		"POST /v1/proxies/report " + `{"address":"x"}`,
		"POST /v1/enrol " + `{"address":"proxy1.example.com:443","pin":"` + somePin(1) + `"}`,
		"POST /v1/enrol " + `{"address":"proxy1.example.com:443","pin":"` + somePin(2) + `"}`,
	} {
		f := strings.SplitN(request, " ", 3)
		_, text := s.send(s.group.Token, f[0], f[1], f[2])
		shows(request, text)
	}
	s.members("proxy1.example.com:443")
	shows("show proxy group with a former member", one("proxy-groups/1"), s.group.Token)
	shows("list ticket keys", one("ticket-keys"))
	_, text := s.send("", "GET", "/v1/openapi.json", "")
	shows("the document", text)
	for _, path := range []string{"proxy", "meta", "mount"} {
		_, text := s.send(s.account.Token, "GET", "/v1/settings/"+path, "")
		shows("settings with the wrong token", text)
	}
	for _, token := range secrets {
		_, text := s.send(token+"x", "GET", "/v1/configure/accounts", "")
		shows("unknown token", text)
	}
	shows("the log", s.log.String())
	if s.log.count("object created") < 5 {
		t.Errorf("changes are not in the log: %s", s.log)
	}
}

func TestTokensRotate(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		table string
		old   string
		path  string
	}{
		{"volume-tokens", s.token.Token, "/v1/settings/mount"},
		{"proxy-groups", s.group.Token, "/v1/settings/proxy"},
		{"meta-stores", s.meta.Token, "/v1/settings/meta"},
	} {
		given := newUUID()
		old := c.old
		for _, change := range []map[string]any{{"rotateToken": true}, {"token": given}} {
			if err := s.account.Update(t.Context(), FindTable(c.table), change, "1"); err != nil {
				t.Fatal(err)
			}
			var shown struct{ Token string }
			if err := s.account.Get(t.Context(), FindTable(c.table), &shown, "1"); err != nil {
				t.Fatal(err)
			}
			if shown.Token == old || !isUUID(shown.Token) {
				t.Errorf("%s: token after %v is %q", c.table, change, shown.Token)
			}
			if status, _ := s.send(old, "GET", c.path, ""); status != http.StatusUnauthorized {
				t.Errorf("%s: the old token gets status %d", c.table, status)
			}
			if status, _ := s.send(shown.Token, "GET", c.path, ""); status != http.StatusOK {
				t.Errorf("%s: the new token gets status %d", c.table, status)
			}
			old = shown.Token
		}
		if old != given {
			t.Errorf("%s: token is %q, want the given one", c.table, old)
		}
		if err := s.account.Update(t.Context(), FindTable(c.table), map[string]any{"rotateToken": false}, "1"); err != nil {
			t.Error(err)
		}
		if status, _ := s.send(old, "GET", c.path, ""); status != http.StatusOK {
			t.Errorf("%s: rotateToken false rotated", c.table)
		}
		wantRefused(t, s.account.Update(t.Context(), FindTable(c.table), map[string]any{"token": ""}, "1"), http.StatusBadRequest, "token")
	}
}

func TestEachTypeHasItsTable(t *testing.T) {
	for name, table := range map[string]*Table{
		"accounts": TableOf[Account](), "providers": TableOf[Provider](), "regions": TableOf[Region](),
		"block-stores": TableOf[BlockStore](), "meta-stores": TableOf[MetaStore](), "proxy-groups": TableOf[ProxyGroup](),
		"volumes": TableOf[Volume](), "volume-proxy-groups": TableOf[VolumeProxyGroup](), "volume-tokens": TableOf[VolumeToken](),
	} {
		if table == nil || table.Name != name || FindTable(name) != table || FindTable(table.Singular) != table {
			t.Errorf("the table of %s is %+v", name, table)
		}
	}
	if FindTable("planets") != nil {
		t.Error("there is a table of planets")
	}
}

func TestObjectsReferToEarlierTables(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range Tables {
		for _, ref := range table.record().refs() {
			if !seen[ref.table] || table.Field(ref.field) == nil {
				t.Errorf("%s refers by %s to %s, which is not before it", table.Name, ref.field, ref.table)
			}
		}
		seen[table.Name] = true
	}
}

func TestAnInternalFailureIsNotExplainedToStrangers(t *testing.T) {
	s := newSite(t)
	err := s.db.update(func(tx *tx) error {
		return tx.bucket(FindTable("providers")).Put([]byte("aws"), []byte("no JSON"))
	})
	if err != nil {
		t.Fatal(err)
	}
	status, text := s.send(s.account.Token, "GET", "/v1/configure/providers", "")
	if status != http.StatusInternalServerError || strings.Contains(text, "JSON") || !strings.Contains(text, "log") {
		t.Errorf("got %d %s", status, text)
	}
	if s.log.count("provider cannot be read") != 1 {
		t.Errorf("the log does not say why: %s", s.log)
	}
	err = s.db.update(func(tx *tx) error {
		return tx.put(FindTable("providers"), &Provider{Code: "aws"})
	})
	if err != nil {
		t.Fatal(err)
	}
}
