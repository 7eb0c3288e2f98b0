package fuse

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/meta"
)

// invals remembers which inodes the service has lately told to forget, so that
// an answer that was asked for before is not cached after.
type invals struct {
	mu   sync.Mutex
	last uint64           // number of the newest
	all  uint64           // number of the newest that named everything
	ring [maxInvals]stale // number i at i % maxInvals
}

// A stale is an inode of which something is not true any more.
type stale struct {
	ino meta.Ino
	own bool // because of a change of ours
}

// maxInvals bounds how far back it is known. A request during which more
// arrive does not get its answer cached.
const maxInvals = 4096

// now returns the number to pass to since later.
func (v *invals) now() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

func (v *invals) add(ino meta.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last++
	v.ring[v.last%maxInvals] = stale{ino: ino}
}

func (v *invals) addAll() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last++
	v.all = v.last
	v.ring[v.last%maxInvals] = stale{}
}

// own notes a change of ours in a directory, as the service does not: what was
// asked of its names before must not be cached after. It returns the number with
// which to remember what the change, begun at seq, made of them.
func (v *invals) own(seq uint64, dir meta.Ino) uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sinceLocked(seq, dir, true) {
		return seq // not at all, then
	}
	v.last++
	v.ring[v.last%maxInvals] = stale{dir, true}
	return v.last
}

// since reports whether ino was named since seq.
func (v *invals) since(seq uint64, ino meta.Ino) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sinceLocked(seq, ino, true)
}

// sinceTold reports whether the service named ino since seq. It is for attributes:
// of those that we changed the newest are known by their Change.
func (v *invals) sinceTold(seq uint64, ino meta.Ino) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sinceLocked(seq, ino, false)
}

func (v *invals) sinceLocked(seq uint64, ino meta.Ino, own bool) bool {
	if v.all > seq || v.last-seq >= maxInvals {
		return v.last != seq
	}
	for i := v.last; i > seq; i-- {
		if e := v.ring[i%maxInvals]; e.ino == ino && (own || !e.own) {
			return true
		}
	}
	return false
}

// Stale drops what is cached here of what the service says has changed. It is
// quick. It is the Stale of a meta.ClientConfig.
func (fs *FS) Stale(list []meta.Inval) {
	fs.stats.Invals.Add(int64(len(list)))
	for i := range list {
		v := &list[i]
		fs.invals.add(v.Ino)
		in := fs.known(v.Ino)
		if in == nil {
			continue
		}
		in.mu.Lock()
		in.valid, in.complete = false, false
		in.recalled()
		in.forgetListing(fs)
		if in.gone && v.Attr { // it may have been restored
			in.regained()
		}
		if v.Data {
			in.content.forgetMap()
		}
		absent := 0
		if v.Entries {
			absent = in.forgetAllNames()
		}
		in.mu.Unlock()
		fs.mu.Lock()
		fs.absent -= absent
		fs.mu.Unlock()
		fs.forgetNames(in, v.Names)
	}
}

// Inval makes the kernel forget it too, and returns those of the inodes that
// are open. It is the Inval of a meta.ClientConfig, called after Stale.
func (fs *FS) Inval(list []meta.Inval) []meta.Ino {
	fs.returnDelegated(list)
	fs.settle()
	var open []meta.Ino
	if slices.ContainsFunc(list, fs.listing) {
		fs.kernel.AllNames()
	}
	for i := range list {
		v := &list[i]
		in := fs.known(v.Ino)
		if in == nil {
			continue
		}
		fs.invalKernel(in, v)
		in.mu.Lock()
		in.valid = false // an open that validated meanwhile asks again
		if in.opens > 0 {
			in.told = true
			open = append(open, in.ino)
		}
		in.mu.Unlock()
	}
	return open
}

// returnDelegated tells the service of what was made in directories that it asks
// back.
func (fs *FS) returnDelegated(list []meta.Inval) {
	for i := range list {
		in := fs.known(list[i].Ino)
		if in == nil {
			continue
		}
		if err := fs.tellAll(fs.ctx, in); err != nil {
			fs.log.Warn("files that were made here are not known to the service yet", "directory", fs.where(in), "err", err)
		}
	}
}

// listing reports whether all names in a directory are to be forgotten. Which of
// them the kernel has is not known.
func (fs *FS) listing(v meta.Inval) bool {
	if !v.Entries {
		return false
	}
	in := fs.known(v.Ino)
	if in == nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.attr.Ino == 0 || in.attr.IsDir()
}

// settle waits until the answers that are being given are with the kernel, so
// that it can be told to forget them.
func (fs *FS) settle() {
	fs.gate.Lock()
	//lint:ignore SA2001 whoever held it has finished, and that is all
	fs.gate.Unlock()
}

// forgetAttrs makes the kernel forget the attributes that it may believe, if there
// are any. Else it is not told: attributes that it is asking for just then it would
// take for old ones, and a read would go by the length of the file that was known
// before. It reports whether the kernel believes none now.
//
// The kernel forgets the access control lists that it knows, too.
func (fs *FS) forgetAttrs(in *inode) bool {
	n := in.trusted.Load()
	if n <= in.taken.Load() {
		return true
	}
	if !fs.kernel.Attrs(in.ino) {
		return false
	}
	if !in.late.Swap(false) {
		raise(&in.taken, n)
	}
	return true
}

