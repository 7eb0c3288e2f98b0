package tree

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// version is the newest protocol that this server speaks.
const version = 1

// A session is a client, over as many connections as it takes. It ends when the
// client says so or is not heard of for the time of a lease.
type session struct {
	v      *volume
	id     uint64
	secret string
	name   string
	root   meta.Ino // what the client calls meta.Root
	at     int64    // the second whose end it sees, for good; 0: it sees what is now

	slots [slots]slot

	// greeting has an element while a hello that resumes the session is dealt with.
	// No lock is held by who waits for it.
	greeting chan struct{}
	greeted  uint32 // the Seq of the last; guarded by greeting

	// run is held for reading while a transaction of the session runs, and for
	// writing while it ends: so nothing is stored for it after its end.
	run   sync.RWMutex
	ended bool // guarded by run and mu: set under both

	mu      sync.Mutex // guards what follows
	write   bool
	conn    meta.Conn                     // nil: not connected
	fresh   bool                          // connected since this server started
	contact time.Time                     // when the client was last heard of
	changed chan struct{}                 // closed and replaced when conn, fresh or ended change
	waits   map[uint64]context.CancelFunc // waits for locks, by the requests' IDs

	holds       map[meta.Ino]struct{} // what it may cache; guarded by v.mu, as v.holders
	delegations map[meta.Ino]struct{} // directories; guarded by v.mu, as v.delegated
	trimming    bool                  // some of holds is being called back; guarded by v.mu
}

// A sessionRecord is what is stored of a session, as JSON.
type sessionRecord struct {
	Secret string   `json:"secret"`
	Name   string   `json:"name"`
	Root   meta.Ino `json:"root"`
	Write  bool     `json:"write"`
	At     int64    `json:"at,omitempty"`
}

func (v *volume) newSession(id uint64, rec sessionRecord) *session {
	s := &session{
		v: v, id: id, secret: rec.Secret, name: rec.Name, root: rec.Root, at: rec.At, write: rec.Write && rec.At == 0,
		contact: time.Now(), changed: make(chan struct{}), waits: make(map[uint64]context.CancelFunc), greeting: make(chan struct{}, 1),
		holds: make(map[meta.Ino]struct{}), delegations: make(map[meta.Ino]struct{}),
	}
	for i := range s.slots {
		s.slots[i].busy = make(chan struct{}, 1)
	}
	return s
}

// signal wakes those who wait for a change of the session. The caller holds mu.
func (s *session) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *session) readOnly() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.write
}

// touch notes that the client was heard of over conn. It returns false if conn
// is not the session's connection any more.
func (s *session) touch(conn meta.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn || s.ended {
		return false
	}
	s.contact = time.Now()
	return true
}

// leaseEnd returns when what the session may cache is no longer valid. Clocks
// may differ in speed by an eighth.
func (s *session) leaseEnd() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaseEndLocked()
}

func (s *session) leaseEndLocked() time.Time { return s.contact.Add(s.v.srv.cfg.Lease * 9 / 8) }

func (srv *Server) sessionOf(conn meta.Conn) *session {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.conns[conn]
}

// Closed implements meta.Handler.
func (srv *Server) Closed(conn meta.Conn) {
	srv.mu.Lock()
	s := srv.conns[conn]
	delete(srv.conns, conn)
	srv.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
		s.signal()
	}
}

// hello opens or resumes a session.
func (srv *Server) hello(ctx context.Context, conn meta.Conn, req *meta.Request) (*meta.Reply, error) {
	if req.Version < 1 {
		return nil, refuse(syscall.EPROTONOSUPPORT, "protocol version %d is not spoken here; this is %d", req.Version, version)
	}
	grant, err := srv.cfg.Authorize(req.Token)
	if err != nil {
		return nil, refuse(syscall.EACCES, "%v", err)
	}
	if req.Volume != "" && req.Volume != grant.Volume {
		return nil, refuse(syscall.EACCES, "the token is for volume %s", grant.Volume)
	}
	v, err := srv.volume(ctx, grant.Volume)
	if err != nil {
		return nil, err
	}
	if req.Session != 0 {
		return v.resume(ctx, conn, req, grant)
	}
	s, err := v.begin(ctx, req, grant)
	if err == nil && len(req.Inos) > 0 && s.at == 0 { // of a session that was lost
		err = v.reclaim(ctx, s, &meta.Request{Inos: req.Inos})
	}
	if err != nil {
		return nil, err
	}
	return v.welcome(conn, s, req, false), nil
}

// begin opens a session, of now or of the past.
func (v *volume) begin(ctx context.Context, req *meta.Request, grant Grant) (*session, error) {
	rec := sessionRecord{Secret: rand.Text(), Name: req.Name, Write: grant.Write}
	var err error
	if req.At != 0 {
		if rec.At, err = v.pastSecond(ctx, req.At); err != nil {
			return nil, err
		}
	}
	if rec.Root, err = v.walk(ctx, rec.At, grant.MountPath); err != nil {
		return nil, err
	}
	return v.openSession(ctx, rec)
}

