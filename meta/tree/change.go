package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// maxLocks bounds the inodes that one change may lock: a rename has five.
const maxLocks = 16

// renames is locked by renames that move a directory: so no two can together
// make a loop.
const renames meta.Ino = 0

// A change is one transaction on a volume. An inode is locked before it is read,
// and written when the change is finished.
type change struct {
	engine.Tx
	v         *volume
	s         *session // nil: the server's own
	req       *meta.Request
	second    int64         // for history and delayed work
	retention time.Duration // of what changes in it
	time      meta.Time
	locked    []meta.Ino
	inodes    map[meta.Ino]*loaded

	invals         []meta.Inval
	orphans        []meta.Ino // that lost their last name
	garbage        []BlockRef // objects of dropper that are not named any more
	cloned         []BlockRef // and those of other inodes
	dropper        meta.Ino   // the inode that named them: a change drops of one only
	bytes, counted int64      // to add to the counters
	reserved       bool
	stamped        bool                // the second was noted
	recorded       map[string]struct{} // keys of which history was written
	chronicled     bool                // the chronicle was told
	born           []meta.Ino          // made by the change; set when it is finished
}

// A loaded is an inode of a change.
type loaded struct {
	inode
	old   []byte // as it was stored; nil: made by the change
	dirty bool
	other bool // has other contents, or another owner: what it was trusted with goes
}

// A relock is the failure of a change that met inodes that it had not locked.
type relock struct{ inos []meta.Ino }

func (r *relock) Error() string { return "tree: inodes are not locked" }

