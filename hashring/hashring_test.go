package hashring

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// The literal values here are the protocol: clients and proxies of other builds
// have them. Do not edit them to make the test pass.
func TestOwnersArePinned(t *testing.T) {
	if got, want := hash("10.0.0.1:9040"), uint64(0xd587626dd6a66ab8); got != want {
		t.Errorf("hash = %#x, want %#x", got, want)
	}
	if got, want := score(1, 2), uint64(0x3139cb5525be7028); got != want {
		t.Errorf("score(1, 2) = %#x, want %#x", got, want)
	}
	r := New("a:1", "b:1", "c:1", "d:1")
	w, err := NewWeighted(Node{"a:1", 1}, Node{"b:1", 2}, Node{"c:1", 1}, Node{"d:1", 0.5})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key             uint64
		equal, weighted string
	}{
		{0, "[c:1 b:1 a:1 d:1]", "[b:1 c:1 a:1 d:1]"},
		{1, "[a:1 d:1 b:1 c:1]", "[a:1 b:1 d:1 c:1]"},
		{2, "[c:1 d:1 b:1 a:1]", "[b:1 c:1 d:1 a:1]"},
		{0xdeadbeef, "[c:1 d:1 b:1 a:1]", "[b:1 c:1 a:1 d:1]"},
		{math.MaxUint64, "[b:1 d:1 c:1 a:1]", "[b:1 d:1 c:1 a:1]"},
	} {
		if got := fmt.Sprint(r.Owners(test.key, -1)); got != test.equal {
			t.Errorf("owners of %#x are %s, want %s", test.key, got, test.equal)
		}
		if got := fmt.Sprint(w.Owners(test.key, -1)); got != test.weighted {
			t.Errorf("weighted owners of %#x are %s, want %s", test.key, got, test.weighted)
		}
	}
}

// names draws the names of n to m different nodes that look like addresses.
func names(t *rapid.T, n, m int) []string {
	return rapid.SliceOfNDistinct(
		rapid.Custom(func(t *rapid.T) string {
			host := rapid.StringMatching(`10\.0\.[0-3]\.[0-9]{1,2}|proxy[0-9]{1,3}\.example\.com`).Draw(t, "host")
			return fmt.Sprintf("%s:%d", host, rapid.IntRange(440, 450).Draw(t, "port"))
		}), n, m, rapid.ID[string]).Draw(t, "names")
}

// keys returns n keys that differ little or much, as real ones do.
func keys(t *rapid.T, n int) []uint64 {
	seed := rapid.Uint64().Draw(t, "seed")
	keys := make([]uint64, n)
	if rapid.Bool().Draw(t, "sequential") {
		for i := range keys {
			keys[i] = seed + uint64(i)
		}
		return keys
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range keys {
		keys[i] = r.Uint64()
	}
	return keys
}

func shuffled(t *rapid.T, names []string) []string {
	return rapid.Permutation(names).Draw(t, "shuffled")
}

func TestOrderOfNamesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := names(t, 1, 12)
		a, b := New(n...), New(append(shuffled(t, n), n[0])...)
		for _, key := range keys(t, 50) {
			if x, y := a.Owners(key, -1), b.Owners(key, -1); !slices.Equal(x, y) {
				t.Fatalf("key %#x: owners are %v in one order and %v in another", key, x, y)
			}
		}
	})
}

func TestOwnersAreAllNodesBestFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := names(t, 1, 12)
		r := New(n...)
		slices.Sort(n)
		for _, key := range keys(t, 20) {
			all := r.Owners(key, -1)
			if got := slices.Sorted(slices.Values(all)); !slices.Equal(got, n) {
				t.Fatalf("key %#x: owners are %v, of nodes %v", key, got, n)
			}
			byScore := func(a, b string) int {
				x, y := score(key, hash(a)), score(key, hash(b))
				switch {
				case x > y:
					return -1
				case x < y:
					return 1
				}
				return 0
			}
			if !slices.IsSortedFunc(all, byScore) {
				t.Fatalf("key %#x: owners %v are not best first", key, all)
			}
			for k := range len(n) + 2 {
				if got, want := r.Owners(key, k), all[:min(k, len(all))]; !slices.Equal(got, want) {
					t.Fatalf("key %#x: the first %d owners are %v, of %v", key, k, got, all)
				}
			}
		}
	})
}

// Also when several come at once: the order among the others stays, so that both
// owners and those who stand in for them stay.
func TestComingNodesOnlyTakeAndGoingNodesOnlyLeave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := names(t, 2, 12)
		come := rapid.IntRange(1, len(n)-1).Draw(t, "come")
		more, fewer := New(n...), New(n[come:]...)
		for _, key := range keys(t, 100) {
			got := slices.DeleteFunc(more.Owners(key, -1), func(name string) bool {
				return slices.Contains(n[:come], name)
			})
			if want := fewer.Owners(key, -1); !slices.Equal(got, want) {
				t.Fatalf("key %#x: without %v the order of the others is %v and was %v", key, n[:come], want, got)
			}
		}
	})
}

func TestWeightedNodesKeepTheirOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []Node
		for _, name := range names(t, 2, 8) {
			nodes = append(nodes, Node{name, float64(rapid.IntRange(1, 100).Draw(t, "weight"))})
		}
		more, err := NewWeighted(nodes...)
		if err != nil {
			t.Fatal(err)
		}
		// A node of another weight keeps the smaller ring weighted.
		fewer, err := NewWeighted(append(nodes[1:], Node{"z", 1000}, Node{"y", 2000})...)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys(t, 100) {
			a := slices.DeleteFunc(more.Owners(key, -1), func(name string) bool { return name == nodes[0].Name })
			b := slices.DeleteFunc(fewer.Owners(key, -1), func(name string) bool { return name == "y" || name == "z" })
			if more.weighted && !slices.Equal(a, b) {
				t.Fatalf("key %#x: the order of %v became %v", key, a, b)
			}
		}
	})
}

