package memfs

import (
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

// An fs belongs to one goroutine.
type fs struct {
	inodes map[fuseops.InodeID]*inode
	last   fuseops.InodeID
	lists  map[fuseops.HandleID][]fuseutil.Dirent // of open directories
	handle fuseops.HandleID
}

// An inode lives until it has no name and the kernel has forgotten it.
type inode struct {
	id     fuseops.InodeID
	attr   fuseops.InodeAttributes
	known  uint64 // times that the kernel was told of it
	target string // of a symbolic link
	data   contents
	child  map[string]*inode // of a directory
	parent *inode            // of a directory
}

func newFS() *fs {
	f := &fs{inodes: make(map[fuseops.InodeID]*inode), lists: make(map[fuseops.HandleID][]fuseutil.Dirent)}
	f.make(root, fuseops.OpContext{})
	return f
}

// make makes an inode that has no name yet. The first is the root.
func (f *fs) make(mode os.FileMode, by fuseops.OpContext) *inode {
	f.last++
	now := time.Now()
	n := &inode{id: f.last, attr: fuseops.InodeAttributes{Nlink: 1, Mode: mode, Uid: by.Uid, Gid: by.Gid, Atime: now, Mtime: now, Ctime: now, Crtime: now}}
	if mode.IsDir() {
		n.attr.Nlink = 2
		n.child = make(map[string]*inode)
	}
	f.inodes[n.id] = n
	return n
}

// answer fills op or returns an errno.
func (f *fs) answer(op any) error {
	switch op := op.(type) {
	case *fuseops.StatFSOp:
		op.BlockSize, op.Blocks, op.BlocksFree, op.BlocksAvailable = 4096, 1<<28, 1<<28, 1<<28
		op.IoSize, op.Inodes, op.InodesFree = 1<<20, 1<<28, 1<<28
		return nil
	case *fuseops.LookUpInodeOp:
		return f.tell(&op.Entry, f.inodes[op.Parent].child[op.Name])
	case *fuseops.GetInodeAttributesOp:
		op.Attributes = f.inodes[op.Inode].attr
		return nil
	case *fuseops.SetInodeAttributesOp:
		return f.set(op)
	case *fuseops.ForgetInodeOp:
		f.forget(op.Inode, op.N)
		return nil
	case *fuseops.BatchForgetOp:
		for _, e := range op.Entries {
			f.forget(e.Inode, e.N)
		}
		return nil
	}
	return f.answerNames(op)
}

// answerNames answers what changes names.
func (f *fs) answerNames(op any) error {
	switch op := op.(type) {
	case *fuseops.MkDirOp:
		return f.add(op.Parent, op.Name, f.make(op.Mode|os.ModeDir, op.OpContext), &op.Entry)
	case *fuseops.MkNodeOp:
		return f.add(op.Parent, op.Name, f.make(op.Mode, op.OpContext), &op.Entry)
	case *fuseops.CreateFileOp:
		op.UseDirectIO = true
		return f.add(op.Parent, op.Name, f.make(op.Mode, op.OpContext), &op.Entry)
	case *fuseops.CreateSymlinkOp:
		n := f.make(os.ModeSymlink|0o777, op.OpContext)
		n.target, n.attr.Size = op.Target, uint64(len(op.Target))
		return f.add(op.Parent, op.Name, n, &op.Entry)
	case *fuseops.CreateLinkOp:
		n := f.inodes[op.Target]
		n.attr.Nlink++
		return f.add(op.Parent, op.Name, n, &op.Entry)
	case *fuseops.ReadSymlinkOp:
		op.Target = f.inodes[op.Inode].target
		return nil
	case *fuseops.UnlinkOp:
		return f.remove(op.Parent, op.Name)
	case *fuseops.RmDirOp:
		return f.remove(op.Parent, op.Name)
	case *fuseops.RenameOp:
		return f.rename(op)
	}
	return f.answerOpen(op)
}

// answerOpen answers what is done with open files and directories.
func (f *fs) answerOpen(op any) error {
	switch op := op.(type) {
	case *fuseops.OpenFileOp:
		op.UseDirectIO = true
		if n := f.inodes[op.Inode]; op.OpenFlags&syscall.O_TRUNC != 0 {
			n.resize(0)
		}
		return nil
	case *fuseops.ReadFileOp:
		n := f.inodes[op.Inode]
		op.Data, op.BytesRead = n.data.read(op.Offset, min(op.Size, int64(n.attr.Size)-op.Offset))
		return nil
	case *fuseops.WriteFileOp:
		n := f.inodes[op.Inode]
		n.data.write(op.Offset, op.Data)
		n.attr.Size = max(n.attr.Size, uint64(op.Offset)+uint64(len(op.Data)))
		n.attr.Mtime = time.Now()
		n.attr.Ctime = n.attr.Mtime
		return nil
	case *fuseops.SyncFileOp, *fuseops.FlushFileOp, *fuseops.ReleaseFileHandleOp:
		return nil
	case *fuseops.OpenDirOp:
		f.handle++
		op.Handle = f.handle
		return nil
	case *fuseops.ReadDirOp:
		f.list(op)
		return nil
	case *fuseops.ReleaseDirHandleOp:
		delete(f.lists, op.Handle)
		return nil
	}
	return syscall.ENOSYS // the kernel does not ask again
}

// tell fills an entry. Nothing in it may be cached.
func (f *fs) tell(e *fuseops.ChildInodeEntry, n *inode) error {
	if n == nil {
		return syscall.ENOENT
	}
	n.known++
	e.Child, e.Attributes = n.id, n.attr
	return nil
}

func (f *fs) forget(id fuseops.InodeID, times uint64) {
	n := f.inodes[id]
	n.known -= times
	f.drop(n)
}

// drop lets go of an inode that nobody can reach.
func (f *fs) drop(n *inode) {
	if n.known == 0 && n.attr.Nlink == 0 {
		delete(f.inodes, n.id)
	}
}

func (f *fs) add(parent fuseops.InodeID, name string, n *inode, e *fuseops.ChildInodeEntry) error {
	dir := f.inodes[parent]
	if n.child != nil {
		n.parent = dir
		dir.attr.Nlink++
	}
	dir.child[name] = n
	dir.touch()
	return f.tell(e, n)
}

func (n *inode) touch() {
	n.attr.Mtime = time.Now()
	n.attr.Ctime = n.attr.Mtime
}

func (f *fs) remove(parent fuseops.InodeID, name string) error {
	dir := f.inodes[parent]
	n := dir.child[name]
	if n == nil {
		return syscall.ENOENT
	}
	if len(n.child) > 0 {
		return syscall.ENOTEMPTY
	}
	delete(dir.child, name)
	dir.touch()
	f.unlinked(dir, n)
	return nil
}

// unlinked notes that an inode has lost a name in dir.
func (f *fs) unlinked(dir, n *inode) {
	n.attr.Nlink--
	if n.child != nil {
		n.attr.Nlink = 0
		dir.attr.Nlink--
	}
	f.drop(n)
}

func (f *fs) rename(op *fuseops.RenameOp) error {
	from, to := f.inodes[op.OldParent], f.inodes[op.NewParent]
	n, there := from.child[op.OldName], to.child[op.NewName]
	switch {
	case op.Flags != 0:
		return syscall.EINVAL
	case n == nil:
		return syscall.ENOENT
	case n == there:
		return nil
	case there != nil && len(there.child) > 0:
		return syscall.ENOTEMPTY
	}
	if there != nil {
		f.unlinked(to, there)
	}
	delete(from.child, op.OldName)
	to.child[op.NewName] = n
	if n.child != nil {
		from.attr.Nlink--
		to.attr.Nlink++
		n.parent = to
	}
	from.touch()
	to.touch()
	return nil
}

func (f *fs) set(op *fuseops.SetInodeAttributesOp) error {
	n := f.inodes[op.Inode]
	if op.Uid != nil {
		n.attr.Uid = *op.Uid
	}
	if op.Gid != nil {
		n.attr.Gid = *op.Gid
	}
	if op.Mode != nil {
		n.attr.Mode = *op.Mode
	}
	if op.Atime != nil {
		n.attr.Atime = *op.Atime
	}
	if op.Mtime != nil {
		n.attr.Mtime = *op.Mtime
	}
	if op.Size != nil {
		n.resize(*op.Size)
	}
	n.attr.Ctime = time.Now()
	op.Attributes = n.attr
	return nil
}

func (n *inode) resize(size uint64) {
	n.data.truncate(int64(size))
	n.attr.Size = size
	n.touch()
}

// list fills op from where it left off. The entries are those of the time when
// the reading began.
func (f *fs) list(op *fuseops.ReadDirOp) {
	if op.Offset == 0 {
		f.lists[op.Handle] = f.inodes[op.Inode].entries()
	}
	all := f.lists[op.Handle]
	for _, e := range all[min(int(op.Offset), len(all)):] {
		n := fuseutil.WriteDirent(op.Dst[op.BytesRead:], e)
		if n == 0 {
			return
		}
		op.BytesRead += n
	}
}

func (n *inode) entries() []fuseutil.Dirent {
	up := n
	if n.parent != nil {
		up = n.parent
	}
	all := []fuseutil.Dirent{
		{Inode: n.id, Name: ".", Type: fuseutil.DT_Directory},
		{Inode: up.id, Name: "..", Type: fuseutil.DT_Directory},
	}
	for name, c := range n.child {
		all = append(all, fuseutil.Dirent{Inode: c.id, Name: name, Type: c.kind()})
	}
	slices.SortFunc(all[2:], func(a, b fuseutil.Dirent) int { return int(int64(a.Inode) - int64(b.Inode)) })
	for i := range all {
		all[i].Offset = fuseops.DirOffset(i + 1)
	}
	return all
}

func (n *inode) kind() fuseutil.DirentType {
	switch {
	case n.child != nil:
		return fuseutil.DT_Directory
	case n.attr.Mode&os.ModeSymlink != 0:
		return fuseutil.DT_Link
	case n.attr.Mode.IsRegular():
		return fuseutil.DT_File
	}
	return fuseutil.DT_Unknown
}
