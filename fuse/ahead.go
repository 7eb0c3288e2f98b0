package fuse

import (
	"sync/atomic"

	"flexfs/meta"
)

// A credit is how many entries, and bytes of contents, may be fetched ahead for
// nothing.
type credit struct{ entries, bytes atomic.Int64 }

// What a mount begins with, and the most that it can have.
const (
	firstEntries, mostEntries = 1000, 20_000
	firstBytes, mostBytes     = 256 << 10, 8 << 20
)

func newCredit() *credit {
	c := new(credit)
	c.entries.Store(firstEntries)
	c.bytes.Store(firstBytes)
	return c
}

func earn(c *atomic.Int64, n, most int64) {
	for {
		old := c.Load()
		if old >= most || c.CompareAndSwap(old, min(old+n, most)) {
			return
		}
	}
}

// trusts reports whether a directory of so many entries may be fetched because of
// the first name that is asked for.
func (c *credit) trusts(entries uint64) bool {
	return entries <= maxTrusted && int64(entries)*3 < c.entries.Load()-firstEntries
}

// maxTrusted bounds that: who wants one name only waits for all of them.
const maxTrusted = 256

// contents returns how many bytes of contents may come along where nobody has read
// yet.
func (c *credit) contents() int64 {
	if n := c.bytes.Load() - firstBytes; n >= firstBytes/8 {
		return min(n, laterContents)
	}
	return 0
}

// recordWorth is what the record of a block counts for in bytes of contents: who
// has it saves a request.
const recordWorth = 512

// learnEntries takes over a part of a directory. ahead says that no program asked
// for it.
func (fs *FS) learnEntries(dir *inode, rep *meta.Reply, seq uint64, ahead bool) {
	fs.learnParent(&rep.Attr, rep.Cache, seq)
	bytes, blocks := int64(0), []next(nil)
	for i := range rep.Entries {
		e := &rep.Entries[i]
		dir.mu.Lock()
		_, known := dir.names[e.Name]
		dir.mu.Unlock()
		child := fs.inode(e.Attr.Ino)
		child.mu.Lock()
		_, had := child.content.rec(0)
		child.learn(&e.Attr, e.Block, rep.Cache && !fs.invals.since(seq, child.ino))
		child.ahead = child.ahead || ahead && !known
		if e.Block != nil && !had {
			child.content.ahead = recordWorth + int64(len(e.Block.Data))
			bytes += child.content.ahead
		}
		more := child.content.toStock()
		child.mu.Unlock()
		fs.stock.keep(child, more)
		fs.remember(dir, e.Name, child, rep.Cache, seq)
		if e.Block != nil && !e.Block.Inline && !had && e.Block.Len <= wholeFile {
			blocks = append(blocks, next{name: e.Name, in: child, block: e.Block})
		}
	}
	if len(blocks) > 0 {
		dir.mu.Lock()
		w := walked(&dir.reads)
		if n := len(w.next); n > 0 && w.next[n-1].name < blocks[0].name && n < laterPage {
			blocks = append(w.next, blocks...)
		}
		w.next = blocks
		dir.mu.Unlock()
	}
	fs.credit.bytes.Add(-bytes)
	fs.sweepListed(len(rep.Entries))
}

// lookedAt takes note that a program came for an entry that was fetched ahead.
func (fs *FS) lookedAt(dir *inode, name string) {
	earn(&fs.credit.entries, 3, mostEntries)
	fs.cameFor(dir, name)
}

// read takes note that a program came for so many bytes of contents that were
// fetched ahead.
func (fs *FS) readAt(in *inode, n int64) {
	earn(&fs.credit.bytes, 3*n, mostBytes)
	in.mu.Lock()
	parent, name := in.parent, in.name
	in.mu.Unlock()
	if dir := fs.known(parent); dir != nil {
		fs.cameFor(dir, name)
		fs.fetchBlocks(dir, name)
	}
}

// A next is a file of one block that is in the bucket, and of which the service
// told with a listing.
type next struct {
	name  string
	in    *inode
	block *meta.Block
}

// maxNext bounds the files whose blocks are being fetched ahead, and how far ahead
// they are.
const maxNext = 8

// fetchBlocks fetches the blocks of the files that come after one which is read.
func (fs *FS) fetchBlocks(dir *inode, name string) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	w := dir.reads
	if w == nil {
		return
	}
	for len(w.next) > 0 && w.next[0].name <= name {
		w.next = w.next[1:]
	}
	for i := range min(maxNext, len(w.next)) {
		if f := &w.next[i]; f.block != nil {
			if !fs.fetchBlock(f.in, f.block) {
				return
			}
			f.block = nil
		}
	}
}

// fetchBlock fetches a block into the memory for blocks. It reports whether there
// was room for that, and a credit.
func (fs *FS) fetchBlock(in *inode, b *meta.Block) bool {
	n := int64(b.Len)
	if fs.credit.bytes.Load() < n || !fs.budget.tryAhead(n) {
		return false
	}
	select {
	case fs.fetches <- struct{}{}:
	default:
		fs.budget.releaseAhead(n)
		return false
	}
	fs.credit.bytes.Add(-n)
	fs.stats.Ahead.Add(1)
	go func() {
		defer func() { <-fs.fetches; fs.budget.releaseAhead(n) }()
		in.mu.Lock()
		if in.content.ahead > 0 { // it has not been read yet
			in.content.ahead += n
		}
		in.mu.Unlock()
		// Who wants it and does not find it learns what the matter is.
		_, _ = fs.blocks.Get(fs.ctx, fs.key(in, b), 0, -1)
	}()
	return true
}