// welcome answers a hello. The session is back with one that is not Partial.
func (v *volume) welcome(conn meta.Conn, s *session, req *meta.Request, cached bool) *meta.Reply {
	if !req.Partial {
		v.srv.attach(s, conn)
	}
	cfg := v.config.Load()
	return &meta.Reply{
		Session: s.id, Secret: s.secret, Version: min(req.Version, version), Lease: v.srv.cfg.Lease, Cache: cached, Time: meta.TimeOf(time.Now()),
		VolumeInfo: meta.Volume{
			ID: v.id, Name: cfg.Name, BlockSize: v.blockSize, InlineMax: cfg.InlineMax, ReadOnly: s.readOnly(), At: s.at,
		},
	}
}

// attach makes conn the session's connection, in place of the one it had.
func (srv *Server) attach(s *session, conn meta.Conn) {
	srv.mu.Lock()
	srv.conns[conn] = s
	srv.mu.Unlock()
	s.mu.Lock()
	old := s.conn
	s.conn = conn
	s.fresh = true
	s.contact = time.Now()
	s.signal()
	s.mu.Unlock()
	s.v.mu.Lock()
	delete(s.v.absent, s)
	s.v.mu.Unlock()
	if old != nil && old != conn {
		srv.mu.Lock()
		delete(srv.conns, old)
		srv.mu.Unlock()
		old.Close()
	}
}

// openSession makes a new session.
func (v *volume) openSession(ctx context.Context, rec sessionRecord) (*session, error) {
	value, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("tree: session: %w", err)
	}
	var id uint64
	key := v.counterKey(counterSession)
	commit, err := v.srv.cfg.Engine.Update(ctx, [][]byte{key}, func(tx engine.Tx) error {
		n, err := v.counter(tx, counterSession)
		if err != nil {
			return err
		}
		id = uint64(n + 1)
		if err := tx.Put(key, binary.BigEndian.AppendUint64(nil, id)); err != nil {
			return err
		}
		return tx.Put(v.sessionKey(id, ofSession), value)
	})
	if err != nil {
		return nil, err
	}
	s := v.newSession(id, rec)
	s.fresh = true
	v.mu.Lock()
	v.sessions[id] = s
	v.mu.Unlock()
	return s, v.srv.durable(commit)
}

// durable waits for a commit.
func (srv *Server) durable(commit engine.Commit) error {
	err := commit.Wait()
	if err != nil {
		srv.fail(err)
	}
	return err
}

// resume answers a client that had a session. One hello at a time, and none of a
// connection before that of the last: it tells of locks that the client may have
// given up since.
func (v *volume) resume(ctx context.Context, conn meta.Conn, req *meta.Request, grant Grant) (*meta.Reply, error) {
	gone := refuse(syscall.ESTALE, "session %d has ended", req.Session)
	v.mu.Lock()
	s := v.sessions[req.Session]
	v.mu.Unlock()
	if s == nil || subtle.ConstantTimeCompare([]byte(s.secret), []byte(req.Secret)) != 1 {
		return nil, gone
	}
	select {
	case s.greeting <- struct{}{}:
		defer func() { <-s.greeting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if req.Seq < s.greeted {
		return nil, refuse(syscall.ECONNABORTED, "session %d has said hello on a later connection", s.id)
	}
	s.greeted = req.Seq
	if time.Now().After(s.leaseEnd()) {
		if err := v.end(s, "its lease had ended when it returned"); err != nil {
			return nil, err
		}
		return nil, gone
	}
	s.mu.Lock()
	s.contact = time.Now()
	s.write = grant.Write && s.at == 0
	cached := s.fresh || s.at != 0 // this server knows what the client was told
	s.mu.Unlock()
	if s.at == 0 {
		if err := v.reclaim(ctx, s, req); err != nil {
			return nil, err
		}
	}
	return v.welcome(conn, s, req, cached), nil
}

// reclaim takes note of the open files and the locks of a client that resumes.
func (v *volume) reclaim(ctx context.Context, s *session, req *meta.Request) error {
	inos := make([]meta.Ino, len(req.Inos))
	for i, ino := range req.Inos {
		inos[i] = s.in(ino)
	}
	v.hold(s, inos)
	if err := v.keepOpen(ctx, s, inos); err != nil {
		return err
	}
	lost, why := 0, error(nil)
	for _, l := range req.Locks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.locks.reclaim(s, s.in(l.Ino), l.Lock); err != nil {
			lost, why = lost+1, err
		}
	}
	if lost > 0 {
		v.srv.cfg.Log.Warn("locks could not be given back", "volume", v.id, "session", s.id, "locks", lost, "err", why)
	}
	return nil
}

// end ends a session: it holds and locks nothing any more, and its unlinked
// files may go.
func (v *volume) end(s *session, why string) error {
	s.run.Lock()
	defer s.run.Unlock()
	s.mu.Lock()
	if s.ended || why == lapseReason && time.Now().Before(s.leaseEndLocked()) {
		s.mu.Unlock()
		return nil
	}
	s.ended = true
	conn := s.conn
	s.conn = nil
	for _, cancel := range s.waits {
		cancel()
	}
	s.signal()
	s.mu.Unlock()
	v.forget(s, why)
	v.locks.release(s)
	if why != byeReason {
		v.srv.cfg.Log.Info("session ended", "volume", v.id, "session", s.id, "client", s.name, "why", why)
	}
	prefix := v.sessionKey(s.id, 0)
	prefix = prefix[:len(prefix)-1]
	commit, err := v.srv.cfg.Engine.Update(context.Background(), [][]byte{prefix}, func(tx engine.Tx) error {
		return tx.DeleteRange(prefix, after(prefix))
	})
	if err == nil {
		err = v.srv.durable(commit)
	}
	if conn != nil && why != byeReason {
		v.srv.Closed(conn)
		conn.Close()
	}
	return err
}

const (
	byeReason   = "it said bye"
	lapseReason = "its lease ended"
)

// forget removes a session from what the volume remembers. What it had in use is
// kept for a while if it did not say that it ends: a client that was cut off may
// come back with a new session, and says again what it has in use.
func (v *volume) forget(s *session, why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.sessions, s.id)
	delete(v.absent, s)
	for ino := range s.holds {
		remove(v.holders, ino, s)
	}
	s.holds = make(map[meta.Ino]struct{})
	for dir := range s.delegations {
		delete(v.delegated, dir)
	}
	for dir, k := range v.streaks {
		if k.s == s {
			delete(v.streaks, dir)
		}
	}
	s.delegations = make(map[meta.Ino]struct{})
	for ino, users := range v.open {
		if _, ok := users[s]; ok && why != byeReason {
			v.left[ino] = time.Now().Add(v.srv.cfg.Keep)
		}
		remove(v.open, ino, s)
	}
}

