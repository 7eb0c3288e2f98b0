package fuse

import (
	"errors"
	"os"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// node returns the inode that the kernel means.
func (fs *FS) node(id fuseops.InodeID) *inode { return fs.inode(meta.Ino(id)) }

func (c *call) lookUp(op *fuseops.LookUpInodeOp) error {
	fs := c.fs
	dir := fs.node(op.Parent)
	c.within(dir)
	if len(op.Name) > meta.MaxName {
		return syscall.ENAMETOOLONG
	}
	switch op.Name {
	case ".":
		return c.lookUpHandle(dir, op)
	case "..":
		return c.lookUpParent(dir, op)
	}
	if done, err := c.lookUpCached(dir, op); done {
		return err
	}
	if p := fs.missed(dir, op.Name); p != nil {
		c.await(p.done)
		if done, err := c.lookUpCached(dir, op); done {
			return err
		}
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpLookup, Ino: dir.ino, Name: op.Name})
	if refusal(err) == syscall.ENOENT {
		fs.remember(dir, op.Name, nil, leasedAbsence(err), seq)
		c.answer()
		op.Entry.EntryExpiration = c.entryUntil(dir, op.Name, 0)
		if op.Entry.EntryExpiration.IsZero() {
			return syscall.ENOENT
		}
		return nil // with Child 0: absent, and may be remembered
	}
	if err != nil {
		return err
	}
	child := c.found(dir, op.Name, rep, seq)
	c.entry(dir, child, op.Name, &op.Entry)
	return nil
}

// lookUpHandle finds an inode by its number, for open_by_handle_at(2) and NFS
// servers.
func (c *call) lookUpHandle(in *inode, op *fuseops.LookUpInodeOp) error {
	err := c.attrOf(in)
	in.mu.Lock()
	removed := in.gone && in.opens == 0
	in.mu.Unlock()
	if err == nil && removed {
		err = syscall.ESTALE
	}
	if err != nil {
		c.fs.drop(in)
		return err
	}
	c.entry(in, in, op.Name, &op.Entry)
	return nil
}

// lookUpParent finds the parent of a directory that was found by its number.
func (c *call) lookUpParent(dir *inode, op *fuseops.LookUpInodeOp) error {
	fs := c.fs
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpLookup, Ino: dir.ino, Name: op.Name})
	if err != nil {
		return err
	}
	c.entry(dir, fs.learn(&rep.Attr, rep.Block, rep.Cache, seq), op.Name, &op.Entry)
	return nil
}

// leasedAbsence reports whether a lookup that found nothing may be cached.
func leasedAbsence(err error) bool {
	var refused *meta.Error
	return errors.As(err, &refused) && refused.Cache
}

// made takes over the answer to an operation that made name in dir.
func (c *call) made(dir *inode, name string, rep *meta.Reply, seq uint64) *inode {
	fs := c.fs
	child := fs.learn(&rep.Attr, rep.Block, rep.Cache, seq)
	fs.learnParent(&rep.Parent, rep.Cache, seq)
	fs.remember(dir, name, child, rep.Cache, fs.invals.own(seq, dir.ino))
	return child
}

// found takes over the answer to an operation that found name in dir.
func (c *call) found(dir *inode, name string, rep *meta.Reply, seq uint64) *inode {
	fs := c.fs
	child := fs.learn(&rep.Attr, rep.Block, rep.Cache, seq)
	fs.remember(dir, name, child, rep.Cache, seq)
	return child
}

// lookUpCached answers from what is cached, if it can.
func (c *call) lookUpCached(dir *inode, op *fuseops.LookUpInodeOp) (bool, error) {
	fs := c.fs
	if !fs.leased() {
		return false, nil
	}
	c.answer()
	dir.mu.Lock()
	ino, ok := dir.names[op.Name]
	lacks := dir.lacks(op.Name)
	dir.mu.Unlock()
	if lacks {
		op.Entry.EntryExpiration = fs.meta.LeaseUntil()
		return true, nil
	}
	if ok {
		if child := fs.known(ino); child != nil {
			child.mu.Lock()
			valid := child.valid && !child.gone
			ahead := valid && child.ahead
			child.ahead = child.ahead && !valid
			child.mu.Unlock()
			if ahead {
				fs.lookedAt(dir, op.Name)
			}
			if valid {
				c.entry(dir, child, op.Name, &op.Entry)
				return true, nil
			}
		}
	}
	c.unanswer()
	return false, nil
}

