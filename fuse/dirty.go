package fuse

import (
	"slices"
	"sync"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// chunkSize is the unit in which memory for dirty data is taken from the
// budget: a small file costs no more than this, and a random write in a big
// block no more either.
const chunkSize = store.PartSize

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// dirty holds what happened to one block and is not in the store yet. Chunks are
// taken from a pool, or are parts of the memory of a whole block, from which that can
// be stored; they hold rubbish outside of the spans.
type dirty struct {
	chunks []*[chunkSize]byte // nil where nothing was written
	loan   *store.Loan        // what the chunks are parts of; nil: each is from the pool
	spans  spans              // written
	zero   spans              // punched, and not written since
	top    int                // the file reaches so far into the block through it
	since  time.Time          // of the first write
}

// mem returns the bytes of budget that d holds.
func (d *dirty) mem() int64 {
	if d.loan != nil {
		return int64(len(d.loan.Data()))
	}
	n := int64(0)
	for _, c := range d.chunks {
		if c != nil {
			n += chunkSize
		}
	}
	return n
}

// needs returns the bytes of budget that a write of n bytes at lo takes.
func (d *dirty) needs(lo, n int) int64 {
	if d != nil && d.loan != nil {
		return 0
	}
	need := int64(0)
	for c := lo / chunkSize; c*chunkSize < lo+n; c++ {
		if d == nil || c >= len(d.chunks) || d.chunks[c] == nil {
			need += chunkSize
		}
	}
	return need
}

// chunk returns a chunk to write to.
func (d *dirty) chunk(c int) *[chunkSize]byte {
	for len(d.chunks) <= c {
		d.chunks = append(d.chunks, nil)
	}
	switch {
	case d.chunks[c] != nil:
	case d.loan != nil:
		d.chunks[c] = (*[chunkSize]byte)(d.loan.Data()[c*chunkSize:])
	default:
		d.chunks[c] = chunks.Get().(*[chunkSize]byte)
	}
	return d.chunks[c]
}

// move makes the memory of a whole block what the chunks are parts of, and returns
// the change of the budget that d holds.
func (d *dirty) move(to *store.Loan) int64 {
	before, old := d.mem(), d.chunks
	d.chunks, d.loan = nil, to
	for i, c := range old {
		if c != nil {
			*d.chunk(i) = *c
			chunks.Put(c)
		}
	}
	return d.mem() - before
}

// write copies p to lo, and returns the bytes of budget that it took.
func (d *dirty) write(lo int, p []byte) int64 {
	took := d.needs(lo, len(p))
	hi := lo + len(p)
	for off := lo; off < hi; {
		c := off / chunkSize
		n := copy(d.chunk(c)[off%chunkSize:], p[off-lo:])
		d.sum(c, off, off+n)
		off += n
	}
	d.spans = d.spans.add(span{lo, hi})
	d.zero = d.zero.without(span{lo, hi})
	d.top = max(d.top, hi)
	return took
}

// sum notes the checksum of chunk c, if lo..hi was just written and completes it.
// Else what was noted of it is not so any more.
func (d *dirty) sum(c, lo, hi int) {
	start := c * chunkSize
	switch {
	case d.loan == nil:
	case hi == start+chunkSize && (lo == start || d.spans.covers(start, lo)):
		d.loan.SumPart(c)
	default:
		d.loan.ForgetPart(c)
	}
}

// punch makes lo..hi zeros, and returns the bytes of budget that it freed.
func (d *dirty) punch(lo, hi int) int64 {
	d.spans = d.spans.without(span{lo, hi})
	d.zero = d.zero.add(span{lo, hi})
	return d.trim(lo, hi)
}

// trim gives back the chunks of lo..hi in which nothing is written any more, or the
// memory of the block if nothing is left.
func (d *dirty) trim(lo, hi int) int64 {
	if d.loan != nil {
		freed := d.mem()
		if len(d.spans) > 0 {
			return 0
		}
		d.release()
		return freed
	}
	freed := int64(0)
	for c := lo / chunkSize; c*chunkSize < hi && c < len(d.chunks); c++ {
		if d.chunks[c] != nil && len(d.spans.both(spans{{c * chunkSize, (c + 1) * chunkSize}})) == 0 {
			chunks.Put(d.chunks[c])
			d.chunks[c] = nil
			freed += chunkSize
		}
	}
	return freed
}

// covers reports whether all of lo..hi is dirty.
func (d *dirty) covers(lo, hi int) bool {
	return d.spans.covers(lo, hi) || len(d.zero) > 0 && d.touched().covers(lo, hi)
}

// touched returns what is dirty: written or punched.
func (d *dirty) touched() spans {
	out := slices.Clone(d.spans)
	for _, s := range d.zero {
		out = out.add(s)
	}
	return out
}

// over returns what is data of a block after what happened to it, if base was
// data before.
func (d *dirty) over(base spans) spans {
	out := slices.Clone(base)
	for _, s := range d.zero {
		out = out.without(s)
	}
	for _, s := range d.spans {
		out = out.add(s)
	}
	return out
}

// lessOf reports whether what a block shows then, whose data is is, it may show of
// the object that it has: something of it was punched or cut off, and no more.
func (d *dirty) lessOf(base *meta.Block, is spans) bool {
	return len(d.spans) == 0 && !base.Inline && base.Gen != (meta.Gen{}) && shown(is.end(), holesIn(is), dataOf(base), is)
}

// read copies the dirty bytes of lo..lo+len(p) over p.
func (d *dirty) read(lo int, p []byte) {
	hi := lo + len(p)
	for _, s := range d.spans {
		from, to := max(s.lo, lo), min(s.hi, hi)
		for from < to {
			n := copy(p[from-lo:to-lo], d.chunks[from/chunkSize][from%chunkSize:])
			from += n
		}
	}
	for _, s := range d.zero {
		if from, to := max(s.lo, lo), min(s.hi, hi); from < to {
			clear(p[from-lo : to-lo])
		}
	}
}

// release gives the memory of a block back.
func (d *dirty) release() {
	d.loan.Done()
	d.loan, d.chunks = nil, nil
}

// cut drops what lies at n or beyond, and returns the budget that it frees.
func (d *dirty) cut(n int) int64 {
	d.spans = d.spans.without(span{n, maxBlock})
	d.zero = d.zero.without(span{n, maxBlock})
	d.top = min(d.top, n)
	return d.trim(n, maxBlock)
}

// under puts what old has, which is older and given up by the caller, beneath
// what d has. It returns the change of the budget that both hold.
func (d *dirty) under(old *dirty) int64 {
	before := d.mem() + old.mem()
	for i, c := range d.chunks {
		if c == nil {
			continue
		}
		base := i * chunkSize
		for _, s := range d.spans {
			from, to := max(s.lo, base), min(s.hi, base+chunkSize)
			if from < to {
				copy(old.chunk(i)[from-base:to-base], c[from-base:to-base])
				if old.loan != nil {
					old.loan.ForgetPart(i)
				}
			}
		}
		if d.loan == nil {
			chunks.Put(c)
		}
	}
	if d.loan != nil {
		d.release()
	}
	old.spans = d.over(old.spans)
	for _, s := range d.spans {
		old.zero = old.zero.without(s)
	}
	for _, s := range d.zero {
		old.zero = old.zero.add(s)
	}
	for _, s := range d.zero {
		old.trim(s.lo, s.hi)
	}
	d.chunks, d.loan, d.spans, d.zero, d.top = old.chunks, old.loan, old.spans, old.zero, max(d.top, old.top)
	if old.since.Before(d.since) {
		d.since = old.since
	}
	old.chunks, old.loan, old.spans, old.zero = nil, nil, nil, nil
	return d.mem() - before
}

// free gives the memory back and returns how much budget it was.
func (d *dirty) free() int64 { return d.cut(0) }
