package tree

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A meter counts what transactions read and write.
type meter struct {
	engine.Engine
	n int
}

func (m *meter) Update(ctx context.Context, locks [][]byte, fn func(engine.Tx) error) (engine.Commit, error) {
	return m.Engine.Update(ctx, locks, func(tx engine.Tx) error { return fn(&metered{tx, m}) })
}

type metered struct {
	engine.Tx
	m *meter
}

func (tx *metered) Get(key []byte) ([]byte, error) {
	tx.m.n++
	return tx.Tx.Get(key)
}

func (tx *metered) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	return tx.Tx.Scan(from, to, reverse, func(key, value []byte) (bool, error) {
		tx.m.n++
		return fn(key, value)
	})
}

func (tx *metered) Put(key, value []byte) error {
	tx.m.n++
	return tx.Tx.Put(key, value)
}

func (tx *metered) Delete(key []byte) error {
	tx.m.n++
	return tx.Tx.Delete(key)
}

func cutting(ino meta.Ino, size uint64) *meta.Request {
	return &meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetSize, Attr: meta.Attr{Size: size}}
}

// What a cut costs does not depend on what it takes away.
func TestAHugeFileIsCutAtOnceAndTheRestIsCollectedInSteps(t *testing.T) {
	synctest.Test(t, cutHuge)
}

func cutHuge(t *testing.T) {
	w := newWorld(t)
	w.keep, w.step = 1, blockStep
	w.start()
	c := w.hello("rw:")
	const blocks, kept = 20_000, 50
	f, whole := c.file(meta.Root, "f"), c.file(meta.Root, "whole")
	c.write(f, 0, blocks)
	c.write(whole, 0, blocks)

	m := &meter{Engine: w.engine}
	w.srv.cfg.Engine = m
	cost := func(req *meta.Request) int {
		m.n = 0
		c.ok(req)
		return m.n
	}
	const look = 2 * blockStep // to see that it is much
	if n := cost(cutting(whole, 0)); n > 2*look {
		t.Errorf("a cut to nothing read and wrote %d records", n)
	}
	if n := cost(cutting(f, kept*testBlockSize-1)); n > 2*look+20*kept {
		t.Errorf("a cut that left %d blocks read and wrote %d records", kept, n)
	}
	w.srv.cfg.Engine = w.engine

	if st := w.srv.volumes[testVolume].statfs(); st.Bytes != kept*testBlockSize-1 || st.Inodes != 3 {
		t.Errorf("df after the cuts: %+v", st)
	}
	c.ok(cutting(f, blocks*testBlockSize))
	c.write(f, blocks/2, blocks/2+1)
	wantBlocks := func(when string) {
		t.Helper()
		list := c.records(f)
		if len(list) != kept+1 || list[kept-1].Len != testBlockSize-1 || list[kept].Index != blocks/2 || len(c.records(whole)) != 0 {
			t.Errorf("%s: %d blocks are left, and %d where none should be", when, len(list), len(c.records(whole)))
		}
		w.check()
	}
	wantBlocks("after the cut")

	v := w.srv.volumes[testVolume]
	body := v.bodyKey(f, 0)
	for step := range 3 { // each on a server of its own
		records, err := v.someRecords(t.Context(), body, after(body))
		if err == nil {
			err = v.collectBlocks(t.Context(), f, records)
		}
		if err != nil || len(records) != refsPerRecord {
			t.Fatalf("a step removed %d records: %v", len(records), err)
		}
		w.crash(50, uint64(step))
		v = w.srv.volumes[testVolume]
		c.resume(&meta.Request{})
		wantBlocks("after a crash")
	}
	time.Sleep(time.Minute)
	for w.srv.collect(t.Context()) {
	}
	wantBlocks("in the end")
	if n := w.deletes(); n != 2*blocks-kept {
		t.Errorf("%d objects were deleted, want %d", n, 2*blocks-kept)
	}
	if n := w.count(t, tableInode); n != 3+kept+1 {
		t.Errorf("%d records are left", n)
	}
}

