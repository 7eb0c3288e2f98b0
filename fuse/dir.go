package fuse

import (
	"hash/maphash"
	"slices"
	"sync"
	"syscall"

	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"

	"flexfs/meta"
)

// A dirHandle is an open directory. An entry's offset is its number in the order
// of names, counted from when it was read, plus the two for "." and "..". The
// parts that were read are kept by where they begin, and of each entry a hash. So
// a place further back is found again when entries have come and gone since: it
// is behind the last entry before it that is still there.
type dirHandle struct {
	in *inode

	mu     sync.Mutex
	parts  []dirPart // ascending; the first begins at 0
	recent []dirPart // the last few that were read, with their entries, newest last
	whole  *listing  // what was read from the first entry on, of one state of the directory
	hashes []uint32  // of the names, by number
	ahead  *asked    // the part behind the last
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
	c.fs.entering.end(c.fs.dirs[uint64(op.Handle)])
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
	var reader *dirHandle
	err := c.list(&op.ReadDirOp, func(buf []byte, d *dirHandle, e *meta.Entry, next fuseops.DirOffset) int {
		reader = d
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
	if reader != nil {
		c.fs.entering.begin(reader)
	}
	return err
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
	c.fs.entering.end(d)
	c.within(d.in)
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
		d.parts, d.recent, d.whole, d.hashes, d.ahead = []dirPart{{}}, nil, nil, nil, nil
		if l := c.listed(d.in); l != nil {
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
		again := uint64(len(d.hashes)) > d.parts[i].first
		if err := d.fetch(c, i); err != nil {
			return nil, err
		}
		if again {
			d.realign(i, n)
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

// realign gives the number n to the entry that follows those that had lower
// numbers when part i was read before. What comes after it is counted anew.
func (d *dirHandle) realign(i int, n uint64) {
	l := &d.recent[len(d.recent)-1]
	index := make(map[uint32]int, len(l.entries))
	for k := range l.entries {
		index[hashName(l.entries[k].Name)] = k
	}
	from := 0
	for j := min(n, uint64(len(d.hashes))); j > l.first; j-- {
		if k, ok := index[d.hashes[j-1]]; ok {
			from = k + 1
			break
		}
	}
	after := d.parts[i].after
	if len(l.entries) > 0 {
		after = l.entries[len(l.entries)-1].Name
	}
	l.entries, l.first = l.entries[from:], n
	d.parts, d.recent, d.whole = d.parts[:i+1], []dirPart{*l}, nil
	d.hashes = d.hashes[:min(n, uint64(len(d.hashes)))]
	d.number(after)
}

// number notes the names of the last part, which is the furthest, and where the
// next begins: behind the name after.
func (d *dirHandle) number(after string) {
	l := &d.recent[len(d.recent)-1]
	for k := range l.entries {
		d.hashes = append(d.hashes, hashName(l.entries[k].Name))
	}
	if !l.eof {
		d.parts = append(d.parts, dirPart{first: l.first + uint64(len(l.entries)), after: after})
	}
}

var nameSeed = maphash.MakeSeed()

func hashName(name string) uint32 { return uint32(maphash.String(nameSeed, name)) }

// fetch reads part i and, if it is the first time, notes where the next begins.
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
	rep, seq, err := d.part(c, p.after)
	if err != nil {
		if refusal(err) == syscall.ENOENT {
			p.eof = true
			d.keep(p)
			return nil
		}
		return err
	}
	fs.learnEntries(in, rep, seq, false)
	p.entries = append(p.entries, rep.Entries...)
	p.eof = rep.EOF || len(rep.Entries) == 0
	d.keep(p)
	if l := d.gather(p, rep.Attr.Change); l != nil && p.eof && rep.Cache {
		fs.keepListing(in, l)
	}
	if uint64(len(d.hashes)) == p.first && len(p.entries) > 0 {
		after := p.entries[len(p.entries)-1].Name
		d.number(after)
		if !p.eof {
			d.ahead = fs.askAhead(in, after)
		}
	}
	return nil
}

// An asked is a part of a directory that was asked for before a program came to
// it.
type asked struct {
	after string
	seq   uint64
	done  chan struct{}
	rep   *meta.Reply // valid after done
	err   error
}

func partOf(dir *inode, after string, contents int64) *meta.Request {
	return &meta.Request{Op: meta.OpReaddir, Ino: dir.ino, Name: after, Limit: dirLimit, Plus: true, Size: uint64(contents)}
}

// askAhead asks for a part in the background, unless too much is being asked for.
func (fs *FS) askAhead(dir *inode, after string) *asked {
	select {
	case fs.pages <- struct{}{}:
	default:
		return nil
	}
	a := &asked{after: after, seq: fs.invals.now(), done: make(chan struct{})}
	fs.stats.Pages.Add(1)
	fs.stats.Requests.Add(1)
	go func() {
		defer func() { <-fs.pages }()
		defer close(a.done)
		a.rep, a.err = fs.meta.Do(fs.ctx, partOf(dir, after, fs.credit.contents()))
	}()
	return a
}

// part returns the part of a directory behind a name, and as of when it is. What
// was asked for ahead counts if nothing has changed in the directory since.
func (d *dirHandle) part(c *call, after string) (*meta.Reply, uint64, error) {
	fs := c.fs
	a := d.ahead
	if d.ahead = nil; a != nil && a.after == after {
		c.await(a.done)
		if a.good(fs, d.in) {
			return a.rep, a.seq, nil
		}
	}
	seq := fs.invals.now()
	rep, err := c.do(partOf(d.in, after, fs.credit.contents()))
	return rep, seq, err
}

// good reports whether what was asked for is here and true.
func (a *asked) good(fs *FS, dir *inode) bool {
	select {
	case <-a.done:
		return a.err == nil && a.rep.Cache && fs.leased() && !fs.invals.since(a.seq, dir.ino)
	default:
		return false
	}
}
