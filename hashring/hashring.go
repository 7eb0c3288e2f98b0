// Package hashring spreads keys over nodes by rendezvous hashing: every node has
// a score for every key, and the best score owns the key. Whoever has the same
// nodes finds the same owners, in whatever order it was told of them; a node that
// comes takes its share of the keys from all others and moves no other key, and
// a node that goes leaves its keys to the second best of each.
//
// The scores are part of the protocol between clients and proxies: two builds
// that differ in them disagree on where blocks are.
package hashring

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// A Node is a member of a [Ring].
type Node struct {
	Name   string
	Weight float64 // its share of the keys, relative to the other nodes'
}

// A Ring is an immutable set of nodes. Its methods may be called concurrently.
// The zero Ring has no nodes.
type Ring struct {
	nodes    []node // by name: what is found first wins a tie
	weighted bool
}

type node struct {
	name   string
	hash   uint64
	weight float64
}

// New returns a ring of nodes with equal shares. A name given twice counts once.
func New(names ...string) *Ring {
	nodes := make([]node, len(names))
	for i, name := range names {
		nodes[i] = node{name: name, hash: hash(name), weight: 1}
	}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return &Ring{nodes: slices.Compact(nodes)}
}

// NewWeighted returns a ring of nodes with shares in proportion to their weights.
// With equal weights it is the ring of [New]. Weights must be positive and
// finite, and names unique.
func NewWeighted(nodes ...Node) (*Ring, error) {
	names := make([]string, len(nodes))
	weight := make(map[string]float64, len(nodes))
	for i, n := range nodes {
		if _, ok := weight[n.Name]; ok {
			return nil, fmt.Errorf("hashring: node %q is there twice", n.Name)
		}
		if !(n.Weight > 0) || math.IsInf(n.Weight, 1) {
			return nil, fmt.Errorf("hashring: node %q: weight %v is not a positive number", n.Name, n.Weight)
		}
		names[i], weight[n.Name] = n.Name, n.Weight
	}
	r := New(names...)
	for i := range r.nodes {
		r.nodes[i].weight = weight[r.nodes[i].name]
		r.weighted = r.weighted || r.nodes[i].weight != r.nodes[0].weight
	}
	return r, nil
}

// Len returns the number of nodes.
func (r *Ring) Len() int { return len(r.nodes) }

// Owners returns the names of the k nodes with the best scores for key, best
// first, or of all nodes if there are fewer or k is negative. When the owner
// cannot be reached, the next in order is who everybody else asks, too.
func (r *Ring) Owners(key uint64, k int) []string {
	if k < 0 || k > len(r.nodes) {
		k = len(r.nodes)
	}
	if k == 0 {
		return nil
	}
	type ranked struct {
		score float64
		tie   uint64 // the score, where all weights are equal
		name  string
	}
	best := make([]ranked, 0, 8) // at most k, best first
	for _, n := range r.nodes {
		it := ranked{tie: score(key, n.hash), name: n.name}
		if r.weighted {
			it.score, it.tie = weigh(it.tie, n.weight), 0
		}
		at := len(best)
		for at > 0 && (it.score > best[at-1].score || it.score == best[at-1].score && it.tie > best[at-1].tie) {
			at--
		}
		if at == k {
			continue
		}
		if len(best) == k {
			best = best[:k-1]
		}
		best = slices.Insert(best, at, it)
	}
	names := make([]string, k)
	for i, it := range best {
		names[i] = it.name
	}
	return names
}

// Two words that are not likely to be a hash: the first 128 bits of pi's fraction.
const (
	pi0 = 0x243f6a8885a308d3
	pi1 = 0x13198a2e03707344
)

// score mixes a key with a node's hash. It multiplies twice, in the manner of
// wyhash: after one multiplication the keys of three nodes are measurably uneven.
func score(key, node uint64) uint64 {
	hi, lo := bits.Mul64(key^pi0, node^pi1)
	hi, lo = bits.Mul64(hi^pi1, lo^pi0)
	return hi ^ lo
}

// weigh turns a score into one whose chance to be the best is in proportion to
// weight: it orders as the weight-th root of the score does, the score taken as a
// number in (0, 1). 52 of its bits are used because with one more the largest
// would be rounded to 1.
func weigh(score uint64, weight float64) float64 {
	u := (float64(score>>12) + 0.5) / (1 << 52)
	return -weight / math.Log(u)
}

// hash is FNV-1a. The names are few and hashed once; score does the mixing.
func hash(name string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return h
}