// A sparseFile is a model of one: its size and its blocks.
type sparseFile struct {
	size   uint64
	blocks map[uint32]meta.Block
}

func (s *sparseFile) copy() sparseFile { return sparseFile{s.size, maps.Clone(s.blocks)} }

func (s *sparseFile) cut(size uint64) {
	for i, k := range s.blocks {
		if start := uint64(i) * testBlockSize; start >= size {
			delete(s.blocks, i)
		} else {
			k.Cut(uint32(min(uint64(k.Len), size-start)))
			s.blocks[i] = k
		}
	}
	s.size = size
}

// describe says what a file is, like a session that looks at it.
func (s *sparseFile) describe(ino meta.Ino) string {
	out := fmt.Sprint(s.size, " bytes:")
	for _, i := range slices.Sorted(maps.Keys(s.blocks)) {
		k := s.blocks[i]
		out += fmt.Sprintf(" %d %v %d;", i, refOf(ino, &k), k.Len)
	}
	return out
}

// look says what a session sees of a file.
func (c *client) look(ino meta.Ino) string {
	c.t.Helper()
	reply := c.ok(&meta.Request{Op: meta.OpBlocks, Ino: ino})
	s := sparseFile{size: reply.Attr.Size, blocks: map[uint32]meta.Block{}}
	var bytes uint64
	for _, k := range reply.Blocks {
		s.blocks[k.Index] = k
		bytes += uint64(k.Len)
	}
	if bytes != reply.Attr.Bytes {
		c.t.Errorf("inode %d says %d bytes are stored, its blocks have %d", ino, reply.Attr.Bytes, bytes)
	}
	return s.describe(ino)
}

// A cutter does random things to files and to a model of them.
type cutter struct {
	*rand.Rand
	w     *world
	c     *client
	inos  []meta.Ino
	files []*sparseFile
}

const cutterBlocks = 16 // of a file, at most

func (p *cutter) step() string {
	i := p.IntN(len(p.files))
	ino, file := p.inos[i], p.files[i]
	at, n := p.Uint32N(cutterBlocks-4), 1+p.Uint32N(4)
	switch p.IntN(8) {
	case 0, 1, 2:
		size := p.Uint64N(cutterBlocks * testBlockSize)
		if p.IntN(3) == 0 {
			size = uint64(p.IntN(3)) * testBlockSize
		}
		p.c.ok(cutting(ino, size))
		file.cut(size)
		return fmt.Sprintf("file %d gets %d bytes", i, size)
	case 3, 4, 5:
		var list []meta.Block
		for j := range n {
			list = append(list, p.c.block(at+j, testBlockSize))
			file.blocks[at+j] = list[j]
		}
		p.w.upload(ino, list...)
		p.c.ok(&meta.Request{Op: meta.OpCommit, Ino: ino, Size: uint64(at+n) * testBlockSize, Blocks: list})
		file.size = max(file.size, uint64(at+n)*testBlockSize)
		return fmt.Sprintf("file %d is written from block %d on: %d", i, at, n)
	case 6:
		p.c.ok(&meta.Request{Op: meta.OpPunch, Ino: ino, Index: at, Index2: at + n})
		for j := range n {
			delete(file.blocks, at+j)
		}
		return fmt.Sprintf("file %d is punched from block %d on: %d", i, at, n)
	}
	return p.clone(i, p.IntN(len(p.files)), at, p.Uint32N(cutterBlocks-4), n)
}

func (p *cutter) clone(i, j int, from, to, n uint32) string {
	there := uint32(p.files[i].size / testBlockSize) // a clone of more is refused
	n = min(n, there-min(from, there))
	what := fmt.Sprintf("file %d from %d on becomes file %d from %d on: %d", i, from, j, to, n)
	if i == j || n == 0 {
		return what + ", which is not done"
	}
	req := cloning(p.inos[i], from, p.inos[j], to, n)
	req.Size = max(req.Size, p.files[j].size)
	p.c.ok(req)
	target := p.files[j]
	target.size = req.Size
	for k := range n {
		delete(target.blocks, to+k)
		source, ok := p.files[i].blocks[from+k]
		if !ok {
			continue
		}
		source.Origin = source.Object(p.inos[i])
		source.Index = to + k
		target.blocks[to+k] = source
	}
	return what
}

