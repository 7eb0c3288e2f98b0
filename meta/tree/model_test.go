package tree

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

// A node is an inode of the model: a file system in maps.
type node struct {
	ino    meta.Ino
	mode   uint32
	nlink  uint32
	size   uint64
	blocks map[uint32]uint32 // lengths
	xattrs map[string]string
	names  map[string]*node // of a directory
	parent *node
}

func (n *node) isDir() bool { return n.mode&syscall.S_IFMT == syscall.S_IFDIR }

// A model does to maps what the server does to the engine, and says what errno
// is due.
type model struct {
	root *node
	all  []*node // removed ones too
}

func newModel() *model {
	root := &node{ino: meta.Root, mode: syscall.S_IFDIR | 0o755, nlink: 2, names: map[string]*node{}}
	root.parent = root
	return &model{root: root, all: []*node{root}}
}

func (m *model) make(dir *node, name string, mode uint32, exist bool) (*node, syscall.Errno) {
	if !dir.isDir() {
		return nil, syscall.ENOTDIR
	}
	if dir.nlink == 0 {
		return nil, syscall.ENOENT
	}
	if old := dir.names[name]; old != nil {
		if exist && old.mode&syscall.S_IFMT == syscall.S_IFREG && mode&syscall.S_IFMT == syscall.S_IFREG {
			return old, 0
		}
		return nil, syscall.EEXIST
	}
	n := &node{mode: mode, nlink: 1, blocks: map[uint32]uint32{}, xattrs: map[string]string{}, parent: dir}
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		n.nlink, n.names = 2, map[string]*node{}
		dir.nlink++
	case syscall.S_IFLNK:
		n.mode, n.size = syscall.S_IFLNK|0o777, 6
	}
	dir.names[name] = n
	m.all = append(m.all, n)
	return n, 0
}

func (m *model) link(n, dir *node, name string) syscall.Errno {
	switch {
	case !dir.isDir():
		return syscall.ENOTDIR
	case dir.nlink == 0:
		return syscall.ENOENT
	case n.isDir():
		return syscall.EPERM
	case dir.names[name] != nil:
		return syscall.EEXIST
	}
	dir.names[name] = n
	n.nlink++
	return 0
}

func (m *model) unlink(dir *node, name string) syscall.Errno {
	if !dir.isDir() {
		return syscall.ENOTDIR
	}
	n := dir.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case n.isDir():
		return syscall.EISDIR
	}
	delete(dir.names, name)
	n.nlink--
	return 0
}

func (m *model) rmdir(dir *node, name string) syscall.Errno {
	if !dir.isDir() {
		return syscall.ENOTDIR
	}
	n := dir.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case !n.isDir():
		return syscall.ENOTDIR
	case len(n.names) > 0:
		return syscall.ENOTEMPTY
	}
	delete(dir.names, name)
	dir.nlink--
	n.nlink = 0
	return 0
}

func (m *model) removeTree(dir *node, name string) syscall.Errno {
	if !dir.isDir() {
		return syscall.ENOTDIR
	}
	n := dir.names[name]
	switch {
	case n == nil:
		return syscall.ENOENT
	case !n.isDir():
		return syscall.ENOTDIR
	}
	for child, in := range n.names {
		if in.isDir() {
			m.removeTree(n, child)
		} else {
			m.unlink(n, child)
		}
	}
	return m.rmdir(dir, name)
}

func below(dir, top *node) bool {
	for ; dir != top; dir = dir.parent {
		if dir == dir.parent {
			return false
		}
	}
	return true
}

func (m *model) rename(from *node, a string, to *node, b string, flags uint32) syscall.Errno {
	switch {
	case !from.isDir() || !to.isDir():
		return syscall.ENOTDIR
	case to.nlink == 0:
		return syscall.ENOENT
	}
	n, old := from.names[a], to.names[b]
	switch {
	case n == nil:
		return syscall.ENOENT
	case old != nil && flags == renameNoReplace:
		return syscall.EEXIST
	case old == nil && flags == renameExchange:
		return syscall.ENOENT
	case old == n:
		return 0
	case n.isDir() && below(to, n):
		return syscall.EINVAL
	case flags == renameExchange && old.isDir() && below(from, old):
		return syscall.EINVAL
	}
	if flags == renameExchange {
		m.place(n, from, to, b)
		m.place(old, to, from, a)
		return 0
	}
	if old != nil {
		switch {
		case n.isDir() && !old.isDir():
			return syscall.ENOTDIR
		case !n.isDir() && old.isDir():
			return syscall.EISDIR
		case old.isDir():
			if e := m.rmdir(to, b); e != 0 {
				return e
			}
		default:
			m.unlink(to, b)
		}
	}
	delete(from.names, a)
	m.place(n, from, to, b)
	return 0
}

