package testcluster

import (
	"context"
	"os"
	"strings"
	"testing"

	"flexfs/admin"
	"flexfs/internal/s3test"
	"flexfs/modes"
)

// s3Store describes a new bucket of the server.
func s3Store(s *s3test.Server) *admin.BlockStore {
	return &admin.BlockStore{APICode: "s3", Bucket: s.Bucket(), Prefix: "some/where", Username: s.AccessKey, Password: s.SecretKey, Address: s.Endpoint()}
}

func TestBlocksAreInABucket(t *testing.T) {
	server := s3test.Start(t)
	c := Start(t, Options{BlockStore: s3Store(server), Groups: 1})
	a, b := c.Mount(nil), c.Mount(nil)
	large := contents(8, 9<<20)
	write(t, a.Path("large"), large)
	wantFile(t, b.Path("large"), large)

	// Without the bucket the proxies' copies go on being read.
	fresh := c.Mount(nil)
	server.Stop()
	wantFile(t, fresh.Path("large"), large)
	server.Restart()
	write(t, fresh.Path("after"), large)
	wantFile(t, a.Path("after"), large)
	if err := os.Remove(a.Path("large")); err != nil {
		t.Error(err)
	}
}

func TestWhatIsWrongWithABucketIsSaid(t *testing.T) {
	server := s3test.Start(t)
	c := Start(t, Options{Groups: -1})
	for name, test := range map[string]struct {
		change func(*admin.BlockStore)
		want   string
	}{
		"no such bucket": {func(b *admin.BlockStore) { b.Bucket = "nowhere" }, "the bucket nowhere does not exist"},
		"wrong key":      {func(b *admin.BlockStore) { b.Username = "wrong" }, "access key"},
		"wrong secret":   {func(b *admin.BlockStore) { b.Password = "wrong-secret-that-nobody-should-see" }, "secret"},
		"no server":      {func(b *admin.BlockStore) { b.Address = "http://127.0.0.1:1" }, "127.0.0.1:1"},
		"no folder":      {func(b *admin.BlockStore) { *b = admin.BlockStore{APICode: "dir", Bucket: "/nonexistent"} }, "/nonexistent does not exist on this machine"},
	} {
		b := s3Store(server)
		test.change(b)
		made, err := admin.Create[admin.BlockStore](c.ctx(), c.Client, map[string]any{
			"providerCode": "local", "regionCode": "local", "apiCode": b.APICode, "bucket": b.Bucket, "prefix": b.Prefix,
			"username": b.Username, "password": b.Password, "address": b.Address,
		})
		if err != nil {
			t.Fatal(err)
		}
		volume := strings.ReplaceAll(name, " ", "-")
		if _, err := admin.Create[admin.Volume](c.ctx(), c.Client, map[string]any{"name": volume, "blockStoreID": made.ID, "metaStoreID": c.metaID}); err != nil {
			t.Fatal(err)
		}
		token, err := admin.Create[admin.VolumeToken](c.ctx(), c.Client, map[string]any{"volumeID": volume})
		if err != nil {
			t.Fatal(err)
		}
		m := &modes.Mount{Admin: c.access, Volume: volume, Dir: t.TempDir(), MemCapacity: 64 << 20, Log: c.log("mount")}
		m.Admin.Token = token.Token
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = m.Listen(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: the mount says %v; want something with %q", name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), b.Password) && b.Password != "" {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}
