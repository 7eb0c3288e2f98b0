package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"flexfs/meta"
)

// Keys. Integers are big-endian, so that keys sort as numbers. Every key starts
// with the number of its volume (4 bytes; 0: of the server itself) and a byte
// that says of what kind it is. The forms are pinned: existing databases have
// them. docs/format/metadata.md draws them.
const (
	tableInode   = 'A' // A ino(8) kind(1) ...: all of an inode
	tableCounter = 'C' // C name
	tableDentry  = 'D' // D directory(8) name
	tableDelayed = 'G' // G due(8) kind(1) ...
	tableHistory = 'H' // H key 0 second(8)
	tableShared  = 'R' // R ino(8) index(4) session(8) seq(8): how often the object is named
	tableSession = 'S' // S session(8) kind(1) ...
	tableVolume  = 'V' // in volume 0: V uuid(16)

	ofAttr   = 0   // A ino 0
	ofBlock  = 'B' // A ino B index(4): of a file's first body
	ofBody   = 'C' // A ino C body(4) index(4): of a later one
	ofParent = 'P' // A ino P directory(8): while it has several names
	ofXattr  = 'X' // A ino X name

	ofSession = 0   // S session 0
	ofOpen    = 'O' // S session O ino(8): has this unlinked inode in use
	ofSlot    = 'R' // S session R slot(2)

	ofDelegation = 'D' // S session D ino(8): has this directory delegated

	delayedBlocks  = 'b' // G due b ino(8) change(8) part(2): objects to delete
	delayedBody    = 'c' // G due c ino(8) body(4): block records that a file has shed
	delayedHistory = 'h' // G due h key-of-H without the volume
	delayedInode   = 'i' // G due i ino(8): unlinked
	delayedTree    = 't' // G due t ino(8): a directory without a name that has entries, to be taken apart
	delayedCloned  = 'r' // G due r ino(8) change(8) part(2): references to objects of other inodes that end
)

// Names of counters.
const (
	counterBytes    = "b" // sum of Bytes of the inodes that have a name, added to
	counterInodes   = "i" // number of them, added to
	counterIno      = "n" // next inode number to lease
	counterReserved = "r" // likewise, of those that clients give
	counterSession  = "s" // next session number
	counterPast     = "h" // second since which history is complete; not there: it is not
	counterSecond   = "t" // the latest second in which something was changed
)

func (v *volume) key(table byte) []byte {
	b := make([]byte, 0, 40)
	b = binary.BigEndian.AppendUint32(b, v.num)
	return append(b, table)
}

func (v *volume) inoKey(ino meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(v.key(tableInode), uint64(ino))
}

func (v *volume) attrKey(ino meta.Ino) []byte { return append(v.inoKey(ino), ofAttr) }

// bodyKey is what the keys of a body's block records begin with.
func (v *volume) bodyKey(ino meta.Ino, body uint32) []byte {
	if body == 0 {
		return append(v.inoKey(ino), ofBlock)
	}
	return binary.BigEndian.AppendUint32(append(v.inoKey(ino), ofBody), body)
}

func (v *volume) blockKey(ino meta.Ino, body, index uint32) []byte {
	return binary.BigEndian.AppendUint32(v.bodyKey(ino, body), index)
}

func (v *volume) parentKey(ino, dir meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(append(v.inoKey(ino), ofParent), uint64(dir))
}

func (v *volume) xattrKey(ino meta.Ino, name string) []byte {
	return append(append(v.inoKey(ino), ofXattr), name...)
}

func (v *volume) sharedKey(r BlockRef) []byte {
	return appendRef(binary.BigEndian.AppendUint64(v.key(tableShared), uint64(r.Ino)), r)
}

func (v *volume) dentryKey(dir meta.Ino, name string) []byte {
	return append(binary.BigEndian.AppendUint64(v.key(tableDentry), uint64(dir)), name...)
}

func (v *volume) counterKey(name string) []byte { return append(v.key(tableCounter), name...) }

func (v *volume) sessionKey(id uint64, kind byte) []byte {
	return append(binary.BigEndian.AppendUint64(v.key(tableSession), id), kind)
}

func (v *volume) openKey(id uint64, ino meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(v.sessionKey(id, ofOpen), uint64(ino))
}

func (v *volume) delegationKey(id uint64, dir meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(v.sessionKey(id, ofDelegation), uint64(dir))
}

func (v *volume) slotKey(id uint64, slot uint16) []byte {
	return binary.BigEndian.AppendUint16(v.sessionKey(id, ofSlot), slot)
}

// historyKey is where the value is kept that key had just before second.
func (v *volume) historyKey(key []byte, second int64) []byte {
	return historyAt(key, second)
}

func (v *volume) delayedKey(due int64, kind byte) []byte {
	return append(binary.BigEndian.AppendUint64(v.key(tableDelayed), uint64(due)), kind)
}

func (v *volume) delayedInodeKey(due int64, ino meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(v.delayedKey(due, delayedInode), uint64(ino))
}

