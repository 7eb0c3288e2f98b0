package fuse

import (
	"context"
	"errors"
	"sync"

	"flexfs/meta"
	"flexfs/store"
)

// zeros is what holes are read from. It is as long as the longest read.
var zeros [1 << 20]byte

// maxRereads bounds how often a read starts again because a block that it was
// going to read was replaced and collected meanwhile.
const maxRereads = 5

// read returns n bytes of the file from off, fewer if it ends before.
func (c *call) read(in *inode, s *stream, off uint64, n int) ([][]byte, int, error) {
	if err := c.attrOf(in); err != nil {
		return nil, 0, err
	}
	in.mu.Lock()
	size := in.current().Size
	in.mu.Unlock()
	if off >= size {
		return nil, 0, nil
	}
	n = int(min(uint64(n), size-off))
	seq := s.saw(off, n)

	bs := uint64(c.fs.blockSize())
	var out [][]byte
	for at, end := off, off+uint64(n); at < end; {
		idx, lo := uint32(at/bs), int(at%bs)
		hi := int(min(bs, uint64(lo)+end-at))
		b, err := c.readBlock(in, s, idx, lo, hi, seq)
		if err != nil {
			return nil, 0, err
		}
		out = pad(append(out, b), hi-lo-len(b))
		at += uint64(hi - lo)
	}
	in.mu.Lock()
	now := in.current().Size
	in.mu.Unlock()
	if now < off+uint64(n) { // the answer about its blocks told that it was cut meanwhile
		return c.read(in, s, off, n)
	}
	if seq {
		s.ahead(c.fs, in, uint32((off+uint64(n)-1)/bs), size)
	}
	return out, n, nil
}

// pad appends n zeros.
func pad(out [][]byte, n int) [][]byte {
	for n > 0 {
		k := min(n, len(zeros))
		out = append(out, zeros[:k])
		n -= k
	}
	return out
}

// readBlock returns the bytes lo..hi of a block, fewer if there are only zeros
// after them. The caller must not change them.
func (c *call) readBlock(in *inode, s *stream, idx uint32, lo, hi int, sequential bool) ([]byte, error) {
	for try := 0; ; try++ {
		b, err := c.tryBlock(in, s, idx, lo, hi, sequential)
		if !errors.Is(err, store.ErrNotExist) || try == maxRereads {
			return b, err
		}
		// The block map was old, by as little as this read.
		in.mu.Lock()
		in.content.forgetMap()
		in.mu.Unlock()
	}
}

func (c *call) tryBlock(in *inode, s *stream, idx uint32, lo, hi int, sequential bool) ([]byte, error) {
	fs := c.fs
	in.mu.Lock()
	ct := &in.content
	over, whole := ct.layers(idx, lo, hi)
	base, known := ct.base(idx)
	pend := ct.pend[idx] != nil
	ahead := ct.ahead
	ct.ahead = 0
	in.mu.Unlock()
	if whole {
		return over.data, nil
	}
	if ahead > 0 {
		fs.readAt(in, ahead)
	}
	if !known {
		base, known = c.contentsAhead(in, idx)
	}
	if !known || !pend && !fs.leased() {
		var err error
		if base, err = fs.fetchMap(c.wait(), in, idx); err != nil {
			return nil, err
		}
	}
	b, err := c.fetch(in, s, &base, lo, hi, sequential)
	if err != nil || over == nil {
		return b, err
	}
	return over.onto(b), nil
}

// fetch returns the bytes lo..hi of a durable block, fewer if there are only
// zeros after them.
func (c *call) fetch(in *inode, s *stream, base *meta.Block, lo, hi int, sequential bool) ([]byte, error) {
	if len(base.Holes) == 0 {
		return c.fetchObject(in, s, base, lo, hi, sequential)
	}
	data := dataOf(base).both(spans{{lo, hi}})
	if len(data) == 0 {
		return nil, nil
	}
	b, err := c.fetchObject(in, s, base, lo, data.end(), sequential)
	if err != nil || data.covers(lo, data.end()) {
		return b, err
	}
	out := make([]byte, data.end()-lo)
	for _, s := range data {
		copy(out[s.lo-lo:s.hi-lo], b[min(s.lo-lo, len(b)):])
	}
	return out, nil
}

// fetchObject is fetch with what the object has in the block's holes.
func (c *call) fetchObject(in *inode, s *stream, base *meta.Block, lo, hi int, sequential bool) ([]byte, error) {
	if base.Inline || int(base.Len) <= lo {
		return c.fs.load(c.fs.ctx, in, base, lo, hi)
	}
	n := min(hi, int(base.Len)) - lo
	if b, ok := store.Peek(c.fs.blocks, c.fs.key(in, base), int64(lo), int64(n)); ok {
		return b, nil // without a wait, which would cost more than the read
	}
	if b, ok := s.take(c, base); ok {
		return store.Clip(b, int64(lo), int64(n)), nil
	}
	if sequential || base.Len <= wholeBelow || base.Index == 0 && lo == 0 && base.Len <= wholeFile { // all of it will be wanted
		b, err := c.fs.blocks.Get(c.wait(), c.fs.key(in, base), 0, -1)
		if err != nil {
			return nil, err
		}
		return store.Clip(b, int64(lo), int64(n)), nil
	}
	return c.fs.load(c.wait(), in, base, lo, hi)
}

