// Package fuse mounts a volume: it answers the kernel from the metadata service
// and from a store of blocks.
//
// What the metadata service told is kept, here and in the kernel, for as long
// as the session's lease lasts and until the service takes it back with an
// inval. Written data is gathered per block, uploaded in the background while
// the program goes on writing, and committed on close and fsync: first every
// block is durable, then one commit makes them part of the file.
//
// Only mount.go and serve.go import github.com/jacobsa/fuse itself. Inside this
// package its name is free, because a package's own name is not an identifier
// in it, and nobody outside imports it; so fuse.Mount is always ours outside
// and always the library's in those two files.
package fuse

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// A Meta is the metadata service as a mount needs it: a *meta.Client.
type Meta interface {
	// Do carries out one operation. A refusal is a *meta.Error.
	Do(ctx context.Context, req *meta.Request) (*meta.Reply, error)

	// Session is the number of the session, never given out twice.
	Session() uint64

	// Volume is what the service told about the volume.
	Volume() meta.Volume

	// LeaseUntil is when what the service told stops being true without word
	// from it.
	LeaseUntil() time.Time

	// Now is the service's time, as far as it is known, and not ahead of it.
	Now() meta.Time
}

// A Config says what a mount is made of. Meta, Blocks and Volume must be set.
type Config struct {
	Meta   Meta
	Blocks store.Store // of plain blocks
	Volume store.Volume

	// Room is how many bytes are kept free before a block that is written, so that
	// Blocks can seal it where it is.
	Room int

	Budget *Budget      // for dirty data and read-ahead; nil: one of its own
	Log    *slog.Logger // nil: nothing is logged

	// GiveUp is for how long the servers may be out of reach before calls fail with
	// EIO; zero is for ever. Meta and Blocks know it themselves. Away, if set, tells
	// for how long they have been: 0 if they are not.
	GiveUp time.Duration
	Away   func() time.Duration

	// WriteBehind lets the close of a small new file go on before the service
	// knows the file; see behind.go for what holds then.
	WriteBehind bool

	// Drain is for how long a mount that ends tries to store what was written;
	// 0: DefaultDrain.
	Drain time.Duration

	// Stats, if set, is what the extended attribute user.flexfs.stats of the
	// root directory shows as JSON.
	Stats func() any

	// OnMount, if set, is called before this process uses its own mount, with the
	// number that the kernel has given the connection: for [OpenAbort].
	OnMount func(connection string)

	ReadOnly   bool
	AllowOther bool   // all users, not only the one who mounted
	FSName     string // as shown by mount(8); "flexfs" if empty
	Options    map[string]string
}

// DefaultDrain is a minute: somebody waits for the end.
const DefaultDrain = time.Minute

// An FS answers the operations of one mount. Lock order: FS.mu before inode.mu;
// nobody talks to a server, waits for the budget or notifies the kernel while
// holding either.
type FS struct {
	cfg    Config
	meta   Meta
	blocks store.Store
	budget *Budget
	log    *slog.Logger
	stats  Stats

	// ctx is that of all work for the kernel. It ends when the mount is given
	// up with work undone. calls is that of the kernel's operations, and ends
	// soon after the kernel has hung up.
	ctx      context.Context
	cancel   context.CancelFunc
	calls    context.Context
	cutCalls context.CancelFunc

	volOnce sync.Once
	volume  meta.Volume

	seq       atomic.Uint64 // numbers the blocks that this mount writes
	invals    invals
	lossLists lossLists
	gate      sync.RWMutex // held for reading from when an answer's validity is decided until it is with the kernel
	kernel    kernelCache

	stalePages pageQueue
	pageDrops  atomic.Int64 // direct writes that wait for stalePages

	mu      sync.Mutex
	inodes  map[meta.Ino]*inode
	dirty   map[*inode]struct{} // have uncommitted data
	handles map[uint64]*handle
	dirs    map[uint64]*dirHandle
	lastID  uint64
	absent  int // names known to be absent, in all directories

	entering entering // listings with attributes
	credit   *credit
	stock    stock
	pages    chan struct{} // an element per page that is fetched ahead
	fetches  chan struct{} // and per block of a file that is likely to be read next

	listedSince int          // entries listed since the last sweep
	listings    atomic.Int64 // entries in the listings of directories

	numbers  numbers
	gather   gatherer
	came     atomic.Int64 // counts how often a program came to a directory; see tour
	behind   behind
	memories sync.Pool     // of *[]byte, see memory
	uploads  chan struct{} // an element per upload under way
	removals chan struct{} // an element per object that is being removed
	closes   closer
	left     leftLocks
	wake     chan struct{} // the flusher has something to do
	statfs   atomic.Pointer[meta.Statfs]
	locking  chan struct{} // an element per lock that is waited for

	full       atomic.Bool  // the volume had no space lately: see room
	unlooked   atomic.Int64 // bytes written since the space was looked at
	spaceEvery int64

	teaching atomic.Bool // the kernel is being told about polling
}