func (v *volume) delayedBodyKey(due int64, ino meta.Ino, body uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(v.delayedKey(due, delayedBody), uint64(ino)), body)
}

func volumeKey(id [16]byte) []byte { return append([]byte{0, 0, 0, 0, tableVolume}, id[:]...) }

// after returns the first key that does not start with prefix.
func after(prefix []byte) []byte {
	b := append([]byte(nil), prefix...)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return b[:i+1]
		}
	}
	return nil
}

// Values. Each starts with a version byte, but numbers that are added to.

var errValue = errors.New("a stored value has not the form it must have")

const attrLen = 114

// An inode is what A ino 0 says.
type inode struct {
	meta.Attr
	inline bool   // block 0 has its bytes in its record
	dead   bool   // its blocks are being deleted; nobody may have it again
	body   uint32 // where a file's block records are, see [change.shed]
}

const (
	flagInline = 1 << iota
	flagDead
	flagBody // the body follows, in the place of a target
)

func appendTime(b []byte, t meta.Time) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(t.Sec))
	return binary.BigEndian.AppendUint32(b, t.Nsec)
}

func parseTime(b []byte) meta.Time {
	return meta.Time{Sec: int64(binary.BigEndian.Uint64(b)), Nsec: binary.BigEndian.Uint32(b[8:])}
}

func (in *inode) encode() []byte {
	b := make([]byte, 0, attrLen+len(in.Target))
	var flags byte
	if in.inline {
		flags |= flagInline
	}
	if in.dead {
		flags |= flagDead
	}
	if in.body != 0 {
		flags |= flagBody
	}
	b = append(b, 1, flags)
	for _, n := range []uint32{in.Mode, in.Uid, in.Gid, in.Nlink, in.Rdev} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = binary.BigEndian.AppendUint64(b, in.Size)
	b = binary.BigEndian.AppendUint64(b, in.Bytes)
	for _, t := range []meta.Time{in.Atime, in.Mtime, in.Ctime, in.Btime} {
		b = appendTime(b, t)
	}
	b = binary.BigEndian.AppendUint64(b, in.Change)
	b = binary.BigEndian.AppendUint64(b, in.Data)
	b = binary.BigEndian.AppendUint64(b, uint64(in.Parent))
	b = binary.BigEndian.AppendUint32(b, in.Xattrs)
	if in.body != 0 {
		return binary.BigEndian.AppendUint32(b, in.body)
	}
	return append(b, in.Target...)
}

func decodeInode(ino meta.Ino, b []byte) (*inode, error) {
	if len(b) < attrLen || b[0] != 1 || b[1]&^(flagInline|flagDead|flagBody) != 0 || b[1]&flagBody != 0 && len(b) != attrLen+4 {
		return nil, fmt.Errorf("tree: attributes of inode %d: %w", ino, errValue)
	}
	in := &inode{inline: b[1]&flagInline != 0, dead: b[1]&flagDead != 0}
	in.Ino = ino
	for i, p := range []*uint32{&in.Mode, &in.Uid, &in.Gid, &in.Nlink, &in.Rdev} {
		*p = binary.BigEndian.Uint32(b[2+4*i:])
	}
	in.Size = binary.BigEndian.Uint64(b[22:])
	in.Bytes = binary.BigEndian.Uint64(b[30:])
	for i, p := range []*meta.Time{&in.Atime, &in.Mtime, &in.Ctime, &in.Btime} {
		*p = parseTime(b[38+12*i:])
	}
	in.Change = binary.BigEndian.Uint64(b[86:])
	in.Data = binary.BigEndian.Uint64(b[94:])
	in.Parent = meta.Ino(binary.BigEndian.Uint64(b[102:]))
	in.Xattrs = binary.BigEndian.Uint32(b[110:])
	rest := b[attrLen:]
	if b[1]&flagBody != 0 {
		in.body = binary.BigEndian.Uint32(rest)
	} else {
		in.Target = string(rest)
	}
	return in, nil
}

// Kinds of block records.
const (
	blockObject = 1 // 1 session(8) seq(8) len(4)
	blockInline = 2 // 2 session(8) seq(8) len(4) bytes
	blockPart   = 3 // 3 session(8) seq(8) len(4) origin-ino(8) origin-index(4) holes: an object with holes or of another place
)

const (
	blockLen  = 21             // of an object's record
	originLen = 12             // of the origin
	holeLen   = 4              // of a hole: lo(2) hi(2) in units
	maxUnits  = math.MaxUint16 // that a hole's ends may be at
)

func encodeBlock(k *meta.Block) []byte {
	b := make([]byte, 0, blockLen+originLen+holeLen*len(k.Holes)+len(k.Data))
	kind := byte(blockObject)
	switch {
	case k.Inline:
		kind = blockInline
	case len(k.Holes) > 0 || k.Origin != (meta.Origin{}):
		kind = blockPart
	}
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, k.Gen.Session)
	b = binary.BigEndian.AppendUint64(b, k.Gen.Seq)
	b = binary.BigEndian.AppendUint32(b, k.Len)
	if kind != blockPart {
		return append(b, k.Data...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(k.Origin.Ino))
	b = binary.BigEndian.AppendUint32(b, k.Origin.Index)
	for _, h := range k.Holes {
		b = binary.BigEndian.AppendUint16(b, uint16(h.Lo/meta.HoleUnit))
		b = binary.BigEndian.AppendUint16(b, uint16(h.Hi/meta.HoleUnit))
	}
	return b
}

