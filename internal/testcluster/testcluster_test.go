package testcluster

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"flexfs/modes"
	"flexfs/store"
)

// contents returns n bytes that depend on the seed only and do not compress.
func contents(seed uint64, n int) []byte {
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(data)
	return data
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes that are not the %d that were written", name, len(got), len(want))
	}
}

// chosen says whether a mount uses a group.
func chosen(m *Mount) error {
	if m.Stats().Proxies.Chosen == 0 {
		return fmt.Errorf("none is chosen: %v", m.Stats().Proxies)
	}
	return nil
}

func TestWhatOneMountWritesAnotherReads(t *testing.T) {
	c := Start(t, Options{})
	a, b := c.Mount(nil), c.Mount(nil)
	small, large := []byte("hello\n"), contents(1, 9<<20)
	write(t, a.Path("small"), small)
	write(t, a.Path("large"), large)
	wantFile(t, b.Path("small"), small)
	wantFile(t, b.Path("large"), large)
	if n := b.Stats().Proxies.Counts.Proxied; n == 0 {
		t.Error("the second mount read nothing through a proxy")
	}
	a.Unmount()
	wantFile(t, b.Path("large"), large)
}

func TestAMountUsesAGroupAndGoesOnWithoutProxies(t *testing.T) {
	c := Start(t, Options{})
	m := c.Mount(nil)
	large := contents(2, 9<<20)
	write(t, m.Path("a"), large)
	if m.Stats().Proxies.Chosen == 0 {
		t.Fatalf("no group was chosen: %v", m.Stats().Proxies)
	}
	for _, g := range c.Groups {
		for _, p := range g.Proxies {
			p.Stop()
		}
	}
	fresh := c.Mount(nil) // with nothing in memory
	wantFile(t, fresh.Path("a"), large)
	if chosen := fresh.Stats().Proxies.Chosen; chosen != 0 {
		t.Errorf("group %d was chosen, and all proxies are down", chosen)
	}
	for _, p := range c.Groups[1].Proxies {
		p.Start()
	}
	c.Await("group 2 is used again", func() error {
		if chosen := fresh.Stats().Proxies.Chosen; chosen != c.Groups[1].ID {
			return fmt.Errorf("the choice is %d", chosen)
		}
		return nil
	})
	write(t, fresh.Path("b"), large)
	wantFile(t, m.Path("b"), large)
}

func TestMembersChangeUnderALiveMount(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	m := c.Mount(nil)
	g := c.Groups[0]
	added := c.AddProxy(g)
	c.SetMembers(g, g.Proxies[0], g.Proxies[1], added)
	c.Await("the mount knows the new proxy", func() error {
		for _, member := range m.Stats().Proxies.Groups[0].Members {
			if member.Address == added.Addr && member.State == "up" {
				return nil
			}
		}
		return fmt.Errorf("it has %v", m.Stats().Proxies)
	})
	write(t, m.Path("a"), contents(3, 40<<20))
	c.SetMembers(g, added)
	c.Await("the mount knows the last proxy only", func() error {
		if n := len(m.Stats().Proxies.Groups[0].Members); n != 1 {
			return fmt.Errorf("it knows %d", n)
		}
		return nil
	})
	wantFile(t, c.Mount(nil).Path("a"), contents(3, 40<<20))
}

func TestABlockThatIsGoneIsFound(t *testing.T) {
	c := Start(t, Options{Groups: -1})
	m := c.Mount(nil)
	write(t, m.Path("a"), contents(7, 1<<20))
	m.Unmount()
	if err := c.checkBlocks(); err != nil {
		t.Fatal(err)
	}
	bucket := c.Bucket
	if err := os.Rename(bucket, bucket+"-gone"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bucket, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.checkBlocks(); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("the bucket is empty, and the check says %v", err)
	}
	if err := os.RemoveAll(bucket); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(bucket+"-gone", bucket); err != nil {
		t.Fatal(err)
	}
}

func TestServersComeBack(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	m := c.Mount(nil)
	write(t, m.Path("before"), contents(4, 5<<20))
	c.StopAdmin()
	write(t, m.Path("without admin"), contents(5, 5<<20))
	proxy := c.Groups[0].Proxies[0]
	proxy.Stop()
	proxy.Start() // from its last settings
	c.RestartAdmin()
	c.RestartMeta()
	wantFile(t, m.Path("before"), contents(4, 5<<20))
	write(t, m.Path("after"), contents(6, 5<<20))
	fresh := c.Mount(func(m *modes.Mount) { m.DiskFolder = t.TempDir(); m.DiskQuota.Bytes = 64 << 20 })
	wantFile(t, fresh.Path("without admin"), contents(5, 5<<20))
	wantFile(t, fresh.Path("after"), contents(6, 5<<20))
	wantFile(t, fresh.Path("after"), contents(6, 5<<20))
	if d := fresh.Stats().Disk; d == nil || d.Misses == 0 {
		t.Errorf("the disk cache was not asked: %v", d)
	}
}
