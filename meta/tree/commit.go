package tree

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

func (s *session) commit(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := s.v.checkCommit(req); err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		if in.IsDir() {
			return nil, refuse(syscall.EISDIR, "inode %d is a directory", req.Ino)
		}
		if !in.IsRegular() {
			return nil, refuse(syscall.EINVAL, "inode %d is not a file", req.Ino)
		}
		was, ctime := in.Mtime, in.Ctime
		if err := c.contents(in, req); err != nil {
			return nil, err
		}
		if was.Compare(c.time) > 0 && was.Compare(ctime) <= 0 {
			in.Mtime = was // others changed the file after it was written here
		}
		if err := c.setAttr(in, req.Set&^meta.SetSize, &req.Attr); err != nil {
			return nil, err
		}
		c.inval(in, true)
		return &meta.Reply{Attr: in.told()}, nil // who commits has the contents
	})
}

// contents makes written blocks part of a file.
func (c *change) contents(in *loaded, req *meta.Request) error {
	in.Size = max(in.Size, req.Size)
	for i := range req.Blocks {
		if err := c.store(in, &req.Blocks[i]); err != nil {
			return err
		}
	}
	c.touchData(in)
	return nil
}

// checkCommit refuses block records that cannot be.
func (v *volume) checkCommit(req *meta.Request) error {
	if len(req.Blocks) > meta.MaxCommit {
		return refuse(syscall.EINVAL, "%d blocks; one commit may have %d", len(req.Blocks), meta.MaxCommit)
	}
	if req.Size > meta.MaxSize {
		return refuse(syscall.EFBIG, "a file of %d bytes", req.Size)
	}
	seen := make(map[uint32]bool, len(req.Blocks))
	for i := range req.Blocks {
		k := &req.Blocks[i]
		if seen[k.Index] {
			return refuse(syscall.EINVAL, "block %d twice", k.Index)
		}
		seen[k.Index] = true
		if err := v.checkBlock(k); err != nil {
			return err
		}
	}
	return nil
}

func (v *volume) checkBlock(k *meta.Block) error {
	none := k.Gen == (meta.Gen{}) && k.Len == 0 && !k.Inline // it becomes a hole
	switch {
	case k.Gen == (meta.Gen{}) && !none:
		return refuse(syscall.EINVAL, "block %d has no version", k.Index)
	case k.Len == 0 && !none || k.Len > v.blockSize:
		return refuse(syscall.EINVAL, "block %d has %d bytes; blocks have 1 to %d", k.Index, k.Len, v.blockSize)
	case uint64(k.Index)*uint64(v.blockSize) >= meta.MaxSize:
		return refuse(syscall.EFBIG, "block %d is beyond the largest file", k.Index)
	case !k.Inline && len(k.Data) > 0:
		return refuse(syscall.EINVAL, "block %d has bytes and is not inline", k.Index)
	case k.Inline && k.Index != 0:
		return refuse(syscall.EINVAL, "block %d is inline; only block 0 may be", k.Index)
	case k.Inline && len(k.Data) > int(k.Len):
		return refuse(syscall.EINVAL, "the inline block has %d bytes of %d", len(k.Data), k.Len)
	case k.Inline && k.Len > meta.MaxInline:
		return refuse(syscall.EINVAL, "%d bytes inline; at most %d may be", k.Len, meta.MaxInline)
	case len(k.Holes) > 0 && (k.Inline || !k.HolesFit() || k.Len > maxUnits*meta.HoleUnit):
		return refuse(syscall.EINVAL, "block %d of %d bytes has the holes %v", k.Index, k.Len, k.Holes)
	}
	return nil
}

// store makes a block part of a file, whose size counts it already.
func (c *change) store(in *loaded, k *meta.Block) error {
	var old *meta.Block
	if in.old != nil { // else the change itself makes the file
		var err error
		if old, err = c.v.block(c, &in.inode, k.Index); err != nil {
			return err
		}
	}
	if err := checkBase(k, old); err != nil {
		return err
	}
	if err := checkWriter(k, old, c.s); err != nil {
		return err
	}
	record := meta.Block{Index: k.Index, Gen: k.Gen, Len: k.Len, Holes: k.Holes, Inline: k.Inline, Data: k.Data}
	if old != nil && !old.Inline && !k.Inline && k.Gen == old.Gen { // the same object, of which less is to be seen
		if !within(&record, old) {
			return refuse(syscall.EINVAL, "block %d, version %v, had %d bytes and the holes %v", k.Index, k.Gen, old.Len, old.Holes)
		}
		record.Origin = old.Origin
	}
	start := uint64(k.Index) * uint64(c.v.blockSize)
	if start >= in.Size { // the file was cut meanwhile
		c.drop(in.Ino, &record)
		return nil
	}
	record.Cut(uint32(min(uint64(record.Len), in.Size-start)))
	return c.setBlock(in, old, &record)
}

