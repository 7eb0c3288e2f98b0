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

	ahead   int64 // bytes that were fetched ahead, if no program has read them yet
	stocked int64 // what the stock counts for the block map

	loss  loss
	mutex chan struct{} // one flush, commit or truncation at a time; see lock
}

// A blockMap is what is known of where a file's committed contents are.
//
// A record does not change once it is in recs. It is not in the map itself, which has
// room for eight, since most files have one.
type blockMap struct {
	recs  map[uint32]*meta.Block
	order []uint32 // indices of recs, sorted; nil: not made yet
	known spans    // of indices: what of them is not in recs is a hole
}

// allBlocks is more than the index of any block.
const allBlocks = 1 << 32

// cut makes it the map of the file after it was cut, or extended, to size.
func (m *blockMap) cut(size, blockSize uint64) {
	for idx, rec := range m.recs {
		b := *rec
		at := uint64(idx) * blockSize
		if at >= size {
			b.Len = 0
		} else {
			b.Cut(uint32(min(uint64(b.Len), size-at)))
		}
		m.record(b)
	}
}

func (m *blockMap) record(b meta.Block) {
	old, was := m.recs[b.Index]
	switch {
	case b.Len == 0 && was:
		delete(m.recs, b.Index)
		m.order = nil
	case b.Len > 0:
		if m.recs == nil {
			m.recs = map[uint32]*meta.Block{}
		}
		m.recs[b.Index] = &b
		if !was || old.Len == 0 {
			m.order = nil
		}
	}
}

// within returns the indices from <= i < to that have a record.
func (m *blockMap) within(from, to uint32) []uint32 {
	var out []uint32
	if int(to-from) < len(m.recs) {
		for idx := from; idx < to; idx++ {
			if _, ok := m.recs[idx]; ok {
				out = append(out, idx)
			}
		}
		return out
	}
	for idx := range m.recs {
		if from <= idx && idx < to {
			out = append(out, idx)
		}
	}
	return out
}

// punch makes blocks from <= i < to holes.
func (m *blockMap) punch(from, to uint32) {
	for _, idx := range m.within(from, to) {
		delete(m.recs, idx)
		m.order = nil
	}
}

// rec returns the committed record of a block (zero: a hole), and whether it is
// known at all.
func (m *blockMap) rec(idx uint32) (meta.Block, bool) {
	if b := m.recs[idx]; b != nil {
		return *b, true
	}
	return meta.Block{}, m.known.covers(int(idx), int(idx)+1)
}

// next returns the first index from idx on that has a record, or of which it is
// not known.
func (m *blockMap) next(idx uint32) uint64 {
	end := uint64(idx)
	for _, s := range m.known {
		if s.lo <= int(idx) && int(idx) < s.hi {
			end = uint64(s.hi)
		}
	}
	if m.order == nil {
		m.order = sorted(m.recs)
	}
	if i, _ := slices.BinarySearch(m.order, idx); i < len(m.order) {
		end = min(end, uint64(m.order[i]))
	}
	return end
}

// complete reports whether every record is known.
func (m *blockMap) complete() bool { return m.known.covers(0, allBlocks) }

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
	reach      int    // the file reaches so far into the block through it
	d          *dirty // what was written, if it may have to be merged again
	committing bool   // a commit that names it is under way
	unsure     bool   // a commit that named it was not answered; see resolve
}

// uncommitted reports whether it is certain that no commit made the block's
// object part of the file, so that it may be removed.
func (p *pending) uncommitted() bool { return !p.committing && !p.unsure && !shares(&p.rec) }

// shares reports whether a version names the same object as the one that it was
// made from.
func shares(rec *meta.Block) bool { return rec.Gen == rec.Base }

// An appendRun is on while all uncommitted writes were made with O_APPEND and
// lie one after another from where the file ended. If somebody else appended
// meanwhile, all of it moves behind that.
type appendRun struct {
	on         bool
	start, end uint64
}

// mapPage is how many records of a file's blocks are asked for at a time.
const mapPage = 1024

// busy reports whether there is anything that the service does not have: else a
// flush has nothing to do.
func (ct *content) busy() bool {
	return ct.wrote || len(ct.dirty) > 0 || len(ct.up) > 0 || len(ct.pend) > 0
}

func (ct *content) forgetMap() {
	ct.blockMap = blockMap{}
}

// learnSize uses what a size alone says about the block map.
func (ct *content) learnSize(size uint64) {
	if size == 0 {
		ct.blockMap = blockMap{known: spans{{0, allBlocks}}}
	}
	if b := ct.recs[0]; b != nil && b.Inline && size <= meta.MaxInline {
		ct.known = spans{{0, allBlocks}} // every block is larger than that
	}
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
	// As a commit will: a later time stays, if it was not set to lie ahead of when
	// it was set.
	if ct.carry&meta.SetMtime == 0 && (ct.mtime.Compare(a.Mtime) > 0 || a.Mtime.Compare(a.Ctime) > 0) {
		a.Mtime = ct.mtime
	}
	if ct.mtime.Compare(a.Ctime) > 0 {
		a.Ctime = ct.mtime
	}
}