// Files are cut, extended, written, punched and cloned, with a collector that the
// bucket fails at times and servers that crash. What is there, and what was at
// every second of the window, is what the model says, and all its objects are in
// the bucket.
func TestCutsAreRightWhateverComesBetween(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { cutAtRandom(t, seed) })
		})
	}
}

func cutAtRandom(t *testing.T, seed uint64) {
	w := newBucketWorld(t)
	const retention = 20
	w.keep, w.step, w.config.Retention = time.Second, 1+int(seed%4), retention*time.Second
	w.start()
	p := &cutter{Rand: rand.New(rand.NewPCG(seed, 11)), w: w, c: w.hello("rw:")}
	for i := range 3 {
		p.inos = append(p.inos, p.c.file(meta.Root, fmt.Sprint(i)))
		p.files = append(p.files, &sparseFile{blocks: map[uint32]meta.Block{}})
	}
	history := map[int64][]sparseFile{}
	for range 150 {
		var done []string
		if p.IntN(6) == 0 {
			w.crash(p.IntN(3)*50, p.Uint64())
			if r := p.c.resume(&meta.Request{}); r.Errno != 0 {
				t.Fatal(r.Msg)
			}
			done = append(done, "crash")
		}
		for range p.IntN(5) {
			done = append(done, p.step())
		}
		if p.IntN(2) == 0 {
			w.mu.Lock()
			if w.bucketErr = nil; p.IntN(4) == 0 {
				w.bucketErr = syscall.EIO
			}
			w.mu.Unlock()
			w.srv.collect(t.Context())
			done = append(done, "collected")
		}
		w.check()
		w.complete(fmt.Sprint(done))
		var was []sparseFile
		for i, ino := range p.inos {
			was = append(was, p.files[i].copy())
			if got, want := p.c.look(ino), was[i].describe(ino); got != want {
				t.Fatalf("after %v: file %d has\n%s\nand should have\n%s", done, i, got, want)
			}
		}
		now := w.srv.volumes[testVolume].now()
		history[now] = was
		time.Sleep(time.Second)
		p.comparePast(now-p.Int64N(retention), history)
		if t.Failed() {
			t.Fatalf("after %v", done)
		}
	}
	p.end()
}

// comparePast compares a second of the window with what was there.
func (p *cutter) comparePast(second int64, history map[int64][]sparseFile) {
	was, ok := history[second]
	if !ok {
		return
	}
	c, reply := p.w.helloAt(second)
	if reply.Errno != 0 {
		p.c.t.Errorf("second %d: %s", second, reply.Msg)
		return
	}
	named := p.w.references()
	for i, ino := range p.inos {
		if got, want := c.look(ino), was[i].describe(ino); got != want {
			p.c.t.Errorf("in second %d file %d had\n%s\nand is said to have had\n%s", second, i, want, got)
		}
		for _, k := range was[i].blocks {
			if why := named[refOf(ino, &k)]; why != InFile && why != InPast {
				p.c.t.Errorf("in second %d file %d had %v, which is needed by %v", second, i, refOf(ino, &k), why)
			}
		}
	}
	c.bye()
}

// end lets the collector remove all that is not needed.
func (p *cutter) end() {
	p.w.mu.Lock()
	p.w.bucketErr = nil
	p.w.mu.Unlock()
	time.Sleep(time.Minute)
	for p.w.srv.collect(context.Background()) {
	}
	needed := p.w.references()
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for ref := range p.w.bucket {
		if needed[ref] != InFile {
			p.c.t.Errorf("object %v stays, and %v needs it", ref, needed[ref])
		}
	}
}
