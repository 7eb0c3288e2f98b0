package metatest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"flexfs/meta"
)

func hello(e *exam) {
	m := e.mount(meta.ClientConfig{})
	v := m.Volume()
	if v.ID != e.svc.Volume || v.BlockSize == 0 || v.ReadOnly || m.Session() == 0 || !m.LeaseValid() {
		e.Errorf("session %d of volume %+v, lease until %v", m.Session(), v, m.LeaseUntil())
	}
	if root := m.attr(meta.Root); root.Ino != meta.Root || !root.IsDir() || root.Size != 0 {
		e.Errorf("the root of an empty volume: %+v", root)
	}
	m.ok(&meta.Request{Op: meta.OpPing})
	m.ok(&meta.Request{Op: meta.OpStatfs})
	was := m.Session()
	if err := m.Close(); err != nil {
		e.Error(err)
	}
	if now := e.mount(meta.ClientConfig{}).Session(); now == was {
		e.Errorf("session number %d is given out twice", now)
	}
	for what, cfg := range map[string]meta.ClientConfig{
		"a wrong token":     {Token: func() string { return "no such token" }, Volume: e.svc.Volume},
		"an unknown volume": {Token: func() string { return e.svc.Token }, Volume: "00000000-0000-4000-8000-00000000000f"},
	} {
		cfg.Dial = e.dial
		c := meta.NewClient(cfg)
		if err := c.Connect(e.Context()); errnoOf(err) == 0 {
			e.Errorf("%s: %v, want a refusal", what, err)
		}
		c.Close()
	}
}

func readOnly(e *exam) {
	w := e.mount(meta.ClientConfig{})
	ino := w.file(meta.Root, "a")
	m := e.mount(meta.ClientConfig{Token: func() string { return e.svc.ReadOnly }})
	if !m.Volume().ReadOnly {
		e.Errorf("the volume is %+v", m.Volume())
	}
	if got := m.ok(lookupReq(meta.Root, "a")).Attr.Ino; got != ino {
		e.Errorf("lookup finds %d, want %d", got, ino)
	}
	for _, req := range []*meta.Request{
		makeReq(meta.Root, "b", syscall.S_IFREG),
		{Op: meta.OpUnlink, Ino: meta.Root, Name: "a"},
		{Op: meta.OpRmdir, Ino: meta.Root, Name: "a"},
		{Op: meta.OpLink, Ino: ino, Ino2: meta.Root, Name: "b"},
		renameReq(meta.Root, "a", meta.Root, "b", 0),
		{Op: meta.OpSetattr, Ino: ino, Set: meta.SetMode},
		commitReq(ino, 10),
		{Op: meta.OpPunch, Ino: ino, Index2: 1},
		{Op: meta.OpSetxattr, Ino: ino, Name: "user.x"},
		{Op: meta.OpRemovexattr, Ino: ino, Name: "user.x"},
	} {
		m.refused(req, syscall.EROFS)
	}
}

// script is a sequence of changes none of which can be done twice without being
// noticed, and what they leave behind.
var script = []*meta.Request{
	makeReq(meta.Root, "dir", syscall.S_IFDIR|0o755),
	makeReq(meta.Root, "a", syscall.S_IFREG|0o644),
	renameReq(meta.Root, "a", meta.Root, "b", 1),
	makeReq(meta.Root, "gone", syscall.S_IFREG|0o644),
	{Op: meta.OpUnlink, Ino: meta.Root, Name: "gone"},
	makeReq(meta.Root, "d", syscall.S_IFDIR|0o755),
	{Op: meta.OpRmdir, Ino: meta.Root, Name: "d"},
	{Op: meta.OpCompound, Ops: []meta.Request{
		*lookupReq(meta.Root, "b"),
		{Op: meta.OpSetxattr, Name: "user.x", Flags: 1},
		{Op: meta.OpRemovexattr, Name: "user.x"},
		*makeReq(meta.Root, "c", syscall.S_IFREG|0o644),
	}},
	renameReq(meta.Root, "b", meta.Root, "c", 2),
	renameReq(meta.Root, "c", meta.Root, "e", 0),
}

var scriptLeaves = []string{"b", "dir", "e"}

