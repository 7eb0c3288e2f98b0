package fuse

import (
	"context"
	"sync"
	"time"
)

const (
	// maxAge is how long written data stays here before it is written out
	// although nobody asked.
	maxAge = 10 * time.Second

	// tick is how often that is looked at, and how long after a failure it is
	// tried again.
	tick = time.Second

	// maxFlushes bounds the files that are written out at a time.
	maxFlushes = 16
)

// start begins the work in the background. The function that it returns ends
// it and waits for it.
func (fs *FS) start() (stop func()) {
	ctx, cancel := context.WithCancel(fs.ctx)
	fs.closes.mu.Lock()
	fs.closes.wake = make(chan struct{}, 1)
	fs.closes.mu.Unlock()
	fs.budget.join(fs, fs.poke)
	var wg sync.WaitGroup
	wg.Go(func() { fs.tellClosed(ctx) })
	wg.Go(func() { fs.writeOut(ctx) })
	return func() {
		fs.budget.leave(fs)
		cancel()
		wg.Wait()
	}
}

// poke makes the flusher look at once. It does not block.
func (fs *FS) poke() {
	select {
	case fs.wake <- struct{}{}:
	default:
	}
}

// writeOut writes out old data, and any when memory is short, until ctx ends.
func (fs *FS) writeOut(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxFlushes)
	var mu sync.Mutex
	busy := map[*inode]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-fs.wake:
		}
		for _, in := range fs.due() {
			mu.Lock()
			skip := busy[in]
			busy[in] = true
			mu.Unlock()
			if skip {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				fs.flushQuietly(ctx, in)
				mu.Lock()
				delete(busy, in)
				mu.Unlock()
				<-slots
			})
		}
	}
}

// flushQuietly flushes for nobody in particular. What is lost is kept to be told
// to the next fsync or close.
func (fs *FS) flushQuietly(ctx context.Context, in *inode) {
	err := fs.flush(ctx, in)
	if err == nil || ctx.Err() != nil {
		return
	}
	fs.log.Warn("written data could not be stored yet", "ino", in.ino, "err", err)
	if final(refusal(err)) {
		in.mu.Lock()
		in.content.err = err
		in.mu.Unlock()
	}
}

// due returns the files to write out now.
func (fs *FS) due() []*inode {
	short := fs.budget.short()
	old := time.Now().Add(-maxAge)
	var out []*inode
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for in := range fs.dirty {
		in.mu.Lock()
		if in.content.wrote && (short || in.content.since.Before(old)) {
			out = append(out, in)
		}
		in.mu.Unlock()
	}
	return out
}

// flushAll flushes every file, and returns how many could not be.
func (fs *FS) flushAll(ctx context.Context) (failed int, first error) {
	fs.mu.Lock()
	list := make([]*inode, 0, len(fs.dirty))
	for in := range fs.dirty {
		list = append(list, in)
	}
	fs.mu.Unlock()
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxFlushes)
	for _, in := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fs.flush(ctx, in); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed++
				if first == nil {
					first = err
				}
			}
		})
	}
	wg.Wait()
	return failed, first
}