func (m *model) place(n, from, to *node, name string) {
	to.names[name] = n
	if n.isDir() {
		from.nlink--
		to.nlink++
		n.parent = to
	}
}

func (m *model) truncate(n *node, size uint64) syscall.Errno {
	switch {
	case n.isDir():
		return syscall.EISDIR
	case n.mode&syscall.S_IFMT != syscall.S_IFREG:
		return syscall.EINVAL
	}
	for i, l := range n.blocks {
		start := uint64(i) * testBlockSize
		if start >= size {
			delete(n.blocks, i)
		} else {
			n.blocks[i] = uint32(min(uint64(l), size-start))
		}
	}
	n.size = size
	return 0
}

// tree describes all that the root leads to, as client.describe does.
func (m *model) tree() string {
	var b strings.Builder
	var walk func(n *node, path string)
	walk = func(n *node, path string) {
		var bytes uint64
		for _, l := range n.blocks {
			bytes += uint64(l)
		}
		size := n.size
		if n.isDir() {
			size = uint64(len(n.names))
		}
		fmt.Fprintf(&b, "%s ino %d mode %o nlink %d size %d bytes %d xattrs %d %v\n",
			path, n.ino, n.mode, n.nlink, size, bytes, len(n.xattrs), keys(n.xattrs))
		for _, name := range keys(n.names) {
			walk(n.names[name], path+"/"+name)
		}
	}
	walk(m.root, "")
	return b.String()
}

func keys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (c *client) describe() string {
	c.t.Helper()
	var b strings.Builder
	var walk func(a meta.Attr, path string)
	walk = func(a meta.Attr, path string) {
		xattrs := c.ok(on(meta.OpListxattr, a.Ino, "")).Names
		fmt.Fprintf(&b, "%s ino %d mode %o nlink %d size %d bytes %d xattrs %d %v\n",
			path, a.Ino, a.Mode, a.Nlink, a.Size, a.Bytes, a.Xattrs, xattrs)
		if !a.IsDir() {
			return
		}
		for _, e := range c.ok(&meta.Request{Op: meta.OpReaddir, Ino: a.Ino, Plus: true}).Entries {
			walk(e.Attr, path+"/"+e.Name)
		}
	}
	walk(c.attr(meta.Root), "")
	return b.String()
}

// A player does random operations to a client and a model, and compares.
type player struct {
	*rand.Rand
	c *client
	m *model
}

func (p *player) name() string { return string(rune('a' + p.IntN(6))) }

func (p *player) node() *node { return p.m.all[max(0, len(p.m.all)-1-p.IntN(12))] }

// dir returns a directory, or rarely something else.
func (p *player) dir() *node {
	for range 10 {
		if n := p.m.all[p.IntN(len(p.m.all))]; n.isDir() && (n.nlink > 0 || p.IntN(10) == 0) {
			return n
		}
	}
	return p.node()
}

// living returns an inode that has a name.
func (p *player) living() *node {
	for range 20 {
		if n := p.node(); n.nlink > 0 {
			return n
		}
	}
	return p.m.root
}

// step does one random operation and returns the errno that it got and that it
// should have got.
func (p *player) step() (what string, got, want syscall.Errno) {
	dir, name := p.dir(), p.name()
	switch p.IntN(12) {
	case 0, 1, 2:
		mode := []uint32{reg, dirm, reg, syscall.S_IFLNK, syscall.S_IFIFO | 0o600}[p.IntN(5)]
		exist := p.IntN(2) == 0
		n, want := p.m.make(dir, name, mode, exist)
		r := p.c.do(&meta.Request{Op: meta.OpMake, Ino: dir.ino, Name: name, Mode: mode, Exist: exist, Data: linkTarget(mode)})
		if n != nil && r.Errno == 0 {
			n.ino = r.Attr.Ino
		}
		return fmt.Sprintf("make %o %s in %d", mode, name, dir.ino), r.Errno, want
	case 3:
		n := p.living()
		r := p.c.do(&meta.Request{Op: meta.OpLink, Ino: n.ino, Ino2: dir.ino, Name: name})
		return fmt.Sprintf("link %d to %s in %d", n.ino, name, dir.ino), r.Errno, p.m.link(n, dir, name)
	case 4:
		r := p.c.do(on(meta.OpUnlink, dir.ino, name))
		return fmt.Sprintf("unlink %s in %d", name, dir.ino), r.Errno, p.m.unlink(dir, name)
	case 5:
		r := p.c.do(on(meta.OpRmdir, dir.ino, name))
		return fmt.Sprintf("rmdir %s in %d", name, dir.ino), r.Errno, p.m.rmdir(dir, name)
	case 6, 7:
		to, name2, flags := p.dir(), p.name(), uint32(max(0, p.IntN(6)-3))
		r := p.c.do(renaming(dir.ino, name, to.ino, name2, flags))
		what := fmt.Sprintf("rename %s in %d to %s in %d, flags %d", name, dir.ino, name2, to.ino, flags)
		return what, r.Errno, p.m.rename(dir, name, to, name2, flags)
	case 11:
		if p.IntN(4) > 0 { // trees must grow
			return p.write(p.living())
		}
		r := p.c.do(on(meta.OpRemoveTree, dir.ino, name))
		p.c.w.takeApart()
		return fmt.Sprintf("remove tree %s in %d", name, dir.ino), r.Errno, p.m.removeTree(dir, name)
	case 8:
		return p.write(p.living())
	case 9:
		n, size := p.living(), uint64(p.IntN(8*testBlockSize))
		r := p.c.do(&meta.Request{Op: meta.OpSetattr, Ino: n.ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}})
		return fmt.Sprintf("truncate %d to %d", n.ino, size), r.Errno, p.m.truncate(n, size)
	}
	return p.xattr(p.living(), "user."+name)
}

