package metatest

import (
	"context"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	"flexfs/meta"
)

const endOfFile = math.MaxInt64

func lockReq(ino meta.Ino, typ uint32, owner, start, end uint64) *meta.Request {
	return &meta.Request{Op: meta.OpSetlk, Ino: ino, Lock: meta.Lock{Type: typ, Owner: owner, Pid: uint32(owner), Start: start, End: end}}
}

func waitReq(ino meta.Ino, typ uint32, owner, start, end uint64) *meta.Request {
	req := lockReq(ino, typ, owner, start, end)
	req.Wait = true
	return req
}

func locks(e *exam) {
	a, b := e.mount(meta.ClientConfig{}), e.mount(meta.ClientConfig{})
	ino := a.file(meta.Root, "a")
	const r, w, u = syscall.F_RDLCK, syscall.F_WRLCK, syscall.F_UNLCK
	a.ok(lockReq(ino, r, 1, 0, 99))
	b.ok(lockReq(ino, r, 1, 50, 149))
	b.refused(lockReq(ino, w, 1, 99, 99), syscall.EAGAIN)
	a.ok(lockReq(ino, w, 1, 0, 49)) // upgrades a part
	b.refused(lockReq(ino, r, 2, 49, 49), syscall.EAGAIN)
	b.ok(lockReq(ino, r, 2, 50, 50))
	got := b.ok(&meta.Request{Op: meta.OpGetlk, Ino: ino, Lock: meta.Lock{Type: w, Owner: 9, Start: 10, End: 10}}).Lock
	if got.Type != w || got.Pid != 1 && got.Pid != 0 || got.Start != 0 || got.End != 49 {
		e.Errorf("the lock in the way is %+v", got)
	}
	got = b.ok(&meta.Request{Op: meta.OpGetlk, Ino: ino, Lock: meta.Lock{Type: w, Owner: 9, Start: 1000, End: endOfFile}}).Lock
	if got.Type != u {
		e.Errorf("no lock is in the way, but %+v", got)
	}
	// A lock of flock is another sort.
	flock := &meta.Request{Op: meta.OpSetlk, Ino: ino, Lock: meta.Lock{Type: w, Flock: true, Owner: 5, End: endOfFile}}
	b.ok(flock)
	a.refused(flock, syscall.EAGAIN) // owners are those of a session
	a.ok(lockReq(ino, u, 1, 0, endOfFile))
	b.ok(lockReq(ino, u, 2, 0, endOfFile))
	b.ok(lockReq(ino, w, 1, 0, endOfFile))
	// A session that ends frees its locks.
	b.Close()
	a.ok(lockReq(ino, w, 1, 0, endOfFile))
	a.ok(flock)
}

func waitingLocks(e *exam) {
	a, b := e.mount(meta.ClientConfig{}), e.mount(meta.ClientConfig{})
	ino := a.file(meta.Root, "a")
	a.ok(lockReq(ino, syscall.F_WRLCK, 1, 0, endOfFile))
	a.mu.Lock()
	a.held = []meta.InoLock{{Ino: ino, Lock: lockReq(ino, syscall.F_WRLCK, 1, 0, endOfFile).Lock}}
	a.mu.Unlock()

	ctx, cancel := context.WithCancel(e.Context())
	interrupted := make(chan error, 1)
	go func() {
		_, err := b.Do(ctx, waitReq(ino, syscall.F_WRLCK, 1, 0, 9))
		interrupted <- err
	}()
	patient := make(chan error, 1)
	go func() {
		_, err := b.Do(e.Context(), waitReq(ino, syscall.F_RDLCK, 2, 5, 5))
		patient <- err
	}()
	b.ok(&meta.Request{Op: meta.OpStatfs}) // goes past those that wait
	cancel()
	if err := <-interrupted; errnoOf(err) != syscall.EINTR {
		e.Errorf("an interrupted wait: %v", err)
	}
	e.restart() // the lock is kept, and so is the wait
	b.refused(lockReq(ino, syscall.F_WRLCK, 3, 7, 7), syscall.EAGAIN)
	select {
	case err := <-patient:
		e.Fatalf("the wait ended while the lock was held: %v", err)
	default:
	}
	a.mu.Lock()
	a.held = nil
	a.mu.Unlock()
	a.ok(lockReq(ino, syscall.F_UNLCK, 1, 0, endOfFile))
	if err := <-patient; err != nil {
		e.Errorf("the wait: %v", err)
	}
	a.refused(lockReq(ino, syscall.F_WRLCK, 1, 0, endOfFile), syscall.EAGAIN)
	a.ok(lockReq(ino, syscall.F_WRLCK, 1, 0, 4)) // the interrupted one holds nothing
}

// The locks of a mount that has gone without a word are free after its lease.
func locksOfTheDead(e *exam) {
	var silent atomic.Bool
	dead := e.mount(meta.ClientConfig{Dial: Faulty(e.dial, func(op meta.Op) Fault {
		if op == meta.OpStatfs || silent.Load() {
			silent.Store(true)
			return Silent
		}
		return OK
	})})
	m := e.mount(meta.ClientConfig{})
	ino := m.file(meta.Root, "a")
	dead.ok(lockReq(ino, syscall.F_WRLCK, 1, 0, endOfFile))
	lease := time.Until(dead.LeaseUntil())
	ctx, cancel := context.WithTimeout(e.Context(), time.Millisecond)
	defer cancel()
	dead.Do(ctx, &meta.Request{Op: meta.OpStatfs})
	e.within(3*lease+3*time.Second, "waiting for the lock of a dead mount", func() {
		m.ok(waitReq(ino, syscall.F_WRLCK, 1, 0, endOfFile))
	})
}
