package tree

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"flexfs/meta"
)

// A notice tells other sessions of a change before it is made. What they cached
// is then gone when anybody can see the change; else one client could see it,
// and another, asked afterwards, still what was before. Until the change is made
// nobody may cache what it is going to alter.
//
// Which inodes a change alters is known when its transaction has run. If others
// hold some of them it is not committed; they are called back, with no inode
// locked, and it runs again.
type notice struct {
	v    *volume
	s    *session // whose change it is
	only *session // not nil: nothing changes, but this session returns something

	marks []meta.Ino // of which v.changing has this notice
	told  map[tolding]bool
	asked map[asking]bool // since the marks were made; guarded by v.mu
}

// An asking is that a session asked for an inode that is being changed.
type asking struct {
	s   *session
	ino meta.Ino
}

// A tolding is that a session was told something.
type tolding struct {
	s                   *session
	ino                 meta.Ino
	attr, data, entries bool
	names               string
}

func toldingOf(s *session, i *meta.Inval) tolding {
	return tolding{s, i.Ino, i.Attr, i.Data, i.Entries, strings.Join(i.Names, "/")}
}

// An untold is the failure of a change that others must be told of first.
type untold struct {
	tasks map[*session][]meta.Inval
}

func (*untold) Error() string { return "tree: others cache what is going to change" }

// need returns an untold if anybody must still be told of invals. It is called
// in a transaction that has their inodes locked, and that is committed if it
// returns nil.
func (n *notice) need(invals []meta.Inval) error {
	n.v.mu.Lock()
	defer n.v.mu.Unlock()
	var tasks map[*session][]meta.Inval // mostly none
	add := func(s *session, inval meta.Inval) bool {
		if s == n.s || n.told[toldingOf(s, &inval)] {
			return false
		}
		if tasks == nil {
			tasks = make(map[*session][]meta.Inval)
		}
		tasks[s] = append(tasks[s], inval)
		return true
	}
	for _, inval := range invals {
		names := len(inval.Names) > 0
		inval.Entries = inval.Entries || names && n.v.idle(n.s, inval.Ino)
		others := false
		for s := range n.v.holders[inval.Ino] {
			others = add(s, inval) || others
		}
		if names && others {
			n.v.noteStreak(n.s, inval.Ino)
		}
		// A session that was alive before this server started and has not
		// returned may have cached anything.
		for s := range n.v.absent {
			add(s, inval)
		}
	}
	for _, inval := range invals {
		if !slices.Contains(n.marks, inval.Ino) {
			n.mark(inval.Ino)
		}
	}
	if len(tasks) == 0 {
		return nil
	}
	return &untold{tasks}
}

// tell calls back those who must be told, and returns when they have answered or
// their leases have ended.
func (n *notice) tell(u *untold) {
	if n.told == nil {
		n.told = make(map[tolding]bool)
	}
	var wg sync.WaitGroup
	for s, invals := range u.tasks {
		for i := range invals {
			n.told[toldingOf(s, &invals[i])] = true
		}
		wg.Go(func() { n.v.callBack(context.Background(), s, invals) })
	}
	wg.Wait()
}

// askBack has a session return what it has of some inodes, though nothing changes.
// What it asks for before its answer is here it may not cache, and does not get
// delegated: the answer does not tell whether it still has that.
func (v *volume) askBack(ctx context.Context, s *session, invals []meta.Inval) {
	n := &notice{v: v, only: s}
	v.mu.Lock()
	for i := range invals {
		n.mark(invals[i].Ino)
	}
	v.mu.Unlock()
	defer n.done()
	v.callBack(ctx, s, invals)
}

// mark notes that an inode is going to change, or to be returned. v.mu is held.
func (n *notice) mark(ino meta.Ino) {
	n.marks = append(n.marks, ino)
	n.v.changing[ino] = append(n.v.changing[ino], n)
}

// done lets others cache again what was changed: the change is visible, or is not
// going to be made.
func (n *notice) done() {
	if len(n.marks) == 0 {
		return
	}
	n.v.mu.Lock()
	defer n.v.mu.Unlock()
	for _, ino := range n.marks {
		left := slices.DeleteFunc(n.v.changing[ino], func(o *notice) bool { return o == n })
		if n.v.changing[ino] = left; len(left) == 0 {
			delete(n.v.changing, ino)
		}
	}
	n.marks = nil
	if n.asked != nil || n.told != nil {
		n.v.notices++
	}
}

// noticesDone counts the notices that are over, and the inodes that were released:
// what was read before the next of them may not be true any more though the inode
// is held.
func (v *volume) noticesDone() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.notices
}

// askedMeanwhile reports whether a session asked for an inode since its change
// began: then it may use it, whatever it answered to the notice. v.mu is held.
func (v *volume) askedMeanwhile(s *session, ino meta.Ino) bool {
	return slices.ContainsFunc(v.changing[ino], func(n *notice) bool { return n.asked[asking{s, ino}] })
}

// unchanging reports whether no other session is changing inodes, and s is not
// returning them, so that s may cache them. v.mu is held.
func (v *volume) unchanging(s *session, inos []meta.Ino) bool {
	ok := true
	for _, ino := range inos {
		for _, n := range v.changing[ino] {
			if n.s != s && (n.only == nil || n.only == s) {
				if n.asked == nil {
					n.asked = make(map[asking]bool)
				}
				n.asked[asking{s, ino}] = true
				ok = false
			}
		}
	}
	return ok
}

// keepOrphans keeps inodes that lost their last name for the sessions that have
// them in use. Who did not when the notice came holds them no more, and who asked
// for them after it holds them again: so those who hold them are asked.
func (n *notice) keepOrphans(orphans []meta.Ino) error {
	if len(orphans) == 0 {
		return nil
	}
	tasks := make(map[*session][]meta.Inval)
	n.v.mu.Lock()
	for _, ino := range orphans {
		for s := range n.v.holders[ino] {
			if s != n.s {
				tasks[s] = append(tasks[s], meta.Inval{Ino: ino, Attr: true})
			}
		}
	}
	n.v.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for s, invals := range tasks {
		wg.Go(func() {
			inUse := n.v.callBack(context.Background(), s, invals)
			if err := n.v.keepOpen(context.Background(), s, inUse); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return failed
}
