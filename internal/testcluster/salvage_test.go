package testcluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"flexfs/admin"
	"flexfs/store"
)

// A proxy whose group was deleted, and forgotten by admin, still has the only
// copies of blocks: it uploads them when it is started, and then gives up.
func TestARefusedProxyUploadsWhatItHas(t *testing.T) {
	b := newBucket(t)
	c := Start(t, Options{Groups: 1, BlockStore: b.settings, Drain: 100 * time.Millisecond})
	m := c.Mount(nil)
	c.Await("the group is in use", func() error { return chosen(m) })
	b.is(time.Hour)
	data := contents(30, 9<<20)
	write(t, m.Path("a"), data)
	proxies := c.Groups[0].Proxies
	for _, p := range proxies {
		p.Stop()
	}
	if n := len(b.keys()); n > 0 {
		t.Fatalf("%d blocks are in the bucket, which answers nothing", n)
	}
	id := fmt.Sprint(c.Groups[0].ID)
	for range 2 { // the second time it is forgotten at once
		c.must(c.Client.DeleteByForce(t.Context(), admin.FindTable("proxy-groups"), id))
	}
	b.is(0)
	for _, p := range proxies {
		mode := p.mode(p.Addr)
		c.must(mode.Listen())
		mode.Address, mode.Admin = p.Addr, c.access
		mode.Admin.Token = p.group.Token
		within, cancel := context.WithTimeout(t.Context(), patience)
		err := mode.Serve(within)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "in the bucket now") {
			t.Errorf("the proxy that admin refuses ended with %v", err)
		}
	}
	blocks := map[uint32]bool{}
	for key := range b.keys() {
		blocks[key.Index] = true
	}
	if want := (9<<20 + store.MaxBlock/2 - 1) / (store.MaxBlock / 2); len(blocks) != want {
		t.Errorf("%d blocks of the file are in the bucket, want %d", len(blocks), want)
	}
	wantFile(t, c.Mount(nil).Path("a"), data)
}
