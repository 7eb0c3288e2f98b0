package metatest

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"syscall"

	"flexfs/meta"
)

func makeInodes(e *exam) {
	m := e.mount(meta.ClientConfig{})
	when := meta.Time{Sec: 1_000_000_000, Nsec: 999_999_999}
	for i, mode := range []uint32{
		syscall.S_IFREG | 0o640, syscall.S_IFDIR | 0o1777, syscall.S_IFLNK | 0o777,
		syscall.S_IFIFO | 0o600, syscall.S_IFSOCK | 0o600, syscall.S_IFCHR | 0o666, syscall.S_IFBLK | 0o660,
	} {
		req := makeReq(meta.Root, name(i), mode)
		req.Time, req.Uid, req.Gid = when, 7, 8
		target := ""
		switch mode & syscall.S_IFMT {
		case syscall.S_IFLNK:
			target = "../where"
			req.Data = []byte(target)
		case syscall.S_IFCHR, syscall.S_IFBLK:
			req.Rdev = 0x103
		}
		reply := m.ok(req)
		got := reply.Attr
		if got.Mode != mode || got.Uid != 7 || got.Gid != 8 || got.Rdev != req.Rdev || got.Target != target {
			e.Errorf("make %o: %+v", mode, got)
		}
		if got.Mtime != when || got.Ctime != when || got.Btime != when || got.Ino == 0 || got.Nlink == 0 {
			e.Errorf("make %o: %+v, want times %v", mode, got, when)
		}
		if reply.Parent.Ino != meta.Root || reply.Parent.Size != uint64(i+1) || reply.Parent.Mtime != when {
			e.Errorf("make %o: the directory is %+v", mode, reply.Parent)
		}
		if found := m.ok(lookupReq(meta.Root, name(i))); found.Attr != got {
			e.Errorf("lookup finds %+v, make said %+v", found.Attr, got)
		}
		if found := m.attr(got.Ino); found != got {
			e.Errorf("getattr says %+v, make said %+v", found, got)
		}
	}
	exist := makeReq(meta.Root, name(0), syscall.S_IFREG|0o600)
	exist.Exist = true
	if reply := m.ok(exist); !reply.Existed || reply.Attr.Mode != syscall.S_IFREG|0o640 {
		e.Errorf("make of what exists: %+v", reply)
	}
	if dir := m.ok(lookupReq(meta.Root, name(1))).Attr; dir.Parent != meta.Root {
		e.Errorf("the parent of a directory is %d", dir.Parent)
	}
}