// forgetPages makes the kernel forget the pages of a file, if it may have some:
// else that would only have it take for old what it is asking for.
//
// Reads through open files see the new mtime and drop the pages, so this is for
// maps, and for changes that leave the mtime. It is waited for because the kernel
// ignores attributes that it asks for meanwhile.
func (fs *FS) forgetPages(in *inode) {
	if !in.mayHavePages() {
		return
	}
	select {
	case <-fs.stalePages.add(fs, in.ino):
	case <-time.After(pagePatience):
	}
}

// mayHavePages reports whether the kernel may have pages of a file, or be asking
// for some.
func (in *inode) mayHavePages() bool {
	return in.paged.Load() > in.unpaged.Load() || in.aside.Load() > in.unaside.Load()
}

// givesPages counts, in paged or aside, a call that gives the kernel pages of a file.
func (in *inode) givesPages(count *atomic.Int64) {
	if !in.mayHavePages() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if !in.mayHavePages() {
			in.pages = in.attr.Data
		}
	}
	count.Add(1)
}

// dropPages makes the kernel forget an inode's pages, and notes that it has none but
// those that it asks for meanwhile. It waits for reads that are under way.
func (fs *FS) dropPages(ino meta.Ino) {
	in := fs.known(ino)
	if in == nil {
		return // nor does the kernel know it
	}
	paged, aside := in.paged.Load(), in.aside.Load()
	fs.kernel.Pages(ino)
	raise(&in.unpaged, paged)
	raise(&in.unaside, aside)
}

func (fs *FS) invalKernel(in *inode, v *meta.Inval) {
	for range maxAttrTries {
		if fs.forgetAttrs(in) || !fs.given(in) {
			break
		}
		// It was given to the kernel just now, which is still at work on it.
		time.Sleep(time.Millisecond)
	}
	if len(v.Names) > 0 {
		fs.kernel.Names(in.ino, v.Names)
	}
	if v.Data {
		fs.forgetPages(in)
	}
}

// pagePatience is how long an inval waits for the kernel to forget pages, which
// waits for reads of them that are under way. They may wait for a slow bucket.
const pagePatience = 50 * time.Millisecond

// A pageQueue holds the inodes whose pages the kernel is still to forget.
type pageQueue struct {
	mu      sync.Mutex
	inos    map[meta.Ino]chan struct{}
	workers int
}

// maxPageWaits bounds the threads that wait for the kernel to forget pages: they
// wait for reads that are under way.
const maxPageWaits = 8

// add makes the kernel forget an inode's pages. What it returns is closed when
// that is done.
func (q *pageQueue) add(fs *FS, ino meta.Ino) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.inos == nil {
		q.inos = map[meta.Ino]chan struct{}{}
	}
	done := q.inos[ino]
	if done == nil {
		done = make(chan struct{})
		q.inos[ino] = done
	}
	if q.workers < maxPageWaits {
		q.workers++
		go q.work(fs)
	}
	return done
}

func (q *pageQueue) work(fs *FS) {
	for {
		ino, done := q.take()
		if done == nil {
			return
		}
		fs.dropPages(ino)
		close(done)
	}
}

// take returns an inode to work on, or nil if there is none and the worker ends.
func (q *pageQueue) take() (meta.Ino, chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ino, done := range q.inos {
		delete(q.inos, ino)
		return ino, done
	}
	q.workers--
	return 0, nil
}

// maxAttrTries bounds the milliseconds that the kernel gets to find an inode
// that it was told of: it may also be on its way to forget it.
const maxAttrTries = 20

// given reports whether the kernel was told of the inode.
func (fs *FS) given(in *inode) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return in.lookups > 0
}

// dropAll drops everything that is cached, here and in the kernel.
func (fs *FS) dropAll() []*inode {
	fs.invals.addAll()
	fs.mu.Lock()
	all := make([]*inode, 0, len(fs.inodes))
	for _, in := range fs.inodes {
		all = append(all, in)
		in.mu.Lock()
		in.valid = false
		fs.absent -= in.forgetAllNames()
		in.forgetListing(fs)
		in.content.forgetMap()
		in.mu.Unlock()
	}
	fs.mu.Unlock()
	fs.settle()
	fs.kernel.AllNames()
	for _, in := range all {
		fs.forgetAttrs(in)
	}
	return all
}

// Resume drops everything that is cached and returns the open files and the
// locks. It is the Resume of a meta.ClientConfig.
func (fs *FS) Resume() ([]meta.Ino, []meta.InoLock) {
	var open []meta.Ino
	var locks []meta.InoLock
	for _, in := range fs.dropAll() {
		in.mu.Lock()
		if in.opens > 0 || in.busy() {
			in.told = true
			open = append(open, in.ino)
		}
		for _, l := range in.locks {
			locks = append(locks, meta.InoLock{Ino: in.ino, Lock: l})
		}
		in.mu.Unlock()
	}
	return open, locks
}

// Lost drops everything that is cached, after the service has ended the session.
// Unlinked files that were open are gone, and so are locks: others may have had
// them since. What was written under a lock and not stored is given up, and the
// next fsync or close says so; and the file cannot be written here until those
// who had locks on it have closed it. It is the Lost of a meta.ClientConfig.
func (fs *FS) Lost() {
	fs.behind.giveUp() // others may have the directories by now, and wait for us
	n := 0
	for _, in := range fs.dropAll() {
		in.mu.Lock()
		in.recalled()
		n += len(in.locks)
		locked := in.loseLocks()
		in.mu.Unlock()
		if locked {
			fs.discardLocked(in)
		}
	}
	fs.log.Warn("the metadata service ended the session", "locks_lost", n)
}
