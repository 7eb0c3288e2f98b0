package fuse

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// A handle is an open file.
type handle struct {
	in     *inode
	flags  uint32 // of open(2)
	knows  uint64 // losses that it was told of, or that were before it; guarded by in.mu
	stream stream
}

// open returns a new handle of in.
func (fs *FS) open(in *inode, flags uint32) fuseops.HandleID {
	in.mu.Lock()
	in.opens++
	in.mu.Unlock()
	return fs.addHandle(in, flags)
}

func (fs *FS) addHandle(in *inode, flags uint32) fuseops.HandleID {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.lastID++
	h := &handle{in: in, flags: flags}
	in.mu.Lock()
	h.knows = in.content.loss.knows()
	in.mu.Unlock()
	fs.handles[fs.lastID] = h
	return fuseops.HandleID(fs.lastID)
}

func (fs *FS) handle(id fuseops.HandleID) (*handle, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if h := fs.handles[uint64(id)]; h != nil {
		return h, nil
	}
	return nil, syscall.EBADF
}

// openFile opens without asking the service, as long as what is known of the
// file may be believed: an unlink elsewhere asks us whether it is open.
func (c *call) openFile(op *fuseops.OpenFileOp) error {
	fs := c.fs
	flags := uint32(op.OpenFlags)
	if fs.readOnly() && (flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0) {
		return syscall.EROFS
	}
	in := fs.node(op.Inode)
	for {
		opened, err := in.tryOpen(fs)
		if err != nil {
			return err
		}
		if opened {
			break
		}
		seq := fs.invals.now()
		if err := c.attrOf(in); err != nil {
			return err
		}
		in.mu.Lock()
		// What was told may not be kept; then it was true a moment ago. If an
		// inval came meanwhile, its answer was that the file is not open here.
		if !in.valid && !in.gone && in.attr.Ino != 0 && !fs.invals.since(seq, in.ino) {
			in.opens++
			in.told = true
			in.mu.Unlock()
			break
		}
		in.mu.Unlock()
	}
	if flags&syscall.O_TRUNC != 0 {
		if err := c.truncate(in, 0, killing(op.KillSuidgid, in, &op.OpContext)); err != nil {
			c.fs.closed(in)
			return err
		}
		if op.KillSuidgid {
			fs.forgetAttrs(in)
		}
	}
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		fs.openedToRead(in)
	}
	op.Handle = fs.addHandle(in, flags)
	op.UseDirectIO = flags&syscall.O_APPEND != 0
	in.mu.Lock()
	op.KeepPageCache = in.keepPages()
	in.mu.Unlock()
	return nil
}

// keepPages says whether the kernel may keep its pages of a file that is being
// opened. Else it drops them before the call ends, and nobody can kill who waits
// there for a read of another that waits for the bucket. So it is not told to drop
// pages where it has none: those that it asks for from now on are not older than
// what is opened. in.mu is held.
func (in *inode) keepPages() bool {
	keep := !in.mayHavePages() || in.valid && in.pages == in.attr.Data && in.attr.Data != 0
	in.pages = in.attr.Data
	return keep
}

// tryOpen counts an open file, if what is known of it may be believed. A file without
// a name that is not open is on its way out: the service has heard or will hear that
// nobody here uses it. With ESTALE the kernel, which found the name before it was
// gone, looks it up again.
func (in *inode) tryOpen(fs *FS) (bool, error) {
	leased := fs.leased()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.gone && in.opens == 0 {
		return false, syscall.ESTALE
	}
	if in.gone || in.valid && leased {
		in.opens++
		return true, nil
	}
	return false, nil
}

// flushFile is called for every close(2) of a descriptor.
func (c *call) flushFile(op *fuseops.FlushFileOp) error {
	h, err := c.fs.handle(op.Handle)
	if err != nil {
		return err
	}
	if !c.fs.behind.add(c.fs, h.in) {
		err = c.sync(h.in)
	}
	if h.flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		err = first(h.tell(), err)
	}
	return first(err, c.flushLocks(h.in, op.LockOwner))
}

