package fuse

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

// A regular file in a directory that the service has delegated to this mount is
// made here first: the service is told of it together with its contents, at the
// first close or fsync, in one request and one transaction. Before that, it is told
// when anything is asked or changed that has to do with the file's name, and when
// another mount asks for the directory: the service asks for it back then, and
// waits. So nobody sees a difference, but who looks after a crash of the mount
// finds no file where there was an empty one.

// A making is a file that the service was not told of. What it would be told is
// in the inode's attributes and content. It ends, and inode.making is nil, with the
// service's answer: the file is made, or it is given up because that was refused.
// Until then it may be, guarded by inode.mu:
//
//	asked   it is being told of, with the attributes of that moment: from the request to its answer
//	behind  it was closed and waits in FS.behind: nobody tells of it alone; until all there are told of, or given up
//	unsure  an answer was lost: it is told of again, with its number, which the service may know; not closed behind
//
// and any two of these at once; with none it is told of by the next who needs it.
type making struct {
	dir   *inode
	name  string
	since time.Time
	mutex chan struct{} // holds an element while the service is being told

	asked, behind, unsure bool
	closed                uint64 // the inode's content.writes when it was closed behind
}

// mayMake reports whether a file may be made in a directory without asking: then
// it has no such name, and nothing that is inherited. in.mu is held.
func (in *inode) mayMake(name string) bool {
	return in.delegated && in.valid && !in.gone && in.attr.Xattrs == 0 && in.attr.Mode&syscall.S_ISGID == 0 && in.lacks(name)
}

// makeHere makes and opens a file without telling the service, if it can. The call
// is answering then.
func (c *call) makeHere(op *fuseops.CreateFileOp) bool {
	fs := c.fs
	if op.Mode&(os.ModeSetuid|os.ModeSetgid) != 0 || len(op.Name) > meta.MaxName || fs.full.Load() || !fs.leased() {
		return false
	}
	dir := fs.node(op.Parent)
	dir.mu.Lock()
	may := dir.mayMake(op.Name)
	dir.mu.Unlock()
	if !may {
		return false
	}
	ino := c.number()
	if ino == 0 {
		return false
	}
	now := fs.meta.Now()
	in := fs.inode(ino)
	in.mu.Lock()
	in.attr = meta.Attr{
		Ino: ino, Mode: unixMode(op.Mode&^os.ModeType) &^ op.OpContext.Umask, Uid: op.OpContext.Uid, Gid: op.OpContext.Gid,
		Nlink: 1, Atime: now, Mtime: now, Ctime: now, Btime: now, Change: 1,
	}
	in.valid = true
	in.content.learnSize(0)
	in.making = &making{dir: dir, name: op.Name, since: time.Now(), mutex: make(chan struct{}, 1)}
	in.parent, in.name = dir.ino, op.Name
	in.mu.Unlock()
	c.answer()
	if !fs.makeName(dir, op.Name, in, now) {
		c.unanswer()
		in.mu.Lock()
		in.making = nil
		in.mu.Unlock()
		fs.drop(in)
		return false
	}
	fs.markDirty(in)
	op.Handle = fs.open(in, uint32(op.OpenFlags))
	op.UseDirectIO = uint32(op.OpenFlags)&syscall.O_APPEND != 0
	c.entry(dir, in, op.Name, &op.Entry)
	return true
}

// makeName enters a file that is made here into its directory, unless that may not
// be any more.
func (fs *FS) makeName(dir *inode, name string, in *inode, born meta.Time) bool {
	dir.mu.Lock()
	if !dir.mayMake(name) {
		dir.mu.Unlock()
		return false
	}
	if dir.unmade == nil {
		dir.unmade = map[string]*inode{}
	}
	dir.unmade[name] = in
	dir.lastMade = born
	absent := dir.setName(name, in.ino)
	fs.invals.own(fs.invals.now(), dir.ino) // what was asked before does not know it
	dir.mu.Unlock()
	fs.mu.Lock()
	fs.absent += absent
	fs.mu.Unlock()
	return true
}

// isMade reports whether the service was told of the inode.
func (in *inode) isMade() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.making == nil
}

// request returns what tells the service of the file, without its contents. in.mu
// is held.
func (m *making) request(in *inode) *meta.Request {
	a := in.current()
	m.asked = true
	return &meta.Request{
		Op: meta.OpMake, Ino: m.dir.ino, Name: m.name, Ino2: in.ino, Delegate: true,
		Mode: a.Mode, Uid: a.Uid, Gid: a.Gid, Time: a.Btime, Attr: meta.Attr{Atime: a.Atime, Mtime: a.Mtime, Ctime: a.Ctime},
	}
}

