package store

import (
	"context"
	"hash/crc32"
)

type sumKey struct{}

// A summed is data whose CRC-32C is known.
type summed struct {
	place
	sum uint32
}

// A place is where data are.
type place struct {
	first *byte
	len   int
}

func placeOf(data []byte) place {
	if len(data) == 0 {
		return place{}
	}
	return place{&data[0], len(data)}
}

// WithSum returns a context for a Put of data, which has this CRC-32C: who sends
// or keeps a checksum of it on the way need not compute it again. It comes from
// whoever made or checked data, so it is good for finding damage on the way, too.
func WithSum(ctx context.Context, data []byte, sum uint32) context.Context {
	return context.WithValue(ctx, sumKey{}, summed{placeOf(data), sum})
}

// Sum returns the CRC-32C of data, which is being put with ctx.
func Sum(ctx context.Context, data []byte) uint32 {
	if s, ok := ctx.Value(sumKey{}).(summed); ok && s.place == placeOf(data) {
		return s.sum
	}
	return crc32.Checksum(data, castagnoli)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
