package coherence

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A Player does random operations, one at a time and each on some mount, and
// the same on a local file system. What an operation says must be the same, and
// what it changed must be seen on every mount when it has returned. What was
// written to a file must be seen on the same mount at once, and on the others
// after fsync or close: before another mount deals with the file's contents, the
// Player calls fsync.
type Player struct {
	*rand.Rand
	Log []string // what was done

	t     testing.TB
	w     *World
	model *side
	sides []*side      // by mount
	open  map[int]slot // open files
	dirty map[id]int   // mounts with contents that are not stored, by the model's inode
	inos  map[id]id    // of the mounts', by the model's
	pairs map[id]id    // the other way
	ctime map[id]unix.Timespec
	paths []string       // all that there are, in the model
	muted sync.WaitGroup // of lines that are not open again yet

	// session, if it is not empty, is the mounts' sessions: it is no failure if
	// something is not as it should be after one of them was lost.
	session string
}

// A slot is a place for an open file.
type slot struct {
	mount int
	id    id // in the model
}

// slots bounds the open files.
const slots = 6

// NewPlayer returns a Player whose choices depend on seed.
func NewPlayer(t testing.TB, w *World, seed uint64) *Player {
	p := &Player{
		Rand: rand.New(rand.NewPCG(seed, 1)), t: t, w: w, model: oracle(t), open: map[int]slot{}, dirty: map[id]int{},
		inos: map[id]id{}, pairs: map[id]id{}, ctime: map[id]unix.Timespec{},
	}
	top := fmt.Sprint("seed", seed)
	w.must("mkdir", os.Mkdir(w.Mounts[0].Path(top), 0o755))
	w.must("chmod", os.Chmod(p.model.dir, 0o755))
	for _, m := range w.Mounts {
		p.sides = append(p.sides, newSide(m.Path(top)))
	}
	return p
}

// End closes what is open, and compares all on all mounts.
func (p *Player) End() {
	p.t.Helper()
	for n := range p.open {
		p.closeSlot(n)
	}
	for m := range p.sides {
		p.CompareAll(m)
	}
	p.release()
}

// release closes what is open without a word.
func (p *Player) release() {
	for _, s := range append([]*side{p.model}, p.sides...) {
		s.closeAll()
	}
}

// fail ends the test with the last operations.
func (p *Player) fail(format string, args ...any) {
	p.t.Helper()
	p.release()
	if now := p.w.sessions(); p.session != "" && now != p.session {
		p.t.Skipf("%s, but a session was lost: %s, now %s", fmt.Sprintf(format, args...), p.session, now)
	}
	p.t.Fatalf("%s\nafter\n%s", fmt.Sprintf(format, args...), strings.Join(p.Log[max(0, len(p.Log)-25):], "\n"))
}

// An op is an operation that was chosen: do does it on a side.
type op struct {
	name  string
	do    func(*side) string
	paths []string // that it may change
	data  []string // files whose contents or sizes it deals with
}

// Step does one operation.
func (p *Player) Step() {
	p.t.Helper()
	p.walk()
	m := p.IntN(len(p.sides))
	var o op
	if len(p.open) > 0 && p.IntN(3) == 0 {
		o, m = p.fileOp()
	} else {
		o = p.pathOp(m)
	}
	p.Log = append(p.Log, fmt.Sprintf("%d on mount %d: %s", len(p.Log), m, o.name))
	for _, name := range o.data {
		p.publish(p.idOf(name), m)
	}
	want := o.do(p.model)
	got := o.do(p.sides[m])
	p.Log[len(p.Log)-1] += ": " + want
	if got != want {
		p.fail("mount %d says %s", m, got)
	}
	p.walk()
	p.observe(o.paths)
}

// walk reads the names of the model.
func (p *Player) walk() {
	p.paths = p.paths[:0]
	filepath.WalkDir(p.model.dir, func(name string, _ fs.DirEntry, err error) error {
		if err == nil && name != p.model.dir {
			p.paths = append(p.paths, name[len(p.model.dir)+1:])
		}
		return nil
	})
}

// there returns a path that is there, or rarely not.
func (p *Player) there() string {
	if len(p.paths) == 0 || p.IntN(8) == 0 {
		return p.fresh()
	}
	return p.paths[p.IntN(len(p.paths))]
}

