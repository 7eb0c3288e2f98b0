package fuse

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/jacobsa/fuse/fuseops"

	"flexfs/store"
)

// What is in memory is read by the goroutine that serves the kernel: it hands
// over to no other, makes next to no garbage, and copies no bytes.
func TestAReadFromMemoryIsAnsweredAtOnce(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("a", Config{})
	f := fs.createTest(t, "f")
	data := bytes.Repeat([]byte("0123456789abcdef"), testBlockSize/16)
	must(t, "write", f.writeAt(data, 0))
	must(t, "fsync", f.sync())

	read := func(off int64) *fuseops.ReadFileOp {
		op := &fuseops.ReadFileOp{Inode: f.ino, Handle: f.handle, Offset: off, Size: 4096}
		c := fs.newCall(context.Background(), func() { t.Error("it was handed over") })
		defer c.end(true)
		must(t, "read", c.handle(op))
		if op.BytesRead != 4096 || !bytes.Equal(op.Data[0], data[off:off+4096]) {
			t.Fatalf("%d bytes at %d, or others than were written", op.BytesRead, off)
		}
		return op
	}
	first, again := read(64<<10), read(64<<10)
	if &first.Data[0][0] != &again.Data[0][0] {
		t.Error("two reads of the same bytes are two copies of them")
	}
	const most = 8
	off := int64(0)
	n := testing.AllocsPerRun(100, func() {
		read(off)
		off = (off + 20<<12) % testBlockSize
	})
	if n > most {
		t.Errorf("a read from memory makes %v allocations, want %d at most", n, most)
	}
}

// A file that is written in order lends the store the memory that its blocks were
// written to, and uses it again; there are no copies.
func TestAFileIsWrittenFromFewPlaces(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("a", Config{Budget: NewBudget(0)}) // for 64 blocks
	lender := &borrower{Store: fs.blocks, places: map[*byte]bool{}}
	fs.blocks = lender
	f := fs.createTest(t, "f")
	const blocks, request = 400, 128 << 10
	data := pattern(request, 1)
	for off := int64(0); off < blocks*testBlockSize; off += request {
		must(t, "write", f.writeAt(data, off))
	}
	must(t, "fsync", f.sync())
	if lender.lent != blocks || lender.put > 0 {
		t.Errorf("%d blocks were lent and %d put otherwise, want %d and none", lender.lent, lender.put, blocks)
	}
	if most := wholeFrom / store.PartSize; lender.unsummed > most { // those of the first block may be moved
		t.Errorf("%d parts of blocks came without their checksums, want %d at most", lender.unsummed, most)
	}
	if len(lender.places) > blocks/2 { // the race detector has pools forget things
		t.Errorf("%d blocks were in %d places", blocks, len(lender.places))
	}
	for idx := int64(0); idx < blocks; idx++ {
		got, err := f.readAt(request, idx*testBlockSize)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("block %d reads as something else: %v", idx, err)
		}
	}
}

// A borrower notes where the blocks are that it is lent. It does not keep them.
type borrower struct {
	store.Store

	mu       sync.Mutex
	lent     int
	put      int
	places   map[*byte]bool
	unsummed int // parts of which no checksum was noted
}

func (b *borrower) Put(ctx context.Context, key store.Key, data []byte) error {
	b.mu.Lock()
	b.put++
	b.mu.Unlock()
	return b.Store.Put(ctx, key, data)
}

func (b *borrower) Borrow(ctx context.Context, key store.Key, l *store.Loan) error {
	b.mu.Lock()
	b.lent++
	b.places[&l.Data()[0]] = true
	for i := range len(l.Data()) / store.PartSize {
		if _, known := l.PartSum(i); !known {
			b.unsummed++
		}
	}
	b.mu.Unlock()
	return b.Store.Put(ctx, key, l.Data())
}
