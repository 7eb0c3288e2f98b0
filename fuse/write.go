package fuse

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// write puts p into the file's dirty data. With app the file's end is where it
// goes, wherever the kernel thinks that is.
func (c *call) write(in *inode, off uint64, p []byte, app bool) error {
	fs := c.fs
	if len(p) == 0 {
		return nil
	}
	if app {
		if err := c.attrOf(in); err != nil {
			return err
		}
	} else if off+uint64(len(p)) > meta.MaxSize {
		return syscall.EFBIG
	}
	in.mu.Lock()
	have := int64(0)
	for {
		if err := in.lostLockLocked(); err != nil { // also while it waited
			in.mu.Unlock()
			fs.budget.release(have)
			return err
		}
		if app {
			if off = in.appendAt(); off+uint64(len(p)) > meta.MaxSize {
				in.mu.Unlock()
				fs.budget.release(have)
				return syscall.EFBIG
			}
		}
		if in.making != nil && in.making.behind && !in.content.inline(off+uint64(len(p)), fs.vol().InlineMax) {
			in.mu.Unlock() // nobody is to wait for a bucket because the file was closed before
			fs.budget.release(have)
			have = 0
			if err := fs.behind.settle(c.wait(), fs); err != nil {
				return err
			}
			in.mu.Lock()
			continue
		}
		if in.storeFirst(app) || app && fs.cutBelow(in) {
			in.mu.Unlock()
			fs.budget.release(have)
			have = 0
			if err := fs.flush(c.wait(), in); err != nil {
				return err
			}
			in.mu.Lock()
			continue
		}
		need := fs.needs(in, off, len(p))
		if need <= have {
			break
		}
		if have == 0 && fs.budget.try(need) {
			have = need
			break
		}
		in.mu.Unlock()
		fs.budget.release(have) // it is too little by now; nobody waits with what others wait for
		fs.stats.Waits.Add(1)
		if err := c.acquire(need); err != nil {
			return err
		}
		have = need
		in.mu.Lock()
	}
	at := in.writtenAt(fs.meta.Now())
	took := fs.writeLocked(in, off, p)
	in.content.note(off, off+uint64(len(p)), app, at)
	in.mu.Unlock()
	fs.budget.release(have - took)
	fs.markDirty(in)
	return nil
}

// writtenAt returns the mtime of a write at now. It is later than the one before,
// by which the kernel knows that its pages are old. in.mu is held.
func (in *inode) writtenAt(now meta.Time) meta.Time {
	a := in.current()
	ahead := a.Mtime.Compare(a.Ctime) > 0 // set by a program
	if ahead || now.Compare(a.Mtime) > 0 {
		return now
	}
	return meta.TimeOf(a.Mtime.Time().Add(1))
}

// appendAt returns where an append goes: behind what was appended before, which
// a flush moves as a whole if others appended, or cut the file, meanwhile. in.mu is held.
func (in *inode) appendAt() uint64 {
	if run := &in.content.run; run.on {
		return run.end
	}
	return in.current().Size
}

// storeFirst reports whether what was written must be part of the file before the
// next write, which is an append or not: what was appended makes way for what others
// append meanwhile, which nothing else may, and so the two are not committed together.
// Of a file that was closed behind others know nothing before they know it all, and
// of one that never had a name never. in.mu is held.
func (in *inode) storeFirst(app bool) bool {
	ct, m := &in.content, in.making
	if !ct.wrote || in.gone && in.nameless || m != nil && m.behind && !m.asked && !m.unsure {
		return false
	}
	return ct.run.on != app
}

// cutBelow reports whether others made the file shorter than where what was appended
// begins, so that it has to move before more is. in.mu is held.
func (fs *FS) cutBelow(in *inode) bool {
	run := &in.content.run
	return run.on && in.attr.Size < run.start && in.valid && !in.gone && fs.leased()
}

// wholeFrom is how much of a file's first block is written from its start on
// before the block gets memory for all of it. Later blocks of a file that is written
// in order have it at once.
const wholeFrom = 1 << 20

