package meta

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxReads bounds the unanswered requests of a Client that change nothing.
	// With maxSlots changes and the pings it is well below MaxRequests.
	maxReads = 256

	// firstPause and lastPause bound the pause between two attempts to connect.
	// The lease, some 10 s, should outlive several.
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second

	// byeTimeout bounds how long Close waits for the service.
	byeTimeout = 2 * time.Second
)

var (
	errClosed = errors.New("client is closed")
	errGaveUp = errors.New("the metadata service was out of reach for too long")
)

// A ClientConfig says what a [Client] needs. Dial, Token and Volume must be
// set.
//
// The callbacks are called by the Client's own goroutines. None of them but Inval
// may wait for a Do: while one runs, no reply may arrive.
type ClientConfig struct {
	// Dial opens a connection to the service, as [Dial] does.
	Dial func(ctx context.Context) (net.Conn, error)

	Token  func() string // admin's ticket, asked for at each connection
	Volume string        // its UUID
	Name   string        // of this client, for people
	At     int64         // what is to be seen, see OpHello; 0: what is now
	Log    *slog.Logger  // nil: nothing is logged

	// Stale is told first, and at once, what the service says has changed. It
	// must be quick: it runs between the arrival of the OpInval and that of
	// whatever the service sent after it, so when Do returns a reply that was
	// sent later, Stale has returned. What it is for: drop the caches, and mark
	// the inodes, so that a reply to a request made before is not cached.
	// It may be nil.
	Stale func([]Inval)

	// Inval is called after Stale, in a goroutine of its own. It may take its
	// time, as the kernel's caches need, and may wait for a Do of an OpMake that has the
	// number of the file. Its result, the inodes in use, answers
	// the OpInval when it returns. It may be nil: none is in use.
	Inval func([]Inval) []Ino

	// Resume is called before a session is resumed on a new connection and
	// returns the open files and locks held. The service may have been
	// restarted and forgotten what this client caches, so everything that is
	// cached must be dropped, as if an Inval had named all. It may be nil. It
	// is also called, after Lost, before a session is opened in place of one
	// that was lost: open files are announced to that one too.
	Resume func() ([]Ino, []InoLock)

	// Lost is called when the service ended the session, before a new one is
	// opened: locks are gone. Everything that is cached must be dropped. It may
	// be nil.
	Lost func()

	// GiveUp is how long an operation may take, and how long the service may be
	// out of reach before an operation fails without waiting for it. Zero is for
	// ever. Locks are waited for however long others hold them.
	GiveUp time.Duration
}

// A Client is a session with the metadata service. It outlives connections:
// when one breaks it opens another, resumes the session and repeats what was
// not answered, and the service does each change once. All methods may be
// called concurrently.
type Client struct {
	cfg   ClientConfig
	reads chan struct{} // has an element per unanswered read
	waits chan struct{} // has an element per unanswered waiting lock

	ctx    context.Context // of everything in the background
	cancel context.CancelFunc
	wg     sync.WaitGroup

	epoch     time.Time    // what lease counts from
	lease     atomic.Int64 // end of the lease, ns after epoch; 0: none
	leaseWall atomic.Int64 // the same by the clock on the wall, ns since 1970
	wall      func() time.Time
	clock     clock // the service's

	mu      sync.Mutex
	link    *link         // nil while there is no connection
	links   uint32        // that were made
	lostAt  time.Time     // when the last one was lost; zero while there is one
	changed chan struct{} // closed when link changes
	session *session      // nil: there is none to resume
	last    uint64        // the number of the newest
	volume  Volume
	closed  bool
	ended   *Error // there will be no session again
}

// NewClient returns a Client that is not connected yet.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		cfg:     cfg,
		reads:   make(chan struct{}, maxReads),
		waits:   make(chan struct{}, MaxWaits),
		epoch:   time.Now(),
		wall:    time.Now,
		changed: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Dial returns a function that connects to a service at addr (host:port) with
