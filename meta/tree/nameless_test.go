package tree

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

func (c *client) nameless(dir meta.Ino) meta.Ino {
	c.t.Helper()
	reply := c.ok(&meta.Request{Op: meta.OpMake, Ino: dir, Mode: reg})
	if reply.Attr.Nlink != 0 || reply.Parent.Ino != 0 {
		c.t.Errorf("a file without a name has %d links, and directory %d changed", reply.Attr.Nlink, reply.Parent.Ino)
	}
	return reply.Attr.Ino
}

func TestAFileWithoutANameIsForItsSessionUntilItGetsOne(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	was := a.ok(&meta.Request{Op: meta.OpStatfs}).Statfs
	d := a.dir(meta.Root, "d")
	before := a.attr(d)
	f := a.nameless(d)
	a.write(f, 0, 2)
	if got := a.attr(d); got != before {
		t.Errorf("its directory changed: %+v, it was %+v", got, before)
	}
	if got := a.ok(&meta.Request{Op: meta.OpStatfs}).Statfs; got.Bytes != was.Bytes || got.Inodes != was.Inodes+1 {
		t.Errorf("%+v in use before it has a name; it was %+v", got, was)
	}
	w.check()
	naming := func(name string) *meta.Request {
		return &meta.Request{Op: meta.OpLink, Ino: f, Ino2: d, Name: name}
	}
	b.refused(syscall.ENOENT, naming("b"))
	if got := a.ok(naming("a")).Attr; got.Nlink != 1 || got.Size != 2*testBlockSize {
		t.Errorf("%+v when it has a name", got)
	}
	if got := b.ok(on(meta.OpLookup, d, "a")).Attr; got.Ino != f {
		t.Errorf("another finds inode %d, want %d", got.Ino, f)
	}
	if got := a.ok(&meta.Request{Op: meta.OpStatfs}).Statfs; got.Bytes != was.Bytes+2*testBlockSize || got.Inodes != was.Inodes+2 {
		t.Errorf("%+v in use when it has a name; it was %+v", got, was)
	}
	w.check()
}

func TestAFileWithoutANameGoesWithItsLastUse(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, w *world, c *client, f meta.Ino){
		"when it is closed": func(t *testing.T, w *world, c *client, f meta.Ino) {
			c.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{f}})
			defer c.pinging(t)()
			time.Sleep(time.Hour)
		},
		"when its client is dead": func(*testing.T, *world, *client, meta.Ino) { time.Sleep(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.run(t)
				c := w.hello("rw:")
				f, named := c.nameless(meta.Root), c.nameless(meta.Root)
				c.write(f, 0, 3)
				c.write(named, 0, 3)
				c.ok(&meta.Request{Op: meta.OpLink, Ino: named, Ino2: meta.Root, Name: "named"})
				stop := c.pinging(t)
				time.Sleep(time.Hour)
				c.attr(f)
				if n := w.deletes(); n != 0 {
					t.Errorf("%d blocks were deleted while it was in use", n)
				}
				stop()
				end(t, w, c, f)
				if n := w.deletes(); n != 3 {
					t.Errorf("%d blocks were deleted, want 3", n)
				}
				d := w.hello("rw:")
				d.refused(syscall.ENOENT, on(meta.OpGetattr, f, ""))
				d.attr(named)
			})
		})
	}
}
