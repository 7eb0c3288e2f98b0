package tree

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A Problem is a rule that a database breaks.
type Problem struct {
	Volume string // UUID; "": the server's own records
	Text   string
}

func (p Problem) String() string { return fmt.Sprintf("volume %q: %s", p.Volume, p.Text) }

// maxProblems bounds what Check returns: more are the same.
const maxProblems = 1000

// Check reads a whole database, in one state of it, and returns the rules that
// it breaks: that every key and value has its form, that every inode is reached
// from the root by as many names as it counts, that directories count their
// entries and know their parents, that extended attributes are counted and
// access control lists agree with the mode, that block records lie within their
// files, have well-formed holes and name objects that are counted as often as
// they are named, or once and that nobody is going to delete, that the volume's
// counters are
// right, that sessions, delayed work and history are well formed and about
// things that exist, and that what the past needs is kept. It may run while a server does.
func Check(ctx context.Context, e engine.Engine) ([]Problem, error) {
	var k checker
	err := e.View(ctx, func(r engine.Reader) error {
		if err := k.server(r); err != nil {
			return err
		}
		for num, id := range k.volumes {
			if err := k.volume(ctx, r, num, id); err != nil {
				return err
			}
		}
		return k.strangers(r)
	})
	if err != nil {
		return k.problems, fmt.Errorf("tree: check: %w", err)
	}
	return k.problems, nil
}

type checker struct {
	problems []Problem
	volumes  map[uint32]*volume
}

func (k *checker) report(id, format string, args ...any) {
	if len(k.problems) < maxProblems {
		k.problems = append(k.problems, Problem{id, fmt.Sprintf(format, args...)})
	}
}

// server checks the records of the server itself.
func (k *checker) server(r engine.Reader) error {
	k.volumes = make(map[uint32]*volume)
	last, err := (&volume{}).counter(r, "v")
	if err != nil {
		k.report("", "%v", err)
	}
	prefix := []byte{0, 0, 0, 0}
	return r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
		switch {
		case len(key) == 21 && key[4] == tableVolume:
			id := formatUUID(key[5:])
			v, err := (&Server{}).newVolume(id, value)
			if err != nil {
				k.report("", "%v", err)
				return true, nil
			}
			if other := k.volumes[v.num]; other != nil {
				k.report("", "volumes %s and %s have the number %d", id, other.id, v.num)
			}
			if int64(v.num) > last || v.num == 0 {
				k.report("", "volume %s has the number %d, the last is %d", id, v.num, last)
			}
			k.volumes[v.num] = v
		case string(key[4:]) == "Cv":
		default:
			k.report("", "key %q is not known", key)
		}
		return true, nil
	})
}

// strangers reports keys that belong to no volume, one for each number.
func (k *checker) strangers(r engine.Reader) error {
	from := []byte{0, 0, 0, 1}
	for from != nil {
		var next []byte
		err := r.Scan(from, []byte{0xff, 0xff, 0xff, 0xff, 0xff}, false, func(key, _ []byte) (bool, error) {
			if len(key) < 4 {
				k.report("", "key %q is not known", key)
				return true, nil
			}
			num := binary.BigEndian.Uint32(key)
			if k.volumes[num] == nil {
				k.report("", "there are keys of volume number %d, which is no volume", num)
			}
			next = after(key[:4])
			return false, nil
		})
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// A found is what the check knows of an inode.
type found struct {
	*inode
	bytes    uint64 // of its block records
	inline   bool   // block 0 is
	xattrs   uint32
	named    map[meta.Ino]uint32 // its names, by directory
	entries  uint64              // of a directory
	subdirs  uint32
	parents  map[meta.Ino]uint32 // P records
	sheds    map[uint32]bool     // bodies that it does not have any more, by whether they will be collected
	delayed  bool                // will be collected
	detached bool                // will be taken apart
	reaching int                 // of a directory: 1 being walked, 2 reaches the root
}

// A naming is what the check knows of who names an object.
type naming struct {
	files   uint32 // block records
	foreign bool   // one of them in another place than the object's own
	ending  uint32 // delayed work
	count   uint32 // of table R; 0: none
}

// A volumeCheck checks one volume. The tables are read in the order of their
// keys, inodes first.
type volumeCheck struct {
	*checker
	v        *volume
	inodes   map[meta.Ino]*found
	refs     map[BlockRef]*naming
	history  map[string]bool // keys of H
	counters map[string]int64
	sessions map[uint64]bool
	opens    []meta.Ino
	purges   []string // keys of H that will be purged
}

func (k *checker) volume(ctx context.Context, r engine.Reader, num uint32, v *volume) error {
	c := &volumeCheck{
		checker: k, v: v,
		inodes: make(map[meta.Ino]*found), refs: make(map[BlockRef]*naming), history: make(map[string]bool),
		counters: make(map[string]int64), sessions: make(map[uint64]bool),
	}
	prefix := binary.BigEndian.AppendUint32(nil, num)
	err := r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
		if len(key) < 6 {
			c.bad("key %q is not known", key)
			return true, nil
		}
		c.record(key[4], key[5:], value)
		return true, ctx.Err()
	})
	if err != nil {
		return err
	}
	c.conclude()
	return nil
}

