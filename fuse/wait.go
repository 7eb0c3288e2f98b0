package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/jacobsa/fuse/fuseops"
)

// How long an operation goes on after its caller was interrupted. Work that gets
// on is not cut short for a signal: programs get them all the time, and do not
// expect close(2) to fail for one. But a program that was killed is not gone
// before its last operation is answered.
const (
	grace      = 2 * time.Second // while a server is out of reach
	deathGrace = time.Second     // if the caller was killed
	longGrace  = time.Minute     // otherwise

	lookAgain = 200 * time.Millisecond
)

var errGaveUp = errors.New("the servers were out of reach for too long")

// away returns for how long a server has been out of reach: 0 if all are there.
func (fs *FS) away() time.Duration {
	if fs.cfg.Away != nil {
		return fs.cfg.Away()
	}
	if fs.leased() {
		return 0
	}
	return max(time.Since(fs.meta.LeaseUntil()), 1)
}

// outwait cancels the work of an interrupted call when its time is over.
func (c *call) outwait(ctx context.Context, cancel func()) {
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	began := time.Now()
	for limit := longGrace; time.Since(began) < limit; {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		switch {
		case killed(c.caller()):
			limit = deathGrace
		case c.fs.away() > 0:
			limit = grace
		default:
			limit = longGrace
		}
	}
	cancel()
}

// leave cancels the work of a close(2) while a server is out of reach, if its
// caller is about to end: it hears nothing of how the close went, and signals do
// not reach it any more. What it wrote is stored later.
func (c *call) leave(ctx context.Context, cancel func()) {
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	for c.fs.away() < grace || !exiting(c.caller()) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
	cancel()
}

// closes reports whether the operation is a close(2).
func (c *call) closes() bool {
	_, ok := c.request.(*fuseops.FlushFileOp)
	return ok
}

// caller returns the thread that called, or 0 if it is the kernel itself, or of
// another container.
func (c *call) caller() uint32 {
	op := reflect.ValueOf(c.request)
	if op.Kind() != reflect.Pointer {
		return 0
	}
	if field := op.Elem().FieldByName("OpContext"); field.IsValid() {
		return field.Interface().(fuseops.OpContext).Pid
	}
	return 0
}

// killed reports whether a thread has a signal that ends it before it returns to
// its program: the kernel makes SIGKILL of whatever is fatal.
func killed(thread uint32) bool {
	const sigkill = 1 << 8
	status := procfs(thread, "status")
	_, pending, _ := bytes.Cut(status, []byte("\nSigPnd:"))
	pending, _, _ = bytes.Cut(pending, []byte("\n"))
	set, err := strconv.ParseUint(string(bytes.TrimSpace(pending)), 16, 64)
	return err == nil && set&sigkill != 0
}

// exiting reports whether a thread has returned to its program for the last time.
func exiting(thread uint32) bool {
	const pfExiting = 0x4
	stat := procfs(thread, "stat")
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // from the state, which is the third
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&pfExiting != 0
}

func procfs(thread uint32, name string) []byte {
	if thread == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", thread, name))
	if err != nil {
		return nil
	}
	return b
}

// acquire waits for the budget, until the caller is interrupted or the servers
// are given up.
func (c *call) acquire(n int64) error {
	fs := c.fs
	ctx, limit := c.wait(), fs.cfg.GiveUp
	if limit == 0 {
		return fs.budget.acquire(ctx, n)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		t := time.NewTicker(lookAgain)
		defer t.Stop()
		for fs.away() < limit {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
		cancel(errGaveUp)
	}()
	return fs.budget.acquire(ctx, n)
}
