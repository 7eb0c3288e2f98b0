package tree

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

// crash puts the world on what is found after a loss of power, with a server
// started anew.
func (w *world) crash(percent int, seed uint64) {
	w.t.Helper()
	e, err := w.engine.Crash(percent, seed)
	if err != nil {
		w.t.Fatalf("open after a crash: %v", err)
	}
	old := w.engine
	w.engine = e
	w.start()
	if err := old.Close(); err != nil {
		w.t.Errorf("close: %v", err)
	}
}

// changes are one of each operation that changes something, in an order in which
// all are possible: d is the answer to the first, f to the second.
func changes(c *client, d, f *meta.Ino) []func() *meta.Request {
	k := c.block(0, 100)
	size := meta.Attr{Size: 50}
	type R = meta.Request
	return []func() *R{
		func() *R { return &R{Op: meta.OpMake, Ino: meta.Root, Name: "d", Mode: dirm} },
		func() *R { return &R{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: reg} },
		func() *R { return &R{Op: meta.OpLink, Ino: *f, Ino2: *d, Name: "g"} },
		func() *R { return &R{Op: meta.OpCommit, Ino: *f, Size: 100, Blocks: []meta.Block{k}} },
		func() *R { return &R{Op: meta.OpSetattr, Ino: *f, Set: meta.SetSize, Attr: size} },
		func() *R { return &R{Op: meta.OpPunch, Ino: *f, Index: 0, Index2: 1} },
		func() *R { return &R{Op: meta.OpSetxattr, Ino: *f, Name: "user.a", Flags: xattrCreate} },
		func() *R { return &R{Op: meta.OpRemovexattr, Ino: *f, Name: "user.a"} },
		func() *R { return renaming(meta.Root, "f", *d, "h", renameNoReplace) },
		func() *R { return &R{Op: meta.OpUnlink, Ino: *d, Name: "g"} },
		func() *R { return &R{Op: meta.OpUnlink, Ino: *d, Name: "h"} },
		func() *R { return &R{Op: meta.OpClose, Inos: []meta.Ino{*f}} },
		func() *R { return &R{Op: meta.OpRmdir, Ino: meta.Root, Name: "d"} },
	}
}

func encoded(r *meta.Reply) []byte {
	plain := *r
	plain.Cache = false
	return plain.Append(nil)
}

func TestARepeatedChangeGetsTheFirstAnswer(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash %v", crash), func(t *testing.T) {
			w := newWorld(t)
			c := w.hello("rw:")
			var inos [2]meta.Ino
			for i, change := range changes(c, &inos[0], &inos[1]) {
				req := change()
				first := c.ok(req)
				if i < len(inos) {
					inos[i] = first.Attr.Ino
				}
				if crash {
					w.crash(i%2*50, uint64(i))
					if r := c.resume(&meta.Request{}); r.Errno != 0 || r.Cache {
						t.Fatalf("resume: %+v", r)
					}
				}
				before := c.tree()
				if again := c.send(req); !bytes.Equal(encoded(again), encoded(first)) {
					t.Errorf("%v: first %+v, then %+v", req.Op, first, again)
				}
				if after := c.tree(); after != before {
					t.Errorf("%v was done twice: before\n%safter\n%s", req.Op, before, after)
				}
				w.check()
			}
		})
	}
}

func TestANumberBehindItsSlotIsRefused(t *testing.T) {
	w := newWorld(t)
	c := w.hello("rw:")
	for seq := range uint32(3) {
		c.ok(&meta.Request{Op: meta.OpMake, Seq: seq + 1, Ino: meta.Root, Name: fmt.Sprint(seq), Mode: reg})
	}
	c.refused(syscall.EINVAL, &meta.Request{Op: meta.OpMake, Seq: 2, Ino: meta.Root, Name: "x", Mode: reg})
	c.refused(syscall.EINVAL, &meta.Request{Op: meta.OpMake, Seq: 1, Slot: slots, Ino: meta.Root, Name: "x", Mode: reg})
	if r := c.send(&meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "x", Mode: reg}); r.Errno != syscall.EINVAL {
		t.Errorf("without a number: %v", r.Errno)
	}
}

// A diary is what one worker of a crash test knows. A name is unlinked once.
type diary struct {
	mu       sync.Mutex
	made     map[string]bool // acknowledged
	tried    map[string]bool // its unlink was sent
	unlinked map[string]bool // acknowledged
}

func (d *diary) note(m map[string]bool, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m[name] = true
}