func (c *volumeCheck) bad(format string, args ...any) { c.report(c.v.id, format, args...) }

// record checks the form of one record and takes note of it.
func (c *volumeCheck) record(table byte, key, value []byte) {
	switch table {
	case tableInode:
		c.inodeRecord(key, value)
	case tableCounter:
		if len(value) != 8 {
			c.bad("counter %q has %d bytes", key, len(value))
			return
		}
		c.counters[string(key)] = int64(binary.BigEndian.Uint64(value))
	case tableDentry:
		c.dentry(key, value)
	case tableDelayed:
		c.delayedWork(key, value)
	case tableHistory:
		c.historyRecord(key, value)
	case tableSession:
		c.session(key, value)
	case tableShared:
		c.shared(key, value)
	default:
		c.bad("key %q of table %q is not known", key, table)
	}
}

// inodeRecord checks what is kept below one inode.
func (c *volumeCheck) inodeRecord(key, value []byte) {
	if len(key) < 9 {
		c.bad("key %q of an inode is too short", key)
		return
	}
	ino, kind, rest := meta.Ino(binary.BigEndian.Uint64(key)), key[8], key[9:]
	if kind == ofAttr && len(rest) == 0 {
		in, err := decodeInode(ino, value)
		if err != nil {
			c.bad("%v", err)
			return
		}
		c.inodes[ino] = &found{inode: in}
		c.attributes(in)
		return
	}
	in := c.inodes[ino]
	switch {
	case in == nil:
		c.bad("inode %d has a record of kind %q and no attributes", ino, kind)
	case kind == ofBlock && len(rest) == 4:
		c.block(in, 0, indexOf(rest), value)
	case kind == ofBody && len(rest) == 8 && binary.BigEndian.Uint32(rest) != 0:
		c.block(in, binary.BigEndian.Uint32(rest), indexOf(rest), value)
	case kind == ofParent && len(rest) == 8 && len(value) == 4:
		if in.parents == nil {
			in.parents = make(map[meta.Ino]uint32)
		}
		in.parents[meta.Ino(binary.BigEndian.Uint64(rest))] = binary.BigEndian.Uint32(value)
	case kind == ofXattr && checkXattr(string(rest)) == nil && len(value) <= meta.MaxXattr:
		in.xattrs++
		c.acl(in, string(rest), value)
	default:
		c.bad("inode %d has a record %q %q that is not known", ino, kind, rest)
	}
}

// attributes checks an inode by itself.
func (c *volumeCheck) attributes(in *inode) {
	switch in.Mode & typeMask {
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFIFO, syscall.S_IFSOCK:
		if in.Target != "" {
			c.bad("inode %d is no symbolic link and has a target", in.Ino)
		}
	case syscall.S_IFLNK:
		if uint64(len(in.Target)) != in.Size || in.Size == 0 {
			c.bad("symbolic link %d of %d bytes has a target of %d", in.Ino, in.Size, len(in.Target))
		}
	default:
		c.bad("inode %d has mode %#o", in.Ino, in.Mode)
	}
	if in.Size > meta.MaxSize {
		c.bad("inode %d has %d bytes", in.Ino, in.Size)
	}
	if in.dead && in.Nlink > 0 {
		c.bad("inode %d is being removed and has %d names", in.Ino, in.Nlink)
	}
	if !in.IsRegular() && in.body != 0 {
		c.bad("inode %d is not a file and has body %d", in.Ino, in.body)
	}
	if !in.IsRegular() && in.Bytes != 0 {
		c.bad("inode %d is not a file and has %d bytes stored", in.Ino, in.Bytes)
	}
}

