package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"
)

// maxPause bounds the pause between two attempts of [Retry], so that a store
// that comes back after minutes is noticed within seconds.
const maxPause = 10 * time.Second

// Retry returns a Store that tries each operation on s up to n times, with
// growing, jittered pauses: the i-th lasts between half and all of
// pause × 2^i, at most 10 seconds. A missing or corrupt block, a refused
// permission and an ended context are answers, not failures: they are returned
// at once. So a corrupt block reaches the reader, who knows how to ask again
// ([WithVerify]).
func Retry(s Store, n int, pause time.Duration) Store {
	return &retry{next: s, n: max(n, 1), pause: max(pause, 0)}
}

type retry struct {
	next  Store
	n     int
	pause time.Duration
}

func (r *retry) Get(ctx context.Context, key Key, off, n int64) (data []byte, err error) {
	err = r.do(ctx, func() error {
		data, err = r.next.Get(ctx, key, off, n)
		if err == nil && n >= 0 && int64(len(data)) > n {
			err = fmt.Errorf("store: get %v: %d bytes came where %d were asked for", key, len(data), n)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

func (r *retry) GetFrames(ctx context.Context, key Key, off, n int64) (head, frames []byte, err error) {
	err = r.do(ctx, func() error {
		head, frames, err = GetFrames(ctx, r.next, key, off, n)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return head, frames, nil
}

func (r *retry) Put(ctx context.Context, key Key, data []byte) error {
	return r.do(ctx, func() error { return r.next.Put(ctx, key, data) })
}

func (r *retry) Delete(ctx context.Context, key Key) error {
	return r.do(ctx, func() error { return r.next.Delete(ctx, key) })
}

func (r *retry) DeleteAll(ctx context.Context, keys []Key) error {
	if b, ok := r.next.(BulkDeleter); ok {
		return r.do(ctx, func() error { return b.DeleteAll(ctx, keys) })
	}
	for _, key := range keys {
		if err := r.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// do calls op until it answers, at most n times.
func (r *retry) do(ctx context.Context, op func() error) error {
	pause := min(r.pause, maxPause)
	for i := 1; ; i++ {
		err := op()
		if err == nil || isAnswer(ctx, err) {
			return err
		}
		if i == r.n {
			if i > 1 {
				err = fmt.Errorf("store: gave up after %d attempts: %w", i, err)
			}
			return err
		}
		if !sleep(ctx, jitter(pause)) {
			return fmt.Errorf("store: %w after %d attempts, the last of which said: %w", context.Cause(ctx), i, err)
		}
		pause = min(2*pause, maxPause)
	}
}

// isAnswer tells errors that another attempt would only repeat.
func isAnswer(ctx context.Context, err error) bool {
	return ctx.Err() != nil ||
		errors.Is(err, ErrNotExist) ||
		errors.Is(err, ErrCorrupt) ||
		errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, errors.ErrUnsupported)
}

// jitter returns a random duration between half and all of d, so that clients
// that failed together do not come back together.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/2+1)
}

// sleep waits for d, and reports whether ctx outlived it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
