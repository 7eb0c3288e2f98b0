package tree

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A client that means harm, or is broken, gets an errno, and nothing else
// happens: what is stored keeps its form, and the server goes on.
func TestHostileRequestsHarmNothing(t *testing.T) {
	w := newWorld(t)
	c, bystander := w.hello("rw:"), w.hello("rw:/")
	d := c.dir(meta.Root, "d")
	f := c.file(d, "f")
	c.write(f, 0, 3)
	want := bystander.describe()
	most := ^uint64(0)
	for name, req := range map[string]*meta.Request{
		"inode 0":               {Op: meta.OpGetattr},
		"the last inode":        {Op: meta.OpGetattr, Ino: meta.Ino(most)},
		"lookup in inode 0":     {Op: meta.OpLookup, Name: "d"},
		"a name with a slash":   {Op: meta.OpMake, Ino: meta.Root, Name: "a/b", Mode: reg},
		"a name with a zero":    {Op: meta.OpMake, Ino: meta.Root, Name: "a\x00b", Mode: reg},
		"no name":               {Op: meta.OpUnlink, Ino: meta.Root},
		"a huge name":           {Op: meta.OpLookup, Ino: meta.Root, Name: strings.Repeat("n", 1<<20)},
		"a huge name to unlink": {Op: meta.OpUnlink, Ino: meta.Root, Name: strings.Repeat("n", 1<<20)},
		"the name of a link":    {Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "../x"},
		"a rename to zero":      {Op: meta.OpRename, Ino: d, Name: "f", Ino2: meta.Root, Name2: "\x00"},
		"rename flags":          {Op: meta.OpRename, Ino: d, Name: "f", Ino2: meta.Root, Name2: "g", Flags: math.MaxUint32},
		"a link to zeros":       {Op: meta.OpMake, Ino: meta.Root, Name: "l", Mode: syscall.S_IFLNK, Data: []byte("a\x00")},
		"a file of no type":     {Op: meta.OpMake, Ino: meta.Root, Name: "x", Mode: math.MaxUint32},
		"a size beyond all":     {Op: meta.OpSetattr, Ino: f, Set: meta.SetSize, Attr: meta.Attr{Size: most}},
		"a commit beyond all":   {Op: meta.OpCommit, Ino: f, Size: most},
		"a long block":          {Op: meta.OpCommit, Ino: f, Blocks: []meta.Block{{Gen: meta.Gen{Session: c.id, Seq: 99}, Len: math.MaxUint32, Whole: true}}},
		"a stranger's block":    {Op: meta.OpCommit, Ino: f, Size: 1, Blocks: []meta.Block{{Gen: meta.Gen{Session: most, Seq: most}, Len: 1, Whole: true}}},
		"a block of a future":   {Op: meta.OpCommit, Ino: f, Size: 1, Blocks: []meta.Block{{Index: 1, Gen: meta.Gen{Session: c.id + 1, Seq: 1}, Len: 1, Whole: true}}},
		"a clone of all":        {Op: meta.OpClone, Ino: f, Ino2: f, Limit: math.MaxUint32, Size: most},
		"an xattr of no name":   {Op: meta.OpSetxattr, Ino: f},
		"an xattr with a zero":  {Op: meta.OpSetxattr, Ino: f, Name: "user.\x00"},
		"an xattr's flags":      {Op: meta.OpSetxattr, Ino: f, Name: "user.a", Flags: math.MaxUint32},
		"a tree by ..":          {Op: meta.OpRemoveTree, Ino: d, Name: ".."},
		"a tree of a file":      {Op: meta.OpRemoveTree, Ino: d, Name: "f"},
		"a lock from its end":   {Op: meta.OpSetlk, Ino: f, Lock: meta.Lock{Type: syscall.F_WRLCK, Start: 10, End: 5}},
		"a lock beyond all":     {Op: meta.OpSetlk, Ino: f, Lock: meta.Lock{Type: syscall.F_WRLCK, Start: most, End: most}},
		"an unknown operation":  {Op: 9999, Ino: f, Seq: 1},
		"a slot too many":       {Op: meta.OpUnlink, Ino: d, Name: "f", Slot: math.MaxUint16, Seq: 1},
		"many inodes":           {Op: meta.OpClose, Inos: make([]meta.Ino, maxInos+1)},
		"many blocks":           {Op: meta.OpCommit, Ino: f, Blocks: make([]meta.Block, meta.MaxCommit+1)},
	} {
		if r := c.do(req); r.Errno == 0 || r.Errno == syscall.EIO {
			t.Errorf("%s: errno %v", name, r.Errno)
		}
	}
	// These are answered, within bounds.
	for name, req := range map[string]*meta.Request{
		"a list of 4 billion":    {Op: meta.OpReaddir, Ino: d, Limit: math.MaxUint32, Plus: true},
		"a list after all":       {Op: meta.OpReaddir, Ino: d, Name: strings.Repeat("\xff", 1<<16)},
		"blocks of 4 billion":    {Op: meta.OpBlocks, Ino: f, Limit: math.MaxUint32},
		"blocks from the last":   {Op: meta.OpBlocks, Ino: f, Index: math.MaxUint32, Limit: 1},
		"a hole from its end":    {Op: meta.OpPunch, Ino: f, Index: 3, Index2: 1},
		"no lock's end":          {Op: meta.OpCancel, ID: most},
		"close of what is not":   {Op: meta.OpClose, Inos: []meta.Ino{0, f, meta.Ino(most)}},
		"the end of a session 0": {Op: meta.OpPing, Session: most, Secret: "x"},
	} {
		if r := c.do(req); r.Errno != 0 {
			t.Errorf("%s: %v", name, r.Errno)
		}
	}
	if got := bystander.describe(); got != want {
		t.Errorf("the tree is\n%s\nit was\n%s", got, want)
	}
}

