package tree

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

const (
	reg  = syscall.S_IFREG | 0o644
	dirm = syscall.S_IFDIR | 0o755
)

// A refusalCase is a request that is refused in the tree that refusalTree makes:
//
//	/f  a file    /d  a directory    /d/x  a file in it    /d/s  a directory in it
//	/e  an empty directory           /l  a symbolic link
type refusalCase struct {
	name string
	want syscall.Errno
	req  func(r refusalTree) *meta.Request
}

type refusalTree struct{ f, d, x, s, e, l meta.Ino }

func newRefusalTree(c *client) refusalTree {
	var r refusalTree
	r.f = c.file(meta.Root, "f")
	r.d = c.dir(meta.Root, "d")
	r.x = c.file(r.d, "x")
	r.s = c.dir(r.d, "s")
	r.e = c.dir(meta.Root, "e")
	r.l = c.make(meta.Root, "l", syscall.S_IFLNK)
	return r
}

func on(op meta.Op, ino meta.Ino, name string) *meta.Request {
	return &meta.Request{Op: op, Ino: ino, Name: name}
}

func renaming(from meta.Ino, a string, to meta.Ino, b string, flags uint32) *meta.Request {
	return &meta.Request{Op: meta.OpRename, Ino: from, Name: a, Ino2: to, Name2: b, Flags: flags}
}

var long = strings.Repeat("n", meta.MaxName+1)

