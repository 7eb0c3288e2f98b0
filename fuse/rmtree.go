package fuse

import (
	"syscall"

	"flexfs/meta"
)

// RemoveTreeXattr is the extended attribute whose setting on a directory removes
// the directory in it that the value names, with all that is in it, in no time:
// see meta.OpRemoveTree. As of all trusted attributes only root may set it.
const RemoveTreeXattr = "trusted.flexfs.rmtree"

// removeTree removes a directory with all that is in it. The kernel, which does not
// know what this attribute means, is told afterwards that the name is gone.
func (c *call) removeTree(dir *inode, name string) error {
	fs := c.fs
	if len(name) > meta.MaxName {
		return syscall.ENAMETOOLONG
	}
	rep, err := c.takeOut(meta.OpRemoveTree, dir, name, fs.invals.now())
	if err != nil {
		return err
	}
	go func() { // not here: the kernel holds the directory until this is answered
		fs.kernel.Names(dir.ino, []string{name})
		fs.forgetAttrs(dir)
		fs.kernel.Attrs(rep.Replaced.Ino)
	}()
	return nil
}
