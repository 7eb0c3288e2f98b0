package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/hashring"
	"flexfs/store"
)

// A PeersConfig is what [Peers] need.
type PeersConfig struct {
	Self string // this proxy's address, as in the settings

	// Verify checks a block that a peer answered with, as [seal.Verify] does,
	// so that its damage does not spread. Nil accepts everything.
	Verify func(key store.Key, data []byte) (sum uint32, err error)

	Timing PeerTiming   // zero fields have the defaults
	Log    *slog.Logger // nil: nothing is logged

	// Dial makes connections; nil is TCP.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	transport func(Member) http.RoundTripper // see Config
}

// PeerTiming says how long Peers wait for what.
type PeerTiming struct {
	Probe    time.Duration // for the answer to a probe; default 1 s
	Round    time.Duration // between the probes of a peer, while there are few; default 5 s
	Pause    time.Duration // before a peer that failed is probed again; default 2 s
	Patience time.Duration // for a request, before the peer is probed; default 300 ms
	Attempt  time.Duration // for a request to a peer that answers probes; default 5 s
	Fill     time.Duration // for a block that peers may have, in all; default 2 s
	Hedge    time.Duration // for the first of two peers that may have it, before the other is asked, too; default 200 ms
	Mute     time.Duration // before a peer is asked for blocks again that was too slow, or sent rubbish; default 10 s
	Window   time.Duration // in which peers are asked, after members changed or this proxy started; default 1 h
}

func (t *PeerTiming) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Probe, time.Second},
		{&t.Round, 5 * time.Second},
		{&t.Pause, 2 * time.Second},
		{&t.Patience, 300 * time.Millisecond},
		{&t.Attempt, 5 * time.Second},
		{&t.Fill, 2 * time.Second},
		{&t.Hedge, 200 * time.Millisecond},
		{&t.Mute, 10 * time.Second},
		{&t.Window, time.Hour},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

// fewPeers is how many are probed once per Round. Of more, each is probed less often.
const fewPeers = 16

var (
	errNoPeer      = errors.New("remote: there is no other member that can be used")
	errAlone       = fmt.Errorf("remote: there is no other member: %w", errors.ErrUnsupported)
	errRemoved     = fmt.Errorf("remote: this proxy is not a member of its group: %w", errors.ErrUnsupported)
	errUnknownPeer = errors.New("remote: not a member of the group, nor one lately")
)

// Peers are the other members of a proxy's group, as the proxy uses them: they
// keep copies of blocks until the bucket has them, and have blocks that this
// proxy would otherwise read from the bucket (see Fill). What they are asked for
// on behalf of a client, they are shown the client's ticket for: see
// [WithTicket].
//
// Somebody must call Run, which finds out who can be used: until then nobody is.
type Peers struct {
	cfg   PeersConfig
	made  Config // what members are made with
	view  atomic.Pointer[peerView]
	stats peerStats
	wake  chan struct{} // something is due; holds one
	slots chan struct{} // one is taken by each probe
	start time.Time

	fruitless atomic.Int64 // misses in a row that no peer could help with

	mu  sync.Mutex
	all map[memberKey]*peer // nil before the first Update; guarded by mu
}

// A peer is another member, or one that was.
type peer struct {
	*member
	next  time.Time    // when it is to be probed; only Run uses it
	muted atomic.Int64 // until when it is not asked for blocks, in Unix nanoseconds
}

// A peerView is what a request needs to know. It is not changed, but replaced.
type peerView struct {
	settings GroupSettings
	isMember bool
	others   *hashring.Ring   // the other members
	union    *hashring.Ring   // they, and the former ones
	peers    map[string]*peer // those, by address
	changed  time.Time        // when members changed last
}

// peerStats count what happened since the start. Fields only grow.
type peerStats struct {
	asked, filled, filledBytes, late, rejected  atomic.Int64
	copies, copyBytes, copyFailures, copyNobody atomic.Int64
	uploaded, pending                           atomic.Int64
}

// PeerStats are numbers since the start. They only grow.
type PeerStats struct {
	Asked        int64 `json:"asked"`  // misses for which peers were asked
	Filled       int64 `json:"filled"` // of them: those that a peer had
	FilledBytes  int64 `json:"filledBytes"`
	Late         int64 `json:"late"`     // questions that a peer had not answered when it was too late
	Rejected     int64 `json:"rejected"` // answers that were not the block
	Copies       int64 `json:"copies"`   // blocks of which a peer keeps a copy
	CopyBytes    int64 `json:"copyBytes"`
	CopyFailures int64 `json:"copyFailures"` // requests to keep a copy that failed
	CopyNobody   int64 `json:"copyNobody"`   // blocks of which no peer could keep a copy
	Uploaded     int64 `json:"uploaded"`     // blocks that peers were told are in the bucket
	Pending      int64 `json:"pending"`      // questions whether a peer will upload a block
}