var refusals = []refusalCase{
	{"lookup of nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpLookup, r.d, "no") }},
	{"lookup in a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request { return on(meta.OpLookup, r.f, "no") }},
	{"lookup in nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpLookup, 999, "no") }},
	{"lookup of a long name", syscall.ENAMETOOLONG, func(r refusalTree) *meta.Request { return on(meta.OpLookup, r.d, long) }},
	{"getattr of nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpGetattr, 999, "") }},
	{"getattr of inode 0", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpGetattr, 0, "") }},
	{"readdir of a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request { return on(meta.OpReaddir, r.f, "") }},
	{"blocks of a directory", syscall.EINVAL, func(r refusalTree) *meta.Request { return on(meta.OpBlocks, r.d, "") }},

	{"make of what is there", syscall.EEXIST, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: reg}
	}},
	{"make where a directory is", syscall.EEXIST, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: reg, Exist: true}
	}},
	{"make in a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.f, Name: "n", Mode: reg}
	}},
	{"make of a long name", syscall.ENAMETOOLONG, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: long, Mode: reg}
	}},
	{"make of a name with a slash", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: "a/b", Mode: reg}
	}},
	{"make of a directory without a name", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Mode: dirm}
	}},
	{"make of ..", syscall.EEXIST, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: "..", Mode: dirm}
	}},
	{"make of an unknown type", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: "n", Mode: 0o170000}
	}},
	{"symlink to nothing", syscall.ENOENT, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: "n", Mode: syscall.S_IFLNK}
	}},
	{"symlink to a long path", syscall.ENAMETOOLONG, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpMake, Ino: r.d, Name: "n", Mode: syscall.S_IFLNK, Data: make([]byte, meta.MaxTarget+1)}
	}},

	{"link of a directory", syscall.EPERM, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpLink, Ino: r.d, Ino2: r.e, Name: "n"}
	}},
	{"link over a file", syscall.EEXIST, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpLink, Ino: r.f, Ino2: r.d, Name: "x"}
	}},
	{"link into a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpLink, Ino: r.f, Ino2: r.x, Name: "n"}
	}},

	{"unlink of nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpUnlink, r.d, "no") }},
	{"unlink of a directory", syscall.EISDIR, func(r refusalTree) *meta.Request { return on(meta.OpUnlink, r.d, "s") }},
	{"unlink of .", syscall.EISDIR, func(r refusalTree) *meta.Request { return on(meta.OpUnlink, r.d, ".") }},
	{"unlink in a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request { return on(meta.OpUnlink, r.f, "n") }},
	{"rmdir of nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpRmdir, r.d, "no") }},
	{"rmdir of a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request { return on(meta.OpRmdir, r.d, "x") }},
	{"rmdir of a full directory", syscall.ENOTEMPTY, func(r refusalTree) *meta.Request { return on(meta.OpRmdir, meta.Root, "d") }},
	{"rmdir of .", syscall.EINVAL, func(r refusalTree) *meta.Request { return on(meta.OpRmdir, r.d, ".") }},
	{"rmdir of ..", syscall.ENOTEMPTY, func(r refusalTree) *meta.Request { return on(meta.OpRmdir, r.d, "..") }},

	{"rename of nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return renaming(r.d, "no", r.d, "n", 0) }},
	{"rename of .", syscall.EBUSY, func(r refusalTree) *meta.Request { return renaming(r.d, ".", r.d, "n", 0) }},
	{"rename to a long name", syscall.ENAMETOOLONG, func(r refusalTree) *meta.Request { return renaming(r.d, "x", r.d, long, 0) }},
	{"rename with unknown flags", syscall.EINVAL, func(r refusalTree) *meta.Request { return renaming(r.d, "x", r.d, "n", 8) }},
	{"rename with both flags", syscall.EINVAL, func(r refusalTree) *meta.Request { return renaming(r.d, "x", r.d, "n", 3) }},
	{"rename over what is there", syscall.EEXIST, func(r refusalTree) *meta.Request { return renaming(r.d, "x", meta.Root, "f", 1) }},
	{"exchange with nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return renaming(r.d, "x", r.d, "n", 2) }},
	{"rename of a file over a directory", syscall.EISDIR, func(r refusalTree) *meta.Request { return renaming(r.d, "x", meta.Root, "e", 0) }},
	{"rename of a directory over a file", syscall.ENOTDIR, func(r refusalTree) *meta.Request { return renaming(meta.Root, "e", r.d, "x", 0) }},
	{"rename over a full directory", syscall.ENOTEMPTY, func(r refusalTree) *meta.Request { return renaming(meta.Root, "e", meta.Root, "d", 0) }},
	{"rename of a directory into itself", syscall.EINVAL, func(r refusalTree) *meta.Request { return renaming(meta.Root, "d", r.d, "n", 0) }},
	{"rename of a directory below itself", syscall.EINVAL, func(r refusalTree) *meta.Request { return renaming(meta.Root, "d", r.s, "n", 0) }},
	{"exchange of a directory with one in it", syscall.EINVAL, func(r refusalTree) *meta.Request { return renaming(meta.Root, "d", r.d, "s", 2) }},
	{"rename over the parent", syscall.ENOTEMPTY, func(r refusalTree) *meta.Request { return renaming(r.d, "s", meta.Root, "d", 0) }},

	{"truncate of a directory", syscall.EISDIR, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetattr, Ino: r.d, Set: meta.SetSize}
	}},
	{"truncate of a link", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetattr, Ino: r.l, Set: meta.SetSize}
	}},
	{"truncate to too much", syscall.EFBIG, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetattr, Ino: r.f, Set: meta.SetSize, Attr: meta.Attr{Size: meta.MaxSize + 1}}
	}},
	{"commit to a directory", syscall.EISDIR, func(r refusalTree) *meta.Request { return on(meta.OpCommit, r.d, "") }},
	{"commit to nothing", syscall.ENOENT, func(r refusalTree) *meta.Request { return on(meta.OpCommit, 999, "") }},
	{"commit of a block without a version", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Blocks: []meta.Block{{Len: 1}}}
	}},
	{"commit of too long a block", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Blocks: []meta.Block{{Gen: meta.Gen{Session: 1}, Len: testBlockSize + 1}}}
	}},
	{"commit of a block twice", syscall.EINVAL, func(r refusalTree) *meta.Request {
		k := meta.Block{Gen: meta.Gen{Session: 1}, Len: 1}
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Blocks: []meta.Block{k, k}}
	}},
	{"commit of an inline block 1", syscall.EINVAL, func(r refusalTree) *meta.Request {
		k := meta.Block{Index: 1, Gen: meta.Gen{Session: 1}, Len: 1, Inline: true}
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Blocks: []meta.Block{k}}
	}},
	{"commit of too many blocks", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Blocks: make([]meta.Block, meta.MaxCommit+1)}
	}},
	{"commit made from another version", syscall.ESTALE, func(r refusalTree) *meta.Request {
		k := meta.Block{Gen: meta.Gen{Session: 1, Seq: 2}, Len: 1, Base: meta.Gen{Session: 1, Seq: 1}}
		return &meta.Request{Op: meta.OpCommit, Ino: r.f, Size: 1, Blocks: []meta.Block{k}}
	}},
	{"punch of a directory", syscall.EINVAL, func(r refusalTree) *meta.Request { return on(meta.OpPunch, r.d, "") }},

	{"getxattr of nothing", syscall.ENODATA, func(r refusalTree) *meta.Request { return on(meta.OpGetxattr, r.f, "user.a") }},
	{"removexattr of nothing", syscall.ENODATA, func(r refusalTree) *meta.Request { return on(meta.OpRemovexattr, r.f, "user.a") }},
	{"setxattr of a long name", syscall.ERANGE, func(r refusalTree) *meta.Request { return on(meta.OpSetxattr, r.f, long) }},
	{"setxattr of a long value", syscall.E2BIG, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetxattr, Ino: r.f, Name: "user.a", Data: make([]byte, meta.MaxXattr+1)}
	}},
	{"setxattr that must replace", syscall.ENODATA, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetxattr, Ino: r.f, Name: "user.a", Flags: xattrReplace}
	}},
	{"setxattr with unknown flags", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetxattr, Ino: r.f, Name: "user.a", Flags: 8}
	}},
	{"a lock of no type", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetlk, Ino: r.f, Lock: meta.Lock{Type: 9}}
	}},
	{"a lock that ends before it starts", syscall.EINVAL, func(r refusalTree) *meta.Request {
		return &meta.Request{Op: meta.OpSetlk, Ino: r.f, Lock: meta.Lock{Start: 2, End: 1}}
	}},
	{"an unknown operation", syscall.ENOSYS, func(r refusalTree) *meta.Request { return on(999, r.f, "") }},
}

