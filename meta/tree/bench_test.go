package tree

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A bench is a client of a server on a real disk, with the frames and the codec
// between them, and a directory for each caller.
type bench struct {
	*meta.Client
	dirs []meta.Ino
}

// callers is how many a benchmark has at a time, as programs on a mount would be.
const callers = 16

func newBench(b testing.TB) *bench {
	b.Helper()
	p, err := engine.OpenPebble(b.TempDir(), engine.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	srv, err := New(Config{
		Engine: p, Authorize: authorize,
		Volumes: func(string) (VolumeConfig, error) {
			return VolumeConfig{BlockSize: 4 << 20, InlineMax: 8 << 10, Retention: 7 * 24 * time.Hour}, nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	c := meta.NewClient(meta.ClientConfig{Dial: serve(b, srv), Token: func() string { return "rw:" }, Volume: testVolume})
	if err := c.Connect(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	w := &bench{Client: c}
	for i := range callers {
		w.dirs = append(w.dirs, w.do(b, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: fmt.Sprint("d", i), Mode: dirm}).Attr.Ino)
	}
	return w
}

// serve serves h over TCP, and returns how to reach it.
func serve(t testing.TB, h meta.Handler) func(context.Context) (net.Conn, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- meta.Serve(ctx, ln, h, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		<-served
	})
	return meta.Dial(ln.Addr().String(), nil)
}

func (w *bench) do(t testing.TB, req *meta.Request) *meta.Reply {
	reply, err := w.Do(context.Background(), req)
	if err != nil {
		t.Error(err)
		return new(meta.Reply)
	}
	for i := range reply.Replies {
		if r := &reply.Replies[i]; r.Errno != 0 {
			t.Errorf("part %d: %v %s", i, r.Errno, r.Msg)
		}
	}
	return reply
}

// each calls fn for each of b.N files from all callers, and reports how much CPU
// time one takes on both sides together.
func (w *bench) each(b *testing.B, fn func(dir meta.Ino, i int)) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime()
	w.spread(b.N, fn)
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e3, "cpu-us/op")
	b.StopTimer()
}

// spread calls fn for 0 <= i < n from all callers, each in a directory of its own.
func (w *bench) spread(n int, fn func(dir meta.Ino, i int)) {
	var left atomic.Int64
	done := make(chan bool)
	for k, dir := range w.dirs {
		left.Add(1)
		go func() {
			for i := k; i < n; i += len(w.dirs) {
				fn(dir, i)
			}
			if left.Add(-1) == 0 {
				close(done)
			}
		}()
	}
	<-done
}

// alone makes it one caller.
func (w *bench) alone() *bench {
	w.dirs = w.dirs[:1]
	return w
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var contents = bytes.Repeat([]byte("some words "), 4096/11)

// create returns what a mount sends for a small file.
func (w *bench) create(dir meta.Ino, i int) *meta.Request {
	k := meta.Block{Gen: meta.Gen{Session: w.Session(), Seq: uint64(i + 1)}, Len: 4096, Inline: true, Data: contents, Whole: true}
	return &meta.Request{Op: meta.OpCompound, Ops: []meta.Request{
		{Op: meta.OpMake, Ino: dir, Name: fmt.Sprint("file", i), Mode: reg},
		{Op: meta.OpCommit, Size: 4096, Blocks: []meta.Block{k}},
	}}
}

func BenchmarkMake(b *testing.B) {
	w := newBench(b)
	w.each(b, func(dir meta.Ino, i int) {
		w.do(b, &meta.Request{Op: meta.OpMake, Ino: dir, Name: fmt.Sprint("file", i), Mode: reg})
	})
}

func BenchmarkCreate(b *testing.B) {
	w := newBench(b)
	w.each(b, func(dir meta.Ino, i int) { w.do(b, w.create(dir, i)) })
}

// BenchmarkCreateAlone is BenchmarkCreate with one caller: what it takes to wake
// everybody up.
func BenchmarkCreateAlone(b *testing.B) {
	w := newBench(b).alone()
	w.each(b, func(dir meta.Ino, i int) { w.do(b, w.create(dir, i)) })
}

// BenchmarkMakeThenCommit is BenchmarkCreate with two requests.
func BenchmarkMakeThenCommit(b *testing.B) {
	w := newBench(b)
	w.each(b, func(dir meta.Ino, i int) {
		q := w.create(dir, i)
		q.Ops[1].Ino = w.do(b, &q.Ops[0]).Attr.Ino
		w.do(b, &q.Ops[1])
	})
}

func BenchmarkUnlink(b *testing.B) {
	w := newBench(b)
	w.spread(b.N, func(dir meta.Ino, i int) { w.do(b, w.create(dir, i)) })
	w.each(b, func(dir meta.Ino, i int) {
		w.do(b, &meta.Request{Op: meta.OpUnlink, Ino: dir, Name: fmt.Sprint("file", i)})
	})
}

func BenchmarkLookup(b *testing.B) {
	w := newBench(b)
	const files = 10_000
	w.spread(files, func(dir meta.Ino, i int) { w.do(b, w.create(dir, i)) })
	w.each(b, func(dir meta.Ino, i int) {
		w.do(b, &meta.Request{Op: meta.OpLookup, Ino: dir, Name: fmt.Sprint("file", i%files)})
	})
}

// BenchmarkReaddir lists a directory of 1000 files with their attributes.
func BenchmarkReaddir(b *testing.B) {
	w := newBench(b)
	for i := range 1000 {
		w.do(b, w.create(w.dirs[0], i))
	}
	b.ResetTimer()
	w.each(b, func(meta.Ino, int) {
		w.do(b, &meta.Request{Op: meta.OpReaddir, Ino: w.dirs[0], Plus: true})
	})
}