// make creates an inode.
func (c *call) make(parent fuseops.InodeID, name string, req *meta.Request, e *fuseops.ChildInodeEntry) (*inode, error) {
	fs := c.fs
	if fs.readOnly() {
		return nil, syscall.EROFS
	}
	if len(name) > meta.MaxName {
		return nil, syscall.ENAMETOOLONG
	}
	dir := fs.node(parent)
	req.Op, req.Ino, req.Name = meta.OpMake, dir.ino, name
	seq, recalls := fs.invals.now(), dir.recallCount()
	rep, err := c.do(req)
	if err != nil {
		if !answered(err) {
			fs.doubt(dir, name)
		}
		return nil, err
	}
	if rep.Attr.IsDir() {
		fs.inode(rep.Attr.Ino).delegatedAtBirth(fs, rep, seq)
	} else {
		dir.learnDelegated(rep, recalls)
	}
	child := c.made(dir, name, rep, seq)
	c.entry(dir, child, name, e)
	return child, nil
}

func (c *call) mkDir(op *fuseops.MkDirOp) error {
	c.alters(c.fs.node(op.Parent))
	req := &meta.Request{Delegate: true, Mode: unixMode(op.Mode&^os.ModeType | os.ModeDir), Umask: op.OpContext.Umask, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid}
	_, err := c.make(op.Parent, op.Name, req, &op.Entry)
	return err
}

func (c *call) mkNode(op *fuseops.MkNodeOp) error {
	c.alters(c.fs.node(op.Parent))
	req := &meta.Request{Mode: unixMode(op.Mode), Umask: op.OpContext.Umask, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid, Rdev: op.Rdev}
	_, err := c.make(op.Parent, op.Name, req, &op.Entry)
	return err
}

func (c *call) createSymlink(op *fuseops.CreateSymlinkOp) error {
	c.alters(c.fs.node(op.Parent))
	if len(op.Target) > meta.MaxTarget {
		return syscall.ENAMETOOLONG
	}
	req := &meta.Request{Mode: syscall.S_IFLNK | 0o777, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid, Data: []byte(op.Target)}
	_, err := c.make(op.Parent, op.Name, req, &op.Entry)
	return err
}

func (c *call) createFile(op *fuseops.CreateFileOp) error {
	if dir := c.fs.node(op.Parent); op.Tmpfile {
		c.within(dir)
	} else {
		c.alters(dir)
	}
	flags := uint32(op.OpenFlags)
	req := &meta.Request{Mode: unixMode(op.Mode &^ os.ModeType), Umask: op.OpContext.Umask, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid}
	if op.Tmpfile {
		return c.createNameless(op, req)
	}
	if !c.fs.readOnly() && c.makeHere(op) {
		return nil
	}
	req.Delegate = true
	in, err := c.make(op.Parent, op.Name, req, &op.Entry)
	if refusal(err) == syscall.EEXIST && flags&syscall.O_EXCL == 0 {
		// Somebody was faster. The kernel looks again, and checks whether this
		// caller may open what is there.
		return syscall.ESTALE
	}
	if err != nil {
		return err
	}
	op.Handle = c.fs.open(in, flags)
	op.UseDirectIO = flags&syscall.O_APPEND != 0
	return nil
}