func TestRefusedOperationsChangeNothing(t *testing.T) {
	for _, tc := range refusals {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.hello("rw:")
			r := newRefusalTree(c)
			before := c.tree()
			c.refused(tc.want, tc.req(r))
			if after := c.tree(); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// tree describes all that the root leads to.
func (c *client) tree() string {
	c.t.Helper()
	var b strings.Builder
	var walk func(ino meta.Ino, path string)
	walk = func(ino meta.Ino, path string) {
		for _, e := range c.ok(&meta.Request{Op: meta.OpReaddir, Ino: ino, Plus: true}).Entries {
			fmt.Fprintf(&b, "%s/%s %+v\n", path, e.Name, e.Attr)
			if e.Attr.IsDir() {
				walk(e.Attr.Ino, path+"/"+e.Name)
			}
		}
	}
	walk(meta.Root, "")
	return b.String()
}

func TestAReadOnlySessionChangesNothing(t *testing.T) {
	w := newWorld(t)
	rw, ro := w.hello("rw:"), w.hello("ro:")
	ino := rw.file(meta.Root, "f")
	for _, op := range []meta.Op{
		meta.OpMake, meta.OpLink, meta.OpUnlink, meta.OpRmdir, meta.OpRename, meta.OpSetattr,
		meta.OpCommit, meta.OpPunch, meta.OpSetxattr, meta.OpRemovexattr,
	} {
		ro.refused(syscall.EROFS, on(op, meta.Root, "f"))
	}
	ro.attr(ino)
	ro.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{ino}})
}

