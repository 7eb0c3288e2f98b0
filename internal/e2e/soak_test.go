package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"flexfs/internal/soak"
)

const (
	soakMounts = 3 // the last of which is never killed
	soakFiles  = 4 // workers with a file each
	soakTrees  = 3 // and with a tree each
	soakSize   = 3 << 20
	soakFDs    = 600 // of one process, at most
	soakMemory = 128 << 20
	oldMemory  = 64 << 20 // of the mount that is never killed
)

// Random work on three mounts, compared with a model at each step, while the mounts,
// the proxies, and admin with the metadata service are killed and stopped at
// random. What close or fsync acknowledged must be there whatever happens; what
// was not may be there or not, each byte for itself.
//
// One mount is stopped only, as what is killed every minute shows no leak: in the end
// it must need hardly more than after a tenth of the time.
func TestSoakMountsAndServersAreKilled(t *testing.T) {
	s := soak.Start(t)
	w := newWorldOf(t, shape{mounts: soakMounts - 1, blockSize: "256KiB", mountFlags: []string{"--memCapacity", fmt.Sprint(soakMemory)}})
	debug := w.addr("old")
	w.addMount("old", w.mount+"3", "--memCapacity", fmt.Sprint(oldMemory), "--debugAddr", debug)
	k := &soaking{t: t, s: s, dirs: w.dirs, board: newBoard(t, w.path("board"))}
	t.Setenv("FLEXFS_SOAK_SEED", fmt.Sprint(s.Seed)) // for the workers
	h := &harming{soaking: k, w: w, names: []string{"mount", "mount2", "old"}}
	workers := use(t, os.Args[0], "-test.run=^TestWorkersOfASoak$", "-test.v", "-test.timeout=0")
	young, grownUp := needs{}, time.Now().Add(time.Until(s.Deadline)/10)
	for !s.Over() && !workers.gone() && !t.Failed() {
		h.sample()
		if young == (needs{}) && time.Now().After(grownUp) {
			young = w.needs("old", debug)
		}
		time.Sleep(time.Duration(2000+s.IntN(4000)) * time.Millisecond)
		h.harm()
	}
	k.over.Store(1)
	select {
	case <-workers.ended:
	case <-time.After(5 * time.Minute):
		t.Error("the workers do not end")
		workers.cmd.Process.Kill()
		<-workers.ended
	}
	t.Logf("%s", workers.out.Bytes())
	if workers.err != nil {
		t.Errorf("the workers: %v", workers.err)
	}
	h.sample()
	var old needs
	w.await(func() error { // connections that nobody uses are closed
		old = w.needs("old", debug)
		return old.within(young.and(needs{goroutines: 30, descriptors: 20, heap: oldMemory / 2, memory: oldMemory}))
	})
	t.Logf("the mount that was never killed needed %v after a tenth of the time, and %v in the end", young, old)
	t.Logf("%d rounds on files, %d changes of trees, %d kills and stops; the most memory of a process was %d MiB, the most descriptors %d",
		k.rounds.Load(), k.changes.Load(), h.harms, h.memory>>20, h.fds)
}

