// Package seal is the layer between plain blocks and the bytes that leave a
// client: it compresses, encrypts and adds checksums.
//
// A sealed block is a head and frames. Each frame holds 128 KiB of the plain
// block and is compressed and encrypted on its own, so a range of a block needs
// only the frames it lies in. The head says where they are.
//
// On an encrypted volume, keys are derived from the user's secret, which never
// leaves the client; whoever keeps the blocks can check that they are undamaged
// ([Verify]) but can neither read nor forge them.
package seal

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"

	"flexfs/store"
)

// Options say how blocks are sealed. Blocks sealed with any codec can be read
// under any; encrypted and plain blocks do not mix.
type Options struct {
	Codec  Codec
	Secret []byte // empty: blocks are not encrypted
}

// A Sealer seals and opens blocks. All methods may be called concurrently.
type Sealer struct {
	codec   Codec
	keys    *keyring // nil: no encryption
	work    compressors
	scratch sync.Pool // of *[]byte with room for one frame and tag
}

// NewSealer returns a Sealer.
func NewSealer(opt Options) *Sealer {
	s := &Sealer{codec: opt.Codec}
	if len(opt.Secret) > 0 {
		s.keys = newKeyring(opt.Secret)
	}
	return s
}

// Encode appends the sealed form of plain to dst. The same key and bytes give
// the same sealed form.
func (s *Sealer) Encode(dst []byte, key store.Key, plain []byte) ([]byte, error) {
	b, _, err := s.encode(dst, key, plain)
	return b, err
}

// encode is Encode, and returns the CRC-32C of the sealed form as well.
func (s *Sealer) encode(dst []byte, key store.Key, plain []byte) ([]byte, uint32, error) {
	if len(plain) > store.MaxBlock {
		return dst, 0, fmt.Errorf("seal: block %v of %d bytes is longer than %d", key, len(plain), store.MaxBlock)
	}
	count := int(frameCount(uint32(len(plain)), frameLog))
	cipherID, headLen, overhead := byte(cipherNone), Room(len(plain)), 0
	if s.keys != nil {
		cipherID, headLen, overhead = cipherGCM, headLen+tagLen, tagLen
	}
	b := sized(dst, headLen+len(plain)+count*overhead)
	base := len(dst)
	head := appendFixed(b[base:base], key, s.codec, cipherID, len(plain))

	// Compress, each frame to its final place, with room for its tag behind.
	frames := make([][]byte, count)
	at := base + headLen
	for i := range frames {
		part := plain[i<<frameLog:]
		part = part[:min(len(part), frameSize)]
		n, asIs, err := s.pack(b[at:at+len(part)], part)
		if err != nil {
			return dst, 0, err
		}
		head = appendEntry(head, n+overhead, asIs)
		frames[i] = b[at : at+n]
		at += n + overhead
	}
	sum, err := s.finish(head, key, frames, func(i int) uint32 { return checksum(frames[i]) })
	if err != nil {
		return dst, 0, err
	}
	return b[:at], sum, nil
}

// Room returns how many bytes there must be before a block of n bytes for it to be
// sealed where it is.
func Room(n int) int {
	return fixedLen + int(frameCount(uint32(n), frameLog))*entryLen + crcLen
}

// inPlace seals a block where it is, if none of it is to be compressed or
// encrypted: then the sealed form is a head in the room before it. It
// returns that and its CRC-32C, or nil.
func (s *Sealer) inPlace(key store.Key, l *store.Loan) (sealed []byte, sum uint32, err error) {
	mem, room := l.Room()
	plain := mem[room:]
	from := room - Room(len(plain))
	if s.keys != nil || from < 0 || len(plain) > store.MaxBlock || len(plain)%frameSize != 0 {
		return nil, 0, nil
	}
	frames := make([][]byte, len(plain)/frameSize)
	for i := range frames {
		frames[i] = plain[i<<frameLog:][:frameSize]
		if gains, err := s.work.gains(s.codec, frames[i]); gains || err != nil {
			return nil, 0, err
		}
	}
	head := appendFixed(mem[from:from:room], key, s.codec, cipherNone, len(plain))
	for range frames {
		head = appendEntry(head, frameSize, true)
	}
	sum, err = s.finish(head, key, frames, func(i int) uint32 {
		if sum, ok := partsSum(l, i); ok {
			return sum
		}
		return checksum(frames[i])
	})
	return mem[from:], sum, err
}

// appendEntry appends an entry of the frame table, whose checksum is not known yet:
// see finish.
func appendEntry(head []byte, n int, asIs bool) []byte {
	size := uint32(n)
	if asIs {
		size |= storedAsIs
	}
	head = binary.BigEndian.AppendUint32(head, size)
	return append(head, 0, 0, 0, 0)
}

// sized returns dst with its length unchanged and room for n more bytes, and
// resliced to all of it.
func sized(dst []byte, n int) []byte {
	if cap(dst)-len(dst) < n {
		grown := make([]byte, len(dst), len(dst)+n)
		copy(grown, dst)
		dst = grown
	}
	return dst[:len(dst)+n]
}

// pack stores one frame at the start of dst, compressed if that is worth it, and
// returns its length there. dst is as long as the frame.
func (s *Sealer) pack(dst, plain []byte) (n int, asIs bool, err error) {
	packed, ok, err := s.work.compress(s.codec, dst[:0], plain)
	if err != nil {
		return 0, false, err
	}
	if ok {
		return copy(dst, packed), false, nil // copies only if packed moved away
	}
	return copy(dst, plain), true, nil
}

