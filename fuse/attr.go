package fuse

import (
	"context"
	"encoding/json"
	"strings"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

func (c *call) getAttributes(op *fuseops.GetInodeAttributesOp) error {
	in := c.fs.node(op.Inode)
	if err := c.attrOf(in); err != nil {
		return err
	}
	c.answer()
	c.fill(in, &op.Attributes, &op.AttributesExpiration)
	return nil
}

func (c *call) setAttributes(op *fuseops.SetInodeAttributesOp) error {
	fs := c.fs
	if fs.readOnly() {
		return syscall.EROFS
	}
	in := fs.node(op.Inode)
	if op.Size != nil {
		if err := c.truncate(in, *op.Size, killing(op.KillSuidgid, in, &op.OpContext)); err != nil {
			return err
		}
	}
	req := &meta.Request{Op: meta.OpSetattr, Ino: in.ino}
	setAttr(req, op, fs.meta.Now())
	if req.Set != 0 {
		if err := c.setattr(in, req); err != nil {
			return err
		}
	}
	c.answer()
	in.late.Store(true)
	c.fill(in, &op.Attributes, &op.AttributesExpiration)
	return nil
}

// setAttr says in req what op changes, except for the size. It is now at the
// service.
func setAttr(req *meta.Request, op *fuseops.SetInodeAttributesOp, now meta.Time) {
	if op.Mode != nil {
		req.Set |= meta.SetMode
		req.Attr.Mode = unixMode(*op.Mode) &^ syscall.S_IFMT
	}
	if op.Uid != nil {
		req.Set |= meta.SetUid
		req.Attr.Uid = *op.Uid
	}
	if op.Gid != nil {
		req.Set |= meta.SetGid
		req.Attr.Gid = *op.Gid
	}
	if op.KillSuidgid && op.Size == nil {
		req.Set |= meta.SetKillPriv
	}
	setTime := func(t *time.Time, isNow bool, bit meta.SetMask, to *meta.Time) {
		switch {
		case isNow:
			req.Set |= bit
			*to = now
		case t != nil:
			req.Set |= bit
			*to = meta.TimeOf(*t)
		}
	}
	setTime(op.Atime, op.AtimeNow, meta.SetAtime, &req.Attr.Atime)
	setTime(op.Mtime, op.MtimeNow, meta.SetMtime, &req.Attr.Mtime)
}

func (c *call) setattr(in *inode, req *meta.Request) error {
	fs := c.fs
	if c.setHere(in, req) {
		return nil
	}
	in.mu.Lock()
	if in.keepTimes(req); req.Set&(meta.SetAtime|meta.SetMtime) != 0 {
		in.content.writes++ // a commit that is on its way does not have them
	}
	in.mu.Unlock()
	seq := fs.invals.now()
	rep, err := c.do(req)
	if err != nil {
		if !answered(err) {
			fs.doubt(in)
		}
		return err
	}
	fs.learn(&rep.Attr, nil, rep.Cache, seq)
	return nil
}

// keepTimes notes times that are set, so that the commit of what was written before
// does not change them back. in.mu is held.
func (in *inode) keepTimes(req *meta.Request) {
	if !in.content.wrote {
		return
	}
	in.content.carry |= req.Set & (meta.SetAtime | meta.SetMtime)
	if req.Set&meta.SetAtime != 0 {
		in.content.times.Atime = req.Attr.Atime
	}
	if req.Set&meta.SetMtime != 0 {
		in.content.times.Mtime = req.Attr.Mtime
	}
}

// truncate makes the file size bytes long, and does what else with says: it clears
// set-id bits, or leaves a file that is longer as it is.
func (c *call) truncate(in *inode, size uint64, with meta.SetMask) error {
	fs := c.fs
	if size > meta.MaxSize {
		return syscall.EFBIG
	}
	if err := in.lostLock(); err != nil {
		return err
	}
	in.mu.Lock()
	keeps := in.storeFirst(false) && size > in.content.run.start // some of what was appended
	in.mu.Unlock()
	if keeps {
		if err := fs.flush(c.wait(), in); err != nil {
			return err
		}
	}
	if err := c.alone(in); err != nil {
		return err
	}
	defer in.unlock()
	if err := in.waitUploads(c.wait()); err != nil {
		return err
	}
	if err := in.lostLock(); err != nil { // while it waited
		return err
	}
	req := &meta.Request{Op: meta.OpSetattr, Ino: in.ino, Set: meta.SetSize | with}
	req.Attr.Size = size
	seq := fs.invals.now()
	rep, err := c.do(req)
	if err != nil {
		if !answered(err) {
			fs.doubt(in)
		}
		return err
	}
	in.mu.Lock()
	fresh := rep.Cache && !fs.invals.since(seq, in.ino)
	was, mine := in.content.blockMap, fresh && rep.Attr.Data == in.attr.Data+1
	end := in.attr.Size
	in.learn(&rep.Attr, nil, fresh)
	size = rep.Attr.Size // another mount may have made it larger
	if mine {            // nobody else changed it: what was known of its blocks is, cut, and beyond its end there are none
		bs := uint64(fs.blockSize())
		was.cut(size, bs)
		was.known = was.known.add(span{int((end + bs - 1) / bs), allBlocks})
		in.content.blockMap = was
		in.content.learnSize(size)
	}
	if with&meta.SetGrow == 0 {
		fs.cut(in, size)
	}
	if in.content.wrote {
		in.content.mtime = rep.Attr.Mtime
	}
	in.mu.Unlock()
	fs.cleaned(in)
	return nil
}

// cut drops what was written at size or beyond. in.mu is held, and nothing is
// being uploaded.
func (fs *FS) cut(in *inode, size uint64) {
	ct := &in.content
	bs := uint64(fs.blockSize())
	for idx, d := range ct.dirty {
		at := uint64(idx) * bs
		fs.budget.release(d.cut(int(min(max(size, at)-at, bs))))
		if len(d.spans)+len(d.zero) == 0 {
			delete(ct.dirty, idx)
		}
	}
	for idx, p := range ct.pend {
		at := uint64(idx) * bs
		if at >= size {
			if p.uncommitted() {
				fs.remove(in, &p.rec)
			}
			delete(ct.pend, idx)
			if p.d != nil {
				fs.budget.release(p.d.free())
			}
			continue
		}
		rest := int(min(size-at, bs))
		p.reach = min(p.reach, rest)
		cut := p.rec
		if cut.Cut(uint32(rest)); cut.Len == 0 {
			if p.uncommitted() {
				fs.remove(in, &p.rec)
			}
			cut.Gen, cut.Origin, cut.Inline = meta.Gen{}, meta.Origin{}, false
		}
		p.rec = cut
		if p.d != nil {
			fs.budget.release(p.d.cut(rest))
		}
	}
	ct.end = min(ct.end, size)
	if len(ct.dirty)+len(ct.up)+len(ct.pend) == 0 {
		ct.wrote, ct.end, ct.carry = false, 0, 0
	}
	ct.run = appendRun{}
}

func (c *call) statFS(op *fuseops.StatFSOp) error {
	fs := c.fs
	st := fs.space(c)
	const unit = 4096
	op.BlockSize = unit
	op.IoSize = 1 << 20
	limit := st.MaxBytes
	if limit == 0 {
		limit = st.Bytes + unlimitedBytes
	}
	op.Blocks = limit / unit
	op.BlocksFree = (limit - min(limit, st.Bytes)) / unit
	op.BlocksAvailable = op.BlocksFree
	op.Inodes = st.MaxInodes
	if op.Inodes == 0 {
		op.Inodes = st.Inodes + unlimitedInodes
	}
	op.InodesFree = op.Inodes - min(op.Inodes, st.Inodes)
	return nil
}

// What df shows as free where there is no limit.
const (
	unlimitedBytes  = 1 << 50
	unlimitedInodes = 1 << 32
)

// statfsTimeout bounds how long df waits for the service. After that it gets
// what was known last.
const statfsTimeout = 2 * time.Second

func (fs *FS) space(c *call) meta.Statfs {
	last := fs.statfs.Load()
	ctx, cancel := context.WithTimeout(c.wait(), statfsTimeout)
	defer cancel()
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpStatfs})
	switch {
	case err == nil:
		fs.statfs.Store(&rep.Statfs)
		return rep.Statfs
	case last != nil:
		return *last
	default:
		return meta.Statfs{}
	}
}

