package fuse

import (
	"context"
	"slices"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// content is what is known here of a file's contents; guarded by inode.mu.
//
// A write goes to dirty. When a block is full, or must be made durable, it moves
// to up while it is uploaded and then to pend, where it waits for the commit
// that makes it part of the file. A read looks in that order, and then in recs,
// the block map as the service told it.
type content struct {
	blockMap

	dirty map[uint32]*dirty
	up    map[uint32]*upload
	pend  map[uint32]*pending

	wrote  bool      // there are writes that are not committed
	writes uint64    // counts them
	since  time.Time // when the first of them was
	end    uint64    // the file is at least this long through them
	mtime  meta.Time // of the last of them
	carry  meta.SetMask
	times  meta.Attr // atime and mtime that were set after the last write
	run    appendRun

	err   error         // a loss that nobody was told of yet
	mutex chan struct{} // one flush, commit or truncation at a time; see lock
}

// A blockMap is what is known of where a file's committed contents are.
type blockMap struct {
	recs     map[uint32]meta.Block
	known    map[uint32]bool // which pages of recs are complete
	complete bool            // all of recs is
}

// cut makes it the map of the file after it was cut, or extended, to size.
func (m *blockMap) cut(size, blockSize uint64) {
	for idx, b := range m.recs {
		at := uint64(idx) * blockSize
		switch {
		case at >= size:
			delete(m.recs, idx)
		case uint64(b.Len) > size-at:
			b.Len = uint32(size - at)
			if b.Inline {
				b.Data = b.Data[:min(len(b.Data), int(b.Len))]
			}
			m.recs[idx] = b
		}
	}
}

// An upload is a block on its way to the store. Its bytes do not change.
type upload struct {
	idx     uint32
	d       *dirty
	inline  bool // it does not go to the store but into the commit
	dropped bool // nobody wants it any more
	done    chan struct{}
	err     error // valid after done
}

// A pending block is durable and not part of the file yet.
type pending struct {
	rec        meta.Block
	d          *dirty // what was written, if it may have to be merged again
	committing bool   // a commit that names it is under way
	unsure     bool   // a commit that named it was not answered; see resolve
}

// uncommitted reports whether it is certain that no commit made the block part
// of the file, so that its object may be removed.
func (p *pending) uncommitted() bool { return !p.committing && !p.unsure }

// An appendRun is on while all uncommitted writes were made with O_APPEND and
// lie one after another from where the file ended. If somebody else appended
// meanwhile, all of it moves behind that.
type appendRun struct {
	on         bool
	start, end uint64
}

// mapPage is how many blocks of a file are asked for at a time.
const mapPage = 1024

// busy reports whether there is anything that the service does not have.
func (ct *content) busy() bool {
	return ct.wrote || len(ct.dirty) > 0 || len(ct.up) > 0 || len(ct.pend) > 0
}

// idle reports whether a flush has nothing to do.
func (ct *content) idle() bool { return !ct.busy() && ct.err == nil }

func (ct *content) forgetMap() {
	ct.blockMap = blockMap{}
}

// learnSize uses what a size alone says about the block map.
func (ct *content) learnSize(size uint64) {
	if size == 0 {
		ct.recs, ct.complete = nil, true
	}
	if b, ok := ct.recs[0]; ok && b.Inline && size <= meta.MaxInline {
		ct.complete = true // every block is larger than that
	}
}

func (ct *content) record(b meta.Block) {
	if ct.recs == nil {
		ct.recs = map[uint32]meta.Block{}
	}
	ct.recs[b.Index] = b
}

// rec returns the committed record of a block (zero: a hole), and whether it is
// known at all.
func (ct *content) rec(idx uint32) (meta.Block, bool) {
	b, ok := ct.recs[idx]
	return b, ok || ct.complete || ct.known[idx/mapPage]
}

// base returns the newest durable version of a block.
func (ct *content) base(idx uint32) (meta.Block, bool) {
	if p := ct.pend[idx]; p != nil {
		return p.rec, true
	}
	return ct.rec(idx)
}

// overlay applies what is not committed to the attributes.
func (ct *content) overlay(a *meta.Attr) {
	if !ct.wrote {
		return
	}
	a.Size = max(a.Size, ct.end)
	if ct.carry&meta.SetMtime == 0 && ct.mtime.Compare(a.Mtime) > 0 {
		a.Mtime = ct.mtime
	}
	if ct.mtime.Compare(a.Ctime) > 0 {
		a.Ctime = ct.mtime
	}
	n := uint64(0)
	for _, d := range ct.dirty {
		n += uint64(d.bytes())
	}
	for _, u := range ct.up {
		n += uint64(u.d.bytes())
	}
	for idx, p := range ct.pend {
		if old := ct.recs[idx].Len; p.rec.Len > old {
			n += uint64(p.rec.Len - old)
		}
	}
	a.Bytes = min(a.Bytes+n, max(a.Size, a.Bytes))
}

// lock serialises flushes, commits and truncations of one file.
func (in *inode) lock(ctx context.Context) error {
	in.mu.Lock()
	if in.content.mutex == nil {
		in.content.mutex = make(chan struct{}, 1)
	}
	m := in.content.mutex
	in.mu.Unlock()
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (in *inode) unlock() { <-in.content.mutex }

// fetchMap asks for the page of the block map that has idx, and returns the
// record of idx. It is kept if nothing was invalidated meanwhile.
func (fs *FS) fetchMap(ctx context.Context, in *inode, idx uint32) (meta.Block, error) {
	first := idx / mapPage * mapPage
	seq := fs.invals.now()
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpBlocks, Ino: in.ino, Index: first, Limit: mapPage})
	if err != nil {
		return meta.Block{}, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	ct := &in.content
	fresh := rep.Cache && !fs.invals.since(seq, in.ino)
	in.learn(&rep.Attr, nil, fresh)
	if fresh && rep.Attr.Data == in.attr.Data { // else our own change has overtaken it
		for _, b := range rep.Blocks {
			ct.record(b)
		}
		if ct.known == nil {
			ct.known = map[uint32]bool{}
		}
		ct.known[idx/mapPage] = true
		ct.complete = ct.complete || first == 0 && rep.EOF
	}
	for _, b := range rep.Blocks {
		if b.Index == idx {
			return b, nil
		}
	}
	return meta.Block{Index: idx}, nil
}

// baseOf returns the newest durable version of a block, asking if need be.
func (fs *FS) baseOf(ctx context.Context, in *inode, idx uint32) (meta.Block, error) {
	in.mu.Lock()
	b, known := in.content.base(idx)
	pend := in.content.pend[idx] != nil
	in.mu.Unlock()
	if known && (pend || fs.leased()) {
		return b, nil
	}
	return fs.fetchMap(ctx, in, idx)
}

// key names the object of a block.
func (fs *FS) key(in *inode, b *meta.Block) store.Key {
	return store.Key{
		Volume: fs.cfg.Volume,
		Ino:    uint64(in.ino),
		Index:  b.Index,
		Gen:    store.Gen{Session: b.Gen.Session, Seq: b.Gen.Seq},
	}
}

// load returns the bytes lo..hi of a durable block; fewer if it is shorter. The
// caller must not change them.
func (fs *FS) load(ctx context.Context, in *inode, b *meta.Block, lo, hi int) ([]byte, error) {
	hi = min(hi, int(b.Len))
	if lo >= hi {
		return nil, nil
	}
	if b.Inline {
		return store.Clip(b.Data, int64(lo), int64(hi-lo)), nil
	}
	return fs.blocks.Get(ctx, fs.key(in, b), int64(lo), int64(hi-lo))
}

// remove deletes an object that no commit names. If it fails, the object stays
// behind for the collector.
func (fs *FS) remove(in *inode, b *meta.Block) {
	if b.Inline || b.Gen == (meta.Gen{}) {
		return
	}
	key := fs.key(in, b)
	go func() {
		ctx, cancel := context.WithTimeout(fs.ctx, 30*time.Second)
		defer cancel()
		if err := fs.blocks.Delete(ctx, key); err != nil {
			fs.log.Debug("a superseded block stays behind", "key", key, "err", err)
		}
	}()
}

// waitUploads waits until no block of the file is being uploaded.
func (in *inode) waitUploads(ctx context.Context) error {
	for {
		var done chan struct{}
		in.mu.Lock()
		for _, u := range in.content.up {
			done = u.done
			break
		}
		in.mu.Unlock()
		if done == nil {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// sorted returns the indices of a map in order.
func sorted[V any](m map[uint32]V) []uint32 {
	out := make([]uint32, 0, len(m))
	for idx := range m {
		out = append(out, idx)
	}
	slices.Sort(out)
	return out
}
