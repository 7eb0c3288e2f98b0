package tree

import (
	"fmt"
	"sync/atomic"
	"testing"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// benchClient returns a client of a server on a real disk.
func benchClient(b *testing.B) *client {
	p, err := engine.OpenPebble(b.TempDir(), engine.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	w := &world{t: b, config: VolumeConfig{BlockSize: testBlockSize}}
	srv, err := New(Config{
		Engine: p, Authorize: authorize,
		Volumes: func(string) (VolumeConfig, error) { return w.config, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	w.srv = srv
	return w.hello("rw:")
}

// BenchmarkMake makes files in one directory, durably, from many callers.
func BenchmarkMake(b *testing.B) {
	c := benchClient(b)
	var caller atomic.Uint32
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		me := caller.Add(1)
		for i := uint32(1); pb.Next(); i++ {
			r := c.send(&meta.Request{
				Op: meta.OpMake, Slot: uint16(me), Seq: i, Ino: meta.Root, Name: fmt.Sprint(me, "-", i), Mode: reg,
			})
			if r.Errno != 0 {
				b.Error(r.Errno, r.Msg)
				return
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	c := benchClient(b)
	c.file(meta.Root, "f")
	for b.Loop() {
		c.send(on(meta.OpLookup, meta.Root, "f"))
	}
}