func decodeBlock(index uint32, b []byte) (*meta.Block, error) {
	if len(b) < blockLen {
		return nil, badBlock(index)
	}
	k := &meta.Block{
		Index: index,
		Gen:   meta.Gen{Session: binary.BigEndian.Uint64(b[1:]), Seq: binary.BigEndian.Uint64(b[9:])},
		Len:   binary.BigEndian.Uint32(b[17:]),
	}
	rest := b[blockLen:]
	switch b[0] {
	case blockObject:
		if len(rest) > 0 {
			return nil, badBlock(index)
		}
		return k, nil
	case blockInline:
		k.Inline = true
		k.Data = append([]byte(nil), rest...)
		if len(k.Data) > int(k.Len) {
			return nil, badBlock(index)
		}
		return k, nil
	case blockPart:
		if len(rest) < originLen || len(rest)%holeLen != 0 { // an origin is as long as three holes
			return nil, badBlock(index)
		}
		k.Origin = meta.Origin{Ino: meta.Ino(binary.BigEndian.Uint64(rest)), Index: binary.BigEndian.Uint32(rest[8:])}
		for rest = rest[originLen:]; len(rest) > 0; rest = rest[holeLen:] {
			k.Holes = append(k.Holes, meta.Hole{
				Lo: uint32(binary.BigEndian.Uint16(rest)) * meta.HoleUnit,
				Hi: uint32(binary.BigEndian.Uint16(rest[2:])) * meta.HoleUnit,
			})
		}
		if !k.HolesFit() || len(k.Holes) == 0 && k.Origin == (meta.Origin{}) {
			return nil, badBlock(index)
		}
		return k, nil
	}
	return nil, badBlock(index)
}

func badBlock(index uint32) error {
	return fmt.Errorf("tree: record of block %d: %w", index, errValue)
}

// A dentry is what a name stands for: ino(8) type(1), the type as in st_mode
// shifted right by 12.
type dentry struct {
	ino meta.Ino
	typ uint32 // as in st_mode
}

func (d dentry) encode() []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(d.ino)), byte(d.typ>>12))
}

func decodeDentry(b []byte) (dentry, error) {
	if len(b) != 9 {
		return dentry{}, fmt.Errorf("tree: directory entry: %w", errValue)
	}
	return dentry{meta.Ino(binary.BigEndian.Uint64(b)), uint32(b[8]) << 12}, nil
}

// A BlockRef names an object of a volume.
type BlockRef struct {
	Ino   meta.Ino
	Index uint32
	Gen   meta.Gen
}

// refOf names the object of a block of ino.
func refOf(ino meta.Ino, k *meta.Block) BlockRef {
	o := k.Object(ino)
	return BlockRef{o.Ino, o.Index, k.Gen}
}

const (
	refLen    = 20         // index(4) session(8) seq(8)
	clonedLen = 8 + refLen // ino(8) and that
)

func appendRef(b []byte, r BlockRef) []byte {
	b = binary.BigEndian.AppendUint32(b, r.Index)
	b = binary.BigEndian.AppendUint64(b, r.Gen.Session)
	return binary.BigEndian.AppendUint64(b, r.Gen.Seq)
}

func decodeRefs(ino meta.Ino, b []byte) ([]BlockRef, error) {
	if len(b) == 0 || len(b)%refLen != 0 {
		return nil, fmt.Errorf("tree: blocks to delete of inode %d: %w", ino, errValue)
	}
	var refs []BlockRef
	for ; len(b) > 0; b = b[refLen:] {
		refs = append(refs, BlockRef{ino, binary.BigEndian.Uint32(b), meta.Gen{
			Session: binary.BigEndian.Uint64(b[4:]), Seq: binary.BigEndian.Uint64(b[12:])}})
	}
	return refs, nil
}

// decodeCloned is decodeRefs for objects of other inodes.
func decodeCloned(b []byte) ([]BlockRef, error) {
	if len(b) == 0 || len(b)%clonedLen != 0 {
		return nil, fmt.Errorf("tree: references that end: %w", errValue)
	}
	var refs []BlockRef
	for ; len(b) > 0; b = b[clonedLen:] {
		one, err := decodeRefs(meta.Ino(binary.BigEndian.Uint64(b)), b[8:clonedLen])
		if err != nil {
			return nil, err
		}
		refs = append(refs, one...)
	}
	return refs, nil
}

func appendCloned(b []byte, r BlockRef) []byte {
	return appendRef(binary.BigEndian.AppendUint64(b, uint64(r.Ino)), r)
}