// A kernelCache is the way to tell the kernel that it must forget something.
// None of the methods but Attrs and AllNames may be called from a handler.
type kernelCache interface {
	// Attrs forgets an inode's attributes. It takes no lock that an operation
	// holds, and does not wait. It reports whether the kernel knows the inode.
	Attrs(ino meta.Ino) bool

	// Pages forgets an inode's attributes and pages; it may wait for reads.
	Pages(ino meta.Ino)

	// Names takes names, and all below them, out of a directory, soon.
	Names(dir meta.Ino, names []string)

	// AllNames forgets every name. It may wait for listingTime.
	AllNames()
}

// noKernel stands for the kernel when there is none.
type noKernel struct{}

func (noKernel) Attrs(meta.Ino) bool      { return true }
func (noKernel) Pages(meta.Ino)           {}
func (noKernel) Names(meta.Ino, []string) {}
func (noKernel) AllNames()                {}

const (
	// maxUploads bounds the blocks on their way to the store: at most
	// maxUploads times the block size of memory outside the budget.
	maxUploads = 8

	// maxLockWaits bounds the locks waited for. Each holds a request buffer.
	maxLockWaits = 4096
)

// New returns the FS of a mount. It does not talk to anybody yet, so the
// callbacks of cfg.Meta (see Stale, Inval, Resume, Lost) may be set to its
// methods before it is connected.
func New(cfg Config) *FS {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(DefaultBudget)
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	fs := &FS{
		cfg:      cfg,
		meta:     cfg.Meta,
		blocks:   cfg.Blocks,
		budget:   cfg.Budget,
		log:      cfg.Log,
		kernel:   noKernel{},
		inodes:   map[meta.Ino]*inode{},
		dirty:    map[*inode]struct{}{},
		handles:  map[uint64]*handle{},
		dirs:     map[uint64]*dirHandle{},
		uploads:  make(chan struct{}, maxUploads),
		removals: make(chan struct{}, maxRemovals),
		wake:     make(chan struct{}, 1),
		locking:  make(chan struct{}, maxLockWaits),
		left:     leftLocks{work: make(chan struct{}, 1)},
		credit:   newCredit(),
		stock:    stock{budget: cfg.Budget},
		pages:    make(chan struct{}, maxPages),
		fetches:  make(chan struct{}, maxNext),

		spaceEvery: spaceEvery,
	}
	fs.gather.fs = fs
	fs.behind = behind{wake: make(chan struct{}, 1), moved: make(chan struct{})}
	fs.ctx, fs.cancel = context.WithCancel(context.Background())
	fs.calls, fs.cutCalls = context.WithCancel(fs.ctx)
	fs.inode(meta.Root).lookups = 1
	return fs
}

// vol returns what the service told about the volume.
func (fs *FS) vol() *meta.Volume {
	fs.volOnce.Do(func() { fs.volume = fs.meta.Volume() })
	return &fs.volume
}

func (fs *FS) readOnly() bool { return fs.cfg.ReadOnly || fs.vol().ReadOnly }

func (fs *FS) blockSize() int { return int(fs.vol().BlockSize) }

// leased reports whether what is cached may be believed.
func (fs *FS) leased() bool { return time.Now().Before(fs.meta.LeaseUntil()) }

