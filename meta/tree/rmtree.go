package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A directory that is removed with all that is in it leaves the tree at once: it
// has no name and no links any more, like one that was removed empty, but still
// has entries. Nothing can be put into it. Delayed work takes it apart, a bounded
// number of entries at a time: what has no other name loses its last, and
// directories are detached in turn. What is not yet reached goes on as it was for
// those who are inside.

// removeTree detaches a directory.
func (s *session) removeTree(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := checkName(req.Name); err != nil {
		return nil, notEmpty(err)
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
		if !in.IsDir() {
			return nil, refuse(syscall.ENOTDIR, "%q is not a directory", req.Name)
		}
		if err := c.leave(dir, req.Name, in); err != nil {
			return nil, err
		}
		if err := c.detach(in); err != nil {
			return nil, err
		}
		return &meta.Reply{Parent: dir.told(), Replaced: in.told()}, nil
	})
}

// notEmpty turns the refusal of "." and ".." as new names into that of their
// removal.
func notEmpty(err error) error {
	if no, ok := err.(*refusal); ok && no.errno == syscall.EEXIST {
		return refuse(syscall.EINVAL, "a directory is not removed by the name of itself or of its parent")
	}
	return err
}

// detach notes that a directory has no name any more, and will be taken apart.
func (c *change) detach(in *loaded) error {
	if in.Size > 0 {
		if err := c.Put(c.v.delayedTreeKey(c.second, in.Ino), nil); err != nil {
			return err
		}
	}
	c.inval(in, true)
	return c.orphan(in)
}

func (v *volume) delayedTreeKey(due int64, ino meta.Ino) []byte {
	return binary.BigEndian.AppendUint64(v.delayedKey(due, delayedTree), uint64(ino))
}

// treeStep bounds the entries that one transaction takes out of a detached
// directory: with long names, links and history it writes half of what it may.
const treeStep = 500

// takeAllApart works on a detached directory until end.
func (v *volume) takeAllApart(ctx context.Context, key []byte, dir meta.Ino, end time.Time) error {
	for more := true; more && time.Now().Before(end); {
		var err error
		if more, err = v.takeApart(ctx, key, dir); err != nil {
			return err
		}
	}
	return nil
}

// takeApart removes some entries of a detached directory, and tells whether there
// are more. The task is done with the last.
func (v *volume) takeApart(ctx context.Context, key []byte, dir meta.Ino) (more bool, err error) {
	names, inos, err := v.someEntries(ctx, dir)
	if err != nil {
		return false, err
	}
	inos = append(inos, dir)
	n := &notice{v: v}
	defer n.done()
	for {
		var c *change
		commit, err := v.update(ctx, nil, &meta.Request{}, inos, &c, func(c *change) (err error) {
			if more, err = c.tearAll(key, dir, names); err != nil {
				return err
			}
			return n.need(c.invals)
		})
		var others *untold
		if errors.As(err, &others) {
			n.tell(others)
			continue
		}
		if err != nil {
			return false, err
		}
		n.done()
		if err := v.srv.durable(commit); err != nil {
			return false, err
		}
		return more, n.keepOrphans(c.orphans)
	}
}

// tearAll takes names out of a detached directory, and its task off the list if
// those were the last.
func (c *change) tearAll(key []byte, dir meta.Ino, names []string) (more bool, err error) {
	in, err := c.inode(dir)
	if isErrno(err, syscall.ENOENT) {
		return false, c.Delete(key)
	}
	if err != nil {
		return false, err
	}
	if in.Nlink > 0 { // it was restored
		return false, c.Delete(key)
	}
	for _, name := range names {
		if err := c.tear(in, name); err != nil {
			return false, err
		}
	}
	if in.Size > 0 {
		return true, nil
	}
	return false, c.Delete(key)
}

// tear takes a name out of a detached directory, unless it stands for something
// else than a moment ago: the next step finds it again.
func (c *change) tear(dir *loaded, name string) error {
	d, err := c.entry(dir, name)
	if err != nil || d == nil || !slices.Contains(c.locked, d.ino) {
		return err
	}
	in, err := c.inode(d.ino)
	if err != nil {
		return err
	}
	if err := c.leave(dir, name, in); err != nil {
		return err
	}
	if in.IsDir() {
		return c.detach(in)
	}
	return c.dropName(in, dir)
}

// someEntries returns names of a directory, and what they stand for.
func (v *volume) someEntries(ctx context.Context, dir meta.Ino) (names []string, inos []meta.Ino, err error) {
	err = v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		prefix := v.dentryKey(dir, "")
		return r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
			d, err := decodeDentry(value)
			if err != nil {
				return false, err
			}
			names = append(names, string(key[len(prefix):]))
			inos = append(inos, d.ino)
			return len(names) < treeStep, nil
		})
	})
	return names, inos, err
}

// isErrno tells whether an operation was refused with an errno.
func isErrno(err error, errno syscall.Errno) bool {
	no, ok := err.(*refusal)
	return ok && no.errno == errno
}
