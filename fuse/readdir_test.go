package fuse

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"flexfs/internal/soak"
	"flexfs/meta"
)

// A dirent is an entry as getdents64(2) gives it, and where to seek for the next.
type dirent64 struct {
	name string
	next int64
}

func getdents(t testing.TB, fd, size int) (list []dirent64) {
	t.Helper()
	buf := make([]byte, size)
	n, err := syscall.ReadDirent(fd, buf)
	must(t, "getdents", err)
	for b := buf[:n]; len(b) > 0; {
		reclen := binary.NativeEndian.Uint16(b[16:])
		name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
		list = append(list, dirent64{name, int64(binary.NativeEndian.Uint64(b[8:]))})
		b = b[reclen:]
	}
	return list
}

// makeMany makes n files in a new directory, without a kernel in between.
func makeMany(t testing.TB, fs *FS, dir string, n int) {
	t.Helper()
	rep, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: dir, Mode: syscall.S_IFDIR | 0o777})
	must(t, "mkdir", err)
	var wg sync.WaitGroup
	for part := range 8 {
		wg.Go(func() {
			for i := part; i < n; i += 8 {
				req := &meta.Request{Op: meta.OpMake, Ino: rep.Attr.Ino, Name: stable(i), Mode: syscall.S_IFREG | 0o644}
				if _, err := fs.meta.Do(t.Context(), req); err != nil {
					t.Errorf("make %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func stable(i int) string { return fmt.Sprintf("s%07d", i) }

// Names come and go on another mount while a large directory is read, in order
// and from places that were noted before. Those that stay are there once each.
func TestReaddirIsStableWhileNamesComeAndGo(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	readdirIsStable(t, 20_000, rand.New(rand.NewPCG(seed, 0)))
}

// The same with more names, however long it takes.
func TestSoakReaddirOfAMillion(t *testing.T) {
	readdirIsStable(t, 1_000_000, soak.Start(t).Rand)
}

func readdirIsStable(t *testing.T, n int, r *rand.Rand) {
	w := newWorld(t)
	_, a := w.mount("one", Config{})
	other := w.newFS("two", Config{})
	makeMany(t, other, "d", n)
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		comeAndGo(t, other, n, stop)
	}()
	defer func() { close(stop); <-done }()
	d, err := os.Open(filepath.Join(a, "d"))
	must(t, "open", err)
	defer d.Close()
	fd := int(d.Fd())
	for round := range 3 {
		_, err = d.Seek(0, 0)
		must(t, "rewind", err)
		readOnce(t, fd, n, r, round > 0)
	}
}

// comeAndGo makes and removes names between the stable ones, until stop.
func comeAndGo(t *testing.T, fs *FS, n int, stop chan struct{}) {
	rep, err := fs.meta.Do(t.Context(), &meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "d"})
	if err != nil {
		t.Error(err)
		return
	}
	dir := rep.Attr.Ino
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		at := i * 7919 % n
		for _, op := range []meta.Op{meta.OpMake, meta.OpUnlink} {
			for k := range 20 {
				name := stable(at) + fmt.Sprint("-", k)
				if _, err := fs.meta.Do(t.Context(), &meta.Request{Op: op, Ino: dir, Name: name, Mode: syscall.S_IFREG | 0o644}); err != nil {
					t.Errorf("%v %s: %v", op, name, err)
					return
				}
			}
		}
	}
}

// readOnce reads a directory to its end. With jumps it goes back now and then to a
// place that it was at, and reads on from there.
func readOnce(t *testing.T, fd, n int, r *rand.Rand, jumps bool) {
	t.Helper()
	type place struct {
		at   int64
		seen int // stable names before it
	}
	var places []place
	var seen []string
	for {
		list := getdents(t, fd, 1000+r.IntN(30_000))
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			if strings.HasPrefix(e.name, "s") && len(e.name) == len(stable(0)) {
				seen = append(seen, e.name)
			}
		}
		places = append(places, place{list[len(list)-1].next, len(seen)})
		if jumps && r.IntN(40) == 0 && len(places) > 1 {
			k := max(0, len(places)-1-r.IntN(30))
			p := places[k]
			if _, err := syscall.Seek(fd, p.at, 0); err != nil {
				t.Fatalf("seek to %d: %v", p.at, err)
			}
			seen, places = seen[:p.seen], places[:k+1]
		}
	}
	for i, name := range seen {
		if name != stable(i) {
			t.Fatalf("entry %d of those that stay is %q, want %q; %d were read", i, name, stable(i), len(seen))
		}
	}
	if len(seen) != n {
		t.Fatalf("%d names of %d were read", len(seen), n)
	}
}