// TestWorkersOfASoak is a process of its own. A program that starts another one
// while it has files open waits for the close of their copies, so what kills a
// server must not have any: it could not start the server again.
func TestWorkersOfASoak(t *testing.T) {
	dir := os.Getenv(boardVar)
	if dir == "" {
		t.Skip("only as a child of a soak")
	}
	s := soak.Start(t)
	k := &soaking{t: t, s: s, board: openBoard(t, filepath.Join(dir, "board"))}
	for _, name := range []string{"mnt", "mnt2", "mnt3"} {
		k.dirs = append(k.dirs, filepath.Join(dir, name))
	}
	for i := range soakFiles + soakTrees {
		if err := os.Mkdir(k.path(0, fmt.Sprint("w", i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range soakFiles + soakTrees {
		rng := s.Part(uint64(i + 1))
		if i < soakFiles {
			f := &soakFile{k: k, rng: rng, name: fmt.Sprintf("w%d/file", i)}
			wg.Go(f.run)
		} else {
			m := &soakTree{k: k, rng: rng, top: fmt.Sprint("w", i), model: map[string]string{}}
			wg.Go(m.run)
		}
	}
}

// boardVar names the folder of a world to the workers of its soak.
const boardVar = "FLEXFS_SOAK_WORLD"

// A board is memory that the processes of a long test share.
type board struct {
	gen             [soakMounts]atomic.Int64 // of each mount: odd while it is down
	over            atomic.Int64
	rounds, changes atomic.Int64
}

func newBoard(t *testing.T, path string) *board {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, os.Getpagesize()), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(boardVar, filepath.Dir(path))
	return openBoard(t, path)
}

func openBoard(t *testing.T, path string) *board {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := syscall.Mmap(int(f.Fd()), 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	return (*board)(unsafe.Pointer(&m[0]))
}

// soaking is what the workers of a long test share.
type soaking struct {
	*board
	t    *testing.T
	s    *soak.Soak
	dirs []string
}

// harming is what does harm to them.
type harming struct {
	*soaking
	w          *world
	names      []string // of the mounts
	harms, fds int
	memory     int64
}

func (k *soaking) path(mount int, name string) string { return filepath.Join(k.dirs[mount], name) }

func (k *soaking) ended() bool { return k.over.Load() != 0 || k.t.Failed() }

// on runs fn with a mount that is up, and reports whether it stayed up: if not,
// nothing that fn saw counts. It returns when the mount is up again.
func (k *soaking) on(mount int, fn func()) (stayed bool) {
	k.awaitUp(mount)
	before := k.gen[mount].Load()
	fn()
	stayed = before%2 == 0 && k.gen[mount].Load() == before
	k.awaitUp(mount)
	return stayed
}

func (k *soaking) awaitUp(mount int) {
	for k.gen[mount].Load()%2 == 1 && !k.t.Failed() {
		time.Sleep(10 * time.Millisecond)
	}
}

// harm kills or stops something, and brings it back.
func (k *harming) harm() {
	victims := slices.Concat(k.names, k.w.proxies, []string{"admin"})
	name := victims[k.s.IntN(len(victims))]
	pause := time.Duration(k.s.IntN(1500)) * time.Millisecond
	k.harms++
	if k.s.IntN(4) == 0 || name == "old" {
		k.t.Logf("%s is stopped for %v", name, pause)
		k.w.signal(name, syscall.SIGSTOP)
		time.Sleep(pause)
		k.w.signal(name, syscall.SIGCONT)
		return
	}
	k.t.Logf("%s is killed for %v", name, pause)
	mount := slices.Index(k.names, name)
	if mount >= 0 {
		k.gen[mount].Add(1)
	}
	p := k.w.procs[name]
	p.cmd.Process.Kill()
	k.w.awaitEnd(name, p.cmd)
	if mount >= 0 {
		syscall.Unmount(k.w.dirs[mount], syscall.MNT_DETACH)
	}
	time.Sleep(pause)
	k.w.again(name)
	if mount >= 0 {
		k.gen[mount].Add(1)
	}
}

// sample looks for what piles up.
func (k *harming) sample() {
	for name, p := range k.w.procs {
		fds, memory := descriptors(p), resident(p)
		k.fds, k.memory = max(k.fds, fds), max(k.memory, memory)
		if fds > soakFDs || memory > soakMemory+memorySlack+256<<20 {
			k.t.Errorf("%s has %d descriptors and %d MiB of memory", name, fds, memory>>20)
		}
	}
}

func descriptors(p *proc) int {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(fds)
}

// resident returns how much memory a process has resident, in bytes.
func resident(p *proc) (memory int64) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &memory); n == 1 {
			memory <<= 10
		}
	}
	return memory
}

// needs is what a process has at a time.
type needs struct {
	goroutines, descriptors int
	heap, memory            int64 // in bytes: what is in use after a collection, and what is resident
}

// needs asks a process that serves what is for debugging.
func (w *world) needs(name, debugAddr string) (n needs) {
	w.t.Helper()
	for _, ask := range []struct {
		profile, format string
		into            any
	}{
		{"goroutine?debug=1", "goroutine profile: total %d", &n.goroutines},
		{"heap?gc=1&debug=1", "# HeapAlloc = %d", &n.heap},
	} {
		text, found := get(w.t, "http://"+debugAddr+"/debug/pprof/"+ask.profile), 0
		for line := range bytes.Lines(text) {
			m, _ := fmt.Sscanf(string(line), ask.format, ask.into)
			found += m
		}
		if found != 1 {
			w.t.Errorf("%s has %d lines like %q", ask.profile, found, ask.format)
		}
	}
	n.descriptors, n.memory = descriptors(w.procs[name]), resident(w.procs[name])
	return n
}

func (n needs) and(more needs) needs {
	return needs{n.goroutines + more.goroutines, n.descriptors + more.descriptors, n.heap + more.heap, n.memory + more.memory}
}

// within returns an error unless n is no more than limit.
func (n needs) within(limit needs) error {
	if n.goroutines > limit.goroutines || n.descriptors > limit.descriptors || n.heap > limit.heap || n.memory > limit.memory {
		return fmt.Errorf("it has %v, more than %v", n, limit)
	}
	return nil
}

func (n needs) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %.1f MiB of heap, %d MiB of memory", n.goroutines, n.descriptors, float64(n.heap)/(1<<20), n.memory>>20)
}

