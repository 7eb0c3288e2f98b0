package fuse

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// An inode is one that the kernel knows, or that has unwritten data.
type inode struct {
	ino     meta.Ino
	lookups uint64       // the kernel's references; guarded by FS.mu
	paged   atomic.Int64 // counts what gave the kernel pages of it
	unpaged atomic.Int64 // what paged was when the kernel began to drop them, for the last time that it did
	aside   atomic.Int64 // counts reads with O_DIRECT: those for a map of such an open file give pages, too
	unaside atomic.Int64 // what aside was, likewise
	calls   atomic.Int32 // of a directory: operations in it that are not answered
	trusted atomic.Int64 // counts how often the kernel was given attributes that it may believe
	taken   atomic.Int64 // what trusted was when it began to forget them, for the last time that it did
	late    atomic.Bool  // some were given that it believes also if it was told meanwhile to forget what it has

	mu        sync.Mutex
	attr      meta.Attr // the last that was told
	valid     bool      // attr is as on the server, while the lease lasts
	altered   bool      // it was changed by this mount
	gone      bool      // its last link is gone: attr is the only thing left to tell
	nameless  bool      // it never had any: no other mount can have it open
	recalls   uint64    // how often the service asked for the directory back
	delegated bool      // of a directory: nobody else sees it before we are called back
	opens     int       // open files
	told      bool      // the service was told that it is in use
	locks     []meta.Lock
	asking    map[lockOwner]int      // requests for locks that are under way
	maybe     map[lockOwner]struct{} // who may hold a lock: the answer was lost
	lost      map[lockOwner]struct{} // whose locks ended with the session
	losses    uint64                 // counts sessions that ended; lost is not nil then
	owners    map[uint64]uint64      // of range locks, and the open file that each used last
	names     map[string]meta.Ino    // of a directory: entries known, 0 is absent
	entries   uint64                 // how many of names are not absent
	complete  bool                   // see allNamed
	listing   *listing               // likewise, all of them; nil: not known
	unmade    map[string]*inode      // likewise, those that the service was not told of; see making
	lastMade  meta.Time              // when the newest of them was
	making    *making                // of a file of which the service was not told
	walk      *walk                  // of a directory: how programs look at what is in it
	reads     *walk                  // likewise, and how they read it
	tour      tour                   // likewise, and how they come to it
	ahead     bool                   // fetched ahead, and no program has looked at it yet
	parent    meta.Ino               // where it was found last
	name      string
	pages     uint64 // version of the contents that the kernel's pages have, or an older one
	content   content
}

// inode returns the inode, which may be new.
func (fs *FS) inode(ino meta.Ino) *inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.inodeLocked(ino)
}

func (fs *FS) inodeLocked(ino meta.Ino) *inode {
	in := fs.inodes[ino]
	if in == nil {
		in = &inode{ino: ino}
		fs.inodes[ino] = in
	}
	return in
}

// known returns the inode if there is one.
func (fs *FS) known(ino meta.Ino) *inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.inodes[ino]
}

// forget takes back n of the kernel's references.
func (fs *FS) forget(ino meta.Ino, n uint64) {
	fs.mu.Lock()
	in := fs.inodes[ino]
	if in == nil {
		fs.mu.Unlock()
		return
	}
	in.lookups -= min(n, in.lookups)
	dropped := fs.dropLocked(in)
	fs.mu.Unlock()
	if dropped {
		fs.unname(in)
	}
}

// drop removes the inode if nobody needs it.
func (fs *FS) drop(in *inode) {
	fs.mu.Lock()
	dropped := fs.dropLocked(in)
	fs.mu.Unlock()
	if dropped {
		fs.unname(in)
	}
}