func refusals(e *exam) {
	m := e.mount(meta.ClientConfig{})
	file, dir := m.file(meta.Root, "file"), m.dir(meta.Root, "dir")
	sub := m.dir(dir, "sub")
	m.dir(meta.Root, "empty")
	root := meta.Root
	long := strings.Repeat("n", meta.MaxName+1)
	for _, test := range []struct {
		want syscall.Errno
		req  *meta.Request
	}{
		{syscall.ENOENT, lookupReq(root, "nothing")},
		{syscall.ENOTDIR, lookupReq(file, "x")},
		{syscall.ENAMETOOLONG, lookupReq(root, long)},
		{syscall.EEXIST, makeReq(root, "file", syscall.S_IFREG)},
		{syscall.EEXIST, makeReq(root, "dir", syscall.S_IFDIR)},
		{syscall.ENOTDIR, makeReq(file, "x", syscall.S_IFREG)},
		{syscall.ENAMETOOLONG, makeReq(root, long, syscall.S_IFREG)},
		{syscall.ENOENT, &meta.Request{Op: meta.OpUnlink, Ino: root, Name: "nothing"}},
		{syscall.EISDIR, &meta.Request{Op: meta.OpUnlink, Ino: root, Name: "dir"}},
		{syscall.ENOTDIR, &meta.Request{Op: meta.OpRmdir, Ino: root, Name: "file"}},
		{syscall.ENOTEMPTY, &meta.Request{Op: meta.OpRmdir, Ino: root, Name: "dir"}},
		{syscall.EPERM, &meta.Request{Op: meta.OpLink, Ino: dir, Ino2: root, Name: "x"}},
		{syscall.EEXIST, &meta.Request{Op: meta.OpLink, Ino: file, Ino2: root, Name: "dir"}},
		{syscall.ENOENT, renameReq(root, "nothing", root, "x", 0)},
		{syscall.EISDIR, renameReq(root, "file", root, "empty", 0)},
		{syscall.ENOTDIR, renameReq(root, "empty", root, "file", 0)},
		{syscall.ENOTEMPTY, renameReq(root, "empty", root, "dir", 0)},
		{syscall.EINVAL, renameReq(root, "dir", sub, "x", 0)},
		{syscall.EEXIST, renameReq(root, "file", root, "empty", 1)},
		{syscall.ENOENT, renameReq(root, "file", root, "nothing", 2)},
		{syscall.ENOTDIR, &meta.Request{Op: meta.OpReaddir, Ino: file}},
		{syscall.EISDIR, &meta.Request{Op: meta.OpSetattr, Ino: dir, Set: meta.SetSize}},
		{syscall.EFBIG, &meta.Request{Op: meta.OpSetattr, Ino: file, Set: meta.SetSize, Attr: meta.Attr{Size: meta.MaxSize + 1}}},
		{syscall.ENODATA, &meta.Request{Op: meta.OpGetxattr, Ino: file, Name: "user.x"}},
		{syscall.ENODATA, &meta.Request{Op: meta.OpRemovexattr, Ino: file, Name: "user.x"}},
		{syscall.ENODATA, &meta.Request{Op: meta.OpSetxattr, Ino: file, Name: "user.x", Flags: 2}},
		{syscall.E2BIG, &meta.Request{Op: meta.OpSetxattr, Ino: file, Name: "user.x", Data: make([]byte, meta.MaxXattr+1)}},
		{syscall.EINVAL, &meta.Request{Op: meta.OpCommit, Ino: file, Blocks: make([]meta.Block, meta.MaxCommit+1)}},
		{syscall.ENOSYS, &meta.Request{Op: 999}},
	} {
		before := m.names(root)
		m.refused(test.req, test.want)
		if after := m.names(root); !slices.Equal(after, before) {
			e.Fatalf("%v was refused and changed %q to %q", test.req.Op, before, after)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00b"} {
		m.refused(makeReq(root, bad, syscall.S_IFDIR), syscall.EINVAL, syscall.EEXIST, syscall.ENOENT)
	}
	m.refused(&meta.Request{Op: meta.OpGetattr, Ino: 1 << 40}, syscall.ESTALE, syscall.ENOENT)
}

func links(e *exam) {
	m := e.mount(meta.ClientConfig{})
	ino, dir := m.file(meta.Root, "a"), m.dir(meta.Root, "dir")
	if got := m.ok(&meta.Request{Op: meta.OpLink, Ino: ino, Ino2: dir, Name: "b"}).Attr; got.Nlink != 2 || got.Ino != ino {
		e.Errorf("link: %+v", got)
	}
	if got := m.ok(&meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: "a"}).Attr; got.Nlink != 1 || got.Ino != ino {
		e.Errorf("unlink of the first name: %+v", got)
	}
	if got := m.ok(lookupReq(dir, "b")).Attr; got.Ino != ino || got.Nlink != 1 {
		e.Errorf("the second name: %+v", got)
	}
	if got := m.ok(&meta.Request{Op: meta.OpUnlink, Ino: dir, Name: "b"}); got.Attr.Nlink != 0 || got.Parent.Size != 0 {
		e.Errorf("unlink of the last name: %+v", got)
	}
	was := m.attr(meta.Root).Nlink
	m.dir(meta.Root, "another")
	if now := m.attr(meta.Root).Nlink; now != was+1 {
		e.Errorf("with one more directory in it, a directory has %d links after %d", now, was)
	}
	m.ok(&meta.Request{Op: meta.OpRmdir, Ino: meta.Root, Name: "another"})
	if now := m.attr(meta.Root).Nlink; now != was {
		e.Errorf("with one directory in it less, a directory has %d links, want %d", now, was)
	}
}

func renameReq(from meta.Ino, name string, to meta.Ino, name2 string, flags uint32) *meta.Request {
	return &meta.Request{Op: meta.OpRename, Ino: from, Name: name, Ino2: to, Name2: name2, Flags: flags}
}