// TLS as conf says, or without if conf is nil. It is a ClientConfig's Dial.
func Dial(addr string, conf *tls.Config) func(context.Context) (net.Conn, error) {
	if conf == nil {
		return func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	d := &tls.Dialer{Config: conf}
	return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// Connect opens the session. It tries once: what went wrong may be wrong for
// good, like the address or the token, and the error says it. After Connect
// has returned nil the Client keeps itself connected until Close.
func (c *Client) Connect(ctx context.Context) error {
	l, err := c.open(ctx)
	if err != nil {
		return err
	}
	if !c.publish(l) {
		l.close(errClosed)
		return fmt.Errorf("meta: connect: %w", errClosed)
	}
	c.wg.Go(c.keep)
	return nil
}

// Close ends the session. A Do that is under way fails.
func (c *Client) Close() error {
	c.mu.Lock()
	was, l := c.closed, c.link
	c.closed = true
	c.mu.Unlock()
	if was {
		return nil
	}
	var err error
	if l != nil {
		ctx, cancel := context.WithTimeout(context.Background(), byeTimeout)
		defer cancel()
		_, err = l.do(ctx, &Request{Op: OpBye})
	}
	c.cancel()
	if l != nil {
		l.close(errClosed)
	}
	c.wg.Wait()
	if err != nil {
		return fmt.Errorf("meta: end the session: %w", err)
	}
	return nil
}

// Session returns the number of the session, no other client's ever; when it was
// lost, still that, until there is a new one.
func (c *Client) Session() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Volume tells about the volume, as the service did at the last connection.
func (c *Client) Volume() Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.volume
}

// LeaseUntil returns the moment until which what the service allowed to cache
// may be believed: a lease time after the sending of the last request that was
// answered. It is zero while there is no session, and after a sleep of the
// machine, during which the monotonic clock stands still, until a new answer.
func (c *Client) LeaseUntil() time.Time {
	d := c.lease.Load()
	if d == 0 || c.slept() {
		return time.Time{}
	}
	return c.epoch.Add(time.Duration(d))
}

// slept reports whether the lease has ended by the clock on the wall, whatever the
// monotonic clock says: the machine slept, or that clock was set.
func (c *Client) slept() bool { return c.wall().UnixNano() > c.leaseWall.Load() }

// LeaseValid reports whether LeaseUntil is to come.
func (c *Client) LeaseValid() bool { return time.Now().Before(c.LeaseUntil()) }

// extend notes that a request sent at that time was answered.
func (c *Client) extend(sent time.Time, lease time.Duration) {
	until := int64(sent.Add(lease).Sub(c.epoch))
	for {
		old := c.lease.Load()
		if until <= old {
			return
		}
		if c.lease.CompareAndSwap(old, until) {
			c.leaseWall.Store(sent.Add(lease).UnixNano())
			return
		}
	}
}

// Now returns the service's time, as far as it is known: it is not ahead of it.
func (c *Client) Now() Time { return c.clock.at(time.Since(c.epoch)) }

// hear learns from a reply what time it is at the service.
func (c *Client) hear(sent time.Time, r *Reply) {
	now := time.Since(c.epoch)
	if r.Time != (Time{}) {
		c.clock.heard(r.Time, sent.Sub(c.epoch), now)
	}
	for _, t := range [...]Time{r.Attr.Ctime, r.Parent.Ctime} {
		if t != (Time{}) {
			c.clock.saw(t, now)
		}
	}
	for i := range r.Replies {
		c.hear(sent, &r.Replies[i])
	}
}

// Away returns for how long the service has been out of reach: 0 while there is
// a connection.
func (c *Client) Away() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil && c.link.alive() || c.lostAt.IsZero() {
		return 0
	}
	return max(time.Since(c.lostAt), 1)
}

// Do carries out one operation. A refusal is an error of type [*Error]. Any
// other error means that it is not known whether the operation was done: ctx
// has ended, or the Client is closed or gave up, or the session was lost between
// the sending of a change and its answer (that one is an [*Error] too, of EIO).
// A lost connection is no error: Do repeats the request until ctx ends or
// the Client gives up.
//
// When ctx ends during a waiting OpSetlk the wait is cancelled, and Do returns
// an [*Error] of EINTR, or the reply if the lock was granted just then. If the
// connection is lost in the meantime the lock may have been granted all the
// same; it goes when its owner's locks are released.
//
// Do sets Slot and Seq in req and its Ops, so nobody else may use req until Do
// has returned.
func (c *Client) Do(ctx context.Context, req *Request) (*Reply, error) {
	reply, err := c.do(ctx, req)
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, fmt.Errorf("meta: %v: %w", req.Op, err)
	}
	if reply.Errno != 0 {
		return nil, &Error{Op: req.Op, Errno: reply.Errno, Msg: reply.Msg, Cache: reply.Cache}
	}
	return reply, nil
}

func (c *Client) do(ctx context.Context, req *Request) (*Reply, error) {
	if len(req.Ops) > MaxOps {
		return nil, &Error{Op: req.Op, Errno: syscall.EINVAL, Msg: "too many operations in a compound"}
	}
	if req.Op == OpSetlk && req.Wait {
		return c.wait(ctx, req)
	}
	if limit := c.cfg.GiveUp; limit > 0 {
		within, cancel := context.WithTimeoutCause(ctx, limit, errGaveUp)
		defer cancel()
		ctx = within
	}
	if n := changes(req); n > 0 {
		return c.change(ctx, req, n)
	}
	return c.read(ctx, req)
}

