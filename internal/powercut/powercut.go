// Package powercut is a disk of which the power can be cut, for tests: a block
// device with a file system, whose writes are safe when they were flushed and not
// before, as those of a disk with a cache are.
package powercut

import (
	"sync"
	"syscall"
	"testing"
)

const (
	size     = 256 << 20
	pageSize = 4096
)

// A Disk is mounted on a folder. It is in the memory of the test: a file system in
// user space has it as a file, and a loop device has that.
type Disk struct {
	t    testing.TB
	dir  string // where its file system is mounted
	file string // that the loop device is of
	loop string

	mu     sync.Mutex
	stable map[int64][]byte // pages that were flushed, by number
	cached map[int64][]byte // and those that were written since
	off    bool
}

// Cut cuts the power. What was flushed is safe. Of what was not, each page of 4 KiB
// is on the disk if kept says so, in any order. From then on all reads and writes
// fail.
func (d *Disk) Cut(kept func() bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for page, data := range d.cached {
		if kept() {
			d.stable[page] = data
		}
	}
	clear(d.cached)
	d.off = true
}

// Restore brings the power back, and mounts the file system anew, which repairs
// itself by its journal. Whoever had files open there must have been ended.
func (d *Disk) Restore() {
	d.t.Helper()
	d.detach()
	d.mu.Lock()
	clear(d.cached)
	d.off = false
	d.mu.Unlock()
	if err := d.attach(); err != nil {
		d.t.Fatal(err)
	}
}

// page returns what a page has, nil if it is zeros.
func (d *Disk) page(n int64) []byte {
	if p := d.cached[n]; p != nil {
		return p
	}
	return d.stable[n]
}

func (d *Disk) read(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return syscall.EIO
	}
	for len(p) > 0 {
		part := p[:min(int64(len(p)), pageSize-off%pageSize)]
		clear(part)
		if page := d.page(off / pageSize); page != nil {
			copy(part, page[off%pageSize:])
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

func (d *Disk) write(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return syscall.EIO
	}
	for len(p) > 0 {
		n := off / pageSize
		page := d.cached[n]
		if page == nil {
			page = make([]byte, pageSize)
			copy(page, d.stable[n])
			d.cached[n] = page
		}
		done := copy(page[off%pageSize:], p)
		p, off = p[done:], off+int64(done)
	}
	return nil
}

func (d *Disk) flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return syscall.EIO
	}
	for n, page := range d.cached {
		d.stable[n] = page
	}
	clear(d.cached)
	return nil
}