// dir returns the path of a directory.
func (p *Player) dir() string {
	for range 5 {
		if len(p.paths) == 0 || p.IntN(3) == 0 {
			return "."
		}
		name := p.paths[p.IntN(len(p.paths))]
		if st, err := p.model.stat(name); err == nil && st.size < 0 && strings.Count(name, "/") < 3 {
			return name
		}
	}
	return "."
}

// fresh returns a path in a directory that is there; something may be there.
func (p *Player) fresh() string {
	return filepath.Join(p.dir(), string(rune('a'+p.IntN(6))))
}

// idOf returns the model's inode of a path, following links.
func (p *Player) idOf(name string) id {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, p.model.path(name), 0, unix.STATX_ALL, &st) != nil {
		return id{}
	}
	return describe(&st).id
}

// publish has another mount than m store what was written to a file there.
func (p *Player) publish(file id, m int) {
	p.t.Helper()
	at, dirty := p.dirty[file]
	if !dirty || at == m {
		return
	}
	for n, s := range p.open {
		if s.id == file && s.mount == at {
			err := again(func() error { return unix.Fsync(p.sides[at].files[n]) })
			p.Log = append(p.Log, fmt.Sprintf("   fsync on mount %d: %s", at, outcome(err)))
			if err != nil {
				p.fail("fsync: %v", err)
			}
			delete(p.dirty, file)
			return
		}
	}
	p.fail("a file is not stored, and nobody has it open")
}

func (p *Player) closeSlot(n int) {
	p.t.Helper()
	s := p.open[n]
	if st, err := p.model.fstat(n); err == nil && strings.Contains(st.text, "nlink 0") {
		p.publish(s.id, -1) // its close need not store what nobody can open
	}
	want, got := p.model.close(n), p.sides[s.mount].close(n)
	if got != want {
		p.fail("close on mount %d: %s, not %s", s.mount, got, want)
	}
	delete(p.open, n)
	if at, dirty := p.dirty[s.id]; dirty && at == s.mount {
		delete(p.dirty, s.id)
	}
}

// openOp opens a file in a slot, in which another may be open.
func (p *Player) openOp(m int) op {
	name, flags := p.there(), unix.O_RDWR
	if p.IntN(2) == 0 {
		name, flags = p.fresh(), flags|unix.O_CREAT
	}
	for bit, rarely := range map[int]int{unix.O_EXCL: 4, unix.O_TRUNC: 4, unix.O_APPEND: 3, unix.O_NOFOLLOW: 5} {
		if p.IntN(rarely) == 0 && (bit != unix.O_EXCL || flags&unix.O_CREAT != 0) {
			flags |= bit
		}
	}
	n := p.IntN(slots)
	if _, is := p.open[n]; is {
		p.closeSlot(n)
	}
	mode := uint32(p.IntN(0o1000))
	return op{
		name:  fmt.Sprintf("open %s flags %#x in %d", name, flags, n),
		paths: []string{name}, data: []string{name},
		do: func(s *side) string {
			out := s.open(n, name, flags, mode)
			if s == p.model && out == "done" {
				st, _ := s.fstat(n)
				p.open[n] = slot{m, st.id}
			}
			return out
		},
	}
}

// fileOp returns an operation on a file that is open, and its mount.
func (p *Player) fileOp() (op, int) {
	var n int
	for n = p.IntN(slots); ; n = (n + 1) % slots {
		if _, is := p.open[n]; is {
			break
		}
	}
	f := p.open[n]
	m := f.mount
	if p.IntN(12) != 0 { // rarely is it asked for while another mount has not stored what it wrote
		p.publish(f.id, m)
	}
	at, elsewhere := p.dirty[f.id]
	elsewhere = elsewhere && at != m
	off, size := int64(p.IntN(3*BlockSize)), 1+p.IntN(2*BlockSize)
	if p.IntN(2) == 0 {
		off, size = int64(p.IntN(InlineMax)), 1+p.IntN(InlineMax)
	}
	b := byte(1 + p.IntN(250))
	kind := p.IntN(8)
	if elsewhere { // what does not deal with its contents
		kind = 6
	}
	switch kind {
	case 0, 1:
		p.dirty[f.id] = m
		return op{name: fmt.Sprintf("pwrite %d×%d at %d to %d", size, b, off, n), do: func(s *side) string { return s.write(n, b, off, size) }}, m
	case 2:
		p.dirty[f.id] = m
		return op{name: fmt.Sprintf("write %d×%d to %d", size, b, n), do: func(s *side) string { return s.write(n, b, -1, size) }}, m
	case 3:
		return op{name: fmt.Sprintf("pread %d at %d from %d", size, off, n), do: func(s *side) string { return readAt(s.files[n], off, size) }}, m
	case 4:
		return op{name: fmt.Sprintf("ftruncate %d to %d", n, off), do: func(s *side) string {
			return outcome(again(func() error { return unix.Ftruncate(s.files[n], off) }))
		}}, m
	case 5:
		delete(p.dirty, f.id)
		return op{name: fmt.Sprintf("fsync %d", n), do: func(s *side) string {
			return outcome(again(func() error { return unix.Fsync(s.files[n]) }))
		}}, m
	case 6:
		return op{name: fmt.Sprintf("fstat %d", n), do: func(s *side) string {
			st, err := s.fstat(n)
			if elsewhere {
				st.size = 0
			}
			return fmt.Sprint(outcome(err), " ", st.text, " size ", st.size)
		}}, m
	}
	p.closeSlot(n)
	return op{name: fmt.Sprintf("close %d", n), do: func(*side) string { return "done" }}, m
}