// toMake waits until nobody is telling the service of the inode, and returns its
// making, with which the caller must call done; nil if it was told of.
func (in *inode) toMake(ctx context.Context) (*making, error) {
	in.mu.Lock()
	m := in.making
	in.mu.Unlock()
	if m == nil {
		return nil, nil
	}
	select {
	case m.mutex <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if in.isMade() {
		<-m.mutex
		return nil, nil
	}
	return m, nil
}

func (m *making) done() {
	if m != nil {
		<-m.mutex
	}
}

// tell tells the service of a file, if it was not told, after those that were closed
// before. It does not wait for the store of blocks.
func (fs *FS) tell(ctx context.Context, in *inode) error {
	for {
		if err := fs.behindFirst(ctx); err != nil {
			return err
		}
		m, err := in.toMake(ctx)
		if m == nil {
			return err
		}
		in.mu.Lock()
		closed := m.behind // just now: it is told of with its contents
		if !closed {
			m.asked = true
		}
		in.mu.Unlock()
		if !closed {
			return fs.tellNow(ctx, in, m)
		}
		m.done()
	}
}

// tellNow tells the service of a file, and ends m.
func (fs *FS) tellNow(ctx context.Context, in *inode, m *making) error {
	defer m.done()
	in.mu.Lock()
	req := m.request(in)
	in.mu.Unlock()
	recalls := m.dir.recallCount()
	seq := fs.invals.now()
	rep, err := fs.send(ctx, req, m.dir.ino)
	if err != nil {
		return fs.untold(in, m, err)
	}
	in.mu.Lock()
	in.learn(&rep.Attr, nil, rep.Cache && !fs.invals.since(seq, in.ino))
	in.mu.Unlock()
	fs.told(in, m, rep, seq, recalls)
	return nil
}

// told notes that the service knows a file, as it answered to a request of seq and
// recalls.
func (fs *FS) told(in *inode, m *making, rep *meta.Reply, seq, recalls uint64) {
	in.mu.Lock()
	in.making, in.altered = nil, true
	in.mu.Unlock()
	m.dir.mu.Lock()
	m.dir.altered = true
	delete(m.dir.unmade, m.name) // which counts in the directory's size from here on
	m.dir.learn(&rep.Parent, nil, rep.Cache && !fs.invals.sinceTold(seq, m.dir.ino))
	m.dir.mu.Unlock()
	m.dir.learnDelegated(rep, recalls)
	fs.cleaned(in)
}

// recallCount is for learnDelegated.
func (in *inode) recallCount() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.recalls
}

// learnDelegated notes that a directory is delegated to this mount, if an answer
// says so and the service did not ask for it back since recalls.
func (in *inode) learnDelegated(rep *meta.Reply, recalls uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if rep.Delegated && in.recalls == recalls {
		in.delegated = true
	}
}

// delegatedAtBirth is learnDelegated for a directory that is new: one that was
// asked back already was not known here then.
func (in *inode) delegatedAtBirth(fs *FS, rep *meta.Reply, seq uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if rep.Delegated && !fs.invals.since(seq, in.ino) {
		in.delegated = true
	}
}

// recalled notes that a directory is not delegated any more. in.mu is held.
func (in *inode) recalled() {
	in.recalls++
	in.delegated = false
}

// untold is for a file of which the service was told in vain, with err. If it
// refused, the file is given up: it could not be made.
func (fs *FS) untold(in *inode, m *making, err error) error {
	e := refusal(err)
	in.mu.Lock()
	m.asked = false
	m.unsure = m.unsure || !answered(err)
	wrote, behind := in.content.wrote, m.behind
	in.mu.Unlock()
	switch {
	case !answered(err):
		return err
	case wrote && (e == syscall.ESTALE || !behind && (e == syscall.ENOSPC || e == syscall.EDQUOT || e == syscall.EFBIG)):
		return err // it is about the contents, see flush; the file can be made without
	}
	if e == syscall.EEXIST {
		err = fmt.Errorf("fuse: another mount made %q while this one was cut off: %w", m.name, syscall.EIO)
	}
	fs.log.Warn("a file could not be made, and what was written to it is lost", "name", m.name, "ino", in.ino, "err", err)
	fs.full.Store(fs.full.Load() || e == syscall.ENOSPC)
	fs.discard(in, err)
	in.mu.Lock()
	in.making = nil
	in.gone = true
	in.attr.Nlink = 0
	in.mu.Unlock()
	m.dir.mu.Lock()
	delete(m.dir.unmade, m.name)
	m.dir.recalled()
	m.dir.mu.Unlock()
	fs.doubt(m.dir, m.name)
	go fs.kernel.Names(m.dir.ino, []string{m.name})
	fs.forgetAttrs(in)
	fs.cleaned(in)
	return err
}

// tellAll tells the service of all files that were made in a directory.
func (fs *FS) tellAll(ctx context.Context, dir *inode) error {
	dir.mu.Lock()
	list := slices.Collect(maps.Values(dir.unmade))
	dir.mu.Unlock()
	return fs.tellEach(ctx, list)
}

// tellEverything tells the service of all files.
func (fs *FS) tellEverything(ctx context.Context) error {
	var list []*inode
	fs.mu.Lock()
	for in := range fs.dirty {
		if !in.isMade() {
			list = append(list, in)
		}
	}
	fs.mu.Unlock()
	return fs.tellEach(ctx, list)
}

