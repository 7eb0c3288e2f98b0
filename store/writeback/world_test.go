package writeback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A world is a group of proxies, a bucket and a client, in virtual time. All
// that a proxy does to its disk, to the others and to the bucket are steps, at
// each of which a fault may happen. The world knows what has been acknowledged,
// and sees to it that it can be read from then on.
type world struct {
	t      *testing.T
	bucket *mem.Store
	nodes  []*node
	timing Timing
	memory int64
	log    *slog.Logger
	end    chan struct{}  // closed at the end
	work   sync.WaitGroup // what must end then

	mu       sync.Mutex
	away     bool                                 // the bucket is
	slow     time.Duration                        // that an upload takes
	faults   map[string]fault                     // by step; guarded by mu
	always   map[string]fault                     // by operation, whenever it is done; guarded by mu
	count    map[string]int                       // steps of that name so far; guarded by mu
	steps    []step                               // that have been taken; guarded by mu
	fired    bool                                 // a fault of faults has happened; guarded by mu
	acked    map[store.Key][]byte                 // guarded by mu
	reported map[store.Key]bool                   // unreadable ones; guarded by mu
	order    map[store.Key][]*node                // owners, best first; guarded by mu
	puts     map[store.Key]int                    // bucket puts; guarded by mu
	refuse   func(store.Key) error                // what the bucket says to a Put, if not nil
	heard    func(op string, ctx context.Context) // is told of each message, if not nil
	on       func(step string)                    // is told of each step, if not nil; guarded by mu
	dice     func(step string) *fault             // may have a fault happen, if not nil; guarded by mu
}

// A step is something that happens between two parties, or a party and its disk.
type step struct {
	name     string // op@from#n
	from, to string // "" if it cannot fail by itself: the client, the bucket
	local    bool
}

// A fault is what happens at a step.
type fault struct {
	lost      bool // the request does not arrive, or the disk fails
	replyLost bool
	node      string // what happens to it
	when      string // before, middle, after
	what      harm
}

// A harm is what happens to a node.
type harm struct {
	name   string
	freeze time.Duration // 0: a crash
	down   time.Duration
	wipe   bool // the disk is lost
	rot    bool // what the disk has is damaged
}

var harms = []harm{
	{name: "crash", down: 3 * time.Second},
	{name: "long crash", down: 90 * time.Second},
	{name: "crash and loss of the disk", down: 3 * time.Second, wipe: true},
	{name: "long crash and loss of the disk", down: 90 * time.Second, wipe: true},
	{name: "crash and damage", down: 3 * time.Second, rot: true},
	{name: "freeze", freeze: 30 * time.Second},
}

func (f fault) String() string {
	switch {
	case f.lost:
		return "lost"
	case f.replyLost:
		return "reply lost"
	}
	return f.what.name + " of " + f.node + " " + f.when
}

var (
	errDead    = errors.New("sim: this process is dead")
	errNetwork = errors.New("sim: no answer")
	errFull    = errors.New("sim: no room")
)

const (
	latency  = time.Millisecond
	deadline = 2 * time.Second // for an answer
)

func newWorld(t *testing.T, n int) *world {
	w := &world{
		t: t, bucket: mem.New(t),
		faults: make(map[string]fault), always: make(map[string]fault), count: make(map[string]int),
		acked: make(map[store.Key][]byte), reported: make(map[store.Key]bool),
		order: make(map[store.Key][]*node), puts: make(map[store.Key]int),
		timing: Timing{Patience: time.Second}, // less than a message's deadline
		slow:   20 * time.Millisecond, end: make(chan struct{}),
	}
	for i := range n {
		w.nodes = append(w.nodes, &node{w: w, name: string(rune('P' + i)), disk: &disk{files: make(map[store.Key]*file)}})
	}
	if n > 1 {
		w.nodes[1].name = "S"
	}
	if n > 2 {
		w.nodes[2].name = "T"
	}
	if n > 3 {
		w.nodes[3].name = "U"
	}
	return w
}