// pathOp returns an operation on names.
func (p *Player) pathOp(m int) op {
	kind := p.IntN(20)
	if len(p.paths) > 25 && p.IntN(2) == 0 {
		kind = 5
	}
	name := p.there()
	simple := func(what string, f func(path string) error) op {
		return op{name: what + " " + name, paths: []string{name}, do: func(s *side) string {
			return outcome(again(func() error { return f(s.path(name)) }))
		}}
	}
	switch kind {
	case 0, 1, 2:
		return p.openOp(m)
	case 3:
		name = p.fresh()
		return simple("mkdir", func(path string) error { return unix.Mkdir(path, 0o755) })
	case 4:
		return simple("rmdir", unix.Rmdir)
	case 5, 6:
		return simple("unlink", unix.Unlink)
	case 7, 8, 9:
		to, flags := p.fresh(), []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[p.IntN(4)]
		if p.IntN(2) == 0 {
			to = p.there()
		}
		return op{name: fmt.Sprintf("rename %s to %s flags %d", name, to, flags), paths: []string{name, to}, do: func(s *side) string {
			return outcome(again(func() error {
				return unix.Renameat2(unix.AT_FDCWD, s.path(name), unix.AT_FDCWD, s.path(to), flags)
			}))
		}}
	case 10:
		to := p.fresh()
		return op{name: fmt.Sprintf("link %s to %s", name, to), paths: []string{name, to}, do: func(s *side) string {
			return outcome(again(func() error { return unix.Link(s.path(name), s.path(to)) }))
		}}
	case 11:
		name = p.fresh()
		target := string(rune('a' + p.IntN(6)))
		return simple("symlink to "+target, func(path string) error { return unix.Symlink(target, path) })
	case 12:
		mode := uint32(p.IntN(0o10000))
		return simple(fmt.Sprintf("chmod %o", mode), func(path string) error { return unix.Chmod(path, mode) })
	case 13:
		uid, gid := p.IntN(3), p.IntN(3)
		return simple(fmt.Sprintf("chown %d:%d", uid, gid), func(path string) error { return unix.Lchown(path, uid, gid) })
	case 14:
		return p.utimes(name)
	case 15:
		size := int64(p.IntN(3 * BlockSize))
		o := simple(fmt.Sprint("truncate to ", size), func(path string) error { return unix.Truncate(path, size) })
		o.data = []string{name}
		return o
	case 16, 17:
		return p.xattr(name)
	case 18:
		return op{name: "readlink " + name, do: func(s *side) string {
			target, err := os.Readlink(s.path(name))
			return outcome(err) + target
		}}
	}
	return op{name: "list " + name, do: func(s *side) string { return s.list(name) }}
}

func (p *Player) utimes(name string) op {
	ts := []unix.Timespec{{Sec: p.Int64N(1 << 32), Nsec: p.Int64N(1e9)}, {Sec: p.Int64N(1 << 32), Nsec: p.Int64N(1e9)}}
	return op{name: "utimes " + name, paths: []string{name}, data: []string{name}, do: func(s *side) string {
		err := again(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), ts, unix.AT_SYMLINK_NOFOLLOW) })
		st, _ := s.stat(name)
		if err != nil {
			return outcome(err)
		}
		return fmt.Sprint("mtime ", st.time[0])
	}}
}

