package tree

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"flexfs/meta"
)

const (
	// maxVolumeLocks bounds the advisory locks of a volume: their memory.
	maxVolumeLocks = 1 << 20

	// maxInodeLocks bounds those of an inode, all of which are looked at for each
	// that is asked for.
	maxInodeLocks = 1 << 14

	// spareLocks is how many times as many there may be for those that a session had
	// before, and for a release in the middle of one, which leaves two.
	spareLocks = 2
)

// endOfFile is the End of a lock that reaches to the end of the file.
const endOfFile = 1<<63 - 1

// An owner is whose a lock is: a process as fcntl(2) sees it, or an open file
// as flock(2) does.
type owner struct {
	s     *session
	flock bool
	id    uint64
}

// A held is a lock that is held or wanted.
type held struct {
	owner
	typ        uint32 // F_RDLCK, F_WRLCK or F_UNLCK
	pid        uint32
	start, end uint64 // inclusive
	alone      bool   // no other session has any
}

func newHeld(s *session, l *meta.Lock) held {
	h := held{owner{s, l.Flock, l.Owner}, l.Type, l.Pid, l.Start, l.End, l.Alone}
	if l.Flock {
		h.start, h.end = 0, endOfFile
	}
	return h
}

// excludes tells whether h and other cannot both be held.
func (h *held) excludes(other *held) bool {
	if (h.alone || other.alone) && h.flock == other.flock && h.s != other.s {
		return true
	}
	return h.flock == other.flock && h.owner != other.owner &&
		(h.typ == syscall.F_WRLCK || other.typ == syscall.F_WRLCK) &&
		h.start <= other.end && other.start <= h.end
}

// joins tells whether h becomes a part of want, its owner's next.
func (h *held) joins(want *held) bool {
	return h.owner == want.owner && h.typ == want.typ && h.alone == want.alone &&
		h.start <= want.end+1 && want.start <= h.end+1
}

// isCutBy tells whether want, which h does not join, takes some of its range.
func (h *held) isCutBy(want *held) bool {
	return h.owner == want.owner && h.start <= want.end && want.start <= h.end
}

// A waiter is a lock that is waited for.
type waiter struct {
	ino  meta.Ino
	want held
	done chan struct{} // closed when granted, or with err set
	err  error
}

// A lockTable keeps the advisory locks of a volume. They live as long as their
// sessions: a client that returns to a restarted server says which it had.
type lockTable struct {
	mu    sync.Mutex // taken before session.mu
	inos  map[meta.Ino]*inoLocks
	count int
}

type inoLocks struct {
	held    []held // in the order of their starts
	waiters []*waiter
}

func (t *lockTable) init() { t.inos = make(map[meta.Ino]*inoLocks) }

func (t *lockTable) of(ino meta.Ino) *inoLocks {
	l := t.inos[ino]
	if l == nil {
		l = new(inoLocks)
		t.inos[ino] = l
	}
	return l
}

// tidy forgets an inode without locks.
func (t *lockTable) tidy(ino meta.Ino) {
	if l := t.inos[ino]; l != nil && len(l.held) == 0 && len(l.waiters) == 0 {
		delete(t.inos, ino)
	}
}

// conflict returns a held lock that excludes want, or nil.
func (l *inoLocks) conflict(want *held) *held {
	for i := range l.held {
		if l.held[i].excludes(want) {
			return &l.held[i]
		}
	}
	return nil
}

// test returns the lock that is in the way of want.
func (t *lockTable) test(ino meta.Ino, want held) (held, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.inos[ino]; l != nil {
		if h := l.conflict(&want); h != nil {
			return *h, true
		}
	}
	return held{}, false
}

// full refuses what makes more locks of an inode that, or whose volume, has times as
// many as it may. A change of what an owner has makes no more.
func (t *lockTable) full(l *inoLocks, want *held, times int) error {
	inode, volume := len(l.held) >= times*maxInodeLocks, t.count >= times*maxVolumeLocks
	switch {
	case !inode && !volume || l.growth(want) <= 0:
		return nil
	case volume:
		return refuse(syscall.ENOLCK, "the volume has %d locks", t.count)
	}
	return refuse(syscall.ENOLCK, "the file has %d locks", len(l.held))
}