func rename(e *exam) {
	m := e.mount(meta.ClientConfig{})
	a, b, dir := m.file(meta.Root, "a"), m.file(meta.Root, "b"), m.dir(meta.Root, "dir")
	reply := m.ok(renameReq(meta.Root, "a", dir, "c", 1))
	if reply.Attr.Ino != a || reply.Replaced.Ino != 0 || reply.Parent.Size != 2 || reply.Parent2.Size != 1 {
		e.Errorf("rename to another directory: %+v", reply)
	}
	reply = m.ok(renameReq(meta.Root, "b", dir, "c", 0))
	if reply.Attr.Ino != b || reply.Replaced.Ino != a || reply.Replaced.Nlink != 0 {
		e.Errorf("rename over a file: %+v", reply)
	}
	m.refused(lookupReq(meta.Root, "b"), syscall.ENOENT)
	sub := m.dir(dir, "sub")
	if got := m.ok(renameReq(dir, "sub", meta.Root, "sub", 0)).Attr; got.Parent != meta.Root {
		e.Errorf("the parent of a moved directory is %d", got.Parent)
	}
	m.ok(renameReq(dir, "c", meta.Root, "sub", 2))
	if x, y := m.ok(lookupReq(dir, "c")).Attr.Ino, m.ok(lookupReq(meta.Root, "sub")).Attr.Ino; x != sub || y != b {
		e.Errorf("after the exchange the names are %d and %d, want %d and %d", x, y, sub, b)
	}
	if got := m.attr(sub).Parent; got != dir {
		e.Errorf("the parent of an exchanged directory is %d, want %d", got, dir)
	}
}

func readdir(e *exam) {
	m := e.mount(meta.ClientConfig{})
	want := []string{"\x01", "A", "B", "a", "b", "ä", "\xff"}
	for i := range 50 {
		want = append(want, name(i))
	}
	for _, n := range want {
		m.file(meta.Root, n)
	}
	slices.Sort(want)
	for _, limit := range []uint32{0, 1, 2, 7, 1000} {
		var got []string
		for {
			req := &meta.Request{Op: meta.OpReaddir, Ino: meta.Root, Limit: limit, Plus: limit == 7}
			if len(got) > 0 {
				req.Name = got[len(got)-1]
			}
			reply := m.ok(req)
			if limit > 0 && len(reply.Entries) > int(limit) {
				e.Fatalf("%d entries, asked for %d", len(reply.Entries), limit)
			}
			for _, entry := range reply.Entries {
				got = append(got, entry.Name)
				if entry.Attr.Ino == 0 || !entry.Attr.IsRegular() || req.Plus && entry.Attr.Nlink != 1 {
					e.Errorf("entry %+v", entry)
				}
			}
			if reply.EOF || len(reply.Entries) == 0 {
				break
			}
		}
		if !slices.Equal(got, want) {
			e.Errorf("listed %d at a time: %q, want %q", limit, got, want)
		}
	}
}

func setattr(e *exam) {
	m := e.mount(meta.ClientConfig{})
	old := makeReq(meta.Root, "a", syscall.S_IFREG|0o644)
	old.Time = meta.Time{Sec: -9} // a ctime does not go back
	ino := m.ok(old).Attr.Ino
	before := m.attr(ino)
	when := meta.Time{Sec: -5, Nsec: 7}
	values := meta.Attr{Mode: 0o4711, Uid: 5, Gid: 6, Size: 12345, Atime: meta.Time{Sec: 1 << 33}, Mtime: meta.Time{Sec: -1}}
	all := meta.SetMode | meta.SetUid | meta.SetGid | meta.SetSize | meta.SetAtime | meta.SetMtime
	got := m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: all, Attr: values, Time: when}).Attr
	if got.Mode != syscall.S_IFREG|0o4711 || got.Uid != 5 || got.Gid != 6 || got.Size != 12345 ||
		got.Atime != values.Atime || got.Mtime != values.Mtime || got.Ctime != when || got.Btime != before.Btime {
		e.Errorf("after setattr: %+v", got)
	}
	if got.Change <= before.Change || got.Data <= before.Data {
		e.Errorf("versions %d, %d after %d, %d", got.Change, got.Data, before.Change, before.Data)
	}
	if found := m.attr(ino); found != got {
		e.Errorf("getattr says %+v, setattr said %+v", found, got)
	}
	killed := m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetKillPriv}).Attr
	if killed.Mode != syscall.S_IFREG|0o711 || killed.Data != got.Data {
		e.Errorf("without privileges: %+v", killed)
	}
}