func TestInASetgidDirectoryTheGroupIsInherited(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	top := c.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: syscall.S_IFDIR | 0o2775, Gid: 7}).Attr.Ino
	f := c.ok(&meta.Request{Op: meta.OpMake, Ino: top, Name: "f", Mode: reg, Gid: 8}).Attr
	d := c.ok(&meta.Request{Op: meta.OpMake, Ino: top, Name: "s", Mode: dirm, Gid: 8}).Attr
	if f.Gid != 7 || f.Mode&syscall.S_ISGID != 0 {
		t.Errorf("file: gid %d mode %o", f.Gid, f.Mode)
	}
	if d.Gid != 7 || d.Mode&syscall.S_ISGID == 0 {
		t.Errorf("directory: gid %d mode %o", d.Gid, d.Mode)
	}
}

func TestAChangeOfOwnerTakesPrivilegesAway(t *testing.T) {
	for _, tc := range []struct {
		mode, want uint32
		set        meta.SetMask
	}{
		{0o6755, 0o755, meta.SetUid},
		{0o6755, 0o755, meta.SetGid},
		{0o6745, 0o2745, meta.SetUid},
		{0o6755, 0o6755, meta.SetUid | meta.SetMode},
		{0o6755, 0o755, meta.SetKillPriv},
		{0o6755, 0o6755, meta.SetMtime},
	} {
		w := newWorld(t)
		c := w.hello("rw:")
		ino := c.make(meta.Root, "f", syscall.S_IFREG|tc.mode)
		a := c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: tc.set, Attr: meta.Attr{Mode: tc.mode, Uid: 5}}).Attr
		if a.Mode&permMask != tc.want {
			t.Errorf("mode %o after set %b: %o, want %o", tc.mode, tc.set, a.Mode&permMask, tc.want)
		}
	}
}

func TestNlinkCountsNamesAndDirectories(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b := c.dir(meta.Root, "a"), c.dir(meta.Root, "b")
	f := c.file(a, "f")
	c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: a, Name: "g"})
	c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: b, Name: "h"})
	w.check()
	if n := c.attr(f).Nlink; n != 3 {
		t.Errorf("file nlink %d, want 3", n)
	}
	if n := c.attr(meta.Root).Nlink; n != 4 {
		t.Errorf("root nlink %d, want 4", n)
	}
	c.ok(renaming(a, "g", b, "g", 0))
	w.check()
	c.ok(renaming(meta.Root, "b", a, "b", 0))
	if r, n := c.attr(meta.Root).Nlink, c.attr(a).Nlink; r != 3 || n != 3 {
		t.Errorf("root nlink %d, a %d, want 3 and 3", r, n)
	}
	for _, step := range []struct {
		dir  meta.Ino
		name string
		want uint32
	}{{a, "f", 2}, {b, "g", 1}, {b, "h", 0}} {
		got := c.ok(on(meta.OpUnlink, step.dir, step.name)).Attr.Nlink
		if got != step.want {
			t.Errorf("nlink %d after unlink of %s, want %d", got, step.name, step.want)
		}
		w.check()
	}
}

func TestExchangeSwapsAFileAndADirectory(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a, b := c.dir(meta.Root, "a"), c.dir(meta.Root, "b")
	f, d := c.file(a, "f"), c.dir(b, "d")
	got := c.ok(renaming(a, "f", b, "d", renameExchange))
	if got.Attr.Ino != f || got.Replaced.Ino != d || got.Parent.Nlink != 3 || got.Parent2.Nlink != 2 {
		t.Errorf("exchange: %+v", got)
	}
	if c.ok(on(meta.OpLookup, a, "f")).Attr.Ino != d || c.attr(d).Parent != a {
		t.Error("the directory is not where the file was")
	}
}

func TestRenameOfTwoNamesOfAFileDoesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	f := c.file(meta.Root, "a")
	c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "b"})
	c.ok(renaming(meta.Root, "a", meta.Root, "b", 0))
	if got := c.names(meta.Root); got != "[a b]" {
		t.Errorf("names %s", got)
	}
}