// A call is one operation of the kernel being answered.
type call struct {
	fs      *FS
	op      context.Context // ends when the caller is interrupted
	request any             // what is asked: one of package fuseops
	detach  func()          // lets another goroutine serve the kernel
	park    func()          // makes a call that will wait for long not count as one at work

	work  context.Context
	stop  func()
	dirs  [2]*inode  // in which the kernel has something locked for it
	gated bool       // fs.gate is held for reading
	given []meta.Ino // lookup counts that the answer gives the kernel

	settled bool // the service was told of what was closed before
}

func (fs *FS) newCall(op context.Context, detach func()) *call {
	return &call{fs: fs, op: op, detach: detach, park: func() {}}
}

// within notes that the kernel keeps directories locked until the call is answered.
func (c *call) within(dirs ...*inode) {
	for i, dir := range dirs {
		dir.calls.Add(1)
		c.dirs[i] = dir
	}
}

// alters is within for an operation that has directories for itself: who reads one
// does not, and waits.
func (c *call) alters(dirs ...*inode) {
	c.within(dirs...)
	for _, dir := range dirs {
		c.fs.entering.endOf(dir)
	}
}

// wait must be called before anything that may wait for a server, the budget or
// another operation, and returns the context to do it with.
func (c *call) wait() context.Context {
	if c.work != nil {
		return c.work
	}
	if c.gated {
		c.unanswer()
	}
	c.detach()
	ctx, cancel := context.WithCancel(c.fs.calls)
	unhook := context.AfterFunc(c.op, func() { c.outwait(ctx, cancel) })
	c.work = ctx
	c.stop = func() { unhook(); cancel() }
	if c.closes() {
		t := time.AfterFunc(grace, func() { c.leave(ctx, cancel) })
		c.stop = func() { unhook(); t.Stop(); cancel() }
	}
	return ctx
}

// answer must be called before the validity of an answer is decided, with no
// wait between it and the reply: an inval that arrives later waits until the
// answer is with the kernel, and then takes it back.
func (c *call) answer() {
	if !c.gated {
		c.fs.gate.RLock()
		c.gated = true
	}
}

// unanswer takes answer back: the call is going to wait after all.
func (c *call) unanswer() {
	c.fs.gate.RUnlock()
	c.gated = false
}

// end is called after the reply. delivered says whether the kernel took it.
func (c *call) end(delivered bool) {
	if c.gated {
		c.fs.gate.RUnlock()
		c.gated = false
	}
	for _, dir := range c.dirs {
		if dir != nil {
			dir.calls.Add(-1)
		}
	}
	if !delivered {
		for _, ino := range c.given {
			c.fs.forget(ino, 1)
		}
	}
	if c.stop != nil {
		c.stop()
	}
}

// do asks the metadata service.
func (c *call) do(req *meta.Request) (*meta.Reply, error) {
	if err := c.before(req); err != nil {
		return nil, err
	}
	dir := meta.Ino(0)
	if req.Op == meta.OpUnlink {
		dir = req.Ino
	}
	rep, err := c.fs.send(c.wait(), req, dir)
	if err == nil && req.Op.Changes() {
		for _, a := range [...]*meta.Attr{&rep.Attr, &rep.Parent, &rep.Parent2, &rep.Replaced} {
			c.fs.alter(a.Ino)
		}
	}
	return rep, err
}

// send asks the metadata service for a change in a directory, together with others if
// the directory is delegated, or as is the way of flushInOrder.
func (fs *FS) send(ctx context.Context, req *meta.Request, dir meta.Ino) (*meta.Reply, error) {
	if inOrder(ctx) || fs.delegated(dir) {
		return fs.gather.do(ctx, req)
	}
	fs.stats.Requests.Add(1)
	return fs.meta.Do(ctx, req)
}

// delegated reports whether a directory is delegated to this mount.
func (fs *FS) delegated(ino meta.Ino) bool {
	in := fs.known(ino)
	if in == nil {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.delegated
}

// alter notes that this mount changed an inode.
func (fs *FS) alter(ino meta.Ino) {
	in := fs.known(ino)
	if in == nil || ino == 0 {
		return
	}
	in.mu.Lock()
	in.altered = true
	in.mu.Unlock()
}
