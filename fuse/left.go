package fuse

import (
	"context"
	"sync"
	"syscall"
	"time"

	"flexfs/meta"
)

// leftLocks are the locks of those who are gone and that could not be released
// when they went. While one of them is being released, work has an element.
type leftLocks struct {
	mu   sync.Mutex
	m    map[leftLock]*inode
	work chan struct{}
}

type leftLock struct {
	ino   meta.Ino
	owner lockOwner
}

// unlockForGood releases all locks of an owner who is not going to have any more.
// If that fails it is done later.
func (c *call) unlockForGood(in *inode, owner uint64, flock bool) error {
	err := c.unlockAll(in, owner, flock)
	if err != nil && !answered(err) {
		l := &c.fs.left
		l.mu.Lock()
		if l.m == nil {
			l.m = map[leftLock]*inode{}
		}
		l.m[leftLock{in.ino, lockOwner{owner, flock}}] = in
		l.mu.Unlock()
	}
	return err
}

// unlockLeft releases what an owner left behind. The kernel may give a new one the
// same number, and what that locks must not be released for the old one.
func (c *call) unlockLeft(in *inode, owner lockOwner) error {
	l := &c.fs.left
	l.mu.Lock()
	none := len(l.m) == 0
	l.mu.Unlock()
	if none {
		return nil
	}
	return c.fs.releaseLeft(c.wait(), leftLock{in.ino, owner})
}

// releaseLeft releases one lock, if it is left.
func (fs *FS) releaseLeft(ctx context.Context, k leftLock) error {
	l := &fs.left
	select {
	case l.work <- struct{}{}:
		defer func() { <-l.work }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.mu.Lock()
	in := l.m[k]
	l.mu.Unlock()
	if in == nil {
		return nil
	}
	lock := meta.Lock{Type: syscall.F_UNLCK, Owner: k.owner.id, Flock: k.owner.flock, End: lockEnd}
	fs.stats.Requests.Add(1)
	_, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpSetlk, Ino: in.ino, Lock: lock})
	if err != nil && !answered(err) {
		return err
	}
	in.mu.Lock()
	in.locks = applyLock(in.locks, lock)
	delete(in.maybe, k.owner)
	in.mu.Unlock()
	l.mu.Lock()
	delete(l.m, k)
	l.mu.Unlock()
	return nil
}

// unlockAllLeft releases what is left whenever the service is there, until ctx
// ends.
func (fs *FS) unlockAllLeft(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		fs.left.mu.Lock()
		var all []leftLock
		for k := range fs.left.m {
			all = append(all, k)
		}
		fs.left.mu.Unlock()
		for _, k := range all {
			if fs.releaseLeft(ctx, k) != nil {
				break // the next time, then
			}
		}
	}
}