func (w *world) node(name string) *node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// start starts all nodes, and the reader that looks for what was acknowledged.
// The returned function ends them.
func (w *world) start() (stop func()) {
	for _, n := range w.nodes {
		n.start()
	}
	w.work.Go(func() {
		for {
			w.readAll()
			select {
			case <-w.end:
				return
			case <-time.After(w.interval()):
			}
		}
	})
	return func() {
		close(w.end)
		for _, n := range w.nodes {
			n.crash(harm{})
		}
		w.work.Wait()
	}
}

// interval returns how often the reader reads all: less often if that is much.
func (w *world) interval() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(1+len(w.acked)/4) * 997 * time.Millisecond
}

// look complains of acknowledged blocks that no reader finds: one that asks all
// members for what they hold, and then the bucket.
func (w *world) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, data := range w.acked {
		if !w.readable(key, data) && !w.reported[key] {
			w.reported[key] = true
			w.t.Errorf("after %v: %v cannot be read", w.last(), key)
		}
	}
}

// readAll reads what was acknowledged as a client does, and complains if it cannot.
func (w *world) readAll() {
	w.mu.Lock()
	acked := maps.Clone(w.acked)
	w.mu.Unlock()
	for key, want := range acked {
		if data, err := w.read(key); err != nil || !bytes.Equal(data, want) {
			w.mu.Lock()
			last := w.last()
			w.mu.Unlock()
			w.t.Errorf("after %v: a client reads %d bytes of %v, error %v; want %d bytes", last, len(data), key, err, len(want))
		}
	}
}

// read asks the members for the block, best first, then all of them for what they
// hold themselves, then the bucket.
func (w *world) read(key store.Key) ([]byte, error) {
	for _, n := range w.owners(key) {
		p, s := n.running()
		if p == nil || n.isFrozen() {
			continue
		}
		if data, err := s.Get(context.Background(), key, 0, -1); err == nil {
			return data, nil
		}
	}
	for _, n := range w.nodes {
		if data := n.serves(key); data != nil {
			return data, nil
		}
	}
	return w.bucket.Get(context.Background(), key, 0, -1)
}

// last returns the names of the last steps. w.mu must be held.
func (w *world) last() []string {
	return names(w.steps[max(0, len(w.steps)-12):])
}

func names(steps []step) (all []string) {
	for _, s := range steps {
		all = append(all, s.name)
	}
	return all
}

func (w *world) readable(key store.Key, want []byte) bool {
	for _, n := range w.nodes {
		if data := n.serves(key); data != nil && bytes.Equal(data, want) {
			return true
		}
	}
	data, err := w.bucket.Get(context.Background(), key, 0, -1)
	return err == nil && bytes.Equal(data, want)
}

// check complains if not all is well some time after the last fault.
func (w *world) check() {
	w.t.Helper()
	w.look()
	for key, want := range w.acked {
		data, err := w.bucket.Get(w.t.Context(), key, 0, -1)
		if err != nil || !bytes.Equal(data, want) {
			w.t.Errorf("the bucket has %d bytes of %v, error %v; want %d bytes", len(data), key, err, len(want))
		}
	}
	for _, n := range w.nodes {
		if left := n.disk.dirty(0); len(left) > 0 {
			w.t.Errorf("%d blocks are still dirty on %s, such as %v", len(left), n.name, left[0].Key)
		}
		n.mu.Lock()
		s := n.store
		n.mu.Unlock()
		if s == nil {
			w.t.Errorf("%s does not run", n.name)
			continue
		}
		if st := s.Stats(); st.Waiting != 0 || st.Memory != 0 {
			w.t.Errorf("%s: %d blocks wait, %d bytes are in memory; want none", n.name, st.Waiting, st.Memory)
		}
	}
	if w.t.Failed() {
		w.t.Logf("the steps were %v", names(w.steps[:min(len(w.steps), 60)]))
	}
}

// settle waits until all faults have happened and nothing is left to do, for a
// while. It gives up after 10 minutes; check then says what is left.
func (w *world) settle() {
	for calm, i := 0, 0; calm < 3 && i < 60; i++ {
		time.Sleep(10 * time.Second)
		if calm++; !w.settled() {
			calm = 0
		}
	}
}