func linkTarget(mode uint32) []byte {
	if mode == syscall.S_IFLNK {
		return []byte("target")
	}
	return nil
}

func (p *player) write(n *node) (what string, got, want syscall.Errno) {
	i := uint32(p.IntN(8))
	if p.IntN(4) == 0 {
		r := p.c.do(&meta.Request{Op: meta.OpPunch, Ino: n.ino, Index: i, Index2: i + 3})
		if n.mode&syscall.S_IFMT != syscall.S_IFREG {
			return fmt.Sprintf("punch %d", n.ino), r.Errno, syscall.EINVAL
		}
		for j := i; j < i+3; j++ {
			delete(n.blocks, j)
		}
		return fmt.Sprintf("punch %d at %d", n.ino, i), r.Errno, 0
	}
	k := p.c.block(i, 1+uint32(p.IntN(testBlockSize)))
	if i == 0 && p.IntN(2) == 0 {
		k.Inline, k.Data = true, make([]byte, k.Len)
	}
	end := uint64(i)*testBlockSize + uint64(k.Len)
	r := p.c.do(&meta.Request{Op: meta.OpCommit, Ino: n.ino, Size: end, Blocks: []meta.Block{k}})
	what = fmt.Sprintf("write %d at %d", n.ino, i)
	switch {
	case n.isDir():
		return what, r.Errno, syscall.EISDIR
	case n.mode&syscall.S_IFMT != syscall.S_IFREG:
		return what, r.Errno, syscall.EINVAL
	}
	n.size = max(n.size, end)
	n.blocks[i] = k.Len
	return what, r.Errno, 0
}

func (p *player) xattr(n *node, name string) (what string, got, want syscall.Errno) {
	if n.xattrs == nil {
		n.xattrs = map[string]string{}
	}
	if p.IntN(2) == 0 {
		n.xattrs[name] = ""
		return "setxattr", p.c.do(on(meta.OpSetxattr, n.ino, name)).Errno, 0
	}
	if _, ok := n.xattrs[name]; !ok {
		want = syscall.ENODATA
	}
	delete(n.xattrs, name)
	return "removexattr", p.c.do(on(meta.OpRemovexattr, n.ino, name)).Errno, want
}

func TestRandomOperationsDoWhatTheModelDoes(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.config.Retention = []time.Duration{0, time.Hour, -1}[seed%3]
			p := &player{rand.New(rand.NewPCG(seed, 1)), w.hello("rw:"), newModel()}
			for i := range 600 {
				what, got, want := p.step()
				if got != want {
					t.Fatalf("step %d: %s: %v, want %v", i, what, got, want)
				}
				if i%50 == 49 {
					p.compare()
				}
				if i%200 == 199 {
					w.start()
					if r := p.c.resume(&meta.Request{}); r.Errno != 0 {
						t.Fatalf("resume: %v", r.Errno)
					}
				}
			}
		})
	}
}

// compare compares the whole trees, and checks the engine.
func (p *player) compare() {
	p.c.t.Helper()
	got, want := p.c.describe(), p.m.tree()
	if got != want {
		a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
		p.c.t.Fatalf("the trees differ: only in the engine\n%s\nonly in the model\n%s", minus(a, b), minus(b, a))
	}
	p.c.w.check()
	if p.c.t.Failed() {
		p.c.t.FailNow()
	}
}

func minus(a, b []string) string {
	return strings.Join(slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) }), "\n")
}
