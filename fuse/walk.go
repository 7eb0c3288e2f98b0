package fuse

import (
	"time"

	"flexfs/meta"
)

// Programs look at one file after the other, by names that they know or have
// listed, and would wait for the metadata service once for each. So it is asked
// before they do for what they are likely to want next: for stretches of a
// directory, pages, with attributes, and for those who read with the contents of
// small files. What arrives is kept like any answer, under the lease.
//
// What programs are going to do is guessed from what they did. A page is fetched
// after a few names in a directory that had to be asked for one by one, and
// another one only if that was of use. Over all directories a mount keeps
// account: what is used earns a credit, and what is fetched spends it. With
// enough of it the first name is reason enough.

// A walk is how programs go through a directory, past what is known of it here. It
// is guarded by the directory's mu.
type walk struct {
	page   *page  // the last that was asked for
	last   string // the last name that was asked for by itself
	missed int    // how many were since the directory was fetched as a whole
	rising int    // how many of them, up to the last, came in the order of names
	need   int    // how many of those are reason for a page
	opened int    // files that were opened for reading meanwhile
	next   []next // files that are read after the last, as a guess
	judged bool   // need says what page was worth
}

// A page is a stretch of a directory that is fetched ahead, or was.
type page struct {
	dir   *inode
	walk  *walk
	after string   // it begins behind this name
	limit uint32   // entries
	bytes int64    // of contents that come along
	whole *listing // it is part of all that is in the directory; what was before it
	final bool     // it is likely to reach to the directory's end
	order bool     // names were asked for in their order before it was fetched
	done  chan struct{}

	// Guarded by dir.mu, and valid after done.
	n      int    // entries; 0: it was of no use
	middle string // names in it
	end    string
	eof    bool
	used   int  // entries that programs came for
	came   bool // a program came for the directory; see tour
}

const (
	walkBegin  = 3    // names that are asked for one by one before any page is
	walkWorth  = 32   // entries that cost no more than a name that is asked for alone
	walkUseful = 8    // a page is of use if one of so many entries was
	firstPage  = 64   // entries of the first page of a stretch
	laterPage  = 2000 // entries of a later one, at most
	wholePage  = 10_000

	// maxWhole is the size up to which a directory is fetched as a whole.
	maxWhole = maxListed / 2

	firstContents = 128 << 10 // bytes that come along with the first page
	laterContents = 1 << 20   // bytes that come along with a later one, at most

	usualContents = 4 << 10 // of an entry, as a guess

	// maxPages bounds the pages that are on their way.
	maxPages = 8
)

func (p *page) underWay() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// likely reports whether a name is probably in a page that is on its way, or worth
// waiting for it to see.
func (p *page) likely(name string) bool {
	return p.underWay() && name > p.after && (p.whole == nil || p.final || p.order)
}

// has reports whether a page that arrived has a name.
func (p *page) has(name string) bool {
	return p != nil && p.n > 0 && !p.underWay() && name > p.after && name <= p.end
}

// useful reports whether a page is of use, when so many of its entries were
// passed.
func (p *page) useful(passed int) bool { return p.used > 0 && p.used*walkUseful >= passed }

// note takes note of a name that a program asked for and that is not known.
func (w *walk) note(name string) {
	w.missed++
	if name > w.last {
		w.rising++
	} else {
		w.rising = 1
	}
	w.last = name
	if w.page != nil && !w.judged && !w.page.underWay() {
		w.judged = true
		if w.page.useful(w.page.n) {
			w.need = walkBegin
		} else {
			w.need = min(2*w.need, 1<<20)
		}
	}
}

// walked returns the walk that w points to. The directory's mu is held.
func walked(w **walk) *walk {
	if *w == nil {
		*w = &walk{need: walkBegin}
	}
	return *w
}

// missed takes note that a program asks for a name that is not known, and fetches
// ahead if that is worth it. It returns the page that the name is going to be in,
// or nil if it has to be asked for.
func (fs *FS) missed(dir *inode, name string) *page {
	p, whole := fs.missedIn(dir, name)
	if whole {
		fs.cameTo(dir)
	}
	return p
}

// missedIn is missed, and reports whether it began to fetch all of the directory.
func (fs *FS) missedIn(dir *inode, name string) (p *page, whole bool) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if !dir.attr.IsDir() {
		return nil, false
	}
	w := walked(&dir.walk)
	if w.page.likely(name) {
		return w.page, false
	}
	w.note(name)
	if w.page.underWay() {
		return nil, false
	}
	size := dir.attr.Size
	switch {
	case fs.wholeWorth(size, w.missed):
		p := &page{dir: dir, walk: w, limit: uint32(min(size+1, wholePage)), bytes: fs.contentsFor(w), whole: &listing{}, came: true}
		whole = fs.fetchAhead(p)
		if !whole || !p.likely(name) {
			p = nil
		}
		return p, whole
	case w.rising >= w.need: // this name is not in it, but the next may be
		fs.fetchAhead(&page{dir: dir, walk: w, after: name, limit: firstPage, bytes: fs.contentsFor(w)})
	}
	return nil, false
}

// contentsFor returns how many bytes of contents are to come along with names.
func (fs *FS) contentsFor(w *walk) int64 {
	switch {
	case w.missed < walkBegin:
		return fs.credit.contents()
	case 2*w.opened < w.missed:
		return 0
	}
	return max(fs.credit.contents(), firstContents)
}