// set takes, changes or releases a lock. If it cannot be had now, it returns a
// waiter if wait is set, else EAGAIN. If there are too many it returns ENOLCK, and
// what there was stays.
func (t *lockTable) set(ino meta.Ino, want held, wait bool) (*waiter, error) {
	if want.typ == syscall.F_UNLCK {
		return t.setIn(ino, want, wait, spareLocks)
	}
	return t.setIn(ino, want, wait, 1)
}

// setIn is set where there may be times as many locks as there should be.
func (t *lockTable) setIn(ino meta.Ino, want held, wait bool, times int) (*waiter, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.tidy(ino)
	if want.s.isEnded() {
		return nil, errNoSession
	}
	l := t.of(ino)
	if err := t.full(l, &want, times); err != nil {
		return nil, err
	}
	if want.typ == syscall.F_UNLCK || l.conflict(&want) == nil {
		t.apply(l, want)
		t.grant(ino)
		return nil, nil
	}
	if want.flock { // flock(2): a conversion gives up what there was, and then is a new lock
		none := want
		none.typ = syscall.F_UNLCK
		t.apply(l, none)
		t.grant(ino)
	}
	if !wait {
		return nil, refuse(syscall.EAGAIN, "another has a lock")
	}
	if !want.flock && t.deadlock(l, &want) {
		return nil, refuse(syscall.EDEADLK, "those who have the lock wait for this process")
	}
	w := &waiter{ino: ino, want: want, done: make(chan struct{})}
	l.waiters = append(l.waiters, w)
	return w, nil
}

// growth returns how many locks more there would be after apply.
func (l *inoLocks) growth(want *held) int {
	n := 0
	if want.typ != syscall.F_UNLCK {
		n++
	}
	for i := range l.held {
		h := &l.held[i]
		if h.joins(want) {
			n--
		} else if h.isCutBy(want) {
			n--
			if h.start < want.start {
				n++
			}
			if h.end > want.end {
				n++
			}
		}
	}
	return n
}

// apply makes want true of the locks of its owner: it cuts what it had of the range,
// and joins want with what it touches. Locks stay in the order of their starts.
func (t *lockTable) apply(l *inoLocks, want held) {
	n := len(l.held)
	var cut []held
	rest := l.held[:0]
	for i := range l.held {
		h := &l.held[i]
		switch {
		case h.joins(&want):
			want.start, want.end = min(want.start, h.start), max(want.end, h.end)
		case !h.isCutBy(&want):
			rest = append(rest, *h)
		default:
			left, right := *h, *h
			left.end, right.start = want.start-1, want.end+1
			if h.start < want.start {
				cut = append(cut, left)
			}
			if h.end > want.end {
				cut = append(cut, right)
			}
		}
	}
	if want.typ != syscall.F_UNLCK {
		cut = append(cut, want)
	}
	for _, h := range cut {
		i, _ := slices.BinarySearchFunc(rest, h.start+1, func(o held, start uint64) int { return cmp.Compare(o.start, start) })
		rest = slices.Insert(rest, i, h)
	}
	if len(rest) < n {
		clear(l.held[len(rest):]) // they refer to sessions
	}
	l.held = rest
	t.count += len(rest) - n
}

// grant gives those who wait what they can have now, first come first served.
func (t *lockTable) grant(ino meta.Ino) {
	l := t.of(ino)
	l.waiters = slices.DeleteFunc(l.waiters, func(w *waiter) bool {
		if l.conflict(&w.want) != nil {
			return false
		}
		t.apply(l, w.want)
		close(w.done)
		return true
	})
}

// deadlock tells whether those who exclude want wait, maybe for others who wait,
// for its owner.
func (t *lockTable) deadlock(l *inoLocks, want *held) bool {
	seen := make(map[owner]bool)
	var reaches func(l *inoLocks, h *held) bool
	reaches = func(l *inoLocks, h *held) bool {
		for i := range l.held {
			if !l.held[i].excludes(h) {
				continue
			}
			by := l.held[i].owner
			if by == want.owner {
				return true
			}
			if seen[by] {
				continue
			}
			seen[by] = true
			for _, w := range t.waitsOf(by) {
				if reaches(t.inos[w.ino], &w.want) {
					return true
				}
			}
		}
		return false
	}
	return reaches(l, want)
}

func (t *lockTable) waitsOf(o owner) []*waiter {
	var waits []*waiter
	for _, l := range t.inos {
		for _, w := range l.waiters {
			if w.want.owner == o {
				waits = append(waits, w)
			}
		}
	}
	return waits
}

