package fuse

import (
	"bytes"
	"slices"
	"sync"
	"time"
)

// chunkSize is the unit in which memory for dirty data is taken from the
// budget: a small file costs no more than this, and a random write in a big
// block no more either.
const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// dirty holds what happened to one block and is not in the store yet. Chunks are
// taken from a pool and hold rubbish outside of the spans.
type dirty struct {
	chunks []*[chunkSize]byte // nil where nothing was written
	spans  spans              // written
	zero   spans              // punched, and not written since
	top    int                // the file reaches so far into the block through it
	since  time.Time          // of the first write
}

// mem returns the bytes of budget that d holds.
func (d *dirty) mem() int64 {
	n := int64(0)
	for _, c := range d.chunks {
		if c != nil {
			n += chunkSize
		}
	}
	return n
}

// write copies p to lo, and returns the bytes of budget that it took.
func (d *dirty) write(lo int, p []byte) int64 {
	took := int64(0)
	hi := lo + len(p)
	for off := lo; off < hi; {
		c := off / chunkSize
		for len(d.chunks) <= c {
			d.chunks = append(d.chunks, nil)
		}
		if d.chunks[c] == nil {
			d.chunks[c] = chunks.Get().(*[chunkSize]byte)
			took += chunkSize
		}
		off += copy(d.chunks[c][off%chunkSize:], p[off-lo:])
	}
	d.spans = d.spans.add(span{lo, hi})
	d.zero = d.zero.without(span{lo, hi})
	d.top = max(d.top, hi)
	return took
}

// punch makes lo..hi zeros, and returns the bytes of budget that it freed.
func (d *dirty) punch(lo, hi int) int64 {
	d.spans = d.spans.without(span{lo, hi})
	d.zero = d.zero.add(span{lo, hi})
	return d.trim(lo, hi)
}

// trim gives back the chunks of lo..hi in which nothing is written any more.
func (d *dirty) trim(lo, hi int) int64 {
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

// whole returns a copy of the n bytes of a block all of which were written.
func (d *dirty) whole(n int) []byte {
	parts := make([][]byte, 0, n/chunkSize+1)
	for lo := 0; lo < n; lo += chunkSize {
		parts = append(parts, d.chunks[lo/chunkSize][:min(chunkSize, n-lo)])
	}
	return bytes.Join(parts, nil) // does not clear first what it overwrites
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
		if i >= len(old.chunks) || old.chunks[i] == nil {
			for len(old.chunks) <= i {
				old.chunks = append(old.chunks, nil)
			}
			old.chunks[i] = chunks.Get().(*[chunkSize]byte)
		}
		base := i * chunkSize
		for _, s := range d.spans {
			from, to := max(s.lo, base), min(s.hi, base+chunkSize)
			if from < to {
				copy(old.chunks[i][from-base:to-base], c[from-base:to-base])
			}
		}
		chunks.Put(c)
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
	d.chunks, d.spans, d.zero, d.top = old.chunks, old.spans, old.zero, max(d.top, old.top)
	if old.since.Before(d.since) {
		d.since = old.since
	}
	old.chunks, old.spans, old.zero = nil, nil, nil
	return d.mem() - before
}

// free gives the memory back and returns how much budget it was.
func (d *dirty) free() int64 { return d.cut(0) }