// read does a request that may be repeated freely.
func (c *Client) read(ctx context.Context, req *Request) (*Reply, error) {
	select {
	case c.reads <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave := func() { <-c.reads }
	for {
		l, err := c.connected(ctx)
		if err != nil {
			leave()
			return nil, err
		}
		reply, err := l.ask(ctx, req, leave)
		switch {
		case errors.Is(err, errBroken):
			continue
		case !errors.Is(err, errAbandoned):
			leave()
		}
		return reply, err
	}
}

// change does a request that contains n changes. It keeps their slots until
// the answer, so that the service can tell a repetition.
func (c *Client) change(ctx context.Context, req *Request, n int) (*Reply, error) {
	var s *session // that req has slots of
	var slots []uint16
	leave := func() {
		if s != nil {
			s.release(slots)
		}
	}
	unsure := false // whether it was done in s
	for {
		l, err := c.connected(ctx)
		if err != nil {
			leave()
			return nil, err
		}
		if s != l.session && unsure {
			return nil, &Error{Op: req.Op, Errno: syscall.EIO,
				Msg: "the session was lost, and it is not known whether the change was made"}
		}
		if s != l.session {
			s = nil
			slots, err = l.session.acquire(ctx, n, urgent(ctx, req))
			if err == errSessionEnded {
				continue
			} else if err != nil {
				return nil, err
			}
			s = l.session
			s.number(req, slots)
		}
		reply, err := l.ask(ctx, req, leave)
		switch {
		case errors.Is(err, errBroken):
			unsure = unsure || !errors.Is(err, errNotDone)
			continue
		case !errors.Is(err, errAbandoned):
			leave()
		}
		return reply, err
	}
}

// wait does a waiting OpSetlk.
func (c *Client) wait(ctx context.Context, req *Request) (*Reply, error) {
	interrupted := &Error{Op: req.Op, Errno: syscall.EINTR}
	select {
	case c.waits <- struct{}{}:
	case <-ctx.Done():
		return nil, interrupted
	}
	defer func() { <-c.waits }()
	for {
		l, err := c.connected(ctx)
		if err != nil && ctx.Err() != nil {
			return nil, interrupted
		} else if err != nil {
			return nil, err
		}
		reply, err := l.askLock(ctx, req)
		switch {
		case errors.Is(err, errBroken) && ctx.Err() != nil:
			return nil, interrupted
		case errors.Is(err, errBroken):
			continue
		case err == nil && reply.Errno == syscall.EINTR && ctx.Err() == nil:
			// The service gave up, as when it stops; we did not.
			sleep(ctx, jitter(firstPause))
			continue
		}
		return reply, err
	}
}

// connected waits for a connection.
func (c *Client) connected(ctx context.Context) (*link, error) {
	for {
		c.mu.Lock()
		l, changed, closed, ended := c.link, c.changed, c.closed, c.ended
		c.mu.Unlock()
		switch {
		case closed:
			return nil, errClosed
		case ended != nil:
			return nil, ended
		case l != nil && l.alive():
			return l, nil
		}
		if err := c.await(ctx, changed); err != nil {
			return nil, err
		}
	}
}

// await waits for changed to be closed, for as long as the Client does not give
// up.
func (c *Client) await(ctx context.Context, changed <-chan struct{}) error {
	var late <-chan time.Time
	if limit := c.cfg.GiveUp; limit > 0 {
		t := time.NewTimer(max(limit-c.Away(), 0))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-changed:
		return nil
	case <-late:
		return errGaveUp
	case <-c.ctx.Done():
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// publish makes l the connection, nil for none. It reports false if the Client is
// closed, which has none.
func (c *Client) publish(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed && l != nil {
		return false
	}
	if c.link, c.lostAt = l, (time.Time{}); l == nil {
		c.lostAt = time.Now()
	}
	close(c.changed)
	c.changed = make(chan struct{})
	return !c.closed
}

// keep replaces the connection whenever it breaks, until Close.
func (c *Client) keep() {
	for c.ctx.Err() == nil {
		c.mu.Lock()
		l := c.link
		c.mu.Unlock()
		<-l.ended
		if !c.publish(nil) { // the service closes the connection after a bye, too
			return
		}
		c.cfg.Log.Warn("connection to the metadata service is lost", "reason", l.reason())
		if l = c.reopen(); l == nil {
			return
		}
		c.cfg.Log.Info("connected to the metadata service again", "session", l.session.id)
		if !c.publish(l) {
			l.close(errClosed)
			return
		}
	}
}

// outlived takes note that what a session of the past saw is not kept any more:
// from now on that is the answer to everything.
func (c *Client) outlived(e *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return
	}
	c.ended = e
	close(c.changed)
	c.changed = make(chan struct{})
	c.cfg.Log.Error("the past that is mounted is not kept any more: all that is asked of it is refused", "reason", e.Msg)
}

// reopen tries to connect until it succeeds, the Client is closed, or what it
// wants to see is gone.
func (c *Client) reopen() *link {
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if !sleep(c.ctx, jitter(pause)) {
			return nil
		}
		l, err := c.open(c.ctx)
		if err == nil {
			return l
		}
		var refused *Error
		if c.cfg.At != 0 && errors.As(err, &refused) && refused.Errno == syscall.ESTALE {
			c.outlived(refused)
			return nil
		}
		if now := err.Error(); now != said && c.ctx.Err() == nil {
			said = now
			c.cfg.Log.Warn("cannot connect to the metadata service", "err", err)
		}
	}
}

// open makes a connection and opens or resumes the session on it.
func (c *Client) open(ctx context.Context) (*link, error) {
	dialing, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	nc, err := c.cfg.Dial(dialing)
	if err != nil {
		return nil, fmt.Errorf("meta: connect: %w", err)
	}
	l := newLink(c, nc)
	c.mu.Lock()
	c.links++
	l.number = c.links
	c.mu.Unlock()
	c.wg.Go(l.run)
	if err := c.greet(ctx, l); err != nil {
		l.close(err)
		return nil, fmt.Errorf("meta: connect: %w", err)
	}
	c.wg.Go(l.watch)
	return l, nil
}

// greet resumes the session if there is one, and opens one if not.
func (c *Client) greet(ctx context.Context, l *link) error {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	if s != nil {
		err := c.hello(ctx, l, s)
		var refused *Error
		if !errors.As(err, &refused) || refused.Errno != syscall.ESTALE {
			return err
		}
		c.lose(s)
		if l.partial {
			return err // the next session begins on a connection of its own
		}
	}
	return c.hello(ctx, l, nil)
}

// helloStep bounds the open files, and the locks, that one OpHello tells of: a mount
// may have more of them than a frame has room for.
const helloStep = 10_000

// hello resumes s, or opens a new session.
func (c *Client) hello(ctx context.Context, l *link, s *session) error {
	var inos []Ino
	var locks []InoLock
	if c.cfg.Resume != nil && c.Session() != 0 {
		inos, locks = c.cfg.Resume()
	}
	if s == nil {
		locks = nil // they are lost
	}
	if c.cfg.At != 0 {
		inos, locks = nil, nil // the past stays as it is
	}
	for {
		req := &Request{Op: OpHello, Token: c.cfg.Token(), Volume: c.cfg.Volume, Name: c.cfg.Name, Version: Version, At: c.at(), Seq: l.number}
		req.Inos, inos = cut(inos, helloStep)
		req.Locks, locks = cut(locks, helloStep)
		req.Partial = len(inos)+len(locks) > 0
		if s != nil {
			req.Session, req.Secret = s.id, s.secret
		}
		sent := time.Now()
		reply, err := sayHello(ctx, l, req)
		if err != nil {
			return err
		}
		if s == nil {
			s = newSession(reply.Session, reply.Secret)
		}
		if req.Partial {
			l.partial = true
			continue
		}
		l.session, l.lease = s, reply.Lease
		c.mu.Lock()
		c.session, c.last, c.volume = s, s.id, reply.VolumeInfo
		c.mu.Unlock()
		c.extend(sent, reply.Lease)
		c.hear(sent, reply)
		return nil
	}
}

// sayHello sends an OpHello, and refuses an answer that is of no use.
func sayHello(ctx context.Context, l *link, req *Request) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	reply, err := l.do(ctx, req)
	switch {
	case err != nil:
		return nil, err
	case reply.Errno != 0:
		return nil, &Error{Op: req.Op, Errno: reply.Errno, Msg: reply.Msg, Cache: reply.Cache}
	case reply.Version == 0 || reply.Version > Version:
		return nil, fmt.Errorf("the service speaks version %d of the protocol, this client speaks %d", reply.Version, Version)
	case reply.Lease <= 0:
		return nil, errors.New("the service grants no lease")
	}
	return reply, nil
}

// cut splits a list after n elements.
func cut[T any](list []T, n int) (first, rest []T) {
	n = min(n, len(list))
	return list[:n], list[n:]
}

// at returns what to ask for: the second that the service chose at first, as time
// has passed since.
func (c *Client) at() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.volume.At != 0 {
		return c.volume.At
	}
	return c.cfg.At
}

// lose forgets a session that the service does not know any more.
func (c *Client) lose(s *session) {
	c.cfg.Log.Warn("the metadata service has ended the session: its locks are lost", "session", s.id)
	close(s.ended)
	c.lease.Store(0)
	c.mu.Lock()
	c.session = nil
	c.mu.Unlock()
	if c.cfg.Lost != nil {
		c.cfg.Lost()
	}
}

// sleep reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter spreads what many clients do at the same time.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
