// Package tree keeps file systems in an engine: it is the metadata service. A
// [Server] answers the requests of package meta.
//
// Whoever is told something may cache it: its session is then a holder of the
// inode, and a change of it by another is acknowledged only when the holders
// have been called back or their leases have ended. A change and the answer to
// it are stored in one transaction, so a request that is repeated, even after a
// restart, is done once. [Check] verifies everything that must always hold.
package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A Grant is what a token entitles to.
type Grant struct {
	Volume    string // UUID
	Write     bool
	MountPath string // the folder it is for; "" or "/": all
	Name      string // for people
}

// A VolumeConfig is what an operator set for a volume.
type VolumeConfig struct {
	Name      string
	BlockSize uint32        // never changes
	InlineMax uint32        // bytes; at most meta.MaxInline
	Retention time.Duration // how long the past is kept; negative: for ever
	MaxBytes  uint64        // 0: no limit
	MaxInodes uint64        // 0: no limit
}

// A Config is what a Server needs.
type Config struct {
	Engine engine.Engine
	Log    *slog.Logger // nil: none

	// Lease is how long a session that is not heard of keeps what it holds.
	// 0: 10 s.
	Lease time.Duration

	// Keep is how long blocks that no file has any more, and unlinked inodes,
	// are kept at least: so long may a reader go on with a block map that it
	// got before. 0: 10 minutes.
	Keep time.Duration

	// MaxHeld is how many inodes a session may cache. 0: a million.
	MaxHeld int

	// Authorize tells what a token entitles to. Its error is shown to the
	// client.
	Authorize func(token string) (Grant, error)

	// Volumes returns the settings of a volume. It is asked again from time
	// to time, and must be quick.
	Volumes func(id string) (VolumeConfig, error)

	// Delete removes blocks of a volume that no file has any more. It may be
	// asked again for the same ones.
	Delete func(ctx context.Context, volume string, blocks []BlockRef) error

	// List calls fn for each object that the bucket has for a volume, in no
	// particular order, until fn fails. fn may call Delete. nil, or an error
	// that wraps errors.ErrUnsupported: there is no list, and what dead clients
	// left stays.
	List func(ctx context.Context, volume string, fn func(Object) error) error

	// Reconcile is how often the bucket is searched for what nothing names.
	// 0: daily; negative: never.
	Reconcile time.Duration

	// Grace is how old an object is at least that is removed because nothing
	// names it. 0: a day.
	Grace time.Duration
}

// A Server is a metadata service: a [meta.Handler].
type Server struct {
	cfg       Config
	start     time.Time
	blockStep int // see the constant, which it is but in tests

	broken     chan struct{} // closed when the engine failed
	breakOnce  sync.Once
	brokenWith error // set before broken is closed

	loading sync.Mutex // held while a volume is made or loaded

	mu      sync.Mutex // guards what follows; taken after loading, before any volume's
	volumes map[string]*volume
	conns   map[meta.Conn]*session
}

// New returns a Server for the volumes in an engine. It reads the sessions that
// were alive when the engine was closed, and gives them a lease's time to return.
// Nothing is collected, and no lease ends, until Run is called.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lease == 0 {
		cfg.Lease = 10 * time.Second
	}
	if cfg.Keep == 0 {
		cfg.Keep = 10 * time.Minute
	}
	if cfg.Reconcile == 0 {
		cfg.Reconcile = 24 * time.Hour
	}
	if cfg.Grace == 0 {
		cfg.Grace = 24 * time.Hour
	}
	if cfg.MaxHeld == 0 {
		cfg.MaxHeld = 1_000_000
	}
	srv := &Server{
		cfg: cfg, start: time.Now(), blockStep: blockStep, broken: make(chan struct{}),
		volumes: make(map[string]*volume), conns: make(map[meta.Conn]*session),
	}
	if err := srv.load(context.Background()); err != nil {
		return nil, fmt.Errorf("tree: load: %w", err)
	}
	return srv, nil
}

// fail tells Run that the engine cannot be trusted any more.
func (srv *Server) fail(err error) {
	srv.breakOnce.Do(func() {
		srv.brokenWith = err
		close(srv.broken)
	})
}

// A refusal is an operation that is not done for a reason that the client is
// told.
type refusal struct {
	errno syscall.Errno
	msg   string
}

func (r *refusal) Error() string {
	if r.msg != "" {
		return r.msg
	}
	return r.errno.Error()
}

func refuse(errno syscall.Errno, format string, args ...any) error {
	return &refusal{errno, fmt.Sprintf(format, args...)}
}

