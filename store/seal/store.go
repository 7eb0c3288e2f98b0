package seal

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"flexfs/store"
)

// FrameGetter is [store.FrameGetter], which is about this package's frames.
type FrameGetter = store.FrameGetter

// maxHeads bounds the heads that a Store remembers, at up to 1.5 KiB each:
// those of 16 GiB of blocks of 4 MiB.
const maxHeads = 4096

// New returns a Store of plain blocks that keeps them sealed in next. A range is
// read with one request if next is a [store.FrameGetter]; otherwise with one for
// a block whose head is known or whose first frame is wanted, and with two for
// others, at the same time if the blocks before were stored as they are. A corrupt
// block is asked for once more, with [store.WithVerify], so that a damaged copy in a
// cache is not the last word.
func New(next store.Store, opt Options) store.Store { return NewSealer(opt).Over(next) }

// Over is [New] with a Sealer, which may be shared: it derives a volume's keys
// but once.
func (s *Sealer) Over(next store.Store) store.Store {
	_, checked := next.(store.Checker)
	return &sealed{next: next, sealer: s, checked: checked, heads: newHeads(maxHeads)}
}

type sealed struct {
	next    store.Store
	sealer  *Sealer
	checked bool // next is a store.Checker
	heads   *heads
	layout  layout
	buffers sync.Pool // of *[]byte, for Put
}

func (s *sealed) Put(ctx context.Context, key store.Key, data []byte) error {
	p, _ := s.buffers.Get().(*[]byte)
	if p == nil {
		p = new([]byte)
	}
	b, sum, err := s.sealer.encode((*p)[:0], key, data)
	if err != nil {
		return err
	}
	l := store.NewLoan(b, 0, func() { *p = b; s.buffers.Put(p) })
	if err := store.Lend(store.WithSum(ctx, b, sum), s.next, key, l); err != nil {
		return err // somebody may still be busy giving up; leave the buffer to them
	}
	l.Done()
	return nil
}

// Borrow implements [store.Borrower]. A block that is stored as it is, and has room
// before it, is sealed where it is.
func (s *sealed) Borrow(ctx context.Context, key store.Key, l *store.Loan) error {
	b, sum, err := s.sealer.inPlace(key, l)
	if err != nil {
		return err
	}
	if b == nil {
		return s.Put(ctx, key, l.Data())
	}
	l.Keep()
	whole := store.NewLoan(b, 0, l.Done)
	defer whole.Done()
	return store.Lend(store.WithSum(ctx, b, sum), s.next, key, whole)
}

func (s *sealed) Delete(ctx context.Context, key store.Key) error {
	s.heads.drop(key)
	return s.next.Delete(ctx, key)
}

func (s *sealed) DeleteAll(ctx context.Context, keys []store.Key) error {
	for _, key := range keys {
		s.heads.drop(key)
	}
	return store.DeleteAll(ctx, s.next, keys)
}

func (s *sealed) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := s.get(ctx, key, off, n)
	if errors.Is(err, store.ErrCorrupt) && !store.MustVerify(ctx) {
		s.heads.drop(key)
		data, err = s.get(store.WithVerify(ctx), key, off, n)
	}
	return data, err
}

func (s *sealed) get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if off == 0 && (n < 0 || n >= store.MaxBlock) {
		b, err := s.next.Get(ctx, key, 0, -1)
		if err != nil {
			return nil, err
		}
		return s.sealer.decode(key, b, !s.checked)
	}
	head, frames, err := store.GetFrames(ctx, s.next, key, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return s.getRange(ctx, key, off, n)
	}
	if err != nil {
		return nil, err
	}
	h, err := headOf(key, head)
	if err != nil {
		return nil, err
	}
	return s.open(h, frames, off, n)
}

// getRange reads a range with Gets of ranges: the head, if it is not known, and
// the frames, if they did not come with the head.
func (s *sealed) getRange(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	h := s.heads.get(key)
	var start []byte // of the sealed block
	var guess *guess
	if h == nil {
		var err error
		if off >= frameSize {
			guess = s.layout.fetch(ctx, s.next, key, off, n)
			defer guess.end()
		}
		if start, err = s.next.Get(ctx, key, 0, firstRead(off, n)); err != nil {
			return nil, err
		}
		if h, err = headOf(key, start); err != nil {
			return nil, err
		}
	}
	from, to := h.Span(off, n)
	var frames []byte
	switch {
	case from == to && start == nil:
		// The head alone tells that nothing is there, but not that the block
		// still exists.
		if _, err := s.next.Get(ctx, key, 0, 1); err != nil {
			return nil, err
		}
	case to <= int64(len(start)):
		frames = start[from:to]
	case guess.right(from, to):
		frames = guess.frames
	case from < to:
		var err error
		if frames, err = s.next.Get(ctx, key, from, to-from); err != nil {
			return nil, err
		}
	}
	data, err := s.open(h, frames, off, n)
	if err == nil && start != nil {
		s.heads.put(h)
		s.layout.learn(h)
	}
	return data, err
}

