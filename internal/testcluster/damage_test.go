package testcluster

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A proxy whose cached blocks were damaged while it was down finds out, and
// fetches them again.
func TestDamagedCachesServeNothingWrong(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	data := contents(20, 9<<20)
	m := c.Mount(nil)
	write(t, m.Path("a"), data)
	m.Unmount()
	damaged := 0
	for _, p := range c.Groups[0].Proxies {
		p.Stop()
		damaged += damage(t, p.Folder)
		p.Start()
	}
	if damaged == 0 {
		t.Fatal("the proxies have nothing in their caches")
	}
	fresh := c.Mount(nil)
	c.Await("the group is in use", func() error { return chosen(fresh) })
	wantFile(t, fresh.Path("a"), data)
	if n := fresh.Stats().Proxies.Counts.Proxied; n < int64(damaged)/2 { // each is on two proxies
		t.Errorf("%d copies of blocks were damaged and %d requests went to proxies", damaged, n)
	}
}

// damage changes a byte in the middle of every cached block below folder, and
// returns how many there are.
func damage(t *testing.T, folder string) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(folder, "clean"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if err != nil || len(data) == 0 {
			return err
		}
		data[len(data)/2] ^= 1
		n++
		return os.WriteFile(name, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A proxy whose disk is full passes on what it cannot keep.
func TestAFullCacheDiskFailsNoCall(t *testing.T) {
	c := Start(t, Options{Groups: 1, Members: 1})
	p := c.Groups[0].Proxies[0]
	p.Stop()
	if err := syscall.Mount("flexfs-test", p.Folder, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("a small disk needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(p.Folder, syscall.MNT_DETACH) })
	write(t, filepath.Join(p.Folder, "somebody's"), contents(21, 4<<20))
	p.Start()

	a, b := c.Mount(nil), c.Mount(nil)
	data := contents(22, 17<<20)
	for _, m := range []*Mount{a, b} {
		c.Await("the group is in use", func() error { return chosen(m) })
	}
	write(t, a.Path("a"), data)
	wantFile(t, b.Path("a"), data)
	if n := b.Stats().Proxies.Counts; n.Proxied == 0 || n.Fallbacks > 0 {
		t.Errorf("the proxy did not answer every request: %+v", n)
	}
}