// isLong reports whether a write at off of a file, of which n bytes go to lo of a
// block, is likely to be part of writing all of that block. d is what is dirty of it,
// or nil.
func (ct *content) isLong(d *dirty, off uint64, idx uint32, lo, n, bs int) bool {
	if bs%chunkSize != 0 || d != nil && d.loan != nil {
		return false
	}
	if lo == 0 || d != nil && d.spans.covers(0, lo) {
		start := uint64(idx) * uint64(bs)
		goesOn := idx > 0 && lo == 0 && (off < start || ct.wrote && ct.end == start)
		return goesOn || lo+n >= min(wholeFrom, bs)
	}
	return false
}

// needs returns the bytes of budget that writeLocked will take. in.mu is held.
func (fs *FS) needs(in *inode, off uint64, n int) int64 {
	bs, need := fs.blockSize(), int64(0)
	for at, end := off, off+uint64(n); at < end; {
		idx, lo := uint32(at/uint64(bs)), int(at%uint64(bs))
		n := int(min(end-at, uint64(bs-lo)))
		d := in.content.dirty[idx]
		if in.content.isLong(d, off, idx, lo, n, bs) {
			need += int64(bs)
			if d != nil {
				need -= d.mem()
			}
		} else {
			need += d.needs(lo, n)
		}
		at += uint64(n)
	}
	return need
}

// writeLocked copies p into dirty blocks, starts the upload of those that are
// full, and returns the budget taken. in.mu is held.
func (fs *FS) writeLocked(in *inode, off uint64, p []byte) int64 {
	bs := fs.blockSize()
	took := int64(0)
	for at := off; len(p) > 0; {
		idx, lo := uint32(at/uint64(bs)), int(at%uint64(bs))
		n := min(len(p), bs-lo)
		d := in.content.dirtyBlock(idx)
		if in.content.isLong(d, off, idx, lo, n, bs) {
			took += d.move(fs.memory())
		}
		took += d.write(lo, p[:n])
		if d.spans.covers(0, bs) && !in.content.run.on && in.content.up[idx] == nil {
			fs.startUpload(in, idx)
		}
		at += uint64(n)
		p = p[n:]
	}
	return took
}

func (ct *content) dirtyBlock(idx uint32) *dirty {
	if ct.dirty == nil {
		ct.dirty = map[uint32]*dirty{}
	}
	d := ct.dirty[idx]
	if d == nil {
		d = &dirty{since: time.Now()}
		ct.dirty[idx] = d
	}
	return d
}

// note keeps account of a write before which nothing must be stored, see storeFirst.
// It is now at the service.
func (ct *content) note(off, end uint64, app bool, now meta.Time) {
	switch {
	case !app:
		ct.run = appendRun{}
	case !ct.wrote:
		ct.run = appendRun{on: true, start: off, end: end}
	case ct.run.on && ct.run.end == off:
		ct.run.end = end
	default:
		ct.run = appendRun{}
	}
	if !ct.wrote {
		ct.wrote, ct.since = true, time.Now()
	}
	ct.writes++
	ct.end = max(ct.end, end)
	ct.mtime = now
	ct.carry &^= meta.SetMtime
}

func (fs *FS) markDirty(in *inode) {
	fs.mu.Lock()
	fs.dirty[in] = struct{}{}
	fs.mu.Unlock()
}

// startUpload uploads a dirty block in the background. in.mu is held, and no
// upload of the block is under way.
func (fs *FS) startUpload(in *inode, idx uint32) {
	go fs.upload(fs.ctx, in, fs.freeze(in, idx, false))
}

// freeze takes a block out of the dirty ones, to be uploaded. in.mu is held, and
// no upload of the block is under way.
func (fs *FS) freeze(in *inode, idx uint32, inline bool) *upload {
	ct := &in.content
	u := &upload{idx: idx, d: ct.dirty[idx], inline: inline, done: make(chan struct{})}
	delete(ct.dirty, idx)
	if ct.up == nil {
		ct.up = map[uint32]*upload{}
	}
	ct.up[idx] = u
	return u
}

