package fuse

import (
	"encoding/binary"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// opStatx is the operation by which statx(2) asks for the time of a file's
// birth. The library hands it over as it is.
const opStatx = 52

func (c *call) unknown(op *fuseops.UnknownOp) error {
	if op.OpCode != opStatx {
		return syscall.ENOSYS
	}
	in := c.fs.node(op.Inode)
	if err := c.attrOf(in); err != nil {
		return err
	}
	c.answer()
	var attr fuseops.InodeAttributes
	var until time.Time
	c.fill(in, &attr, &until)
	in.mu.Lock()
	a := in.current()
	in.mu.Unlock()
	op.Response = appendStatx(nil, &a, &attr, time.Until(until))
	return nil
}

// statxLen is the length of struct fuse_statx_out, statxMask what it holds.
const (
	statxLen  = 288
	statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
)

// appendStatx appends a struct fuse_statx_out: how long it is valid, and a
// struct fuse_statx.
func appendStatx(b []byte, a *meta.Attr, attr *fuseops.InodeAttributes, valid time.Duration) []byte {
	start := len(b)
	u32 := func(v uint32) { b = binary.NativeEndian.AppendUint32(b, v) }
	u64 := func(v uint64) { b = binary.NativeEndian.AppendUint64(b, v) }
	valid = max(valid, 0)
	u64(uint64(valid / time.Second))
	u32(uint32(valid % time.Second))
	b = append(b, make([]byte, 20)...) // flags, spare

	u32(statxMask)
	u32(0) // block size: the usual one
	u64(0) // attributes
	u32(attr.Nlink)
	u32(attr.Uid)
	u32(attr.Gid)
	b = binary.NativeEndian.AppendUint16(b, uint16(a.Mode))
	b = append(b, 0, 0)
	u64(uint64(a.Ino))
	u64(attr.Size)
	u64(attr.Blocks)
	u64(0) // mask of attributes
	for _, t := range []meta.Time{a.Atime, a.Btime, a.Ctime, a.Mtime} {
		u64(uint64(t.Sec))
		u32(t.Nsec)
		u32(0)
	}
	u32(unix.Major(uint64(attr.Rdev)))
	u32(unix.Minor(uint64(attr.Rdev)))
	return append(b, make([]byte, statxLen-(len(b)-start))...)
}
