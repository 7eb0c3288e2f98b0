package fuse

import (
	"context"
	"syscall"

	"flexfs/meta"
)

// A loss is written data that is gone: the service refused it for good, or the
// store has it no more. Every file that was open then is told once, by close or
// fsync; if none was, the next that is opened.
type loss struct {
	count uint64 // of losses so far
	err   error  // the last
	told  bool   // to somebody
}

// lose notes a loss. in.mu is held.
func (in *inode) lose(err error) {
	l := &in.content.loss
	l.count++
	l.err, l.told = err, false
}

// knows returns what a file that is opened now need not be told. in.mu is held.
func (l *loss) knows() uint64 {
	if l.count > 0 && !l.told {
		return l.count - 1
	}
	return l.count
}

// tell returns the loss that the open file was not told of.
func (h *handle) tell() error {
	h.in.mu.Lock()
	defer h.in.mu.Unlock()
	l := &h.in.content.loss
	if h.knows == l.count {
		return nil
	}
	h.knows = l.count
	l.told = true
	return l.err
}

// spaceEvery is how many bytes are written between two looks at the space of the
// volume, and how much of it must be free for the next write not to look: so
// about as much is gathered at most that cannot be stored.
const spaceEvery = 64 << 20

// room refuses to write n bytes to where there is nothing yet, if the volume was
// full lately and still is, or may be by now. Whoever makes room can go on at once.
func (c *call) room(in *inode, off uint64, n int, app bool) error {
	fs := c.fs
	look := fs.full.Load()
	if fs.unlooked.Add(int64(n)) >= fs.spaceEvery {
		fs.unlooked.Store(0)
		look = true
	}
	if !look {
		return nil
	}
	in.mu.Lock()
	replaced := !app && off+uint64(n) <= in.attr.Size && in.attr.Bytes >= in.attr.Size
	in.mu.Unlock()
	if replaced {
		return nil
	}
	if fs.lookAtSpace(c.wait(), uint64(n)) {
		return nil
	}
	return syscall.ENOSPC
}

// lookAtSpace asks how much space is left, and reports whether n bytes fit beside
// what is not committed. If the service does not say they may.
func (fs *FS) lookAtSpace(ctx context.Context, n uint64) bool {
	ctx, cancel := context.WithTimeout(ctx, statfsTimeout)
	defer cancel()
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(ctx, &meta.Request{Op: meta.OpStatfs})
	if err != nil {
		return true
	}
	st := &rep.Statfs
	fs.statfs.Store(st)
	used := st.Bytes + fs.unsaved() + n
	fs.full.Store(st.MaxBytes > 0 && used+uint64(fs.spaceEvery) > st.MaxBytes)
	return st.MaxBytes == 0 || used <= st.MaxBytes
}

// unsaved returns by how much what is stored will grow when all is committed.
func (fs *FS) unsaved() uint64 {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := int64(0)
	for in := range fs.dirty {
		in.mu.Lock()
		if in.content.wrote && !in.gone {
			n += int64(in.content.stored(&in.attr, in.current().Size, uint64(fs.blockSize()), fs.vol().InlineMax))
			n -= int64(in.attr.Bytes)
		}
		in.mu.Unlock()
	}
	return uint64(max(n, 0))
}