// share counts how many of the keys each node owns.
func share(r *Ring, keys []uint64) map[string]float64 {
	n := make(map[string]float64)
	for _, key := range keys {
		n[r.Owners(key, 1)[0]]++
	}
	return n
}

// tolerance is 6 standard deviations of a share of p in n keys: random keys
// exceed it once in 500 million.
func tolerance(n int, p float64) float64 { return 6 * math.Sqrt(float64(n)*p*(1-p)) }

func TestSharesAreEqual(t *testing.T) {
	const n = 6000
	rapid.Check(t, func(t *rapid.T) {
		nodes := names(t, 1, 16)
		p := 1 / float64(len(nodes))
		got := share(New(nodes...), keys(t, n))
		for _, name := range nodes {
			if d := math.Abs(got[name] - n*p); d > tolerance(n, p) {
				t.Fatalf("%s owns %v of %d keys, want %.0f ± %.0f", name, got[name], n, n*p, tolerance(n, p))
			}
		}
	})
}

func TestComingNodeTakesItsShareFromAll(t *testing.T) {
	const n = 6000
	rapid.Check(t, func(t *rapid.T) {
		nodes := names(t, 2, 10)
		more, fewer := New(nodes...), New(nodes[1:]...)
		moved := make(map[string]float64)
		for _, key := range keys(t, n) {
			if was, is := fewer.Owners(key, 1)[0], more.Owners(key, 1)[0]; was != is {
				if is != nodes[0] {
					t.Fatalf("key %#x moved from %s to %s when %s came", key, was, is, nodes[0])
				}
				moved[was]++
			}
		}
		p := 1 / float64(len(nodes)*(len(nodes)-1))
		for _, name := range nodes[1:] {
			if d := math.Abs(moved[name] - n*p); d > tolerance(n, p) {
				t.Fatalf("%s gave %v of %d keys, want %.0f ± %.0f", name, moved[name], n, n*p, tolerance(n, p))
			}
		}
	})
}

func TestSharesFollowWeights(t *testing.T) {
	const n = 6000
	rapid.Check(t, func(t *rapid.T) {
		var nodes []Node
		var total float64
		for _, name := range names(t, 1, 8) {
			w := rapid.Float64Range(0.5, 8).Draw(t, "weight")
			nodes = append(nodes, Node{name, w})
			total += w
		}
		r, err := NewWeighted(nodes...)
		if err != nil {
			t.Fatal(err)
		}
		got := share(r, keys(t, n))
		for _, node := range nodes {
			p := node.Weight / total
			if d := math.Abs(got[node.Name] - n*p); d > tolerance(n, p) {
				t.Fatalf("%v owns %v of %d keys, want %.0f ± %.0f", node, got[node.Name], n, n*p, tolerance(n, p))
			}
		}
	})
}

func TestEqualWeightsAreTheRingWithout(t *testing.T) {
	a := New("x", "y", "z")
	b, err := NewWeighted(Node{"z", 3}, Node{"x", 3}, Node{"y", 3})
	if err != nil {
		t.Fatal(err)
	}
	for key := range uint64(1000) {
		if x, y := a.Owners(key, -1), b.Owners(key, -1); !slices.Equal(x, y) {
			t.Fatalf("key %d: owners are %v without weights and %v with equal ones", key, x, y)
		}
	}
}

// The greatest score must not become an infinity of the wrong sign.
func TestExtremeScoresKeepTheirRank(t *testing.T) {
	low, high := weigh(0, 1), weigh(math.MaxUint64, 1)
	if !(low > 0) || !(high > low) || math.IsInf(high, 0) {
		t.Errorf("the least and the greatest score weigh %v and %v", low, high)
	}
}

func TestTiesGoToTheFirstName(t *testing.T) {
	r := &Ring{nodes: []node{{"a", 7, 1}, {"b", 7, 1}, {"c", 7, 1}}}
	for key := range uint64(100) {
		if got := r.Owners(key, -1); !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Fatalf("key %d: nodes with equal scores are in the order %v", key, got)
		}
	}
}

func TestEmptyRingOwnsNothing(t *testing.T) {
	for _, r := range []*Ring{{}, New()} {
		if got := r.Owners(1, 3); len(got) != 0 || r.Len() != 0 {
			t.Errorf("an empty ring of %d has owners %v", r.Len(), got)
		}
	}
}

func TestImpossibleNodesAreRefused(t *testing.T) {
	for name, nodes := range map[string][]Node{
		"twice":        {{"a", 1}, {"a", 2}},
		"no weight":    {{"a", 0}},
		"negative":     {{"a", 1}, {"b", -1}},
		"infinite":     {{"a", math.Inf(1)}},
		"not a number": {{"a", math.NaN()}},
	} {
		if r, err := NewWeighted(nodes...); err == nil {
			t.Errorf("%s: got a ring of %d nodes", name, r.Len())
		}
	}
}

func BenchmarkOwners(b *testing.B) {
	for _, n := range []int{3, 16, 128} {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("proxy%d.example.com:443", i))
		}
		r := New(names...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var key uint64
			for b.Loop() {
				key++
				r.Owners(key, 2)
			}
		})
	}
}
