package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
)

const (
	// maxWriting bounds the dirty blocks that are being written at the same
	// time, and so the memory that a disk which hangs keeps from others.
	maxWriting = 16

	// maxRescues bounds the reads of dirty blocks from a disk that is out of
	// use. One that hangs may never return from them.
	maxRescues = 8

	// scanWait is how long a dirty block waits for the index to be complete.
	scanWait = time.Second

	// refusedTime is how often the log says that there is no room.
	refusedTime = 10 * time.Minute
)

// ErrNoRoom is wrapped by the error of a PutDirty that could not make its block
// durable here: the quota is full of dirty blocks, the disk is full, slow or out of
// use, or the index is not complete yet. The block is to go elsewhere.
var ErrNoRoom = errors.New("no room for a dirty block")

func noRoom(why string, err error) error {
	if err != nil {
		return fmt.Errorf("cache: %w: %s: %w", ErrNoRoom, why, err)
	}
	return fmt.Errorf("cache: %w: %s", ErrNoRoom, why)
}

// PutDirty keeps a block that the store below need not have. When it returns nil
// the block is on stable storage, Get answers it, it is not evicted, and it is dirty
// again after a restart, until [Disk.Clean] or Delete. Putting it again succeeds;
// it becomes dirty also if there is a copy of it, because that may come from
// somebody who has not uploaded it either.
//
// An error wraps [ErrNoRoom], unless it is that of ctx. The block is not dirty then,
// or, if the disk fails in the middle of it, is listed by Dirty. It takes no longer
// than the disk's patience, for its turn and as long again for the disk. One that
// hangs may still read data after that, but what it reads then is not used.
func (d *Disk) PutDirty(ctx context.Context, key store.Key, data []byte) error {
	if len(data) > seal.MaxSealed {
		return noRoom(fmt.Sprintf("%d bytes are too many", len(data)), nil)
	}
	if err := d.ready(ctx); err != nil {
		return err
	}
	if err := d.turn(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &dirtyWrite{key: key, data: data}
	if !d.guard(ctx, func() { defer func() { <-d.writing }(); d.write(ctx, w) }) {
		return d.abandon(ctx, w)
	}
	return w.err
}

// ready waits a little for the index.
func (d *Disk) ready(ctx context.Context) error {
	if !d.usable() {
		return noRoom("the disk is not in use", nil)
	}
	if d.isScanned() {
		return nil
	}
	t := time.NewTimer(scanWait)
	defer t.Stop()
	select {
	case <-d.scanned:
		return nil
	case <-d.closing:
		return noRoom("the cache is closed", nil)
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return noRoom("the disk is still being looked through", nil)
	}
}

// turn waits until not too many others write.
func (d *Disk) turn(ctx context.Context) error {
	select {
	case d.writing <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(d.health.patience)
	defer t.Stop()
	select {
	case d.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return noRoom("the disk is too slow", nil)
	}
}

// A dirtyWrite is a PutDirty under way.
type dirtyWrite struct {
	key  store.Key
	data []byte
	err  error // when it is over

	over bool // guarded by Disk.mu
	left bool // nobody waits any more: nothing is to stay; guarded by Disk.mu
}

// abandon is for a PutDirty that does not wait any longer. If it was over already
// its result counts.
func (d *Disk) abandon(ctx context.Context, w *dirtyWrite) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.over {
		return w.err
	}
	w.left = true
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return noRoom("", errHung)
}

// write does the work of PutDirty. ctx ends when nobody waits any more.
func (d *Disk) write(ctx context.Context, w *dirtyWrite) {
	old, h, err := d.holdDirty(ctx, w.key)
	if h == nil {
		if err == nil { // somebody left it there who may not have synced it
			err = d.sync()
		}
		d.finish(w, err)
		return
	}
	defer d.release(w.key, h)
	if old != nil && !d.unlink(old, h) {
		d.finish(w, noRoom("an older file cannot be removed", nil))
		return
	}
	e := newEntry(w.key, w.data, store.Sum(ctx, w.data))
	e.inDirty = true
	if !d.reserve(charge(e.size)) {
		d.full()
		d.finish(w, noRoom("the quota is full of dirty blocks", nil))
		return
	}
	named, err := d.writeDirty(ctx, e, w.data)
	if !d.settleDirty(w, h, e, named, err) && named {
		d.retract(e, h)
	}
}

func (d *Disk) finish(w *dirtyWrite, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.over, w.err = true, err
}

// holdDirty returns a hold for a block to be made dirty, and the entry of an older
// file, which has left. If the block is dirty already there is neither.
func (d *Disk) holdDirty(ctx context.Context, key store.Key) (old *entry, h *hold, err error) {
	for {
		d.mu.Lock()
		other := d.busy[key]
		if other == nil {
			defer d.mu.Unlock()
			switch old = d.index[key]; {
			case old == nil:
				return nil, d.hold(key), nil
			case old.queue == dirty && !old.bad:
				return nil, nil, nil
			}
			return old, d.leave(old), nil
		}
		d.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

// writeDirty makes the file and its name durable, in that order: a file that has
// its name has all its bytes, whenever the machine stops. named tells whether it
// may have its name.
func (d *Disk) writeDirty(ctx context.Context, e *entry, data []byte) (named bool, err error) {
	tmp, err := d.files.stage(data)
	if err != nil {
		return false, err
	}
	if ctx.Err() != nil {
		return false, errors.Join(ctx.Err(), d.files.remove(tmp))
	}
	if err := d.files.rename(tmp, e.name()); err != nil {
		return false, errors.Join(err, d.files.remove(tmp))
	}
	return true, d.synced.do(d.syncDirty)
}

// sync makes the names of all dirty blocks durable that are there.
func (d *Disk) sync() error {
	err := d.synced.do(d.syncDirty)
	if err == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hurt("sync", err)
	return noRoom("the disk fails", err)
}

func (d *Disk) syncDirty() error { return d.files.syncDir(dirtyName) }

// settleDirty ends a dirtyWrite. It reports whether the block is dirty now.
func (d *Disk) settleDirty(w *dirtyWrite, h *hold, e *entry, named bool, err error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.over = true
	switch {
	case err == nil:
	case isCanceled(err):
		w.err = err
	default:
		d.hurt("write", err)
		w.err = noRoom("the disk fails", err)
	}
	if !named {
		d.used -= charge(e.size)
	}
	if err != nil || w.left || h.forgotten {
		return false
	}
	d.index[e.key] = e
	d.fifo.push(dirty, e)
	return true
}

func isCanceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// retract removes the file of a block that is not to be dirty after all. If it
// cannot be removed, it is: Dirty must tell of all that may be there after a
// restart.
func (d *Disk) retract(e *entry, h *hold) {
	err := d.files.remove(e.name())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		d.used -= charge(e.size)
		return
	}
	d.hurt("remove", err)
	d.index[e.key] = e
	if e.bad = h.forgotten; e.bad {
		d.fifo.push(main, e)
	} else {
		d.fifo.push(dirty, e)
	}
}

// full logs that there is no room, now and then.
func (d *Disk) full() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.refused) < refusedTime {
		return
	}
	d.refused = time.Now()
	l := &d.fifo.lists[dirty]
	d.cfg.Log.Warn("the disk has no room for more blocks that wait to be uploaded", "folder", d.cfg.Dir,
		"blocks", l.len, "bytes", l.bytes, "limit", d.limits.now(d.refused))
}

