package cache

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"flexfs/store"
)

// An Opened is the file of a block that is here, for a server that hands files to
// the kernel instead of bytes. It has the sealed block and nothing else. It stays
// as it is until Close, also if the block is evicted or deleted meanwhile.
type Opened struct {
	File *os.File // at its start; for the caller to read and seek, and not to close
	Size int64    // of the block in bytes
	CRC  uint32   // CRC-32C (Castagnoli) of the whole block

	count *counters
	local bool
}

// Sent tells how many bytes the block's readers were given, for the statistics.
func (o *Opened) Sent(n int64) {
	if !o.local {
		o.count.hitBytes.Add(n)
	}
}

// Close closes the file.
func (o *Opened) Close() error { return o.File.Close() }

// Open returns the block's file, clean or dirty, if it is here and was found good
// since the Disk was opened; the caller closes it. Otherwise, and if ctx asks for
// the block to be verified, the error wraps [store.ErrNotExist], which says nothing
// about the store below: Get finds the block, and may make Open find it. Open
// counts as a Get that was answered, and otherwise not at all.
func (d *Disk) Open(ctx context.Context, key store.Key) (*Opened, error) {
	e, verified := d.find(ctx, key)
	if e == nil || !verified || store.MustVerify(ctx) || !d.usable() {
		return nil, notHeld(key)
	}
	f, err := d.openFile(ctx, e)
	if err != nil {
		return nil, err
	}
	d.use(e, false, 0)
	local := store.IsLocal(ctx)
	d.count.hit(local, 0)
	d.mu.Lock()
	crc := e.crc
	d.mu.Unlock()
	return &Opened{File: f, Size: e.size, CRC: crc, count: &d.count, local: local}, nil
}

// openFile opens a file that has the right size.
func (d *Disk) openFile(ctx context.Context, e *entry) (*os.File, error) {
	var got struct { // not to be touched if the guard did not wait
		f   *os.File
		err error
	}
	var over atomic.Bool // somebody has taken the file, or will not
	if !d.guard(ctx, func() {
		got.f, got.err = find(d, e, d.files.openFile)
		if over.Swap(true) && got.err == nil {
			got.f.Close()
		}
	}) && !over.Swap(true) {
		return nil, notHeld(e.key)
	}
	if got.err != nil {
		return nil, d.unopened(e, got.err)
	}
	info, err := got.f.Stat()
	if err == nil && info.Size() != e.size {
		err = fmt.Errorf("%w: the file has %d bytes, not %d", store.ErrCorrupt, info.Size(), e.size)
	}
	if err != nil {
		got.f.Close()
		return nil, d.unopened(e, err)
	}
	return got.f, nil
}

// unopened deals with a file that could not be opened. What it means for a dirty
// block is for Get to say.
func (d *Disk) unopened(e *entry, err error) error {
	d.unreadable(e, err)
	return notHeld(e.key)
}