// upload makes a block durable. If it fails, or ctx ends, the block is dirty
// again.
func (fs *FS) upload(ctx context.Context, in *inode, u *upload) {
	idx := u.idx
	rec, err := fs.put(ctx, in, idx, u)
	in.mu.Lock()
	defer in.mu.Unlock()
	ct := &in.content
	u.err = err
	delete(ct.up, idx)
	close(u.done)
	switch {
	case u.dropped:
		fs.budget.release(u.d.free())
		if err == nil && !shares(&rec) {
			fs.remove(in, &rec)
		}
	case err != nil:
		if !errors.Is(err, errOvertaken) {
			fs.stats.Errors.Add(1)
		}
		fs.redirty(ct, idx, u.d)
	default:
		fs.setPending(in, idx, u.d, rec)
	}
}

// redirty puts bytes back beneath what was written since. in.mu is held.
func (fs *FS) redirty(ct *content, idx uint32, d *dirty) {
	newer := ct.dirty[idx]
	if newer == nil {
		if ct.dirty == nil {
			ct.dirty = map[uint32]*dirty{}
		}
		ct.dirty[idx] = d
		return
	}
	fs.budget.force(newer.under(d))
}

// setPending replaces the pending version of a block. in.mu is held.
func (fs *FS) setPending(in *inode, idx uint32, d *dirty, rec meta.Block) {
	ct := &in.content
	whole := d.covers(0, fs.blockSize())
	if old := ct.pend[idx]; old != nil {
		whole = whole || old.d == nil              // what is not in d is in the store only, and in rec
		if old.rec.Gen == rec.Base && !rec.Whole { // made from one that is not committed
			rec.Base, rec.BaseLen, rec.BaseHoles, rec.Whole = old.rec.Base, old.rec.BaseLen, old.rec.BaseHoles, old.rec.Whole
		}
		if old.d != nil {
			fs.budget.force(d.under(old.d))
		}
		if old.uncommitted() && old.rec.Gen != rec.Gen {
			fs.remove(in, &old.rec)
		}
		d.top = max(d.top, old.reach)
	}
	p := &pending{rec: rec, reach: d.top, d: d}
	if whole && !ct.run.on { // all of it is ours: it will never be merged again
		p.rec.Base, p.rec.BaseLen, p.rec.BaseHoles, p.rec.Whole = meta.Gen{}, 0, nil, true
		fs.budget.release(d.free())
		p.d = nil
	}
	if ct.pend == nil {
		ct.pend = map[uint32]*pending{}
	}
	ct.pend[idx] = p
}

// errOvertaken is the failure of an upload of appended bytes: others appended to
// the same place meanwhile.
var errOvertaken = errors.New("fuse: the file grew elsewhere")

// overtaken reports whether a block that was appended to has bytes of others
// where ours begin.
func (fs *FS) overtaken(in *inode, idx uint32, base *meta.Block) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	ct := &in.content
	at := uint64(idx) * uint64(fs.blockSize())
	return ct.run.on && ct.pend[idx] == nil && base.Len > 0 && at+uint64(base.Len) > ct.run.start
}

// put merges the written bytes with what the block had, stores it, and returns
// its new record.
func (fs *FS) put(ctx context.Context, in *inode, idx uint32, u *upload) (meta.Block, error) {
	if !u.inline {
		select {
		case fs.uploads <- struct{}{}:
			defer func() { <-fs.uploads }()
		case <-ctx.Done():
			return meta.Block{}, context.Cause(ctx)
		}
	}
	bs := fs.blockSize()
	in.mu.Lock()
	appended := in.content.run.on // others may append to the same block, and must not be overwritten
	in.mu.Unlock()
	rec := meta.Block{
		Index: idx,
		Gen:   meta.Gen{Session: fs.meta.Session(), Seq: fs.seq.Add(1)},
		Whole: !appended && u.d.covers(0, bs),
	}
	var base meta.Block
	if !rec.Whole {
		var err error
		if base, err = fs.baseOf(ctx, in, idx); err != nil {
			return rec, err
		}
	}
	rec.Base, rec.BaseLen, rec.BaseHoles = base.Gen, base.Len, base.Holes
	if fs.overtaken(in, idx, &base) {
		return rec, errOvertaken
	}
	was := dataOf(&base)
	is := u.d.over(was)
	if len(is) == 0 {
		rec.Gen = meta.Gen{}
		return rec, nil
	}
	rec.Len, rec.Holes = uint32(is.end()), holesIn(is)
	if u.d.lessOf(&base, is) {
		rec.Gen, rec.Origin = base.Gen, base.Origin
		return rec, nil
	}
	if !u.inline && u.d.spans.covers(0, bs) {
		return rec, fs.store(ctx, in, &rec, u.d)
	}
	var data []byte
	if u.inline {
		data = make([]byte, is.end())
		rec.Inline, rec.Data, rec.Holes = true, data, nil
	} else {
		l := fs.memory()
		defer l.Done()
		data = l.Data()[:is.end()]
	}
	if err := fs.merge(ctx, in, &base, u.d, data); err != nil {
		return rec, fmt.Errorf("fuse: merge block %d of inode %d: %w", idx, in.ino, err)
	}
	if u.inline {
		return rec, nil
	}
	if err := fs.blocks.Put(ctx, fs.key(in, &rec), data); err != nil {
		return rec, uploadError(in, &rec, err)
	}
	fs.uploaded(data)
	return rec, nil
}