// Clean says that the store below has the block now. If it was dirty, it is a copy
// like others from now on, though after a crash of the machine it may be dirty
// again. It waits for a PutDirty of the block that is under way.
func (d *Disk) Clean(key store.Key) {
	ctx, cancel := context.WithTimeout(context.Background(), d.health.patience)
	defer cancel()
	e, h := d.holdToClean(ctx, key)
	if h == nil {
		return
	}
	if !d.usable() {
		d.settleClean(e, h, errHung)
		return
	}
	d.guard(context.Background(), func() {
		d.settleClean(e, h, d.files.rename(dirtyFile(key), cleanFile(key)))
	})
}

// holdToClean returns the entry of a dirty block, and a hold; or neither.
func (d *Disk) holdToClean(ctx context.Context, key store.Key) (*entry, *hold) {
	for {
		if !d.isScanned() {
			d.find(ctx, key) // adopts it
		}
		d.mu.Lock()
		other := d.busy[key]
		if other == nil {
			defer d.mu.Unlock()
			if e := d.index[key]; e != nil && e.queue == dirty {
				return e, d.hold(key)
			}
			return nil, nil
		}
		d.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, nil // it stays dirty, which is allowed
		}
	}
}

// settleClean makes a dirty block evictable, after its file was moved; err: it was
// not. It ends the hold.
func (d *Disk) settleClean(e *entry, h *hold, err error) {
	d.mu.Lock()
	gone := errors.Is(err, fs.ErrNotExist)
	switch {
	case err == nil:
		e.inDirty = false
	case !gone && !errors.Is(err, errHung):
		d.hurt("rename", err)
	}
	d.fifo.remove(e)
	if h.forgotten || e.bad || gone {
		e.bad = true
		delete(d.index, e.key)
		d.mu.Unlock()
		d.expel(e, h)
		return
	}
	d.fifo.add(e)
	d.end(e.key, h)
	d.mu.Unlock()
}