// firstRead returns how much of a block to read when its head is not known: the
// head, and if the range begins in the first frame all frames of the range,
// since those are found without a head.
func firstRead(off, n int64) int64 {
	if n < 0 || off >= frameSize || n > store.MaxBlock {
		return MaxHead
	}
	frames := (off + n + frameSize - 1) >> frameLog
	return MaxHead + frames*(frameSize+tagLen)
}

func (s *sealed) open(h *Head, frames []byte, off, n int64) ([]byte, error) {
	aead, err := s.sealer.admit(h)
	if err != nil {
		return nil, err
	}
	if err := h.Check(frames, off, n); err != nil {
		return nil, err
	}
	return s.sealer.open(h, aead, frames, off, n)
}

// GetFrames answers a [store.FrameGetter] question with Gets of ranges of s, a
// Store of sealed blocks: one for a block no longer than [MaxHead] and a range
// that begins in its first frame, else two. For a Store that cannot do better.
func GetFrames(ctx context.Context, s store.Store, key store.Key, off, n int64) (head, frames []byte, err error) {
	start, err := s.Get(ctx, key, 0, firstRead(off, n))
	if err != nil {
		return nil, nil, err
	}
	h, err := headOf(key, start)
	if err != nil {
		return nil, nil, err
	}
	from, to := h.Span(off, n)
	if from == to {
		return h.Bytes(), nil, nil
	}
	if to <= int64(len(start)) {
		return h.Bytes(), start[from:to:to], nil
	}
	frames, err = s.Get(ctx, key, from, to-from)
	if err != nil {
		return nil, nil, err
	}
	if int64(len(frames)) != to-from {
		return nil, nil, fmt.Errorf("seal: block %v: ends at %d, should at %d: %w", key, from+int64(len(frames)), h.SealedLen(), store.ErrCorrupt)
	}
	return h.Bytes(), frames, nil
}

// heads remembers the heads of the blocks that were read last.
type heads struct {
	max int

	mu    sync.Mutex
	byKey map[store.Key]*list.Element // of *Head; guarded by mu
	order *list.List                  // last used first; guarded by mu
}

func newHeads(max int) *heads {
	return &heads{max: max, byKey: make(map[store.Key]*list.Element), order: list.New()}
}

func (c *heads) get(key store.Key) *Head {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[key]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*Head)
}

func (c *heads) put(h *Head) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[h.key] != nil {
		return
	}
	c.byKey[h.key] = c.order.PushFront(h)
	if c.order.Len() > c.max {
		delete(c.byKey, c.order.Remove(c.order.Back()).(*Head).key)
	}
}

func (c *heads) drop(key store.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		c.order.Remove(e)
		delete(c.byKey, key)
	}
}

// A layout guesses where the frames lie of a block whose head is not known: where
// they lie in those before it, if those are stored as they are. What programs have
// compressed themselves is, and much of what is read at random is that.
type layout struct {
	mu   sync.Mutex
	like *Head // the longest of the last blocks, all of whose frames are stored as they are
	seen int   // such blocks, one after the other
}

// surely is after how many blocks that are stored as they are the next is taken to be.
const surely = 3

// learn takes note of a block's head.
func (l *layout) learn(h *Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !h.asIs(0, len(h.frames)) {
		l.like, l.seen = nil, 0
		return
	}
	if l.seen++; l.like == nil || h.plain > l.like.plain {
		l.like = h
	}
}

// fetch begins to read the frames of a range where they should be; nil if there is
// no telling.
func (l *layout) fetch(ctx context.Context, from store.Store, key store.Key, off, n int64) *guess {
	l.mu.Lock()
	like := l.like
	if l.seen < surely {
		like = nil
	}
	l.mu.Unlock()
	if like == nil {
		return nil
	}
	g := &guess{done: make(chan struct{})}
	if g.from, g.to = like.Span(off, n); g.from == g.to {
		return nil
	}
	ctx, g.cancel = context.WithCancel(ctx)
	go func() {
		defer close(g.done)
		g.frames, g.err = from.Get(ctx, key, g.from, g.to-g.from)
	}()
	return g
}

// A guess is a read of frames that may be elsewhere. It is to be ended; nil is none.
type guess struct {
	from, to int64
	cancel   context.CancelFunc
	done     chan struct{} // closed when frames and err are there
	frames   []byte
	err      error
}

// end gives up a guess that was wrong.
func (g *guess) end() {
	if g != nil {
		g.cancel()
	}
}

// right reports whether the frames lie from from to to, and were read.
func (g *guess) right(from, to int64) bool {
	if g == nil || g.from != from || g.to != to {
		return false
	}
	<-g.done
	return g.err == nil && int64(len(g.frames)) == to-from
}