// store stores a block all of which was written. It lends the memory that the block
// was written to, unless that is not in one piece or may change once more: what was
// appended may move.
func (fs *FS) store(ctx context.Context, in *inode, rec *meta.Block, d *dirty) error {
	l := d.loan
	if l == nil || !rec.Whole {
		l = fs.memory()
		defer l.Done()
		d.read(0, l.Data())
	}
	if err := store.Lend(ctx, fs.blocks, fs.key(in, rec), l); err != nil {
		return uploadError(in, rec, err)
	}
	fs.uploaded(l.Data())
	return nil
}

func uploadError(in *inode, rec *meta.Block, err error) error {
	return fmt.Errorf("fuse: upload block %d of inode %d: %w", rec.Index, in.ino, err)
}

func (fs *FS) uploaded(data []byte) {
	fs.stats.Uploads.Add(1)
	fs.stats.UploadBytes.Add(int64(len(data)))
}

// merge fills data with the dirty bytes and, between them, those of base.
func (fs *FS) merge(ctx context.Context, in *inode, base *meta.Block, d *dirty, data []byte) error {
	gaps := d.touched().gaps(len(data))
	for _, g := range gaps {
		clear(data[g.lo:g.hi])
	}
	from := gaps.both(dataOf(base))
	reads := from
	if len(from) > 4 { // one request for all
		reads = spans{{from[0].lo, from.end()}}
	}
	for _, r := range reads {
		b, err := fs.load(ctx, in, base, r.lo, r.hi)
		if err != nil {
			return err
		}
		for _, s := range from.both(spans{r}) {
			copy(data[s.lo:s.hi], b[min(s.lo-r.lo, len(b)):])
		}
	}
	d.read(0, data)
	return nil
}

// memory returns memory for a block, with room before it for its sealed form. It is
// used again when all are done with it. It has rubbish in it.
func (fs *FS) memory() *store.Loan {
	bs := fs.blockSize()
	b, _ := fs.memories.Get().(*[]byte)
	if b == nil {
		b = new([]byte)
		*b = make([]byte, fs.cfg.Room+bs)
	}
	return store.NewLoan(*b, fs.cfg.Room, func() { fs.memories.Put(b) })
}

// maxMerges bounds how often a flush starts again because others changed the
// same blocks meanwhile.
const maxMerges = 100

// flush makes what was written until now durable and then visible, in that
// order, so that metadata never names a block that is not there. If it fails
// what was written is still here, unless the service refused it for good.
// Versions that it uploaded in vain stay behind for the collector.
func (fs *FS) flush(ctx context.Context, in *inode) error {
	if err := fs.behindFirst(ctx); err != nil {
		return err
	}
	if err := in.lock(ctx); err != nil {
		return err
	}
	defer in.unlock()
	for try := range maxMerges {
		err := fs.flushOnce(ctx, in)
		switch e := refusal(err); {
		case err == nil:
			fs.cleaned(in)
			return nil
		case e == syscall.ESTALE, errors.Is(err, errOvertaken):
			fs.stats.Merges.Add(1)
			if err := fs.rebase(ctx, in); err != nil {
				return err
			}
			if try > 0 { // others are at it too
				time.Sleep(rand.N(time.Duration(try+1) * time.Millisecond))
			}
		case final(e):
			fs.log.Warn("written data was refused and is lost", "ino", in.ino, "err", err)
			fs.full.Store(fs.full.Load() || e == syscall.ENOSPC)
			fs.discard(in, err)
			fs.cleaned(in)
			return err
		default:
			return err
		}
	}
	return fmt.Errorf("fuse: inode %d changes all the time", in.ino)
}