func (w *world) settled() bool {
	w.mu.Lock()
	waiting := w.away || len(w.faults) > 0
	w.mu.Unlock()
	for _, n := range w.nodes {
		_, s := n.running()
		waiting = waiting || s == nil || n.isFrozen() || s.Stats().Waiting > 0 || len(n.disk.dirty(0)) > 0
	}
	return !waiting
}

// at takes a step. It returns the fault that is to happen there.
func (w *world) at(op, from, to string, local bool) fault {
	w.mu.Lock()
	id := op + "@" + from
	w.count[id]++
	s := step{fmt.Sprintf("%s#%d", id, w.count[id]), from, to, local}
	w.steps = append(w.steps, s)
	f, ok := w.faults[s.name]
	if ok {
		w.fired = true
		delete(w.faults, s.name)
	} else if f, ok = w.always[op]; !ok && w.dice != nil {
		if g := w.dice(s.name); g != nil {
			f = *g
		}
	}
	on := w.on
	w.mu.Unlock()
	if on != nil {
		on(s.name)
	}
	w.look()
	return f
}

// harm has f happen to a node, if it is time.
func (w *world) harm(f fault, when string) {
	if f.when == when && f.node != "" {
		w.node(f.node).suffer(f.what)
	}
	w.look()
}

// message sends a request. do is done by the receiver, whatever happens to the
// sender meanwhile; to is nil for the bucket, which always lives.
func (w *world) message(ctx context.Context, op string, from *process, to *node, do func(ctx context.Context, s *Store) error) error {
	if err := from.pass(); err != nil {
		return err
	}
	sender, receiver := "client", ""
	if from != nil {
		sender = from.node.name
	}
	if to != nil {
		receiver = to.name
	}
	w.mu.Lock()
	heard, slow := w.heard, w.slow
	w.mu.Unlock()
	if heard != nil {
		heard(op, ctx)
	}
	f := w.at(op, sender, receiver, false)
	w.harm(f, "before")
	if err := from.pass(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deadline+slow)
	defer cancel()
	if f.lost {
		<-ctx.Done()
		return errNetwork
	}
	time.Sleep(latency)
	reply := make(chan error, 1)
	w.work.Go(func() { reply <- w.deliver(context.WithoutCancel(ctx), f, to, do) })
	var err error
	select {
	case err = <-reply:
	case <-ctx.Done():
		err = errNetwork
	}
	if f.replyLost {
		<-ctx.Done()
		err = errNetwork
	}
	if dead := from.pass(); dead != nil {
		return dead
	}
	return err
}

// deliver has the receiver do what a message asks for.
func (w *world) deliver(ctx context.Context, f fault, to *node, do func(ctx context.Context, s *Store) error) error {
	if to == nil {
		err := do(ctx, nil)
		w.harm(f, "after")
		return err
	}
	p, s := to.running()
	if p == nil {
		return errNetwork
	}
	if p.pass() != nil {
		return errNetwork
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := do(ctx, s)
	w.harm(f, "after")
	if p.pass() != nil {
		return errNetwork
	}
	time.Sleep(latency)
	return err
}

// put is the client: it sends a block to the members, best first, and then to the
// bucket. It reports whether that was acknowledged.
func (w *world) put(key store.Key, data []byte) bool {
	for range 30 {
		for _, n := range w.owners(key) {
			if n.known() {
				continue
			}
			err := w.message(context.Background(), "put", nil, n, func(ctx context.Context, s *Store) error { return s.Put(ctx, key, data) })
			if err == nil {
				w.ack(key, data)
				return true
			}
		}
		if w.bucketPut(context.Background(), nil, key, data) == nil {
			w.ack(key, data)
			return true
		}
		time.Sleep(time.Second)
	}
	return false
}

func (w *world) ack(key store.Key, data []byte) {
	w.mu.Lock()
	w.acked[key] = data
	w.mu.Unlock()
	w.look()
}

// owners returns the members in the order of a block.
func (w *world) owners(key store.Key) []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o := w.order[key]; o != nil {
		return o
	}
	return w.nodes
}

