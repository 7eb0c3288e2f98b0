// Package coherence examines what programs on several mounts of one volume see
// of each other: real mounts in one process, each with its own line to one
// metadata service, on which random operations are done and compared with those
// on a local file system, or recorded and searched for an order that explains
// them.
package coherence

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/cache"
	"flexfs/fuse"
	"flexfs/internal/faultnet"
	"flexfs/internal/leak"
	"flexfs/internal/testcluster"
	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
)

const (
	volumeID = "6f1d6a52-0000-4000-8000-000000000001"

	// BlockSize and InlineMax are small, so that small files have several blocks.
	BlockSize = 64 << 10
	InlineMax = 4 << 10
)

// Options say what a World is made of. The zero value is a good one.
type Options struct {
	Mounts int           // 0: 3
	Lease  time.Duration // 0: 10 s

	// Late has some answers reach their mounts late, as on busy machines: what
	// the service says after them may be there before.
	Late bool
}

// A lateMeta is a client whose answers are late, now and then.
type lateMeta struct{ *meta.Client }

func (m lateMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	reply, err := m.Client.Do(ctx, req)
	if rand.IntN(3) == 0 {
		time.Sleep(rand.N(3 * time.Millisecond))
	}
	return reply, err
}

// A World is a volume, its metadata service, and mounts of it.
type World struct {
	Mounts []*Mount

	t      testing.TB
	opt    Options
	bucket store.Store
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	engine  *engine.Memory
	service *service

	crashed sync.WaitGroup // what is left of those before
}

// A service is the metadata service on an engine.
type service struct {
	stop func()
	left sync.WaitGroup // what runs of it

	mu   sync.RWMutex // guards what follows, and is held while the service removes objects
	dead bool
}

// A Mount is one mount of the volume.
type Mount struct {
	Dir string
	FS  *fuse.FS
	Net *faultnet.Net // its line to the service

	client *meta.Client
}

// New starts a World, which ends with the test, and is checked then. The closes of
// every second mount do not wait (write-behind), of which nobody may notice
// anything. The test is skipped where there is no FUSE.
func New(t testing.TB, opt Options) *World {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	if opt.Mounts == 0 {
		opt.Mounts = 3
	}
	if opt.Lease == 0 {
		opt.Lease = 10 * time.Second
	}
	level := slog.LevelError
	if os.Getenv("FLEXFS_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	leak.Check(t)
	w := &World{t: t, opt: opt, bucket: mem.New(t), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))}
	e, err := engine.OpenMemory()
	w.must("open the engine", err)
	w.engine = e
	addr := w.serve()
	t.Cleanup(w.end)
	for i := range opt.Mounts {
		w.Mounts = append(w.Mounts, w.mount(fmt.Sprint(i), addr))
	}
	return w
}

func (w *World) must(what string, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
}