func (c *volumeCheck) block(in *found, body, index uint32, value []byte) {
	k, err := decodeBlock(index, value)
	if err != nil {
		c.bad("inode %d: %v", in.Ino, err)
		return
	}
	if body != in.body {
		c.shedBlock(in, body, k)
		return
	}
	start := uint64(index) * uint64(c.v.blockSize)
	switch {
	case !in.IsRegular():
		c.bad("inode %d is not a file and has block %d", in.Ino, index)
	case k.Gen == (meta.Gen{}) || k.Len == 0 || k.Len > c.v.blockSize || k.Inline && index != 0:
		c.bad("inode %d: the record of block %d says %+v", in.Ino, index, *k)
	case start >= in.Size || start+uint64(k.Len) > in.Size:
		c.bad("inode %d has %d bytes, and block %d has %d from %d on", in.Ino, in.Size, index, k.Len, start)
	}
	in.bytes += k.Bytes()
	if k.Inline {
		in.inline = true
		return
	}
	if last := len(k.Holes) - 1; last >= 0 && k.Holes[last].Hi > c.v.blockSize {
		c.bad("inode %d: block %d has the holes %v", in.Ino, index, k.Holes)
	}
	if k.Origin == (meta.Origin{Ino: in.Ino, Index: index}) {
		c.bad("inode %d: block %d says that it is from where it is", in.Ino, index)
	}
	n := c.naming(refOf(in.Ino, k))
	n.files++
	n.foreign = n.foreign || k.Origin != (meta.Origin{})
}

// shedBlock takes note of a block that a file has shed.
func (c *volumeCheck) shedBlock(in *found, body uint32, k *meta.Block) {
	if in.sheds == nil {
		in.sheds = make(map[uint32]bool)
	}
	in.sheds[body] = false
	if !k.Inline {
		n := c.naming(refOf(in.Ino, k))
		n.ending++
		n.foreign = n.foreign || k.Origin != (meta.Origin{})
	}
}

func (c *volumeCheck) naming(r BlockRef) *naming {
	n := c.refs[r]
	if n == nil {
		n = new(naming)
		c.refs[r] = n
	}
	return n
}

// ending takes note of references that delayed work ends.
func (c *volumeCheck) ending(refs []BlockRef, err error) {
	if err != nil {
		c.bad("%v", err)
	}
	for _, r := range refs {
		c.naming(r).ending++
	}
}

// shared takes note of a count of table R.
func (c *volumeCheck) shared(key, value []byte) {
	if len(key) != 8+refLen || len(value) != 4 || binary.BigEndian.Uint32(value) == 0 {
		c.bad("count %q of an object: %q", key, value)
		return
	}
	refs, err := decodeRefs(meta.Ino(binary.BigEndian.Uint64(key)), key[8:])
	if err != nil {
		c.bad("%v", err)
		return
	}
	c.naming(refs[0]).count = binary.BigEndian.Uint32(value)
}

// objects checks that every object is counted as often as it is named.
func (c *volumeCheck) objects() {
	for r, n := range c.refs {
		switch named := n.files + n.ending; {
		case n.count > 0 && n.count != named:
			c.bad("block %d of inode %d, version %v, is named %d times and counted %d times", r.Index, r.Ino, r.Gen, named, n.count)
		case n.count > 0:
		case n.foreign:
			c.bad("block %d of inode %d, version %v, is named by another file and not counted", r.Index, r.Ino, r.Gen)
		case n.files > 0 && n.ending > 0:
			c.bad("block %d of inode %d, version %v, is in a file and going to be deleted", r.Index, r.Ino, r.Gen)
		case named > 1:
			c.bad("block %d of inode %d, version %v, is named %d times and not counted", r.Index, r.Ino, r.Gen, named)
		}
	}
}

