package fuse

import (
	"context"
	"sync"
	"syscall"
	"time"

	"flexfs/meta"
)

// With Config.WriteBehind the close of a small file that is being made here, see
// making, does not wait for the service. It is told of such files soon after, in
// the order in which they were closed, many in one request. So what is there after
// a crash of the mount is what was closed up to some moment, as with a journal; and
// that stays so because the service hears of them before it is asked for any other
// change, and before an fsync ends. Another mount that looks has the directory asked
// back, and so sees them at once.

const (
	// behindDelay is how long a closed file waits for others.
	behindDelay = 5 * time.Millisecond

	// maxBehind bounds the files that were closed and wait for a request that tells of
	// them; one more request may be on its way.
	maxBehind = 2000

	// manyRoom is how many closes may be behind before the volume's limits are
	// looked at again.
	manyRoom = 10_000
)

// A behind is the files that were closed and not told of.
type behind struct {
	wake chan struct{} // has an element when there is work that is wanted soon

	mu    sync.Mutex
	queue []*inode      // in the order of their closes
	added uint64        // all that ever were in queue
	done  uint64        // all that were dealt with
	moved chan struct{} // closed when done grows
	off   bool          // nobody deals with them any more
	room  int           // for so many more files the volume has room
	lost  int           // how often all were given up
}

// add queues a file that was closed, and reports whether its close is done with
// that.
func (b *behind) add(fs *FS, in *inode) bool {
	if !fs.cfg.WriteBehind || !fs.leased() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	m, ct := in.making, &in.content
	switch {
	case m == nil || m.unsure || in.gone:
		return false
	case m.behind:
		return m.closed == ct.writes // nothing was written since
	case b.off || b.room == 0 || len(b.queue) >= maxBehind || m.asked || len(ct.up) > 0 || !ct.inline(in.attr.Size, fs.vol().InlineMax):
		return false
	}
	m.behind, m.closed = true, ct.writes
	b.queue = append(b.queue, in)
	b.added++
	b.room--
	fs.stats.Behind.Add(1)
	if len(b.queue) == 1 || len(b.queue) == gatherOps {
		b.poke()
	}
	return true
}

func (b *behind) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take returns the next files, and how often all were given up before.
func (b *behind) take() (list []*inode, lost int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(b.queue), gatherOps)
	list = b.queue[:n:n]
	b.queue = b.queue[n:]
	return list, b.lost
}

// back puts files at the head of the queue again, unless all were given up since
// lost.
func (b *behind) back(list []*inode, lost int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost != lost {
		return false
	}
	b.queue = append(list, b.queue...)
	return true
}

// finished notes that so many more were dealt with.
func (b *behind) finished(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += uint64(n)
	close(b.moved)
	b.moved = make(chan struct{})
}

// giveUp makes all that wait files like others that are not stored.
func (b *behind) giveUp() {
	b.mu.Lock()
	list := b.queue
	b.queue = nil
	b.lost++
	b.mu.Unlock()
	for _, in := range list {
		in.notBehind()
	}
	b.finished(len(list))
}

func (in *inode) notBehind() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.making != nil {
		in.making.behind = false
	}
}

// settle returns when all files that were closed before are told of.
func (b *behind) settle(ctx context.Context, fs *FS) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for want := b.added; b.done < want && !b.off; {
		moved := b.moved
		b.mu.Unlock()
		b.poke()
		t := time.NewTimer(time.Second)
		var err error
		select {
		case <-moved:
		case <-t.C:
			if limit := fs.cfg.GiveUp; limit > 0 && fs.away() >= limit {
				err = syscall.EIO
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		t.Stop()
		b.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// behindFirst is called before the service is told of anything else.
func (fs *FS) behindFirst(ctx context.Context) error {
	if !fs.cfg.WriteBehind || inOrder(ctx) {
		return nil
	}
	return fs.behind.settle(ctx, fs)
}

// settle has the service told of what was closed before the call began.
func (c *call) settle() error {
	if c.settled {
		return nil
	}
	if err := c.fs.behindFirst(c.wait()); err != nil {
		return err
	}
	c.settled = true
	return nil
}

// alone locks a file for flushing, as [inode.lock] does, for a call that asks for
// changes meanwhile: so nothing that these wait for may be a flush of the file.
func (c *call) alone(in *inode) error {
	if err := c.settle(); err != nil {
		return err
	}
	ctx := c.wait()
	if err := c.fs.tell(ctx, in); err != nil { // it is not behind any more, and will not be
		return err
	}
	return in.lock(ctx)
}

// tellBehind tells of closed files until ctx ends.
func (fs *FS) tellBehind(ctx context.Context) {
	b := &fs.behind
	defer func() {
		b.mu.Lock()
		b.off = true
		b.mu.Unlock()
		b.giveUp()
	}()
	for {
		var later <-chan time.Time
		if b.scarce() {
			fs.lookForRoom(ctx)
			later = time.After(time.Second)
		}
		select {
		case <-b.wake:
		case <-later:
			continue
		case <-ctx.Done():
			return
		}
		t := time.NewTimer(behindDelay)
		select {
		case <-b.wake: // somebody waits, or there are many
		case <-t.C:
		case <-ctx.Done():
			return
		}
		t.Stop()
		for list, lost := b.take(); len(list) > 0; list, lost = b.take() {
			left := fs.flushInOrder(ctx, list)
			if len(left) > 0 && ctx.Err() == nil && b.back(left, lost) { // the service is away: it hears of them first
				b.finished(len(list) - len(left))
				pause(ctx, tick)
				continue
			}
			for _, in := range left { // others may have the directories by now
				in.notBehind()
			}
			b.finished(len(list))
		}
	}
}

// scarce reports whether there may soon be no room that is known.
func (b *behind) scarce() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.room < maxBehind
}

// lookForRoom looks how many more files the volume may have. Other mounts make some,
// too, so a part of them counts. (That its bytes come to an end is known otherwise.)
func (fs *FS) lookForRoom(ctx context.Context) {
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpStatfs})
	b := &fs.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err != nil:
		b.room = 0
	case rep.Statfs.MaxInodes == 0:
		b.room = manyRoom
	default:
		free := max(int(rep.Statfs.MaxInodes)-int(rep.Statfs.Inodes)-len(b.queue), 0)
		b.room = min(free/4, manyRoom)
	}
}

// orderKey is the key of a context's func() that is called when the change that
// is made with the context has its place among others.
type orderKey struct{}

// flushInOrder flushes files at the same time, of which the service hears in the
// order of the list. It returns those of which it is not known to have heard.
func (fs *FS) flushInOrder(ctx context.Context, list []*inode) (left []*inode) {
	var wg sync.WaitGroup
	release := fs.gather.hold()
	for _, in := range list {
		placed := make(chan struct{})
		place := sync.OnceFunc(func() { close(placed) })
		wg.Go(func() {
			defer place()
			fs.flushQuietly(context.WithValue(ctx, orderKey{}, place), in)
		})
		<-placed
	}
	release()
	wg.Wait()
	for _, in := range list {
		if !in.isMade() {
			left = append(left, in)
		}
	}
	return left
}

// inOrder tells the context of flushInOrder.
func inOrder(ctx context.Context) bool { return ctx.Value(orderKey{}) != nil }