// createNameless makes and opens a file without a name. The kernel sees to it
// that one made with O_EXCL never gets any.
func (c *call) createNameless(op *fuseops.CreateFileOp, req *meta.Request) error {
	fs := c.fs
	if fs.readOnly() {
		return syscall.EROFS
	}
	req.Op, req.Ino = meta.OpMake, meta.Ino(op.Parent)
	seq := fs.invals.now()
	rep, err := c.do(req)
	if err != nil {
		return err
	}
	in := fs.learn(&rep.Attr, nil, rep.Cache, seq)
	in.mu.Lock()
	in.nameless = in.gone
	in.mu.Unlock()
	op.Handle = fs.open(in, uint32(op.OpenFlags))
	op.UseDirectIO = uint32(op.OpenFlags)&syscall.O_APPEND != 0
	c.answer()
	c.give(in)
	op.Entry.Child = fuseops.InodeID(in.ino)
	c.fill(in, &op.Entry.Attributes, &op.Entry.AttributesExpiration)
	return nil
}

func (c *call) createLink(op *fuseops.CreateLinkOp) error {
	fs := c.fs
	if fs.readOnly() {
		return syscall.EROFS
	}
	dir, target := fs.node(op.Parent), fs.node(op.Target)
	c.alters(dir)
	if err := c.beforeName(target); err != nil {
		return err
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpLink, Ino: target.ino, Ino2: dir.ino, Name: op.Name})
	if err != nil {
		if !answered(err) {
			fs.doubt(dir, op.Name)
			fs.doubt(target)
		}
		return err
	}
	child := c.made(dir, op.Name, rep, seq)
	child.late.Store(true)
	c.entry(dir, child, op.Name, &op.Entry)
	return nil
}

// beforeName makes durable what was written to a file that had no name, so that
// closing it was enough.
func (c *call) beforeName(in *inode) error {
	in.mu.Lock()
	nameless := in.gone && in.content.busy()
	in.mu.Unlock()
	if !nameless {
		return nil
	}
	return c.fs.flush(c.wait(), in)
}

func (c *call) unlink(op *fuseops.UnlinkOp) error {
	return c.removeName(meta.OpUnlink, op.Parent, op.Name)
}

func (c *call) rmDir(op *fuseops.RmDirOp) error {
	return c.removeName(meta.OpRmdir, op.Parent, op.Name)
}

func (c *call) removeName(op meta.Op, parent fuseops.InodeID, name string) error {
	fs := c.fs
	if fs.readOnly() {
		return syscall.EROFS
	}
	dir := fs.node(parent)
	c.alters(dir)
	seq := fs.invals.now()
	rep, err := c.takeOut(op, dir, name, seq)
	if err == nil && op == meta.OpUnlink {
		fs.unlinked(&rep.Attr, rep.Cache, seq)
	}
	return err
}

// takeOut has the service take a name out of a directory, and takes over what that
// makes of the directory and, if the name was one's, of the directory that is gone.
func (c *call) takeOut(op meta.Op, dir *inode, name string, seq uint64) (*meta.Reply, error) {
	fs := c.fs
	recalls := dir.recallCount()
	rep, err := c.do(&meta.Request{Op: op, Ino: dir.ino, Name: name, Delegate: op == meta.OpUnlink}) // whose next changes go together then
	if err != nil {
		if !answered(err) {
			fs.doubtName(dir, name)
		}
		return nil, err
	}
	dir.learnDelegated(rep, recalls)
	// The name first: as many names as the directory has left are all of them.
	fs.remember(dir, name, nil, rep.Cache, fs.invals.own(seq, dir.ino))
	fs.learnParent(&rep.Parent, rep.Cache, seq)
	if op != meta.OpUnlink {
		fs.removed(rep.Replaced.Ino)
	}
	return rep, nil
}

func (fs *FS) learnParent(attr *meta.Attr, cache bool, seq uint64) {
	if attr.Ino != 0 {
		fs.learn(attr, nil, cache, seq)
	}
}

// removed notes that a directory is gone. The kernel may still have it open: the
// service keeps it until it hears that it has not.
func (fs *FS) removed(ino meta.Ino) {
	in := fs.known(ino)
	if in == nil {
		fs.closes.add(ino)
		return
	}
	in.mu.Lock()
	in.gone, in.told = true, true
	in.attr.Nlink = 0
	in.mu.Unlock()
}

