package store

import (
	"context"
	"hash/crc32"
	"sync/atomic"
)

// PartSize is the unit in which a [Loan] has checksums.
const PartSize = 64 << 10

// A Loan is the memory of a block, which several may use: who wrote it, a cache
// that keeps it, a disk that it is being written to. When the last is done it is
// given back, to be used for another block.
type Loan struct {
	mem  []byte
	room int
	back func()
	sums []partSum
	uses atomic.Int32
}

type partSum struct {
	sum   uint32
	known bool
}

// NewLoan returns a Loan that the caller uses until it calls Done. After its first
// room bytes, which are free, mem has the block. back is called when nobody uses
// it any more.
func NewLoan(mem []byte, room int, back func()) *Loan {
	l := &Loan{mem: mem[:len(mem):len(mem)], room: room, back: back, sums: make([]partSum, (len(mem)-room)/PartSize)}
	l.uses.Store(1)
	return l
}

// Data returns the block. Nobody but the one who made the loan may change it, and
// only while no Store uses it.
func (l *Loan) Data() []byte { return l.mem[l.room:] }

// Room returns all of the memory, and how much of it lies before the block. A
// Store that is lent it may write there until it returns.
func (l *Loan) Room() (mem []byte, room int) { return l.mem, l.room }

// SumPart notes the CRC-32C of the i-th PartSize bytes of the block, which whoever
// changes one of them forgets. It costs a fraction while they are in the processor's
// cache.
func (l *Loan) SumPart(i int) {
	l.sums[i] = partSum{crc32.Checksum(l.Data()[i*PartSize:][:PartSize], castagnoli), true}
}

// ForgetPart takes back what SumPart noted.
func (l *Loan) ForgetPart(i int) { l.sums[i].known = false }

// PartSum returns what SumPart noted.
func (l *Loan) PartSum(i int) (sum uint32, known bool) { return l.sums[i].sum, l.sums[i].known }

// Keep is said by one more user, while another is not done.
func (l *Loan) Keep() { l.uses.Add(1) }

// Done ends a use. Who gave bytes of the block to others, who do not say when they
// are done, never calls it: the memory is then the garbage collector's.
func (l *Loan) Done() {
	if l.uses.Add(-1) == 0 {
		l.back()
	}
}

// A Borrower is a Store that can use the memory of a block for longer than a Put
// takes, instead of a copy.
type Borrower interface {
	// Borrow is a Put of l's block. What the Store uses when it has returned, it
	// has said Keep for; that is nothing if it fails.
	Borrow(ctx context.Context, key Key, l *Loan) error
}

// Lend puts a block, and lets s use its memory if it is a [Borrower].
func Lend(ctx context.Context, s Store, key Key, l *Loan) error {
	if b, ok := s.(Borrower); ok {
		return b.Borrow(ctx, key, l)
	}
	return s.Put(ctx, key, l.Data())
}