func commitReq(ino meta.Ino, size uint64, blocks ...meta.Block) *meta.Request {
	return &meta.Request{Op: meta.OpCommit, Ino: ino, Blocks: blocks, Size: size}
}

func blocks(e *exam) {
	m := e.mount(meta.ClientConfig{})
	bs := m.Volume().BlockSize
	ino := m.file(meta.Root, "a")
	list := func() []meta.Block {
		reply := m.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino, Limit: 100})
		if !reply.EOF || reply.Attr.Ino != ino {
			e.Errorf("blocks: %+v", reply)
		}
		return reply.Blocks
	}
	same := func(what string, got []meta.Block, want ...meta.Block) {
		e.Helper()
		if !slices.EqualFunc(got, want, func(a, b meta.Block) bool {
			return a.Index == b.Index && a.Gen == b.Gen && a.Len == b.Len && a.Inline == b.Inline
		}) {
			e.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	b0, b2, b9 := m.block(0, bs), m.block(2, bs), m.block(9, bs/2)
	size := 9*uint64(bs) + uint64(bs)/2
	got := m.ok(commitReq(ino, size, b0, b2, b9)).Attr
	if got.Size != size {
		e.Errorf("after the commit: %+v, want size %d", got, size)
	}
	same("three blocks", list(), b0, b2, b9)
	same("from the second", m.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino, Index: 1, Limit: 1}).Blocks, b2)

	// One who wrote to what is not current any more.
	mine := m.block(2, bs)
	mine.Base = meta.Gen{Session: 12345, Seq: 1}
	m.refused(commitReq(ino, 0, m.block(3, bs), mine), syscall.ESTALE)
	same("after a refused commit", list(), b0, b2, b9)
	mine.Base = b2.Gen
	m.ok(commitReq(ino, 0, mine))
	whole := m.block(0, bs)
	whole.Whole = true
	m.ok(commitReq(ino, 0, whole))
	same("replaced", list(), whole, mine, b9)

	// Cut inside block 2, extend again, punch block 0.
	cut := uint64(2*bs + 10)
	got = m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: cut}}).Attr
	if got.Size != cut {
		e.Errorf("after the cut: %+v", got)
	}
	mine.Len = 10
	same("cut", list(), whole, mine)
	m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}})
	same("extended", list(), whole, mine)
	m.ok(&meta.Request{Op: meta.OpPunch, Ino: ino, Index: 0, Index2: 2})
	same("punched", list(), mine)
	if got := m.attr(ino); got.Size != size {
		e.Errorf("punching changed the size: %+v", got)
	}
}

func inline(e *exam) {
	m := e.mount(meta.ClientConfig{})
	if m.Volume().InlineMax < 100 {
		e.Skip("the volume keeps nothing inline")
	}
	ino := m.file(meta.Root, "a")
	data := bytes.Repeat([]byte("x"), 100)
	b := m.block(0, 100)
	b.Inline, b.Data, b.Whole = true, data, true
	m.ok(commitReq(ino, 100, b))
	for _, req := range []*meta.Request{lookupReq(meta.Root, "a"), {Op: meta.OpGetattr, Ino: ino}} {
		reply := m.ok(req)
		if reply.Block == nil || !reply.Block.Inline || !bytes.Equal(reply.Block.Data, data) || reply.Block.Gen != b.Gen {
			e.Errorf("%v: block %+v", req.Op, reply.Block)
		}
	}
	m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: 10}})
	if got := m.ok(lookupReq(meta.Root, "a")).Block; got == nil || got.Len != 10 || len(got.Data) > 10 {
		e.Errorf("after a cut: %+v", got)
	}
	object := m.block(0, m.Volume().BlockSize)
	object.Base = b.Gen
	m.ok(commitReq(ino, uint64(m.Volume().BlockSize), object))
	if got := m.ok(lookupReq(meta.Root, "a")).Block; got != nil && got.Inline {
		e.Errorf("after it has become an object: %+v", got)
	}
}