// openedToRead takes note that a program opened a file for reading.
func (fs *FS) openedToRead(in *inode) {
	in.mu.Lock()
	parent := in.parent
	in.mu.Unlock()
	dir := fs.known(parent)
	if dir == nil {
		return
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.walk != nil {
		dir.walk.opened++
	}
}

// wholeWorth reports whether all of a directory is to be fetched, when so many
// names in it were asked for.
func (fs *FS) wholeWorth(size uint64, missed int) bool {
	if size == 0 || size > maxWhole {
		return false
	}
	return missed >= walkBegin && int64(size) <= fs.credit.entries.Load()+int64(missed)*walkWorth || fs.credit.trusts(size)
}

// missedContents is missed for the contents of a file.
func (fs *FS) missedContents(in *inode) *page {
	in.mu.Lock()
	parent, name, size := in.parent, in.name, in.attr.Size
	in.mu.Unlock()
	dir := fs.known(parent)
	if dir == nil || size > uint64(fs.blockSize()) {
		return nil
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	w := walked(&dir.reads)
	if w.page.likely(name) {
		return w.page
	}
	if dir.walk != nil && dir.walk.page.likely(name) && dir.walk.page.bytes > 0 {
		return dir.walk.page
	}
	w.note(name)
	if !w.page.underWay() && (w.rising >= w.need || w.page == nil && fs.credit.contents() > 0) {
		fs.fetchAhead(&page{dir: dir, walk: w, after: name, limit: laterPage, bytes: firstContents})
	}
	return nil
}

// cameFor takes note that a program asked for what was fetched ahead under a name,
// and fetches more if it is about to leave the page.
func (fs *FS) cameFor(dir *inode, name string) {
	if fs.usedPages(dir, name) {
		fs.cameTo(dir)
	}
}

// usedPages does what cameFor does with pages, and reports whether that was the
// first use of all that is in the directory.
func (fs *FS) usedPages(dir *inode, name string) (first bool) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	for _, w := range [2]*walk{dir.walk, dir.reads} {
		if w == nil || !w.page.has(name) {
			continue
		}
		p := w.page
		p.used++
		first = first || p.used == 1 && p.whole != nil && !p.came
		if name >= p.middle && !p.eof && p.whole == nil && p.useful(p.n/2) {
			fs.fetchAhead(&page{dir: dir, walk: w, after: p.end, limit: min(4*p.limit, laterPage), bytes: min(4*p.bytes, laterContents)})
		}
	}
	return first
}

// fetchAhead starts to fetch a page, unless there are too many. p.dir.mu is held.
func (fs *FS) fetchAhead(p *page) bool {
	select {
	case fs.pages <- struct{}{}:
	default:
		return false
	}
	p.done = make(chan struct{})
	p.order = p.walk.rising >= walkBegin
	p.walk.page, p.walk.judged = p, false
	p.walk.rising = 0
	if p.whole != nil {
		p.walk.missed, p.walk.opened = 0, 0
		left := int64(p.dir.attr.Size) - int64(len(p.whole.entries))
		p.final = left <= int64(p.limit) && (p.bytes == 0 || left*usualContents <= p.bytes)
	}
	fs.credit.entries.Add(-int64(p.limit)) // what does not come is given back
	fs.stats.Pages.Add(1)
	go func() {
		defer func() { <-fs.pages }()
		fs.arrive(p)
	}()
	return true
}

// arrive fetches a page and takes it over.
func (fs *FS) arrive(p *page) {
	defer close(p.done)
	seq := fs.invals.now()
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(fs.ctx, &meta.Request{
		Op: meta.OpReaddir, Ino: p.dir.ino, Name: p.after, Limit: p.limit, Plus: true, Size: uint64(p.bytes),
	})
	if err != nil || !rep.Cache || len(rep.Entries) == 0 || fs.invals.since(seq, p.dir.ino) {
		fs.credit.entries.Add(int64(p.limit))
		return // whoever wants it asks, and hears what is the matter
	}
	fs.learnEntries(p.dir, rep, seq, true)
	if whole := fs.arrived(p, rep); whole != nil {
		fs.keepListing(p.dir, whole)
	}
}

// arrived notes what a page has. It returns the listing of the directory if that
// is all of it.
func (fs *FS) arrived(p *page, rep *meta.Reply) *listing {
	p.dir.mu.Lock()
	defer p.dir.mu.Unlock()
	p.n = len(rep.Entries)
	fs.credit.entries.Add(int64(p.limit) - int64(p.n))
	p.middle, p.end, p.eof = rep.Entries[p.n/2].Name, rep.Entries[p.n-1].Name, rep.EOF
	if p.whole == nil {
		return nil
	}
	l := p.whole
	if l.add(rep.Entries); p.after == "" {
		l.change = rep.Attr.Change
	}
	if !p.eof {
		fs.fetchAhead(&page{dir: p.dir, walk: p.walk, after: p.end, limit: p.limit, bytes: fs.credit.contents(), whole: l, came: p.came})
		return nil
	}
	if l.change != rep.Attr.Change {
		return nil
	}
	return l
}

// pageWait bounds how long is waited for what somebody else has asked for.
const pageWait = time.Second

// await waits until done is closed, but not for long, and reports whether it is.
func (c *call) await(done <-chan struct{}) bool {
	ctx := c.wait()
	t := time.NewTimer(pageWait)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// contentsAhead returns the record of a block that was not known, if it is on its
// way.
func (c *call) contentsAhead(in *inode, idx uint32) (meta.Block, bool) {
	if idx > 0 {
		return meta.Block{}, false
	}
	p := c.fs.missedContents(in)
	if p == nil {
		return meta.Block{}, false
	}
	c.await(p.done)
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.content.base(idx)
}