// Requests with random fields leave the database whole.
func TestRandomRequestsHarmNothing(t *testing.T) {
	w := newWorld(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 77))
	c := w.hello("rw:")
	inos := []meta.Ino{0, meta.Root, c.dir(meta.Root, "d"), c.file(meta.Root, "f"), 1 << 40, meta.Ino(^uint64(0))}
	number := func() uint64 {
		return []uint64{0, 1, 2, 3, 1023, 1024, 1025, 1 << 31, 1<<32 - 1, 1 << 44, 1 << 63, ^uint64(0)}[r.IntN(12)]
	}
	name := func() string {
		return []string{"", ".", "..", "f", "d", "g", "a/b", "\x00", strings.Repeat("x", 256), "user.a", "system.posix_acl_access"}[r.IntN(11)]
	}
	for range 4000 {
		op := meta.Op(r.IntN(int(meta.OpReserve) + 2))
		if op == meta.OpBye || op == meta.OpHello || op == meta.OpInval {
			continue
		}
		req := &meta.Request{
			Op: op, Ino: inos[r.IntN(len(inos))], Ino2: inos[r.IntN(len(inos))], Name: name(), Name2: name(),
			Mode: []uint32{reg, dirm, 0, uint32(number())}[r.IntN(4)], Flags: uint32(number()), Set: meta.SetMask(r.IntN(1 << 8)),
			Size: number(), Index: uint32(number()), Index2: uint32(number()), Limit: uint32(number()), Delegate: r.IntN(2) == 0,
			Attr: meta.Attr{Size: number(), Mode: uint32(number()), Mtime: meta.Time{Sec: int64(number()), Nsec: uint32(number() % 1e9)}, Ctime: meta.Time{Sec: int64(number())}},
			Time: meta.Time{Sec: int64(number())},
			Lock: meta.Lock{Type: uint32(r.IntN(4)), Start: number(), End: number(), Owner: number()},
		}
		for range r.IntN(3) {
			c.gen++ // who uses a version twice harms the file that it writes
			req.Blocks = append(req.Blocks, meta.Block{
				Index: uint32(number()), Gen: meta.Gen{Session: c.id, Seq: c.gen}, Len: uint32(number()),
				Inline: r.IntN(4) == 0, Whole: r.IntN(2) == 0, Data: make([]byte, r.IntN(3)),
			})
		}
		if reply := c.do(req); reply.Errno == syscall.EIO {
			t.Fatalf("%v %+v: EIO: %s", op, *req, reply.Msg)
		} else if reply.Attr.Ino != 0 && len(inos) < 30 {
			inos = append(inos, reply.Attr.Ino)
		}
	}
	w.takeApart()
	w.check()
}

