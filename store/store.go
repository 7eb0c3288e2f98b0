// Package store defines how blocks are named and kept.
//
// A [Key] names bytes that never change: an overwrite of a file's block is a
// new key. So no cache is ever invalidated, and whatever holds blocks (a bucket,
// a directory, memory, a disk cache, a proxy group, a layer that seals or
// retries) is a [Store]; they nest. Package storetest examines them all.
package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrNotExist is wrapped by the error of a Get for a block that is not there.
var ErrNotExist = errors.New("block does not exist")

// ErrCorrupt is wrapped by the error of a Get whose bytes fail their checksum
// or belong to another key.
var ErrCorrupt = errors.New("block is corrupt")

// MaxBlock is the largest plain block, in bytes. A sealed block may be longer
// by its header; see package seal.
const MaxBlock = 8 << 20

// A Volume identifies a volume: the 16 bytes of its UUID.
type Volume [16]byte

// ParseVolume parses the usual form of a UUID, in lower case.
func ParseVolume(s string) (Volume, error) {
	var v Volume
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || strings.ToLower(s) != s {
		return v, fmt.Errorf("store: %q is not a volume id (a lower-case UUID)", s)
	}
	if _, err := hex.Decode(v[:], []byte(strings.ReplaceAll(s, "-", ""))); err != nil {
		return v, fmt.Errorf("store: %q is not a volume id (a lower-case UUID)", s)
	}
	return v, nil
}