// Dirty returns the dirty blocks, those first that are dirty for longest. Before
// Scanned is closed some of an earlier run may be missing.
func (d *Disk) Dirty() []store.DirtyBlock {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &d.fifo.lists[dirty]
	blocks := make([]store.DirtyBlock, 0, l.len)
	for e := l.front; e != nil; e = e.next {
		if !e.bad {
			blocks = append(blocks, store.DirtyBlock{Key: e.key, Size: e.size, Since: time.Unix(e.stamped, 0)})
		}
	}
	slices.SortStableFunc(blocks, func(a, b store.DirtyBlock) int { return a.Since.Compare(b.Since) })
	return blocks
}

// IsDirty reports whether the block is dirty. One that cannot be read, because the
// disk fails, is dirty nevertheless; one that was found damaged is not.
func (d *Disk) IsDirty(key store.Key) bool {
	e, _ := d.find(context.Background(), key)
	return e != nil && d.isDirty(e)
}

// Scanned returns a channel that is closed when all is known that the folder has
// from earlier.
func (d *Disk) Scanned() <-chan struct{} { return d.scanned }

// setAside moves a damaged dirty block away, for an operator to look at. It is not
// dirty any more, and never uploaded; its file goes on taking room.
func (d *Disk) setAside(e *entry, why error) {
	d.mu.Lock()
	if d.index[e.key] != e || d.busy[e.key] != nil {
		d.mu.Unlock() // others deal with it
		return
	}
	h := d.leave(e)
	e.bad = true
	d.mu.Unlock()
	d.count.lost.Add(1)
	d.cfg.Log.Error("a block that waits to be uploaded is damaged; unless another proxy has it, it is lost", "folder", d.cfg.Dir,
		"block", e.key.String(), "set_aside", damagedFile(e.key), "err", why)
	d.guard(context.Background(), func() {
		err := d.files.rename(dirtyFile(e.key), damagedFile(e.key))
		d.mu.Lock()
		defer d.mu.Unlock()
		if err != nil {
			d.hurt("rename", err)
			d.index[e.key] = e // bad, and in no queue: it stays where it is
		}
		d.end(e.key, h)
	})
}

// vanished forgets a dirty block whose file somebody else removed.
func (d *Disk) vanished(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.index[e.key] != e || d.busy[e.key] != nil {
		return
	}
	delete(d.index, e.key)
	d.fifo.remove(e)
	d.used -= charge(e.size)
	d.count.lost.Add(1)
	d.cfg.Log.Error("the file of a block that waits to be uploaded is gone; unless another proxy has it, it is lost", "folder", d.cfg.Dir,
		"block", e.key.String())
}
