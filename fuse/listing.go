package fuse

import (
	"syscall"

	"flexfs/meta"
)

// A listing is all that is in a directory, as of one version of it. It is not
// changed once it is an inode's.
type listing struct {
	change  uint64 // the directory's Change
	entries []meta.Entry
}

// maxListings bounds the entries in listings that are kept, in all directories:
// some 10 MB. A longer one is not kept.
const maxListings = 100_000

// keepListing keeps l as what is in a directory, for as long as it has the
// version of l.
func (fs *FS) keepListing(in *inode, l *listing) {
	if len(l.entries) > maxListings {
		return
	}
	if fs.listings.Add(int64(len(l.entries))) > maxListings {
		fs.forgetListings()
		fs.listings.Add(int64(len(l.entries)))
	}
	in.mu.Lock()
	in.forgetListing(fs)
	in.listing = l
	in.mu.Unlock()
	fs.wentOn(in)
}

// forgetListing forgets what is in a directory. in.mu is held.
func (in *inode) forgetListing(fs *FS) {
	if in.listing != nil {
		fs.listings.Add(-int64(len(in.listing.entries)))
		in.listing = nil
	}
}

func (fs *FS) forgetListings() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, in := range fs.inodes {
		in.mu.Lock()
		in.listing = nil
		in.mu.Unlock()
	}
	fs.listings.Store(0)
}

// listed returns what is in a directory, if that is known and may be believed.
func (in *inode) listed(fs *FS) *listing {
	leased := fs.leased()
	in.mu.Lock()
	defer in.mu.Unlock()
	if l := in.listing; l != nil && in.valid && leased && l.change == in.attr.Change && len(in.unmade) == 0 {
		return l
	}
	return nil
}

// listed is what a program comes for: it waits for what is on its way.
func (c *call) listed(dir *inode) *listing {
	c.fs.cameTo(dir)
	l := dir.listed(c.fs)
	if l != nil {
		return l
	}
	dir.mu.Lock()
	p := dir.walk.wholePage()
	dir.mu.Unlock()
	if !p.underWay() {
		return nil
	}
	c.await(p.done)
	return dir.listed(c.fs)
}

// gather adds a part to what was read of the directory, if it is the next of the
// same version. It returns that, or nil.
func (d *dirHandle) gather(p dirPart, change uint64) *listing {
	if p.first == 0 {
		d.whole = &listing{change: change, entries: []meta.Entry{}}
	}
	if d.whole == nil || d.whole.change != change || uint64(len(d.whole.entries)) != p.first || p.first > maxListings {
		d.whole = nil
		return nil
	}
	d.whole.add(p.entries)
	return d.whole
}

// add adds entries, without their attributes.
func (l *listing) add(entries []meta.Entry) {
	for i := range entries {
		e := &entries[i]
		l.entries = append(l.entries, meta.Entry{Name: e.Name, Attr: meta.Attr{Ino: e.Attr.Ino, Mode: e.Attr.Mode & syscall.S_IFMT}})
	}
}

// described returns the inode of an entry that was read a while ago. If it was
// dropped since, the attributes of then are told and not kept; an entry of a
// listing that was kept has none, and its inode is not told of.
func (fs *FS) described(attr *meta.Attr) *inode {
	if attr.Nlink == 0 {
		in := fs.known(attr.Ino)
		if in == nil {
			return nil
		}
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.attr.Ino == 0 || in.gone {
			return nil
		}
		return in
	}
	in := fs.inode(attr.Ino)
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.attr.Ino == 0 {
		in.learn(attr, nil, false)
	}
	return in
}
