package fuse

import (
	"fmt"
	"runtime/debug"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// handle answers one operation of the kernel: it fills op, or returns the errno.
// A fault in here is answered with EIO, and the mount lives on.
func (c *call) handle(op any) (err error) {
	c.fs.stats.Ops.Add(1)
	c.request = op
	defer func() {
		if v := recover(); v != nil {
			c.fs.stats.Panics.Add(1)
			c.fs.log.Error("an operation failed badly", "op", fmt.Sprintf("%T", op), "panic", v, "stack", string(debug.Stack()))
			err = syscall.EIO
		}
	}()
	if c.fs.teaching.Load() && c.teach(op) {
		return nil
	}
	return errno(c.dispatch(op))
}

func (c *call) dispatch(op any) error {
	switch op := op.(type) {
	case *fuseops.LookUpInodeOp:
		return c.lookUp(op)
	case *fuseops.GetInodeAttributesOp:
		return c.getAttributes(op)
	case *fuseops.SetInodeAttributesOp:
		return c.setAttributes(op)
	case *fuseops.ForgetInodeOp:
		c.fs.forget(meta.Ino(op.Inode), op.N)
		return nil
	case *fuseops.BatchForgetOp:
		for _, e := range op.Entries {
			c.fs.forget(meta.Ino(e.Inode), e.N)
		}
		return nil
	case *fuseops.MkDirOp:
		return c.mkDir(op)
	case *fuseops.MkNodeOp:
		return c.mkNode(op)
	case *fuseops.CreateFileOp:
		return c.createFile(op)
	case *fuseops.CreateSymlinkOp:
		return c.createSymlink(op)
	case *fuseops.CreateLinkOp:
		return c.createLink(op)
	case *fuseops.RenameOp:
		return c.rename(op)
	case *fuseops.UnlinkOp:
		return c.unlink(op)
	case *fuseops.RmDirOp:
		return c.rmDir(op)
	case *fuseops.ReadSymlinkOp:
		return c.readSymlink(op)
	case *fuseops.OpenDirOp:
		return c.openDir(op)
	case *fuseops.ReadDirOp:
		return c.readDir(op)
	case *fuseops.ReadDirPlusOp:
		return c.readDirPlus(op)
	case *fuseops.ReleaseDirHandleOp:
		return c.releaseDir(op)
	case *fuseops.StatFSOp:
		return c.statFS(op)
	case *fuseops.GetXattrOp:
		return c.getXattr(op)
	case *fuseops.ListXattrOp:
		return c.listXattr(op)
	case *fuseops.SetXattrOp:
		return c.setXattr(op)
	case *fuseops.RemoveXattrOp:
		return c.removeXattr(op)
	}
	return c.dispatchFile(op)
}

// dispatchFile is for the operations on open files.
func (c *call) dispatchFile(op any) error {
	switch op := op.(type) {
	case *fuseops.OpenFileOp:
		return c.openFile(op)
	case *fuseops.ReadFileOp:
		return c.readFile(op)
	case *fuseops.WriteFileOp:
		return c.writeFile(op)
	case *fuseops.FlushFileOp:
		return c.flushFile(op)
	case *fuseops.SyncFileOp:
		return c.syncFile(op)
	case *fuseops.ReleaseFileHandleOp:
		return c.releaseFile(op)
	case *fuseops.FallocateOp:
		return c.allocate(op)
	case *fuseops.LseekOp:
		return c.seek(op)
	case *fuseops.CopyFileRangeOp:
		return c.copyRange(op)
	case *fuseops.GetLkOp:
		return c.getLock(op)
	case *fuseops.SetLkOp:
		return c.setLock(op)
	case *fuseops.UnknownOp:
		return c.unknown(op)
	}
	return syscall.ENOSYS
}
