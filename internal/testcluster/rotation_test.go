package testcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"flexfs/admin"
	"flexfs/internal/tlspin"
	"flexfs/modes"
)

// certified stops the proxy and starts it with its certificate in files of the
// operator's.
func (p *Proxy) certified(t *testing.T) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(p.dir, "own.crt"), filepath.Join(p.dir, "own.key")
	for from, to := range map[string]string{"cert": cert, "key": key} {
		text, err := os.ReadFile(filepath.Join(p.dir, "ssl", from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.Stop()
	mode := p.mode(p.Addr)
	mode.SSLCert, mode.SSLKey = cert, key
	p.c.must(mode.Listen())
	p.serve(mode)
	return cert, key
}

// replace puts a new key and its certificate in the place of others, one file
// after the other, and returns the new pin.
func replace(t *testing.T, cert, key string) (pin string) {
	t.Helper()
	dir := t.TempDir()
	fresh, err := tlspin.Certificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"key": key, "cert": cert} {
		if err := os.Rename(filepath.Join(dir, from), to); err != nil {
			t.Fatal(err)
		}
	}
	return fresh.Pin()
}

// All proxies of the group get new keys while a mount reads and writes. Nobody
// trusts them until the operator says so, and no call fails, before or after.
func TestKeysOfProxiesAreReplacedUnderAMount(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	g := c.Groups[0]
	files := map[*Proxy][2]string{}
	for _, p := range g.Proxies {
		cert, key := p.certified(t)
		files[p] = [2]string{cert, key}
	}
	writer, reader := c.Mount(nil), c.Mount(func(m *modes.Mount) { m.MemCapacity = 16 << 20 })
	c.await("the reader uses the group", func() error { return chosen(reader) })

	ctx, stop := context.WithCancel(t.Context())
	busy := make(chan struct{})
	var rounds atomic.Int64
	go func() { // each round is a new file, of a block that no mount has yet
		defer close(busy)
		for ; ctx.Err() == nil; rounds.Add(1) {
			n := rounds.Load()
			name, data := fmt.Sprint("file", n), contents(uint64(n), 1<<20)
			if err := os.WriteFile(writer.Path(name), data, 0o644); err != nil {
				t.Errorf("write %s: %v", name, err)
				return
			}
			wantFile(t, reader.Path(name), data)
		}
	}()
	defer func() { stop(); <-busy }()
	another := func() { // round, that has begun later than this
		n := rounds.Load()
		c.await("the mounts go on", func() error {
			if rounds.Load() < n+2 {
				return errors.New("they do not")
			}
			return nil
		})
	}
	another()

	pins := map[string]string{}
	for p, f := range files {
		pins[p.Addr] = replace(t, f[0], f[1])
		got, err := tlspin.Fetch(t.Context(), p.Addr)
		if err != nil || got != pins[p.Addr] {
			t.Fatalf("%s has the key %s, error %v; want %s", p.Addr, got, err, pins[p.Addr])
		}
	}
	another()
	stranger := c.Mount(nil) // it has no connections from before
	wantFile(t, stranger.Path("file0"), contents(0, 1<<20))
	if err := chosen(stranger); err == nil {
		t.Error("a mount trusts keys that nobody has confirmed")
	}

	c.must(admin.Update[admin.ProxyGroup](c.ctx(), c.Client, map[string]any{"resetPins": true}, fmt.Sprint(g.ID)))
	c.await("admin knows the new keys", func() error {
		now, err := admin.Get[admin.ProxyGroup](c.ctx(), c.Client, fmt.Sprint(g.ID))
		for addr, pin := range pins {
			if err == nil && now.Pins[addr] != pin {
				err = fmt.Errorf("%s is pinned to %q", addr, now.Pins[addr])
			}
		}
		return err
	})
	for name, m := range map[string]*Mount{"reader": reader, "stranger": stranger} {
		before := m.Stats().Proxies.Counts.Proxied
		i := 0
		c.await("the "+name+" uses the group with the new keys", func() error {
			i++
			data := contents(uint64(i), 1<<20)
			write(t, writer.Path(fmt.Sprint(name, i)), data)
			wantFile(t, m.Path(fmt.Sprint(name, i)), data)
			if m.Stats().Proxies.Counts.Proxied == before {
				return fmt.Errorf("nothing came from a proxy: %v", m.Stats().Proxies)
			}
			return nil
		})
		if err := chosen(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	another()
}