// tellEach returns the first failure that is not the loss of the file itself, of
// which those hear who have it open.
func (fs *FS) tellEach(ctx context.Context, list []*inode) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, maxFlushes)
	for _, in := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fs.tell(ctx, in); err != nil && !in.isMade() {
				mu.Lock()
				defer mu.Unlock()
				failed = first(failed, err)
			}
		})
	}
	wg.Wait()
	return failed
}

// before tells the service of the files that it must know to answer a request.
func (c *call) before(req *meta.Request) error {
	fs := c.fs
	if req.Op.Changes() {
		if err := c.settle(); err != nil {
			return err
		}
	}
	switch req.Op {
	case meta.OpMake:
		return nil
	case meta.OpRmdir, meta.OpRemoveTree, meta.OpRestore: // of which it may be enough to know that it is not empty
		return fs.tellEverything(c.wait())
	case meta.OpRename:
		if !fs.replacesNoDirectory(req) {
			return fs.tellEverything(c.wait())
		}
	}
	for _, ino := range [2]meta.Ino{req.Ino, req.Ino2} {
		in := fs.known(ino)
		if in == nil || ino == 0 {
			continue
		}
		in.mu.Lock()
		list := in.toTell(req)
		in.mu.Unlock()
		if list == nil {
			continue
		}
		if err := fs.tellEach(c.wait(), list); err != nil {
			return err
		}
	}
	return nil
}

// toTell returns the files that the service must know to answer a request that
// names the inode. in.mu is held.
func (in *inode) toTell(req *meta.Request) []*inode {
	if in.making != nil {
		return []*inode{in}
	}
	if req.Op == meta.OpLookup || req.Op == meta.OpUnlink { // of one name
		if child := in.unmade[req.Name]; child != nil {
			return []*inode{child}
		}
		return nil
	}
	return slices.Collect(maps.Values(in.unmade))
}

// replacesNoDirectory reports whether it is known that a rename does not replace a
// directory, which must be empty.
func (fs *FS) replacesNoDirectory(req *meta.Request) bool {
	to := fs.known(req.Ino2)
	if to == nil {
		return false
	}
	to.mu.Lock()
	ino, ok := to.names[req.Name2]
	absent := to.lacks(req.Name2)
	to.mu.Unlock()
	if absent {
		return true
	}
	in := fs.known(ino)
	if !ok || in == nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.attr.Ino != 0 && !in.attr.IsDir()
}

// setHere changes attributes of a file that the service was not told of. It reports
// false if the service has to do it.
func (c *call) setHere(in *inode, req *meta.Request) bool {
	const special = syscall.S_ISUID | syscall.S_ISGID
	if req.Set&meta.SetMode != 0 && req.Attr.Mode&special != 0 {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.making == nil || in.making.asked || in.making.unsure {
		return false
	}
	a := &in.attr
	if req.Set&meta.SetMode != 0 {
		a.Mode = a.Mode&syscall.S_IFMT | req.Attr.Mode&0o7777
	}
	if req.Set&meta.SetUid != 0 {
		a.Uid = req.Attr.Uid
	}
	if req.Set&meta.SetGid != 0 {
		a.Gid = req.Attr.Gid
	}
	if req.Set&meta.SetAtime != 0 {
		a.Atime = req.Attr.Atime
	}
	if req.Set&meta.SetMtime != 0 {
		a.Mtime = req.Attr.Mtime
	}
	if now := c.fs.meta.Now(); now.Compare(a.Ctime) > 0 {
		a.Ctime = now
	}
	in.keepTimes(req)
	return true
}

// numbers are the inode numbers that this mount may give.
type numbers struct {
	mu        sync.Mutex
	next, end meta.Ino
	asking    chan struct{} // closed when more were asked for; nil: they are not
}

const (
	// manyNumbers are asked for at a time, and more when fewer than fewNumbers
	// are left.
	manyNumbers = 10_000
	fewNumbers  = 2000
)

// take returns a number, or 0 and what is closed when there may be some.
func (n *numbers) take(fs *FS) (meta.Ino, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.end-n.next < fewNumbers && n.asking == nil {
		n.asking = make(chan struct{})
		go n.ask(fs)
	}
	if n.next == n.end {
		return 0, n.asking
	}
	n.next++
	return n.next - 1, nil
}

func (n *numbers) ask(fs *FS) {
	fs.stats.Requests.Add(1)
	rep, err := fs.meta.Do(fs.ctx, &meta.Request{Op: meta.OpReserve, Limit: manyNumbers})
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.asking)
	n.asking = nil
	if err != nil || len(rep.Inos) != 2 || rep.Inos[1] < rep.Inos[0] {
		fs.log.Debug("no inode numbers for now: files are made by the service", "err", err)
		return
	}
	n.next, n.end = rep.Inos[0], rep.Inos[1] // what is left of those before is not used
}

// number returns an inode number for a file that is made here, or 0.
func (c *call) number() meta.Ino {
	ino, more := c.fs.numbers.take(c.fs)
	if ino != 0 {
		return ino
	}
	select {
	case <-more:
	case <-c.wait().Done():
	}
	ino, _ = c.fs.numbers.take(c.fs)
	return ino
}
