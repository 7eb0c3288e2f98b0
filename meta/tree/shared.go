package tree

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// An object is named by block records and, when one of them goes, by delayed
// work for as long as somebody may look at the past. One that was never cloned is
// named once, from its own place, and has no record in table R. One that was has
// a count there of how often it is named, in all. Only two things change a
// count: a clone, and the collector when the time of a reference has come. The
// one that takes the last reference removes the object.
//
// So an object is needed if it has a count, or if the block of its own place
// names it, or delayed work of its own inode does. History needs no more than
// that: what it names is named by delayed work too.

// shares is locked by who changes counts.
const shares = ^meta.Ino(0)

// named returns how often an object is named, or 0 if it has no count: then it
// was never cloned and is named once at most, from its own place.
func (v *volume) named(r engine.Reader, ref BlockRef) (uint32, error) {
	b, err := r.Get(v.sharedKey(ref))
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 4 {
		return 0, fmt.Errorf("tree: count of block %d of inode %d: %w", ref.Index, ref.Ino, errValue)
	}
	return binary.BigEndian.Uint32(b), nil
}

func (v *volume) setNamed(tx engine.Tx, ref BlockRef, n uint32) error {
	return tx.Put(v.sharedKey(ref), binary.BigEndian.AppendUint32(nil, n))
}

// share counts one more name of an object that a block names.
func (c *change) share(ref BlockRef) error {
	n, err := c.v.named(c, ref)
	if err != nil {
		return err
	}
	if n == 0 {
		n = 1
	}
	return c.v.setNamed(c, ref, n+1)
}

// unshare takes references back and returns those that were the last to their
// objects, which nothing can name again: an object is cloned from a block that
// names it, and there is none. The counts of those that it returns stay until
// their objects are gone. done, if not nil, is called in the same transaction.
func (v *volume) unshare(ctx context.Context, refs []BlockRef, done func(tx engine.Tx, last []BlockRef) error) ([]BlockRef, error) {
	var last []BlockRef
	_, err := v.srv.cfg.Engine.Update(ctx, [][]byte{v.inoKey(shares)}, func(tx engine.Tx) error {
		last = nil
		for _, r := range refs {
			n, err := v.named(tx, r)
			if err != nil {
				return err
			}
			if n < 2 {
				last = append(last, r)
			} else if err := v.setNamed(tx, r, n-1); err != nil {
				return err
			}
		}
		return done(tx, last)
	})
	return last, err
}

// anyShared reports whether one of the objects was ever cloned.
func (v *volume) anyShared(ctx context.Context, refs []BlockRef) (found bool, err error) {
	err = v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		for _, ref := range refs {
			n, err := v.named(r, ref)
			if found = n > 0; found || err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}

func (s *session) clone(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	v := s.v
	end := max(uint64(req.Index), uint64(req.Index2)) + uint64(req.Limit)
	switch {
	case req.Limit == 0 || req.Limit > meta.MaxCommit:
		return nil, refuse(syscall.EINVAL, "%d blocks; one clone may have 1 to %d", req.Limit, meta.MaxCommit)
	case end > math.MaxUint32 || end*uint64(v.blockSize) > meta.MaxSize || req.Size > meta.MaxSize:
		return nil, refuse(syscall.EFBIG, "a file of %d blocks", end)
	case req.Size <= (uint64(req.Index2)+uint64(req.Limit)-1)*uint64(v.blockSize):
		return nil, refuse(syscall.EINVAL, "a file of %d bytes does not have block %d", req.Size, req.Index2+req.Limit-1)
	}
	inos := []meta.Ino{s.in(req.Ino2), shares}
	if req.Ino != req.Ino2 {
		inos = append(inos, s.in(req.Ino))
	}
	return s.change(ctx, req, inos, func(c *change) (*meta.Reply, error) {
		from, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		to, err := c.given(req.Ino2)
		if err != nil {
			return nil, err
		}
		if err := cloneable(from, to, req, v.blockSize); err != nil {
			return nil, err
		}
		to.Size = max(to.Size, req.Size)
		for i := range req.Limit {
			if err := c.cloneBlock(from, to, req.Index+i, req.Index2+i, req.Size); err != nil {
				return nil, err
			}
		}
		c.touchData(to)
		c.inval(to, true)
		return v.told(c, &to.inode)
	})
}

// cloneable refuses what cannot be cloned.
func cloneable(from, to *loaded, req *meta.Request, blockSize uint32) error {
	for _, in := range []*loaded{from, to} {
		if in.IsDir() {
			return refuse(syscall.EISDIR, "inode %d is a directory", in.Ino)
		}
		if !in.IsRegular() {
			return refuse(syscall.EINVAL, "inode %d is not a file", in.Ino)
		}
	}
	apart := req.Index >= req.Index2+req.Limit || req.Index2 >= req.Index+req.Limit
	if from.Ino == to.Ino && !apart {
		return refuse(syscall.EINVAL, "blocks cannot be cloned onto themselves")
	}
	end, start := uint64(req.Index2+req.Limit)*uint64(blockSize), uint64(req.Index2)*uint64(blockSize)
	if source := uint64(req.Index)*uint64(blockSize) + min(req.Size, end) - start; from.Size < source {
		return refuse(syscall.ESTALE, "the file has %d bytes, and %d are to be cloned", from.Size, source)
	}
	if req.Size < end && to.Size > req.Size {
		return refuse(syscall.ESTALE, "the file has %d bytes, and would be cut to %d", to.Size, req.Size)
	}
	return nil
}

// cloneBlock makes block j of to the same as block i of from, as far as size.
func (c *change) cloneBlock(from, to *loaded, i, j uint32, size uint64) error {
	source, err := c.v.block(c, &from.inode, i)
	if err != nil {
		return err
	}
	old, err := c.v.block(c, &to.inode, j)
	if err != nil {
		return err
	}
	k := meta.Block{Index: j}
	if source != nil {
		if source.Inline {
			return refuse(syscall.EINVAL, "block %d is inline", i)
		}
		k.Gen, k.Len, k.Holes, k.Origin = source.Gen, source.Len, source.Holes, source.Object(from.Ino)
		if k.Origin == (meta.Origin{Ino: to.Ino, Index: j}) {
			k.Origin = meta.Origin{}
		}
		if k.Cut(uint32(min(uint64(k.Len), size-uint64(j)*uint64(c.v.blockSize)))); k.Len == 0 {
			k = meta.Block{Index: j}
		}
	}
	if k.Len > 0 && (old == nil || old.Inline || refOf(to.Ino, old) != refOf(to.Ino, &k)) {
		if err := c.share(refOf(to.Ino, &k)); err != nil {
			return err
		}
	}
	return c.setBlock(to, old, &k)
}
