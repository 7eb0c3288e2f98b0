package tree

import (
	"reflect"
	"testing"

	"flexfs/meta"
)

// What comes along with a lookup or a listing saves the question for the blocks of
// a file: the record of one block, with its contents if they are inline.
func TestTheOnlyBlockOfAFileComesAlong(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	d := c.dir(meta.Root, "d")
	for name, size := range map[string]uint64{"a inline": 5, "b empty": 0, "c one block": testBlockSize, "d hole": 100, "e two blocks": testBlockSize + 1, "f inline": 5} {
		commit := &meta.Request{Op: meta.OpCommit, Ino: c.file(d, name), Size: size}
		k := c.block(0, uint32(min(size, testBlockSize)))
		if size == 5 {
			k.Inline, k.Data = true, []byte("12345")
		}
		if size > 0 && size != 100 {
			commit.Blocks = []meta.Block{k}
		}
		c.ok(commit)
	}
	want := map[string]bool{"a inline": true, "c one block": true, "f inline": true}
	all := c.ok(&meta.Request{Op: meta.OpReaddir, Ino: d, Size: 1 << 20})
	if len(all.Entries) != 6 || !all.EOF || all.Attr.Ino != d {
		t.Fatalf("%d entries, EOF %v, of %d", len(all.Entries), all.EOF, all.Attr.Ino)
	}
	for _, e := range all.Entries {
		one := c.ok(on(meta.OpLookup, d, e.Name))
		if !reflect.DeepEqual(e.Attr, one.Attr) || !reflect.DeepEqual(e.Block, one.Block) {
			t.Errorf("%s is listed as %+v, %+v, and looked up as %+v, %+v", e.Name, e.Attr, e.Block, one.Attr, one.Block)
		}
		if got := e.Block != nil; got != want[e.Name] {
			t.Errorf("%s comes with its block: %v, want %v", e.Name, got, want[e.Name])
		}
	}
	if b := all.Entries[0].Block; b != nil && string(b.Data) != "12345" {
		t.Errorf("the contents are %q", b.Data)
	}
	if plain := c.ok(&meta.Request{Op: meta.OpReaddir, Ino: d, Plus: true}); plain.Entries[0].Block != nil {
		t.Error("blocks come along that nobody asked for")
	}
	part := c.ok(&meta.Request{Op: meta.OpReaddir, Ino: d, Size: 1})
	if len(part.Entries) != 1 || part.EOF {
		t.Errorf("%d entries come for a byte of contents, EOF %v", len(part.Entries), part.EOF)
	}
}