// final reports whether a commit that was refused with e will always be.
func final(e syscall.Errno) bool {
	switch e {
	case syscall.ENOENT, syscall.EDQUOT, syscall.ENOSPC, syscall.EFBIG, syscall.EROFS, syscall.EPERM, syscall.EACCES, syscall.EINVAL:
		return true
	}
	return false
}

// cleaned takes the inode off the list of dirty ones, if it is clean.
func (fs *FS) cleaned(in *inode) {
	fs.mu.Lock()
	in.mu.Lock()
	if !in.busy() {
		delete(fs.dirty, in)
	}
	in.mu.Unlock()
	fs.mu.Unlock()
	fs.drop(in)
}

// flushOnce uploads what is dirty and commits. in is locked for flushing.
func (fs *FS) flushOnce(ctx context.Context, in *inode) error {
	in.mu.Lock()
	wrote, known := in.content.wrote, in.valid && fs.leased() || in.making != nil
	tell := in.making != nil && (!wrote || in.making.unsure)
	in.mu.Unlock()
	if tell { // of what was closed before flush was
		m, err := in.toMake(ctx)
		if m != nil {
			err = fs.tellNow(ctx, in, m)
		}
		if err != nil {
			return err
		}
	}
	if !wrote {
		return nil
	}
	if !known { // how large the file is decides where its bytes go
		if err := fs.refresh(ctx, in); err != nil {
			return err
		}
	}
	if err := in.waitUploads(ctx); err != nil { // if one fails its block is dirty again
		return err
	}
	if err := fs.recognise(ctx, in); err != nil {
		return err
	}
	in.mu.Lock()
	if run := &in.content.run; run.on && in.attr.Size != run.start {
		fs.moveRun(in)
	}
	in.mu.Unlock()
	if err := fs.resolve(ctx, in); err != nil {
		return err
	}
	if err := fs.uploadAll(ctx, in); err != nil {
		return err
	}
	return fs.commit(ctx, in)
}

// answered reports whether a commit that failed was refused, so that it was
// certainly not done. EIO is what the client says of a change that the end of
// its session overtook, EINTR what the service says when its time was over.
func answered(err error) bool {
	e := refusal(err)
	return e != 0 && e != syscall.EIO && e != syscall.EINTR
}

// errUnsure is told to the next close or fsync of a file.
var errUnsure = errors.New("fuse: appended data may be part of the file or not: the service did not answer, and another mount wrote to its place since")

