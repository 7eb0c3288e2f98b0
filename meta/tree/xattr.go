package tree

import (
	"context"
	"strings"
	"syscall"

	"flexfs/meta"
)

// Flags of an OpSetxattr, those of setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

// capabilities is the attribute that gives a program privileges. The kernel
// leaves it to the file system to take it away when the file changes (see
// FUSE_HANDLE_KILLPRIV_V2), whoever changes it.
const capabilities = "security.capability"

// maxXattrList bounds the names of an inode's extended attributes, as
// listxattr(2) does.
const maxXattrList = 64 << 10

func checkXattr(name string) error {
	if name == "" || len(name) > meta.MaxName || strings.Contains(name, "\x00") {
		return refuse(syscall.ERANGE, "an attribute's name of %d bytes", len(name))
	}
	return nil
}

func (s *session) getxattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkXattr(req.Name); err != nil {
		return nil, err
	}
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		in, err := q.inode(req.Ino)
		if err != nil {
			return nil, err
		}
		b, err := q.Get(q.v.xattrKey(in.Ino, req.Name))
		if err == nil && b == nil {
			err = refuse(syscall.ENODATA, "attribute %q is not there", req.Name)
		}
		return &meta.Reply{Data: append([]byte(nil), b...)}, err
	})
}

func (s *session) listxattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		in, err := q.inode(req.Ino)
		if err != nil {
			return nil, err
		}
		reply := new(meta.Reply)
		prefix := q.v.xattrKey(in.Ino, "")
		err = q.Scan(prefix, after(prefix), false, func(key, _ []byte) (bool, error) {
			reply.Names = append(reply.Names, string(key[len(prefix):]))
			return true, nil
		})
		return reply, err
	})
}

func (s *session) setxattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkXattr(req.Name); err != nil {
		return nil, err
	}
	if len(req.Data) > meta.MaxXattr {
		return nil, refuse(syscall.E2BIG, "an attribute of %d bytes", len(req.Data))
	}
	if req.Flags&^(xattrCreate|xattrReplace) != 0 {
		return nil, refuse(syscall.EINVAL, "setxattr flags %#x", req.Flags)
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		old, err := c.Get(c.v.xattrKey(in.Ino, req.Name))
		if err != nil {
			return nil, err
		}
		if err := c.checkXattrFlags(in, old != nil); err != nil {
			return nil, err
		}
		if req.Name == aclAccess || req.Name == aclDefault {
			err = c.putACL(in, req.Name, req.Data)
		} else {
			err = c.putXattr(in, req.Name, append([]byte{}, req.Data...))
		}
		if err != nil {
			return nil, err
		}
		c.touch(in)
		c.inval(in, false)
		return &meta.Reply{Attr: in.told()}, nil
	})
}

// putXattr stores an extended attribute, or removes it if value is nil.
func (c *change) putXattr(in *loaded, name string, value []byte) error {
	key := c.v.xattrKey(in.Ino, name)
	old, err := c.Get(key)
	if err != nil || old == nil && value == nil {
		return err
	}
	switch {
	case old == nil:
		in.Xattrs++
	case value == nil:
		in.Xattrs--
	}
	return c.replace(key, old, value)
}

func (c *change) checkXattrFlags(in *loaded, there bool) error {
	switch {
	case there && c.req.Flags&xattrCreate != 0:
		return refuse(syscall.EEXIST, "attribute %q is there", c.req.Name)
	case !there && c.req.Flags&xattrReplace != 0:
		return refuse(syscall.ENODATA, "attribute %q is not there", c.req.Name)
	case there:
		return nil
	}
	size := len(c.req.Name) + 1
	prefix := c.v.xattrKey(in.Ino, "")
	err := c.Scan(prefix, after(prefix), false, func(key, _ []byte) (bool, error) {
		size += len(key) - len(prefix) + 1
		return true, nil
	})
	if err == nil && size > maxXattrList {
		err = refuse(syscall.ENOSPC, "the attributes' names are more than %d bytes", maxXattrList)
	}
	return err
}

func (s *session) removexattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkXattr(req.Name); err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		old, err := c.Get(c.v.xattrKey(in.Ino, req.Name))
		if err != nil {
			return nil, err
		}
		if old == nil {
			return nil, refuse(syscall.ENODATA, "attribute %q is not there", req.Name)
		}
		if err := c.putXattr(in, req.Name, nil); err != nil {
			return nil, err
		}
		c.touch(in)
		c.inval(in, false)
		return &meta.Reply{Attr: in.told()}, nil
	})
}