// statsName is the extended attribute of the root directory that shows
// Config.Stats.
const statsName = "user.flexfs.stats"

func isACL(name string) bool {
	return name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// xattrAllowed reports whether the service keeps attributes of that name. Of
// system attributes those are POSIX ACLs, which the kernel enforces.
func xattrAllowed(name string) bool {
	if isACL(name) {
		return true
	}
	for _, prefix := range [...]string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, prefix) && len(name) > len(prefix) {
			return true
		}
	}
	return false
}

func (c *call) getXattr(op *fuseops.GetXattrOp) error {
	if op.Name == statsName && op.Inode == fuseops.RootInodeID && c.fs.cfg.Stats != nil {
		b, err := json.Marshal(c.fs.cfg.Stats())
		if err != nil {
			return err
		}
		return give(b, op.Dst, &op.BytesRead)
	}
	if strings.HasPrefix(op.Name, DeletedName) {
		return c.getDeleted(op)
	}
	if !xattrAllowed(op.Name) {
		return syscall.EOPNOTSUPP
	}
	if isACL(op.Name) { // the kernel keeps it, also that there is none, until it is to forget attributes
		c.fs.node(op.Inode).trusted.Add(1)
	}
	if c.noXattrs(op.Inode) {
		return syscall.ENODATA
	}
	rep, err := c.do(&meta.Request{Op: meta.OpGetxattr, Ino: meta.Ino(op.Inode), Name: op.Name})
	if err != nil {
		return err
	}
	return give(rep.Data, op.Dst, &op.BytesRead)
}

