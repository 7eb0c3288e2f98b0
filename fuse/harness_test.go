package fuse

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/cache"
	"flexfs/internal/posixtest"
	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
)

const (
	testVolume    = "6f1d6a52-0000-4000-8000-000000000001"
	testBlockSize = 256 << 10
)

// A world is a volume: a metadata service and a bucket, both in memory.
type world struct {
	t      testing.TB
	engine *engine.Memory
	srv    *tree.Server
	bucket *faulty
	log    *slog.Logger

	mu    sync.Mutex
	local *meta.Local
}

// faulty is a bucket that can be told to fail or to be slow.
type faulty struct {
	store.Store

	mu   sync.Mutex
	fail func(op string, key store.Key) error
	puts int
	gets int
}

func (f *faulty) check(op string, key store.Key) error {
	f.mu.Lock()
	fail := f.fail
	if op == "put" {
		f.puts++
	} else {
		f.gets++
	}
	f.mu.Unlock()
	if fail != nil {
		return fail(op, key)
	}
	return nil
}

func (f *faulty) setFail(fail func(string, store.Key) error) {
	f.mu.Lock()
	f.fail = fail
	f.mu.Unlock()
}

func (f *faulty) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := f.check("put", key); err != nil {
		return err
	}
	return f.Store.Put(ctx, key, data)
}

func (f *faulty) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if err := f.check("get", key); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, key, off, n)
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, func(*tree.Config) {})
}

// newWorldOf is newWorld with a service that change makes different.
func newWorldOf(t testing.TB, change func(*tree.Config)) *world {
	t.Helper()
	e, err := engine.OpenMemory()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, engine: e, bucket: &faulty{Store: mem.New(t)}, log: testLog(t)}
	conf := tree.Config{
		Engine: e,
		Log:    w.log,
		Lease:  5 * time.Second,
		Authorize: func(token string) (tree.Grant, error) {
			return tree.Grant{Volume: testVolume, Write: true, Name: "test"}, nil
		},
		Volumes: func(string) (tree.VolumeConfig, error) {
			return tree.VolumeConfig{Name: "test", BlockSize: testBlockSize, InlineMax: 16 << 10}, nil
		},
		Delete: func(context.Context, string, []tree.BlockRef) error { return nil },
	}
	change(&conf)
	w.srv, err = tree.New(conf)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.srv.Run(ctx)
	}()
	w.local = meta.Direct(w.srv, w.log)
	t.Cleanup(func() {
		w.local.Close()
		cancel()
		<-done
		problems, err := tree.Check(context.Background(), e)
		if err != nil {
			t.Errorf("check: %v", err)
		}
		for _, p := range problems {
			t.Errorf("check: %v", p)
		}
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return w
}

func (w *world) dial(ctx context.Context) (net.Conn, error) {
	w.mu.Lock()
	local := w.local
	w.mu.Unlock()
	return local.Dial(ctx)
}

// breakConnections breaks all connections to the service. It answers again after
// f has returned.
func (w *world) breakConnections(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local.Close()
	f()
	w.local = meta.Direct(w.srv, w.log)
}

func testLog(t testing.TB) *slog.Logger {
	level := slog.LevelWarn
	if os.Getenv("FLEXFS_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// newFS returns a connected FS that is not mounted.
func (w *world) newFS(name string, cfg Config) *FS {
	w.t.Helper()
	var fs *FS
	client := meta.NewClient(meta.ClientConfig{
		Dial:   w.dial,
		Token:  func() string { return "" },
		Volume: testVolume,
		Name:   name,
		Log:    w.log,
		Stale:  func(v []meta.Inval) { fs.Stale(v) },
		Inval:  func(v []meta.Inval) []meta.Ino { return fs.Inval(v) },
		Resume: func() ([]meta.Ino, []meta.InoLock) { return fs.Resume() },
		Lost:   func() { fs.Lost() },
	})
	sealed := seal.New(w.bucket, seal.Options{Codec: seal.LZ4})
	blocks, err := cache.NewMem(sealed, 64<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	volume, err := store.ParseVolume(testVolume)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.Meta, cfg.Blocks, cfg.Volume, cfg.Log = client, blocks, volume, w.log.With("mount", name)
	cfg.Room = seal.Room(testBlockSize)
	fs = New(cfg)
	if err := client.Connect(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { client.Close(); blocks.Close() })
	return fs
}

// mount mounts the volume on a new directory, until the test ends.
func (w *world) mount(name string, cfg Config) (*FS, string) {
	w.t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		w.t.Skip("there is no /dev/fuse")
	}
	fs := w.newFS(name, cfg)
	return fs, w.mountFS(fs)
}

// mountFS mounts fs on a new directory, until the test ends.
func (w *world) mountFS(fs *FS) string {
	w.t.Helper()
	dir := w.t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		w.t.Fatal(err)
	}
	m, err := fs.Mount(context.Background(), dir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			w.t.Errorf("unmount: %v", err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}

// childVar names the directory that a child process examines. Checks map files:
// a page fault would stop this process while the page comes from it.
const childVar = "FLEXFS_POSIXTEST_DIR"

func TestPosixChild(t *testing.T) {
	dir := os.Getenv(childVar)
	if dir == "" {
		t.Skip("only as a child of TestPosix")
	}
	posixtest.Run(t, dir)
}

func TestPosix(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{AllowOther: true})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestPosixChild$", "-test.v")
	cmd.Env = append(os.Environ(), childVar+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the checks on a mount: %v\n%s", err, failures(out))
	}
	if testing.Verbose() {
		t.Logf("%s", out)
	}
	if !bytes.Contains(out, []byte("--- PASS: TestPosixChild/")) {
		t.Error("no check ran")
	}
	if os.Getuid() == 0 && bytes.Contains(out, []byte("--- SKIP: TestPosixChild/")) {
		t.Errorf("a check was left out:\n%s", failures(out))
	}
}

// failures returns the lines of a verbose test's output that tell what failed.
func failures(out []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(out) {
		if !bytes.Contains(line, []byte("--- PASS")) && !bytes.HasPrefix(line, []byte("===")) {
			b.Write(line)
		}
	}
	return b.Bytes()
}
