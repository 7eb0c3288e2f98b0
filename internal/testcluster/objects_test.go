package testcluster

import (
	"context"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
	"flexfs/store/mem"
)

// The account of objects finds what is missing, and removes and counts what dead
// sessions left.
func TestTheAccountOfObjects(t *testing.T) {
	const id = "6f1d6a52-0000-4000-8000-000000000001"
	e, err := engine.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	volume, err := store.ParseVolume(id)
	if err != nil {
		t.Fatal(err)
	}
	bucket := mem.New(t)
	srv, err := tree.New(tree.Config{
		Engine:    e,
		Authorize: func(string) (tree.Grant, error) { return tree.Grant{Volume: id, Write: true}, nil },
		Volumes:   func(string) (tree.VolumeConfig, error) { return tree.VolumeConfig{BlockSize: 1 << 20}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	local := meta.Direct(srv, slog.New(slog.DiscardHandler))
	defer local.Close()
	client := meta.NewClient(meta.ClientConfig{Dial: local.Dial, Token: func() string { return "" }, Volume: id})
	if err := client.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	do := func(req *meta.Request) meta.Ino {
		t.Helper()
		reply, err := client.Do(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return reply.Attr.Ino
	}
	ino := do(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: syscall.S_IFREG | 0o600})
	put := func(seq uint64) meta.Block {
		k := meta.Block{Index: uint32(seq), Gen: meta.Gen{Session: client.Session(), Seq: seq}, Len: 10, Whole: true}
		key := store.Key{Volume: volume, Ino: uint64(ino), Index: k.Index, Gen: store.Gen(k.Gen)}
		if err := bucket.Put(t.Context(), key, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	do(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 10 << 20, Blocks: []meta.Block{put(1), put(2)}})
	put(3) // which is never committed
	o := &objects{volume: volume, bucket: bucket, engine: e}
	account := func(want string) {
		t.Helper()
		if report, err := o.account(context.Background()); err != nil || !strings.Contains(report, want) {
			t.Errorf("%s, %v; want %s", report, err, want)
		}
	}
	account("0 that something names, 3 of sessions that may come back, 0 of dead ones")
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	account("2 that something names, 0 of sessions that may come back, 1 of dead ones")
	account("has 2 objects")
	if err := bucket.Delete(t.Context(), bucket.Keys()[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := o.account(context.Background()); err == nil || !strings.Contains(err.Error(), "which a file names, is not in the bucket") {
		t.Errorf("with a block that is gone: %v", err)
	}
}