// A soakFile is a file that is changed at random, on one mount after the other, and
// compared with what it should have.
type soakFile struct {
	k     *soaking
	rng   *rand.Rand
	name  string
	model []byte
	since [][]byte // the model after each change since the last that was acknowledged, that one first
}

func (f *soakFile) run() {
	f.since = [][]byte{nil}
	for mount := 0; !f.k.ended(); mount = f.rng.IntN(soakMounts) {
		var failed error
		stayed := f.k.on(mount, func() { failed = f.round(mount) })
		switch {
		case stayed && failed != nil:
			f.k.t.Errorf("%s on mount %d: %v", f.name, mount, failed)
			return
		case !stayed:
			f.recover(mount)
		}
		f.k.rounds.Add(1)
	}
}

// round opens the file, compares, changes, and closes it.
func (f *soakFile) round(mount int) error {
	file, err := os.OpenFile(f.k.path(mount, f.name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := f.compare(file); err != nil {
		return fmt.Errorf("after the open: %w", err)
	}
	for range 1 + f.rng.IntN(15) {
		err := f.change(file)
		f.since = append(f.since, bytes.Clone(f.model)) // also if the mount was killed meanwhile
		if err != nil {
			return err
		}
		if f.rng.IntN(8) == 0 {
			if err := file.Sync(); err != nil {
				return fmt.Errorf("fsync: %w", err)
			}
			f.acknowledge(mount)
		}
	}
	if err := f.compare(file); err != nil {
		return fmt.Errorf("before the close: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	f.acknowledge(mount)
	return nil
}

// acknowledge notes that all that was changed must be there from now on.
func (f *soakFile) acknowledge(mount int) {
	if f.k.gen[mount].Load()%2 == 0 {
		f.since = [][]byte{bytes.Clone(f.model)}
	}
}

func (f *soakFile) compare(file *os.File) error {
	got, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<40))
	if err != nil {
		return err
	}
	return same(got, f.model)
}

// same says where two files differ.
func same(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d of %d is %#x, want %#x", i, len(got), got[i], want[i])
		}
	}
	return nil
}

const (
	punchHole = 2 | 1 // of fallocate(2), keeping the size
	zeroRange = 16
)

// change changes the file and the model.
func (f *soakFile) change(file *os.File) error {
	off := f.rng.Int64N(soakSize)
	n := 1 + f.rng.Int64N(cmp.Or(int64(1)<<f.rng.IntN(20), 1))
	n = min(n, soakSize-off)
	switch f.rng.IntN(8) {
	case 0:
		f.resize(off)
		return named("truncate", file.Truncate(off))
	case 1:
		clear(f.part(off, n))
		return named("punch", syscall.Fallocate(int(file.Fd()), punchHole, off, n))
	case 2:
		f.grow(off + n)
		clear(f.part(off, n))
		return named("zero", syscall.Fallocate(int(file.Fd()), zeroRange, off, n))
	case 3:
		return f.mapped(file)
	}
	p := make([]byte, n)
	fill := byte(1 + f.rng.IntN(255))
	for i := range p {
		p[i] = fill + byte(i>>9)
	}
	f.grow(off + n)
	copy(f.model[off:], p)
	_, err := file.WriteAt(p, off)
	return named("write", err)
}