// Stats returns how much was done since the start.
func (p *Peers) Stats() PeerStats {
	s := &p.stats
	return PeerStats{
		Asked:        s.asked.Load(),
		Filled:       s.filled.Load(),
		FilledBytes:  s.filledBytes.Load(),
		Late:         s.late.Load(),
		Rejected:     s.rejected.Load(),
		Copies:       s.copies.Load(),
		CopyBytes:    s.copyBytes.Load(),
		CopyFailures: s.copyFailures.Load(),
		CopyNobody:   s.copyNobody.Load(),
		Uploaded:     s.uploaded.Load(),
		Pending:      s.pending.Load(),
	}
}

// NewPeers returns the Peers of a proxy that has no group yet: see Update. They
// do nothing by themselves: see Run.
func NewPeers(cfg PeersConfig) *Peers {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Timing.setDefaults()
	t := cfg.Timing
	p := &Peers{
		cfg: cfg,
		made: Config{
			Ticket: func() string { return "" },
			Log:    cfg.Log,
			Dial:   cfg.Dial,

			transport: cfg.transport,

			Timing: Timing{Probe: t.Probe, Round: t.Round, Pause: t.Pause, Patience: t.Patience, Attempt: t.Attempt},
		},
		wake:  make(chan struct{}, 1),
		slots: make(chan struct{}, maxProbes),
		start: time.Now(),
	}
	p.made.Timing.setDefaults()
	p.view.Store(newPeerView(GroupSettings{}, cfg.Self))
	return p
}

// Update changes the group. Requests under way go on, and what is known of peers
// that stay is kept. A peer that is new is used when it has answered a probe.
func (p *Peers) Update(s GroupSettings) {
	s.Members, s.Former = slices.Clone(s.Members), slices.Clone(s.Former)
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.view.Load()
	v := newPeerView(s, p.cfg.Self)
	v.changed = old.changed
	switch now := time.Now(); {
	case p.all != nil && !slices.Equal(old.settings.Members, s.Members):
		v.changed = now
	case !old.settings.ChangedAt.Equal(s.ChangedAt):
		v.changed = later(old.changed, earlier(s.ChangedAt, now)) // admin's clock may be ahead
	}
	if v.changed.After(old.changed) {
		p.fruitless.Store(0)
	}
	all := make(map[memberKey]*peer)
	for _, m := range slices.Concat(s.Members, s.Former) {
		if m.Address != p.cfg.Self && v.peers[m.Address] == nil {
			v.peers[m.Address] = p.peer(memberKey{m, s.NoSSL}, all)
		}
	}
	for key, gone := range p.all {
		if all[key] == nil {
			gone.idle()
		}
	}
	p.all = all
	p.view.Store(v)
	p.poke()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

// newPeerView returns the view of self on the group s, without the peers.
func newPeerView(s GroupSettings, self string) *peerView {
	v := &peerView{settings: s, peers: make(map[string]*peer)}
	var names []string
	for _, m := range s.Members {
		if m.Address == self {
			v.isMember = true
		} else {
			names = append(names, m.Address)
		}
	}
	v.others = hashring.New(names...)
	for _, m := range s.Former {
		if m.Address != self {
			names = append(names, m.Address)
		}
	}
	v.union = hashring.New(names...)
	return v
}

// peer returns the peer that is there already, or a new one, and adds it to all.
// p.mu must be held.
func (p *Peers) peer(key memberKey, all map[memberKey]*peer) *peer {
	known := p.all[key]
	if known == nil {
		m := newMember(key.Member, key.noSSL, &p.made, p.doubt, p.changed)
		known = &peer{member: m}
	}
	all[key] = known
	return known
}

// Copy has another member keep a durable copy of a block that this proxy will
// upload, and returns its address: the highest-ranked one that can be used. An
// error says that nobody is known to keep one; it wraps [errors.ErrUnsupported]
// if there is no other member, or this proxy is none itself.
func (p *Peers) Copy(ctx context.Context, key store.Key, data []byte) (peer string, err error) {
	v := p.view.Load()
	switch {
	case !v.isMember:
		return "", errRemoved
	case v.others.Len() == 0:
		return "", errAlone
	}
	err = errNoPeer
	tries := 0
	for _, name := range v.others.Owners(key.Hash(), -1) {
		failed := v.peers[name].ask(ctx, func(ctx context.Context, c *Client) error {
			return c.PutCopy(ctx, key, data, p.cfg.Self)
		})
		if failed == nil {
			p.stats.copies.Add(1)
			p.stats.copyBytes.Add(int64(len(data)))
			return name, nil
		}
		if failed == errPassed {
			continue
		}
		p.stats.copyFailures.Add(1)
		if ctx.Err() != nil {
			return "", failed
		}
		err = fmt.Errorf("remote: copy to %s: %w", name, failed)
		if errors.Is(failed, errWentDown) {
			continue // the others are being probed, too: if they are dead it costs little to learn it
		}
		if tries++; tries == maxTries {
			break
		}
	}
	p.stats.copyNobody.Add(1)
	return "", err
}

// Uploaded tells a peer that the bucket has the blocks, all of one volume.
func (p *Peers) Uploaded(ctx context.Context, peer string, keys []store.Key) error {
	err := p.askOne(ctx, peer, func(ctx context.Context, c *Client) error { return c.Uploaded(ctx, keys) })
	if err == nil {
		p.stats.uploaded.Add(int64(len(keys)))
	}
	return err
}

// Pending asks a peer whether it has the block and will upload it.
func (p *Peers) Pending(ctx context.Context, peer string, key store.Key) (pending bool, err error) {
	p.stats.pending.Add(1)
	err = p.askOne(ctx, peer, func(ctx context.Context, c *Client) error {
		pending, err = c.Pending(ctx, key)
		return err
	})
	return pending && err == nil, err
}

// Down reports whether a peer did not answer the last probe. Of strangers nothing
// is known.
func (p *Peers) Down(peer string) bool {
	m := p.view.Load().peers[peer]
	return m != nil && m.isDown()
}

func (p *Peers) askOne(ctx context.Context, peer string, op func(context.Context, *Client) error) error {
	m := p.view.Load().peers[peer]
	if m == nil {
		return fmt.Errorf("%w: %q", errUnknownPeer, peer)
	}
	return m.ask(ctx, op)
}

// Members returns what is known of the peers, in order of their addresses.
func (p *Peers) Members() []MemberStatus {
	var all []MemberStatus
	for _, m := range p.list() {
		all = append(all, m.status())
	}
	slices.SortFunc(all, func(a, b MemberStatus) int { return strings.Compare(a.Address, b.Address) })
	return all
}

// ask makes a request. A refusal, whatever it says, shows that the peer is well:
// it may be about the client's ticket.
func (m *peer) ask(ctx context.Context, op func(context.Context, *Client) error) error {
	var refused error
	err := m.do(ctx, func(ctx context.Context, c *Client) error {
		err := op(ctx, c)
		var r *refusal
		if errors.As(err, &r) && r.code != "" {
			refused = err
			return nil
		}
		return err
	})
	if err == nil {
		return refused
	}
	return err
}

// isDown reports whether it was a probe that failed, and not only a request.
func (m *peer) isDown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == stateDown && m.alive.Err() != nil
}

