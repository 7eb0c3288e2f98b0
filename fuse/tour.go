package fuse

import (
	"slices"
	"strings"
	"syscall"

	"flexfs/meta"
)

// Programs that go through a tree, as find, grep -r and git do, come to its
// directories in pre-order: to one, then to the first that is in it, and at last to
// the next one beside it. Who comes to a directory that was to be expected after
// the one before gets those that follow fetched ahead, so that not each of them
// costs a wait for the service.

// A tour is what is known of a directory's place in such a way. It is guarded by
// the directory's mu.
type tour struct {
	after   int64 // when a program came to the one before it, by FS.came; 0: it did not
	waiting bool  // one came to this, but what follows is known only when it is listed
}

const (
	// tourAhead is how many directories are fetched before a program comes to
	// them.
	tourAhead = 4

	// tourSteps is how many directories programs come to, all of them together,
	// until one is not expected any more.
	tourSteps = 16
)

// cameTo takes note that a program comes for what is in a directory.
func (fs *FS) cameTo(dir *inode) {
	now := fs.came.Add(1)
	next, sure := fs.following(dir)
	dir.mu.Lock()
	after := dir.tour.after
	expected := after > 0 && now-after <= tourSteps
	if dir.tour = (tour{waiting: !sure}); !sure {
		dir.tour.after = after
	}
	if p := dir.walk.wholePage(); p != nil && !p.underWay() && !p.came {
		p.came = true
		earn(&fs.credit.entries, 3*int64(p.n), mostEntries)
	}
	dir.mu.Unlock()
	if next == nil {
		return
	}
	next.mu.Lock()
	next.tour.after = now
	next.mu.Unlock()
	for range tourAhead {
		if !expected || next == nil || !fs.fetchWhole(next) {
			return
		}
		next, _ = fs.following(next)
	}
}

// wentOn does what cameTo could not do before the directory was listed.
func (fs *FS) wentOn(dir *inode) {
	dir.mu.Lock()
	waiting := dir.tour.waiting
	dir.mu.Unlock()
	if waiting {
		fs.cameTo(dir)
	}
}

// following returns the directory that comes after dir in pre-order, nil if there
// is none or it is not known. It is not sure if dir has directories, but is not
// listed.
func (fs *FS) following(dir *inode) (next *inode, sure bool) {
	dir.mu.Lock()
	leaf := dir.attr.Nlink == 2
	dir.mu.Unlock()
	if !leaf {
		l := dir.listed(fs)
		if l == nil {
			return nil, false
		}
		if next, ok := fs.nextIn(l.entries); ok {
			return next, true
		}
	}
	for range deepest {
		dir.mu.Lock()
		parent, name := dir.parent, dir.name
		dir.mu.Unlock()
		if dir = fs.known(parent); dir == nil {
			return nil, true
		}
		l := dir.listed(fs)
		if l == nil {
			return nil, true
		}
		i, found := slices.BinarySearchFunc(l.entries, name, func(e meta.Entry, name string) int { return strings.Compare(e.Name, name) })
		if found {
			i++
		}
		if next, ok := fs.nextIn(l.entries[i:]); ok {
			return next, true
		}
	}
	return nil, true
}

// nextIn returns the first directory among entries, nil if it is not known any
// more, and whether there is one.
func (fs *FS) nextIn(entries []meta.Entry) (*inode, bool) {
	i := slices.IndexFunc(entries, func(e meta.Entry) bool { return e.Attr.Mode&syscall.S_IFMT == syscall.S_IFDIR })
	if i < 0 {
		return nil, false
	}
	return fs.known(entries[i].Attr.Ino), true
}

// fetchWhole starts to fetch all that is in a directory, unless that is known or on
// its way. It reports false if it cannot.
func (fs *FS) fetchWhole(dir *inode) bool {
	listed := dir.listed(fs) != nil
	dir.mu.Lock()
	defer dir.mu.Unlock()
	size := dir.attr.Size
	switch {
	case listed, size == 0:
		return true
	case !dir.valid, dir.gone, size > maxWhole, int64(size) > fs.credit.entries.Load():
		return false
	}
	w := walked(&dir.walk)
	if w.page.underWay() {
		return true
	}
	return fs.fetchAhead(&page{
		dir: dir, walk: w, limit: uint32(min(size+1, wholePage)), bytes: fs.credit.contents(), whole: &listing{},
	})
}

// wholePage returns the page that is of all that is in the directory, the last if
// there are several, or nil.
func (w *walk) wholePage() *page {
	if w == nil || w.page == nil || w.page.whole == nil {
		return nil
	}
	return w.page
}