// answer returns what a client is told of an outcome.
func (srv *Server) answer(req *meta.Request, reply *meta.Reply, err error) *meta.Reply {
	var no *refusal
	switch {
	case err == nil:
		return reply
	case errors.As(err, &no):
		return &meta.Reply{Errno: no.errno, Msg: no.msg, Cache: reply != nil && reply.Cache}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &meta.Reply{Errno: syscall.EINTR}
	}
	srv.cfg.Log.Error("request failed", "op", req.Op, "ino", req.Ino, "err", err)
	return &meta.Reply{Errno: syscall.EIO, Msg: err.Error()}
}

// ServeMeta implements meta.Handler.
func (srv *Server) ServeMeta(ctx context.Context, conn meta.Conn, req *meta.Request) *meta.Reply {
	if req.Op == meta.OpHello {
		reply, err := srv.hello(ctx, conn, req)
		return srv.answer(req, reply, err)
	}
	s := srv.sessionOf(conn)
	var reply *meta.Reply
	if s == nil || !s.touch(conn) {
		reply = srv.answer(req, nil, errNoSession)
	} else {
		reply = s.serve(ctx, req)
	}
	if reply.Errno == syscall.ENOTCONN {
		conn.Close() // the client finds out when it comes back
	}
	return reply
}

// errNoSession: the connection said no hello, or its session has ended.
var errNoSession = refuse(syscall.ENOTCONN, "the connection has no session")

// serve answers a request other than a hello.
func (s *session) serve(ctx context.Context, req *meta.Request) *meta.Reply {
	if req.Op == meta.OpCompound {
		return s.compound(ctx, req)
	}
	if req.Op.Changes() {
		return s.once(ctx, req)
	}
	reply, err := s.ask(ctx, req)
	return s.v.srv.answer(req, reply, err)
}

// ask answers a request that changes no file.
func (s *session) ask(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	switch req.Op {
	case meta.OpPing:
		return s.ping(ctx)
	case meta.OpBye:
		return &meta.Reply{}, s.v.end(s, "it said bye")
	case meta.OpLookup:
		return s.lookup(ctx, req)
	case meta.OpGetattr:
		return s.getattr(ctx, req)
	case meta.OpReaddir:
		return s.readdir(ctx, req)
	case meta.OpBlocks:
		return s.blocks(ctx, req)
	case meta.OpGetxattr:
		return s.getxattr(ctx, req)
	case meta.OpListxattr:
		return s.listxattr(ctx, req)
	case meta.OpDeleted:
		return s.deleted(ctx, req)
	case meta.OpReserve:
		return s.reserveInos(ctx, req)
	case meta.OpStatfs:
		return &meta.Reply{Statfs: s.v.statfs()}, nil
	case meta.OpGetlk:
		return s.getlk(ctx, req)
	case meta.OpSetlk:
		return s.setlk(ctx, req)
	case meta.OpCancel:
		s.cancelWait(req.ID)
		return &meta.Reply{}, nil
	}
	return nil, refuse(syscall.ENOSYS, "operation %v is not known", req.Op)
}

// ping keeps the session, unless it sees what is not known any more.
func (s *session) ping(ctx context.Context) (*meta.Reply, error) {
	reply := &meta.Reply{Time: meta.TimeOf(time.Now())}
	if s.at == 0 {
		return reply, nil
	}
	return reply, s.v.view(ctx, s.at, func(engine.Reader) error { return nil })
}

// do does a change.
func (s *session) do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Op == meta.OpClose && s.at == 0 {
		return s.closeInos(ctx, req)
	}
	if s.readOnly() {
		return nil, refuse(syscall.EROFS, "the session may only read")
	}
	switch req.Op {
	case meta.OpMake:
		return s.make(ctx, req)
	case meta.OpLink:
		return s.link(ctx, req)
	case meta.OpUnlink:
		return s.unlink(ctx, req)
	case meta.OpRmdir:
		return s.rmdir(ctx, req)
	case meta.OpRename:
		return s.rename(ctx, req)
	case meta.OpSetattr:
		return s.setattr(ctx, req)
	case meta.OpCommit:
		return s.commit(ctx, req)
	case meta.OpPunch:
		return s.punch(ctx, req)
	case meta.OpRemoveTree:
		return s.removeTree(ctx, req)
	case meta.OpClone:
		return s.clone(ctx, req)
	case meta.OpRestore:
		return s.restore(ctx, req)
	case meta.OpSetxattr:
		return s.setxattr(ctx, req)
	case meta.OpRemovexattr:
		return s.removexattr(ctx, req)
	}
	return nil, refuse(syscall.ENOSYS, "operation %v is not known", req.Op)
}