// String returns the usual form of the UUID.
func (v Volume) String() string {
	h := hex.EncodeToString(v[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// A Gen tells the versions of one block apart. A session of the metadata
// service numbers the blocks that it writes; session numbers are never given
// out twice within a volume, so neither is a Gen.
type Gen struct {
	Session uint64
	Seq     uint64
}

// A Key names one immutable version of one block of one file.
type Key struct {
	Volume Volume
	Ino    uint64 // inode number
	Index  uint32 // of the block within the file
	Gen    Gen
}

// String returns the key's name in a bucket, below the volume's prefix:
//
//	{volume id}/{spread}/{ino}/{index}/{session}-{seq}
//
// with all numbers but the volume's in lower-case hexadecimal without leading
// zeros. {spread} is 4 digits that depend on the inode only: they spread a
// bucket's request load over prefixes and keep one file's blocks listable. The
// form is pinned: names in existing buckets have it.
func (k Key) String() string {
	b := make([]byte, 0, 36+1+4+1+16+1+8+1+16+1+16)
	b = append(b, k.Volume.String()...)
	b = append(b, '/')
	s := strconv.FormatUint(mix(k.Ino)>>48, 16)
	b = append(b, "0000"[len(s):]...)
	b = append(b, s...)
	b = append(b, '/')
	b = strconv.AppendUint(b, k.Ino, 16)
	b = append(b, '/')
	b = strconv.AppendUint(b, uint64(k.Index), 16)
	b = append(b, '/')
	b = strconv.AppendUint(b, k.Gen.Session, 16)
	b = append(b, '-')
	b = strconv.AppendUint(b, k.Gen.Seq, 16)
	return string(b)
}

// ParseKey parses what [Key.String] returns, and nothing else.
func ParseKey(s string) (Key, error) {
	var k Key
	bad := fmt.Errorf("store: %q is not a block key", s)
	part := strings.Split(s, "/")
	if len(part) != 5 {
		return k, bad
	}
	session, seq, ok := strings.Cut(part[4], "-")
	if !ok {
		return k, bad
	}
	var errs [5]error
	k.Volume, errs[0] = ParseVolume(part[0])
	k.Ino, errs[1] = strconv.ParseUint(part[2], 16, 64)
	index, err := strconv.ParseUint(part[3], 16, 32)
	k.Index, errs[2] = uint32(index), err
	k.Gen.Session, errs[3] = strconv.ParseUint(session, 16, 64)
	k.Gen.Seq, errs[4] = strconv.ParseUint(seq, 16, 64)
	if errors.Join(errs[:]...) != nil || k.String() != s {
		return Key{}, bad
	}
	return k, nil
}

// Hash returns what rendezvous hashing places a block by. It does not depend on
// Gen: the versions of a block have the same owners. It is part of the protocol
// between clients and proxies: two builds that differ in it disagree on where
// blocks are.
func (k Key) Hash() uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for i := 0; i < 16; i += 8 {
		var w uint64
		for j := range 8 {
			w = w<<8 | uint64(k.Volume[i+j])
		}
		h = mix(h ^ w)
	}
	h = mix(h ^ k.Ino)
	return mix(h ^ uint64(k.Index))
}

// mix is the finaliser of MurmurHash3 (fmix64, Austin Appleby, public domain).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}

// A Store holds blocks. All methods may be called concurrently.
//
// A Store neither keeps nor changes data after Put returns, and the caller must
// not change what Get returned: it may be shared with a cache.
type Store interface {
	// Get returns the n bytes of the block that start at off, or all to its
	// end if n is negative. Where the block ends earlier the result is
	// shorter, and empty if the block does not reach past off. A block that
	// is not there is an error that wraps [ErrNotExist], a damaged one an
	// error that wraps [ErrCorrupt].
	Get(ctx context.Context, key Key, off, n int64) ([]byte, error)

	// Put stores a block. When it returns nil the block is durable, and every
	// Get that starts later, by whatever client, finds it. Putting the same
	// bytes again succeeds, so a Put that failed may be retried.
	Put(ctx context.Context, key Key, data []byte) error

	// Delete removes a block. Deleting a missing block succeeds.
	Delete(ctx context.Context, key Key) error
}

// A Lister is a Store that can enumerate its blocks. Only the collector of
// garbage and the checker ask.
type Lister interface {
	// List calls fn for each block of the volume, in no particular order,
	// until fn fails. It needs little memory, however many there are. A block
	// that is put or deleted meanwhile may be listed or not, every other one is
	// listed once. fn may delete blocks.
	List(ctx context.Context, volume Volume, fn func(Listed) error) error
}

// A Listed is a block that a [Lister] found.
type Listed struct {
	Key      Key
	Size     int64     // bytes, as stored
	Modified time.Time // when it was put, by the clock of whoever keeps it
}

// List asks s for its blocks if it is a [Lister], and otherwise returns
// [errors.ErrUnsupported].
func List(ctx context.Context, s Store, volume Volume, fn func(Listed) error) error {
	if l, ok := s.(Lister); ok {
		return l.List(ctx, volume, fn)
	}
	return errors.ErrUnsupported
}

// A BulkDeleter is a Store that removes many blocks with few requests.
type BulkDeleter interface {
	// DeleteAll removes the blocks; missing ones are no error. If it fails,
	// some may be gone; it may be called again.
	DeleteAll(ctx context.Context, keys []Key) error
}

// A FrameGetter is a Store of sealed blocks (package seal) that answers a range
// of a block's plain bytes with one request: it knows where the frames that hold
// the range are.
type FrameGetter interface {
	// GetFrames returns the block's head, and the bytes of just those frames
	// that hold the n plain bytes from off, or all from off if n is negative.
	// Frames is empty if the block does not reach past off. Errors are those
	// of Get. An error that wraps [errors.ErrUnsupported] says that this Store,
	// or this block, cannot be read so: the caller then reads ranges with Get.
	GetFrames(ctx context.Context, key Key, off, n int64) (head, frames []byte, err error)
}

// GetFrames asks s for frames if it is a [FrameGetter], and otherwise returns
// [errors.ErrUnsupported]. Wrappers pass the question on with it.
func GetFrames(ctx context.Context, s Store, key Key, off, n int64) (head, frames []byte, err error) {
	if f, ok := s.(FrameGetter); ok {
		return f.GetFrames(ctx, key, off, n)
	}
	return nil, nil, errors.ErrUnsupported
}

// A Peeker is a Store that has some blocks in memory.
type Peeker interface {
	// Peek is a Get that waits for nothing: it reports false for bytes that are
	// not in memory.
	Peek(key Key, off, n int64) ([]byte, bool)
}

// Peek asks s for bytes that it has in memory, if it is a [Peeker].
func Peek(s Store, key Key, off, n int64) ([]byte, bool) {
	if p, ok := s.(Peeker); ok {
		return p.Peek(key, off, n)
	}
	return nil, false
}

// A Checker is a Store of sealed blocks that has compared a block with its
// checksums when a Get of all of it returns, so that nobody above needs to.
type Checker interface{ ChecksWhole() }

// DeleteAll removes blocks from s, in bulk if s can.
func DeleteAll(ctx context.Context, s Store, keys []Key) error {
	if b, ok := s.(BulkDeleter); ok {
		return b.DeleteAll(ctx, keys)
	}
	for _, key := range keys {
		if err := s.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// A DirtyBlock is a block that was acknowledged to its writer and that the bucket
// is not known to have yet. Who holds one keeps it on stable storage until then.
type DirtyBlock struct {
	Key   Key
	Size  int64     // bytes, sealed
	Since time.Time // when it was put here, to the second at least; of an earlier run too
}

type verifyKey struct{}

// WithVerify returns a context that asks caches on the way to check a copy
// against its checksums before they answer from it, and to drop it and go on if
// it fails. A reader that got a corrupt block tries again with it.
func WithVerify(ctx context.Context) context.Context {
	return context.WithValue(ctx, verifyKey{}, true)
}

// MustVerify reports whether ctx comes from [WithVerify].
func MustVerify(ctx context.Context) bool {
	v, _ := ctx.Value(verifyKey{}).(bool)
	return v
}

type localKey struct{}

// WithLocal returns a context that asks caches on the way to answer a Get from
// what they hold themselves: what they would have to ask others for does not
// exist. A proxy asks another one so, which must not go on to a third.
func WithLocal(ctx context.Context) context.Context {
	return context.WithValue(ctx, localKey{}, true)
}

// IsLocal reports whether ctx comes from [WithLocal].
func IsLocal(ctx context.Context) bool {
	v, _ := ctx.Value(localKey{}).(bool)
	return v
}

// Clip returns the part of a whole block that Get(off, n) answers. The result
// shares block's memory.
func Clip(block []byte, off, n int64) []byte {
	if off < 0 || off >= int64(len(block)) {
		return nil
	}
	block = block[off:]
	if n >= 0 && n < int64(len(block)) {
		block = block[:n:n]
	}
	return block
}
