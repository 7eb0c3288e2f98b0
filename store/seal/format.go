package seal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"flexfs/store"
)

// The form of a sealed block, version 1. It is pinned: blocks in existing
// buckets have it. docs/format/block.md has the picture. Integers are
// big-endian.
//
//	 0  magic "FLXB"
//	 4  version (1)
//	 5  codec
//	 6  cipher
//	 7  log2 of the frame size
//	 8  plain length (4)
//	12  number of frames (4)
//	16  volume (16), ino (8), index (4), session (8), seq (8)
//	60  nonce (12)
//	72  per frame: top bit "stored as it is", stored length (4); crc32c of the stored bytes (4)
//	    tag (16), of an encrypted block only
//	    crc32c of everything before (4)
//	    the frames
const (
	magic   = "FLXB"
	version = 1

	fixedLen = 72 // of the head, before the frame table
	entryLen = 8  // of the frame table
	nonceAt  = 60
	nonceLen = 12
	tagLen   = 16 // GCM's
	crcLen   = 4

	frameLog   = 17            // of the frames that are written
	frameSize  = 1 << frameLog // 128 KiB
	minLog     = 16            // of the frames that are read
	maxLog     = 23
	storedAsIs = 1 << 31
)

// MaxHead is a bound on the length of a head: the first MaxHead bytes of a
// sealed block contain its head.
const MaxHead = 4096

// MaxSealed is a bound on the length of a sealed block.
const MaxSealed = store.MaxBlock + MaxHead

const (
	cipherNone = 0
	cipherGCM  = 1 // AES-256-GCM
)

// A Head describes a sealed block. What it says has been checked against the
// head's checksum and for sense, but on an encrypted block not yet against the
// secret.
type Head struct {
	key    store.Key
	codec  Codec
	cipher byte
	log    uint8
	plain  uint32
	nonce  [nonceLen]byte
	frames []frame
	raw    []byte // a copy of the head's own bytes
}

type frame struct {
	off  int64  // of the stored bytes, from the start of the block
	len  uint32 // of the stored bytes
	asIs bool   // not compressed
	crc  uint32 // of the stored bytes
}

func corrupt(key store.Key, format string, args ...any) error {
	return fmt.Errorf("seal: block %v: %s: %w", key, fmt.Sprintf(format, args...), store.ErrCorrupt)
}

func badHead(format string, args ...any) error {
	return fmt.Errorf("seal: %s: %w", fmt.Sprintf(format, args...), store.ErrCorrupt)
}

// ParseHead parses the head that b begins with. b may be longer than the head;
// [MaxHead] bytes, or the whole block if it is shorter, are always enough. Any
// error wraps [store.ErrCorrupt].
func ParseHead(b []byte) (*Head, error) {
	if len(b) < fixedLen+crcLen || string(b[:4]) != magic {
		return nil, badHead("not a sealed block (%d bytes)", len(b))
	}
	if b[4] != version {
		return nil, badHead("block format version %d: damaged, or written by a newer flexfs", b[4])
	}
	h := &Head{codec: Codec(b[5]), cipher: b[6], log: b[7], plain: binary.BigEndian.Uint32(b[8:])}
	count := binary.BigEndian.Uint32(b[12:])
	switch {
	case h.codec > Zstd:
		return nil, badHead("unknown codec %d", b[5])
	case h.cipher > cipherGCM:
		return nil, badHead("unknown cipher %d", b[6])
	case h.log < minLog || h.log > maxLog:
		return nil, badHead("frames of 2^%d bytes", h.log)
	case h.plain > store.MaxBlock:
		return nil, badHead("a block of %d bytes", h.plain)
	case count != frameCount(h.plain, h.log):
		return nil, badHead("%d frames for %d bytes", count, h.plain)
	}
	end := fixedLen + int(count)*entryLen
	if h.cipher != cipherNone {
		end += tagLen
	}
	if len(b) < end+crcLen {
		return nil, badHead("a head of %d bytes was cut off after %d", end+crcLen, len(b))
	}
	if binary.BigEndian.Uint32(b[end:]) != checksum(b[:end]) {
		return nil, badHead("the head fails its checksum")
	}
	h.raw = append([]byte(nil), b[:end+crcLen]...)
	h.key = readKey(b[16:])
	copy(h.nonce[:], b[nonceAt:])
	return h, h.parseTable()
}

// parseTable reads the frame table from h.raw.
func (h *Head) parseTable() error {
	h.frames = make([]frame, frameCount(h.plain, h.log))
	off := int64(len(h.raw))
	for i := range h.frames {
		entry := h.raw[fixedLen+i*entryLen:]
		size := binary.BigEndian.Uint32(entry)
		f := frame{off: off, len: size &^ storedAsIs, asIs: size&storedAsIs != 0, crc: binary.BigEndian.Uint32(entry[4:])}
		packed := int64(f.len) - h.overhead()
		if plain := int64(h.plainLen(i)); packed < 0 || packed > plain || f.asIs && packed != plain {
			return badHead("frame %d of %d bytes is stored in %d", i, plain, f.len)
		}
		h.frames[i] = f
		off += int64(f.len)
	}
	return nil
}

// overhead is what the cipher adds to each frame.
func (h *Head) overhead() int64 {
	if h.cipher == cipherNone {
		return 0
	}
	return tagLen
}

func frameCount(plain uint32, log uint8) uint32 {
	return (plain + 1<<log - 1) >> log
}

