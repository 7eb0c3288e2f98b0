package meta

import (
	"math/rand/v2"
	"testing"
)

func TestHolesFitWhatTheyMust(t *testing.T) {
	for _, test := range []struct {
		name  string
		len   uint32
		holes []Hole
		want  bool
	}{
		{"none", 5, nil, true},
		{"one at the start", 5000, []Hole{{0, 4096}}, true},
		{"two apart", 20000, []Hole{{4096, 8192}, {12288, 16384}}, true},
		{"one up to the end", 4096, []Hole{{0, 4096}}, false},
		{"one beyond the end", 4096, []Hole{{4096, 8192}}, false},
		{"an empty one", 20000, []Hole{{4096, 4096}}, false},
		{"a reversed one", 20000, []Hole{{8192, 4096}}, false},
		{"two that touch", 20000, []Hole{{0, 4096}, {4096, 8192}}, false},
		{"two in the wrong order", 20000, []Hole{{8192, 12288}, {0, 4096}}, false},
		{"one that begins in a page", 20000, []Hole{{1, 4096}}, false},
		{"one that ends in a page", 20000, []Hole{{0, 4097}}, false},
		{"too many", 1 << 20, manyHoles(MaxHoles + 1), false},
		{"as many as there may be", 1 << 20, manyHoles(MaxHoles), true},
	} {
		if got := (&Block{Len: test.len, Holes: test.holes}).HolesFit(); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func manyHoles(n int) []Hole {
	var holes []Hole
	for i := range uint32(n) {
		holes = append(holes, Hole{2 * i * HoleUnit, (2*i + 1) * HoleUnit})
	}
	return holes
}

// A cut at any byte leaves a block whose holes fit, which has the data that was
// before the cut and no other, and does not change a copy of the block.
func TestACutBlockHasWhatWasBeforeTheCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		b := Block{Len: 1}
		for at := uint32(r.IntN(3)) * HoleUnit; len(b.Holes) < r.IntN(6); at += uint32(1+r.IntN(3)) * HoleUnit {
			hole := Hole{at, at + uint32(1+r.IntN(3))*HoleUnit}
			b.Holes = append(b.Holes, hole)
			at = hole.Hi
			b.Len = at + 1
		}
		b.Len += uint32(r.IntN(10000))
		if !b.HolesFit() {
			t.Fatalf("the test made %+v", b)
		}
		was := Block{Len: b.Len, Holes: append([]Hole(nil), b.Holes...)}
		cut := b
		n := uint32(r.IntN(int(b.Len) + 10))
		cut.Cut(n)
		if !cut.HolesFit() {
			t.Fatalf("%+v cut to %d is %+v", was, n, cut)
		}
		for i := range was.Len {
			if want := i < n && isData(&was, i); isData(&cut, i) != want {
				t.Fatalf("%+v cut to %d is %+v: byte %d is data: %v", was, n, cut, i, !want)
			}
		}
		if b.Bytes() != was.Bytes() {
			t.Fatalf("a cut of a copy changed %+v to %+v", was, b)
		}
	}
}

func isData(b *Block, i uint32) bool {
	for _, h := range b.Holes {
		if h.Lo <= i && i < h.Hi {
			return false
		}
	}
	return i < b.Len
}

func TestAnObjectIsFoundWhereItWasMade(t *testing.T) {
	if got := (&Block{Index: 3}).Object(7); got != (Origin{7, 3}) {
		t.Errorf("a block's own object is of %v", got)
	}
	if got := (&Block{Index: 3, Origin: Origin{5, 9}}).Object(7); got != (Origin{5, 9}) {
		t.Errorf("a cloned block's object is of %v", got)
	}
}