// serve starts a metadata service on the engine and returns its address.
func (w *World) serve() string {
	w.t.Helper()
	service := &service{}
	srv, err := tree.New(tree.Config{
		Engine: w.engine, Log: w.log, Lease: w.opt.Lease, Keep: 30 * time.Second,
		Authorize: func(string) (tree.Grant, error) {
			return tree.Grant{Volume: volumeID, Write: true, Name: "test"}, nil
		},
		Volumes: func(string) (tree.VolumeConfig, error) {
			return tree.VolumeConfig{Name: "test", BlockSize: BlockSize, InlineMax: InlineMax}, nil
		},
		Delete: func(ctx context.Context, _ string, blocks []tree.BlockRef) error {
			service.mu.RLock()
			defer service.mu.RUnlock()
			if service.dead {
				return context.Canceled
			}
			return store.DeleteAll(ctx, w.bucket, keysOf(blocks))
		},
	})
	w.must("start the service", err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	w.must("listen", err)
	ctx, cancel := context.WithCancel(context.Background())
	service.stop = cancel
	service.left.Go(func() { srv.Run(ctx) })
	service.left.Go(func() { meta.Serve(ctx, ln, srv, w.log) })
	w.service = service
	return ln.Addr().String()
}

func keysOf(blocks []tree.BlockRef) []store.Key {
	volume, err := store.ParseVolume(volumeID)
	if err != nil {
		panic(err)
	}
	keys := make([]store.Key, len(blocks))
	for i, b := range blocks {
		keys[i] = store.Key{Volume: volume, Ino: uint64(b.Ino), Index: b.Index, Gen: store.Gen(b.Gen)}
	}
	return keys
}

// mount mounts the volume in a folder of its own.
func (w *World) mount(name, addr string) *Mount {
	w.t.Helper()
	m := &Mount{Dir: w.t.TempDir()}
	w.must("chmod", os.Chmod(filepath.Dir(m.Dir), 0o755))
	line, err := faultnet.New(addr)
	w.must("lay a line", err)
	m.Net = line
	w.t.Cleanup(line.Close)
	cfg := meta.ClientConfig{
		Dial:   meta.Dial(line.Addr(), nil),
		Token:  func() string { return "" },
		Volume: volumeID,
		Name:   name,
		Log:    w.log,
		Stale:  func(v []meta.Inval) { m.FS.Stale(v) },
		Inval:  func(v []meta.Inval) []meta.Ino { return m.FS.Inval(v) },
		Resume: func() ([]meta.Ino, []meta.InoLock) { return m.FS.Resume() },
		Lost:   func() { m.FS.Lost() },
	}
	m.client = meta.NewClient(cfg)
	var service fuse.Meta = m.client
	if w.opt.Late {
		service = lateMeta{m.client}
	}
	blocks, err := cache.NewMem(seal.New(w.bucket, seal.Options{Codec: seal.LZ4}), 64<<20)
	w.must("make a cache", err)
	w.t.Cleanup(func() { blocks.Close() })
	volume, err := store.ParseVolume(volumeID)
	w.must("parse", err)
	m.FS = fuse.New(fuse.Config{Meta: service, Blocks: blocks, Volume: volume, Log: w.log.With("mount", name), AllowOther: true, WriteBehind: len(w.Mounts)%2 == 1})
	w.must("connect", m.client.Connect(context.Background()))
	w.t.Cleanup(func() { m.client.Close() })
	mounted, err := m.FS.Mount(context.Background(), m.Dir)
	w.must("mount", err)
	w.t.Cleanup(func() {
		m.Net.Set(faultnet.Line{})
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := mounted.Unmount(ctx); err != nil {
			w.t.Errorf("unmount %s: %v", name, err)
			syscall.Unmount(m.Dir, syscall.MNT_DETACH)
		}
	})
	return m
}

// Path returns the path of a file in the mount.
func (m *Mount) Path(elem ...string) string {
	return filepath.Join(append([]string{m.Dir}, elem...)...)
}

// sessions tells the numbers of the mounts' sessions.
func (w *World) sessions() string {
	var out []uint64
	for _, m := range w.Mounts {
		out = append(out, m.client.Session())
	}
	return fmt.Sprint(out)
}

// Cut resets the connection of each mount to the service.
func (w *World) Cut() {
	for _, m := range w.Mounts {
		m.Net.Cut()
	}
}

// Crash loses the service and, of what it had not made durable, all but some
// percent; and then starts another on what is left.
func (w *World) Crash(percent int, seed uint64) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.Mounts { // from now on nobody hears of the old one
		w.must("cut", m.Net.Set(faultnet.Line{State: faultnet.Refused}))
	}
	old, engine := w.service, w.engine
	old.mu.Lock()
	old.dead = true
	old.mu.Unlock()
	e, err := engine.Crash(percent, seed)
	w.must("open after a crash", err)
	w.engine = e
	addr := w.serve()
	for _, m := range w.Mounts {
		m.Net.SetTarget(addr)
		w.must("mend", m.Net.Set(faultnet.Line{}))
	}
	old.stop()
	w.crashed.Go(func() { // what is left of it may wait for a lease
		old.left.Wait()
		engine.Close()
	})
}

// end ends the service, and checks what it kept and that the bucket has all that this
// names.
func (w *World) end() {
	w.service.stop()
	w.service.left.Wait()
	w.crashed.Wait()
	problems, err := tree.Check(context.Background(), w.engine)
	if err != nil {
		w.t.Errorf("check: %v", err)
	}
	for _, p := range problems {
		w.t.Errorf("check: %v", p)
	}
	volume, err := store.ParseVolume(volumeID)
	w.must("parse", err)
	report, err := testcluster.Account(context.Background(), w.engine, w.bucket, volume)
	w.t.Log(report)
	if err != nil {
		w.t.Errorf("check the bucket: %v", err)
	}
	if err := w.engine.Close(); err != nil {
		w.t.Errorf("close the engine: %v", err)
	}
}