// layered calls fn for each block of which there is anything that is not
// committed, once.
func (ct *content) layered(fn func(idx uint32)) {
	for idx := range ct.dirty {
		fn(idx)
	}
	for idx := range ct.up {
		if ct.dirty[idx] == nil {
			fn(idx)
		}
	}
	for idx := range ct.pend {
		if ct.dirty[idx] == nil && ct.up[idx] == nil {
			fn(idx)
		}
	}
}

// data returns what of a block is data, if its newest durable version is base.
func (ct *content) data(idx uint32, base *meta.Block) spans {
	data := dataOf(base)
	for _, d := range [2]*dirty{ct.uploading(idx), ct.dirty[idx]} {
		if d != nil {
			data = d.over(data)
		}
	}
	return data
}

// over returns what, of data that a durable version of a block has, was written and
// punched since then makes. It may be called when that has changed.
func (ct *content) over(idx uint32) func(data spans) spans {
	var layers []dirty
	for _, d := range [2]*dirty{ct.uploading(idx), ct.dirty[idx]} {
		if d != nil {
			layers = append(layers, dirty{spans: slices.Clone(d.spans), zero: slices.Clone(d.zero)})
		}
	}
	return func(data spans) spans {
		for i := range layers {
			data = layers[i].over(data)
		}
		return data
	}
}

// stored returns how many bytes are stored for the file when all is committed:
// what stat says does not change then. a has what is committed, and size is that
// of the file.
func (ct *content) stored(a *meta.Attr, size, blockSize uint64, inlineMax uint32) uint64 {
	n := int64(a.Bytes)
	ct.layered(func(idx uint32) {
		old, known := ct.rec(idx)
		if at := uint64(idx) * blockSize; !known && a.Bytes > 0 && at < a.Size { // as if it had no hole
			old = meta.Block{Index: idx, Len: uint32(min(blockSize, a.Size-at))}
		}
		n -= int64(old.Bytes())
		base := old
		if p := ct.pend[idx]; p != nil {
			base = p.rec
		}
		if ct.dirty[idx] == nil && ct.uploading(idx) == nil {
			n += int64(base.Bytes())
			return
		}
		data := ct.data(idx, &base)
		now := meta.Block{Len: uint32(data.end())}
		less := ct.uploading(idx) == nil && ct.dirty[idx].lessOf(&base, data)
		if idx > 0 || size > uint64(inlineMax) || less {
			now.Holes = holesIn(data)
		}
		n += int64(now.Bytes())
	})
	return uint64(max(n, 0))
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

// fetchMap asks for the block map around idx, and returns the record of idx. It
// is kept if nothing was invalidated meanwhile.
func (fs *FS) fetchMap(ctx context.Context, in *inode, idx uint32) (meta.Block, error) {
	list, _, err := fs.fetchFrom(ctx, in, idx)
	for _, b := range list {
		if b.Index == idx {
			return b, nil
		}
	}
	return meta.Block{Index: idx}, err
}

// fetchFrom is fetchMap for the records from idx on: it returns those that it
// was told, and the index up to which there are no others.
func (fs *FS) fetchFrom(ctx context.Context, in *inode, idx uint32) ([]meta.Block, uint64, error) {
	first := int(idx / mapPage * mapPage)
	in.mu.Lock()
	if in.making != nil {
		in.mu.Unlock()
		return nil, allBlocks, nil
	}
	for _, s := range in.content.known { // no need to hear that again
		if s.lo <= first && s.hi <= int(idx) {
			first = max(first, s.hi)
		}
	}
	in.mu.Unlock()
	seq := fs.invals.now()
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpBlocks, Ino: in.ino, Index: uint32(first), Limit: mapPage})
	if err != nil {
		return nil, 0, err
	}
	end := allBlocks
	if n := len(rep.Blocks); !rep.EOF && n > 0 {
		end = int(rep.Blocks[n-1].Index) + 1
	}
	in.mu.Lock()
	ct := &in.content
	fresh := rep.Cache && !fs.invals.since(seq, in.ino)
	in.learn(&rep.Attr, nil, fresh)
	if fresh && rep.Attr.Data == in.attr.Data { // else our own change has overtaken it
		for _, b := range rep.Blocks {
			ct.record(b)
		}
		ct.known = ct.known.add(span{first, end})
	}
	more := ct.toStock()
	in.mu.Unlock()
	fs.stock.keep(in, more)
	list := rep.Blocks
	for len(list) > 0 && list[0].Index < idx {
		list = list[1:]
	}
	return list, uint64(end), nil
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
	o := b.Object(in.ino)
	return store.Key{
		Volume: fs.cfg.Volume,
		Ino:    uint64(o.Ino),
		Index:  o.Index,
		Gen:    store.Gen{Session: b.Gen.Session, Seq: b.Gen.Seq},
	}
}

// load returns the bytes lo..hi of a durable block's object, which may have
// anything where the block has holes; fewer if it is shorter. The caller must not
// change them.
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

// maxRemovals bounds the objects that are being removed at a time.
const maxRemovals = 64

// remove deletes an object that no commit names. If it fails, or too many are
// being removed, the object stays behind for the collector.
func (fs *FS) remove(in *inode, b *meta.Block) {
	if b.Inline || b.Gen == (meta.Gen{}) {
		return
	}
	key := fs.key(in, b)
	select {
	case fs.removals <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-fs.removals }()
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