func (w *world) bucketPut(ctx context.Context, from *process, key store.Key, data []byte) error {
	return w.message(ctx, "upload", from, nil, func(ctx context.Context, _ *Store) error {
		w.mu.Lock()
		slow, away := w.slow, w.away
		w.mu.Unlock()
		time.Sleep(slow)
		if away {
			return errNetwork
		}
		w.mu.Lock()
		refuse := w.refuse
		w.mu.Unlock()
		if refuse != nil {
			if err := refuse(key); err != nil {
				return err
			}
		}
		w.mu.Lock()
		w.puts[key]++
		w.mu.Unlock()
		return w.bucket.Put(ctx, key, data)
	})
}

// A node is a proxy: a machine with a disk, on which a process runs at times.
type node struct {
	w    *world
	name string
	disk *disk

	mu     sync.Mutex
	proc   *process // nil: none runs
	store  *Store
	since  time.Time // of a crash or freeze
	thaw   time.Time // frozen until then
	closed bool      // writes through
	out    bool      // is no candidate for copies
	runs   int
}

// A process is one run of a node.
type process struct {
	node    *node
	epoch   int  // tells runs apart; from 1
	ended   bool // guarded by node.mu
	stop    context.CancelFunc
	scanned chan struct{}
}

func (n *node) start() {
	p := &process{node: n, scanned: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	s := New(Config{
		Blocks: tier{p}, Local: p, Peers: p, Bucket: far{p}, Timing: n.w.timing, Memory: n.w.memory, Log: n.w.log,
		WriteThrough: func(store.Volume) bool { n.mu.Lock(); defer n.mu.Unlock(); return n.closed },
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.w.end:
		return
	default:
	}
	n.runs++
	p.epoch = n.runs
	n.proc, n.store = p, s
	n.w.work.Go(func() { s.Run(ctx) })
	n.w.work.Go(func() {
		select {
		case <-time.After(200 * time.Millisecond):
			close(p.scanned)
		case <-ctx.Done():
		}
	})
}

// running returns the process, or nil if there is none.
func (n *node) running() (*process, *Store) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc, n.store
}

// known reports whether others know that the node does not answer.
func (n *node) known() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	bad := n.proc == nil || time.Now().Before(n.thaw)
	return bad && time.Since(n.since) > time.Second
}

// serves returns the block if a reader gets it from this node's own disk.
func (n *node) serves(key store.Key) []byte {
	if p, _ := n.running(); p == nil || n.isFrozen() {
		return nil
	}
	return n.disk.get(key)
}

func (n *node) isFrozen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Before(n.thaw)
}

// suffer has something happen to the node.
func (n *node) suffer(h harm) {
	if h.freeze > 0 {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.since, n.thaw = time.Now(), time.Now().Add(h.freeze)
		return
	}
	if !n.crash(h) {
		return
	}
	n.w.work.Go(func() {
		select {
		case <-time.After(h.down):
			n.start()
		case <-n.w.end:
		}
	})
}

// crash ends the process without its knowledge: nothing that it still does has
// an effect. It reports whether there was one.
func (n *node) crash(h harm) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.proc
	if p == nil {
		return false
	}
	n.since, n.thaw = time.Now(), time.Time{}
	p.ended = true
	p.stop()
	n.proc, n.store = nil, nil
	n.disk.crash(h.wipe, h.rot)
	return true
}

// pass lets a process go on that runs, waits while it is frozen, and fails when
// it is dead. The client, nil, always lives.
func (p *process) pass() error {
	if p == nil {
		return nil
	}
	for {
		p.node.mu.Lock()
		ended, wait := p.ended, time.Until(p.node.thaw)
		p.node.mu.Unlock()
		switch {
		case ended:
			return errDead
		case wait <= 0:
			return nil
		}
		time.Sleep(wait)
	}
}

