package admin

import (
	"context"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

// A bench is an admin server with a first account.
type bench struct {
	t       *testing.T
	db      *DB
	url     string
	account *Client
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "admin.db"))
	if err != nil {
		t.Fatal(err)
	}
	account, made, err := db.Bootstrap()
	if err != nil || !made {
		t.Fatalf("Bootstrap: made %v, %v", made, err)
	}
	srv := httptest.NewServer(NewHandler(db, Options{}))
	t.Cleanup(func() {
		db.Close()
		srv.Close()
	})
	return &bench{t, db, srv.URL, &Client{URL: srv.URL, Token: account.Token}}
}

// make creates an object that the test needs.
func make_[T Object](b *bench, fields map[string]any) T {
	b.t.Helper()
	v, err := Create[T](b.t.Context(), b.account, fields)
	if err != nil {
		b.t.Fatalf("create %s: %v", TableOf[T]().Singular, err)
	}
	return v
}

func TestSmoke(t *testing.T) {
	b := newBench(t)
	place := func(m map[string]any) map[string]any {
		m["providerCode"], m["regionCode"] = "aws", "us-east-1"
		return m
	}
	bs := make_[BlockStore](b, place(map[string]any{"bucket": "my-bucket", "username": "u", "password": "p"}))
	ms := make_[MetaStore](b, place(map[string]any{"address": "meta:9000"}))
	pg := make_[ProxyGroup](b, place(map[string]any{"addresses": []string{"p1:443", "P2:443"}}))
	v := make_[Volume](b, map[string]any{"name": "my-volume", "metaStoreID": ms.ID, "blockStoreID": bs.ID})
	make_[VolumeProxyGroup](b, map[string]any{"volumeID": "my-volume", "proxyGroupID": pg.ID})
	vt := make_[VolumeToken](b, map[string]any{"volumeID": "my-volume"})
	t.Logf("%+v", v)
	s, err := Fetch(context.Background(), &Client{URL: b.url, Token: vt.Token}, Fetched[MountSettings]{}, 0)
	t.Logf("%+v %v", s, err)
	t.Log(Delete[ProxyGroup](context.Background(), b.account, "1"))
	t.Log(Update[ProxyGroup](context.Background(), b.account, map[string]any{"addresses": []string{"a:1", "a:01"}}, "1"))
}
