package tree

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

func lockReq(ino meta.Ino, typ uint32, owner, start, end uint64) *meta.Request {
	return &meta.Request{Op: meta.OpSetlk, Ino: ino, Lock: meta.Lock{Type: typ, Owner: owner, Start: start, End: end, Pid: uint32(owner)}}
}

func waiting(req *meta.Request, id uint64) *meta.Request {
	req.Wait, req.ID = true, id
	return req
}

func TestLocksOfOthersAreRespected(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	a.ok(lockReq(f, syscall.F_RDLCK, 1, 0, 99))
	b.ok(lockReq(f, syscall.F_RDLCK, 1, 50, 149))
	a.refused(syscall.EAGAIN, lockReq(f, syscall.F_WRLCK, 1, 0, 99))
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 49))
	b.refused(syscall.EAGAIN, lockReq(f, syscall.F_RDLCK, 1, 49, 49))
	a.refused(syscall.EAGAIN, lockReq(f, syscall.F_RDLCK, 2, 49, 49))
	req := lockReq(f, syscall.F_WRLCK, 1, 0, endOfFile)
	req.Op = meta.OpGetlk
	if got := b.ok(req).Lock; got.Type != syscall.F_WRLCK || got.Start != 0 || got.End != 49 || got.Pid != 0 {
		t.Errorf("in the way of b: %+v", got)
	}
	if got := a.ok(&meta.Request{Op: meta.OpGetlk, Ino: f, Lock: meta.Lock{Type: syscall.F_WRLCK, Owner: 1, End: 49}}).Lock; got.Type != syscall.F_UNLCK {
		t.Errorf("in the way of a: %+v", got)
	}
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, endOfFile))
	b.ok(lockReq(f, syscall.F_WRLCK, 1, 0, endOfFile))
	flock := lockReq(f, syscall.F_WRLCK, 9, 0, 0)
	flock.Lock.Flock = true
	a.ok(flock) // the two kinds do not see each other
}

func TestFlockIsOfTheOpenFile(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	flock := func(typ uint32, owner uint64) *meta.Request {
		req := lockReq(f, typ, owner, 0, 0)
		req.Lock.Flock = true
		return req
	}
	a.ok(flock(syscall.F_RDLCK, 1))
	b.ok(flock(syscall.F_RDLCK, 2))
	a.refused(syscall.EAGAIN, flock(syscall.F_WRLCK, 1))
	b.ok(flock(syscall.F_UNLCK, 2))
	a.ok(flock(syscall.F_WRLCK, 1))
	b.refused(syscall.EAGAIN, flock(syscall.F_RDLCK, 2))
}

// background sends a request and returns where its reply will come.
func (c *client) background(req *meta.Request) <-chan *meta.Reply {
	done := make(chan *meta.Reply, 1)
	go func() { done <- c.send(req) }()
	return done
}

func pending(t *testing.T, done <-chan *meta.Reply) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		t.Fatalf("answered already: %+v", r)
	default:
	}
}

func TestAWaitEndsWhenTheLockIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		done := b.background(waiting(lockReq(f, syscall.F_WRLCK, 1, 5, 5), 1))
		pending(t, done)
		a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 4))
		pending(t, done)
		start := time.Now()
		a.ok(lockReq(f, syscall.F_UNLCK, 1, 5, 5))
		if r := <-done; r.Errno != 0 || time.Since(start) != 0 {
			t.Errorf("%v, %v after the release", r.Errno, time.Since(start))
		}
		a.refused(syscall.EAGAIN, lockReq(f, syscall.F_RDLCK, 1, 5, 5))
	})
}

func TestAWaitIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		done := b.background(waiting(lockReq(f, syscall.F_WRLCK, 1, 0, 9), 7))
		pending(t, done)
		b.ok(&meta.Request{Op: meta.OpCancel, ID: 7})
		if r := <-done; r.Errno != syscall.EINTR {
			t.Errorf("%v", r.Errno)
		}
		a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 9))
		a.ok(lockReq(f, syscall.F_WRLCK, 2, 0, 9))
		b.ok(&meta.Request{Op: meta.OpCancel, ID: 7}) // no harm
	})
}

func TestAWaitInACircleIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.hello("rw:")
		f := c.file(meta.Root, "f")
		for owner := range uint64(3) {
			c.ok(lockReq(f, syscall.F_WRLCK, owner, owner, owner))
		}
		first := c.background(waiting(lockReq(f, syscall.F_WRLCK, 0, 1, 1), 1))
		pending(t, first)
		second := c.background(waiting(lockReq(f, syscall.F_WRLCK, 1, 2, 2), 2))
		pending(t, second)
		c.refused(syscall.EDEADLK, waiting(lockReq(f, syscall.F_WRLCK, 2, 0, 0), 3))
		c.ok(lockReq(f, syscall.F_UNLCK, 2, 2, 2))
		if r := <-second; r.Errno != 0 {
			t.Errorf("second: %v", r.Errno)
		}
		c.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 9))
		if r := <-first; r.Errno != 0 {
			t.Errorf("first: %v", r.Errno)
		}
	})
}

func TestTheEndOfASessionReleasesItsLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		defer b.pinging(t)()
		start := time.Now()
		b.ok(waiting(lockReq(f, syscall.F_WRLCK, 1, 0, 9), 1))
		if d := time.Since(start); d < 10*time.Second || d > 15*time.Second {
			t.Errorf("the lock of a dead client was held for %v", d)
		}
	})
}

func TestLocksAreReclaimedAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		mine := lockReq(f, syscall.F_WRLCK, 1, 0, 9)
		a.ok(mine)
		w.start()
		w.run(t)
		if r := b.resume(&meta.Request{}); r.Errno != 0 {
			t.Fatal(r.Errno)
		}
		defer b.pinging(t)()
		try := b.background(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		time.Sleep(time.Second)
		pending(t, try) // a may have had it
		other := lockReq(f, syscall.F_WRLCK, 1, 20, 29)
		a.resume(&meta.Request{Partial: true, Locks: []meta.InoLock{{Ino: f, Lock: other.Lock}}})
		time.Sleep(time.Second)
		pending(t, try) // and has not told of all yet
		a.resume(&meta.Request{Locks: []meta.InoLock{{Ino: f, Lock: mine.Lock}}})
		if r := <-try; r.Errno != syscall.EAGAIN {
			t.Errorf("%v", r.Errno)
		}
	})
}

// A mount may have more locks and open files than a frame has room for.
func TestManyLocksAndOpenFilesAreReclaimed(t *testing.T) {
	const many = 250_000
	w := newWorld(t)
	var inos []meta.Ino
	var locks []meta.InoLock
	for i := range many {
		inos = append(inos, meta.Ino(1<<40+i))
		locks = append(locks, meta.InoLock{Ino: inos[i], Lock: lockReq(0, syscall.F_WRLCK, 1<<60, 1<<50, 1<<51).Lock})
	}
	dial := serve(t, w.srv)
	var line net.Conn
	c := meta.NewClient(meta.ClientConfig{
		Dial: func(ctx context.Context) (net.Conn, error) {
			nc, err := dial(ctx)
			line = nc
			return nc, err
		},
		Token: func() string { return "rw:" }, Volume: testVolume,
		Resume: func() ([]meta.Ino, []meta.InoLock) { return inos, locks },
	})
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	session := c.Session()
	line.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Do(ctx, &meta.Request{Op: meta.OpGetattr, Ino: meta.Root}); err != nil {
		t.Fatal(err)
	}
	v, err := w.srv.volume(ctx, testVolume)
	if err != nil {
		t.Fatal(err)
	}
	if n := v.locks.count; n != many || c.Session() != session {
		t.Errorf("session %d, which is %d now, has %d locks, want %d", session, c.Session(), n, many)
	}
}

// So that one program does not make the locks of all slow.
func TestAFileHasSoManyLocks(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	f, other := a.file(meta.Root, "f"), a.file(meta.Root, "other")
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 2, 2))
	w.fillLocks(a, f, maxInodeLocks-1) // to ask for each takes long
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 10, 10))
	a.refused(syscall.ENOLCK, lockReq(f, syscall.F_WRLCK, 1, 1<<40, 1<<40))
	a.ok(lockReq(other, syscall.F_WRLCK, 1, 1<<40, 1<<40))
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 2, 2))
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 1<<40, 1<<40))
}