// change runs fn in a transaction that has inos locked, and again with more as
// needed. Before it is made every other session that might have cached something
// that will no longer be true has been told, and when change returns it is
// durable.
func (s *session) change(ctx context.Context, req *meta.Request, inos []meta.Ino, fn func(*change) (*meta.Reply, error)) (*meta.Reply, error) {
	var reply *meta.Reply
	err := s.transact(ctx, req, inos, func(c *change, n *notice) (err error) {
		if reply, err = fn(c); err != nil {
			return err
		}
		if err := n.need(c.invals); err != nil {
			return err
		}
		return c.answered(reply)
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// transact runs fn until all that it needs is locked and all whom it concerns
// have been told, and makes the change durable, unless it is a part of a
// compound.
func (s *session) transact(ctx context.Context, req *meta.Request, inos []meta.Ino, fn func(*change, *notice) error) error {
	n := &notice{v: s.v, s: s}
	if req.Op == meta.OpRestore {
		n.s = nil // who asks takes the name for absent, and its kernel too
	}
	defer n.done()
	for {
		c, commit, err := s.attempt(ctx, req, inos, n, fn)
		var more *relock
		if errors.As(err, &more) && len(inos)+len(more.inos) <= maxLocks {
			inos = append(slices.Clone(inos), more.inos...)
			continue
		}
		var others *untold
		if errors.As(err, &others) {
			if err := batchOf(ctx).settle(); err != nil { // they may take their time
				return err
			}
			n.tell(others)
			continue
		}
		if err != nil || c == nil {
			return err
		}
		n.done()
		if err := s.durable(ctx, commit); err != nil {
			return err
		}
		return n.keepOrphans(c.orphans)
	}
}

// attempt runs one transaction.
func (s *session) attempt(ctx context.Context, req *meta.Request, inos []meta.Ino, n *notice, fn func(*change, *notice) error) (c *change, commit engine.Commit, err error) {
	s.run.RLock()
	defer s.run.RUnlock()
	if s.ended {
		return nil, nil, errNoSession
	}
	commit, err = s.v.update(ctx, s, req, inos, &c, func(c *change) error { return fn(c, n) })
	return c, commit, err
}

// update runs fn in a transaction. out is set to the change as the last run of
// fn left it.
func (v *volume) update(ctx context.Context, s *session, req *meta.Request, inos []meta.Ino, out **change, fn func(*change) error) (engine.Commit, error) {
	locks := make([][]byte, len(inos), len(inos)+1)
	for i, ino := range inos {
		locks[i] = v.inoKey(ino)
	}
	commit, err := v.transact(ctx, s, req, inos, locks, out, fn)
	if errors.Is(err, errUnstamped) {
		commit, err = v.transact(ctx, s, req, inos, append(locks, v.clockKey()), out, fn)
	}
	return commit, err
}

// transact is update with the locks that it takes.
func (v *volume) transact(ctx context.Context, s *session, req *meta.Request, inos []meta.Ino, locks [][]byte, out **change, fn func(*change) error) (engine.Commit, error) {
	v.writing.RLock()
	defer v.writing.RUnlock()
	var c *change
	commit, err := v.srv.cfg.Engine.Update(ctx, locks, func(tx engine.Tx) error {
		if c != nil {
			c.undo()
		}
		c = &change{
			Tx: tx, v: v, s: s, req: req, second: v.now(), time: req.Time,
			locked: slices.Clip(inos), inodes: make(map[meta.Ino]*loaded),
		}
		c.retention = v.retention(c.second)
		if now := meta.TimeOf(time.Now()); c.time == (meta.Time{}) || c.time.Compare(now) > 0 {
			c.time = now // a client's clock does not set times ahead
		}
		if err := c.stamp(len(locks) > len(inos)); err != nil {
			return err
		}
		if err := fn(c); err != nil {
			return err
		}
		return c.finish()
	})
	if err != nil {
		if c != nil {
			c.undo()
		}
		return nil, err
	}
	if c.stamped {
		v.mu.Lock()
		v.stamped = max(v.stamped, c.second)
		v.mu.Unlock()
	}
	v.changes.Add(1)
	*out = c
	return commit, nil
}

// lock takes locks on inodes that are not locked yet, or asks for them.
func (c *change) lock(inos ...meta.Ino) error {
	var more []meta.Ino
	for _, ino := range inos {
		switch {
		case slices.Contains(c.locked, ino) || slices.Contains(more, ino):
		case c.TryLock(c.v.inoKey(ino)):
			c.locked = append(c.locked, ino)
		default:
			more = append(more, ino)
		}
	}
	if more != nil {
		return &relock{more}
	}
	return nil
}

// inode returns an inode. What is changed in it must be followed by touch.
func (c *change) inode(ino meta.Ino) (*loaded, error) {
	if in := c.inodes[ino]; in != nil {
		return in, nil
	}
	if ino == 0 {
		return nil, refuse(syscall.ENOENT, "there is no inode 0")
	}
	if err := c.lock(ino); err != nil {
		return nil, err
	}
	b, err := c.Get(c.v.attrKey(ino))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, refuse(syscall.ENOENT, "inode %d is gone", ino)
	}
	in, err := decodeInode(ino, b)
	if err != nil {
		return nil, err
	}
	if in.dead {
		return nil, refuse(syscall.ENOENT, "inode %d is gone", ino)
	}
	l := &loaded{inode: *in, old: b}
	c.inodes[ino] = l
	return l, nil
}

// given returns an inode that the client named.
func (c *change) given(ino meta.Ino) (*loaded, error) {
	in, err := c.inode(c.s.in(ino))
	if err != nil {
		return nil, err
	}
	return in, c.s.reaches(c, &in.inode)
}

// dir returns a directory that the client named, in which a name is changed.
func (c *change) dir(ino meta.Ino) (*loaded, error) {
	in, err := c.given(ino)
	if err != nil {
		return nil, err
	}
	if !in.IsDir() {
		return nil, refuse(syscall.ENOTDIR, "inode %d is not a directory", ino)
	}
	return in, nil
}

// touch marks an inode as changed. Its ctime does not go back, though clients'
// clocks differ and the time of a commit is that of a write before it.
func (c *change) touch(in *loaded) {
	if c.time.Compare(in.Ctime) > 0 {
		in.Ctime = c.time
	}
	if !in.dirty {
		in.dirty = true
		in.Change++
	}
}

// touchData marks a file's contents or a directory's entries as changed.
func (c *change) touchData(in *loaded) {
	c.touch(in)
	in.Mtime = c.time
	if !in.IsDir() {
		in.Data++
		in.other = true
	}
}

// named notes that a name in a directory changed.
func (c *change) named(dir *loaded, names ...string) {
	c.touchData(dir)
	c.invals = append(c.invals, meta.Inval{Ino: dir.Ino, Attr: true, Names: names})
}

// inval notes what others may have cached of an inode.
func (c *change) inval(in *loaded, data bool) {
	c.invals = append(c.invals, meta.Inval{
		Ino: in.Ino, Attr: true, Data: data && !in.IsDir(), Entries: data && in.IsDir(),
	})
}

// entry returns what a name stands for, or nil.
func (c *change) entry(dir *loaded, name string) (*dentry, error) {
	b, err := c.Get(c.v.dentryKey(dir.Ino, name))
	if err != nil || b == nil {
		return nil, err
	}
	d, err := decodeDentry(b)
	return &d, err
}

// set stores value, or deletes the key if value is nil, and keeps what was there
// for those who look at the past.
func (c *change) set(key, value []byte) error {
	old, err := c.Get(key)
	if err != nil {
		return err
	}
	return c.replace(key, old, value)
}

// replace is set for those who know the old value.
func (c *change) replace(key, old, value []byte) error {
	if err := c.remember(key, old); err != nil {
		return err
	}
	if value == nil {
		return c.Delete(key)
	}
	return c.Put(key, value)
}

// remember writes the history of a key: one record for each second in which it
// changed, with what it was before: 0 if it was not there, 1 and the value.
func (c *change) remember(key, old []byte) error {
	if c.retention == 0 {
		return nil
	}
	hkey := c.v.historyKey(key, c.second)
	if done, err := c.remembered(key, hkey); done || err != nil {
		return err
	}
	value := []byte{0}
	if old != nil {
		value = append([]byte{1}, old...)
	}
	if err := c.Put(hkey, value); err != nil {
		return err
	}
	if c.recorded == nil {
		c.recorded = make(map[string]struct{})
	}
	c.recorded[string(key)] = struct{}{}
	due := purgedAt(c.second, c.retention)
	return c.Put(append(c.v.delayedKey(due, delayedHistory), hkey[4:]...), nil)
}

// remembered tells whether the history of a key of this second is written, or need
// not be.
func (c *change) remembered(key, hkey []byte) (bool, error) {
	if in := c.inodes[subject(key)]; in != nil && in.old == nil {
		return true, nil // what it belongs to is just being made
	}
	if _, ok := c.recorded[string(key)]; ok {
		return true, nil
	}
	if recorded, sure := c.v.chronicle.has(c.second, key); sure {
		return recorded, nil
	}
	b, err := c.Get(hkey)
	return b != nil, err
}

// count adds to the volume's counters what an inode with a name has.
func (c *change) count(bytes, inodes int64) {
	c.bytes += bytes
	c.counted += inodes
}

// drop notes that a block of ino does not name its object any more. The object
// goes when those who look at the past need it no more, if nothing else names it
// then: see shared.go.
func (c *change) drop(ino meta.Ino, k *meta.Block) {
	if k.Inline || k.Gen == (meta.Gen{}) {
		return
	}
	if r := refOf(ino, k); r.Ino == ino {
		c.garbage = append(c.garbage, r)
	} else {
		c.cloned = append(c.cloned, r)
	}
	c.dropper = ino
}

// finish writes what the change collected.
func (c *change) finish() error {
	for ino, in := range c.inodes {
		if !in.dirty {
			continue
		}
		if in.other && in.Xattrs > 0 {
			if err := c.putXattr(in, capabilities, nil); err != nil {
				return err
			}
		}
		key := c.v.attrKey(ino)
		if in.old != nil {
			if err := c.remember(key, in.old); err != nil {
				return err
			}
		}
		if err := c.Put(key, in.encode()); err != nil {
			return err
		}
	}
	if err := c.finishGarbage(); err != nil {
		return err
	}
	if err := c.finishCounters(); err != nil {
		return err
	}
	c.finishHistory()
	return nil
}

// finishHistory tells the chronicle, while all is locked.
func (c *change) finishHistory() {
	if c.retention == 0 {
		return
	}
	for ino, in := range c.inodes {
		if in.old == nil {
			c.born = append(c.born, ino)
		}
	}
	c.v.chronicle.add(c.second, c.recorded, c.born)
	c.chronicled = true
}

// refsPerRecord bounds a record of objects to delete: one request deletes as
// many.
const refsPerRecord = 1000

func (c *change) finishGarbage() error {
	if err := c.delay(delayedBlocks, c.garbage, appendRef); err != nil {
		return err
	}
	return c.delay(delayedCloned, c.cloned, appendCloned)
}

// delay writes records of objects to delete.
func (c *change) delay(kind byte, refs []BlockRef, form func([]byte, BlockRef) []byte) error {
	due := c.v.keep(c.second)
	for part := uint16(0); len(refs) > 0; part++ {
		n := min(len(refs), refsPerRecord)
		key := binary.BigEndian.AppendUint64(c.v.delayedKey(due, kind), uint64(c.dropper))
		key = binary.BigEndian.AppendUint64(key, c.inodes[c.dropper].Change)
		key = binary.BigEndian.AppendUint16(key, part)
		var value []byte
		for _, r := range refs[:n] {
			value = form(value, r)
		}
		if err := c.Put(key, value); err != nil {
			return err
		}
		refs = refs[n:]
	}
	return nil
}

func (c *change) finishCounters() error {
	if err := c.v.reserve(c.bytes, c.counted); err != nil {
		return err
	}
	c.reserved = true
	if c.bytes != 0 {
		if err := c.Add(c.v.counterKey(counterBytes), c.bytes); err != nil {
			return err
		}
	}
	if c.counted != 0 {
		return c.Add(c.v.counterKey(counterInodes), c.counted)
	}
	return nil
}

// undo takes back what a change that is not made did to the volume in memory.
func (c *change) undo() {
	if c.reserved {
		c.v.unreserve(c.bytes, c.counted)
		c.reserved = false
	}
	if c.chronicled {
		c.v.chronicle.remove(c.second, c.recorded, c.born)
		c.chronicled = false
	}
}

// answered notes that the session is going to know what reply says, and stores
// the reply: the change and its answer are one transaction.
func (c *change) answered(reply *meta.Reply) error {
	inos := []meta.Ino{reply.Attr.Ino, reply.Parent.Ino, reply.Parent2.Ino, reply.Replaced.Ino}
	reply.Cache, _ = c.v.hold(c.s, inos)
	if c.req.Delegate && reply.Cache {
		dir := reply.Parent.Ino
		if reply.Attr.IsDir() {
			dir = reply.Attr.Ino
		}
		var err error
		if reply.Delegated, err = c.delegate(dir); err != nil {
			return err
		}
	}
	c.s.out(reply)
	return c.Put(c.v.slotKey(c.s.id, c.req.Slot), encodeSlot(c.req.Seq, reply))
}

// told is the form in which a client gets an inode's attributes.
func (in *inode) told() meta.Attr {
	a := in.Attr
	if !a.IsDir() {
		a.Parent = 0
	}
	return a
}