// recognise looks for appended blocks that a commit without an answer named. If
// one is part of the file the commit was done, and they must not be appended
// again. Nor must they if others wrote to one since: nobody can say any more whether
// it was done, and who appended them is told so. in is locked for flushing, and
// nothing of it on its way.
func (fs *FS) recognise(ctx context.Context, in *inode) error {
	var list []*pending
	in.mu.Lock()
	ct := &in.content
	for _, idx := range sorted(ct.pend) {
		if p := ct.pend[idx]; p.unsure && ct.run.on {
			list = append(list, p)
		}
	}
	in.mu.Unlock()
	done, unknown := false, false
	for _, p := range list {
		b, err := fs.fetchMap(ctx, in, p.rec.Index)
		if err != nil {
			return err
		}
		if done = b.Gen == p.rec.Gen; done {
			break
		}
		unknown = unknown || b.Gen != p.rec.Base && b.Len > 0
	}
	if !done && !unknown {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !done {
		fs.log.Error("appended data may be lost", "ino", in.ino, "err", errUnsure)
		in.lose(errUnsure)
	}
	for _, p := range list {
		delete(ct.pend, p.rec.Index)
		fs.budget.release(p.d.free())
		end := uint64(p.rec.Index)*uint64(fs.blockSize()) + uint64(p.rec.Len)
		ct.run.start = min(max(ct.run.start, end), ct.run.end)
	}
	return nil
}

// resolve deals with blocks that a commit without an answer named, and with those
// that were written under a session that was lost. The first may be
// part of the file, and may even have been replaced and removed since; so no
// commit must name them again, and their objects are not ours to remove. The
// second the service does not take: it removes what sessions left behind. What
// was written is dirty again or, if its bytes are only in the store, copied to
// a new version. in is locked for flushing, and nothing of it on its way.
func (fs *FS) resolve(ctx context.Context, in *inode) error {
	var list []*pending
	in.mu.Lock()
	ct := &in.content
	unsure := false
	for _, idx := range sorted(ct.pend) {
		p := ct.pend[idx]
		if !p.unsure && !fs.foreign(p) {
			continue
		}
		unsure = unsure || p.unsure
		if p.d == nil {
			list = append(list, p)
			continue
		}
		delete(ct.pend, idx)
		if p.uncommitted() {
			fs.remove(in, &p.rec)
		}
		fs.redirty(ct, idx, p.d)
	}
	if unsure {
		ct.forgetMap() // the base of a merge may be another now
	}
	in.mu.Unlock()
	for _, p := range list {
		if err := fs.renew(ctx, in, p); err != nil {
			return err
		}
	}
	return nil
}

// foreign reports whether a pending block was written under a session that is
// not ours any more.
func (fs *FS) foreign(p *pending) bool {
	return !p.rec.Inline && p.rec.Len > 0 && !shares(&p.rec) && p.rec.Gen.Session != fs.meta.Session()
}

// errLost is told to the next close or fsync of a file.
var errLost = errors.New("fuse: written data is gone from the store: this mount was cut off from the metadata service for too long")

// renew copies a pending block to a new version. If its object is gone and a
// commit may have named it, it was part of the file and others have replaced it;
// else the service took it for one of a dead mount.
func (fs *FS) renew(ctx context.Context, in *inode, p *pending) error {
	rec := p.rec
	data, err := fs.load(ctx, in, &rec, 0, int(rec.Len))
	gone := errors.Is(err, store.ErrNotExist)
	if err == nil && rec.Len > 0 {
		rec.Gen, rec.Origin = meta.Gen{Session: fs.meta.Session(), Seq: fs.seq.Add(1)}, meta.Origin{}
		err = fs.blocks.Put(ctx, fs.key(in, &rec), data)
	}
	if err != nil && !gone {
		return fmt.Errorf("fuse: renew block %d of inode %d: %w", rec.Index, in.ino, err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	switch ct := &in.content; {
	case ct.pend[rec.Index] != p: // replaced meanwhile
	case gone:
		delete(ct.pend, rec.Index)
		if !p.unsure {
			fs.log.Error("written data is lost", "ino", in.ino, "block", rec.Index, "err", errLost)
			in.lose(errLost)
		}
	default:
		if p.uncommitted() {
			fs.remove(in, &p.rec)
		}
		p.rec, p.unsure = rec, false
	}
	return nil
}

// refresh asks for the inode's attributes.
func (fs *FS) refresh(ctx context.Context, in *inode) error {
	if !in.isMade() {
		return nil
	}
	seq := fs.invals.now()
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpGetattr, Ino: in.ino})
	if err != nil {
		return err
	}
	if rep.Attr.Ino == 0 {
		rep.Attr.Ino = in.ino
	}
	fs.learn(&rep.Attr, rep.Block, rep.Cache, seq)
	return nil
}

// uploadAll uploads all dirty blocks, in parallel, and waits for them.
func (fs *FS) uploadAll(ctx context.Context, in *inode) error {
	var all []*upload
	in.mu.Lock()
	ct := &in.content
	var before []*upload // that writes have begun since the flush did
	for _, u := range ct.up {
		before = append(before, u)
	}
	inline := ct.inline(in.attr.Size, fs.vol().InlineMax)
	for _, idx := range sorted(ct.dirty) {
		if ct.up[idx] == nil {
			all = append(all, fs.freeze(in, idx, inline && idx == 0))
		}
	}
	in.mu.Unlock()
	for i, u := range all {
		if i == len(all)-1 { // no need for another goroutine, which is what small files gain by
			fs.upload(ctx, in, u)
		} else {
			go fs.upload(ctx, in, u)
		}
	}

	var first error
	for _, u := range append(before, all...) {
		select {
		case <-u.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if u.err != nil && first == nil {
			first = u.err
		}
	}
	return first
}

// inline reports whether the file is so small that its contents go with its
// metadata.
func (ct *content) inline(size uint64, limit uint32) bool {
	return max(size, ct.end) <= uint64(limit)
}

// commit makes the pending blocks part of the file.
func (fs *FS) commit(ctx context.Context, in *inode) error {
	for {
		if more, err := fs.commitSome(ctx, in); err != nil || !more {
			return err
		}
	}
}

// commitSome is commit for as many blocks as one request may have. If the service
// was not told of the file yet, it is told with them.
func (fs *FS) commitSome(ctx context.Context, in *inode) (more bool, err error) {
	m, err := in.toMake(ctx)
	if err != nil {
		return false, err
	}
	defer m.done()
	req, list, writes := in.commitRequest(fs.blockSize(), m)
	if req == nil {
		return false, nil
	}
	var recalls uint64
	var dir meta.Ino
	if m != nil {
		recalls, dir = m.dir.recallCount(), m.dir.ino
	}
	seq := fs.invals.now()
	fs.stats.Commits.Add(1)
	rep, err := fs.send(ctx, req, dir)
	in.mu.Lock()
	for _, p := range list {
		p.committing = false
		p.unsure = err != nil && !answered(err)
	}
	switch {
	case err == nil:
		fs.committed(in, rep, list, writes, seq)
	case !answered(err):
		in.valid = false
	}
	more = len(in.content.pend) > 0 && len(list) == meta.MaxCommit
	stock := in.content.toStock()
	in.mu.Unlock()
	fs.stock.keep(in, stock)
	switch {
	case m == nil:
	case err != nil:
		err = fs.untold(in, m, err)
	default:
		fs.told(in, m, rep, seq, recalls)
	}
	return more, err
}

// commitRequest returns the request for what is pending, or nil.
func (in *inode) commitRequest(bs int, m *making) (*meta.Request, []*pending, uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	ct := &in.content
	if !ct.wrote {
		return nil, nil, 0
	}
	req := &meta.Request{Op: meta.OpCommit, Ino: in.ino, Time: ct.mtime, Set: ct.carry, Attr: ct.times}
	if m != nil {
		req = m.request(in)
	}
	var list []*pending
	for _, idx := range sorted(ct.pend) {
		if len(list) == meta.MaxCommit {
			break
		}
		p := ct.pend[idx]
		p.committing = true
		list = append(list, p)
		req.Blocks = append(req.Blocks, p.rec)
		req.Size = max(req.Size, uint64(idx)*uint64(bs)+uint64(p.reach))
	}
	return req, list, ct.writes
}

// committed takes over the answer to a commit. in.mu is held.
func (fs *FS) committed(in *inode, rep *meta.Reply, list []*pending, writes uint64, seq uint64) {
	ct := &in.content
	in.altered = true
	mine := rep.Attr.Data == in.attr.Data+1 && !fs.invals.since(seq, in.ino)
	was := ct.blockMap
	if mine && in.pages == in.attr.Data {
		in.pages = rep.Attr.Data
	}
	in.learn(&rep.Attr, nil, rep.Cache && !fs.invals.since(seq, in.ino))
	if mine {
		ct.blockMap = was
	}
	for _, p := range list {
		rec := p.rec
		rec.Base, rec.BaseLen, rec.BaseHoles, rec.Whole = meta.Gen{}, 0, nil, false
		if mine {
			ct.record(rec)
		}
		if now := ct.pend[rec.Index]; now != p && now != nil {
			now.rec.Base, now.rec.BaseLen, now.rec.BaseHoles = rec.Gen, rec.Len, rec.Holes // it was made from this one
			now.rec.Whole = now.d == nil
			continue
		}
		delete(ct.pend, rec.Index)
		if p.d != nil {
			fs.budget.release(p.d.free())
		}
	}
	if len(ct.dirty)+len(ct.up)+len(ct.pend) == 0 && ct.writes == writes {
		ct.wrote, ct.end, ct.carry, ct.run = false, 0, 0, appendRun{}
	} else if ct.run.on {
		// What is committed stays where it is; what follows may still move.
		ct.run.start = min(max(ct.run.start, rep.Attr.Size), ct.run.end)
	}
}

// rebase makes the blocks that others changed meanwhile dirty again, so that
// they are merged with the new versions. in is locked for flushing.
func (fs *FS) rebase(ctx context.Context, in *inode) error {
	if err := in.waitUploads(ctx); err != nil {
		return err
	}
	in.mu.Lock()
	in.content.forgetMap()
	idxs := sorted(in.content.pend)
	in.mu.Unlock()
	if err := fs.refresh(ctx, in); err != nil {
		return err
	}
	current := map[uint32]meta.Block{}
	for _, idx := range idxs {
		in.mu.Lock()
		b, known := in.content.rec(idx)
		in.mu.Unlock()
		if !known {
			var err error
			if b, err = fs.fetchMap(ctx, in, idx); err != nil {
				return err
			}
		}
		current[idx] = b
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	ct := &in.content
	if ct.run.on && in.attr.Size != ct.run.start {
		fs.moveRun(in)
		return nil
	}
	for idx, b := range current {
		p := ct.pend[idx]
		if p == nil || p.rec.Whole || p.d == nil ||
			p.rec.Base == b.Gen && p.rec.BaseLen == b.Len && slices.Equal(p.rec.BaseHoles, b.Holes) {
			continue
		}
		delete(ct.pend, idx)
		if p.uncommitted() {
			fs.remove(in, &p.rec)
		}
		fs.redirty(ct, idx, p.d)
	}
	return nil
}

// moveRun moves all that was appended to where the file ends now: others made it
// longer or shorter meanwhile. All of it is in memory: while a run is on nothing is
// given up before its commit. in.mu is held, in locked for flushing, and nothing on
// its way to the store.
func (fs *FS) moveRun(in *inode) {
	ct := &in.content
	bs := uint64(fs.blockSize())
	old := map[uint32]*dirty{}
	for idx, p := range ct.pend {
		old[idx] = p.d
		if p.uncommitted() {
			fs.remove(in, &p.rec)
		}
	}
	ct.pend = nil
	for idx, d := range ct.dirty {
		if o := old[idx]; o != nil {
			fs.budget.force(d.under(o))
		}
		old[idx] = d
	}
	ct.dirty = nil
	by := in.attr.Size - ct.run.start // modulo 2^64, if it is shorter
	for _, idx := range sorted(old) {
		d := old[idx]
		for _, s := range d.spans {
			b := make([]byte, s.hi-s.lo)
			d.read(s.lo, b)
			fs.budget.force(fs.writeLocked(in, uint64(idx)*bs+uint64(s.lo)+by, b))
		}
		fs.budget.release(d.free())
	}
	ct.run.start += by
	ct.run.end += by
	ct.end = ct.run.end
	fs.stalePages.add(fs, in.ino)
}

// discardLocked gives up what was written to a file under a lock that is lost,
// and keeps the error for the next fsync or close.
func (fs *FS) discardLocked(in *inode) {
	in.mu.Lock()
	wrote := in.content.wrote
	in.mu.Unlock()
	if !wrote {
		return
	}
	fs.discard(in, syscall.EIO)
	fs.log.Warn("data written under a lock that is lost is given up", "ino", in.ino)
}

// discard gives up what was written and not committed. Who has the file open is
// told why, unless that is nil.
func (fs *FS) discard(in *inode, why error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if why != nil {
		in.lose(why)
	}
	ct := &in.content
	for _, d := range ct.dirty {
		fs.budget.release(d.free())
	}
	for _, u := range ct.up {
		u.dropped = true
	}
	for _, p := range ct.pend {
		if p.d != nil {
			fs.budget.release(p.d.free())
		}
		if p.uncommitted() {
			fs.remove(in, &p.rec)
		}
	}
	ct.dirty, ct.pend = nil, nil
	ct.wrote, ct.end, ct.carry, ct.run = false, 0, 0, appendRun{}
}
