package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		b := make([]byte, n)
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
// there is none, or it cannot be read or is damaged, ok is false. With all, or
// when verify is set and the file is not known to be good, or ctx asks for it,
// the whole file is read and verified first.
func (d *Disk) copyOf(ctx context.Context, key store.Key, all, verify bool, read func(source) (a, b []byte, err error)) (a, b []byte, ok bool) {
	if !d.usable() {
		return nil, nil, false
	}
	e, verified := d.find(ctx, key)
	if e == nil {
		return nil, nil, false
	}
	all = all || verify && !verified || store.MustVerify(ctx)
	var got struct { // not to be touched if the guard did not wait
		a, b []byte
		err  error
	}
	if !d.guard(ctx, func() { got.a, got.b, got.err = d.readFile(e, all, read) }) {
		return nil, nil, false
	}
	if got.err != nil {
		d.unreadable(e, got.err)
		return nil, nil, false
	}
	d.use(e, all)
	return got.a, got.b, true
}

func (d *Disk) readFile(e *entry, all bool, read func(source) (a, b []byte, err error)) (a, b []byte, err error) {
	f, err := d.files.open(fileName(e.key))
	if err != nil {
		return nil, nil, err
	}
	defer f.close()
	size, err := f.size()
	if err != nil {
		return nil, nil, err
	}
	if size != e.size {
		return nil, nil, fmt.Errorf("%w: the file has %d bytes, not %d", store.ErrCorrupt, size, e.size)
	}
	src := inFile(f, e.size)
	if all {
		block, err := src(0, -1)
		if err != nil {
			return nil, nil, err
		}
		if err := d.cfg.Verify(e.key, block); err != nil {
			return nil, nil, corrupt(err)
		}
		src = inMemory(block)
	}
	return read(src)
}

// unreadable deals with a copy that could not be read.
func (d *Disk) unreadable(e *entry, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist): // evicted meanwhile, or somebody else removed it
	case errors.Is(err, store.ErrCorrupt):
		d.count.corrupt.Add(1)
		d.warn(e, err)
	case isScarcity(err):
		d.count.errors.Add(1)
		return // not the file's fault
	default:
		d.mu.Lock()
		d.hurt("read", err)
		d.mu.Unlock()
	}
	d.drop(e)
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
