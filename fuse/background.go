package fuse

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"flexfs/meta"
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
	wg.Go(func() { fs.unlockAllLeft(ctx) })
	if fs.cfg.WriteBehind {
		wg.Go(func() { fs.tellBehind(ctx) })
	}
	return func() {
		fs.budget.leave(fs)
		fs.stock.close()
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

// flushQuietly flushes for nobody in particular.
func (fs *FS) flushQuietly(ctx context.Context, in *inode) {
	err := fs.flush(ctx, in)
	if err == nil || ctx.Err() != nil {
		return
	}
	level := slog.LevelWarn
	if fs.away() > 0 { // who is away was said once, and that every file waits need not be
		level = slog.LevelDebug
	}
	if !final(refusal(err)) { // else flush told
		fs.log.Log(ctx, level, "written data could not be stored yet", "file", fs.where(in), "err", err)
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
		wrote := in.content.wrote && (short || in.content.since.Before(old))
		if wrote || in.making != nil && in.making.since.Before(old) {
			out = append(out, in)
		}
		in.mu.Unlock()
	}
	return out
}

// flushAll flushes every file. The error names those that could not be.
func (fs *FS) flushAll(ctx context.Context) error {
	fs.mu.Lock()
	list := make([]*inode, 0, len(fs.dirty))
	for in := range fs.dirty {
		list = append(list, in)
	}
	fs.mu.Unlock()
	left := &unstored{}
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
				left.add(fs.where(in), err)
			}
		})
	}
	wg.Wait()
	if left.n == 0 {
		return nil
	}
	return left
}

// unstored are files whose data could not be stored.
type unstored struct {
	n     int
	names []string // of the first
	cause error    // of the first
}

// maxNamed bounds the files that an error names.
const maxNamed = 20

func (u *unstored) add(name string, err error) {
	if u.n++; u.n == 1 {
		u.cause = err
	}
	if len(u.names) < maxNamed {
		u.names = append(u.names, name)
	}
}

func (u *unstored) Error() string {
	more := ""
	if u.n > len(u.names) {
		more = fmt.Sprintf(" and %d more", u.n-len(u.names))
	}
	return fmt.Sprintf("data of %d files could not be stored: %s%s: %v", u.n, strings.Join(u.names, ", "), more, u.cause)
}

func (u *unstored) Unwrap() error { return u.cause }

// deepest bounds a way up by the parents in which inodes were found last: others
// may have moved them since, and it may be a circle.
const deepest = 100

// where says to people which file an inode is, as far as that is known.
func (fs *FS) where(in *inode) string {
	ino, path := in.ino, ""
	for range deepest {
		in.mu.Lock()
		name, parent := in.name, in.parent
		in.mu.Unlock()
		if name == "" {
			break
		}
		path = "/" + name + path
		if in = fs.known(parent); in == nil || parent == meta.Root {
			break
		}
	}
	if path == "" {
		return fmt.Sprintf("inode %d", ino)
	}
	return fmt.Sprintf("%s (inode %d)", path, ino)
}
