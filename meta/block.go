package meta

// HoleUnit is the unit of holes within a block, in bytes. It is the page of the
// kernel, so what a program sees of holes is as fine as on a local file system,
// and a page that is mapped is data as a whole or not at all.
const HoleUnit = 4096

// MaxHoles bounds the holes of one record: so a record has less than 1 KiB, and
// those of a commit fit a frame. Beyond it the smallest are stored as data.
const MaxHoles = 64

// A Hole is the bytes Lo <= i < Hi of a block, which read as zeros whatever the
// block's object has there. Both are multiples of [HoleUnit].
type Hole struct{ Lo, Hi uint32 }

// An Origin is the place for which a block's object was stored and by whose name
// it is found.
type Origin struct {
	Ino   Ino
	Index uint32
}

// Object returns the place by whose name the object of a block of ino is found:
// a cloned block's object stays where it was made.
func (b *Block) Object(ino Ino) Origin {
	if b.Origin != (Origin{}) {
		return b.Origin
	}
	return Origin{ino, b.Index}
}

// Bytes returns how many bytes are stored for the block: Len without the holes.
func (b *Block) Bytes() uint64 {
	n := uint64(b.Len)
	for _, h := range b.Holes {
		n -= min(n, uint64(h.Hi-h.Lo))
	}
	return n
}

// Cut shortens the block to at most n bytes, and by a hole that it would end
// with. It is a hole itself if nothing is left: Len is 0.
func (b *Block) Cut(n uint32) {
	if b.Len <= n {
		return
	}
	b.Len = n
	b.Holes = b.Holes[:len(b.Holes):len(b.Holes)] // others may have the same slice
	for len(b.Holes) > 0 && b.Holes[len(b.Holes)-1].Hi >= b.Len {
		last := b.Holes[len(b.Holes)-1]
		b.Holes = b.Holes[:len(b.Holes)-1]
		b.Len = min(b.Len, last.Lo)
	}
	if len(b.Holes) == 0 {
		b.Holes = nil
	}
	b.Data = b.Data[:min(len(b.Data), int(b.Len))]
}

// HolesFit reports whether the holes are as they must be: few, aligned, in
// ascending order and apart from each other, and with data after the last.
func (b *Block) HolesFit() bool {
	if len(b.Holes) > MaxHoles {
		return false
	}
	from := uint64(0)
	for i, h := range b.Holes {
		if i > 0 && uint64(h.Lo) == from || uint64(h.Lo) < from || h.Lo >= h.Hi || (h.Lo|h.Hi)%HoleUnit != 0 {
			return false
		}
		from = uint64(h.Hi)
	}
	return len(b.Holes) == 0 || from < uint64(b.Len)
}
