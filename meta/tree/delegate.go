package tree

import (
	"context"
	"encoding/binary"
	"sync"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A directory may be delegated to the only session that holds it. Then it may
// have entries that only the session knows, because nobody else sees or changes
// the directory before the session was called back, has made them, and knows
// that it is not delegated any more. Whoever reads or changes the directory sees
// to that: [volume.recall], or the notice of the change, since who has a
// directory delegated holds it too.
//
// Delegations are stored with the session, so a server that starts again knows
// whom to ask.

// maxDelegations bounds the directories of one session.
const maxDelegations = 4096

// A streak is how often one session changed names in a directory and others had to
// be told because they hold it, without any of them asking for it meanwhile.
type streak struct {
	s *session
	n int
}

// longStreak is when those others are told to forget all of the directory, and so
// hold it no more. Then it may be delegated, and they need not be told any more.
const longStreak = 16

// noteStreak counts. v.mu is held.
func (v *volume) noteStreak(s *session, dir meta.Ino) {
	k := v.streaks[dir]
	if k.s != s {
		k = streak{s: s}
	}
	if k.n++; k.n > longStreak { // they were told to forget it
		delete(v.streaks, dir)
		return
	}
	if k.n == 1 && len(v.streaks) >= maxDelegations {
		for other := range v.streaks { // any: it begins again
			delete(v.streaks, other)
			break
		}
	}
	v.streaks[dir] = k
}

// endStreaks is for when a session asks for inodes. v.mu is held.
func (v *volume) endStreaks(s *session, inos []meta.Ino) {
	if len(v.streaks) == 0 {
		return
	}
	for _, ino := range inos {
		if k, ok := v.streaks[ino]; ok && k.s != s {
			delete(v.streaks, ino)
		}
	}
}

// idle reports whether the holders of a directory are to forget it. v.mu is held.
func (v *volume) idle(s *session, dir meta.Ino) bool {
	k := v.streaks[dir]
	return k.s == s && k.n >= longStreak
}

// delegate delegates a directory that is locked to the session of the change,
// whose answer will say so. It reports false if that cannot be.
func (c *change) delegate(dir meta.Ino) (bool, error) {
	v, s := c.v, c.s
	v.mu.Lock()
	_, holds := v.holders[dir][s]
	ok := holds && len(v.holders[dir]) == 1 && len(v.absent) == 0 && len(s.delegations) < maxDelegations
	if ok {
		s.delegations[dir] = struct{}{}
		v.delegated[dir] = s
		delete(v.streaks, dir)
	}
	v.mu.Unlock()
	if !ok {
		return false, nil
	}
	return true, c.Put(v.delegationKey(s.id, dir), nil)
}

// delegatedTo returns those of some inodes that are delegated to others than s,
// and to whom.
func (v *volume) delegatedTo(s *session, inos []meta.Ino) map[*session][]meta.Inval {
	v.mu.Lock()
	defer v.mu.Unlock()
	var others map[*session][]meta.Inval
	for _, ino := range inos {
		if d := v.delegated[ino]; d != nil && d != s {
			if others == nil {
				others = make(map[*session][]meta.Inval)
			}
			others[d] = append(others[d], meta.Inval{Ino: ino})
		}
	}
	return others
}

// recall has sessions make what only they know in directories that are delegated
// to them, which ends that. It returns when they have, or their leases have ended.
func (v *volume) recall(ctx context.Context, others map[*session][]meta.Inval) {
	var wg sync.WaitGroup
	for s, invals := range others {
		wg.Go(func() { v.askBack(ctx, s, invals) })
	}
	wg.Wait()
}

// undelegate notes that a session has answered a call-back. Its makes in those
// directories are done.
func (v *volume) undelegate(s *session, invals []meta.Inval) {
	var locks [][]byte
	v.mu.Lock()
	for _, inval := range invals {
		if v.delegated[inval.Ino] == s {
			delete(v.delegated, inval.Ino)
			delete(s.delegations, inval.Ino)
			locks = append(locks, v.inoKey(inval.Ino))
		}
	}
	v.mu.Unlock()
	if locks == nil {
		return
	}
	// Not waited for: if it is lost, the session is asked once more.
	_, err := v.srv.cfg.Engine.Update(context.Background(), locks, func(tx engine.Tx) error {
		for _, inval := range invals {
			v.mu.Lock()
			again := v.delegated[inval.Ino] == s
			v.mu.Unlock()
			if again {
				continue
			}
			if err := tx.Delete(v.delegationKey(s.id, inval.Ino)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		v.srv.cfg.Log.Warn("a record of a delegation stays until its session ends", "volume", v.id, "session", s.id, "err", err)
	}
}

// maxReserved bounds the numbers of one OpReserve.
const maxReserved = 10_000

// firstReserved is the first inode number that clients give. Those that the
// server gives stay below.
const firstReserved = 1 << 40

// reserveInos gives the session inode numbers for what it makes first.
func (s *session) reserveInos(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if s.readOnly() {
		return nil, refuse(syscall.EROFS, "the session may only read")
	}
	n := int64(min(req.Limit, maxReserved))
	if n == 0 {
		return nil, refuse(syscall.EINVAL, "no numbers")
	}
	var first int64
	key := s.v.counterKey(counterReserved)
	commit, err := s.v.srv.cfg.Engine.Update(ctx, [][]byte{key}, func(tx engine.Tx) error {
		var err error
		if first, err = s.v.counter(tx, counterReserved); err != nil {
			return err
		}
		first = max(first, firstReserved)
		return tx.Put(key, binary.BigEndian.AppendUint64(nil, uint64(first+n)))
	})
	if err != nil {
		return nil, err
	}
	if err := s.v.srv.durable(commit); err != nil {
		return nil, err
	}
	s.v.reserved.Store(first + n)
	return &meta.Reply{Inos: []meta.Ino{meta.Ino(first), meta.Ino(first + n)}}, nil
}

// number returns the inode number of what is going to be made.
func (s *session) number(ctx context.Context, req *meta.Request) (meta.Ino, error) {
	if req.Ino2 == 0 {
		return s.v.newIno(ctx)
	}
	if req.Ino2 < firstReserved || req.Mode&typeMask != syscall.S_IFREG || req.Name == "" {
		return 0, refuse(syscall.EINVAL, "inode %d was not reserved for a file", req.Ino2)
	}
	return req.Ino2, nil
}

// wasReserved refuses a number that was not given to a client.
func (c *change) wasReserved(ino meta.Ino) error {
	if ino < meta.Ino(c.v.reserved.Load()) {
		return nil
	}
	n, err := c.v.counter(c, counterReserved)
	if err != nil {
		return err
	}
	c.v.reserved.Store(n)
	if ino >= meta.Ino(n) {
		return refuse(syscall.EINVAL, "inode %d was not reserved", ino)
	}
	return nil
}

// madeBefore answers an OpMake that was done already, and of which the client did
// not hear. It returns nil if it was not.
func (c *change) madeBefore(ino meta.Ino, dir *loaded) (*meta.Reply, error) {
	b, err := c.Get(c.v.attrKey(ino))
	if err != nil || b == nil {
		return nil, err
	}
	in, err := c.inode(ino)
	if err != nil {
		return nil, err
	}
	return &meta.Reply{Attr: in.told(), Parent: dir.told(), Existed: true}, nil
}

// madeAt gives a directory the times that it would have if it had been told of a
// file when that was made. was is what it was before.
func (c *change) madeAt(dir *loaded, was *meta.Attr, born meta.Time) {
	switch {
	case born == (meta.Time{}) || born.Compare(c.time) > 0:
	case born.Compare(was.Ctime) < 0: // changed since
		dir.Mtime, dir.Ctime = was.Mtime, was.Ctime
	default:
		dir.Mtime, dir.Ctime = born, born
	}
}

// fill gives a file that is being made what it was given before.
func (c *change) fill(in *loaded, born meta.Time, req *meta.Request) error {
	if len(req.Blocks) > 0 || req.Size > 0 {
		if err := c.contents(in, req); err != nil {
			return err
		}
	}
	if born != (meta.Time{}) && born.Compare(c.time) < 0 {
		in.Btime, in.Atime, in.Mtime, in.Ctime = born, born, born, born
	}
	if a := &req.Attr; a.Ctime != (meta.Time{}) {
		in.Atime, in.Mtime, in.Ctime = a.Atime, a.Mtime, a.Ctime
		if in.Ctime.Compare(c.time) > 0 {
			in.Ctime = c.time // a client's clock does not set it ahead
		}
	}
	return nil
}