// give copies a value to dst, or says how long it is.
func give(value, dst []byte, n *int) error {
	*n = len(value)
	if len(dst) == 0 {
		return nil
	}
	if len(value) > len(dst) {
		return syscall.ERANGE
	}
	copy(dst, value)
	return nil
}

// noXattrs reports whether it is known that an inode has no extended attribute.
// The kernel asks for one before the first write to a file and before each
// change of its owner.
func (c *call) noXattrs(id fuseops.InodeID) bool {
	in := c.fs.node(id)
	in.mu.Lock()
	none := in.valid && in.attr.Xattrs == 0
	in.mu.Unlock()
	return none && c.fs.leased()
}

func (c *call) listXattr(op *fuseops.ListXattrOp) error {
	if c.noXattrs(op.Inode) {
		return give(nil, op.Dst, &op.BytesRead)
	}
	rep, err := c.do(&meta.Request{Op: meta.OpListxattr, Ino: meta.Ino(op.Inode)})
	if err != nil {
		return err
	}
	var b []byte
	for _, name := range rep.Names {
		b = append(append(b, name...), 0)
	}
	return give(b, op.Dst, &op.BytesRead)
}

func (c *call) setXattr(op *fuseops.SetXattrOp) error {
	switch {
	case c.fs.readOnly():
		return syscall.EROFS
	case op.Name == RestoreName:
		return c.setRestore(op)
	case !xattrAllowed(op.Name) || op.Name == statsName:
		return syscall.EOPNOTSUPP
	case len(op.Value) > meta.MaxXattr:
		return syscall.E2BIG
	case op.Name == RemoveTreeXattr:
		return c.removeTree(c.fs.node(op.Inode), string(op.Value))
	}
	req := &meta.Request{
		Op: meta.OpSetxattr, Ino: meta.Ino(op.Inode), Name: op.Name,
		Data: append([]byte(nil), op.Value...), Flags: op.Flags,
	}
	if op.KillSgid {
		req.Set = meta.SetKillSgid
	}
	return c.changeXattr(req)
}

func (c *call) removeXattr(op *fuseops.RemoveXattrOp) error {
	switch {
	case c.fs.readOnly():
		return syscall.EROFS
	case !xattrAllowed(op.Name):
		return syscall.EOPNOTSUPP
	}
	return c.changeXattr(&meta.Request{Op: meta.OpRemovexattr, Ino: meta.Ino(op.Inode), Name: op.Name})
}

func (c *call) changeXattr(req *meta.Request) error {
	fs := c.fs
	seq := fs.invals.now()
	rep, err := c.do(req)
	if err != nil {
		if !answered(err) {
			fs.doubt(fs.inode(req.Ino))
		}
		return err
	}
	fs.learnParent(&rep.Attr, rep.Cache, seq)
	return nil
}
