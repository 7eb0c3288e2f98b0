package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
)

// A source returns the n bytes of a sealed block from off, as Get does.
type source func(off, n int64) ([]byte, error)

// inMemory is the source of a block that is in memory.
func inMemory(block []byte) source {
	return func(off, n int64) ([]byte, error) { return store.Clip(block, off, n), nil }
}

// inFile is the source of a block that is in a file of this size.
func inFile(f file, size int64) source {
	return func(off, n int64) ([]byte, error) {
		if off < 0 || off >= size {
			return nil, nil
		}
		if n < 0 || n > size-off {
			n = size - off
		}
		b := roomy(n)
		if _, err := f.ReadAt(b, off); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("%w: the file was cut short", store.ErrCorrupt)
			}
			return nil, err
		}
		return b, nil
	}
}

// frameRange answers GetFrames from a block's source. What it returns has been
// checked.
func frameRange(src source, key store.Key, off, n int64) (head, frames []byte, err error) {
	start, err := src(0, seal.MaxHead)
	if err != nil {
		return nil, nil, err
	}
	h, err := seal.ParseHead(start)
	if err != nil {
		return nil, nil, err
	}
	if h.Key() != key {
		return nil, nil, fmt.Errorf("%w: it is the block %v", store.ErrCorrupt, h.Key())
	}
	from, to := h.Span(off, n)
	if frames, err = src(from, to-from); err != nil {
		return nil, nil, err
	}
	return h.Bytes(), frames, h.Check(frames, off, n)
}

// copyOf has read take what it wants from the copy of the block that is here. If
// there is none, the error wraps errNotHeld; another says that there is one, a
// dirty one, which cannot be read. With all, or when verify is set and the file is
// not known to be good, or ctx asks for it, the whole file is read and verified
// first.
func (d *Disk) copyOf(ctx context.Context, key store.Key, all, verify bool, read func(source) (a, b []byte, err error)) (a, b []byte, err error) {
	e, verified := d.find(ctx, key)
	if e == nil {
		return nil, nil, notHeld(key)
	}
	end, err := d.mayRead(e)
	if err != nil {
		return nil, nil, err
	}
	all = all || verify && !verified || store.MustVerify(ctx)
	var got struct { // not to be touched if the guard did not wait
		a, b []byte
		crc  uint32
		err  error
	}
	if !d.guard(ctx, func() { defer end(); got.a, got.b, got.crc, got.err = d.readFile(e, all, read) }) {
		return nil, nil, d.unread(ctx, e)
	}
	if got.err != nil {
		return nil, nil, d.unreadable(e, got.err)
	}
	d.use(e, all, got.crc)
	return got.a, got.b, nil
}

// mayRead says no for a disk that is out of use, unless the block is dirty and not
// many others try. The caller calls end when the read has ended.
func (d *Disk) mayRead(e *entry) (end func(), err error) {
	if d.usable() {
		return func() {}, nil
	}
	if !d.isDirty(e) {
		return nil, notHeld(e.key)
	}
	select {
	case d.rescues <- struct{}{}:
		return func() { <-d.rescues }, nil
	default:
		return nil, fmt.Errorf("cache: dirty block %v: %w", e.key, errHung)
	}
}

// unread is the error of a read that is not waited for.
func (d *Disk) unread(ctx context.Context, e *entry) error {
	switch {
	case !d.isDirty(e):
		return notHeld(e.key)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("cache: dirty block %v: %w", e.key, errHung)
}

func (d *Disk) isDirty(e *entry) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return e.queue == dirty
}

func (d *Disk) readFile(e *entry, all bool, read func(source) (a, b []byte, err error)) (a, b []byte, crc uint32, err error) {
	f, err := find(d, e, d.files.open)
	if err != nil {
		return nil, nil, 0, err
	}
	defer f.close()
	size, err := f.size()
	if err != nil {
		return nil, nil, 0, err
	}
	if size != e.size {
		return nil, nil, 0, fmt.Errorf("%w: the file has %d bytes, not %d", store.ErrCorrupt, size, e.size)
	}
	src := inFile(f, e.size)
	if all {
		block, err := src(0, -1)
		if err != nil {
			return nil, nil, 0, err
		}
		if crc, err = d.cfg.Verify(e.key, block); err != nil {
			return nil, nil, 0, corrupt(err)
		}
		src = inMemory(block)
	}
	a, b, err = read(src)
	return a, b, crc, err
}

// find has open try the names that the entry's file may have: it may be moved
// at any time, and back.
func find[F any](d *Disk, e *entry, open func(name string) (F, error)) (f F, err error) {
	for range 2 {
		names := []string{cleanFile(e.key), dirtyFile(e.key)}
		d.mu.Lock()
		if e.inDirty {
			slices.Reverse(names)
		}
		d.mu.Unlock()
		for _, name := range names {
			if f, err = open(name); !errors.Is(err, fs.ErrNotExist) {
				return f, err
			}
		}
	}
	return f, err
}

// unreadable deals with a copy that could not be read, and returns the error for
// copyOf.
func (d *Disk) unreadable(e *entry, err error) error {
	pending := d.isDirty(e)
	switch {
	case errors.Is(err, fs.ErrNotExist): // evicted meanwhile, or somebody else removed it
		if pending {
			d.vanished(e)
		}
	case errors.Is(err, store.ErrCorrupt):
		d.count.corrupt.Add(1)
		if pending {
			d.setAside(e, err)
			return notHeld(e.key)
		}
		d.warn(e, err)
	case isScarcity(err):
		d.count.errors.Add(1)
		if pending {
			return err
		}
		return notHeld(e.key) // not the file's fault
	default:
		d.mu.Lock()
		d.hurt("read", err)
		d.mu.Unlock()
		if pending {
			return fmt.Errorf("cache: dirty block %v: %w", e.key, err)
		}
	}
	d.drop(e)
	return notHeld(e.key)
}

// warn logs a damaged copy, unless it has just logged another.
func (d *Disk) warn(e *entry, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.warned) < time.Minute {
		return
	}
	d.warned = time.Now()
	d.cfg.Log.Warn("a block in the disk cache is damaged; it is fetched again", "block", e.key.String(), "err", err, "damagedSoFar", d.count.corrupt.Load())
}