// plainLen returns the length of frame i before it was stored.
func (h *Head) plainLen(i int) int {
	start := i << h.log
	return min(1<<h.log, int(h.plain)-start)
}

// Key returns the key of the block.
func (h *Head) Key() store.Key { return h.key }

// Len returns the length of the head itself.
func (h *Head) Len() int { return len(h.raw) }

// Bytes returns the head as it is in the sealed block. The caller must not
// change them.
func (h *Head) Bytes() []byte { return h.raw }

// PlainLen returns the length of the plain block.
func (h *Head) PlainLen() int64 { return int64(h.plain) }

// SealedLen returns the length of the sealed block, head included.
func (h *Head) SealedLen() int64 {
	if len(h.frames) == 0 {
		return int64(len(h.raw))
	}
	last := h.frames[len(h.frames)-1]
	return last.off + int64(last.len)
}

// Span returns where in the sealed block the frames are that hold the n plain
// bytes from off, or all from off if n is negative. The two are equal if the
// block does not reach past off, or n is 0.
func (h *Head) Span(off, n int64) (from, to int64) {
	first, last := h.cover(off, n)
	if first == last {
		return h.SealedLen(), h.SealedLen()
	}
	end := h.frames[last-1]
	return h.frames[first].off, end.off + int64(end.len)
}

// cover returns the frames [first, last) that hold the plain bytes.
func (h *Head) cover(off, n int64) (first, last int) {
	plain := int64(h.plain)
	if off < 0 || off >= plain || n == 0 {
		return 0, 0
	}
	end := plain
	if n >= 0 && n < plain-off {
		end = off + n
	}
	return int(off >> h.log), int((end-1)>>h.log) + 1
}

// asIs reports whether none of the frames [first, last) is compressed.
func (h *Head) asIs(first, last int) bool {
	for _, f := range h.frames[first:last] {
		if !f.asIs {
			return false
		}
	}
	return true
}

// Check tests frames, the bytes that [Head.Span] tells for off and n, against
// their length and checksums.
func (h *Head) Check(frames []byte, off, n int64) error {
	from, to := h.Span(off, n)
	if int64(len(frames)) != to-from {
		return corrupt(h.key, "%d bytes of frames came where %d were wanted", len(frames), to-from)
	}
	first, last := h.cover(off, n)
	for i := first; i < last; i++ {
		f := h.frames[i]
		if checksum(frames[f.off-from:][:f.len]) != f.crc {
			return corrupt(h.key, "frame %d fails its checksum", i)
		}
	}
	return nil
}

// Verify tests a whole sealed block: that it is key's, is complete, and agrees
// with its checksums. It needs no secret, and returns the CRC-32C of all of it. Any
// error wraps [store.ErrCorrupt].
func Verify(key store.Key, sealed []byte) (sum uint32, err error) {
	h, err := complete(key, sealed)
	if err != nil {
		return 0, err
	}
	return h.sum(), h.Check(sealed[h.Len():], 0, -1)
}

// complete parses the head of a block that should be key's and as long as it says.
func complete(key store.Key, sealed []byte) (*Head, error) {
	h, err := headOf(key, sealed)
	if err == nil && int64(len(sealed)) != h.SealedLen() {
		err = corrupt(key, "%d bytes long, should be %d", len(sealed), h.SealedLen())
	}
	return h, err
}

// sum returns the CRC-32C of the whole sealed block, which follows from those of
// its parts.
func (h *Head) sum() uint32 {
	sum := checksum(h.raw)
	for _, f := range h.frames {
		sum = joinSums(sum, f.crc, int(f.len))
	}
	return sum
}

// headOf parses the head of a block that should be key's.
func headOf(key store.Key, b []byte) (*Head, error) {
	h, err := ParseHead(b)
	if err != nil {
		return nil, fmt.Errorf("block %v: %w", key, err)
	}
	if h.key != key {
		return nil, corrupt(key, "it is the block %v", h.key)
	}
	return h, nil
}

// appendFixed appends the fixed part of a head, with a nonce of zeros.
func appendFixed(b []byte, key store.Key, codec Codec, cipher byte, plain int) []byte {
	b = append(b, magic...)
	b = append(b, version, byte(codec), cipher, frameLog)
	b = binary.BigEndian.AppendUint32(b, uint32(plain))
	b = binary.BigEndian.AppendUint32(b, frameCount(uint32(plain), frameLog))
	b = appendKey(b, key)
	return append(b, make([]byte, nonceLen)...)
}

// keyLen is the length of what appendKey appends.
const keyLen = 16 + 8 + 4 + 8 + 8

func appendKey(b []byte, key store.Key) []byte {
	b = append(b, key.Volume[:]...)
	b = binary.BigEndian.AppendUint64(b, key.Ino)
	b = binary.BigEndian.AppendUint32(b, key.Index)
	b = binary.BigEndian.AppendUint64(b, key.Gen.Session)
	return binary.BigEndian.AppendUint64(b, key.Gen.Seq)
}

func readKey(b []byte) store.Key {
	var key store.Key
	copy(key.Volume[:], b)
	key.Ino = binary.BigEndian.Uint64(b[16:])
	key.Index = binary.BigEndian.Uint32(b[24:])
	key.Gen.Session = binary.BigEndian.Uint64(b[28:])
	key.Gen.Seq = binary.BigEndian.Uint64(b[36:])
	return key
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