// A change of what one has is not one lock more.
func TestALockCanBeChangedInAFullFile(t *testing.T) {
	w := newWorld(t)
	a, b := w.hello("rw:"), w.hello("rw:")
	f := a.file(meta.Root, "f")
	flock := func(typ uint32, owner uint64) *meta.Request {
		req := lockReq(f, typ, owner, 0, 0)
		req.Lock.Flock = true
		return req
	}
	a.ok(flock(syscall.F_RDLCK, 1))
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 1000, 1009))
	w.fillLocks(a, f, maxInodeLocks)
	b.refused(syscall.ENOLCK, flock(syscall.F_RDLCK, 2))
	a.refused(syscall.ENOLCK, lockReq(f, syscall.F_WRLCK, 1, 20, 29))
	a.refused(syscall.ENOLCK, lockReq(f, syscall.F_RDLCK, 1, 4, 5))
	a.ok(flock(syscall.F_WRLCK, 1))
	b.refused(syscall.ENOLCK, flock(syscall.F_RDLCK, 2))
	a.ok(flock(syscall.F_RDLCK, 1))
	a.ok(lockReq(f, syscall.F_RDLCK, 1, 0, 9))
	a.ok(lockReq(f, syscall.F_RDLCK, 1, 0, 19)) // it grows, and is one still
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 5, 5))
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 4))
}

// fillLocks gives c locks of f, up to n of all owners.
func (w *world) fillLocks(c *client, f meta.Ino, n int) {
	v := w.srv.volumes[testVolume]
	s := v.sessions[c.id]
	l := v.locks.of(s.in(f))
	for i := uint64(len(l.held)); i < uint64(n); i++ {
		h := newHeld(s, &meta.Lock{Type: syscall.F_WRLCK, Owner: 77, Start: 1<<30 + 2*i, End: 1<<30 + 2*i})
		l.held = append(l.held, h)
		v.locks.count++
	}
}

// Each release in the middle of a lock leaves two, and those that a client says it had
// are as many as it likes to say.
func TestNobodyMakesLocksWithoutEnd(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.srv.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	a := w.hello("rw:")
	f, other := a.file(meta.Root, "f"), a.file(meta.Root, "other")
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 1<<20))
	locks := &w.srv.volumes[testVolume].locks
	l := locks.of(f)
	few := func(ino meta.Ino) []meta.InoLock {
		var few []meta.InoLock
		for i := range uint64(20) {
			few = append(few, meta.InoLock{Ino: ino, Lock: lockReq(0, syscall.F_WRLCK, 2, 1<<40+2*i, 1<<40+2*i).Lock})
		}
		return few
	}
	w.fillLocks(a, f, 2*maxInodeLocks-10)
	if r := a.resume(&meta.Request{Partial: true, Locks: few(f)}); r.Errno != 0 {
		t.Fatal(r.Errno)
	}
	if n := len(l.held); n != 2*maxInodeLocks {
		t.Errorf("a hello made %d locks of an inode, want %d", n, 2*maxInodeLocks)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("the log tells of it %d times:\n%s", n, log.String())
	}
	if r := a.resume(&meta.Request{}); r.Errno != 0 {
		t.Fatal(r.Errno)
	}
	a.refused(syscall.ENOLCK, lockReq(f, syscall.F_UNLCK, 1, 10, 10))
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 10))
	a.ok(lockReq(f, syscall.F_UNLCK, 77, 0, endOfFile))
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 20, 20))
	locks.count = 2*maxVolumeLocks - 10
	a.resume(&meta.Request{Locks: few(other)})
	if n := locks.count; n != 2*maxVolumeLocks {
		t.Errorf("a hello made %d locks of a volume, want %d", n, 2*maxVolumeLocks)
	}
}

