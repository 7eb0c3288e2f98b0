package fuse

import (
	"container/list"
	"sync"
)

// A stock bounds the contents of small files that are in the block maps of their
// inodes. What has been there for longest goes first.
type stock struct {
	budget *Budget

	mu     sync.Mutex
	order  list.List // of *portion
	of     map[*inode]*list.Element
	size   int64 // of all, taken from the budget
	closed bool
}

// A portion is what an inode's contents count for.
type portion struct {
	in   *inode
	size int64
}

// toStock returns what the contents in the block map are to count for, if the
// stock does not know that yet, and else 0. The inode is locked.
func (ct *content) toStock() int64 {
	b := ct.recs[0]
	if b == nil || !b.Inline {
		return 0
	}
	size := recordWorth + int64(len(b.Data))
	if size <= ct.stocked {
		return 0
	}
	ct.stocked = size
	return size
}

// keep has an inode's contents count for size, unless that is 0, and has older
// ones go if there are too many, or these themselves if memory is short.
func (s *stock) keep(in *inode, size int64) {
	if size == 0 {
		return
	}
	s.mu.Lock()
	s.remove(in)
	var out []*inode
	for s.order.Len() > 0 && s.size+size > s.budget.max/8 {
		oldest := s.order.Front().Value.(*portion).in
		s.remove(oldest)
		out = append(out, oldest)
	}
	if !s.closed && s.budget.tryKeep(size) {
		if s.of == nil {
			s.of = map[*inode]*list.Element{}
		}
		s.of[in] = s.order.PushBack(&portion{in, size})
		s.size += size
	} else {
		out = append(out, in)
	}
	s.mu.Unlock()
	for _, in := range out {
		in.mu.Lock()
		in.content.stocked = 0
		if b := in.content.recs[0]; b != nil && b.Inline {
			in.content.forgetMap()
		}
		in.mu.Unlock()
	}
}

// drop forgets an inode, which may be locked.
func (s *stock) drop(in *inode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(in)
}

// remove takes an inode's portion out, if it has one. s.mu is held.
func (s *stock) remove(in *inode) {
	e := s.of[in]
	if e == nil {
		return
	}
	delete(s.of, in)
	p := s.order.Remove(e).(*portion)
	s.size -= p.size
	s.budget.releaseKept(p.size)
}

// close gives the memory back to the budget.
func (s *stock) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.releaseKept(s.size)
	s.of, s.size, s.closed = nil, 0, true
	s.order.Init()
}