func (c *volumeCheck) dentry(key, value []byte) {
	if len(key) < 9 || checkName(string(key[8:])) != nil {
		c.bad("key %q of a directory entry", key)
		return
	}
	dir, name := meta.Ino(binary.BigEndian.Uint64(key)), string(key[8:])
	d, err := decodeDentry(value)
	if err != nil {
		c.bad("entry %q of directory %d: %v", name, dir, err)
		return
	}
	parent, in := c.inodes[dir], c.inodes[d.ino]
	if parent == nil || !parent.IsDir() {
		c.bad("entry %q is in %d, which is no directory", name, dir)
		return
	}
	parent.entries++
	if in == nil || in.Nlink == 0 {
		c.bad("entry %q of directory %d stands for inode %d, which is gone", name, dir, d.ino)
		return
	}
	if d.typ != in.Mode&typeMask {
		c.bad("entry %q of directory %d says type %#o, inode %d has mode %#o", name, dir, d.typ, d.ino, in.Mode)
	}
	if in.IsDir() {
		parent.subdirs++
	}
	if in.named == nil {
		in.named = make(map[meta.Ino]uint32)
	}
	in.named[dir]++
}

func (c *volumeCheck) delayedWork(key, value []byte) {
	if len(key) < 9 {
		c.bad("key %q of delayed work", key)
		return
	}
	kind, rest := key[8], key[9:]
	switch {
	case kind == delayedBlocks && len(rest) == 18:
		c.ending(decodeRefs(meta.Ino(binary.BigEndian.Uint64(rest)), value))
	case kind == delayedCloned && len(rest) == 18:
		c.ending(decodeCloned(value))
	case kind == delayedBody:
		c.shed(decodeShed(rest, value))
	case kind == delayedInode && len(rest) == 8:
		ino := meta.Ino(binary.BigEndian.Uint64(rest))
		if in := c.inodes[ino]; in != nil {
			in.delayed = true
		} else {
			c.bad("inode %d is to be removed and is not there", ino)
		}
	case kind == delayedTree && len(rest) == 8:
		ino := meta.Ino(binary.BigEndian.Uint64(rest))
		in := c.inodes[ino]
		if in == nil || !in.IsDir() || in.Nlink > 0 || in.entries == 0 || in.detached {
			c.bad("inode %d is to be taken apart and is no directory without a name that has entries, or is so twice", ino)
			return
		}
		in.detached = true
	case kind == delayedHistory && len(rest) > 9 && rest[0] == tableHistory:
		c.purges = append(c.purges, string(rest[1:]))
	default:
		c.bad("delayed work %q %q is not known", kind, rest)
	}
}

// shed takes note of a body that will be collected. Its records may be gone.
func (c *volumeCheck) shed(s shedBody, err error) {
	in := c.inodes[s.ino]
	switch {
	case err != nil:
		c.bad("delayed work of kind %q: %v", delayedBody, err)
	case in == nil:
	case s.body >= in.body:
		c.bad("body %d of inode %d is to be removed, and it has body %d", s.body, s.ino, in.body)
	case in.sheds != nil:
		in.sheds[s.body] = true
	}
}

// historyRecord checks the form of one: the key as it is today, 0 and a second.
func (c *volumeCheck) historyRecord(key, value []byte) {
	c.history[string(key)] = true
	n := len(key) - 9
	if n < 2 || key[n] != 0 || len(value) == 0 || value[0] > 1 || value[0] == 0 && len(value) > 1 {
		c.bad("history record %q: %d bytes", key, len(value))
		return
	}
	if value[0] == 1 {
		if err := checkPast(key[0], key[1:n], value[1:]); err != nil {
			c.bad("history record %q: %v", key, err)
			return
		}
	}
	second := int64(binary.BigEndian.Uint64(key[n+1:]))
	if last, ok := c.counters[counterSecond]; ok && second > last {
		c.bad("history record %q is of second %d, and the last change was in %d", key, second, last)
	}
	if since := c.counters[counterPast]; since != 0 && second > since && value[0] == 1 {
		c.pastNeeds(second, key[0], key[1:n], value[1:])
	}
}