func (m *mount) play(before func(step int)) {
	m.e.Helper()
	for step, req := range script {
		if before != nil {
			before(step)
		}
		again := *req
		again.Ops = slices.Clone(req.Ops)
		reply := m.ok(&again)
		for i, r := range reply.Replies {
			if r.Errno != 0 {
				m.e.Errorf("step %d, part %d: %v %s", step, i, r.Errno, r.Msg)
			}
		}
	}
	if got := m.names(meta.Root); !slices.Equal(got, scriptLeaves) {
		m.e.Errorf("the script left %q, want %q", got, scriptLeaves)
	}
}

func exactlyOnce(e *exam) {
	for what, fault := range map[string]Fault{"request lost": Lost, "reply lost": ReplyLost} {
		for step := range script {
			e.sub(fmt.Sprintf("%s at step %d", what, step), func(e *exam) {
				var now atomic.Int64
				now.Store(-1)
				m := e.mount(meta.ClientConfig{Dial: Faulty(e.dial, func(op meta.Op) Fault {
					if op != meta.OpHello && op != meta.OpPing && now.CompareAndSwap(int64(step), -1) {
						return fault
					}
					return OK
				})})
				m.play(func(i int) { now.Store(int64(i)) })
				if m.lost.Load() != 0 {
					e.Error("the session was lost")
				}
			})
		}
	}
}

// The service crashes before each step, and while many changes are under way.
func restart(e *exam) {
	m := e.mount(meta.ClientConfig{})
	was := m.Session()
	m.play(func(int) { e.restart() })
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if _, err := m.Do(e.Context(), makeReq(meta.Root, name(i), syscall.S_IFREG|0o644)); err != nil {
				e.Error(err)
			}
		})
	}
	e.restart()
	wg.Wait()
	if got, want := len(m.names(meta.Root)), len(scriptLeaves)+40; got != want {
		e.Errorf("%d names, want %d", got, want)
	}
	if m.Session() != was || m.lost.Load() != 0 {
		e.Errorf("session %d after %d, lost %d times", m.Session(), was, m.lost.Load())
	}
}

// A covers tells what a change must have made others forget.
type covers struct {
	ino        meta.Ino
	attr, data bool
	name       string
}

func (c covers) by(told []meta.Inval) bool {
	return slices.ContainsFunc(told, func(v meta.Inval) bool {
		return v.Ino == c.ino && (!c.attr || v.Attr) && (!c.data || v.Data) &&
			(c.name == "" || slices.Contains(v.Names, c.name))
	})
}

// When a change is acknowledged, every other mount that may have cached what it
// changed has been told; and the one that made it has not.
func coherence(e *exam) {
	a, b := e.mount(meta.ClientConfig{}), e.mount(meta.ClientConfig{})
	dir := a.dir(meta.Root, "dir")
	file := a.file(dir, "file")
	other := a.file(dir, "other")
	bs := a.Volume().BlockSize
	for _, test := range []struct {
		what string
		req  *meta.Request
		want []covers
	}{
		{"make", makeReq(dir, "new", syscall.S_IFREG|0o644), []covers{{ino: dir, attr: true}, {ino: dir, name: "new"}}},
		{"setattr", &meta.Request{Op: meta.OpSetattr, Ino: file, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o600}}, []covers{{ino: file, attr: true}}},
		{"commit", commitReq(file, uint64(bs), a.block(0, bs)), []covers{{ino: file, attr: true, data: true}}},
		{"truncate", &meta.Request{Op: meta.OpSetattr, Ino: file, Set: meta.SetSize, Attr: meta.Attr{Size: 3}}, []covers{{ino: file, attr: true, data: true}}},
		{"punch", &meta.Request{Op: meta.OpPunch, Ino: file, Index2: 1}, []covers{{ino: file, attr: true, data: true}}},
		{"setxattr", &meta.Request{Op: meta.OpSetxattr, Ino: file, Name: "user.x"}, []covers{{ino: file, attr: true}}},
		{"link", &meta.Request{Op: meta.OpLink, Ino: file, Ino2: dir, Name: "linked"}, []covers{{ino: file, attr: true}, {ino: dir, name: "linked"}}},
		{"rename", renameReq(dir, "file", dir, "other", 0), []covers{{ino: dir, name: "file"}, {ino: dir, name: "other"}, {ino: other, attr: true}}},
		{"unlink", &meta.Request{Op: meta.OpUnlink, Ino: dir, Name: "linked"}, []covers{{ino: dir, attr: true}, {ino: dir, name: "linked"}, {ino: file, attr: true}}},
	} {
		// b caches everything there is, and what there is not.
		b.names(dir)
		b.attr(dir)
		b.attr(file)
		b.attr(other)
		b.ok(&meta.Request{Op: meta.OpBlocks, Ino: file})
		for _, n := range []string{"file", "other", "new", "linked"} {
			b.Do(e.Context(), lookupReq(dir, n))
		}
		a.news()
		b.news()
		a.ok(test.req)
		told := b.news()
		for _, want := range test.want {
			if !want.by(told) {
				e.Errorf("%s was acknowledged, and another mount was not told of %+v, only of %+v", test.what, want, told)
			}
		}
		if told := a.news(); len(told) > 0 {
			e.Errorf("%s: the mount that did it was told of %+v", test.what, told)
		}
	}
}