// doubt has m probed, for which a request has been waiting for long.
func (p *Peers) doubt(m *member) {
	m.doubted()
	p.poke()
}

// changed has all peers probed when one went down: others may have, too.
func (p *Peers) changed() {
	peers := p.list()
	failed := func(m *peer) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.state == stateDown
	}
	if slices.ContainsFunc(peers, failed) {
		for _, m := range peers {
			m.doubted()
		}
	}
	p.poke()
}

// poke wakes Run.
func (p *Peers) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// list returns all peers.
func (p *Peers) list() []*peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	peers := make([]*peer, 0, len(p.all))
	for _, m := range p.all {
		peers = append(peers, m)
	}
	return peers
}

// Run probes the peers until ctx is done; then it closes idle connections. It is
// to be called once.
func (p *Peers) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		for _, m := range p.list() {
			m.idle()
		}
	}()
	for ctx.Err() == nil {
		now, wait := time.Now(), never
		peers := p.list()
		round := p.cfg.Timing.Round * time.Duration(max(1, (len(peers)+fewPeers-1)/fewPeers))
		for _, m := range peers {
			due := min(m.due(now), m.next.Sub(now))
			if due <= 0 {
				m.next = now.Add(jitter(round))
				wg.Go(func() { p.probe(ctx, m) })
				due = m.next.Sub(now)
			}
			wait = min(wait, due)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// probe asks one peer whether it is well, and wakes Run afterwards.
func (p *Peers) probe(ctx context.Context, m *peer) {
	alive, ok := m.beginProbe()
	if !ok {
		return
	}
	defer p.poke()
	defer m.endProbe()
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return
	}
	timeout, cancel := context.WithTimeout(ctx, p.cfg.Timing.Probe)
	defer cancel()
	rtt, err := m.client.Ping(timeout)
	switch {
	case err == nil:
		m.healthy(rtt)
	case ctx.Err() == nil:
		m.failed(alive, err, true)
	}
}