func (d *diary) copy(m map[string]bool) map[string]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]bool, len(m))
	for k := range m {
		out[k] = true
	}
	return out
}

func (d *diary) work(c *client, slot uint16, dir meta.Ino, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprint(i)
		r := c.send(&meta.Request{Op: meta.OpMake, Slot: slot, Seq: uint32(2*i + 1), Ino: dir, Name: name, Mode: reg})
		if r.Errno == 0 {
			d.note(d.made, name)
		}
		if i%3 == 0 {
			d.note(d.tried, name)
			r := c.send(&meta.Request{Op: meta.OpUnlink, Slot: slot, Seq: uint32(2*i + 2), Ino: dir, Name: name})
			if r.Errno == 0 {
				d.note(d.unlinked, name)
			}
		}
	}
}

func TestAfterACrashEveryAcknowledgedChangeIsThere(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w := newWorld(t)
			w.config.Retention = time.Duration(seed%2) * time.Hour
			c := w.hello("rw:")
			var diaries []*diary
			var dirs []meta.Ino
			var wg sync.WaitGroup
			stop := make(chan struct{})
			for i := range uint16(4) {
				d := &diary{made: map[string]bool{}, tried: map[string]bool{}, unlinked: map[string]bool{}}
				dir := c.dir(meta.Root, fmt.Sprint(i))
				diaries, dirs = append(diaries, d), append(dirs, dir)
				wg.Go(func() { d.work(c, i+1, dir, stop) })
			}
			rng := rand.New(rand.NewPCG(seed, 2))
			time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond) // any moment will do
			var made, unlinked []map[string]bool
			for _, d := range diaries {
				unlinked = append(unlinked, d.copy(d.unlinked))
				made = append(made, d.copy(d.made))
			}
			e, err := w.engine.Crash(int(seed%3)*50, seed)
			close(stop)
			wg.Wait()
			if err != nil {
				t.Fatal(err)
			}
			w.engine.Close()
			w.engine = e
			w.start()
			w.check()
			c.resume(&meta.Request{})
			for i, d := range diaries {
				for name := range made[i] {
					if !d.tried[name] {
						c.ok(on(meta.OpLookup, dirs[i], name))
					}
				}
				for name := range unlinked[i] {
					c.refused(syscall.ENOENT, on(meta.OpLookup, dirs[i], name))
				}
			}
		})
	}
}

func TestClientsAtWorkTogetherLeaveASoundTree(t *testing.T) {
	w := newWorld(t)
	w.config.Retention = time.Hour
	first := w.hello("rw:")
	dirs := []meta.Ino{meta.Root}
	for i := range 5 {
		dirs = append(dirs, first.dir(dirs[i/2], fmt.Sprint("dir", i)))
	}
	var wg sync.WaitGroup
	for i := range uint64(3) {
		c := w.hello("rw:")
		for slot := range uint16(3) {
			wg.Go(func() { scramble(c, slot, dirs, rand.New(rand.NewPCG(i, uint64(slot)))) })
		}
	}
	wg.Wait()
}

// scramble does operations whose outcome depends on others.
func scramble(c *client, slot uint16, dirs []meta.Ino, rng *rand.Rand) {
	for range 150 {
		a, b := dirs[rng.IntN(len(dirs))], dirs[rng.IntN(len(dirs))]
		x, y := string(rune('a'+rng.IntN(4))), string(rune('a'+rng.IntN(4)))
		req := &meta.Request{Slot: slot, Ino: a, Name: x}
		switch rng.IntN(7) {
		case 0:
			req.Op, req.Mode = meta.OpMake, reg
		case 1:
			req.Op, req.Mode = meta.OpMake, dirm
		case 2:
			req = renaming(a, x, b, y, uint32(rng.IntN(3)))
			req.Slot = slot
		case 3:
			req = renaming(a, fmt.Sprint("dir", rng.IntN(5)), b, fmt.Sprint("dir", rng.IntN(5)), uint32(rng.IntN(3)))
			req.Slot = slot
		case 4:
			req.Op = meta.OpUnlink
		case 5:
			req.Op = meta.OpRmdir
		case 6:
			if r := c.send(on(meta.OpLookup, a, x)); r.Errno == 0 {
				req = &meta.Request{Op: meta.OpLink, Slot: slot, Ino: r.Attr.Ino, Ino2: b, Name: y}
			} else {
				continue
			}
		}
		c.seq[slot]++
		req.Seq = c.seq[slot]
		if r := c.send(req); r.Errno == syscall.EIO {
			c.t.Errorf("%v: %s", req.Op, r.Msg)
		}
	}
}