// first returns the first error that there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *call) syncFile(op *fuseops.SyncFileOp) error {
	if err := c.settle(); err != nil {
		return err
	}
	if op.Directory { // what the service answered is on stable storage
		return c.fs.tellAll(c.wait(), c.fs.node(op.Inode))
	}
	h, err := c.fs.handle(op.Handle)
	if err != nil {
		return err
	}
	return c.fsync(h)
}

// fsync makes what was written durable and visible, and tells what was lost.
func (c *call) fsync(h *handle) error {
	h.in.mu.Lock()
	idle := !h.in.busy()
	h.in.mu.Unlock()
	var err error
	if !idle { // of a file without a name, too: it may get one
		err = c.fs.flush(c.wait(), h.in)
	}
	return first(h.tell(), err)
}

// sync makes what was written to the file durable and visible.
func (c *call) sync(in *inode) error {
	in.mu.Lock()
	idle := !in.busy() || in.gone && in.nameless && in.opens > 0 // nobody but us sees its contents
	in.mu.Unlock()
	if idle {
		return nil
	}
	return c.fs.flush(c.wait(), in)
}

func (c *call) releaseFile(op *fuseops.ReleaseFileHandleOp) error {
	fs := c.fs
	fs.mu.Lock()
	h := fs.handles[uint64(op.Handle)]
	delete(fs.handles, uint64(op.Handle))
	fs.mu.Unlock()
	if h == nil {
		return syscall.EBADF
	}
	h.stream.close()
	err := c.releaseLocks(h.in, uint64(op.Handle))
	if op.FlockUnlock {
		if e := c.unlockForGood(h.in, op.LockOwner, true); err == nil {
			err = e
		}
	}
	h.in.mu.Lock()
	unlinked := h.in.gone && h.in.opens == 1
	h.in.mu.Unlock()
	if unlinked { // what came by a map, after close(2): another mount may have it open
		c.sync(h.in)
	}
	fs.closed(h.in)
	return err
}

// closed counts a file that is no longer open.
func (fs *FS) closed(in *inode) {
	in.mu.Lock()
	in.opens--
	last := in.opens == 0
	gone, told := in.gone, in.told
	if last {
		in.told = false
	}
	dirty := in.busy() && !(in.making != nil && in.making.behind)
	if last && dirty && !gone {
		in.content.since = time.Time{} // through mmap, after close(2): write it out soon
	}
	in.mu.Unlock()
	if !last {
		return
	}
	if gone {
		fs.discard(in, nil)
		fs.cleaned(in)
	} else if dirty {
		fs.poke()
	}
	if gone || told {
		fs.closes.add(in.ino)
	}
	fs.drop(in)
}

func (c *call) readFile(op *fuseops.ReadFileOp) error {
	h, err := c.fs.handle(op.Handle)
	if err != nil {
		return err
	}
	if uint32(op.OpenFlags)&syscall.O_DIRECT == 0 {
		h.in.givesPages(&h.in.paged)
	} else {
		h.in.givesPages(&h.in.aside)
	}
	data, n, err := c.read(h.in, &h.stream, uint64(op.Offset), int(op.Size))
	if err != nil {
		return err
	}
	op.Data, op.BytesRead = data, n
	c.fs.stats.Reads.Add(1)
	c.fs.stats.ReadBytes.Add(int64(n))
	return nil
}

func (c *call) writeFile(op *fuseops.WriteFileOp) error {
	h, err := c.fs.handle(op.Handle)
	if err != nil {
		return err
	}
	if op.KillSuidgid {
		if err := c.killPriv(h.in, &op.OpContext); err != nil {
			return err
		}
	}
	flags := uint32(op.OpenFlags)
	app := flags&syscall.O_APPEND != 0 && !op.FromCache
	if !op.FromCache {
		if err := c.room(h.in, uint64(op.Offset), len(op.Data), app); err != nil {
			return err
		}
	}
	direct := flags&syscall.O_DIRECT != 0 && !op.FromCache
	if !direct {
		h.in.givesPages(&h.in.paged)
	}
	if err := c.write(h.in, uint64(op.Offset), op.Data, app); err != nil {
		return err
	}
	// The kernel asks for it by itself after writes through its page cache.
	if flags&syscall.O_DSYNC != 0 && h.direct() && !op.FromCache {
		if err := c.fsync(h); err != nil {
			return err
		}
	}
	if direct {
		c.wroteBelowPages(h.in)
	}
	c.fs.stats.Writes.Add(1)
	c.fs.stats.WriteBytes.Add(int64(len(op.Data)))
	return nil
}

