package tree

import (
	"bytes"
	"context"
	"errors"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// Bounds of one answer to an OpDeleted.
const (
	maxDeleted     = 1000
	maxDeletedScan = 20_000 // records of history
)

// deleted lists names that a directory lost.
func (s *session) deleted(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if s.at != 0 {
		return nil, refuse(syscall.EROFS, "the past is as it was: nothing is deleted in it")
	}
	reply := new(meta.Reply)
	err := s.v.view(ctx, 0, func(r engine.Reader) error {
		dir, err := s.v.inode(r, s.in(req.Ino))
		if err != nil {
			return err
		}
		if !dir.IsDir() {
			return refuse(syscall.ENOTDIR, "inode %d is not a directory", req.Ino)
		}
		if err := s.reaches(r, dir); err != nil {
			return err
		}
		since, err := s.v.counter(r, counterPast)
		if err != nil {
			return err
		}
		l := &losses{Reader: r, v: s.v, dir: dir.Ino, since: since, limit: maxDeleted}
		if req.Limit > 0 {
			l.limit = min(l.limit, int(req.Limit))
		}
		reply.Attr = dir.told()
		return l.list(reply, req.Name, req.At)
	})
	s.out(reply)
	return reply, err
}

// losses reads the history of a directory's names.
type losses struct {
	engine.Reader
	v     *volume
	dir   meta.Ino
	since int64
	limit int
}

// A loss is a change of a name: what it stood for before a second.
type loss struct {
	key    []byte
	second int64
	before []byte // the entry, nil: none
}

// list lists what was lost after a second in a name, and in the names after it.
// What a name stood for and what it stands for after that is told by two records
// of history, or by one and what is there now.
func (l *losses) list(reply *meta.Reply, name string, second int64) error {
	top := l.v.dentryKey(l.dir, "")
	from := historyAt(l.v.dentryKey(l.dir, name), second+1)
	if name == "" {
		from = historyOf(top)
	}
	var last *loss
	steps := 0
	err := l.Scan(from, historyEnd(after(top)), false, func(hkey, value []byte) (bool, error) {
		next := new(loss)
		var err error
		if next.key, next.second, err = splitHistory(hkey); err != nil {
			return false, err
		}
		if next.before, err = parseHistory(value); err != nil {
			return false, err
		}
		if last != nil {
			if err := l.examine(reply, last, next); err != nil {
				return false, err
			}
		}
		if steps++; steps > maxDeletedScan || len(reply.Deleted) >= l.limit {
			reply.Next = meta.Deleted{Name: string(last.key[len(top):]), At: last.second}
			last = nil
			return false, nil
		}
		last = next
		return true, nil
	})
	if err != nil || reply.Next.At != 0 {
		return err
	}
	reply.EOF = true
	if last == nil {
		return nil
	}
	return l.examine(reply, last, nil)
}

// examine adds a loss to the reply, if it is one. next is the record after it.
func (l *losses) examine(reply *meta.Reply, lost, next *loss) error {
	if lost.before == nil || lost.second <= l.since {
		return nil
	}
	now, err := l.Get(lost.key)
	if err != nil {
		return err
	}
	then := now
	if next != nil && bytes.Equal(next.key, lost.key) {
		then = next.before
	}
	if bytes.Equal(then, lost.before) || bytes.Equal(now, lost.before) {
		return nil // it was not lost, or has come back
	}
	d, err := decodeDentry(lost.before)
	if err != nil {
		return err
	}
	in, err := l.deleted(d.ino, lost.second)
	if err != nil || in == nil {
		return err
	}
	name := string(lost.key[len(l.v.dentryKey(l.dir, "")):])
	reply.Deleted = append(reply.Deleted, meta.Deleted{Name: name, At: lost.second, Attr: in.told()})
	return nil
}

// deleted returns the inode if it lost a name in a second, rather than to get
// another, and can have one again; else nil.
func (l *losses) deleted(ino meta.Ino, second int64) (*inode, error) {
	in, err := l.v.inode(l, ino)
	var no *refusal
	if errors.As(err, &no) {
		return nil, nil // it is gone
	}
	if err != nil || in.IsDir() && in.Nlink > 0 {
		return nil, err
	}
	before, err := l.v.inode(&past{l.Reader, second - 1}, ino)
	if err != nil {
		return nil, err
	}
	then, err := l.v.inode(&past{l.Reader, second}, ino)
	if err != nil || then.Nlink >= before.Nlink || in.IsDir() && then.Nlink > 0 {
		return nil, err
	}
	return in, nil
}

// restore gives back a name that was deleted, or another one in its directory.
func (s *session) restore(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	name := req.Name2
	if name == "" {
		name = req.Name
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	return s.change(ctx, req, []meta.Ino{s.in(req.Ino), s.in(req.Ino2)}, func(c *change) (*meta.Reply, error) {
		dir, err := c.livingDir(req.Ino)
		if err != nil {
			return nil, err
		}
		in, err := c.given(req.Ino2)
		if err != nil {
			return nil, err
		}
		if err := c.wasNamed(dir, req.Name, req.At, in); err != nil {
			return nil, err
		}
		if d, err := c.entry(dir, name); err != nil || d != nil {
			if err == nil {
				err = refuse(syscall.EEXIST, "%q is there", name)
			}
			return nil, err
		}
		if err := c.revive(in, dir); err != nil {
			return nil, err
		}
		if err := c.enter(dir, name, in); err != nil {
			return nil, err
		}
		return &meta.Reply{Attr: in.told(), Parent: dir.told()}, nil
	})
}

// wasNamed refuses an inode that a name did not stand for until a second.
func (c *change) wasNamed(dir *loaded, name string, second int64, in *loaded) error {
	b, err := c.Get(historyAt(c.v.dentryKey(dir.Ino, name), second))
	if err != nil {
		return err
	}
	want := dentry{in.Ino, in.Mode & typeMask}.encode()
	if b == nil || !bytes.Equal(b[1:], want) {
		return refuse(syscall.ENOENT, "%q was not inode %d until then", name, in.Ino)
	}
	return nil
}

// revive counts a name of an inode that may have lost its last one.
func (c *change) revive(in, dir *loaded) error {
	switch {
	case in.IsDir() && in.Nlink > 0:
		return refuse(syscall.EEXIST, "the directory has another name")
	case in.IsDir() && in.Size > 0:
		return refuse(syscall.EBUSY, "the directory is still being taken apart")
	case in.IsDir():
		in.Nlink = 2
		in.Parent = dir.Ino
		c.count(0, 1)
		c.touch(in)
		c.inval(in, true)
		return nil
	case in.Nlink >= meta.MaxLinks:
		return refuse(syscall.EMLINK, "inode %d has %d names", in.Ino, in.Nlink)
	}
	return c.addName(in, dir)
}