func TestTheMostLinks(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	f := c.file(meta.Root, "f")
	c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "g"})
	links := func(n uint32) { // as if there were so many
		v := w.srv.volumes[testVolume]
		_, err := w.engine.Update(t.Context(), nil, func(tx engine.Tx) error {
			b, err := tx.Get(v.attrKey(f))
			if err != nil {
				return err
			}
			in, err := decodeInode(f, b)
			if err != nil {
				return err
			}
			in.Nlink = n
			return tx.Put(v.attrKey(f), in.encode())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	links(meta.MaxLinks - 1)
	if r := c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "last"}); r.Attr.Nlink != meta.MaxLinks {
		t.Errorf("%d links", r.Attr.Nlink)
	}
	c.refused(syscall.EMLINK, &meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "more"})
	c.ok(on(meta.OpUnlink, meta.Root, "g"))
	c.ok(&meta.Request{Op: meta.OpLink, Ino: f, Ino2: meta.Root, Name: "again"})
	links(3)
}

func TestAHugeFileIsUnlinkedAtOnceAndCollectedInSteps(t *testing.T) {
	w := newWorld(t)
	w.keep = 1
	w.start()
	c := w.hello("rw:")
	f := c.file(meta.Root, "f")
	const blocks = 6_000
	c.write(f, 0, blocks)
	was := w.srv.volumes[testVolume].statfs()
	if was.Bytes != blocks*testBlockSize {
		t.Fatalf("%+v", was)
	}
	writes := w.count(t, tableInode)
	c.ok(on(meta.OpUnlink, meta.Root, "f"))
	if n := w.count(t, tableInode); n != writes {
		t.Errorf("the unlink removed %d records itself", writes-n)
	}
	if st := w.srv.volumes[testVolume].statfs(); st.Bytes != 0 || st.Inodes != 1 {
		t.Errorf("df after the unlink: %+v", st)
	}
	c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
	steps := 0
	for n := writes; n > 2; steps++ { // the root's attributes are left
		if steps > 100 {
			t.Fatal("it takes too many steps")
		}
		w.crash(50, uint64(steps)) // each step is on a server of its own
		before := n
		w.oneStep(t, f)
		if n = w.count(t, tableInode); before-n > 2*refsPerRecord {
			t.Errorf("one step removed %d records", before-n)
		}
		w.check()
		if n == 1 {
			break
		}
	}
	if steps < blocks/refsPerRecord-1 {
		t.Errorf("it took %d steps only", steps)
	}
	if n := w.deletes(); n != blocks {
		t.Errorf("%d objects were deleted, of %d", n, blocks)
	}
}

// oneStep does the first step of the collection of an inode, if there is one left.
func (w *world) oneStep(t *testing.T, f meta.Ino) {
	t.Helper()
	v := w.srv.volumes[testVolume]
	var key []byte
	err := w.engine.View(t.Context(), func(r engine.Reader) error {
		prefix := v.key(tableDelayed)
		return r.Scan(prefix, after(prefix), false, func(k, _ []byte) (bool, error) {
			key = append([]byte(nil), k...)
			return k[13] != delayedInode, nil
		})
	})
	if err != nil || key == nil {
		t.Fatal(fmt.Sprint("no task is left: ", err))
	}
	dying, commit, err := v.condemn(t.Context(), key, f)
	if err != nil || !dying {
		t.Fatalf("condemn: %v, %v", dying, err)
	}
	if err := commit.Wait(); err != nil {
		t.Fatal(err)
	}
	records, err := v.someRecords(t.Context(), append(v.inoKey(f), ofBlock), append(v.inoKey(f), ofBody+1))
	switch {
	case err != nil:
	case len(records) == 0:
		err = v.erase(t.Context(), key, f)
	default:
		err = v.collectBlocks(t.Context(), f, records)
	}
	if err != nil {
		t.Fatal(err)
	}
}
