package fuse

import (
	"slices"

	"flexfs/meta"
)

// A span is the bytes lo <= i < hi of a block.
type span struct{ lo, hi int }

// spans are apart from each other and ascend.
type spans []span

// add merges s into the spans.
func (l spans) add(s span) spans {
	if s.lo >= s.hi {
		return l
	}
	if n := len(l); n > 0 && l[n-1].hi == s.lo { // the usual case: it goes on
		l[n-1].hi = s.hi
		return l
	}
	i, _ := slices.BinarySearchFunc(l, s.lo, func(t span, lo int) int { return t.hi - lo })
	j := i
	for j < len(l) && l[j].lo <= s.hi {
		s.lo, s.hi = min(s.lo, l[j].lo), max(s.hi, l[j].hi)
		j++
	}
	return slices.Replace(l, i, j, s)
}

// without takes s out of the spans.
func (l spans) without(s span) spans {
	if s.lo >= s.hi || len(l) == 0 {
		return l
	}
	i, _ := slices.BinarySearchFunc(l, s.lo, func(t span, lo int) int { return t.hi - lo - 1 })
	j := i
	var rest spans
	for j < len(l) && l[j].lo < s.hi {
		if l[j].lo < s.lo {
			rest = append(rest, span{l[j].lo, s.lo})
		}
		if s.hi < l[j].hi {
			rest = append(rest, span{s.hi, l[j].hi})
		}
		j++
	}
	if i == j {
		return l
	}
	return slices.Replace(l, i, j, rest...)
}

// covers reports whether all of lo..hi is in one span.
func (l spans) covers(lo, hi int) bool {
	i, _ := slices.BinarySearchFunc(l, lo, func(t span, lo int) int { return t.hi - lo - 1 })
	return lo >= hi || i < len(l) && l[i].lo <= lo && hi <= l[i].hi
}

// both returns what is in l and in m.
func (l spans) both(m spans) spans {
	var out spans
	for i, j := 0, 0; i < len(l) && j < len(m); {
		if lo, hi := max(l[i].lo, m[j].lo), min(l[i].hi, m[j].hi); lo < hi {
			out = append(out, span{lo, hi})
		}
		if l[i].hi < m[j].hi {
			i++
		} else {
			j++
		}
	}
	return out
}

// gaps returns what of 0..n is in none of them.
func (l spans) gaps(n int) spans {
	var out spans
	at := 0
	for _, s := range l {
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

// end returns where the last span ends.
func (l spans) end() int {
	if len(l) == 0 {
		return 0
	}
	return l[len(l)-1].hi
}

// dataOf returns what of a block is data.
func dataOf(b *meta.Block) spans {
	if b.Len == 0 {
		return nil
	}
	var out spans
	at := 0
	for _, h := range b.Holes {
		if lo := int(h.Lo); at < lo {
			out = append(out, span{at, lo})
		}
		at = int(h.Hi)
	}
	if at < int(b.Len) {
		out = append(out, span{at, int(b.Len)})
	}
	return out
}

// holesIn returns the holes of a block that has the given data, aligned inward.
// If they are too many the smallest are left out: they are stored as zeros.
func holesIn(data spans) []meta.Hole {
	var holes []meta.Hole
	for _, g := range data.gaps(data.end()) {
		lo, hi := alignUp(g.lo), g.hi/meta.HoleUnit*meta.HoleUnit
		if lo < hi {
			holes = append(holes, meta.Hole{Lo: uint32(lo), Hi: uint32(hi)})
		}
	}
	if over := len(holes) - meta.MaxHoles; over > 0 {
		sizes := make([]uint32, len(holes))
		for i, h := range holes {
			sizes[i] = h.Hi - h.Lo
		}
		slices.Sort(sizes)
		least := sizes[over] // the smallest that may stay
		same := 0            // as many of that size must go as well
		for _, n := range sizes[:over] {
			if n == least {
				same++
			}
		}
		holes = slices.DeleteFunc(holes, func(h meta.Hole) bool {
			if h.Hi-h.Lo == least && same > 0 {
				same--
				return true
			}
			return h.Hi-h.Lo < least
		})
	}
	return holes
}

func alignUp(n int) int { return (n + meta.HoleUnit - 1) / meta.HoleUnit * meta.HoleUnit }

// shown reports whether all that a block of n bytes with these holes shows was
// data before, so that it can name the same object.
func shown(n int, holes []meta.Hole, before, data spans) bool {
	hidden := spans{{n, maxBlock}}
	for _, h := range holes {
		hidden = hidden.add(span{int(h.Lo), int(h.Hi)})
	}
	gone := before
	for _, s := range data {
		gone = slices.Clone(gone).without(s)
	}
	for _, s := range gone { // must not be seen any more
		if !hidden.covers(s.lo, s.hi) {
			return false
		}
	}
	for _, g := range before.gaps(before.end()) { // nor what the object may have there
		if !hidden.covers(g.lo, min(g.hi, n)) {
			return false
		}
	}
	return true
}

// maxBlock is more than any block has.
const maxBlock = 1 << 40