// wholeBelow is the size up to which a block is always read as a whole: a
// request more costs more than these bytes.
const wholeBelow = 256 << 10

// wholeFile is that for a file that is read from its beginning.
const wholeFile = 1 << 20

// layer is what was written and not committed of a part of a block.
type layer struct {
	data  []byte
	spans spans // of data
}

// layers copies what is dirty or being uploaded of lo..hi, and reports whether
// that is all of it. It returns nil if nothing is. in.mu is held.
func (ct *content) layers(idx uint32, lo, hi int) (*layer, bool) {
	var l *layer
	var cover spans
	for _, d := range [2]*dirty{ct.uploading(idx), ct.dirty[idx]} {
		if d == nil {
			continue
		}
		for _, s := range d.touched().both(spans{{lo, hi}}) {
			if l == nil {
				l = &layer{data: make([]byte, hi-lo)}
			}
			cover = cover.add(span{s.lo - lo, s.hi - lo})
		}
		if l != nil {
			d.read(lo, l.data)
		}
	}
	if l == nil {
		return nil, false
	}
	l.spans = cover
	return l, cover.covers(0, hi-lo)
}

func (ct *content) uploading(idx uint32) *dirty {
	if u := ct.up[idx]; u != nil && !u.dropped {
		return u.d
	}
	return nil
}

// onto returns the layer with base showing through its gaps.
func (l *layer) onto(base []byte) []byte {
	for _, g := range l.spans.gaps(len(l.data)) {
		if g.lo < len(base) {
			copy(l.data[g.lo:g.hi], base[g.lo:])
		}
	}
	return l.data
}

// A stream is what is known of how one open file is read.
type stream struct {
	mu      sync.Mutex
	next    uint64 // where a sequential read would go on
	hits    int    // sequential reads in a row
	window  int    // blocks to read ahead
	flights map[uint32]*flight
}

// A flight is a block that is being read ahead, or was.
type flight struct {
	gen  meta.Gen
	done chan struct{}
	data []byte // valid after done
	err  error
	size int64 // of the budget
	stop context.CancelFunc
}

const (
	// maxWindow bounds the blocks that one open file reads ahead.
	maxWindow = 8

	// slack is how far apart two reads may be and still be sequential: the
	// kernel sends those of one read-ahead concurrently.
	slack = 4 << 20
)

// saw notes a read, and reports whether it is one of a sequence.
func (s *stream) saw(off uint64, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := off + uint64(n)
	switch {
	case off <= s.next+slack && end+slack >= s.next && (s.hits > 0 || off == s.next):
		s.hits++
		s.next = max(s.next, end)
		return s.hits > 1
	default:
		s.hits = 0
		s.next = end
		s.window = 0
		s.drop(func(uint32) bool { return true })
		return false
	}
}

// take returns a block that was read ahead, waiting for it if it is on its way.
func (s *stream) take(c *call, base *meta.Block) ([]byte, bool) {
	s.mu.Lock()
	f := s.flights[base.Index]
	if f == nil || f.gen != base.Gen {
		s.mu.Unlock()
		return nil, false
	}
	select {
	case <-f.done:
	default:
		s.window = min(max(1, s.window*2), maxWindow) // it came too late: look further
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	default:
		ctx := c.wait()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, false
		}
	}
	return f.data, f.err == nil
}

// ahead starts to read the blocks after idx, and gives up those before it.
func (s *stream) ahead(fs *FS, in *inode, idx uint32, size uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window == 0 {
		s.window = 1
	}
	s.drop(func(i uint32) bool { return i < idx })
	bs := uint64(fs.blockSize())
	for i := idx; i <= idx+uint32(s.window) && uint64(i)*bs < size; i++ {
		if s.flights[i] != nil {
			continue
		}
		in.mu.Lock()
		base, known := in.content.base(i)
		written := in.content.dirty[i] != nil || in.content.up[i] != nil
		in.mu.Unlock()
		if !known || written || base.Inline || base.Len == 0 {
			continue
		}
		if !fs.budget.tryAhead(int64(base.Len)) {
			return
		}
		s.start(fs, in, base)
	}
}

// start reads one block in the background. s.mu is held.
func (s *stream) start(fs *FS, in *inode, base meta.Block) {
	ctx, stop := context.WithCancel(fs.ctx)
	f := &flight{gen: base.Gen, done: make(chan struct{}), size: int64(base.Len), stop: stop}
	if s.flights == nil {
		s.flights = map[uint32]*flight{}
	}
	s.flights[base.Index] = f
	fs.stats.Ahead.Add(1)
	go func() {
		defer close(f.done)
		f.data, f.err = fs.blocks.Get(ctx, fs.key(in, &base), 0, -1)
	}()
	context.AfterFunc(ctx, func() { // given up: the memory is free when the read is over
		<-f.done
		fs.budget.releaseAhead(f.size)
	})
}

// drop gives up the flights that which names. s.mu is held.
func (s *stream) drop(which func(uint32) bool) {
	for idx, f := range s.flights {
		if which(idx) {
			delete(s.flights, idx)
			f.stop()
		}
	}
}

// close gives up everything.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(func(uint32) bool { return true })
}