// giveUp ends a wait. It returns false if the lock was granted first.
func (t *lockTable) giveUp(w *waiter) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.tidy(w.ino)
	l := t.of(w.ino)
	n := len(l.waiters)
	l.waiters = slices.DeleteFunc(l.waiters, func(o *waiter) bool { return o == w })
	return len(l.waiters) < n
}

// release ends all locks and waits of a session.
func (t *lockTable) release(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ino, l := range t.inos {
		n := len(l.held)
		l.held = slices.DeleteFunc(l.held, func(h held) bool { return h.s == s })
		t.count += len(l.held) - n
		l.waiters = slices.DeleteFunc(l.waiters, func(w *waiter) bool {
			if w.want.s != s {
				return false
			}
			w.err = errNoSession
			close(w.done)
			return true
		})
		t.grant(ino)
		t.tidy(ino)
	}
}

// reclaim gives a session a lock that it had.
func (t *lockTable) reclaim(s *session, ino meta.Ino, lock meta.Lock) error {
	if checkLock(&lock) != nil || lock.Type == syscall.F_UNLCK {
		return nil
	}
	_, err := t.setIn(ino, newHeld(s, &lock), false, spareLocks)
	return err
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func checkLock(l *meta.Lock) error {
	switch {
	case l.Type != syscall.F_RDLCK && l.Type != syscall.F_WRLCK && l.Type != syscall.F_UNLCK:
		return refuse(syscall.EINVAL, "lock type %d", l.Type)
	case !l.Flock && (l.Start > l.End || l.End > endOfFile):
		return refuse(syscall.EINVAL, "lock from %d to %d", l.Start, l.End)
	}
	return nil
}

func (s *session) getlk(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if err := s.mayLock(ctx, req); err != nil {
		return nil, err
	}
	h, found := s.v.locks.test(s.in(req.Ino), newHeld(s, &req.Lock))
	if !found {
		free := req.Lock
		free.Type = syscall.F_UNLCK
		return &meta.Reply{Lock: free}, nil
	}
	pid := h.pid
	if h.s != s {
		pid = 0 // of another machine: it would mislead
	}
	return &meta.Reply{Lock: meta.Lock{
		Type: h.typ, Flock: h.flock, Owner: h.id, Pid: pid, Start: h.start, End: h.end,
	}}, nil
}

// mayLock refuses a lock that is not one, and waits until those who had locks
// before the server started have had their time to say so.
func (s *session) mayLock(ctx context.Context, req *meta.Request) error {
	if s.at != 0 {
		return refuse(syscall.ENOLCK, "there are no locks in the past")
	}
	if err := checkLock(&req.Lock); err != nil || req.Lock.Type == syscall.F_UNLCK {
		return err
	}
	if s.root != meta.Root {
		if _, err := s.getattr(ctx, req); err != nil {
			return err
		}
	}
	return s.v.settled(ctx)
}

// settled returns when every session that was alive before the server started
// has returned or ended.
func (v *volume) settled(ctx context.Context) error {
	for {
		s := v.missing()
		if s == nil {
			return nil
		}
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		wait := time.Until(s.leaseEnd())
		if wait <= 0 {
			v.lapse(s)
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// missing returns a session that has not returned yet, or nil.
func (v *volume) missing() *session {
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.absent {
		return s
	}
	return nil
}

func (s *session) setlk(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Wait && req.ID != 0 {
		var done func()
		ctx, done = s.cancellable(ctx, req.ID)
		defer done()
	}
	if err := s.mayLock(ctx, req); err != nil {
		return nil, err
	}
	w, err := s.v.locks.set(s.in(req.Ino), newHeld(s, &req.Lock), req.Wait)
	if err != nil || w == nil {
		return &meta.Reply{}, err
	}
	select {
	case <-w.done:
		return &meta.Reply{}, w.err
	case <-ctx.Done():
		if s.v.locks.giveUp(w) {
			return nil, ctx.Err()
		}
		<-w.done
		return &meta.Reply{}, w.err
	}
}

// cancellable returns a context that an OpCancel with this ID ends.
func (s *session) cancellable(ctx context.Context, id uint64) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.waits[id] = cancel
	s.mu.Unlock()
	return ctx, func() {
		cancel()
		s.mu.Lock()
		delete(s.waits, id)
		s.mu.Unlock()
	}
}

func (s *session) cancelWait(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := s.waits[id]; cancel != nil {
		cancel()
	}
}