func (fs *FS) dropLocked(in *inode) bool {
	if in.lookups > 0 || fs.inodes[in.ino] != in {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.opens > 0 || in.busy() || len(in.unmade) > 0 {
		return false
	}
	delete(fs.inodes, in.ino)
	if in.altered {
		fs.invals.own(fs.invals.now(), in.ino) // what was asked before must not be taken for true when it is known no more
	}
	fs.absent -= in.forgetAllNames()
	fs.stock.drop(in)
	if in.gone && in.told {
		fs.closes.add(in.ino) // a directory that was removed here
	}
	in.forgetListing(fs)
	return true
}

// busy reports whether there is anything of the inode that the service does not
// have. in.mu is held.
func (in *inode) busy() bool { return in.making != nil || in.content.busy() }

// unname forgets the name under which a dropped inode was found.
func (fs *FS) unname(in *inode) {
	in.mu.Lock()
	parent, name := in.parent, in.name
	in.mu.Unlock()
	dir := fs.known(parent)
	if dir == nil || parent == 0 {
		return
	}
	dir.mu.Lock()
	if dir.names[name] == in.ino {
		dir.forgetName(name)
	}
	dir.mu.Unlock()
}

// learn takes over what the service told about an inode, unless something newer
// is known. It is kept if the service allows that (cache) and there was no inval
// since it was asked for, at seq. That is looked at with the inode locked: an
// inval that comes later finds what is kept.
func (fs *FS) learn(attr *meta.Attr, block *meta.Block, cache bool, seq uint64) *inode {
	in := fs.inode(attr.Ino)
	in.mu.Lock()
	stale := fs.invals.sinceTold
	if in.attr.Ino == 0 {
		stale = fs.invals.since // nothing here knows what we changed
	}
	in.learn(attr, block, cache && !stale(seq, in.ino))
	more := in.content.toStock()
	in.mu.Unlock()
	fs.stock.keep(in, more)
	return in
}

// learn is FS.learn, where fresh says whether it may be kept. in.mu is held.
func (in *inode) learn(attr *meta.Attr, block *meta.Block, fresh bool) {
	if attr.Ino == 0 || attr.Change < in.attr.Change {
		return
	}
	if attr.Data != in.attr.Data || in.attr.Ino == 0 {
		in.content.forgetMap()
	}
	in.attr = *attr
	in.valid = fresh
	if in.gone && attr.Nlink > 0 {
		in.regained()
	}
	in.gone = attr.Nlink == 0
	if !fresh {
		in.complete = false
		return
	}
	if block != nil {
		in.content.record(*block)
	}
	in.content.learnSize(attr.Size)
}

// regained notes that an inode without a name may have one again. Its last close
// is to be told all the same. in.mu is held.
func (in *inode) regained() { in.gone, in.nameless, in.told = false, false, true }

// remember notes that a name in a directory stands for an inode, or for none
// (nil), if that may be kept (cache) and there was no inval of the directory
// since seq. Else it forgets the name: it may stand for something else now.
func (fs *FS) remember(dir *inode, name string, child *inode, cache bool, seq uint64) {
	ino := meta.Ino(0)
	if child != nil {
		ino = child.ino
		child.mu.Lock()
		child.parent, child.name = dir.ino, name
		child.mu.Unlock()
	}
	dir.mu.Lock()
	var absent int
	if cache && !fs.invals.since(seq, dir.ino) { // one that comes later finds the name
		absent = dir.setName(name, ino)
	} else {
		absent = -dir.forgetName(name)
	}
	dir.mu.Unlock()

	fs.mu.Lock()
	fs.absent += absent
	full := fs.absent > maxAbsent
	fs.mu.Unlock()
	if full {
		fs.forgetAbsent()
	}
}

// setName notes what a name stands for, and returns by how much the number of
// names known as absent grew. in.mu is held.
func (in *inode) setName(name string, ino meta.Ino) int {
	absent := -in.takeName(name)
	if in.names == nil {
		in.names = map[string]meta.Ino{}
	}
	in.names[name] = ino
	if ino == 0 {
		return absent + 1
	}
	in.entries++
	return absent
}

// forgetName notes that it is not known what a name stands for, and returns how
// many names known as absent it forgot: 1 or 0. in.mu is held.
func (in *inode) forgetName(name string) int {
	in.complete = false
	return in.takeName(name)
}

// takeName is for those who know what the name stands for instead.
func (in *inode) takeName(name string) int {
	child, ok := in.names[name]
	switch {
	case !ok:
		return 0
	case child == 0:
		delete(in.names, name)
		return 1
	}
	delete(in.names, name)
	in.entries--
	return 0
}

// forgetAllNames returns how many of the names were known as absent. in.mu is
// held.
func (in *inode) forgetAllNames() int {
	n := len(in.names) - int(in.entries)
	in.names, in.entries, in.complete = nil, 0, false
	return n
}

// lacks reports whether it is known that a directory does not have a name:
// because it was told, or because all the names are known. in.mu is held.
func (in *inode) lacks(name string) bool {
	if child, ok := in.names[name]; ok {
		return child == 0
	}
	return in.allNamed() && name != "." && name != ".."
}

// allNamed reports whether every name in a directory is known. It is when those
// that are known are as many as its attributes count, and stays so: what we change
// is known, and while the lease lasts whatever others change takes names or
// attributes back. in.mu is held.
func (in *inode) allNamed() bool {
	if in.valid && in.attr.IsDir() && in.entries == in.attr.Size+uint64(len(in.unmade)) {
		in.complete = true
	}
	return in.complete && in.valid
}

// maxAbsent bounds the names that are remembered as absent. Those that exist
// are bounded by the inodes that the kernel knows.
const maxAbsent = 200_000

// forgetAbsent forgets all names that are remembered as absent.
func (fs *FS) forgetAbsent() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, in := range fs.inodes {
		in.mu.Lock()
		for name, child := range in.names {
			if child == 0 {
				in.takeName(name)
			}
		}
		in.mu.Unlock()
	}
	fs.absent = 0
}