// within reports whether all that is data of a block is data of old.
func within(k, old *meta.Block) bool {
	holes := append(slices.Clone(k.Holes), meta.Hole{Lo: k.Len, Hi: math.MaxUint32})
	for _, h := range append(slices.Clone(old.Holes), meta.Hole{Lo: old.Len, Hi: math.MaxUint32}) {
		if !slices.ContainsFunc(holes, func(g meta.Hole) bool { return g.Lo <= h.Lo && h.Hi <= g.Hi }) {
			return false
		}
	}
	return true
}

// setBlock makes k the record of a block in place of old, which may be nil: a
// hole. So is the block if k has no bytes.
func (c *change) setBlock(in *loaded, old, k *meta.Block) error {
	var before, after []byte
	same := old != nil && !old.Inline && !k.Inline && refOf(in.Ino, old) == refOf(in.Ino, k)
	if old != nil {
		before = encodeBlock(old)
		c.addBytes(in, -int64(old.Bytes()))
		if !same || k.Len == 0 {
			c.drop(in.Ino, old)
		}
	}
	if k.Len > 0 {
		after = encodeBlock(k)
		c.addBytes(in, int64(k.Bytes()))
	} else if !same {
		c.drop(in.Ino, k)
	}
	if k.Index == 0 {
		in.inline = k.Inline
	}
	if before == nil && after == nil {
		return nil
	}
	return c.replace(c.v.blockKey(in.Ino, in.body, k.Index), before, after)
}

// checkWriter refuses an object that another session wrote, unless it is the
// block's already: what sessions that have ended did not commit is removed from
// the bucket, see [Server.Reconcile]. Who lost its session writes it again.
func checkWriter(k, old *meta.Block, s *session) error {
	if k.Inline || k.Gen == (meta.Gen{}) || k.Gen.Session == s.id || old != nil && old.Gen == k.Gen {
		return nil
	}
	return refuse(syscall.ESTALE, "block %d has a version of session %d, this is session %d", k.Index, k.Gen.Session, s.id)
}

// checkBase refuses a block that was made from another version than the one that
// is current.
func checkBase(k, old *meta.Block) error {
	var current meta.Gen
	if old != nil {
		current = old.Gen
	}
	switch {
	case k.Whole:
		return nil
	case k.Base != current:
		return refuse(syscall.ESTALE, "block %d is at version %v, not %v", k.Index, current, k.Base)
	case old == nil || k.BaseLen == 0:
		return nil
	case k.BaseLen != old.Len:
		return refuse(syscall.ESTALE, "block %d was cut to %d bytes from %d", k.Index, old.Len, k.BaseLen)
	case !slices.Equal(k.BaseHoles, old.Holes):
		return refuse(syscall.ESTALE, "block %d has the holes %v, not %v", k.Index, old.Holes, k.BaseHoles)
	}
	return nil
}

func (s *session) punch(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	err := s.steps(ctx, req, func(c *change, in *loaded) (bool, error) {
		if !in.IsRegular() {
			return false, refuse(syscall.EINVAL, "inode %d is not a file", req.Ino)
		}
		to, more, err := c.v.head(c, &in.inode, req.Index, req.Index2)
		if err != nil || !more {
			return false, err
		}
		c.touchData(in)
		return true, c.removeBlocks(in, req.Index, uint64(to))
	})
	if err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		if err := c.removeBlocks(in, req.Index, uint64(req.Index2)); err != nil {
			return nil, err
		}
		c.touchData(in)
		c.inval(in, true)
		return c.v.told(c, &in.inode)
	})
}

// head returns the index after [blockStep] records of a file from <= i < to; more
// is false if there are no more than that.
func (v *volume) head(r engine.Reader, in *inode, from, to uint32) (next uint32, more bool, err error) {
	n := 0
	err = v.eachBlock(r, in, from, func(k *meta.Block) (bool, error) {
		n++
		next = k.Index
		return n <= v.srv.blockStep && k.Index < to, nil
	})
	return next, n > v.srv.blockStep && next < to, err
}

// tail returns the index of the first of the last [blockStep] records of a file;
// more is false if there are no more than that from first on.
func (v *volume) tail(r engine.Reader, in *inode, first uint32) (from uint32, more bool, err error) {
	n := 0
	from = blocksIn(in.Size, v.blockSize)
	if first >= from {
		return from, false, nil
	}
	// What was cut in the step before lies beyond the end: not to pass it again.
	err = r.Scan(v.blockKey(in.Ino, in.body, first), v.blockKey(in.Ino, in.body, from), true, func(key, _ []byte) (bool, error) {
		if n++; n > v.srv.blockStep {
			return false, nil
		}
		from = indexOf(key)
		return true, nil
	})
	return from, n > v.srv.blockStep, err
}

// indexOf returns the block that a key of a block record is for.
func indexOf(key []byte) uint32 { return binary.BigEndian.Uint32(key[len(key)-4:]) }