// A mount that is silent holds up who changes what it has cached, but only
// until its lease has ended. When it is back it learns that its session is lost.
func deadClient(e *exam) {
	var silent atomic.Bool
	dead := e.mount(meta.ClientConfig{Dial: func(ctx context.Context) (net.Conn, error) {
		if silent.Load() {
			return nil, errors.New("the network is down")
		}
		return Faulty(e.dial, func(meta.Op) Fault {
			if silent.Load() {
				return Silent
			}
			return OK
		})(ctx)
	}})
	m := e.mount(meta.ClientConfig{})
	ino := m.file(meta.Root, "a")
	dead.attr(ino)
	lease := time.Until(dead.LeaseUntil())
	silent.Store(true)
	ended := make(chan struct{})
	go func() { // breaks the silence: nothing comes back from now on
		defer close(ended)
		ctx, cancel := context.WithTimeout(e.Context(), lease/2)
		defer cancel()
		dead.Do(ctx, &meta.Request{Op: meta.OpStatfs})
	}()
	<-ended
	e.within(2*lease+2*time.Second, "a change of what a dead mount has cached", func() {
		m.ok(&meta.Request{Op: meta.OpSetattr, Ino: ino, Set: meta.SetMode, Attr: meta.Attr{Mode: 0o600}})
	})
	if dead.LeaseValid() {
		e.Error("the change was acknowledged while a mount that was not told could believe its cache")
	}
	silent.Store(false)
	if got := dead.attr(ino).Mode; got != syscall.S_IFREG|0o600 {
		e.Errorf("the mount is back and sees mode %o", got)
	}
	if dead.lost.Load() == 0 {
		e.Error("the mount was not told that its session had ended")
	}
}

// A file that is unlinked lives on for the mount that has it open, whoever
// unlinked it, also through a restart of the service.
func openUnlinked(e *exam) {
	a, b := e.mount(meta.ClientConfig{}), e.mount(meta.ClientConfig{})
	ino := a.file(meta.Root, "a")
	b.ok(lookupReq(meta.Root, "a"))
	b.mu.Lock()
	b.inUse[ino] = true
	b.mu.Unlock()
	if got := a.ok(&meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: "a"}).Attr; got.Nlink != 0 {
		e.Errorf("unlink: %+v", got)
	}
	a.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{ino}})
	bs := b.Volume().BlockSize
	if got := b.ok(commitReq(ino, uint64(bs), b.block(0, bs))).Attr; got.Nlink != 0 || got.Size != uint64(bs) {
		e.Errorf("the unlinked file after a write: %+v", got)
	}
	e.restart()
	if got := b.attr(ino); got.Size != uint64(bs) {
		e.Errorf("the unlinked file after a restart: %+v", got)
	}
	b.mu.Lock()
	delete(b.inUse, ino)
	b.mu.Unlock()
	b.ok(&meta.Request{Op: meta.OpClose, Inos: []meta.Ino{ino}})
	a.refused(&meta.Request{Op: meta.OpLink, Ino: ino, Ino2: meta.Root, Name: "b"}, syscall.ENOENT, syscall.ESTALE)
}