func TestReaddirGoesOnWhereItStopped(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	d := c.dir(meta.Root, "d")
	c.dir(meta.Root, "e") // its entries must not show
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("n%02d", i)
		c.file(d, name)
		want = append(want, name)
	}
	var got []string
	last, eof := "", false
	for !eof {
		reply := c.ok(&meta.Request{Op: meta.OpReaddir, Ino: d, Name: last, Limit: 7, Plus: len(got) > 10})
		for _, e := range reply.Entries {
			got = append(got, e.Name)
			last = e.Name
		}
		eof = reply.EOF
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v", got)
	}
}

func TestTruncateCutsTheLastBlockAndWhatIsBeyond(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	c.write(ino, 0, 10)
	cut := func(size uint64) meta.Attr {
		t.Helper()
		a := c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}}).Attr
		w.check()
		return a
	}
	if a := cut(3*testBlockSize + 10); a.Bytes != 3*testBlockSize+10 {
		t.Errorf("bytes %d", a.Bytes)
	}
	cut(9 * testBlockSize)
	blocks := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino}).Blocks
	if len(blocks) != 4 || blocks[3].Len != 10 {
		t.Errorf("blocks %+v", blocks)
	}
	if a := cut(0); a.Bytes != 0 || a.Size != 0 {
		t.Errorf("after a cut to nothing: %+v", a)
	}
}

func TestABlockCutMeanwhileIsNotABase(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	c.write(ino, 0, 1)
	old := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino}).Blocks[0]
	for _, size := range []uint64{10, testBlockSize} {
		c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}})
	}
	k := c.block(0, testBlockSize)
	k.Whole, k.Base, k.BaseLen = false, old.Gen, old.Len
	c.refused(syscall.ESTALE, &meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{k}})
	k.BaseLen = 10
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: []meta.Block{k}})
}

func TestACommitDoesNotReachBeyondTheFile(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 100, Blocks: []meta.Block{c.block(0, 500), c.block(5, 10)}})
	reply := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino})
	if len(reply.Blocks) != 1 || reply.Blocks[0].Len != 100 || reply.Attr.Size != 100 {
		t.Errorf("%+v", reply)
	}
}

func TestALongCutAndALongPunchGoInSteps(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	const n = 2*blockStep + 100
	for name, shorten := range map[string]*meta.Request{
		"cut":   {Op: meta.OpSetattr, Set: meta.SetSize, Attr: meta.Attr{Size: 50*testBlockSize + 1}},
		"punch": {Op: meta.OpPunch, Index: 51, Index2: n},
	} {
		ino := c.file(meta.Root, name)
		c.write(ino, 0, n)
		shorten.Ino = ino
		c.ok(shorten)
		blocks := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino})
		if len(blocks.Blocks) != 51 {
			t.Errorf("%s: %d blocks left, want 51", name, len(blocks.Blocks))
		}
	}
}

func TestInlineContentsComeWithTheAttributes(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	k := meta.Block{Gen: meta.Gen{Session: c.id, Seq: 1}, Len: 5, Inline: true, Data: []byte("hello")}
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: 5, Blocks: []meta.Block{k}})
	for _, req := range []*meta.Request{
		on(meta.OpLookup, meta.Root, "f"), on(meta.OpGetattr, ino, ""),
		{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: reg, Exist: true},
	} {
		if got := c.ok(req); got.Block == nil || string(got.Block.Data) != "hello" {
			t.Errorf("%v: block %+v", req.Op, got.Block)
		}
	}
	c.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: 2}})
	if got := c.ok(on(meta.OpGetattr, ino, "")); string(got.Block.Data) != "he" {
		t.Errorf("after a cut: %+v", got.Block)
	}
	big := c.block(0, testBlockSize)
	big.Whole, big.Base = false, k.Gen
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: testBlockSize, Blocks: []meta.Block{big}})
	if got := c.ok(on(meta.OpGetattr, ino, "")); got.Block == nil || got.Block.Inline || got.Block.Gen != big.Gen {
		t.Errorf("block 0 is an object now, and came with the attributes as %+v", got.Block)
	}
}

