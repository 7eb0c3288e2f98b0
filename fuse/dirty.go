package fuse

import (
	"slices"
	"sync"
	"time"
)

// chunkSize is the unit in which memory for dirty data is taken from the
// budget: a small file costs no more than this, and a random write in a big
// block no more either.
const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// A span is the bytes lo <= i < hi of a block.
type span struct{ lo, hi int }

// dirty holds bytes of one block that are not in the store yet. Chunks are
// taken from a pool and hold rubbish outside of the spans.
type dirty struct {
	chunks []*[chunkSize]byte // nil where nothing was written
	spans  []span             // written; ascending, apart from each other
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

// bytes returns how many bytes are dirty.
func (d *dirty) bytes() int {
	n := 0
	for _, s := range d.spans {
		n += s.hi - s.lo
	}
	return n
}

// end returns where the last span ends.
func (d *dirty) end() int {
	if len(d.spans) == 0 {
		return 0
	}
	return d.spans[len(d.spans)-1].hi
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
	d.add(span{lo, hi})
	return took
}

// add merges s into the spans.
func (d *dirty) add(s span) {
	if s.lo >= s.hi {
		return
	}
	if n := len(d.spans); n > 0 && d.spans[n-1].hi == s.lo { // the usual case: it goes on
		d.spans[n-1].hi = s.hi
		return
	}
	i, _ := slices.BinarySearchFunc(d.spans, s.lo, func(t span, lo int) int { return t.hi - lo })
	j := i
	for j < len(d.spans) && d.spans[j].lo <= s.hi {
		s.lo, s.hi = min(s.lo, d.spans[j].lo), max(s.hi, d.spans[j].hi)
		j++
	}
	d.spans = slices.Replace(d.spans, i, j, s)
}

// covers reports whether all of lo..hi is dirty.
func (d *dirty) covers(lo, hi int) bool {
	for _, s := range d.spans {
		if s.lo <= lo && hi <= s.hi {
			return true
		}
	}
	return lo >= hi
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
}

// cut drops what lies at n or beyond, and returns the budget that it frees.
func (d *dirty) cut(n int) int64 {
	for i, s := range d.spans {
		if s.hi > n {
			d.spans[i].hi = n
			if s.lo >= n {
				d.spans = d.spans[:i]
			} else {
				d.spans = d.spans[:i+1]
			}
			break
		}
	}
	freed := int64(0)
	for c := (n + chunkSize - 1) / chunkSize; c < len(d.chunks); c++ {
		if d.chunks[c] != nil {
			chunks.Put(d.chunks[c])
			d.chunks[c] = nil
			freed += chunkSize
		}
	}
	return freed
}

// under puts the bytes of old, which is older and given up by the caller,
// beneath those of d. It returns the change of the budget that both hold.
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
	for _, s := range d.spans {
		old.add(s)
	}
	d.chunks, d.spans = old.chunks, old.spans
	if old.since.Before(d.since) {
		d.since = old.since
	}
	old.chunks, old.spans = nil, nil
	return d.mem() - before
}

// free gives the memory back and returns how much budget it was.
func (d *dirty) free() int64 { return d.cut(0) }

// gaps returns what of 0..n is not dirty.
func (d *dirty) gaps(n int) []span {
	var out []span
	at := 0
	for _, s := range d.spans {
		if s.lo >= n {
			break
		}
		if at < s.lo {
			out = append(out, span{at, s.lo})
		}
		at = s.hi
	}
	if at < n {
		out = append(out, span{at, n})
	}
	return out
}