// local does something to the disk.
func (p *process) local(op string, do func(middle func()) error) error {
	if err := p.pass(); err != nil {
		return err
	}
	w := p.node.w
	f := w.at(op, p.node.name, "", true)
	w.harm(f, "before")
	if err := p.pass(); err != nil {
		return err
	}
	if f.lost {
		return errFull
	}
	err := do(func() { w.harm(f, "middle") })
	w.harm(f, "after")
	if dead := p.pass(); dead != nil {
		return dead
	}
	return err
}

// PutDirty implements [Local].
func (p *process) PutDirty(_ context.Context, key store.Key, data []byte) error {
	return p.local("write", func(middle func()) error {
		d := p.node.disk
		if d.isFull() {
			return errFull
		}
		f := d.write(key, bytes.Clone(data), p)
		time.Sleep(5 * time.Millisecond)
		middle()
		time.Sleep(time.Millisecond)
		if err := p.pass(); err != nil {
			return err
		}
		d.sync(f)
		return nil
	})
}

// Clean implements [Local].
func (p *process) Clean(key store.Key) {
	p.local("clean", func(func()) error { p.node.disk.clean(key); return nil })
}

// Dirty implements [Local].
func (p *process) Dirty() []store.DirtyBlock {
	if p.pass() != nil {
		return nil
	}
	select {
	case <-p.scanned:
		return p.node.disk.dirty(0)
	default:
		return p.node.disk.dirty(p.epoch)
	}
}

// IsDirty implements [Local].
func (p *process) IsDirty(key store.Key) bool {
	return slices.ContainsFunc(p.Dirty(), func(d store.DirtyBlock) bool { return d.Key == key })
}

// Scanned implements [Local].
func (p *process) Scanned() <-chan struct{} { return p.scanned }

// Get implements [Local].
func (p *process) Get(ctx context.Context, key store.Key, off, n int64) (data []byte, err error) {
	if !store.IsLocal(ctx) || !store.MustVerify(ctx) {
		p.node.w.t.Error("a block is read from the disk for its upload, but need not be checked, or from there")
	}
	err = p.local("read", func(func()) error {
		data, err = p.node.disk.read(key)
		return err
	})
	return store.Clip(data, off, n), err
}

// Copy implements [Peers].
func (p *process) Copy(ctx context.Context, key store.Key, data []byte) (string, error) {
	err := errors.ErrUnsupported
	for _, n := range p.node.w.owners(key) {
		if n == p.node || n.known() || n.isOut() {
			continue
		}
		err = p.node.w.message(ctx, "copy", p, n, func(ctx context.Context, s *Store) error { return s.Keep(ctx, key, data, p.node.name) })
		if err == nil {
			return n.name, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
	return "", err
}

func (n *node) isOut() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.out
}

// Uploaded implements [Peers].
func (p *process) Uploaded(ctx context.Context, peer string, keys []store.Key) error {
	return p.node.w.message(ctx, "news", p, p.node.w.node(peer), func(ctx context.Context, s *Store) error { return s.Uploaded(ctx, keys) })
}

// Pending implements [Peers].
func (p *process) Pending(ctx context.Context, peer string, key store.Key) (pending bool, err error) {
	var got sync.Map
	err = p.node.w.message(ctx, "ask", p, p.node.w.node(peer), func(_ context.Context, s *Store) error {
		got.Store(key, s.Pending(key))
		return nil
	})
	if v, ok := got.Load(key); ok && err == nil {
		pending = v.(bool)
	}
	return pending, err
}

// Down implements [Peers].
func (p *process) Down(peer string) bool { return p.node.w.node(peer).known() }

// far is the bucket as a process reaches it.
type far struct{ p *process }

func (b far) Put(ctx context.Context, key store.Key, data []byte) error {
	return b.p.node.w.bucketPut(ctx, b.p, key, data)
}

func (b far) Get(ctx context.Context, key store.Key, off, n int64) (data []byte, err error) {
	w := b.p.node.w
	var got sync.Map
	err = w.message(ctx, "look", b.p, nil, func(ctx context.Context, _ *Store) error {
		w.mu.Lock()
		away := w.away
		w.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		if away {
			return errNetwork
		}
		data, err := w.bucket.Get(ctx, key, off, n)
		got.Store(key, data)
		return err
	})
	if v, ok := got.Load(key); ok && err == nil {
		data = v.([]byte)
	}
	return data, err
}

func (b far) Delete(ctx context.Context, key store.Key) error {
	return b.p.node.w.bucket.Delete(ctx, key)
}

// tier is what a process reads from: its disk before the bucket.
type tier struct{ p *process }

func (t tier) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if data := t.p.node.disk.get(key); data != nil {
		return store.Clip(data, off, n), nil
	}
	if t.p.node.w.isAway() {
		return nil, errNetwork
	}
	return t.p.node.w.bucket.Get(ctx, key, off, n)
}