func named(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// part returns what of off and n bytes from there the model has.
func (f *soakFile) part(off, n int64) []byte {
	size := int64(len(f.model))
	return f.model[min(off, size):min(off+n, size)]
}

func (f *soakFile) grow(size int64) {
	if size > int64(len(f.model)) {
		f.resize(size)
	}
}

func (f *soakFile) resize(size int64) {
	if size <= int64(len(f.model)) {
		f.model = f.model[:size:size]
		return
	}
	f.model = append(bytes.Clone(f.model), make([]byte, size-int64(len(f.model)))...)
}

// mapped compares what is read through a map of the file. MAP_POPULATE would not do:
// where a page cannot be read, as on a mount that was killed, Linux tries for ever.
func (f *soakFile) mapped(file *os.File) (err error) {
	if len(f.model) == 0 {
		return nil
	}
	m, err := syscall.Mmap(int(file.Fd()), 0, len(f.model), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return named("mmap", err)
	}
	defer func() { err = errors.Join(err, named("munmap", syscall.Munmap(m))) }()
	if err := unix.Madvise(m, unix.MADV_POPULATE_READ); err != nil {
		return named("populate", err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("map: %v", r)
		}
	}()
	return named("map", same(m, f.model))
}

// recover looks at what a killed mount left: of the acknowledged bytes none may be
// missing, of the others any. The file then has what is there.
func (f *soakFile) recover(mount int) {
	var got []byte
	var err error
	for stayed := false; !stayed && !f.k.t.Failed(); {
		stayed = f.k.on(mount, func() { got, err = os.ReadFile(f.k.path(mount, f.name)) })
	}
	if errors.Is(err, fs.ErrNotExist) && f.since[0] == nil {
		err = nil
	}
	if f.k.t.Failed() {
		return
	}
	if err != nil {
		f.k.t.Errorf("%s on mount %d, killed before: %v", f.name, mount, err)
		return
	}
	if !slices.ContainsFunc(f.since, func(v []byte) bool { return len(v) == len(got) }) {
		f.k.t.Errorf("%s has %d bytes after the kill of mount %d, which it never had since it had %d", f.name, len(got), mount, len(f.since[0]))
	}
	for i, b := range got {
		if !slices.ContainsFunc(f.since, func(v []byte) bool { return i < len(v) && v[i] == b || i >= len(v) && b == 0 }) {
			f.k.t.Errorf("byte %d of %s is %#x after the kill of mount %d, which it never was since it was %#x", i, f.name, b, mount, at(f.since[0], i))
			break
		}
	}
	f.model = got
	f.since = [][]byte{bytes.Clone(got)}
}

func at(b []byte, i int) byte {
	if i < len(b) {
		return b[i]
	}
	return 0
}

// A soakTree is a tree of names that is changed at random and compared with a
// model: path to what it is, "d", "f" and its contents, or "l" and its target.
type soakTree struct {
	k     *soaking
	rng   *rand.Rand
	top   string
	model map[string]string
}

func (m *soakTree) run() {
	for i := 0; !m.k.ended(); i++ {
		mount := m.rng.IntN(soakMounts)
		after := maps.Clone(m.model)
		what, do := m.choose(mount, after)
		var err error
		stayed := m.k.on(mount, func() { err = do() })
		m.k.changes.Add(1)
		switch {
		case !stayed:
			m.settle(mount, after)
		case err != nil:
			m.k.t.Errorf("%s on mount %d: %v", what, mount, err)
			return
		default:
			m.model = after
		}
		if i%50 == 49 {
			m.compareAll()
		}
	}
	m.compareAll()
}

// choose chooses a change, makes it in the model after, and returns how it is made
// on the mount; it must succeed.
func (m *soakTree) choose(mount int, after map[string]string) (what string, do func() error) {
	full := func(name string) string { return m.k.path(mount, filepath.Join(m.top, name)) }
	dirs, leaves := []string{""}, []string{}
	for _, name := range slices.Sorted(maps.Keys(m.model)) {
		if m.model[name] == "d" {
			dirs = append(dirs, name)
		} else {
			leaves = append(leaves, name)
		}
	}
	fresh := filepath.Join(dirs[m.rng.IntN(len(dirs))], fmt.Sprintf("n%x", m.rng.Uint32()))
	kind := m.rng.IntN(7)
	switch {
	case len(leaves) == 0:
		kind = 1
	case len(m.model) > 150:
		kind = 3
	}
	pick := func() string { return leaves[m.rng.IntN(len(leaves))] }
	switch kind {
	case 0:
		after[fresh] = "d"
		return "mkdir " + fresh, func() error { return os.Mkdir(full(fresh), 0o755) }
	case 1:
		after[fresh] = "f" + fresh
		return "link " + fresh, func() error { // so that it is there with its contents or not at all
			made := m.k.path(mount, m.top+"-made")
			if err := os.WriteFile(made, []byte(fresh), 0o644); err != nil {
				return err
			}
			return os.Rename(made, full(fresh))
		}
	case 2:
		after[fresh] = "l" + fresh
		return "symlink " + fresh, func() error { return os.Symlink(fresh, full(fresh)) }
	case 3:
		name := pick()
		delete(after, name)
		return "unlink " + name, func() error { return os.Remove(full(name)) }
	case 4:
		name := pick()
		after[fresh] = after[name]
		return "link " + name + " " + fresh, func() error { return os.Link(full(name), full(fresh)) }
	case 5:
		name, over := pick(), pick()
		if after[name] == after[over] { // a rename of a file over itself does nothing
			over = fresh
		}
		after[over] = after[name]
		delete(after, name)
		return "rename " + name + " " + over, func() error { return os.Rename(full(name), full(over)) }
	}
	dir := dirs[m.rng.IntN(len(dirs))]
	if dir == "" || strings.HasPrefix(fresh+"/", dir+"/") {
		return "nothing", func() error { return nil }
	}
	for name, is := range m.model {
		if rest, ok := strings.CutPrefix(name, dir+"/"); ok {
			delete(after, name)
			after[fresh+"/"+rest] = is
		}
	}
	delete(after, dir)
	after[fresh] = "d"
	return "rename " + dir + " " + fresh, func() error {
		// As mv does. To a rename of a folder that another mount has moved into one that
		// is in use here, and that was not looked at since, the kernel may say ESTALE.
		if _, err := os.Lstat(full(dir)); err != nil {
			return err
		}
		return os.Rename(full(dir), full(fresh))
	}
}

// settle finds out whether the change was made during which the mount was killed.
func (m *soakTree) settle(mount int, after map[string]string) {
	got, err := m.read(mount)
	switch {
	case m.k.t.Failed():
	case err != nil:
		m.k.t.Errorf("tree %s on mount %d, killed before: %v", m.top, mount, err)
	case maps.Equal(got, after):
		m.model = after
	case !maps.Equal(got, m.model):
		m.k.t.Errorf("tree %s on mount %d, killed before, is neither as before the last change nor as after it: %s", m.top, mount, differences(got, m.model))
	}
}

// compareAll compares the tree on all mounts with the model.
func (m *soakTree) compareAll() {
	for mount := range soakMounts {
		got, err := m.read(mount)
		if m.k.t.Failed() {
			return
		}
		if err != nil || !maps.Equal(got, m.model) {
			m.k.t.Errorf("tree %s on mount %d: %v; %s", m.top, mount, err, differences(got, m.model))
		}
	}
}

func differences(got, want map[string]string) string {
	var out []string
	for name := range want {
		if got[name] != want[name] {
			out = append(out, fmt.Sprintf("%s is %q, want %q", name, got[name], want[name]))
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			out = append(out, fmt.Sprintf("%s is there, as %q", name, got[name]))
		}
	}
	slices.Sort(out)
	return strings.Join(out[:min(len(out), 10)], "; ")
}

// read reads the tree on a mount.
func (m *soakTree) read(mount int) (tree map[string]string, err error) {
	for stayed := false; !stayed && !m.k.t.Failed(); {
		stayed = m.k.on(mount, func() { tree, err = readTree(m.k.path(mount, m.top)) })
	}
	return tree, err
}

func readTree(top string) (map[string]string, error) {
	tree := map[string]string{}
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == top {
			return err
		}
		name := strings.TrimPrefix(path, top+"/")
		switch {
		case e.IsDir():
			tree[name] = "d"
		case e.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			tree[name] = "l" + target
			return err
		default:
			data, err := os.ReadFile(path)
			tree[name] = "f" + string(data)
			return err
		}
		return nil
	})
	return tree, err
}