func xattr(e *exam) {
	m := e.mount(meta.ClientConfig{})
	ino := m.file(meta.Root, "a")
	set := func(name, value string, flags uint32) *meta.Request {
		return &meta.Request{Op: meta.OpSetxattr, Ino: ino, Name: name, Data: []byte(value), Flags: flags}
	}
	before := m.attr(ino)
	if got := m.ok(set("user.a", "1", 1)).Attr; got.Change <= before.Change || got.Xattrs != 1 || before.Xattrs != 0 {
		e.Errorf("the attributes after setxattr: %+v", got)
	}
	m.ok(set("user.b", "", 0))
	m.refused(set("user.a", "2", 1), syscall.EEXIST)
	m.ok(set("user.a", strings.Repeat("v", meta.MaxXattr), 2))
	if got := m.ok(&meta.Request{Op: meta.OpGetxattr, Ino: ino, Name: "user.a"}).Data; len(got) != meta.MaxXattr {
		e.Errorf("a value has %d bytes, want %d", len(got), meta.MaxXattr)
	}
	if got := m.ok(&meta.Request{Op: meta.OpGetxattr, Ino: ino, Name: "user.b"}).Data; len(got) != 0 {
		e.Errorf("an empty value is %q", got)
	}
	got := m.ok(&meta.Request{Op: meta.OpListxattr, Ino: ino}).Names
	slices.Sort(got)
	if !slices.Equal(got, []string{"user.a", "user.b"}) {
		e.Errorf("the names are %q", got)
	}
	if n := m.attr(ino).Xattrs; n != 2 {
		e.Errorf("%d attributes are counted, want 2", n)
	}
	if n := m.ok(&meta.Request{Op: meta.OpRemovexattr, Ino: ino, Name: "user.a"}).Attr.Xattrs; n != 1 {
		e.Errorf("%d attributes are counted after one is removed, want 1", n)
	}
	m.refused(&meta.Request{Op: meta.OpGetxattr, Ino: ino, Name: "user.a"}, syscall.ENODATA)
}

func compound(e *exam) {
	m := e.mount(meta.ClientConfig{})
	reply := m.ok(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		*makeReq(meta.Root, "dir", syscall.S_IFDIR|0o755),
		*makeReq(0, "file", syscall.S_IFREG|0o644),
		{Op: meta.OpSetattr, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o600}},
		*lookupReq(meta.Root, "nothing"),
		*makeReq(meta.Root, "never", syscall.S_IFREG|0o644),
	}})
	var errnos []syscall.Errno
	for _, r := range reply.Replies {
		errnos = append(errnos, r.Errno)
	}
	if !slices.Equal(errnos, []syscall.Errno{0, 0, 0, syscall.ENOENT}) {
		e.Fatalf("the parts of a compound answered %v", errnos)
	}
	dir := m.ok(lookupReq(meta.Root, "dir")).Attr.Ino
	if got := m.ok(lookupReq(dir, "file")).Attr; got.Mode != syscall.S_IFREG|0o600 {
		e.Errorf("the file: %+v", got)
	}
	m.refused(lookupReq(meta.Root, "never"), syscall.ENOENT)
}

// Many mounts make the same names at the same time: each is made once, and the
// directory counts right.
func racingMakes(e *exam) {
	const mounts, files = 4, 20
	var mu sync.Mutex
	made := make(map[string]int)
	var wg sync.WaitGroup
	for range mounts {
		m := e.mount(meta.ClientConfig{})
		for i := range files {
			wg.Go(func() {
				_, err := m.Do(e.Context(), makeReq(meta.Root, name(i), syscall.S_IFREG|0o644))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					made[name(i)]++
				case errnoOf(err) != syscall.EEXIST:
					e.Error(err)
				}
			})
		}
	}
	wg.Wait()
	for i := range files {
		if made[name(i)] != 1 {
			e.Errorf("%s was made %d times", name(i), made[name(i)])
		}
	}
	m := e.mount(meta.ClientConfig{})
	if got := len(m.names(meta.Root)); got != files {
		e.Errorf("%d names, want %d", got, files)
	}
	if got := m.attr(meta.Root).Size; got != files {
		e.Errorf("the directory counts %d names, want %d", got, files)
	}
}
