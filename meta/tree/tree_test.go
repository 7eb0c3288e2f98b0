package tree

import (
	"testing"

	"flexfs/meta"
)

func TestAFileIsMadeWrittenFoundAndRemoved(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	ino := c.file(meta.Root, "a")
	c.write(ino, 0, 3)
	got := c.ok(&meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: "a"})
	if got.Attr.Ino != ino || got.Attr.Size != 3*testBlockSize || got.Attr.Bytes != 3*testBlockSize || !got.Cache {
		t.Errorf("lookup: %+v", got)
	}
	blocks := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino})
	if len(blocks.Blocks) != 3 || !blocks.EOF {
		t.Errorf("blocks: %+v", blocks)
	}
	if got := c.names(meta.Root); got != "[a]" {
		t.Errorf("names %s", got)
	}
	gone := c.ok(&meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: "a"})
	if gone.Attr.Nlink != 0 || gone.Parent.Size != 0 {
		t.Errorf("unlink: %+v", gone)
	}
	c.attr(ino) // it is in use
}
