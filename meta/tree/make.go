package tree

import (
	"context"
	"strings"
	"syscall"

	"flexfs/meta"
)

const (
	typeMask = syscall.S_IFMT
	permMask = 0o7777
)

// checkName refuses what cannot be a new name.
func checkName(name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "/\x00"):
		return refuse(syscall.EINVAL, "%q cannot be a name", name)
	case len(name) > meta.MaxName:
		return refuse(syscall.ENAMETOOLONG, "a name of %d bytes", len(name))
	case name == "." || name == "..":
		return refuse(syscall.EEXIST, "%q is in every directory", name)
	}
	return nil
}

// checkMake refuses an inode that cannot be. A file may do without a name.
func checkMake(req *meta.Request) error {
	nameless := req.Name == "" && req.Mode&typeMask == syscall.S_IFREG
	if err := checkName(req.Name); err != nil && !nameless {
		return err
	}
	switch req.Mode & typeMask {
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFIFO, syscall.S_IFSOCK:
		return nil
	case syscall.S_IFLNK:
		return checkTarget(string(req.Data))
	}
	return refuse(syscall.EINVAL, "mode %#o has no file type", req.Mode)
}

func checkTarget(target string) error {
	switch {
	case target == "":
		return refuse(syscall.ENOENT, "a symbolic link to nothing")
	case len(target) > meta.MaxTarget:
		return refuse(syscall.ENAMETOOLONG, "a symbolic link to %d bytes", len(target))
	case strings.Contains(target, "\x00"):
		return refuse(syscall.EINVAL, "a symbolic link to a name with a zero byte")
	}
	return nil
}

func (s *session) make(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Mode&typeMask == 0 {
		regular := *req
		regular.Mode |= syscall.S_IFREG
		req = &regular
	}
	if err := checkMake(req); err != nil {
		return nil, err
	}
	if err := s.v.checkCommit(req); err != nil {
		return nil, err
	}
	ino, err := s.number(ctx, req)
	if err != nil {
		return nil, err
	}
	inos := []meta.Ino{s.in(req.Ino)}
	if req.Ino2 != 0 {
		inos = append(inos, ino)
	}
	born := req.Time
	if req.Ino2 != 0 {
		now := *req
		now.Time = meta.Time{}
		req = &now
	}
	return s.change(ctx, req, inos, func(c *change) (*meta.Reply, error) {
		dir, err := c.livingDir(req.Ino)
		if err != nil {
			return nil, err
		}
		if req.Name == "" {
			return c.makeNameless(ino, dir)
		}
		if req.Ino2 != 0 {
			if err := c.wasReserved(ino); err != nil {
				return nil, err
			}
			if reply, err := c.madeBefore(ino, dir); err != nil || reply != nil {
				return reply, err
			}
		}
		d, err := c.entry(dir, req.Name)
		if err != nil {
			return nil, err
		}
		if d != nil {
			return c.existing(dir, d)
		}
		in, err := c.newInode(ino, dir, c.req.Mode)
		if err != nil {
			return nil, err
		}
		was := dir.Attr
		if err := c.enter(dir, req.Name, in); err != nil {
			return nil, err
		}
		c.count(0, 1)
		if req.Ino2 != 0 {
			c.madeAt(dir, &was, born)
			if err := c.fill(in, born, req); err != nil {
				return nil, err
			}
		}
		return &meta.Reply{Attr: in.told(), Parent: dir.told()}, nil
	})
}

// makeNameless makes a file as O_TMPFILE does. It is for the session alone, which
// has it in use, until it gets a name.
func (c *change) makeNameless(ino meta.Ino, dir *loaded) (*meta.Reply, error) {
	in, err := c.newInode(ino, dir, c.req.Mode)
	if err != nil {
		return nil, err
	}
	in.Nlink = 0
	if err := c.nameless(in); err != nil {
		return nil, err
	}
	return &meta.Reply{Attr: in.told()}, nil
}

// livingDir returns a directory in which a name may be made.
func (c *change) livingDir(ino meta.Ino) (*loaded, error) {
	dir, err := c.dir(ino)
	if err == nil && dir.Nlink == 0 {
		err = refuse(syscall.ENOENT, "directory %d was removed", ino)
	}
	return dir, err
}

// existing answers an OpMake of a name that is there.
func (c *change) existing(dir *loaded, d *dentry) (*meta.Reply, error) {
	if !c.req.Exist || d.typ != syscall.S_IFREG || c.req.Mode&typeMask != syscall.S_IFREG {
		return nil, refuse(syscall.EEXIST, "%q is there", c.req.Name)
	}
	in, err := c.inode(d.ino)
	if err != nil {
		return nil, err
	}
	reply, err := c.v.told(c, &in.inode)
	if err != nil {
		return nil, err
	}
	reply.Parent, reply.Existed = dir.told(), true
	return reply, nil
}

// newInode returns an inode as the request describes it, but for its mode.
func (c *change) newInode(ino meta.Ino, dir *loaded, mode uint32) (*loaded, error) {
	req := c.req
	in := &loaded{dirty: true}
	in.Attr = meta.Attr{
		Ino: ino, Mode: mode & (typeMask | permMask), Uid: req.Uid, Gid: req.Gid, Nlink: 1,
		Atime: c.time, Mtime: c.time, Ctime: c.time, Btime: c.time, Change: 1, Parent: dir.Ino,
	}
	if dir.Mode&syscall.S_ISGID != 0 {
		in.Gid = dir.Gid
		if in.IsDir() {
			in.Mode |= syscall.S_ISGID
		}
	}
	switch mode & typeMask {
	case syscall.S_IFDIR:
		in.Nlink = 2
	case syscall.S_IFLNK:
		in.Mode = syscall.S_IFLNK | 0o777
		in.Target = string(req.Data)
		in.Size = uint64(len(in.Target))
	case syscall.S_IFCHR, syscall.S_IFBLK:
		in.Rdev = req.Rdev
	}
	c.inodes[ino] = in
	return in, c.inherit(in, dir)
}

// enter puts a name for in into dir, where it is not yet.
func (c *change) enter(dir *loaded, name string, in *loaded) error {
	key := c.v.dentryKey(dir.Ino, name)
	if err := c.replace(key, nil, dentry{in.Ino, in.Mode & typeMask}.encode()); err != nil {
		return err
	}
	dir.Size++
	if in.IsDir() {
		dir.Nlink++
	}
	c.named(dir, name)
	return nil
}

// leave takes the name of in out of dir.
func (c *change) leave(dir *loaded, name string, in *loaded) error {
	key := c.v.dentryKey(dir.Ino, name)
	if err := c.replace(key, dentry{in.Ino, in.Mode & typeMask}.encode(), nil); err != nil {
		return err
	}
	dir.Size--
	if in.IsDir() && dir.Nlink > 0 { // none if dir is detached, see rmtree.go
		dir.Nlink--
	}
	c.named(dir, name)
	return nil
}
