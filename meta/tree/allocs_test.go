package tree

import (
	"fmt"
	"log/slog"
	"testing"

	"flexfs/meta"
)

// TestAllocationsPerOperation bounds what an operation allocates on both sides,
// from Client.Do to the engine and back: a fifth more than it is. The goroutines in
// the background count, too.
func TestAllocationsPerOperation(t *testing.T) {
	w := newWorld(t)
	local := meta.Direct(w.srv, slog.New(slog.DiscardHandler))
	defer local.Close()
	c := meta.NewClient(meta.ClientConfig{Dial: local.Dial, Token: func() string { return "rw:" }, Volume: testVolume})
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	do := func(req *meta.Request) *meta.Reply {
		reply, err := c.Do(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	const runs = 300
	names := make([]string, runs+1) // made before, so as not to count
	for i := range names {
		names[i] = fmt.Sprint("file", i)
	}
	var inos []meta.Ino
	n := 0
	each := func(fn func(i int)) func() {
		n = 0
		return func() { fn(n); n++ }
	}
	block := []meta.Block{{Gen: meta.Gen{Session: c.Session(), Seq: 1}, Len: 100, Inline: true, Data: make([]byte, 100), Whole: true}}
	for _, tc := range []struct {
		name string
		most float64
		run  func(i int)
	}{
		{"make", 78, func(i int) {
			inos = append(inos, do(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: names[i], Mode: reg}).Attr.Ino)
		}},
		{"commit", 69, func(i int) { do(&meta.Request{Op: meta.OpCommit, Ino: inos[i], Size: 100, Blocks: block}) }},
		{"lookup", 60, func(i int) { do(&meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: names[i]}) }},
		{"getattr", 52, func(i int) { do(&meta.Request{Op: meta.OpGetattr, Ino: inos[i]}) }},
		{"setattr", 62, func(i int) { do(&meta.Request{Op: meta.OpSetattr, Ino: inos[i], Set: meta.SetMode}) }},
		{"unlink", 96, func(i int) { do(&meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: names[i]}) }},
	} {
		if got := testing.AllocsPerRun(runs, each(tc.run)); got > tc.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", tc.name, got, tc.most)
		}
	}
}
