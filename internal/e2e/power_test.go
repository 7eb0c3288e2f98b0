package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/soak"
)

// The power of the machine with admin and the metadata service is cut at random
// moments, while programs change names and contents. When it is back, and its file
// system is repaired, all that was acknowledged is there.
func TestWhatWasAcknowledgedSurvivesAPowerCut(t *testing.T) {
	p := newPower(t, rand.New(rand.NewPCG(rand.Uint64(), 0)))
	for round := range 3 {
		p.round(round)
	}
	p.report()
}

func TestSoakPowerCuts(t *testing.T) {
	s := soak.Start(t)
	p := newPower(t, s.Rand)
	for round := 0; !s.Over() && !t.Failed(); round++ {
		p.round(round)
	}
	p.report()
}

// A power is a world on a disk whose power is cut.
type power struct {
	*world
	rng    *rand.Rand
	rounds int
	calls  atomic.Int64 // that were acknowledged
}

func newPower(t *testing.T, rng *rand.Rand) *power {
	return &power{world: newWorldOf(t, shape{proxies: -1, mounts: 2, blockSize: "256KiB", disks: []string{"admin"}}), rng: rng}
}

// round has programs at work, cuts the power while they are, and looks for what
// they had been told was done.
func (p *power) round(n int) {
	p.t.Helper()
	notes, top := p.path(fmt.Sprint("notes", n)), fmt.Sprint("round", n)
	if err := os.Mkdir(filepath.Join(p.mount, top), 0o755); err != nil {
		p.t.Fatal(err)
	}
	users := exec.Command(os.Args[0], "-test.run=^TestUsersWhenThePowerIsCut$", "-test.v")
	users.Env = append(os.Environ(), notesVar+"="+notes, topVar+"="+filepath.Join(p.mount, top), fmt.Sprint(userSeedVar, "=", p.rng.Uint64()))
	var out bytes.Buffer
	users.Stdout, users.Stderr = &out, &out
	end, err := users.StdinPipe()
	if err == nil {
		err = users.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	time.Sleep(time.Duration(200+p.rng.IntN(1200)) * time.Millisecond)
	p.cut()
	end.Close() // what is under way is finished when the service is back, and nothing else begun
	p.kill("admin")
	p.restore()
	if out, err := p.tryFlexfs("meta", "check", "--dbFolder", p.path("admin")); err != nil {
		p.t.Errorf("round %d: %v\n%s", n, err, out)
	}
	p.again("admin")
	if err := waitFor(users, time.Minute); err != nil {
		p.t.Fatalf("round %d: %v\n%s", n, err, out.Bytes())
	}
	var calls int64
	if _, err := fmt.Sscanf(out.String()[bytes.Index(out.Bytes(), []byte("calls: ")):], "calls: %d", &calls); err != nil {
		p.t.Fatal(err)
	}
	p.calls.Add(calls)
	p.rounds++
	p.stop("mount2") // another one remembers nothing
	p.again("mount2")
	for i := range n + 1 {
		want, got := tell(p.t, p.path(fmt.Sprint("notes", i))), tell(p.t, filepath.Join(p.dirs[1], fmt.Sprint("round", i)))
		if !maps.Equal(want, got) {
			for path := range got {
				if want[path] == got[path] {
					delete(want, path)
					delete(got, path)
				}
			}
			p.t.Fatalf("after round %d, of what was acknowledged in round %d there should be\n%v\nand is\n%v", n, i, want, got)
		}
	}
}

// tell tells what is below a folder, by path.
func tell(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if e.IsDir() {
			all[rel] = "a folder"
			return nil
		}
		data, err := os.ReadFile(path)
		all[rel] = fmt.Sprintf("%v, %d names, %d bytes %x", info.Mode(), info.Sys().(*syscall.Stat_t).Nlink, len(data), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return all
}

// cut cuts the power of all disks at once. Of what was not flushed the one or the
// other page is kept.
func (p *power) cut() {
	percent := p.rng.IntN(3) * 50
	for _, d := range p.disks {
		d.Cut(func() bool { return p.rng.IntN(100) < percent })
	}
}

// restore brings the power back.
func (p *power) restore() {
	p.t.Helper()
	for _, d := range p.disks {
		d.Restore()
	}
}

func (p *power) report() {
	p.t.Logf("the power was cut %d times; %d calls had been acknowledged", p.rounds, p.calls.Load())
}

// Variables for the users: where they note what was acknowledged, the folder in
// which they work, and their seed.
const (
	notesVar    = "FLEXFS_POWER_NOTES"
	topVar      = "FLEXFS_POWER_TOP"
	userSeedVar = "FLEXFS_POWER_SEED"
)

const powerUsers = 4

// TestUsersWhenThePowerIsCut is a process of its own, as [TestWorkersOfASoak] is.
func TestUsersWhenThePowerIsCut(t *testing.T) {
	notes, top := os.Getenv(notesVar), os.Getenv(topVar)
	if notes == "" {
		t.Skip("only as a child of a test that cuts the power")
	}
	var seed uint64
	fmt.Sscan(os.Getenv(userSeedVar), &seed)
	if err := os.Mkdir(notes, 0o755); err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	go func() {
		io.Copy(io.Discard, os.Stdin) // until the parent closes it
		over.Store(true)
	}()
	var calls atomic.Int64
	var wg sync.WaitGroup
	for i := range powerUsers {
		u := &powerUser{rng: rand.New(rand.NewPCG(seed, uint64(i))), dir: filepath.Join(top, fmt.Sprint(i)), notes: filepath.Join(notes, fmt.Sprint(i))}
		wg.Go(func() {
			err := u.call(os.Mkdir(u.dir, 0o755), func() error { return os.Mkdir(u.notes, 0o755) })
			for err == nil && !over.Load() {
				err = u.step()
			}
			if err != nil {
				t.Error(err)
			}
			calls.Add(int64(u.calls))
		})
	}
	wg.Wait()
	fmt.Printf("calls: %d\n", calls.Load())
}

// A powerUser changes a folder of the mount, and does the same to its notes when
// the call has returned.
type powerUser struct {
	rng        *rand.Rand
	dir, notes string
	calls      int
}

// call counts a call that succeeded, and notes it.
func (u *powerUser) call(err error, note func() error) error {
	if err != nil {
		return err
	}
	u.calls++
	return note()
}

func (u *powerUser) name() string { return fmt.Sprint("f", u.rng.IntN(60)) }

// existing returns a name that is there, or "".
func (u *powerUser) existing() string {
	names, _ := os.ReadDir(u.notes)
	if len(names) == 0 {
		return ""
	}
	return names[u.rng.IntN(len(names))].Name()
}

func (u *powerUser) step() error {
	a, b := u.existing(), u.name()
	op := u.rng.IntN(10)
	if a == "" {
		op = 9
	}
	at, noted := filepath.Join(u.dir, a), filepath.Join(u.notes, a)
	to, notedTo := filepath.Join(u.dir, b), filepath.Join(u.notes, b)
	switch op {
	case 0, 1:
		return u.call(os.Rename(at, to), func() error { return os.Rename(noted, notedTo) })
	case 2:
		return u.call(os.Remove(at), func() error { return os.Remove(noted) })
	case 3:
		size := u.rng.Int64N(600 << 10)
		return u.call(os.Truncate(at, size), func() error { return os.Truncate(noted, size) })
	case 4:
		if _, err := os.Lstat(notedTo); err == nil {
			return nil
		}
		return u.call(os.Link(at, to), func() error { return os.Link(noted, notedTo) })
	case 5:
		mode := fs.FileMode(0o600 | u.rng.IntN(0o100))
		return u.call(os.Chmod(at, mode), func() error { return os.Chmod(noted, mode) })
	}
	data := make([]byte, 1+u.rng.IntN(1<<(6+u.rng.IntN(13))))
	for i := range data {
		data[i] = byte(u.rng.Uint32())
	}
	off := u.rng.Int64N(300 << 10)
	return u.call(writeAt(to, data, off, u.rng.IntN(2) == 0), func() error { return writeAt(notedTo, data, off, false) })
}

// writeAt writes to a part of a file, which it makes if it is not there, and syncs
// or closes it.
func writeAt(name string, data []byte, off int64, sync bool) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return f.Close()
}

// The power of everything is cut, while the bucket cannot be reached: what was
// synced is on the disks of two proxies only. It is there when all is back, and
// gets into the bucket.
func TestSyncedFilesSurviveAPowerCutOfEverything(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{bucket: bucket, blockSize: "256KiB", disks: []string{"admin", "proxy1", "proxy2"}})
	p := &power{world: w, rng: rand.New(rand.NewPCG(rand.Uint64(), 0))}
	w.allUsed()
	files := map[string][]byte{}
	for round := range 2 {
		bucket.set(t, faultnet.Line{State: faultnet.Refused})
		for i := range 10 {
			name := fmt.Sprint(round, "-", i)
			data := make([]byte, 1+p.rng.IntN(1<<20))
			for i := range data {
				data[i] = byte(p.rng.Uint32())
			}
			if err := writeSynced(filepath.Join(w.mount, name), data); err != nil {
				t.Fatal(err)
			}
			files[name] = data
		}
		p.cut()
		for _, name := range append([]string{"admin"}, w.proxies...) {
			w.kill(name)
		}
		p.restore()
		waiting := 0
		for _, name := range w.proxies {
			waiting += len(w.dirty(name))
		}
		if waiting == 0 {
			t.Error("nothing waited to be uploaded")
		}
		t.Logf("%d copies of blocks waited to be uploaded", waiting)
		bucket.set(t, faultnet.Line{})
		for _, name := range append([]string{"admin"}, w.proxies...) {
			w.again(name)
		}
		w.addMount(fmt.Sprint("after", round), w.path(fmt.Sprint("after", round)))
		wantFiles(t, w.path(fmt.Sprint("after", round)), files)
		w.await(func() error { return w.uploaded("") })
	}
	for _, name := range w.proxies {
		w.stop(name)
	}
	w.addMount("last", w.path("last"))
	wantFiles(t, w.path("last"), files)
}
