package testcluster

import (
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flexfs/hashring"
	"flexfs/modes"
	"flexfs/store"
	"flexfs/store/remote"
)

// The blocks of a volume move as little as they can: those that the (n+1)th
// proxy takes are a share of 1/(n+1), within a tenth, and no others move.
func TestANewProxyTakesItsShareAndNothingElseMoves(t *testing.T) {
	const inodes, blocks = 2000, 20
	volume, err := store.ParseVolume("0198c0de-1234-7abc-8def-0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for n := range 9 {
		was := hashring.New(addresses...)
		added := fmt.Sprintf("proxy%d.example.com:443", n+1)
		addresses = append(addresses, added)
		is := hashring.New(addresses...)
		if n == 0 {
			continue
		}
		moved := 0
		for ino := range inodes {
			for index := range blocks {
				key := store.Key{Volume: volume, Ino: uint64(ino + 2), Index: uint32(index)}.Hash()
				before, after := was.Owners(key, 1)[0], is.Owners(key, 1)[0]
				if before == after {
					continue
				}
				if moved++; after != added {
					t.Fatalf("a block moved from %s to %s when %s came", before, after, added)
				}
			}
		}
		share := float64(moved) / (inodes * blocks)
		if want := 1 / float64(n+1); math.Abs(share-want) > want/10 {
			t.Errorf("proxy %d took %.4f of the blocks, want %.4f", n+1, share, want)
		}
	}
}

// held returns the blocks in the proxy's cache.
func held(t *testing.T, p *Proxy) map[store.Key]bool {
	t.Helper()
	keys := map[store.Key]bool{}
	for _, folder := range []string{"clean", "dirty"} {
		err := filepath.WalkDir(filepath.Join(p.Folder, folder), func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			key, err := store.ParseKey(strings.ReplaceAll(filepath.Base(name), "_", "/"))
			keys[key] = true
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return keys
}

// wipe empties the cache of a proxy that nothing is only in.
func (p *Proxy) wipe(t *testing.T) {
	t.Helper()
	p.Stop()
	if err := os.RemoveAll(p.Folder); err != nil {
		t.Fatal(err)
	}
	p.Start()
}

// readAll reads a file by a fresh mount that uses the group, so that each block
// is asked for where it belongs, and returns what the mount did.
func readAll(t *testing.T, c *Cluster, g *Group, name string, want []byte) remote.Counts {
	t.Helper()
	m := c.Mount(func(m *modes.Mount) { m.MemCapacity = 16 << 20 })
	c.Await("the group is in use", func() error { return uses(m, g) })
	wantFile(t, m.Path(name), want)
	counts := m.Stats().Proxies.Counts
	m.Unmount()
	return counts
}

// many is how many blocks a file has that is to be spread.
const many = 240

// away is how long a bucket takes to answer: longer than any proxy on a busy
// machine, so that clients do not prefer it.
const away = 200 * time.Millisecond

// strays are blocks that a proxy may lack or have too many, as a slow answer
// makes a client ask somebody else as well.
const strays = many / 12

// wantHeld compares what a proxy holds with what it should hold.
func wantHeld(t *testing.T, when string, p *Proxy, want map[store.Key]bool) {
	t.Helper()
	got, missing, more := held(t, p), 0, 0
	for key := range want {
		if !got[key] {
			missing++
		}
	}
	for key := range got {
		if !want[key] {
			more++
		}
	}
	t.Logf("%s: proxy %s holds %d blocks", when, p.Addr, len(got))
	if missing > strays || more > strays {
		t.Errorf("%s: proxy %s holds %d blocks; %d are missing and %d too many", when, p.Addr, len(got), missing, more)
	}
}

// placed adds to each member's blocks those of keys that it owns.
func placed(into map[*Proxy]map[store.Key]bool, keys map[store.Key]bool, members ...*Proxy) {
	byAddr := map[string]*Proxy{}
	var addresses []string
	for _, p := range members {
		byAddr[p.Addr] = p
		addresses = append(addresses, p.Addr)
		if into[p] == nil {
			into[p] = map[store.Key]bool{}
		}
	}
	ring := hashring.New(addresses...)
	for key := range keys {
		into[byAddr[ring.Owners(key.Hash(), 1)[0]]][key] = true
	}
}

// Blocks really are where the hash says, and when members come and go only those
// move that must.
func TestBlocksMoveOnlyWhereTheyMust(t *testing.T) {
	bucket := newBucket(t)
	c := Start(t, Options{Groups: 1, Members: 3, BlockStore: bucket.settings, Volume: map[string]any{"blockSize": blockSize}})
	g := c.Groups[0]
	data := contents(40, many*blockSize)
	m := c.Mount(nil)
	write(t, m.Path("a"), data)
	m.Unmount()
	for _, p := range g.Proxies {
		p.wipe(t)
	}
	all := bucket.keys()
	if len(all) != many {
		t.Fatalf("the bucket has %d blocks, want %d", len(all), many)
	}
	bucket.is(away)
	defer bucket.is(0)
	want := map[*Proxy]map[store.Key]bool{}
	step := func(name string, members ...*Proxy) {
		t.Helper()
		c.SetMembers(g, members...)
		placed(want, all, members...)
		readAll(t, c, g, "a", data)
		for p, keys := range want {
			wantHeld(t, name, p, keys)
		}
	}
	p := g.Proxies
	step("three", p[0], p[1], p[2])
	added := c.AddProxy(g)
	step("a fourth", p[0], p[1], p[2], added)
	if n := len(want[added]); math.Abs(float64(n)-many/4) > 5*math.Sqrt(many*3./16) {
		t.Errorf("the new one has %d of %d blocks", n, many)
	}
	step("one less", p[0], p[2], added)
}

// heldOf returns those of keys that the proxy owns among members, and holds.
func heldOf(t *testing.T, p *Proxy, keys map[store.Key]bool, members []*Proxy) map[store.Key]bool {
	t.Helper()
	owned := map[*Proxy]map[store.Key]bool{}
	placed(owned, keys, members...)
	holds := held(t, p)
	for key := range owned[p] {
		if !holds[key] {
			delete(owned[p], key)
		}
	}
	return owned[p]
}
