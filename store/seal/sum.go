package seal

import (
	"hash/crc32"

	"flexfs/store"
)

// Checksums of parts make that of the whole, without a look at the bytes: a CRC is
// the remainder of a polynomial, and n more bytes behind it multiply that by x^8n.
// In a CRC's order of bits, 1<<31 is 1 and 1<<30 is x.

// joinSums returns the CRC-32C of two parts, from theirs and the length of the
// second.
func joinSums(first, second uint32, n int) uint32 {
	switch n { // the usual ones
	case frameSize:
		return times(first, overFrame) ^ second
	case store.PartSize:
		return times(first, overPart) ^ second
	}
	return times(first, power(n)) ^ second
}

var overFrame, overPart = power(frameSize), power(store.PartSize)

// partsSum returns the CRC-32C of frame i of a block, if that of all its parts was
// noted.
func partsSum(l *store.Loan, i int) (sum uint32, ok bool) {
	const parts = frameSize / store.PartSize
	for p := i * parts; p < (i+1)*parts; p++ {
		part, known := l.PartSum(p)
		if !known {
			return 0, false
		}
		sum = joinSums(sum, part, store.PartSize)
	}
	return sum, true
}

// power returns x^8n.
func power(n int) uint32 {
	p, square := uint32(1<<31), uint32(1<<23) // 1, x^8
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			p = times(p, square)
		}
		square = times(square, square)
	}
	return p
}

// times multiplies two polynomials.
func times(a, b uint32) (p uint32) {
	for ; a != 0; a <<= 1 {
		if a>>31 == 1 {
			p ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return p
}
