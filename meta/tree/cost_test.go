package tree

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A cost is what an operation asks of the engine.
type cost struct{ gets, scans, writes, updates, waits, bytes int }

// A tally is an Engine that counts.
type tally struct {
	engine.Engine
	cost
}

func (m *tally) View(ctx context.Context, fn func(engine.Reader) error) error {
	return m.Engine.View(ctx, func(r engine.Reader) error { return fn(tallyReader{r, m}) })
}

func (m *tally) Update(ctx context.Context, locks [][]byte, fn func(engine.Tx) error) (engine.Commit, error) {
	m.updates++
	c, err := m.Engine.Update(ctx, locks, func(tx engine.Tx) error { return fn(tallyTx{tx, tallyReader{tx, m}}) })
	return waitCommit{c, func() { m.waits++ }}, err
}

type tallyReader struct {
	engine.Reader
	m *tally
}

func (r tallyReader) Get(key []byte) ([]byte, error) {
	r.m.gets++
	return r.Reader.Get(key)
}

func (r tallyReader) MGet(keys ...[]byte) ([][]byte, error) {
	r.m.gets += len(keys)
	return r.Reader.MGet(keys...)
}

func (r tallyReader) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	r.m.scans++
	return r.Reader.Scan(from, to, reverse, fn)
}

type tallyTx struct {
	engine.Tx
	r tallyReader
}

func (t tallyTx) Get(key []byte) ([]byte, error)        { return t.r.Get(key) }
func (t tallyTx) MGet(keys ...[]byte) ([][]byte, error) { return t.r.MGet(keys...) }
func (t tallyTx) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	return t.r.Scan(from, to, reverse, fn)
}

func (t tallyTx) Put(key, value []byte) error {
	t.r.m.wrote(len(key) + len(value))
	return t.Tx.Put(key, value)
}

func (t tallyTx) Delete(key []byte) error {
	t.r.m.wrote(len(key))
	return t.Tx.Delete(key)
}

func (t tallyTx) Add(key []byte, delta int64) error {
	t.r.m.wrote(len(key) + 8)
	return t.Tx.Add(key, delta)
}

func (m *tally) wrote(n int) {
	m.writes++
	m.bytes += n
}

// The bytes include names, times and numbers, which are the same in every run. Who
// makes an operation cheaper changes the table; who makes it dearer should know why.
func TestWhatAnOperationAsksOfTheEngine(t *testing.T) {
	contents := make([]byte, 512)
	for _, tc := range []struct {
		name   string
		second bool // another change of the directory was in the same second
		old    bool // the file is of an earlier second
		do     func(c *client, dir, file meta.Ino)
		want   cost
	}{
		{name: "lookup", want: cost{gets: 4}, old: true, do: func(c *client, dir, _ meta.Ino) { c.ok(on(meta.OpLookup, dir, "file")) }},
		{name: "lookup of what is not there", want: cost{gets: 2}, do: func(c *client, dir, _ meta.Ino) { c.do(on(meta.OpLookup, dir, "x")) }},
		{name: "make", want: cost{gets: 2, writes: 7, updates: 1, waits: 1, bytes: 472}, second: true, do: func(c *client, dir, _ meta.Ino) { c.file(dir, "new") }},
		{name: "make, the first of a second", want: cost{gets: 2, writes: 9, updates: 1, waits: 1, bytes: 645}, old: true, do: func(c *client, dir, _ meta.Ino) { c.file(dir, "new") }},
		{name: "commit to a new file", want: cost{gets: 2, writes: 3, updates: 1, waits: 1, bytes: 753}, do: func(c *client, _, file meta.Ino) { c.commitInline(file, contents) }},
		{name: "commit to an old file", want: cost{gets: 2, writes: 7, updates: 1, waits: 1, bytes: 1526}, old: true, do: func(c *client, _, file meta.Ino) { c.commitInline(file, contents) }},
		{name: "a small file in a compound", want: cost{gets: 4, writes: 11, updates: 2, waits: 1, bytes: 1239}, second: true, do: func(c *client, dir, _ meta.Ino) {
			c.ok(&meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
				{Op: meta.OpMake, Slot: 7, Seq: 1, Ino: dir, Name: "new", Mode: reg},
				{Op: meta.OpCommit, Slot: 8, Seq: 1, Size: 512, Blocks: []meta.Block{c.inline(contents)}},
			}})
		}},
		{name: "a small file that was made by the client", want: cost{gets: 3, writes: 10, updates: 1, waits: 1, bytes: 1074}, second: true, do: func(c *client, dir, _ meta.Ino) {
			c.ok(&meta.Request{
				Op: meta.OpMake, Slot: 7, Seq: 1, Ino: dir, Name: "new", Mode: reg, Ino2: c.reserved, Delegate: true,
				Size: 512, Blocks: []meta.Block{c.inline(contents)},
			})
		}},
		{name: "chmod", want: cost{gets: 1, writes: 4, updates: 1, waits: 1, bytes: 375}, old: true, do: func(c *client, _, file meta.Ino) {
			c.ok(&meta.Request{Op: meta.OpSetattr, Ino: file, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o600}})
		}},
		{name: "unlink", want: cost{gets: 3, writes: 12, updates: 1, waits: 1, bytes: 712}, old: true, second: true, do: func(c *client, dir, _ meta.Ino) { c.ok(on(meta.OpUnlink, dir, "file")) }},
		{name: "unlink of a new file", want: cost{gets: 3, writes: 8, updates: 1, waits: 1, bytes: 465}, second: true, do: func(c *client, dir, _ meta.Ino) { c.ok(on(meta.OpUnlink, dir, "file")) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.config.Retention = time.Hour
				w.start()
				c := w.hello("rw:")
				dir := c.dir(meta.Root, "dir")
				next := func() {
					time.Sleep(time.Second)
					c.dir(meta.Root, fmt.Sprint(time.Now().Unix())) // the first change of a second has more to do
				}
				if next(); !tc.old {
					next()
				}
				file := c.file(dir, "file")
				c.commitInline(file, contents)
				if tc.old {
					next()
				}
				if tc.second {
					c.file(dir, "other")
				}
				c.reserved = c.numbers(1)
				m := &tally{Engine: w.engine}
				w.srv.cfg.Engine = m
				tc.do(c, dir, file)
				if m.cost != tc.want {
					t.Errorf("{gets scans writes updates waits bytes} is %+v, want %+v", m.cost, tc.want)
				}
			})
		})
	}
}

// inline returns a record of block 0 with its bytes.
func (c *client) inline(data []byte) meta.Block {
	k := c.block(0, uint32(len(data)))
	k.Inline, k.Data = true, data
	return k
}

func (c *client) commitInline(file meta.Ino, data []byte) {
	c.t.Helper()
	c.ok(&meta.Request{Op: meta.OpCommit, Ino: file, Size: uint64(len(data)), Blocks: []meta.Block{c.inline(data)}})
}
