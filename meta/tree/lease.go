package tree

import (
	"context"
	"slices"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// hold makes a session a holder of inodes. It returns false if it must not cache
// them: it holds too many, or they are being changed. fresh tells that some were
// not held before.
func (v *volume) hold(s *session, inos []meta.Ino) (ok, fresh bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sessions[s.id] != s {
		return false, false
	}
	ok = len(s.holds)+len(inos) <= v.srv.cfg.MaxHeld
	still := v.unchanging(s, inos)
	v.endStreaks(s, inos)
	for _, ino := range inos {
		if _, held := s.holds[ino]; ino == 0 || held {
			continue
		}
		fresh = true
		if ok {
			s.holds[ino] = struct{}{}
			add(v.holders, ino, s)
		}
	}
	return still && (ok || !fresh), fresh
}

// release makes a session no holder of an inode any more, unless it has just
// asked for it.
func (v *volume) release(s *session, ino meta.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.askedMeanwhile(s, ino) {
		return
	}
	delete(s.holds, ino)
	remove(v.holders, ino, s)
	v.notices++ // it may change now, unnoticed, before it is held again
}

// callBack tells one session what it must no longer believe, over whatever
// connection it has, until it has answered or its lease, or ctx, has ended. It
// returns which of the inodes the session has in use.
func (v *volume) callBack(ctx context.Context, s *session, invals []meta.Inval) []meta.Ino {
	req := &meta.Request{Op: meta.OpInval, Invals: s.outInvals(invals)}
	for {
		s.mu.Lock()
		conn, changed, ended, fresh := s.conn, s.changed, s.ended, s.fresh
		s.mu.Unlock()
		if ended || ctx.Err() != nil {
			return nil
		}
		wait := time.Until(s.leaseEnd())
		if wait <= 0 {
			v.lapse(s)
			continue
		}
		if conn == nil || !fresh {
			pause(wait, changed)
			continue
		}
		pushing, cancel := context.WithTimeout(ctx, wait)
		reply, err := conn.Push(pushing, req)
		cancel()
		if err == nil && reply.Errno == 0 {
			return v.answered(s, invals, reply)
		}
		if time.Now().Before(s.leaseEnd()) && s.connected(conn) {
			pause(min(wait, pushPause), changed)
		}
	}
}

// pushPause is how long a push that failed on a living connection waits before
// the next.
const pushPause = 50 * time.Millisecond

// pause waits for d, or until changed is closed.
func pause(d time.Duration, changed <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	}
}

func (s *session) connected(conn meta.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn == conn
}

// answered takes note of the answer to a call-back: a session that was told to
// drop all that it had of an inode, and does not use it, holds it no more.
func (v *volume) answered(s *session, invals []meta.Inval, reply *meta.Reply) []meta.Ino {
	v.undelegate(s, invals)
	inUse := make([]meta.Ino, len(reply.Inos))
	for i, ino := range reply.Inos {
		inUse[i] = s.in(ino)
	}
	for _, inval := range invals {
		all := inval.Attr && (inval.Data || inval.Entries)
		if all && !slices.Contains(inUse, inval.Ino) && inval.Ino != s.root {
			v.release(s, inval.Ino)
		}
	}
	return inUse
}

// lapse ends a session whose lease has ended, unless it is heard of after all.
func (v *volume) lapse(s *session) {
	if err := v.end(s, lapseReason); err != nil {
		v.srv.cfg.Log.Error("ending a session failed", "session", s.id, "err", err)
	}
}

// trimStep bounds the inodes of one call-back that makes room.
const trimStep = 1000

// full returns the sessions that hold nearly as much as they may, or have nearly
// as many directories delegated, and marks them as being trimmed.
func (v *volume) full() []*session {
	v.mu.Lock()
	defer v.mu.Unlock()
	var full []*session
	for _, s := range v.sessions {
		if !s.trimming && (v.holdsMuch(s) || len(s.delegations) > maxDelegations/4*3) {
			s.trimming = true
			full = append(full, s)
		}
	}
	return full
}

