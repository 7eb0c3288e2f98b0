package store

import "context"

// Limit returns a Store that lets at most n operations work on s at a time. The
// others wait their turn, first come first served, or until their context ends.
func Limit(s Store, n int) Store {
	return &limit{next: s, slots: make(chan struct{}, max(n, 1))}
}

type limit struct {
	next  Store
	slots chan struct{} // holds one element per operation at work
}

func (l *limit) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx) // select might prefer a free slot
	}
	select {
	case l.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *limit) leave() { <-l.slots }

func (l *limit) Get(ctx context.Context, key Key, off, n int64) ([]byte, error) {
	if err := l.enter(ctx); err != nil {
		return nil, err
	}
	defer l.leave()
	return l.next.Get(ctx, key, off, n)
}

func (l *limit) GetFrames(ctx context.Context, key Key, off, n int64) (head, frames []byte, err error) {
	if err := l.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer l.leave()
	return GetFrames(ctx, l.next, key, off, n)
}

func (l *limit) Put(ctx context.Context, key Key, data []byte) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	return l.next.Put(ctx, key, data)
}

func (l *limit) Delete(ctx context.Context, key Key) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	return l.next.Delete(ctx, key)
}

// List passes the question on. It counts as no operation: it takes long, and fn
// may want others.
func (l *limit) List(ctx context.Context, volume Volume, fn func(Listed) error) error {
	return List(ctx, l.next, volume, fn)
}

func (l *limit) DeleteAll(ctx context.Context, keys []Key) error {
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	return DeleteAll(ctx, l.next, keys)
}
