package fuse

import (
	"slices"
	"sync"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"

	"flexfs/meta"
)

// A dirHandle is an open directory. An entry's offset is its number in the order
// of names, counted from when it was read, plus the two for "." and "..". It
// stays true for as long as the handle lives and the place is not further back
// than the parts read: those are kept by where they begin.
type dirHandle struct {
	in *inode

	mu     sync.Mutex
	parts  []dirPart // ascending; the first begins at 0
	recent []dirPart // the last few that were read, with their entries, newest last
	whole  *listing  // what was read from the first entry on, of one state of the directory
}

// A dirPart is a stretch of a listing.
type dirPart struct {
	first   uint64 // number of its first entry
	after   string // the name before that
	entries []meta.Entry
	eof     bool
}

// dirLimit is how many entries are asked for at a time.
const dirLimit = 1000

// maxRecent bounds the parts that a handle keeps, for programs that seek in a
// directory: some 200 bytes per entry.
const maxRecent = 4

func (c *call) openDir(op *fuseops.OpenDirOp) error {
	fs := c.fs
	d := &dirHandle{in: fs.node(op.Inode), parts: []dirPart{{}}}
	fs.mu.Lock()
	fs.lastID++
	op.Handle = fuseops.HandleID(fs.lastID)
	fs.dirs[fs.lastID] = d
	fs.mu.Unlock()
	return nil
}

func (c *call) releaseDir(op *fuseops.ReleaseDirHandleOp) error {
	c.fs.mu.Lock()
	delete(c.fs.dirs, uint64(op.Handle))
	c.fs.mu.Unlock()
	return nil
}

func (fs *FS) dirHandle(id fuseops.HandleID) (*dirHandle, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if d := fs.dirs[uint64(id)]; d != nil {
		return d, nil
	}
	return nil, syscall.EBADF
}

func (c *call) readDir(op *fuseops.ReadDirOp) error {
	return c.list(op, func(buf []byte, d *dirHandle, e *meta.Entry, next fuseops.DirOffset) int {
		return fuseutil.WriteDirent(buf, dirent(e, next))
	})
}

func (c *call) readDirPlus(op *fuseops.ReadDirPlusOp) error {
	return c.list(&op.ReadDirOp, func(buf []byte, d *dirHandle, e *meta.Entry, next fuseops.DirOffset) int {
		p := fuseutil.DirentPlus{Dirent: dirent(e, next)}
		given := len(c.given)
		if e.Name != "." && e.Name != ".." && e.Attr.Ino != 0 {
			if in := c.fs.described(&e.Attr); in != nil {
				c.entry(d.in, in, e.Name, &p.Entry)
			}
		}
		n := fuseutil.WriteDirentPlus(buf, p)
		if n == 0 && len(c.given) > given { // no room: the kernel does not get it
			c.given = c.given[:given]
			c.fs.untake(e.Attr.Ino)
		}
		return n
	})
}

func dirent(e *meta.Entry, next fuseops.DirOffset) fuseutil.Dirent {
	return fuseutil.Dirent{
		Offset: next,
		Inode:  fuseops.InodeID(e.Attr.Ino),
		Name:   e.Name,
		Type:   fuseutil.DirentType(e.Attr.Mode & syscall.S_IFMT >> 12),
	}
}

// list writes entries from op.Offset on until the buffer is full.
func (c *call) list(op *fuseops.ReadDirOp, write func([]byte, *dirHandle, *meta.Entry, fuseops.DirOffset) int) error {
	d, err := c.fs.dirHandle(op.Handle)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := uint64(op.Offset)
	for ; at < 2; at++ {
		e := d.dot(c, at)
		n := write(op.Dst[op.BytesRead:], d, &e, fuseops.DirOffset(at+1))
		if n == 0 {
			return nil
		}
		op.BytesRead += n
	}
	entries, err := d.from(c, at-2)
	if err != nil {
		if op.BytesRead > 0 { // what there is first; the error comes with the next
			return nil
		}
		return err
	}
	c.answer()
	for i := range entries {
		n := write(op.Dst[op.BytesRead:], d, &entries[i], fuseops.DirOffset(at+1))
		if n == 0 {
			break
		}
		op.BytesRead += n
		at++
	}
	return nil
}