// unlinked takes over the attributes of an inode that lost a name. If that was
// the last, the service keeps the contents until it hears that nobody here has
// it open.
func (fs *FS) unlinked(attr *meta.Attr, cache bool, seq uint64) {
	if attr.Ino == 0 {
		return
	}
	if attr.IsDir() && attr.Nlink == 0 {
		fs.removed(attr.Ino)
		return
	}
	in := fs.known(attr.Ino)
	if in == nil {
		if attr.Nlink == 0 {
			fs.closes.add(attr.Ino)
		}
		return
	}
	in.mu.Lock()
	in.learn(attr, nil, cache && !fs.invals.since(seq, attr.Ino))
	last := attr.Nlink == 0 && attr.Change >= in.attr.Change // else it may have got another name since
	closed := last && in.opens == 0
	if last {
		in.gone = true
		in.attr.Nlink = 0
	}
	in.mu.Unlock()
	if closed {
		fs.discard(in, nil)
		fs.cleaned(in)
		fs.closes.add(attr.Ino)
	}
}

const (
	renameNoreplace = 1 << 0
	renameExchange  = 1 << 1
	renameWhiteout  = 1 << 2
)

func (c *call) rename(op *fuseops.RenameOp) error {
	fs := c.fs
	if fs.readOnly() {
		return syscall.EROFS
	}
	if op.Flags&^(renameNoreplace|renameExchange|renameWhiteout) != 0 {
		return syscall.EINVAL
	}
	from, to := fs.node(op.OldParent), fs.node(op.NewParent)
	c.alters(from, to)
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{
		Op: meta.OpRename, Ino: from.ino, Name: op.OldName, Ino2: to.ino, Name2: op.NewName,
		Flags: op.Flags, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid,
	})
	if err != nil {
		if !answered(err) {
			fs.doubtName(from, op.OldName)
			fs.doubtName(to, op.NewName)
		}
		return err
	}
	if !rep.Cache {
		// Others are changing the names, too, and we may have been called back for
		// that before. But the kernel moves what it believes.
		fs.kernel.AllNames()
	}
	moved := fs.learn(&rep.Attr, nil, rep.Cache, seq)
	learnParents := func() {
		fs.learnParent(&rep.Parent, rep.Cache, seq)
		fs.learnParent(&rep.Parent2, rep.Cache, seq)
	}
	if from == to && op.OldName == op.NewName {
		learnParents()
		return nil
	}
	var other *inode // what the old name stands for now
	switch {
	case op.Flags&renameExchange != 0:
		other = fs.learn(&rep.Replaced, nil, rep.Cache, seq)
	case rep.Replaced.Ino == rep.Attr.Ino: // two names of one file: nothing happens
		other = moved
	default:
		fs.unlinked(&rep.Replaced, rep.Cache, seq)
	}
	fromSeq := fs.invals.own(seq, from.ino)
	toSeq := fromSeq
	if to != from {
		toSeq = fs.invals.own(seq, to.ino)
	}
	whiteout := op.Flags&renameWhiteout != 0 // of which nothing is known yet
	// Never more names than there are: see takeOut.
	fs.remember(from, op.OldName, other, rep.Cache && !whiteout, fromSeq)
	learnParents()
	fs.remember(to, op.NewName, moved, rep.Cache, toSeq)
	return nil
}

// doubtName forgets what is known of a name, and of what it stands for, after a
// change whose outcome is not known.
func (fs *FS) doubtName(dir *inode, name string) {
	dir.mu.Lock()
	child := dir.names[name]
	dir.mu.Unlock()
	fs.doubt(dir, name)
	if in := fs.known(child); in != nil && child != 0 {
		fs.doubt(in)
	}
}

func (c *call) readSymlink(op *fuseops.ReadSymlinkOp) error {
	in := c.fs.node(op.Inode)
	if err := c.attrOf(in); err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.attr.IsSymlink() {
		return syscall.EINVAL
	}
	op.Target = in.attr.Target
	return nil
}
