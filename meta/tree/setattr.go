package tree

import (
	"context"
	"math"
	"syscall"

	"flexfs/meta"
)

func (s *session) setattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Set&meta.SetSize != 0 {
		if req.Attr.Size > meta.MaxSize {
			return nil, refuse(syscall.EFBIG, "a file of %d bytes", req.Attr.Size)
		}
		if req.Set&meta.SetGrow == 0 {
			if err := s.cutSteps(ctx, req); err != nil {
				return nil, err
			}
		}
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		if req.Set&meta.SetSize != 0 {
			size := req.Attr.Size
			if req.Set&meta.SetGrow != 0 {
				size = max(size, in.Size)
			}
			if err := c.resize(in, size); err != nil {
				return nil, err
			}
		}
		if err := c.setAttr(in, req.Set&^(meta.SetSize|meta.SetGrow), &req.Attr); err != nil {
			return nil, err
		}
		c.touch(in)
		c.inval(in, req.Set&meta.SetSize != 0)
		if req.Set&meta.SetSize == 0 {
			return &meta.Reply{Attr: in.told()}, nil
		}
		return c.v.told(c, &in.inode)
	})
}

// setAttr sets attributes other than the size.
func (c *change) setAttr(in *loaded, set meta.SetMask, a *meta.Attr) error {
	if set == 0 {
		return nil
	}
	c.touch(in)
	if set&meta.SetMode != 0 {
		if err := c.setMode(in, a.Mode); err != nil {
			return err
		}
	}
	if set&meta.SetUid != 0 {
		in.Uid = a.Uid
	}
	if set&meta.SetGid != 0 {
		in.Gid = a.Gid
	}
	chown := set&(meta.SetUid|meta.SetGid) != 0 && set&meta.SetMode == 0
	if set&meta.SetKillPriv != 0 || chown && !in.IsDir() {
		in.Mode = withoutPrivileges(in.Mode)
	}
	if set&meta.SetKillSgid != 0 {
		in.Mode &^= syscall.S_ISGID
	}
	in.other = in.other || set&(meta.SetUid|meta.SetGid) != 0 && !in.IsDir()
	if set&meta.SetAtime != 0 {
		in.Atime = a.Atime
	}
	if set&meta.SetMtime != 0 {
		in.Mtime = a.Mtime
	}
	return nil
}

// withoutPrivileges clears setuid, and setgid where it is one: without the
// group's execute bit it is not.
func withoutPrivileges(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&0o010 != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// blockStep bounds the block records that one transaction removes, or keeps when
// it sheds the rest. Only a cut that leaves more than that and takes more than that
// goes in steps, each of them a shorter file, from its end.
const blockStep = 1024

// cutSteps cuts a file that has too many blocks on both sides of its new end for
// one transaction, until it has not.
func (s *session) cutSteps(ctx context.Context, req *meta.Request) error {
	return s.steps(ctx, req, func(c *change, in *loaded) (bool, error) {
		first := blocksIn(req.Attr.Size, c.v.blockSize)
		from, long, err := c.v.tail(c, &in.inode, first)
		if err != nil || !long {
			return false, err
		}
		_, long, err = c.v.head(c, &in.inode, 0, first)
		if err != nil || !long {
			return false, err
		}
		return true, c.resize(in, uint64(from)*uint64(c.v.blockSize))
	})
}

// steps runs fn on a file in transactions of its own, which are not the answer
// to the request, until it returns false.
func (s *session) steps(ctx context.Context, req *meta.Request, fn func(*change, *loaded) (bool, error)) error {
	inos := []meta.Ino{s.in(req.Ino)}
	for more := true; more; {
		err := s.transact(ctx, req, inos, func(c *change, n *notice) error {
			in, err := c.given(req.Ino)
			if err != nil {
				return err
			}
			if more, err = fn(c, in); more && err == nil {
				c.inval(in, true)
				err = n.need(c.invals)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// blocksIn returns how many blocks size bytes take. The largest file has less than
// 2^32, unless blocks are smaller than any volume has them.
func blocksIn(size uint64, blockSize uint32) uint32 {
	return uint32(min((size+uint64(blockSize)-1)/uint64(blockSize), math.MaxUint32))
}

// resize sets a file's size. Block records beyond it go, and the last is cut.
func (c *change) resize(in *loaded, size uint64) error {
	switch {
	case in.IsDir():
		return refuse(syscall.EISDIR, "inode %d is a directory", in.Ino)
	case !in.IsRegular():
		return refuse(syscall.EINVAL, "inode %d is not a file", in.Ino)
	}
	if size < in.Size {
		if err := c.cut(in, size); err != nil {
			return err
		}
	}
	in.Size = size
	c.touchData(in)
	return nil
}

// cut removes what a file has from size on.
func (c *change) cut(in *loaded, size uint64) error {
	keep := blocksIn(size, c.v.blockSize)
	_, long, err := c.v.tail(c, &in.inode, keep)
	if err != nil {
		return err
	}
	if long {
		err = c.shed(in, keep)
	} else {
		err = c.removeBlocks(in, keep, math.MaxUint64)
	}
	if err != nil {
		return err
	}
	rest := uint32(size % uint64(c.v.blockSize))
	if rest == 0 {
		return nil
	}
	k, err := c.v.block(c, &in.inode, keep-1)
	if err != nil || k == nil || k.Len <= rest {
		return err
	}
	shorter := *k
	shorter.Cut(rest)
	if shorter.Len == 0 {
		return c.removeBlock(in, k)
	}
	return c.setBlock(in, k, &shorter)
}

// removeBlocks makes blocks from <= i < to holes.
func (c *change) removeBlocks(in *loaded, from uint32, to uint64) error {
	var gone []*meta.Block
	err := c.v.eachBlock(c, &in.inode, from, func(k *meta.Block) (bool, error) {
		if uint64(k.Index) >= to {
			return false, nil
		}
		gone = append(gone, k)
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, k := range gone {
		if err := c.removeBlock(in, k); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) removeBlock(in *loaded, k *meta.Block) error {
	return c.setBlock(in, k, &meta.Block{Index: k.Index})
}

// addBytes adds to what is stored for a file.
func (c *change) addBytes(in *loaded, delta int64) {
	in.Bytes = uint64(int64(in.Bytes) + delta)
	if in.Nlink > 0 {
		c.count(delta, 0)
	}
}
