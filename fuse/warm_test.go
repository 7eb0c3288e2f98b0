package fuse

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/jacobsa/fuse/fuseops"
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

// A block that was written as a whole has one new place in memory, where it is
// read from later; all other buffers on its way are used again.
func TestAWrittenBlockIsAllocatedOnce(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("a", Config{})
	f := fs.createTest(t, "f")
	data := make([]byte, testBlockSize)
	rand.NewChaCha8([32]byte{}).Read(data)
	const n = 64
	write := func(from int) {
		for i := range n {
			must(t, "write", f.writeAt(data, int64(from+i)*testBlockSize))
		}
		must(t, "fsync", f.sync())
	}
	write(0) // which fills the pools
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(n)
	runtime.ReadMemStats(&after)
	perByte := float64(after.TotalAlloc-before.TotalAlloc) / (n * testBlockSize)
	if perByte -= 1; perByte > 3 { // the bucket of the test keeps a copy, too; the race detector empties pools
		t.Errorf("a written byte makes %.2f bytes of garbage or cache, want 1 and a little", perByte)
	}
}