// loadSessions reads the sessions that were alive when the engine was closed.
func (v *volume) loadSessions(r engine.Reader) error {
	prefix := v.key(tableSession)
	return r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
		rest := key[len(prefix):]
		if len(rest) < 9 {
			return false, fmt.Errorf("tree: key of a session: %w", errValue)
		}
		return true, v.loadSession(binary.BigEndian.Uint64(rest), rest[8], rest[9:], value)
	})
}

func (v *volume) loadSession(id uint64, kind byte, rest, value []byte) error {
	bad := fmt.Errorf("tree: session %d: %w", id, errValue)
	if kind == ofSession {
		var rec sessionRecord
		if err := json.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("%w: %w", bad, err)
		}
		s := v.newSession(id, rec)
		v.sessions[id] = s
		if s.at == 0 {
			v.absent[s] = struct{}{}
		}
		return nil
	}
	s := v.sessions[id]
	switch {
	case s == nil:
		return bad
	case kind == ofOpen && len(rest) == 8:
		add(v.open, meta.Ino(binary.BigEndian.Uint64(rest)), s)
		return nil
	case kind == ofDelegation && len(rest) == 8:
		dir := meta.Ino(binary.BigEndian.Uint64(rest))
		v.delegated[dir] = s
		s.delegations[dir] = struct{}{}
		return nil
	case kind == ofSlot && len(rest) == 2 && len(value) >= 4:
		n := binary.BigEndian.Uint16(rest)
		if int(n) >= slots {
			return bad
		}
		s.slots[n].seq = binary.BigEndian.Uint32(value)
		s.slots[n].reply = new(meta.Reply)
		return s.slots[n].reply.Decode(value[4:])
	}
	return bad
}

// add puts s into the set of ino.
func add(table map[meta.Ino]map[*session]struct{}, ino meta.Ino, s *session) bool {
	set := table[ino]
	if set == nil {
		set = make(map[*session]struct{}, 1)
		table[ino] = set
	}
	if _, ok := set[s]; ok {
		return false
	}
	set[s] = struct{}{}
	return true
}

// remove takes s out of the set of ino.
func remove(table map[meta.Ino]map[*session]struct{}, ino meta.Ino, s *session) {
	set := table[ino]
	delete(set, s)
	if len(set) == 0 {
		delete(table, ino)
	}
}

// walk returns the directory at a path of the volume, at the end of a second or,
// if that is 0, now.
func (v *volume) walk(ctx context.Context, second int64, path string) (meta.Ino, error) {
	ino := meta.Root
	err := v.view(ctx, second, func(r engine.Reader) error {
		for _, name := range strings.FieldsFunc(path, func(c rune) bool { return c == '/' }) {
			b, err := r.Get(v.dentryKey(ino, name))
			if err != nil {
				return err
			}
			if b == nil {
				return refuse(syscall.ENOENT, "the folder %s of the token is not there", path)
			}
			d, err := decodeDentry(b)
			if err != nil {
				return err
			}
			if d.typ != syscall.S_IFDIR {
				return refuse(syscall.ENOTDIR, "%s is not a folder", path)
			}
			ino = d.ino
		}
		return nil
	})
	return ino, err
}