func (t tier) Put(ctx context.Context, key store.Key, data []byte) error {
	return far(t).Put(ctx, key, data)
}

func (t tier) Delete(ctx context.Context, key store.Key) error {
	t.p.node.disk.remove(key)
	return far(t).Delete(ctx, key)
}

// A disk is what survives a process. It is as nasty as it may be: what was not
// synced is lost in a crash, what is clean is evicted at once, and a block that
// was cleaned not long before a crash is dirty again.
type disk struct {
	mu    sync.Mutex
	files map[store.Key]*file
	full  bool
	hold  bool // clean blocks stay
	drops bool // rotten blocks are dropped when they are read
}

type file struct {
	key     store.Key
	data    []byte
	since   time.Time
	synced  bool
	epoch   int
	cleaned time.Time // zero: dirty
	rotten  bool
}

func (d *disk) isFull() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.full
}

func (d *disk) write(key store.Key, data []byte, p *process) *file {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[key]; f != nil && f.cleaned.IsZero() && !f.rotten {
		return f
	}
	f := &file{key: key, data: data, since: time.Now(), epoch: p.epoch}
	d.files[key] = f
	return f
}

func (d *disk) sync(f *file) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f.synced = true
	if d.files[f.key] == nil {
		d.files[f.key] = f
	}
}

func (d *disk) clean(key store.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[key]; f != nil && f.synced && f.cleaned.IsZero() {
		f.cleaned = time.Now()
	}
}

func (d *disk) remove(key store.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, key)
}

// get returns the bytes of a block that reads find.
func (d *disk) get(key store.Key) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[key]; f != nil && f.synced && (d.hold || f.cleaned.IsZero()) && !f.rotten {
		return f.data
	}
	return nil
}

func (d *disk) read(key store.Key) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.files[key]
	switch {
	case f == nil || !f.synced || !f.cleaned.IsZero():
		return nil, store.ErrNotExist
	case f.rotten && d.drops:
		delete(d.files, key)
		return nil, store.ErrNotExist
	case f.rotten:
		return nil, store.ErrCorrupt
	}
	return f.data, nil
}

// dirty returns the dirty blocks: all, or those of a run.
func (d *disk) dirty(epoch int) []store.DirtyBlock {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []store.DirtyBlock
	for key, f := range d.files {
		if f.synced && f.cleaned.IsZero() && (epoch == 0 || f.epoch == epoch) {
			all = append(all, store.DirtyBlock{Key: key, Size: int64(len(f.data)), Since: f.since})
		}
	}
	slices.SortFunc(all, func(a, b store.DirtyBlock) int { return a.Since.Compare(b.Since) })
	return all
}

func (d *disk) crash(wipe, rot bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, f := range d.files {
		switch {
		case wipe || !f.synced:
			delete(d.files, key)
		case !f.cleaned.IsZero() && time.Since(f.cleaned) < time.Minute:
			f.cleaned = time.Time{}
		case !f.cleaned.IsZero():
			delete(d.files, key)
		}
		f.rotten = f.rotten || rot
	}
}

// numbered returns the i-th block.
func numbered(i int) (store.Key, []byte) {
	key := storetest.Key(i)
	return key, storetest.Data(key, 1000+i)
}