// pastNeeds checks that what a session of the past may be told of is still there.
func (c *volumeCheck) pastNeeds(second int64, table byte, key, value []byte) {
	ino := meta.Ino(binary.BigEndian.Uint64(key))
	switch {
	case table == tableDentry:
		d, _ := decodeDentry(value)
		ino = d.ino
	case key[8] == ofAttr:
		if in, _ := decodeInode(ino, value); in.Nlink == 0 {
			return
		}
	case key[8] == ofBlock || key[8] == ofBody:
		k, _ := decodeBlock(indexOf(key), value)
		if r := refOf(ino, k); !k.Inline && c.refs[r] == nil {
			c.bad("until second %d inode %d had block %d, version %v, which is gone", second, r.Ino, r.Index, r.Gen)
		}
		return
	default:
		return
	}
	if in := c.inodes[ino]; in == nil || in.dead {
		c.bad("until second %d inode %d was there, and it is gone", second, ino)
	}
}

// checkPast checks a value that a key had.
func checkPast(table byte, key, value []byte) (err error) {
	switch {
	case table == tableDentry && len(key) > 8:
		_, err = decodeDentry(value)
	case table == tableInode && len(key) == 9 && key[8] == ofAttr:
		_, err = decodeInode(meta.Ino(binary.BigEndian.Uint64(key)), value)
	case table == tableInode && (len(key) == 13 && key[8] == ofBlock || len(key) == 17 && key[8] == ofBody):
		_, err = decodeBlock(indexOf(key), value)
	case table == tableInode && len(key) == 17 && key[8] == ofParent && len(value) == 4:
	case table == tableInode && len(key) > 9 && key[8] == ofXattr:
	default:
		err = errValue
	}
	return err
}

func (c *volumeCheck) session(key, value []byte) {
	if len(key) < 9 {
		c.bad("key %q of a session", key)
		return
	}
	id, kind, rest := binary.BigEndian.Uint64(key), key[8], key[9:]
	if kind == ofSession && len(rest) == 0 {
		var rec sessionRecord
		if err := json.Unmarshal(value, &rec); err != nil || rec.Secret == "" {
			c.bad("session %d: %v", id, err)
		}
		c.sessions[id] = true
		return
	}
	var reply meta.Reply
	switch {
	case !c.sessions[id]:
		c.bad("there is a record of session %d, which is not there", id)
	case kind == ofOpen && len(rest) == 8:
		c.opens = append(c.opens, meta.Ino(binary.BigEndian.Uint64(rest)))
	case kind == ofDelegation && len(rest) == 8 && len(value) == 0:
	case kind == ofSlot && len(rest) == 2 && len(value) > 4 && binary.BigEndian.Uint16(rest) < slots:
		if err := reply.Decode(value[4:]); err != nil {
			c.bad("session %d: %v", id, err)
		}
	case kind == ofSlot && len(value) == 4: // an answer without fields
	default:
		c.bad("session %d has a record %q %q that is not known", id, kind, rest)
	}
}

// conclude checks what depends on all records.
func (c *volumeCheck) conclude() {
	root := c.inodes[meta.Root]
	if root == nil || !root.IsDir() || root.Parent != meta.Root {
		c.bad("the root is missing or no directory")
		return
	}
	root.reaching = 2
	var bytes, count int64
	for ino, in := range c.inodes {
		if in.Nlink > 0 {
			bytes += int64(in.Bytes)
			count++
		}
		if next := (nextInos{c.counters[counterIno], c.counters[counterReserved]}); !next.gave(ino) {
			c.bad("inode %d was not given out; the next are %d and %d", ino, next.ours, next.reserved)
		}
		c.contents(in)
		if in.IsDir() {
			c.directory(in)
		} else {
			c.names(in)
		}
		if in.Nlink == 0 && !in.delayed {
			c.bad("inode %d has no name and will not be removed", ino)
		}
	}
	c.count(counterBytes, bytes)
	c.count(counterInodes, count)
	c.objects()
	c.leftovers()
}

func (c *volumeCheck) count(name string, want int64) {
	if got := c.counters[name]; got != want {
		c.bad("counter %q is %d and should be %d", name, got, want)
	}
}

// contents checks an inode against its other records. Those of an inode that is
// being removed may be gone.
func (c *volumeCheck) contents(in *found) {
	if in.dead {
		return
	}
	for body, collected := range in.sheds {
		if !collected {
			c.bad("inode %d has shed body %d, which will not be removed", in.Ino, body)
		}
	}
	if in.bytes != in.Bytes {
		c.bad("inode %d says %d bytes are stored, its blocks have %d", in.Ino, in.Bytes, in.bytes)
	}
	if in.xattrs != in.Xattrs {
		c.bad("inode %d says it has %d extended attributes and has %d", in.Ino, in.Xattrs, in.xattrs)
	}
	if in.inline != in.inode.inline {
		c.bad("inode %d says inline %v, its block 0 says %v", in.Ino, in.inode.inline, in.inline)
	}
}

