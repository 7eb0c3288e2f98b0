package fuse

import (
	"context"
	"slices"
	"strings"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// lockEnd is the end of a lock that reaches to the end of the file.
const lockEnd = 1<<63 - 1

func metaLock(l *fuseops.FileLock, owner uint64, flock bool) meta.Lock {
	m := meta.Lock{Type: l.Type, Flock: flock, Owner: owner, Pid: l.Pid, Start: l.Start, End: min(l.End, lockEnd)}
	if flock {
		m.Start, m.End = 0, lockEnd
	}
	return m
}

// sharedMemory is how the names of files end that programs share by mapping
// them, as SQLite does beside a database in WAL mode. What one mount maps another
// does not see: so all who lock a part of such a file are on one mount, and those
// on others find it locked.
const sharedMemory = "-shm"

func (in *inode) rangeLock(l *fuseops.FileLock, owner uint64) meta.Lock {
	m := metaLock(l, owner, false)
	in.mu.Lock()
	defer in.mu.Unlock()
	m.Alone = strings.HasSuffix(in.name, sharedMemory)
	return m
}

func (c *call) getLock(op *fuseops.GetLkOp) error {
	in := c.fs.node(op.Inode)
	rep, err := c.do(&meta.Request{Op: meta.OpGetlk, Ino: in.ino, Lock: in.rangeLock(&op.Lock, op.Owner)})
	if err != nil {
		return err
	}
	l := &rep.Lock
	op.Result = fuseops.FileLock{Start: l.Start, End: l.End, Type: l.Type, Pid: l.Pid}
	return nil
}

func (c *call) setLock(op *fuseops.SetLkOp) error {
	fs := c.fs
	in := fs.node(op.Inode)
	lock := metaLock(&op.Lock, op.Owner, op.Flock)
	if !op.Flock {
		lock = in.rangeLock(&op.Lock, op.Owner)
	}
	var stored error
	if lock.Type != syscall.F_WRLCK {
		stored = c.storeLocked(in, ownerOf(&lock))
	}
	if lock.Type == syscall.F_UNLCK {
		if err := c.unlock(in, lock); err != nil {
			return err
		}
		return stored
	}
	if stored != nil {
		return stored
	}
	req := &meta.Request{Op: meta.OpSetlk, Ino: in.ino, Lock: lock}
	if err := c.unlockLeft(in, ownerOf(&lock)); err != nil {
		return err
	}
	if in.hasLost(ownerOf(&lock)) {
		return syscall.EIO
	}
	losses := in.ask(lock, uint64(op.Handle))
	// First without waiting: that is all that most need.
	_, err := c.do(req)
	excluded := refusal(err) == syscall.EAGAIN
	if op.Wait && excluded {
		err = c.waitForLock(req)
	}
	if !in.asked(lock, excluded, err, losses) {
		return syscall.EIO
	}
	return err
}

// storeLocked stores what was written to a file before a lock on it is given up:
// who has the lock next, on any mount, must see it.
func (c *call) storeLocked(in *inode, owner lockOwner) error {
	in.mu.Lock()
	held := in.mayHold(owner)
	in.mu.Unlock()
	if !held {
		return nil
	}
	return c.sync(in)
}

// A lockOwner is whom a lock belongs to.
type lockOwner struct {
	id    uint64
	flock bool
}

func ownerOf(l *meta.Lock) lockOwner { return lockOwner{l.Owner, l.Flock} }

// ask notes that a lock is going to be asked for. From now on its owner may hold
// it, and a close must release it.
func (in *inode) ask(lock meta.Lock, handle uint64) (losses uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.asking == nil {
		in.asking = map[lockOwner]int{}
	}
	in.asking[ownerOf(&lock)]++
	if lock.Flock {
		return in.losses
	}
	if in.owners == nil {
		in.owners = map[uint64]uint64{}
	}
	in.owners[lock.Owner] = handle
	return in.losses
}

// asked notes what came of it; excluded: at first another had a lock that excludes
// it, for which a flock(2) gives up what there was. One that is refused for another
// reason, as ENOLCK, changes nothing. A lock whose request was not answered may be held
// all the same, and so may one that was waited for in vain: it may have been
// granted while that was told. It reports false if it was granted, but the session,
// and perhaps the lock, was lost since ask, which returned losses.
func (in *inode) asked(lock meta.Lock, excluded bool, err error, losses uint64) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	owner := ownerOf(&lock)
	if in.asking[owner]--; in.asking[owner] == 0 {
		delete(in.asking, owner)
	}
	if err != nil && lock.Flock && (excluded || !answered(err)) { // it may not be held any more
		gone := lock
		gone.Type = syscall.F_UNLCK
		in.locks = applyLock(in.locks, gone)
	}
	lost := err == nil && in.losses != losses
	if lost {
		in.lost[owner] = struct{}{}
	}
	switch {
	case err == nil && !lost:
		in.locks = applyLock(in.locks, lock)
	case lost || !answered(err) || refusal(err) == syscall.EINTR:
		if in.maybe == nil {
			in.maybe = map[lockOwner]struct{}{}
		}
		in.maybe[owner] = struct{}{}
	}
	return !lost
}