// forgetNames forgets names in a directory.
func (fs *FS) forgetNames(dir *inode, names []string) {
	n := 0
	dir.mu.Lock()
	for _, name := range names {
		n += dir.forgetName(name)
	}
	dir.mu.Unlock()
	fs.mu.Lock()
	fs.absent -= n
	fs.mu.Unlock()
}

// doubt forgets what a change whose outcome is not known may have changed.
func (fs *FS) doubt(in *inode, names ...string) {
	in.mu.Lock()
	in.valid, in.complete = false, false
	in.mu.Unlock()
	fs.forgetNames(in, names)
}

// attrOf makes sure that the inode's attributes are as on the server.
func (c *call) attrOf(in *inode) error {
	fs := c.fs
	in.mu.Lock()
	ok := in.valid || in.gone && in.opens == 0 // others may have it open, and change it
	only := in.making != nil
	in.mu.Unlock()
	if only || ok && fs.leased() {
		return nil
	}
	seq := fs.invals.now()
	rep, err := c.do(&meta.Request{Op: meta.OpGetattr, Ino: in.ino})
	if err != nil {
		if e := refusal(err); e == syscall.ENOENT || e == syscall.ESTALE && fs.vol().At == 0 {
			return in.vanished()
		}
		return err
	}
	if rep.Attr.Ino == 0 {
		rep.Attr.Ino = in.ino
	}
	fs.learn(&rep.Attr, rep.Block, rep.Cache, seq)
	return nil
}

// vanished is for an inode that the service does not know any more. If we were
// told so before, or it is open, what we knew last is the answer.
func (in *inode) vanished() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.attr.Ino != 0 && (in.gone || in.opens > 0) {
		in.gone = true
		in.attr.Nlink = 0
		return nil
	}
	return syscall.ESTALE
}

// fill sets what the kernel is told about an inode, and until when it holds.
// The call must be answering.
func (c *call) fill(in *inode, attr *fuseops.InodeAttributes, until *time.Time) {
	in.mu.Lock()
	defer in.mu.Unlock()
	a := in.current()
	if in.content.wrote {
		a.Bytes = in.content.stored(&in.attr, a.Size, uint64(c.fs.blockSize()), c.fs.vol().InlineMax)
	}
	*attr = attributes(&a)
	if in.valid && !in.gone {
		*until = c.fs.meta.LeaseUntil()
		in.trusted.Add(1)
	} else {
		*until = time.Time{}
	}
}