func (p *Player) xattr(name string) op {
	key := "user." + string(rune('p'+p.IntN(3)))
	value := []byte(strings.Repeat("v", p.IntN(20)))
	flags := p.IntN(3)
	switch p.IntN(4) {
	case 0:
		return op{name: fmt.Sprintf("setxattr %s %s flags %d", name, key, flags), paths: []string{name}, do: func(s *side) string {
			return outcome(again(func() error { return unix.Lsetxattr(s.path(name), key, value, flags) }))
		}}
	case 1:
		return op{name: fmt.Sprintf("removexattr %s %s", name, key), paths: []string{name}, do: func(s *side) string {
			return outcome(again(func() error { return unix.Lremovexattr(s.path(name), key) }))
		}}
	case 2:
		return op{name: "listxattr " + name, do: func(s *side) string { return s.listxattr(name) }}
	}
	return op{name: fmt.Sprintf("getxattr %s %s", name, key), do: func(s *side) string { return s.getxattr(name, key) }}
}

// observe looks at paths and their directories on all mounts.
func (p *Player) observe(paths []string) {
	p.t.Helper()
	for _, name := range paths {
		for m := range p.sides {
			p.compare(m, name)
			if p.IntN(3) == 0 {
				p.compareContents(m, name)
			}
			dir := filepath.Dir(name)
			p.compare(m, dir)
			if got, want := p.sides[m].list(dir), p.model.list(dir); got != want {
				p.fail("mount %d: in %s are\n%s, not\n%s", m, dir, got, want)
			}
		}
	}
}

// compare compares what stat says.
func (p *Player) compare(m int, name string) {
	p.t.Helper()
	want, wantErr := p.model.stat(name)
	got, err := p.sides[m].stat(name)
	if outcome(err) != outcome(wantErr) {
		p.fail("mount %d: stat of %s says %s, not %s", m, name, outcome(err), outcome(wantErr))
	}
	if err != nil {
		return
	}
	if got.text != want.text {
		p.fail("mount %d: %s has %s, not %s", m, name, got.text, want.text)
	}
	p.compareID(m, name, got, want)
	at, dirty := p.dirty[want.id]
	if (!dirty || at == m) && got.size != want.size {
		p.fail("mount %d: %s has %d bytes, not %d", m, name, got.size, want.size)
	}
	if dirty { // its times are those of writes that others need not see
		return
	}
	for other, s := range p.sides[:m] {
		if st, err := s.stat(name); err == nil && st.time != got.time {
			p.fail("mount %d says that %s has the times %v, and mount %d %v", m, name, got.time, other, st.time)
		}
	}
	if last := p.ctime[got.id]; got.time[1].Nano() < last.Nano() {
		p.fail("mount %d: the ctime of %s goes back from %v to %v", m, name, last, got.time[1])
	}
	p.ctime[got.id] = got.time[1]
}

// compareID makes sure that a name stands for the inode that it should.
func (p *Player) compareID(m int, name string, got, want status) {
	p.t.Helper()
	if _, known := p.inos[want.id]; !known {
		if _, taken := p.pairs[got.id]; taken {
			p.fail("mount %d: %s is inode %d, which is another file", m, name, got.id.ino)
		}
		p.inos[want.id], p.pairs[got.id] = got.id, want.id
	}
	if is := p.inos[want.id]; is != got.id {
		p.fail("mount %d: %s is inode %d, not %d", m, name, got.id.ino, is.ino)
	}
}

func (p *Player) compareContents(m int, name string) {
	p.t.Helper()
	st, err := p.model.stat(name)
	if err != nil || !strings.HasPrefix(st.text, "mode 100") {
		return
	}
	if at, dirty := p.dirty[st.id]; dirty && at != m {
		return
	}
	if got, want := p.sides[m].contents(name), p.model.contents(name); got != want {
		p.fail("mount %d: %s has\n%s, not\n%s", m, name, got, want)
	}
	// The close stored what was written.
	if at, dirty := p.dirty[st.id]; dirty && at == m {
		delete(p.dirty, st.id)
	}
}

// CompareAll compares the whole tree on a mount.
func (p *Player) CompareAll(m int) {
	p.t.Helper()
	p.walk()
	for _, name := range slices.Concat([]string{"."}, p.paths) {
		p.compare(m, name)
		p.compareContents(m, name)
		if got, want := p.sides[m].list(name), p.model.list(name); got != want {
			p.fail("mount %d: in %s are\n%s, not\n%s", m, name, got, want)
		}
		if got, want := p.sides[m].listxattr(name), p.model.listxattr(name); got != want {
			p.fail("mount %d: %s has the attributes %s, not %s", m, name, got, want)
		}
	}
}