// direct reports whether the kernel passes reads and writes on as they are.
// Appends are, since only the service knows where the file ends.
func (h *handle) direct() bool { return h.flags&syscall.O_APPEND != 0 }

// maxPageDrops bounds the writes that wait until pages are dropped. The kernel has
// so many more asynchronous requests under way that the reads which hold up the
// dropping can be among them.
const maxPageDrops = maxBackground / 2

// wroteBelowPages has the kernel drop the pages of a file after a write with
// O_DIRECT, also those that are being read. It does so by itself only if it waited
// for the write, not after one of io_submit(2). Nor is it enough to have it ask for
// the times: who hears of new ones later than another does not wait for that one's
// dropping. That is all that is done if reads take long, or for too many writes.
func (c *call) wroteBelowPages(in *inode) {
	fs := c.fs
	if in.paged.Load() <= in.unpaged.Load() {
		return
	}
	dropped := fs.stalePages.add(fs, in.ino)
	defer fs.pageDrops.Add(-1)
	if fs.pageDrops.Add(1) > maxPageDrops || !c.await(dropped) {
		fs.forgetAttrs(in)
	}
}

// raise makes a at least n.
func raise(a *atomic.Int64, n int64) {
	for {
		was := a.Load()
		if was >= n || a.CompareAndSwap(was, n) {
			return
		}
	}
}