// entry fills the answer to an operation that found or made child as name in
// dir, and counts the kernel's reference.
func (c *call) entry(dir, child *inode, name string, e *fuseops.ChildInodeEntry) {
	c.answer()
	c.give(child)
	e.Child = fuseops.InodeID(child.ino)
	c.fill(child, &e.Attributes, &e.AttributesExpiration)
	e.EntryExpiration = c.entryUntil(dir, name, child.ino)
}

// give counts a reference that the answer gives the kernel.
func (c *call) give(child *inode) {
	fs := c.fs
	fs.mu.Lock()
	if known := fs.inodes[child.ino]; known != child { // dropped since we looked, and no inval found it
		child.mu.Lock()
		child.valid = false
		fs.absent -= child.forgetAllNames()
		child.content.forgetMap()
		child.mu.Unlock()
		if known == nil {
			fs.inodes[child.ino] = child
		}
	}
	fs.inodes[child.ino].lookups++
	fs.mu.Unlock()
	c.given = append(c.given, child.ino)
}

// entryUntil is how long the kernel may believe that name in dir is ino.
func (c *call) entryUntil(dir *inode, name string, ino meta.Ino) time.Time {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if got, ok := dir.names[name]; ok && got == ino || ino == 0 && dir.lacks(name) {
		return c.fs.meta.LeaseUntil()
	}
	return time.Time{}
}

// current returns the attributes with what was written and not committed yet,
// but for Bytes. in.mu is held.
func (in *inode) current() meta.Attr {
	a := in.attr
	in.content.overlay(&a)
	if n := len(in.unmade); n > 0 {
		a.Size += uint64(n)
		if in.lastMade.Compare(a.Ctime) > 0 {
			a.Mtime, a.Ctime = in.lastMade, in.lastMade
		}
	}
	return a
}

// attributes converts for the kernel.
func attributes(a *meta.Attr) fuseops.InodeAttributes {
	return fuseops.InodeAttributes{
		Size:      a.Size,
		Nlink:     a.Nlink,
		Mode:      fileMode(a.Mode),
		Rdev:      a.Rdev,
		Atime:     a.Atime.Time(),
		Mtime:     a.Mtime.Time(),
		Ctime:     a.Ctime.Time(),
		Crtime:    a.Btime.Time(),
		Blocks:    (a.Bytes + 511) / 512,
		HasBlocks: true,
		Uid:       a.Uid,
		Gid:       a.Gid,
	}
}

var fileTypes = []struct {
	unix uint32
	mode os.FileMode
}{
	{syscall.S_IFDIR, os.ModeDir},
	{syscall.S_IFLNK, os.ModeSymlink},
	{syscall.S_IFIFO, os.ModeNamedPipe},
	{syscall.S_IFSOCK, os.ModeSocket},
	{syscall.S_IFCHR, os.ModeDevice | os.ModeCharDevice},
	{syscall.S_IFBLK, os.ModeDevice},
}

var modeBits = []struct {
	unix uint32
	mode os.FileMode
}{
	{syscall.S_ISUID, os.ModeSetuid},
	{syscall.S_ISGID, os.ModeSetgid},
	{syscall.S_ISVTX, os.ModeSticky},
}

// fileMode converts st_mode.
func fileMode(m uint32) os.FileMode {
	mode := os.FileMode(m & 0o777)
	for _, t := range fileTypes {
		if m&syscall.S_IFMT == t.unix {
			mode |= t.mode
		}
	}
	for _, b := range modeBits {
		if m&b.unix != 0 {
			mode |= b.mode
		}
	}
	return mode
}

// unixMode converts to st_mode.
func unixMode(mode os.FileMode) uint32 {
	m := uint32(mode.Perm()) | syscall.S_IFREG
	for _, t := range fileTypes {
		if mode&(os.ModeType) == t.mode {
			m = uint32(mode.Perm()) | t.unix
		}
	}
	for _, b := range modeBits {
		if mode&b.mode != 0 {
			m |= b.unix
		}
	}
	return m
}