func TestXattrsAreKeptListedAndRemoved(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "f")
	set := func(name, value string, flags uint32) *meta.Request {
		return &meta.Request{Op: meta.OpSetxattr, Ino: ino, Name: name, Data: []byte(value), Flags: flags}
	}
	c.ok(set("user.b", "2", xattrCreate))
	c.ok(set("user.a", "", 0))
	c.refused(syscall.EEXIST, set("user.b", "3", xattrCreate))
	c.ok(set("user.b", "3", xattrReplace))
	if got := c.ok(on(meta.OpGetxattr, ino, "user.b")).Data; string(got) != "3" {
		t.Errorf("user.b is %q", got)
	}
	if got := c.ok(on(meta.OpGetxattr, ino, "user.a")).Data; len(got) != 0 {
		t.Errorf("user.a is %q", got)
	}
	if got := fmt.Sprint(c.ok(on(meta.OpListxattr, ino, "")).Names); got != "[user.a user.b]" {
		t.Errorf("names %s", got)
	}
	c.ok(on(meta.OpRemovexattr, ino, "user.b"))
	c.refused(syscall.ENODATA, on(meta.OpGetxattr, ino, "user.b"))
}

func TestTheQuotaHolds(t *testing.T) {
	w := newWorld(t)
	w.config.MaxInodes, w.config.MaxBytes = 3, 2*testBlockSize
	c := w.hello("rw:")
	a := c.file(meta.Root, "a")
	c.file(meta.Root, "b")
	c.refused(syscall.ENOSPC, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "c", Mode: reg})
	c.write(a, 0, 2)
	c.refused(syscall.ENOSPC, &meta.Request{Op: meta.OpCommit, Ino: a, Size: 3 * testBlockSize, Blocks: []meta.Block{c.block(2, 1)}})
	got := c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs
	if want := (meta.Statfs{Bytes: 2 * testBlockSize, MaxBytes: 2 * testBlockSize, Inodes: 3, MaxInodes: 3}); got != want {
		t.Errorf("statfs %+v, want %+v", got, want)
	}
	c.ok(on(meta.OpUnlink, meta.Root, "a"))
	c.file(meta.Root, "c")
}

func TestACompoundStopsAtTheFirstRefusal(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	k := c.block(0, 10)
	reply := c.send(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpMake, Slot: 3, Seq: 1, Ino: meta.Root, Name: "f", Mode: reg},
		{Op: meta.OpCommit, Slot: 4, Seq: 1, Size: 10, Blocks: []meta.Block{k}},
		{Op: meta.OpLookup, Ino: meta.Root, Name: "no"},
		{Op: meta.OpGetattr, Ino: meta.Root},
	}})
	if len(reply.Replies) != 3 || reply.Replies[1].Attr.Size != 10 || reply.Replies[2].Errno != syscall.ENOENT {
		t.Errorf("%+v", reply)
	}
}

func TestAFolderSessionSeesItsFolderOnly(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	a := c.dir(meta.Root, "a")
	b := c.dir(a, "b")
	out := c.file(meta.Root, "out")
	in := c.file(b, "in")
	c.ok(&meta.Request{Op: meta.OpLink, Ino: in, Ino2: meta.Root, Name: "in"})

	f := w.hello("rw:/a/b")
	if got := f.names(meta.Root); got != "[in]" {
		t.Errorf("names %s", got)
	}
	for _, name := range []string{".", ".."} {
		if got := f.ok(on(meta.OpLookup, meta.Root, name)).Attr; got.Ino != meta.Root || got.Parent != meta.Root {
			t.Errorf("%s is %+v", name, got)
		}
	}
	for _, ino := range []meta.Ino{a, out} {
		f.refused(syscall.ENOENT, on(meta.OpGetattr, ino, ""))
		f.refused(syscall.ENOENT, &meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetMode})
		f.refused(syscall.ENOENT, &meta.Request{Op: meta.OpSetlk, Ino: ino, Lock: meta.Lock{Type: syscall.F_WRLCK, End: 9}})
	}
	f.attr(in)
	d := f.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm})
	if d.Parent.Ino != meta.Root || d.Attr.Parent != meta.Root || c.attr(d.Attr.Ino).Parent != b {
		t.Errorf("made %+v", d)
	}
	f.refused(syscall.ENOENT, renaming(meta.Root, "d", a, "d", 0))
	reply := w.srv.ServeMeta(t.Context(), &fakeConn{}, &meta.Request{Op: meta.OpHello, Version: 1, Token: "rw:/a/no"})
	if reply.Errno != syscall.ENOENT {
		t.Errorf("hello for a folder that is not there: %v", reply.Errno)
	}
}

func TestAHelloThatMayNotBeIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		req  meta.Request
		want syscall.Errno
	}{
		{meta.Request{Version: 1, Token: "bad"}, syscall.EACCES},
		{meta.Request{Version: 0, Token: "rw:"}, syscall.EPROTONOSUPPORT},
		{meta.Request{Version: 1, Token: "rw:", Volume: "another"}, syscall.EACCES},
		{meta.Request{Version: 1, Token: "rw:", Session: 77, Secret: "x"}, syscall.ESTALE},
	} {
		tc.req.Op = meta.OpHello
		if got := w.srv.ServeMeta(t.Context(), &fakeConn{}, &tc.req).Errno; got != tc.want {
			t.Errorf("%+v: %v, want %v", tc.req, got, tc.want)
		}
	}
	conn := &fakeConn{}
	if got := w.srv.ServeMeta(t.Context(), conn, on(meta.OpGetattr, meta.Root, "")).Errno; got != syscall.ENOTCONN || !conn.closed {
		t.Errorf("a request before the hello: %v, closed %v", got, conn.closed)
	}
}

func TestARenameCanLeaveAWhiteout(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	d, e := c.dir(meta.Root, "d"), c.dir(meta.Root, "e")
	s := c.dir(d, "s")
	was := c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs.Inodes
	req := renaming(d, "s", e, "t", renameWhiteout)
	req.Uid, req.Gid = 7, 8
	if got := c.ok(req).Attr.Ino; got != s {
		t.Errorf("it moved inode %d, want %d", got, s)
	}
	got := c.ok(on(meta.OpLookup, d, "s")).Attr
	if got.Mode != syscall.S_IFCHR || got.Rdev != 0 || got.Uid != 7 || got.Gid != 8 || got.Nlink != 1 {
		t.Errorf("it left %+v", got)
	}
	if got := c.attr(d); got.Nlink != 2 || got.Size != 1 {
		t.Errorf("the directory has %d links and %d entries, want 2 and 1", got.Nlink, got.Size)
	}
	if got := c.ok(&meta.Request{Op: meta.OpStatfs}).Statfs.Inodes; got != was+1 {
		t.Errorf("%d inodes, want %d", got, was+1)
	}
}

// A commit has the time of a write that was made before.
func TestTimesDoNotGoBackWithACommit(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	at := func(sec int64) meta.Time { return meta.Time{Sec: sec} }
	f := c.ok(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: reg, Time: at(1)}).Attr.Ino
	commit := func(when meta.Time) meta.Attr {
		t.Helper()
		return c.ok(&meta.Request{Op: meta.OpCommit, Ino: f, Time: when}).Attr
	}
	now := time.Now().Unix()
	commit(at(now - 10))
	c.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMode, Time: at(now - 5)})
	if a := commit(at(now - 20)); a.Mtime != at(now-10) || a.Ctime != at(now-5) {
		t.Errorf("mtime %v, ctime %v after the commit of an older write; now is %d", a.Mtime, a.Ctime, now)
	}
	c.ok(&meta.Request{Op: meta.OpSetattr, Ino: f, Set: meta.SetMtime, Attr: meta.Attr{Mtime: at(now + 1000)}, Time: at(now)})
	if a := commit(at(now)); a.Mtime != at(now) {
		t.Errorf("mtime %v after a write to a file with one in the future; now is %d", a.Mtime, now)
	}
	if a := commit(at(now + 1<<30)); a.Mtime.Sec > time.Now().Unix() || a.Mtime.Sec < now {
		t.Errorf("mtime %v after a write by a client whose clock is years ahead; now is %d", a.Mtime, now)
	}
}
