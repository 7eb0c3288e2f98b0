package tree

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

func (s *session) link(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino), s.in(req.Ino2)}, func(c *change) (*meta.Reply, error) {
		in, err := c.given(req.Ino)
		if err != nil {
			return nil, err
		}
		dir, err := c.livingDir(req.Ino2)
		if err != nil {
			return nil, err
		}
		if err := c.mayLink(in); err != nil {
			return nil, err
		}
		if d, err := c.entry(dir, req.Name); err != nil || d != nil {
			if err == nil {
				err = refuse(syscall.EEXIST, "%q is there", req.Name)
			}
			return nil, err
		}
		if err := c.addName(in, dir); err != nil {
			return nil, err
		}
		if err := c.enter(dir, req.Name, in); err != nil {
			return nil, err
		}
		return &meta.Reply{Attr: in.told(), Parent: dir.told()}, nil
	})
}

// mayLink refuses an inode that can have no further name. One without any gets a
// name again if the session has it in use, as a file made by O_TMPFILE.
func (c *change) mayLink(in *loaded) error {
	switch {
	case in.IsDir():
		return refuse(syscall.EPERM, "inode %d is a directory", in.Ino)
	case in.Nlink >= meta.MaxLinks:
		return refuse(syscall.EMLINK, "inode %d has %d names", in.Ino, in.Nlink)
	case in.Nlink > 0:
		return nil
	}
	b, err := c.Get(c.v.openKey(c.s.id, in.Ino))
	if err == nil && b == nil {
		err = refuse(syscall.ENOENT, "inode %d was removed", in.Ino)
	}
	return err
}

// addName counts one more name of in, in dir.
func (c *change) addName(in, dir *loaded) error {
	var err error
	switch in.Nlink {
	case 0:
		in.Parent = dir.Ino
		c.count(int64(in.Bytes), 1)
	case 1:
		if err = c.addParent(in, in.Parent, 1); err == nil {
			err = c.addParent(in, dir.Ino, 1)
		}
	default:
		err = c.addParent(in, dir.Ino, 1)
	}
	in.Nlink++
	c.touch(in)
	c.inval(in, false)
	return err
}

// dropName counts one name less of in, in dir.
func (c *change) dropName(in, dir *loaded) error {
	c.touch(in)
	in.Nlink--
	c.inval(in, in.Nlink == 0) // who does not use it then holds it no more
	switch in.Nlink {
	case 0:
		return c.orphan(in)
	case 1:
		return c.lastParent(in, dir)
	}
	return c.addParent(in, dir.Ino, -1)
}

// addParent adds to the number of names that a file with several has in dir.
func (c *change) addParent(in *loaded, dir meta.Ino, delta int64) error {
	key := c.v.parentKey(in.Ino, dir)
	old, err := c.Get(key)
	if err != nil {
		return err
	}
	n := delta
	if old != nil {
		if len(old) != 4 {
			return fmt.Errorf("tree: parent %d of inode %d: %w", dir, in.Ino, errValue)
		}
		n += int64(binary.BigEndian.Uint32(old))
	}
	if n <= 0 {
		return c.replace(key, old, nil)
	}
	return c.replace(key, old, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

// lastParent goes back to one name: its directory is in the attributes then.
func (c *change) lastParent(in, dir *loaded) error {
	if err := c.addParent(in, dir.Ino, -1); err != nil {
		return err
	}
	left, err := c.v.parents(c, in.Ino)
	if err != nil {
		return err
	}
	if len(left) != 1 {
		return fmt.Errorf("tree: inode %d has one name in %d directories: %w", in.Ino, len(left), errValue)
	}
	in.Parent = left[0]
	return c.set(c.v.parentKey(in.Ino, in.Parent), nil)
}

// parents returns the directories of a file with several names.
func (v *volume) parents(r engine.Reader, ino meta.Ino) ([]meta.Ino, error) {
	prefix := append(v.inoKey(ino), ofParent)
	var dirs []meta.Ino
	err := r.Scan(prefix, after(prefix), false, func(key, _ []byte) (bool, error) {
		if len(key) != len(prefix)+8 {
			return false, fmt.Errorf("tree: parents of inode %d: %w", ino, errValue)
		}
		dirs = append(dirs, meta.Ino(binary.BigEndian.Uint64(key[len(prefix):])))
		return true, nil
	})
	return dirs, err
}

// orphan notes that an inode has lost its last name. It stays for those who use
// it, the session that did this among them, and for those who look at the past.
func (c *change) orphan(in *loaded) error {
	in.Nlink = 0
	c.touch(in)
	c.count(-int64(in.Bytes), -1)
	c.orphans = append(c.orphans, in.Ino)
	return c.nameless(in)
}

// nameless keeps an inode without a name for the session, and has it removed
// some time after the session's last use of it.
func (c *change) nameless(in *loaded) error {
	if err := c.Put(c.v.delayedInodeKey(c.v.keep(c.second), in.Ino), nil); err != nil {
		return err
	}
	if c.s == nil {
		return nil // those who use it say so when they are called back
	}
	return c.v.opened(c, c.s, in.Ino)
}

// named returns what a name that is to be removed stands for.
func (c *change) removed(dir *loaded, name string) (*loaded, error) {
	d, err := c.entry(dir, name)
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, refuse(syscall.ENOENT, "%q is not there", name)
	}
	return c.inode(d.ino)
}

func (s *session) unlink(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkName(req.Name); err != nil {
		return nil, isDirectory(err)
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		dir, err := c.dir(req.Ino)
		if err != nil {
			return nil, err
		}
		in, err := c.removed(dir, req.Name)
		if err != nil {
			return nil, err
		}
		if in.IsDir() {
			return nil, refuse(syscall.EISDIR, "%q is a directory", req.Name)
		}
		if err := c.leave(dir, req.Name, in); err != nil {
			return nil, err
		}
		if err := c.dropName(in, dir); err != nil {
			return nil, err
		}
		return &meta.Reply{Attr: in.told(), Parent: dir.told()}, nil
	})
}

// isDirectory turns the refusal of "." and ".." as new names into that of their
// removal.
func isDirectory(err error) error {
	if no, ok := err.(*refusal); ok && no.errno == syscall.EEXIST {
		return refuse(syscall.EISDIR, "it is a directory")
	}
	return err
}

func (s *session) rmdir(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	switch req.Name {
	case ".":
		return nil, refuse(syscall.EINVAL, "a directory is not removed by the name of itself")
	case "..":
		return nil, refuse(syscall.ENOTEMPTY, "a directory's parent is not empty")
	}
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino)}, func(c *change) (*meta.Reply, error) {
		dir, err := c.dir(req.Ino)
		if err != nil {
			return nil, err
		}
		in, err := c.removed(dir, req.Name)
		if err != nil {
			return nil, err
		}
		if err := c.emptyDir(in); err != nil {
			return nil, err
		}
		if err := c.leave(dir, req.Name, in); err != nil {
			return nil, err
		}
		c.inval(in, true)
		if err := c.orphan(in); err != nil {
			return nil, err
		}
		return &meta.Reply{Parent: dir.told(), Replaced: in.told()}, nil
	})
}

// emptyDir refuses what is not an empty directory.
func (c *change) emptyDir(in *loaded) error {
	if !in.IsDir() {
		return refuse(syscall.ENOTDIR, "it is not a directory")
	}
	if in.Size != 0 {
		return refuse(syscall.ENOTEMPTY, "the directory has %d entries", in.Size)
	}
	return nil
}
