package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"flexfs/internal/faultnet"
	"flexfs/internal/traffic"
)

// faultsMinutes makes TestProxiesFailUnderTraffic go on with faults at random.
var faultsMinutes = flag.Float64("faults.minutes", 0, "`minutes` of random faults of proxies, beyond what the test always does")

// longest is more than any call of a program may take while a mount itself is
// well: twice what is promised, as the tests' machines are busy.
const longest = 10 * time.Second

// wantAllInBucket stops all proxies, as operators do, makes sure that they have
// uploaded everything, and reads all files without them.
func (w *world) wantAllInBucket(tr *traffic.Traffic) {
	w.t.Helper()
	for _, name := range w.proxies {
		w.stop(name)
		if left := w.dirty(name); len(left) > 0 {
			w.t.Errorf("%s ended with %d blocks that the bucket may lack", name, len(left))
		}
	}
	w.addMount("last", w.path("last"))
	tr.Verify(w.path("last"))
}

// lasts is how long a fault lasts at least: long enough to be noticed.
const lasts = 1500 * time.Millisecond

// dirty returns the files of blocks that the proxy has yet to upload.
func (w *world) dirty(name string) []string {
	w.t.Helper()
	if _, err := os.Stat(w.path(name, "clean")); err != nil {
		w.t.Fatalf("the folder of %s is not what it was: %v", name, err)
	}
	left, err := filepath.Glob(w.path(name, "dirty", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return left
}

// lose wipes what a killed proxy had on its disk.
func (w *world) lose(name string) {
	w.t.Helper()
	if err := os.RemoveAll(w.path(name)); err != nil {
		w.t.Fatal(err)
	}
}

// Proxies die, stop in their tracks, lose their disks, and are reached by bad
// lines, one after the other and all at once, while programs read and write on
// two mounts. No call fails, nothing wrong is read, and what was synced is in
// the end in the bucket.
func TestProxiesFailUnderTraffic(t *testing.T) {
	bucket := newSink(t)
	bucket.set(t, faultnet.Line{Latency: 30 * time.Millisecond}) // so that mounts do not prefer it
	w := newWorldOf(t, shape{proxies: 3, mounts: 2, faulty: true, bucket: bucket, blockSize: "256KiB"})
	tr := traffic.Start(t, w.dirs...)
	tr.Do(50)
	tr.Phase("before")
	all := func(do func(name string)) func() {
		return func() {
			for _, name := range w.proxies {
				do(name)
			}
		}
	}
	one, two, three := w.proxies[0], w.proxies[1], w.proxies[2]
	for _, step := range []struct {
		name        string
		fail, mends func()
	}{
		{"one is killed", func() { w.kill(one) }, func() { w.again(one) }},
		{"another is killed and loses its disk", func() { w.kill(two); w.lose(two) }, func() { w.again(two) }},
		{"the third stops", func() { w.signal(three, syscall.SIGSTOP) }, func() { w.signal(three, syscall.SIGCONT) }},
		{"all stop", all(func(name string) { w.signal(name, syscall.SIGSTOP) }), all(func(name string) { w.signal(name, syscall.SIGCONT) })},
		{"all are killed", all(w.kill), all(w.again)},
		{"one is told to end", func() { w.stop(one) }, func() { w.again(one) }},
		{"they are 30 ms away", func() { w.setLines(faultnet.Line{Latency: 15 * time.Millisecond}) }, func() { w.setLines(faultnet.Line{}) }},
		{"the lines are narrow", func() { w.setLines(faultnet.Line{Rate: 4 << 20}) }, func() { w.setLines(faultnet.Line{}) }},
	} {
		step.fail()
		begin := time.Now()
		tr.Do(30)
		time.Sleep(time.Until(begin.Add(lasts)))
		during := tr.Phase(step.name)
		step.mends()
		w.allUsed()
		tr.Do(30)
		after := tr.Phase(step.name + ", and it is over")
		if r := max(during.Max, after.Max); r > longest {
			t.Errorf("%s: a call took %v", step.name, r)
		}
	}
	w.randomFaults(tr)
	tr.Stop()
	w.wantProxied()
	w.wantAllInBucket(tr)
	t.Logf("in all: %v", tr.Total())
}

// A mountStats is what a mount says of proxies.
type mountStats struct {
	Proxies struct {
		Groups []struct {
			Members []struct{ Address, State string }
		}
		Counts struct{ Proxied, Direct, Fallbacks int64 }
	}
}

func (w *world) stats(dir string) (stats mountStats) {
	w.t.Helper()
	w.json(&stats, "stats", dir, "--output", "json")
	return stats
}

// allUsed waits until all mounts reach all proxies again, and may use them.
func (w *world) allUsed() {
	w.t.Helper()
	w.await(func() error {
		for _, dir := range w.dirs {
			for _, g := range w.stats(dir).Proxies.Groups {
				for _, m := range g.Members {
					if m.State != "up" && m.State != "slow" {
						return fmt.Errorf("at %s proxy %s is %s", dir, m.Address, m.State)
					}
				}
			}
		}
		return nil
	})
}

// wantProxied wants all mounts to have used proxies, as what the programs did
// proves nothing else.
func (w *world) wantProxied() {
	w.t.Helper()
	for _, dir := range w.dirs {
		if n := w.stats(dir).Proxies.Counts; n.Proxied < n.Direct+n.Fallbacks {
			w.t.Errorf("the mount at %s used proxies too little: %+v", dir, n)
		}
	}
}

// randomFaults goes on for as long as the flag says. One proxy fails at a time,
// and the next when blocks that it was to upload have had their second copy
// uploaded.
func (w *world) randomFaults(tr *traffic.Traffic) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	deadline := time.Now().Add(time.Duration(*faultsMinutes * float64(time.Minute)))
	for n := 0; time.Now().Before(deadline); n++ {
		name := w.proxies[r.IntN(len(w.proxies))]
		what := []string{"killed", "killed and wiped", "stopped"}[r.IntN(3)]
		switch what {
		case "stopped":
			w.signal(name, syscall.SIGSTOP)
		default:
			w.kill(name)
		}
		if what == "killed and wiped" {
			w.lose(name)
		}
		tr.Do(10 + r.IntN(50))
		if what == "stopped" {
			w.signal(name, syscall.SIGCONT)
		} else {
			w.again(name)
		}
		tr.Do(10 + r.IntN(50))
		w.await(w.noneDirty)
		tr.Phase(fmt.Sprintf("seed %d, fault %d: %s is %s", seed, n, name, what))
	}
}

// noneDirty returns an error while a proxy has blocks that were made some time
// ago and are not uploaded.
func (w *world) noneDirty() error {
	for _, name := range w.proxies {
		for _, file := range w.dirty(name) {
			if info, err := os.Stat(file); err == nil && time.Since(info.ModTime()) > 2*time.Second {
				return fmt.Errorf("%s is not uploaded yet", file)
			}
		}
	}
	return nil
}

// What was synced is there, for the other mount at once and in the bucket in the
// end, though the proxy that took it dies with its disk before it could upload
// anything: whichever of the proxies dies.
func TestSyncedFilesSurviveTheLossOfAnyProxy(t *testing.T) {
	bucket := newSink(t)
	w := newWorldOf(t, shape{proxies: 3, mounts: 2, blockSize: "256KiB", bucket: bucket})
	r := rand.NewChaCha8([32]byte{})
	files := map[string][]byte{}
	for round, victim := range w.proxies {
		bucket.set(t, faultnet.Line{State: faultnet.Refused})
		for i := range 4 {
			name := fmt.Sprintf("file-%d-%d", round, i)
			data := make([]byte, 1<<20)
			r.Read(data)
			begin := time.Now()
			if err := writeSynced(filepath.Join(w.dirs[0], name), data); err != nil {
				t.Fatalf("%s, while the bucket is away: %v", name, err)
			}
			t.Logf("%s was synced after %v", name, time.Since(begin))
			files[name] = data
		}
		dirty := w.dirty(victim)
		t.Logf("%s is killed and loses %d blocks that the bucket lacks", victim, len(dirty))
		if len(dirty) == 0 {
			t.Errorf("%s has nothing to lose", victim)
		}
		w.kill(victim)
		w.lose(victim)
		begin := time.Now()
		wantFiles(t, w.dirs[1], files)
		t.Logf("all was read after %v", time.Since(begin))
		begin = time.Now()
		bucket.set(t, faultnet.Line{})
		if round == 0 { // it answers that it knows nothing of them, when it is asked
			w.again(victim)
		}
		w.await(func() error { return w.uploaded(victim) })
		t.Logf("all was uploaded %v after the bucket was back", time.Since(begin))
		if round > 0 {
			w.again(victim)
		}
	}
	for _, name := range w.proxies {
		w.stop(name)
	}
	w.addMount("last", w.path("last"))
	wantFiles(t, w.path("last"), files)
}

// uploaded returns an error while a proxy other than the one that lost its disk
// has something to upload.
func (w *world) uploaded(but string) error {
	w.t.Helper()
	for _, name := range w.proxies {
		if name == but {
			continue
		}
		if left := w.dirty(name); len(left) > 0 {
			return fmt.Errorf("%s has %d blocks that are not uploaded", name, len(left))
		}
	}
	return nil
}

func writeSynced(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	return err
}

func wantFiles(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, want := range files {
		begin := time.Now()
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, or others; after %v: %v", name, len(got), len(want), time.Since(begin), err)
		}
	}
}

// Each machine has its own address, and plugs are pulled: the networks of one
// proxy, and of all, just end.
func TestPlugsArePulledUnderTraffic(t *testing.T) {
	l := newLab(t)
	w := newWorldOf(t, shape{proxies: 3, mounts: 2, spaces: l, blockSize: "256KiB"})
	tr := traffic.Start(t, w.dirs...)
	tr.Do(50)
	tr.Phase("before")
	for _, hosts := range [][]string{w.proxies[:1], w.proxies[1:], w.proxies} {
		for _, host := range hosts {
			l.cut(host)
		}
		begin := time.Now()
		tr.Do(50)
		time.Sleep(time.Until(begin.Add(lasts)))
		during := tr.Phase(fmt.Sprintf("%v are cut off", hosts))
		for _, host := range hosts {
			l.joins(host)
		}
		w.allUsed()
		tr.Do(50)
		after := tr.Phase("they are back")
		if r := max(during.Max, after.Max); r > longest {
			t.Errorf("%v were cut off: a call took %v", hosts, r)
		}
	}
	tr.Stop()
	w.wantAllInBucket(tr)
	t.Logf("in all: %v", tr.Total())
}
