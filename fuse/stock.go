package fuse

import "sync"

// A stock bounds the contents of small files that are in the block maps of their
// inodes. What has been there for longest goes first.
type stock struct {
	budget *Budget

	mu    sync.Mutex
	queue []portion
	size  int64 // of all, taken from the budget

	closed bool
}

// A portion is the contents of one inode, or what they grew by.
type portion struct {
	in   *inode
	size int64
}

// toStock returns how many bytes of contents the block map has that the stock has
// not counted, to be given to keep. The inode is locked.
func (ct *content) toStock() int64 {
	b := ct.recs[0]
	if b == nil || int64(len(b.Data)) <= ct.stocked {
		return 0
	}
	more := int64(len(b.Data)) - ct.stocked
	ct.stocked += more
	return more
}

// keep adds bytes of an inode's contents, and has older ones go if there are too
// many, or these themselves if memory is short.
func (s *stock) keep(in *inode, size int64) {
	if size == 0 {
		return
	}
	var out []portion
	s.mu.Lock()
	for len(s.queue) > 0 && s.size+size > s.budget.max/8 {
		out = append(out, s.queue[0])
		s.size -= s.queue[0].size
		s.budget.releaseKept(s.queue[0].size)
		s.queue = s.queue[1:]
	}
	if !s.closed && s.budget.tryKeep(size) {
		s.queue = append(s.queue, portion{in, size})
		s.size += size
	} else {
		out = append(out, portion{in, size})
	}
	s.mu.Unlock()
	for _, p := range out {
		p.in.mu.Lock()
		p.in.content.stocked -= p.size
		if b := p.in.content.recs[0]; b != nil && b.Inline {
			p.in.content.forgetMap()
		}
		p.in.mu.Unlock()
	}
}

// close gives the memory back to the budget.
func (s *stock) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.releaseKept(s.size)
	s.queue, s.size, s.closed = nil, 0, true
}
