package tree

import (
	"context"
	"syscall"

	"flexfs/meta"
)

// Flags of an OpRename, those of renameat2(2).
const (
	renameNoReplace = 1
	renameExchange  = 2
	renameWhiteout  = 4
)

// A move is a rename while it is done.
type move struct {
	from, to         *loaded // directories, maybe the same
	fromName, toName string
	what             *loaded
	there            *loaded  // what has the new name; nil: nothing
	whiteout         meta.Ino // for what gets the old name; 0: nothing does
}

func checkRename(req *meta.Request) error {
	for _, name := range []string{req.Name, req.Name2} {
		if name == "." || name == ".." {
			return refuse(syscall.EBUSY, "%q is not renamed", name)
		}
		if err := checkName(name); err != nil {
			return err
		}
	}
	switch req.Flags {
	case 0, renameNoReplace, renameExchange, renameWhiteout, renameWhiteout | renameNoReplace:
		return nil
	}
	return refuse(syscall.EINVAL, "rename flags %#x", req.Flags)
}

func (s *session) rename(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkRename(req); err != nil {
		return nil, err
	}
	var whiteout meta.Ino
	if req.Flags&renameWhiteout != 0 {
		var err error
		if whiteout, err = s.v.newIno(ctx); err != nil {
			return nil, err
		}
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino), s.in(req.Ino2)}, func(c *change) (*meta.Reply, error) {
		m, err := c.move()
		if err != nil {
			return nil, err
		}
		m.whiteout = whiteout
		switch {
		case m.there != nil && m.there.Ino == m.what.Ino:
			// Two names of one file, or the same name: nothing is to be done.
		case req.Flags == renameExchange:
			err = c.exchange(m)
		default:
			err = c.moveTo(m)
		}
		if err != nil {
			return nil, err
		}
		reply := &meta.Reply{Attr: m.what.told(), Parent: m.from.told(), Parent2: m.to.told()}
		if m.there != nil {
			reply.Replaced = m.there.told()
		}
		return reply, nil
	})
}

// move finds and locks what a rename is about, and checks what does not depend
// on its kind.
func (c *change) move() (*move, error) {
	m := &move{fromName: c.req.Name, toName: c.req.Name2}
	var err error
	if m.from, err = c.dir(c.req.Ino); err != nil {
		return nil, err
	}
	if m.to, err = c.livingDir(c.req.Ino2); err != nil {
		return nil, err
	}
	a, err := c.entry(m.from, m.fromName)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, refuse(syscall.ENOENT, "%q is not there", m.fromName)
	}
	b, err := c.entry(m.to, m.toName)
	if err != nil {
		return nil, err
	}
	if err := c.checkTaken(b); err != nil {
		return nil, err
	}
	return m, c.lockMove(m, a, b)
}

// checkTaken refuses a new name because something is there, or nothing.
func (c *change) checkTaken(b *dentry) error {
	switch {
	case b != nil && c.req.Flags&renameNoReplace != 0:
		return refuse(syscall.EEXIST, "%q is there", c.req.Name2)
	case b == nil && c.req.Flags == renameExchange:
		return refuse(syscall.ENOENT, "%q is not there", c.req.Name2)
	}
	return nil
}

// lockMove locks and loads what is moved and what is there.
func (c *change) lockMove(m *move, a, b *dentry) error {
	inos := []meta.Ino{a.ino}
	dirs := a.typ == syscall.S_IFDIR
	if b != nil {
		inos = append(inos, b.ino)
		dirs = dirs || b.typ == syscall.S_IFDIR
	}
	if dirs && m.from != m.to {
		inos = append(inos, renames)
	}
	if err := c.lock(inos...); err != nil {
		return err
	}
	var err error
	if m.what, err = c.inode(a.ino); err == nil && b != nil {
		m.there, err = c.inode(b.ino)
	}
	return err
}

// checkLoop refuses to move a directory below itself.
func (c *change) checkLoop(what, to *loaded) error {
	if !what.IsDir() {
		return nil
	}
	below, err := c.v.below(c, to.Ino, what.Ino)
	if err == nil && below {
		err = refuse(syscall.EINVAL, "a directory cannot be moved below itself")
	}
	return err
}

// moveTo gives what is moved its new name, in place of what is there.
func (c *change) moveTo(m *move) error {
	if m.from != m.to {
		if err := c.checkLoop(m.what, m.to); err != nil {
			return err
		}
	}
	if m.there != nil {
		if err := c.displace(m); err != nil {
			return err
		}
	}
	if err := c.leave(m.from, m.fromName, m.what); err != nil {
		return err
	}
	if err := c.enter(m.to, m.toName, m.what); err != nil {
		return err
	}
	if m.whiteout != 0 {
		if err := c.whiteOut(m); err != nil {
			return err
		}
	}
	return c.reparent(m.what, m.from, m.to)
}

// whiteOut gives the old name to a whiteout, a character device without a
// number, by which an overlay file system knows that the name is gone.
func (c *change) whiteOut(m *move) error {
	in, err := c.newInode(m.whiteout, m.from, syscall.S_IFCHR)
	if err != nil {
		return err
	}
	c.count(0, 1)
	return c.enter(m.from, m.fromName, in)
}

// displace removes what has the new name.
func (c *change) displace(m *move) error {
	switch {
	case m.what.IsDir() && !m.there.IsDir():
		return refuse(syscall.ENOTDIR, "%q is not a directory", m.toName)
	case !m.what.IsDir() && m.there.IsDir():
		return refuse(syscall.EISDIR, "%q is a directory", m.toName)
	}
	if m.there.IsDir() {
		if err := c.emptyDir(m.there); err != nil {
			return err
		}
	}
	if err := c.leave(m.to, m.toName, m.there); err != nil {
		return err
	}
	if m.there.IsDir() {
		c.inval(m.there, true)
		return c.orphan(m.there)
	}
	return c.dropName(m.there, m.to)
}

// exchange swaps two names.
func (c *change) exchange(m *move) error {
	if m.from != m.to {
		if err := c.checkLoop(m.what, m.to); err != nil {
			return err
		}
		if err := c.checkLoop(m.there, m.from); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		func() error { return c.leave(m.from, m.fromName, m.what) },
		func() error { return c.leave(m.to, m.toName, m.there) },
		func() error { return c.enter(m.to, m.toName, m.what) },
		func() error { return c.enter(m.from, m.fromName, m.there) },
		func() error { return c.reparent(m.what, m.from, m.to) },
		func() error { return c.reparent(m.there, m.to, m.from) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// reparent notes that a name of in is in another directory now.
func (c *change) reparent(in, from, to *loaded) error {
	c.touch(in)
	c.inval(in, false)
	if from == to {
		return nil
	}
	if in.IsDir() || in.Nlink == 1 {
		in.Parent = to.Ino
		return nil
	}
	if err := c.addParent(in, from.Ino, -1); err != nil {
		return err
	}
	return c.addParent(in, to.Ino, 1)
}
