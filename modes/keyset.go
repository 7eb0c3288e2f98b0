package modes

import (
	"hash/maphash"
	"slices"

	"flexfs/meta/tree"
)

// A keySet is a set of objects in 8 bytes each. It may say that it has one that
// it has not, once in 2^64 questions and objects.
type keySet struct {
	seed   maphash.Seed
	hashes []uint64 // ascending after sort
}

func newKeySet() *keySet { return &keySet{seed: maphash.MakeSeed()} }

func (s *keySet) add(ref tree.BlockRef) { s.hashes = append(s.hashes, maphash.Comparable(s.seed, ref)) }

func (s *keySet) sort() { slices.Sort(s.hashes) }

func (s *keySet) has(ref tree.BlockRef) bool {
	_, found := slices.BinarySearch(s.hashes, maphash.Comparable(s.seed, ref))
	return found
}
