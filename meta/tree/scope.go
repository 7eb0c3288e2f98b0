package tree

import (
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A session whose token is for a folder has that folder as meta.Root, and
// reaches nothing that is not below it.

// in returns the inode that the client calls ino.
func (s *session) in(ino meta.Ino) meta.Ino {
	if ino == meta.Root {
		return s.root
	}
	return ino
}

// outIno returns what the client calls an inode.
func (s *session) outIno(ino meta.Ino) meta.Ino {
	if ino == s.root {
		return meta.Root
	}
	return ino
}

func (s *session) outAttr(a *meta.Attr) {
	if a.Ino == s.root {
		a.Parent = s.root
	}
	a.Ino = s.outIno(a.Ino)
	a.Parent = s.outIno(a.Parent)
}

// out puts a reply into the client's numbers.
func (s *session) out(reply *meta.Reply) {
	if s.root == meta.Root {
		return
	}
	for _, a := range []*meta.Attr{&reply.Attr, &reply.Parent, &reply.Parent2, &reply.Replaced} {
		s.outAttr(a)
	}
	for i := range reply.Entries {
		s.outAttr(&reply.Entries[i].Attr)
	}
	for i := range reply.Deleted {
		s.outAttr(&reply.Deleted[i].Attr)
	}
}

func (s *session) outInvals(invals []meta.Inval) []meta.Inval {
	out := make([]meta.Inval, len(invals))
	for i, inval := range invals {
		inval.Ino = s.outIno(inval.Ino)
		out[i] = inval
	}
	return out
}

// reaches refuses an inode that is not below the session's root.
func (s *session) reaches(r engine.Reader, in *inode) error {
	if s.root == meta.Root || in.Ino == s.root {
		return nil
	}
	parents := []meta.Ino{in.Parent}
	if !in.IsDir() && in.Nlink > 1 {
		var err error
		if parents, err = s.v.parents(r, in.Ino); err != nil {
			return err
		}
	}
	for _, dir := range parents {
		if below, err := s.v.below(r, dir, s.root); err != nil || below {
			return err
		}
	}
	return refuse(syscall.ENOENT, "inode %d is not in the folder of the token", in.Ino)
}

// maxDepth bounds a walk up the tree, so that a damaged database cannot make it
// endless.
const maxDepth = 100_000

// below tells whether dir is top or below it.
func (v *volume) below(r engine.Reader, dir, top meta.Ino) (bool, error) {
	for range maxDepth {
		if dir == top {
			return true, nil
		}
		if dir == meta.Root {
			return false, nil
		}
		b, err := r.Get(v.attrKey(dir))
		if err != nil || b == nil {
			return false, err
		}
		in, err := decodeInode(dir, b)
		if err != nil {
			return false, err
		}
		dir = in.Parent
	}
	return false, refuse(syscall.ELOOP, "inode %d is more than %d deep", dir, maxDepth)
}