// What a connection told before the client came back on another is not true any more.
func TestALockThatWasGivenUpIsNotReclaimedByAnEarlierConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		slowed := make(chan struct{})
		w := newWorld(t)
		w.onWait = func() {
			if slow.CompareAndSwap(true, false) {
				<-slowed
			}
		}
		w.start()
		a, b := w.hello("rw:"), w.hello("rw:")
		f := a.file(meta.Root, "f")
		mine := []meta.InoLock{{Ino: f, Lock: lockReq(f, syscall.F_WRLCK, 1, 0, 9).Lock}}
		a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		hello := func(seq uint32, inos ...meta.Ino) *meta.Request {
			return &meta.Request{
				Op: meta.OpHello, Version: 1, Token: "rw:", Session: a.id, Secret: a.secret, Seq: seq, Inos: inos, Locks: mine,
			}
		}
		slow.Store(true)
		first := a.background(hello(1, f)) // it is slow to note the open files, the locks come then
		synctest.Wait()
		a.conn = &fakeConn{name: "the next"}
		second := a.background(hello(2))
		synctest.Wait()
		back := len(second) > 0
		if back {
			a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 9))
		}
		close(slowed)
		<-first
		if r := <-second; r.Errno != 0 {
			t.Fatal(r.Errno)
		}
		if !back {
			a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 9))
		}
		late := w.srv.ServeMeta(t.Context(), &fakeConn{name: "late"}, hello(1))
		if late.Errno != syscall.ECONNABORTED {
			t.Errorf("a hello of an earlier connection: %v", late.Errno)
		}
		b.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
		a.ok(&meta.Request{Op: meta.OpPing})
	})
}

// Who waits for an answer no more has no lock from then on.
func TestAGoneConnectionReclaimsNoMore(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	f := a.file(meta.Root, "f")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := w.srv.ServeMeta(ctx, a.conn, &meta.Request{
		Op: meta.OpHello, Version: 1, Token: "rw:", Session: a.id, Secret: a.secret,
		Locks: []meta.InoLock{{Ino: f, Lock: lockReq(f, syscall.F_WRLCK, 1, 0, 9).Lock}},
	})
	if n := w.srv.volumes[testVolume].locks.count; n != 0 || r.Errno == 0 {
		t.Errorf("it has %d locks, and is answered %v", n, r.Errno)
	}
}

func TestAGoneConnectionEndsItsWait(t *testing.T) {
	w := newWorld(t)
	a := w.hello("rw:")
	f := a.file(meta.Root, "f")
	a.ok(lockReq(f, syscall.F_WRLCK, 1, 0, 9))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := w.srv.ServeMeta(ctx, a.conn, waiting(lockReq(f, syscall.F_WRLCK, 2, 0, 9), 1))
	if r.Errno != syscall.EINTR {
		t.Errorf("%v", r.Errno)
	}
	a.ok(lockReq(f, syscall.F_UNLCK, 1, 0, 9))
	a.ok(lockReq(f, syscall.F_WRLCK, 3, 0, 9))
}

// TestRandomRangesDoWhatTheModelDoes compares range locks with a model that has
// an entry for each byte.
func TestRandomRangesDoWhatTheModelDoes(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			w := newWorld(t)
			c := w.hello("rw:")
			f := c.file(meta.Root, "f")
			rng := rand.New(rand.NewPCG(seed, 3))
			const size, owners = 12, 3
			var bytes [owners][size]uint32
			for o := range bytes {
				for i := range bytes[o] {
					bytes[o][i] = syscall.F_UNLCK
				}
			}
			for step := range 300 {
				o, start := rng.IntN(owners), rng.IntN(size)
				end := start + rng.IntN(size-start)
				typ := uint32(rng.IntN(3))
				want := syscall.Errno(0)
				for i := start; i <= end; i++ {
					for other := range bytes {
						has := bytes[other][i]
						if other != o && typ != syscall.F_UNLCK && has != syscall.F_UNLCK &&
							(typ == syscall.F_WRLCK || has == syscall.F_WRLCK) {
							want = syscall.EAGAIN
						}
					}
				}
				if want == 0 {
					for i := start; i <= end; i++ {
						bytes[o][i] = typ
					}
				}
				r := c.send(lockReq(f, typ, uint64(o), uint64(start), uint64(end)))
				if r.Errno != want {
					t.Fatalf("step %d: type %d, owner %d, %d to %d: %v, want %v", step, typ, o, start, end, r.Errno, want)
				}
			}
			for o := range uint64(owners) {
				c.ok(lockReq(f, syscall.F_UNLCK, o, 0, endOfFile))
			}
			v := w.srv.volumes[testVolume]
			if v.locks.count != 0 || len(v.locks.inos) != 0 {
				t.Errorf("%d locks and %d inodes are left", v.locks.count, len(v.locks.inos))
			}
		})
	}
}