// acl checks an access control list against the mode.
func (c *volumeCheck) acl(in *found, name string, value []byte) {
	if name != aclAccess && name != aclDefault {
		return
	}
	a, err := parseACL(value)
	switch {
	case err != nil:
		c.bad("inode %d: %s: %v", in.Ino, name, err)
	case in.IsSymlink() || name == aclDefault && !in.IsDir():
		c.bad("inode %d with mode %o has a %s", in.Ino, in.Mode, name)
	case name == aclAccess && (a.minimal() || a.mode() != in.Mode&0o777):
		c.bad("inode %d with mode %o has an access control list for %o of %d entries", in.Ino, in.Mode, a.mode(), len(a))
	}
}

func (c *volumeCheck) directory(in *found) {
	if in.entries != in.Size {
		c.bad("directory %d says %d entries and has %d", in.Ino, in.Size, in.entries)
	}
	if in.Nlink != 0 && in.Nlink != 2+in.subdirs || in.Nlink == 0 && in.entries != 0 && !in.detached {
		c.bad("directory %d has nlink %d and %d directories", in.Ino, in.Nlink, in.subdirs)
	}
	switch {
	case in.Ino == meta.Root:
		if len(in.named) != 0 {
			c.bad("the root has a name")
		}
	case in.Nlink > 0 && (len(in.named) != 1 || in.named[in.Parent] != 1):
		c.bad("directory %d has its names in %v and says its parent is %d", in.Ino, in.named, in.Parent)
	case in.Nlink > 0 && !c.reaches(in):
		c.bad("directory %d is not below the root", in.Ino)
	}
	if len(in.parents) > 0 {
		c.bad("directory %d has records of parents", in.Ino)
	}
}

// reaches tells whether the parents of a directory lead to the root, or to a
// directory that is going to be taken apart.
func (c *volumeCheck) reaches(in *found) bool {
	var path []*found
	for in != nil && in.reaching == 0 && !in.detached {
		in.reaching = 1
		path = append(path, in)
		in = c.inodes[in.Parent]
	}
	ok := in != nil && (in.reaching == 2 || in.detached)
	for _, dir := range path {
		dir.reaching = 3
		if ok {
			dir.reaching = 2
		}
	}
	return ok
}

// names checks the names of an inode that is not a directory.
func (c *volumeCheck) names(in *found) {
	var n uint32
	for dir, count := range in.named {
		n += count
		if in.Nlink > 1 && in.parents[dir] != count {
			c.bad("inode %d has %d names in directory %d, and a record of %d", in.Ino, count, dir, in.parents[dir])
		}
		if in.Nlink == 1 && in.Parent != dir {
			c.bad("inode %d has its name in directory %d, not %d", in.Ino, dir, in.Parent)
		}
	}
	if n != in.Nlink {
		c.bad("inode %d has %d names and nlink %d", in.Ino, n, in.Nlink)
	}
	want := 0
	if in.Nlink > 1 {
		want = len(in.named)
	}
	if len(in.parents) != want {
		c.bad("inode %d with %d names has %d records of parents", in.Ino, n, len(in.parents))
	}
}

// leftovers checks sessions and delayed work against what there is.
func (c *volumeCheck) leftovers() {
	if since, last := c.counters[counterPast], c.counters[counterSecond]; since > last {
		c.bad("history is complete since second %d, and the last change was in %d", since, last)
	}
	for _, ino := range c.opens {
		if in := c.inodes[ino]; in == nil || in.dead {
			c.bad("inode %d is in use and gone", ino)
		}
	}
	for id := range c.sessions {
		if int64(id) > c.counters[counterSession] {
			c.bad("session %d was not given out; the last is %d", id, c.counters[counterSession])
		}
	}
	for _, key := range c.purges {
		if !c.history[key] {
			c.bad("history record %q is to be purged and is not there", strings.ToValidUTF8(key, "?"))
		}
	}
}