// finish encrypts the frames in place, and completes the head: nonce,
// checksums, tag. Behind each frame there is room for a tag, if it is encrypted. It
// returns the CRC-32C of all, with those of the frames from sumOf.
func (s *Sealer) finish(head []byte, key store.Key, frames [][]byte, sumOf func(i int) uint32) (uint32, error) {
	var aead cipher.AEAD
	var nonce [nonceLen]byte
	if s.keys != nil {
		keys := s.keys.of(key.Volume)
		nonce = keys.syntheticNonce(head, frames)
		copy(head[nonceAt:], nonce[:])
		var err error
		if aead, err = keys.aead(key); err != nil {
			return 0, err
		}
	}
	entries := head[fixedLen:]
	for i, f := range frames {
		if aead != nil {
			f = aead.Seal(f[:0:len(f)+tagLen], nonceFor(nonce, uint32(i)), f, nil)
			frames[i] = f
		}
		binary.BigEndian.PutUint32(entries[i*entryLen+4:], sumOf(i))
	}
	if aead != nil {
		head = aead.Seal(head, nonceFor(nonce, headNonce), nil, head)
	}
	head = binary.BigEndian.AppendUint32(head, checksum(head)) // lands in the room before the frames
	sum := checksum(head)
	for i, f := range frames {
		sum = joinSums(sum, binary.BigEndian.Uint32(entries[i*entryLen+4:]), len(f))
	}
	return sum, nil
}

// Decode returns the plain block. A damaged block, or one that is not key's, is
// an error that wraps [store.ErrCorrupt].
func (s *Sealer) Decode(key store.Key, sealed []byte) ([]byte, error) {
	return s.decode(key, sealed, true)
}

// decode is Decode, with or without a look at the checksums of the frames.
func (s *Sealer) decode(key store.Key, sealed []byte, check bool) ([]byte, error) {
	h, err := complete(key, sealed)
	if err != nil {
		return nil, err
	}
	if check {
		if err := h.Check(sealed[h.Len():], 0, -1); err != nil {
			return nil, err
		}
	}
	aead, err := s.admit(h)
	if err != nil {
		return nil, err
	}
	return s.open(h, aead, sealed[h.Len():], 0, -1)
}

// admit checks that the head is one that this Sealer may trust, and returns the
// block's cipher, or nil.
func (s *Sealer) admit(h *Head) (cipher.AEAD, error) {
	if s.keys == nil {
		if h.cipher != cipherNone {
			return nil, fmt.Errorf("seal: block %v is encrypted, and no secret was given: %w", h.key, ErrSecret)
		}
		return nil, nil
	}
	if h.cipher == cipherNone {
		return nil, corrupt(h.key, "it is not encrypted, though the volume is")
	}
	aead, err := s.keys.of(h.key.Volume).aead(h.key)
	if err != nil {
		return nil, err
	}
	signed := h.raw[:len(h.raw)-crcLen-tagLen]
	tag := h.raw[len(signed) : len(h.raw)-crcLen]
	if _, err := aead.Open(nil, nonceFor(h.nonce, headNonce), tag, signed); err != nil {
		return nil, fmt.Errorf("seal: block %v: %w", h.key, ErrSecret)
	}
	return aead, nil
}

// open returns the n plain bytes from off, which frames cover exactly. The
// head was admitted, and the frames agree with their checksums. Where nothing is
// compressed or encrypted they are a part of frames.
func (s *Sealer) open(h *Head, aead cipher.AEAD, frames []byte, off, n int64) ([]byte, error) {
	first, last := h.cover(off, n)
	if first == last {
		return nil, nil
	}
	end := int64(h.plain)
	if n >= 0 && n < end-off {
		end = off + n
	}
	if aead == nil && h.asIs(first, last) {
		return store.Clip(frames, off-int64(first)<<h.log, end-off), nil
	}
	out := make([]byte, end-off)
	from := h.frames[first].off
	for i := first; i < last; i++ {
		f := h.frames[i]
		stored := frames[f.off-from:][:f.len]
		start := int64(i) << h.log // of the frame in the plain block
		lo, hi := max(off, start), min(end, start+int64(h.plainLen(i)))
		part := out[lo-off : hi-off]
		if err := s.openFrame(h, aead, i, stored, part, int(lo-start)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// openFrame fills part with the plain bytes of frame i from skip on.
func (s *Sealer) openFrame(h *Head, aead cipher.AEAD, i int, stored, part []byte, skip int) error {
	f, plainLen := h.frames[i], h.plainLen(i)
	whole := len(part) == plainLen
	if aead != nil {
		room, free := s.room(int(f.len))
		defer free()
		into := room[:0]
		if f.asIs && whole {
			into = part[:0]
		}
		packed, err := aead.Open(into, nonceFor(h.nonce, uint32(i)), stored, nil)
		if err != nil {
			return corrupt(h.key, "frame %d was tampered with", i)
		}
		stored = packed
	}
	if f.asIs {
		copy(part, stored[skip:])
		return nil
	}
	into := part
	if !whole {
		room, free := s.room(plainLen)
		defer free()
		into = room
	}
	if err := s.work.decompress(h.codec, into, stored); err != nil {
		return corrupt(h.key, "frame %d: %v", i, err)
	}
	if !whole {
		copy(part, into[skip:])
	}
	return nil
}

// room returns n bytes of working memory, to be given back with free.
func (s *Sealer) room(n int) (room []byte, free func()) {
	p, _ := s.scratch.Get().(*[]byte)
	if p == nil || cap(*p) < n {
		b := make([]byte, max(n, frameSize+tagLen))
		p = &b
	}
	return (*p)[:n], func() { s.scratch.Put(p) }
}