// untake takes back a reference that the kernel did not get. The inode stays:
// it is going to be given soon.
func (fs *FS) untake(ino meta.Ino) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if in := fs.inodes[ino]; in != nil {
		in.lookups--
	}
}

// maxListed bounds the inodes that are known only because they were listed: the
// kernel, which did not look at them, does not say when it needs them no more.
const maxListed = 100_000

// sweepListed drops all of those when there may be too many. n were listed.
func (fs *FS) sweepListed(n int) {
	var dropped []*inode
	fs.mu.Lock()
	if fs.listedSince += n; fs.listedSince > maxListed {
		fs.listedSince = 0
		for _, in := range fs.inodes {
			if fs.dropLocked(in) {
				dropped = append(dropped, in)
			}
		}
	}
	fs.mu.Unlock()
	for _, in := range dropped {
		fs.unname(in)
	}
}

// dot returns the entry of the directory itself or of its parent.
func (d *dirHandle) dot(c *call, i uint64) meta.Entry {
	e := meta.Entry{Name: ".", Attr: meta.Attr{Ino: d.in.ino, Mode: syscall.S_IFDIR}}
	if i == 1 {
		e.Name = ".."
		d.in.mu.Lock()
		if p := d.in.attr.Parent; p != 0 {
			e.Attr.Ino = p
		}
		d.in.mu.Unlock()
	}
	return e
}

// from returns entries from number n on, none if there are no more. d.mu is
// held: one reader at a time asks.
func (d *dirHandle) from(c *call, n uint64) ([]meta.Entry, error) {
	if n == 0 { // rewound: what is there now
		d.parts, d.recent, d.whole = []dirPart{{}}, nil, nil
		if l := d.in.listed(c.fs); l != nil {
			d.keep(dirPart{entries: l.entries, eof: true})
		}
	}
	for {
		for _, p := range slices.Backward(d.recent) {
			end := p.first + uint64(len(p.entries))
			switch {
			case n >= p.first && n < end:
				return p.entries[n-p.first:], nil
			case p.eof && n >= end:
				return nil, nil
			}
		}
		i := len(d.parts) - 1
		for d.parts[i].first > n {
			i--
		}
		if err := d.fetch(c, i); err != nil {
			return nil, err
		}
	}
}

// keep keeps a part that was read.
func (d *dirHandle) keep(p dirPart) {
	if len(d.recent) == maxRecent {
		d.recent = slices.Delete(d.recent, 0, 1)
	}
	d.recent = append(d.recent, p)
}

// fetch reads part i, and notes where the next begins.
func (d *dirHandle) fetch(c *call, i int) error {
	fs := c.fs
	in := d.in
	in.mu.Lock()
	gone := in.gone
	in.mu.Unlock()
	p := d.parts[i]
	if gone {
		p.eof = true
		d.keep(p)
		return nil
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpReaddir, Ino: in.ino, Name: p.after, Limit: dirLimit, Plus: true})
	if err != nil {
		if refusal(err) == syscall.ENOENT {
			p.eof = true
			d.keep(p)
			return nil
		}
		return err
	}
	fs.learnParent(&rep.Attr, rep.Cache, seq)
	for j := range rep.Entries {
		e := &rep.Entries[j]
		child := fs.learn(&e.Attr, nil, rep.Cache, seq)
		fs.remember(in, e.Name, child, rep.Cache, seq)
	}
	fs.sweepListed(len(rep.Entries))
	p.entries = append(p.entries, rep.Entries...)
	p.eof = rep.EOF || len(rep.Entries) == 0
	d.keep(p)
	if l := d.gather(p, rep.Attr.Change); l != nil && p.eof && rep.Cache {
		fs.keepListing(in, l)
	}
	if i == len(d.parts)-1 && !p.eof {
		d.parts = append(d.parts, dirPart{
			first: p.first + uint64(len(p.entries)),
			after: p.entries[len(p.entries)-1].Name,
		})
	}
	return nil
}