// killing says which set-id bits go with an ordinary user's change of a file's
// contents: none if kill is not set.
func killing(kill bool, in *inode, caller *fuseops.OpContext) meta.SetMask {
	if !kill {
		return 0
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if caller.Gid != in.attr.Gid { // as far as is known, not in the group
		return meta.SetKillPriv | meta.SetKillSgid
	}
	return meta.SetKillPriv
}

// killPriv clears the set-id bits before an ordinary user's write.
func (c *call) killPriv(in *inode, caller *fuseops.OpContext) error {
	if err := c.attrOf(in); err != nil {
		return err
	}
	in.mu.Lock()
	mode := in.attr.Mode
	in.mu.Unlock()
	if mode&(syscall.S_ISUID|syscall.S_ISGID) == 0 {
		return nil
	}
	err := c.setattr(in, &meta.Request{Op: meta.OpSetattr, Ino: in.ino, Set: killing(true, in, caller)})
	c.fs.forgetAttrs(in) // it expects other times and sizes after a write, but no other mode
	return err
}

// killPrivFor is killPriv for what the kernel does not do it for, although it is
// a write too: fallocate(2) and copy_file_range(2).
func (c *call) killPrivFor(caller *fuseops.OpContext, in *inode) error {
	if caller.Uid == 0 {
		return nil
	}
	return c.killPriv(in, caller)
}

// Modes of fallocate(2).
const (
	keepSize  = 0x01
	punchHole = 0x02
	zeroRange = 0x10
)

// allocate is fallocate(2). Space is not reserved: what is not written takes
// none.
func (c *call) allocate(op *fuseops.FallocateOp) error {
	h, err := c.fs.handle(op.Handle)
	if err != nil {
		return err
	}
	end := op.Offset + op.Length
	if end < op.Offset || end > meta.MaxSize {
		return syscall.EFBIG
	}
	if op.Mode&^keepSize == 0 && !c.fits(h.in, op.Length) {
		return syscall.ENOSPC
	}
	if err := c.killPrivFor(&op.OpContext, h.in); err != nil {
		return err
	}
	switch op.Mode {
	case 0:
		return c.extend(h.in, end)
	case keepSize:
		return nil
	case punchHole | keepSize, zeroRange | keepSize:
		return c.zero(h.in, op.Offset, end)
	case zeroRange:
		if err := c.zero(h.in, op.Offset, end); err != nil {
			return err
		}
		return c.extend(h.in, end)
	default:
		return syscall.EOPNOTSUPP
	}
}

// fits reports whether there is room for n bytes of a file, some of which may be
// there already.
func (c *call) fits(in *inode, n uint64) bool {
	in.mu.Lock()
	n -= min(n, in.current().Bytes)
	in.mu.Unlock()
	return n == 0 || c.fs.lookAtSpace(c.wait(), n)
}

// extend makes the file at least size bytes long.
func (c *call) extend(in *inode, size uint64) error {
	if err := c.attrOf(in); err != nil {
		return err
	}
	in.mu.Lock()
	is := in.current().Size
	in.mu.Unlock()
	if size <= is {
		return nil
	}
	if err := c.fs.flush(c.wait(), in); err != nil { // what was appended is not to be moved beyond
		return err
	}
	return c.truncate(in, size, meta.SetGrow)
}

// zero makes the bytes from..to zeros, as far as the file reaches. Whole blocks
// become holes at once; of the blocks at the ends a part is punched, which the
// next commit makes known.
func (c *call) zero(in *inode, from, to uint64) error {
	fs := c.fs
	if err := c.attrOf(in); err != nil {
		return err
	}
	bs := uint64(fs.blockSize())
	in.mu.Lock()
	for in.storeFirst(false) {
		in.mu.Unlock()
		if err := fs.flush(c.wait(), in); err != nil {
			return err
		}
		in.mu.Lock()
	}
	size := in.current().Size
	if from >= size {
		in.mu.Unlock()
		return nil
	}
	first := (from + bs - 1) / bs
	if err := in.lostLockLocked(); err != nil {
		in.mu.Unlock()
		return err
	}
	if end := (size + bs - 1) / bs * bs; to > end { // another mount may be appending to the last block, but beyond what is asked
		to = end
	}
	last := to / bs
	fs.punchLocked(in, from, to, first, last)
	in.content.note(0, 0, false, fs.meta.Now())
	needless := first >= last || in.valid && in.content.complete() && len(in.content.within(uint32(first), uint32(last))) == 0 && fs.leased()
	in.mu.Unlock()
	fs.markDirty(in)
	if needless {
		return nil
	}
	return c.punch(in, uint32(first), uint32(last))
}

// punchLocked punches what is not committed of from..to, and of the committed
// blocks what is not between first and last. in.mu is held.
func (fs *FS) punchLocked(in *inode, from, to, first, last uint64) {
	ct := &in.content
	bs := uint64(fs.blockSize())
	var list []uint32
	ct.layered(func(idx uint32) {
		if first <= uint64(idx) && uint64(idx) < last {
			list = append(list, idx)
		}
	})
	for _, idx := range list {
		fs.budget.release(ct.dirtyBlock(idx).punch(0, int(bs)))
	}
	for _, part := range [2][2]uint64{{from, min(to, first*bs)}, {max(from, last*bs), to}} {
		if part[0] < part[1] {
			fs.punchPart(ct, part[0], part[1])
		}
		if first > last { // both ends are in the same block
			return
		}
	}
}

// punchPart punches a part of one block. The inode's mu is held.
func (fs *FS) punchPart(ct *content, from, to uint64) {
	bs := uint64(fs.blockSize())
	idx, lo := uint32(from/bs), int(from%bs)
	base, known := ct.base(idx)
	if known && base.Len == 0 && ct.dirty[idx] == nil && ct.up[idx] == nil {
		return // a hole already
	}
	fs.budget.release(ct.dirtyBlock(idx).punch(lo, lo+int(to-from)))
}

// punch makes committed blocks holes.
func (c *call) punch(in *inode, first, last uint32) error {
	fs := c.fs
	if err := c.alone(in); err != nil {
		return err
	}
	defer in.unlock()
	if err := in.lostLock(); err != nil { // while it waited
		return err
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpPunch, Ino: in.ino, Index: first, Index2: last})
	if err != nil {
		if !answered(err) {
			fs.doubt(in)
			in.mu.Lock()
			in.content.forgetMap()
			in.mu.Unlock()
		}
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	fresh := rep.Cache && !fs.invals.since(seq, in.ino)
	was, mine := in.content.blockMap, fresh && rep.Attr.Data == in.attr.Data+1
	in.content.forgetMap()
	in.learn(&rep.Attr, nil, fresh)
	if mine { // nobody else changed it
		was.punch(first, last)
		in.content.blockMap = was
	}
	return nil
}

const (
	seekData = 3
	seekHole = 4
)

// seek is lseek(2) with SEEK_DATA and SEEK_HOLE. It asks for the block map if
// need be, and for no contents.
func (c *call) seek(op *fuseops.LseekOp) error {
	fs := c.fs
	in := fs.node(op.Inode)
	if op.Whence != seekData && op.Whence != seekHole {
		return syscall.EINVAL
	}
	if err := c.attrOf(in); err != nil {
		return err
	}
	in.mu.Lock()
	size := in.current().Size
	in.mu.Unlock()
	if op.Offset >= size {
		return syscall.ENXIO
	}
	bs := uint64(fs.blockSize())
	for at := op.Offset; at < size; {
		idx, from := uint32(at/bs), int(at%bs)
		data, next, err := fs.dataIn(c.wait(), in, idx)
		if err != nil {
			return err
		}
		var to int
		if op.Whence == seekData {
			to = nextData(data, from)
		} else {
			to = nextHole(data, from)
		}
		switch {
		case to < int(bs):
			if at = uint64(idx)*bs + uint64(to); at < size {
				op.Result = at
				return nil
			}
		case op.Whence == seekData:
			at = next * bs
		default:
			at = uint64(idx+1) * bs
		}
	}
	if op.Whence == seekData {
		return syscall.ENXIO
	}
	op.Result = size
	return nil
}

// nextData returns where from, or what follows it of a block, is data; maxBlock
// if nothing is.
func nextData(data spans, from int) int {
	for _, s := range data {
		if from < s.hi {
			return max(from, s.lo)
		}
	}
	return maxBlock
}

// nextHole returns where data ends from from on.
func nextHole(data spans, from int) int {
	for _, s := range data {
		if s.lo <= from && from < s.hi {
			return s.hi
		}
	}
	return from
}

// dataIn returns what of block idx is data, in whole units, and the next block
// that may have any.
func (fs *FS) dataIn(ctx context.Context, in *inode, idx uint32) (spans, uint64, error) {
	in.mu.Lock()
	ct := &in.content
	base, known := ct.base(idx)
	known = known && (ct.pend[idx] != nil || fs.leased())
	over := ct.over(idx) // before what it is over is asked for: it may get there meanwhile
	next := ct.next(idx + 1)
	above := uint64(allBlocks)
	ct.layered(func(i uint32) {
		if i > idx {
			above = min(above, uint64(i))
		}
	})
	in.mu.Unlock()
	if !known {
		list, end, err := fs.fetchFrom(ctx, in, idx)
		if err != nil {
			return nil, 0, err
		}
		next, base = end, meta.Block{Index: idx}
		if len(list) > 0 && list[0].Index == idx {
			base, list = list[0], list[1:]
		}
		if len(list) > 0 {
			next = uint64(list[0].Index)
		}
	}
	var data spans
	for _, s := range over(dataOf(&base)) {
		data = data.add(span{s.lo / meta.HoleUnit * meta.HoleUnit, min(alignUp(s.hi), fs.blockSize())})
	}
	return data, min(next, above), nil
}

// A closer tells the service of unlinked inodes that are not in use any more.
type closer struct {
	mu   sync.Mutex
	inos []meta.Ino
	wake chan struct{} // nil until somebody listens
}

func (cl *closer) add(ino meta.Ino) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.inos = append(cl.inos, ino)
	select {
	case cl.wake <- struct{}{}:
	default:
	}
}

func (cl *closer) take() []meta.Ino {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	inos := cl.inos[:min(len(cl.inos), maxCloses)]
	cl.inos = cl.inos[len(inos):]
	return inos
}

// maxCloses bounds the inodes of one OpClose.
const maxCloses = 1000

// gatherCloses is how long an inode waits for others to be told of together: what
// is unlinked is kept for minutes anyway.
const gatherCloses = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// tellClosed sends what was added, until ctx ends.
func (fs *FS) tellClosed(ctx context.Context) {
	for {
		inos := fs.closes.take()
		if len(inos) == 0 {
			select {
			case <-fs.closes.wake:
				pause(ctx, gatherCloses)
				continue
			case <-ctx.Done():
				return
			}
		}
		fs.stats.Requests.Add(1)
		if _, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpClose, Inos: inos}); err != nil && ctx.Err() == nil {
			fs.log.Warn("unlinked files stay until the session ends", "files", len(inos), "err", err)
		}
	}
}
