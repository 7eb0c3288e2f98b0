package fuse

import (
	"syscall"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// maxCopy bounds what one copy_file_range copies: the kernel asks again for the
// rest.
const maxCopy = 16 << 20

// copyRange is copy_file_range(2). Where blocks align it makes the file name the
// objects of the other; the rest is copied.
func (c *call) copyRange(op *fuseops.CopyFileRangeOp) error {
	fs := c.fs
	src, err := fs.handle(op.Handle)
	if err != nil {
		return err
	}
	dst, err := fs.handle(op.DstHandle)
	if err != nil {
		return err
	}
	r := copying{from: src.in, to: dst.in, off: op.Offset, dst: op.DstOffset, n: op.Length}
	if r.from == r.to && r.off < r.dst+r.n && r.dst < r.off+r.n {
		return syscall.EINVAL
	}
	if err := c.endAtSize(&r); err != nil || r.n == 0 {
		return err
	}
	if err := c.killPrivFor(&op.OpContext, dst.in); err != nil {
		return err
	}
	n, err := c.clone(&r)
	if err == nil && n == 0 {
		n, err = c.copy(&r)
	}
	op.BytesCopied = uint32(n)
	return err
}

// A copying is a part of one file that is to be copied to another.
type copying struct {
	from, to *inode
	off, dst uint64
	n        uint64
}

// endAtSize leaves of r what the file has now: a copy behind its end, in itself,
// makes it longer.
func (c *call) endAtSize(r *copying) error {
	if err := c.attrOf(r.from); err != nil {
		return err
	}
	r.from.mu.Lock()
	defer r.from.mu.Unlock()
	r.n = min(r.n, max(r.from.current().Size, r.off)-r.off)
	return nil
}

// copy copies some of r through this mount, and returns how many bytes.
func (c *call) copy(r *copying) (n uint64, err error) {
	left := min(r.n, maxCopy)
	if bs := uint64(c.fs.blockSize()); r.off%bs == r.dst%bs && r.n > bs {
		left = min(left, bs-r.off%bs) // what follows may be cloned
	}
	var s stream
	defer s.close()
	for n < left {
		data, got, err := c.read(r.from, &s, r.off+n, int(min(left-n, uint64(len(zeros)))))
		if err == nil && got == 0 {
			return n, nil
		}
		for _, p := range data {
			if err == nil {
				err = c.write(r.to, r.dst+n, p, false)
			}
			if err == nil {
				n += uint64(len(p))
			}
		}
		if err != nil {
			if n > 0 {
				return n, nil
			}
			return 0, err
		}
	}
	return n, nil
}

// clone makes r.to name the objects of as many blocks of r as it can, and returns
// how many bytes that are: none if the blocks do not align, or the service would
// rather have them copied.
func (c *call) clone(r *copying) (uint64, error) {
	fs := c.fs
	bs := uint64(fs.blockSize())
	if r.off%bs != 0 || r.dst%bs != 0 {
		return 0, nil
	}
	blocks, n, err := c.cloneable(r)
	if err != nil || blocks == 0 {
		return 0, err
	}
	ctx := c.wait()
	for _, in := range [2]*inode{r.from, r.to} { // what is only here must be where the others can name it
		if err := fs.flush(ctx, in); err != nil {
			return 0, err
		}
	}
	err = c.cloneBlocks(r, blocks, n)
	switch refusal(err) {
	case 0:
	case syscall.EINVAL, syscall.ESTALE, syscall.ENOSYS: // it has to be copied
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	fs.stats.Clones.Add(int64(blocks))
	return n, nil
}

// cloneable returns how many blocks of r are whole, and how many bytes they have.
// The last may be shorter if neither file goes on after it.
func (c *call) cloneable(r *copying) (blocks uint32, n uint64, err error) {
	fs := c.fs
	bs := uint64(fs.blockSize())
	var size [2]uint64
	for i, in := range [2]*inode{r.from, r.to} {
		if err := c.attrOf(in); err != nil {
			return 0, 0, err
		}
		in.mu.Lock()
		size[i] = in.current().Size
		in.mu.Unlock()
	}
	if r.off >= size[0] || size[0] <= uint64(fs.vol().InlineMax) {
		return 0, 0, nil
	}
	n = min(r.n, size[0]-r.off, meta.MaxCommit*bs)
	if n%bs > 0 && (r.off+n < size[0] || r.dst+n < size[1]) {
		n -= n % bs
	}
	if r.dst+n > meta.MaxSize {
		return 0, 0, nil // copying tells how far it goes
	}
	return uint32((n + bs - 1) / bs), n, nil
}

// cloneBlocks asks the service for it.
func (c *call) cloneBlocks(r *copying, blocks uint32, n uint64) error {
	fs, in := c.fs, r.to
	bs := uint64(fs.blockSize())
	if err := c.alone(in); err != nil {
		return err
	}
	defer in.unlock()
	if err := in.lostLock(); err != nil {
		return err
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{
		Op: meta.OpClone, Ino: r.from.ino, Index: uint32(r.off / bs), Ino2: in.ino, Index2: uint32(r.dst / bs),
		Limit: blocks, Size: r.dst + n,
	})
	in.mu.Lock()
	defer in.mu.Unlock()
	if err != nil {
		if !answered(err) {
			in.valid = false
			in.content.forgetMap()
		}
		return err
	}
	fresh := rep.Cache && !fs.invals.since(seq, in.ino)
	if fresh && rep.Attr.Data == in.attr.Data+1 && in.pages == in.attr.Data {
		in.pages = rep.Attr.Data // the kernel drops those that were written to
	}
	in.content.forgetMap()
	in.learn(&rep.Attr, nil, fresh)
	return nil
}