// loseLocks notes that all locks are gone, and reports whether there may have been
// any. in.mu is held.
func (in *inode) loseLocks() bool {
	if in.lost == nil {
		in.lost = map[lockOwner]struct{}{}
	}
	in.losses++
	was := len(in.lost)
	for i := range in.locks {
		in.lost[ownerOf(&in.locks[i])] = struct{}{}
	}
	for owner := range in.maybe {
		in.lost[owner] = struct{}{}
	}
	in.locks, in.maybe = nil, nil
	return len(in.lost) > was
}

// lostLock returns EIO if somebody lost a lock on the file and has not closed it
// since.
func (in *inode) lostLock() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.lostLockLocked()
}

// lostLockLocked is lostLock with in.mu held.
func (in *inode) lostLockLocked() error {
	if len(in.lost) > 0 {
		return syscall.EIO
	}
	return nil
}

// hasLost reports whether that is so of one owner.
func (in *inode) hasLost(owner lockOwner) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	_, lost := in.lost[owner]
	return lost
}

// forgetLost notes that an owner has closed the file.
func (in *inode) forgetLost(owner lockOwner) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.lost, owner)
}

// mayHold reports whether an owner has locks, or may have: in.mu is held.
func (in *inode) mayHold(owner lockOwner) bool {
	_, maybe := in.maybe[owner]
	return maybe || in.asking[owner] > 0 ||
		slices.ContainsFunc(in.locks, func(l meta.Lock) bool { return ownerOf(&l) == owner })
}

// waitForLock waits until the lock is granted or the caller is interrupted.
func (c *call) waitForLock(req *meta.Request) error {
	fs := c.fs
	select {
	case fs.locking <- struct{}{}:
		defer func() { <-fs.locking }()
	default:
		return syscall.ENOLCK
	}
	c.wait()
	c.park()
	ctx, cancel := context.WithCancel(c.op)
	defer cancel()
	defer context.AfterFunc(fs.ctx, cancel)()
	again := *req
	again.Wait = true
	_, err := fs.meta.Do(ctx, &again)
	if err != nil && ctx.Err() != nil {
		return syscall.EINTR
	}
	return err
}

// unlock releases what of lock is held, or may be.
func (c *call) unlock(in *inode, lock meta.Lock) error {
	lock.Type = syscall.F_UNLCK
	owner := ownerOf(&lock)
	in.mu.Lock()
	held := in.mayHold(owner)
	_, maybe := in.maybe[owner]
	all := lock.Start == 0 && lock.End == lockEnd
	if all {
		delete(in.maybe, owner) // a request that loses its answer from now on notes it again
	}
	in.mu.Unlock()
	if !held {
		return nil
	}
	_, err := c.do(&meta.Request{Op: meta.OpSetlk, Ino: in.ino, Lock: lock})
	in.mu.Lock()
	defer in.mu.Unlock()
	if err == nil {
		in.locks = applyLock(in.locks, lock)
	} else if all && maybe {
		if in.maybe == nil {
			in.maybe = map[lockOwner]struct{}{}
		}
		in.maybe[owner] = struct{}{}
	}
	return err
}

// unlockAll releases all locks of an owner, who has closed the file.
func (c *call) unlockAll(in *inode, owner uint64, flock bool) error {
	in.forgetLost(lockOwner{owner, flock})
	return c.unlock(in, meta.Lock{Owner: owner, Flock: flock, End: lockEnd})
}

// flushLocks releases the fcntl(2) locks of a process that closed the file.
func (c *call) flushLocks(in *inode, owner uint64) error {
	in.mu.Lock()
	delete(in.owners, owner)
	in.mu.Unlock()
	return c.unlockForGood(in, owner, false)
}

// releaseLocks releases range locks that are left when an open file is closed
// for the last time: those that belong to the open file and not to a process.
// The kernel does not name their owner then.
func (c *call) releaseLocks(in *inode, handle uint64) error {
	var owners []uint64
	in.mu.Lock()
	for owner, h := range in.owners {
		if h == handle {
			owners = append(owners, owner)
			delete(in.owners, owner)
		}
	}
	in.mu.Unlock()
	var first error
	for _, owner := range owners {
		if err := c.unlockForGood(in, owner, false); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// applyLock returns the locks held after l was granted or, with F_UNLCK,
// released: the owner's others give way where they overlap.
func applyLock(held []meta.Lock, l meta.Lock) []meta.Lock {
	var out []meta.Lock
	for _, h := range held {
		if ownerOf(&h) != ownerOf(&l) || h.End < l.Start || l.End < h.Start {
			out = append(out, h)
			continue
		}
		if h.Start < l.Start {
			left := h
			left.End = l.Start - 1
			out = append(out, left)
		}
		if h.End > l.End {
			right := h
			right.Start = l.End + 1
			out = append(out, right)
		}
	}
	if l.Type != syscall.F_UNLCK {
		out = append(out, l)
	}
	return out
}