// holdsMuch reports whether a session holds nearly as much as it may. v.mu is
// held.
func (v *volume) holdsMuch(s *session) bool { return len(s.holds) > v.srv.cfg.MaxHeld/4*3 }

// trim asks a session to forget some of what it holds, so that it may cache
// other things, and to return some of the directories that it has delegated.
func (v *volume) trim(ctx context.Context, s *session) {
	v.mu.Lock()
	var some []meta.Inval
	for ino := range s.holds {
		if !v.holdsMuch(s) || len(some) >= max(len(s.holds)/4, 1) {
			break
		}
		some = append(some, meta.Inval{Ino: ino, Attr: true, Data: true, Entries: true})
	}
	n := len(s.delegations) - maxDelegations/2
	for dir := range s.delegations {
		if n--; n < 0 {
			break
		}
		some = append(some, meta.Inval{Ino: dir})
	}
	v.mu.Unlock()
	for step := range slices.Chunk(some, trimStep) {
		v.askBack(ctx, s, step)
	}
	v.mu.Lock()
	s.trimming = false
	v.mu.Unlock()
}

// keepOpen notes durably which unlinked inodes a session has in use.
func (v *volume) keepOpen(ctx context.Context, s *session, inos []meta.Ino) error {
	for len(inos) > 0 {
		n := min(len(inos), closeStep)
		if err := v.keepOpenStep(ctx, s, inos[:n]); err != nil {
			return err
		}
		inos = inos[n:]
	}
	return nil
}

func (v *volume) keepOpenStep(ctx context.Context, s *session, inos []meta.Ino) error {
	s.run.RLock()
	defer s.run.RUnlock()
	if s.ended {
		return nil
	}
	var locks [][]byte
	for _, ino := range inos {
		locks = append(locks, v.inoKey(ino))
	}
	commit, err := v.srv.cfg.Engine.Update(ctx, locks, func(tx engine.Tx) error {
		for _, ino := range inos {
			b, err := tx.Get(v.attrKey(ino))
			if err != nil {
				return err
			}
			if b == nil {
				continue
			}
			in, err := decodeInode(ino, b)
			if err != nil {
				return err
			}
			if in.Nlink == 0 && !in.dead {
				if err := v.opened(tx, s, ino); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return v.srv.durable(commit)
}

// opened notes that a session has an unlinked inode in use. The caller has it
// locked.
func (v *volume) opened(tx engine.Tx, s *session, ino meta.Ino) error {
	v.mu.Lock()
	add(v.open, ino, s)
	v.mu.Unlock()
	return tx.Put(v.openKey(s.id, ino), nil)
}

// closeStep bounds the inodes of one transaction of an OpClose.
const closeStep = 512

// closeInos takes note that unlinked inodes are not in use any more.
func (s *session) closeInos(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if len(req.Inos) > maxInos {
		return nil, refuse(syscall.EINVAL, "more than %d inodes", maxInos)
	}
	v := s.v
	inos := make([]meta.Ino, len(req.Inos))
	for i, ino := range req.Inos {
		inos[i] = s.in(ino)
	}
	var c *change
	s.run.RLock()
	defer s.run.RUnlock()
	if s.ended {
		return nil, errNoSession
	}
	reply := new(meta.Reply)
	commit, err := v.update(ctx, s, req, nil, &c, func(c *change) error {
		for _, ino := range inos {
			if err := c.Delete(v.openKey(s.id, ino)); err != nil {
				return err
			}
		}
		return c.answered(reply)
	})
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	for _, ino := range inos {
		remove(v.open, ino, s)
	}
	v.mu.Unlock()
	return reply, s.durable(ctx, commit)
}

// maxInos bounds the inodes of one OpClose.
const maxInos = 100_000

// inUse tells whether some session has an unlinked inode in use, or had until it
// was lost just now.
func (v *volume) inUse(ino meta.Ino) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	until, lost := v.left[ino]
	if lost && time.Now().After(until) {
		delete(v.left, ino)
		lost = false
	}
	return lost || len(v.open[ino]) > 0
}
