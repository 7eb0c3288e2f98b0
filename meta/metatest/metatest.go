package metatest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

// A Service is what [Run] examines: a Handler with one empty volume.
type Service struct {
	Handler  meta.Handler
	Volume   string // UUID
	Token    string // to read and write all of it
	ReadOnly string // to read it

	// Restart ends the Handler as a crash of its process would, and returns
	// another one with what was durable.
	Restart func() meta.Handler
}

// Run examines a metadata service through Clients, over the wire. start makes a
// new one; it should have a lease of a second or so, as some tests wait for its
// end.
func Run(t *testing.T, start func(t *testing.T) *Service) {
	for _, test := range []struct {
		name string
		run  func(*exam)
	}{
		{"Hello", hello},
		{"ReadOnly", readOnly},
		{"Make", makeInodes},
		{"Refusals", refusals},
		{"Links", links},
		{"Rename", rename},
		{"Readdir", readdir},
		{"Setattr", setattr},
		{"Blocks", blocks},
		{"Inline", inline},
		{"Xattr", xattr},
		{"Compound", compound},
		{"RacingMakes", racingMakes},
		{"ExactlyOnce", exactlyOnce},
		{"Restart", restart},
		{"Coherence", coherence},
		{"DeadClient", deadClient},
		{"OpenUnlinked", openUnlinked},
		{"Locks", locks},
		{"WaitingLocks", waitingLocks},
		{"LocksOfTheDead", locksOfTheDead},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(newExam(t, start))
		})
	}
}

// An exam is one test with a service of its own.
type exam struct {
	*testing.T
	start func(*testing.T) *Service
	svc   *Service
	local atomic.Pointer[meta.Local]
}

func newExam(t *testing.T, start func(*testing.T) *Service) *exam {
	e := &exam{T: t, start: start, svc: start(t)}
	e.serve(e.svc.Handler)
	t.Cleanup(func() { e.local.Load().Close() })
	return e
}

// sub runs a part of the exam with a service of its own.
func (e *exam) sub(name string, run func(*exam)) {
	e.Run(name, func(t *testing.T) {
		t.Parallel()
		run(newExam(t, e.start))
	})
}

func (e *exam) serve(h meta.Handler) { e.local.Store(meta.Direct(h, slog.New(slog.DiscardHandler))) }

func (e *exam) restart() {
	e.local.Load().Close()
	e.serve(e.svc.Restart())
}

func (e *exam) dial(ctx context.Context) (net.Conn, error) { return e.local.Load().Dial(ctx) }

// A mount is a Client and what it was told.
type mount struct {
	*meta.Client
	e    *exam
	lost atomic.Int64

	mu    sync.Mutex
	told  []meta.Inval
	inUse map[meta.Ino]bool
	held  []meta.InoLock
	gens  uint64
}

// mount opens a session. Zero fields of cfg are filled in.
func (e *exam) mount(cfg meta.ClientConfig) *mount {
	e.Helper()
	m := &mount{e: e, inUse: make(map[meta.Ino]bool)}
	if cfg.Dial == nil {
		cfg.Dial = e.dial
	}
	if cfg.Token == nil {
		cfg.Token = func() string { return e.svc.Token }
	}
	cfg.Volume, cfg.Name = e.svc.Volume, e.Name()
	cfg.Stale, cfg.Inval, cfg.Resume = m.stale, m.inval, m.resume
	cfg.Lost = func() { m.lost.Add(1) }
	m.Client = meta.NewClient(cfg)
	e.Cleanup(func() { m.Close() })
	if err := m.Connect(e.Context()); err != nil {
		e.Fatal(err)
	}
	return m
}

func (m *mount) stale(list []meta.Inval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, list...)
}

func (m *mount) inval(list []meta.Inval) (open []meta.Ino) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range list {
		if m.inUse[list[i].Ino] {
			open = append(open, list[i].Ino)
		}
	}
	return open
}

func (m *mount) resume() (open []meta.Ino, locks []meta.InoLock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ino := range m.inUse {
		open = append(open, ino)
	}
	return open, slices.Clone(m.held)
}

// news returns what the mount was told since the last time.
func (m *mount) news() []meta.Inval {
	m.mu.Lock()
	defer m.mu.Unlock()
	told := m.told
	m.told = nil
	return told
}

// ok does what must succeed.
func (m *mount) ok(req *meta.Request) *meta.Reply {
	m.e.Helper()
	reply, err := m.Do(m.e.Context(), req)
	if err != nil {
		m.e.Fatalf("%v %q in %d: %v", req.Op, req.Name, req.Ino, err)
	}
	return reply
}

// refused does what must be refused with one of the errnos.
func (m *mount) refused(req *meta.Request, want ...syscall.Errno) {
	m.e.Helper()
	_, err := m.Do(m.e.Context(), req)
	if got := errnoOf(err); !slices.Contains(want, got) {
		m.e.Errorf("%v %q in %d, %q in %d: %v, want %v", req.Op, req.Name, req.Ino, req.Name2, req.Ino2, err, want)
	}
}

// errnoOf returns 0 for what is not a refusal.
func errnoOf(err error) syscall.Errno {
	var refused *meta.Error
	if errors.As(err, &refused) {
		return refused.Errno
	}
	return 0
}

func (m *mount) file(dir meta.Ino, name string) meta.Ino {
	m.e.Helper()
	return m.ok(makeReq(dir, name, syscall.S_IFREG|0o644)).Attr.Ino
}

func (m *mount) dir(dir meta.Ino, name string) meta.Ino {
	m.e.Helper()
	return m.ok(makeReq(dir, name, syscall.S_IFDIR|0o755)).Attr.Ino
}

func (m *mount) attr(ino meta.Ino) meta.Attr {
	m.e.Helper()
	return m.ok(&meta.Request{Op: meta.OpGetattr, Ino: ino}).Attr
}

func (m *mount) names(dir meta.Ino) []string {
	m.e.Helper()
	var names []string
	for {
		req := &meta.Request{Op: meta.OpReaddir, Ino: dir}
		if n := len(names); n > 0 {
			req.Name = names[n-1]
		}
		reply := m.ok(req)
		for _, entry := range reply.Entries {
			names = append(names, entry.Name)
		}
		if reply.EOF {
			return names
		}
		if len(reply.Entries) == 0 {
			m.e.Fatalf("readdir of %d makes no progress after %q", dir, req.Name)
		}
	}
}

// block returns a record of a new version of a block.
func (m *mount) block(index, n uint32) meta.Block {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gens++
	return meta.Block{Index: index, Gen: meta.Gen{Session: m.Session(), Seq: m.gens}, Len: n}
}

func makeReq(dir meta.Ino, name string, mode uint32) *meta.Request {
	return &meta.Request{Op: meta.OpMake, Ino: dir, Name: name, Mode: mode, Uid: 1000, Gid: 1000}
}

func lookupReq(dir meta.Ino, name string) *meta.Request {
	return &meta.Request{Op: meta.OpLookup, Ino: dir, Name: name}
}

// within fails the test if f takes longer than d.
func (e *exam) within(d time.Duration, what string, f func()) {
	e.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > d {
		e.Errorf("%s took %v, want at most %v", what, took, d)
	}
}

func name(i int) string { return fmt.Sprintf("name%03d", i) }
