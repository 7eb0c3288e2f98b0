package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
	"flexfs/store"
)

// A gateMeta can hold changes up, and notes what the service is asked to change, in
// order.
type gateMeta struct {
	Meta

	messages atomic.Int64 // that have changes, since the last sent

	mu     sync.Mutex
	closed chan struct{} // changes wait until it is closed; nil: they do not
	names  []string      // of changes, in the order in which they were sent
}

func (m *gateMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	parts := req.Ops
	if req.Op != meta.OpCompound {
		parts = []meta.Request{*req}
	}
	m.mu.Lock()
	gate := m.closed
	before := len(m.names)
	for _, part := range parts {
		if part.Op.Changes() && part.Op != meta.OpReserve && part.Op != meta.OpClose {
			m.names = append(m.names, part.Op.String()+" "+part.Name)
		}
	}
	if len(m.names) > before {
		m.messages.Add(1)
	}
	m.mu.Unlock()
	if gate != nil && len(parts) > 0 && parts[0].Op.Changes() && parts[0].Op != meta.OpReserve {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return m.Meta.Do(ctx, req)
}

func (m *gateMeta) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = make(chan struct{})
}

func (m *gateMeta) open() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.closed)
	m.closed = nil
}

// sent returns the changes since the last call.
func (m *gateMeta) sent() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := m.names
	m.names = nil
	m.messages.Store(0)
	return names
}

// behindMount mounts w so that closes do not wait, with a directory in which files
// are made on the mount first.
func (w *world) behindMount() (*FS, *gateMeta, string) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		w.t.Skip("there is no /dev/fuse")
	}
	fs := w.newFS("behind", Config{WriteBehind: true})
	m := &gateMeta{Meta: fs.meta}
	fs.meta = m
	dir := delegated(w.t, fs, w.mountFS(fs))
	must(w.t, "a first file, for which numbers are reserved", os.WriteFile(filepath.Join(dir, "first"), []byte("first"), 0o644))
	must(w.t, "settle", fs.behind.settle(w.t.Context(), fs))
	for deadline := time.Now().Add(10 * time.Second); fs.behind.scarce(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal("nobody looks whether there is room")
		}
	}
	m.sent()
	return fs, m, dir
}

func contentsOf(name string) []byte { return []byte("contents of " + name) }

func makeFiles(t *testing.T, dir string, from, to int) (names []string) {
	t.Helper()
	for i := from; i < to; i++ {
		name := fmt.Sprint(i)
		must(t, "write", os.WriteFile(filepath.Join(dir, name), contentsOf(name), 0o640))
		names = append(names, "make "+name)
	}
	return names
}

// Closes go on though the service does not answer; it hears of the files in the
// order in which they were closed, of many at a time; and an fsync waits for all
// that were closed before.
func TestClosesThatDoNotWait(t *testing.T) {
	w := newWorld(t)
	_, m, dir := w.behindMount()
	m.close()
	want := makeFiles(t, dir, 0, 200)
	expect(t, "read", filepath.Join(dir, "7"), contentsOf("7"))
	st, err := os.Stat(filepath.Join(dir, "8"))
	if err != nil || st.Size() != int64(len(contentsOf("8"))) || st.Mode() != 0o640 {
		t.Errorf("stat: %v, %v", st, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "synced"), os.O_CREATE|os.O_WRONLY, 0o644)
	must(t, "create", err)
	_, err = f.Write(contentsOf("synced"))
	must(t, "write", err)
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }()
	select {
	case err := <-synced:
		t.Fatalf("an fsync does not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	m.open()
	must(t, "fsync", <-synced)
	must(t, "close", f.Close())
	if least := (200 + gatherOps - 1) / gatherOps; int(m.messages.Load()) < least || int(m.messages.Load()) > 2*least {
		t.Errorf("of 200 files it was told in %d messages", m.messages.Load())
	}
	if got := m.sent(); !slices.Equal(got, append(want, "make synced")) {
		t.Errorf("the service heard of %q", got)
	}
}

// If the service stays away closes wait when so many are behind.
func TestClosesWaitWhenTooManyAreBehind(t *testing.T) {
	w := newWorld(t)
	fs, m, dir := w.behindMount()
	m.close()
	const all = maxBehind + 2*gatherOps
	var closed atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range all {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
				t.Errorf("write: %v", err)
			}
			closed.Add(1)
		}
	}()
	for before, deadline := int64(-1), time.Now().Add(30*time.Second); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if n := closed.Load(); n >= maxBehind && n == before {
			break
		}
		before = closed.Load()
	}
	if n := closed.Load(); n < maxBehind || n > maxBehind+gatherOps { // a request is on its way
		t.Errorf("%d files are closed while the service is away, want %d", n, maxBehind)
	}
	m.open()
	<-done
	must(t, "settle", fs.behind.settle(t.Context(), fs))
	_, other := w.mount("other", Config{})
	if list, err := os.ReadDir(filepath.Join(other, "d")); err != nil || len(list) != all+1 {
		t.Errorf("%d files are there, %v; %d were closed", len(list), err, all+1)
	}
}

// Whatever is changed after a close, the service hears of it after the closed file.
func TestOrderIsKeptBehindCloses(t *testing.T) {
	w := newWorld(t)
	_, m, dir := w.behindMount()
	in := func(name string) string { return filepath.Join(dir, name) }
	older, err := os.OpenFile(in("first"), os.O_RDWR, 0)
	must(t, "open", err)
	defer older.Close()
	open := createHere(t, in("open"))
	for i, change := range []struct {
		want string
		do   func() error
	}{
		{"make d", func() error { return os.Mkdir(in("d"), 0o755) }},
		{"rename first", func() error { return os.Rename(in("first"), in("second")) }},
		{"symlink", func() error { return os.Symlink("x", in("s")) }},
		{"link s2", func() error { return os.Link(in("s"), in("s2")) }},
		{"unlink s", func() error { return os.Remove(in("s")) }},
		{"setattr ", func() error { return os.Chmod(in("second"), 0o600) }},
		{"setxattr ", func() error { return syscall.Setxattr(in("second"), "user.x", []byte("y"), 0) }},
		{"commit ", func() error { _, err := older.WriteString("more"); return errors.Join(err, older.Sync()) }},
		{"commit ", func() error { _, err := open.WriteString("more"); return errors.Join(err, open.Close()) }},
		{"rmdir d", func() error { return os.Remove(in("d")) }},
	} {
		m.sent()
		closed := makeFiles(t, dir, 10*i, 10*i+3)
		must(t, change.want, change.do())
		got := m.sent()
		if len(got) <= len(closed) || !slices.Equal(got[:len(closed)], closed) {
			t.Errorf("%s: the service heard of %q, want first %q", change.want, got, closed)
		}
	}
}

// createHere makes a file that the service is not told of.
func createHere(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	must(t, "create", err)
	return f
}

// Another mount sees a file as soon as its close has returned.
func TestOthersSeeClosesThatDidNotWait(t *testing.T) {
	w := newWorld(t)
	fs, _, dir := w.behindMount()
	_, other := w.mount("other", Config{})
	for i := range 20 {
		here, there := filepath.Join(dir, fmt.Sprint(i)), filepath.Join(other, "d", fmt.Sprint(i))
		must(t, "mkdir", os.Mkdir(here, 0o755))
		makeFiles(t, here, 0, 10)
		if i%2 == 0 {
			es, err := os.ReadDir(there)
			must(t, "list", err)
			if len(es) != 10 {
				t.Errorf("there are %d files, want 10", len(es))
			}
		}
		expect(t, "read elsewhere", filepath.Join(there, "9"), contentsOf("9"))
	}
	if fs.stats.Behind.Load() < 200 {
		t.Errorf("%d closes did not wait", fs.stats.Behind.Load())
	}
}

// What cannot be kept is said, and holds up nothing else; what is written to a
// file again after its close is kept, too; and an unmount stores all.
func TestClosesThatDidNotWaitAndFail(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("behind", Config{WriteBehind: true})
	m := &refusingMeta{Meta: fs.meta}
	fs.meta = m
	mount := w.mountFS(fs)
	dir := delegated(t, fs, mount)
	for i := range 30 {
		name := fmt.Sprint(i)
		err := os.WriteFile(filepath.Join(dir, name), contentsOf(name), 0o644)
		if i == 17 && errors.Is(err, syscall.ENOSPC) { // as the mount knows by now that there is no space
			continue
		}
		must(t, "write", err)
		if i%2 == 0 {
			f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
			must(t, "open", err)
			_, err = f.WriteString("+")
			must(t, "append", errors.Join(err, f.Close()))
		}
	}
	must(t, "settle", fs.behind.settle(t.Context(), fs))
	_, other := w.mount("other", Config{})
	for i := range 30 {
		name := fmt.Sprint(i)
		want := contentsOf(name)
		if i%2 == 0 {
			want = append(want, '+')
		}
		got, err := os.ReadFile(filepath.Join(other, "d", name))
		if i == 5 || i == 17 { // the service refuses it
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s, which was refused: %q, %v", name, got, err)
			}
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s, which was refused, on the mount that made it: %v", name, err)
			}
		} else if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A refusingMeta refuses to make two files.
type refusingMeta struct{ Meta }

func (m *refusingMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	refuse := func(r *meta.Request) bool { return r.Op == meta.OpMake && (r.Name == "5" || r.Name == "17") }
	if refuse(req) {
		return nil, &meta.Error{Op: req.Op, Errno: syscall.ENOSPC, Msg: "no space, says the test"}
	}
	if i := slices.IndexFunc(req.Ops, func(r meta.Request) bool { return refuse(&r) }); i >= 0 {
		some := *req
		some.Ops = req.Ops[:i]
		reply := &meta.Reply{}
		if i > 0 {
			var err error
			if reply, err = m.Meta.Do(ctx, &some); err != nil || len(reply.Replies) < i {
				return reply, err
			}
		}
		reply.Replies = append(reply.Replies, meta.Reply{Errno: syscall.ENOSPC, Msg: "no space, says the test"})
		return reply, nil
	}
	return m.Meta.Do(ctx, req)
}

// What many make and remove at the same time goes together, and each hears of its
// own.
func TestWhatIsUnderWayTogetherGoesTogether(t *testing.T) {
	w := newWorld(t)
	m, mount := w.counted()
	dir := filepath.Join(mount, "d")
	must(t, "mkdir", os.Mkdir(dir, 0o755))
	must(t, "a first file", os.WriteFile(filepath.Join(dir, "first"), nil, 0o644))
	m.messages.Store(0)
	const threads, files = 8, 50
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() {
			for j := range files {
				name := filepath.Join(dir, fmt.Sprint(i, "-", j))
				if err := os.WriteFile(name, contentsOf(name), 0o644); err != nil {
					t.Errorf("write: %v", err)
				}
				if j%2 == 0 {
					if err := os.Remove(name); err != nil {
						t.Errorf("remove: %v", err)
					}
					if err := os.Remove(name); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("it could be removed twice: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if all := threads * files * 3 / 2; int(m.messages.Load()) >= all {
		t.Errorf("%d changes by %d threads took %d messages", all, threads, m.messages.Load())
	}
	es, err := os.ReadDir(dir)
	must(t, "list", err)
	if len(es) != threads*files/2+1 {
		t.Errorf("%d files are left", len(es))
	}
}

// So do removals of what another mount made, which does not look any more.
func TestRemovalsGoTogether(t *testing.T) {
	const threads, files = 8, 60
	w := newWorld(t)
	_, other := w.mount("other", Config{})
	name := func(dir string, i, j int) string { return filepath.Join(dir, fmt.Sprint(i), fmt.Sprint(j)) }
	for i := range threads { // the kernel has one at a time in each directory
		must(t, "mkdir", os.Mkdir(filepath.Join(other, fmt.Sprint(i)), 0o755))
		for j := range files {
			put(t, name(other, i, j), nil)
		}
	}
	m, mount := w.counted()
	m.messages.Store(0)
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() {
			for j := range files {
				if err := os.Remove(name(mount, i, j)); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := int(m.messages.Load()); n >= threads*files {
		t.Errorf("%d removals by %d threads took %d messages", threads*files, threads, n)
	}
	for i := range threads {
		must(t, "remove the directory", os.Remove(filepath.Join(mount, fmt.Sprint(i))))
	}
}

// A flush that is under way when its file is closed behind may be what the others
// wait for; so it must not wait for them.
func TestWhatIsHeldHoldsUpNothingElse(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	release := fs.gather.hold()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := fs.gather.do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: "f", Mode: syscall.S_IFREG | 0o644}); err != nil {
		t.Errorf("a change beside those that are held: %v", err)
	}
	placed, done := make(chan struct{}), make(chan error)
	go func() {
		_, err := fs.gather.do(context.WithValue(ctx, orderKey{}, func() { close(placed) }), &meta.Request{Op: meta.OpUnlink, Ino: meta.Root, Name: "f"})
		done <- err
	}()
	<-placed
	select {
	case err := <-done:
		t.Errorf("one that is held: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Errorf("one that was held: %v", err)
	}
}

// Near the volume's limit of inodes closes wait again, so none is taken back.
func TestClosesBehindStopWhereRoomIsScarce(t *testing.T) {
	const inodes = 200
	q := newQuotaWorld(t, 0, inodes)
	fs, mount := q.mount("behind", Config{WriteBehind: true})
	dir := delegated(t, fs, mount)
	closed := 0
	for ; closed < 2*inodes; closed++ {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(closed)), []byte("x"), 0o644); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("the volume is full: %v", err)
			}
			break
		}
		if closed%10 == 0 { // so that some are behind, and the room is looked at again
			time.Sleep(2 * behindDelay)
		}
	}
	must(t, "settle", fs.behind.settle(t.Context(), fs))
	_, other := q.mount("other", Config{})
	for i := range closed {
		if _, err := os.Stat(filepath.Join(other, "d", fmt.Sprint(i))); err != nil {
			t.Errorf("one of %d files that were closed: %v", closed, err)
		}
	}
	if want := inodes - 2; closed != want { // the root and d
		t.Errorf("%d files were closed, want %d", closed, want)
	}
	if n := fs.stats.Behind.Load(); n == 0 || n >= int64(closed) {
		t.Errorf("%d of %d closes did not wait", n, closed)
	}
}

// inodeOf returns the inode that is known by a name.
func inodeOf(t *testing.T, fs *FS, name string) *inode {
	t.Helper()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, in := range fs.inodes {
		in.mu.Lock()
		is := in.name
		in.mu.Unlock()
		if is == name {
			return in
		}
	}
	t.Fatalf("no inode of %s", name)
	return nil
}

// opened opens a file that is there once more.
func opened(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, "open", err)
	t.Cleanup(func() { f.Close() })
	return f
}

// within fails the test if what is to come over done does not.
func within(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		must(t, what, err)
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// An fsync waits for what was closed before, also where it has nothing to store.
func TestAnFsyncOfWhatIsStoredWaitsForClosesBehind(t *testing.T) {
	w := newWorld(t)
	_, m, dir := w.behindMount()
	file := opened(t, filepath.Join(dir, "first"))
	root, err := os.Open(filepath.Dir(dir))
	must(t, "open", err)
	defer root.Close()
	m.close()
	makeFiles(t, dir, 0, 3)
	synced := make(chan error, 2)
	for _, f := range []*os.File{file, root} {
		go func() { synced <- f.Sync() }()
	}
	select {
	case err := <-synced:
		t.Errorf("an fsync does not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	m.open()
	within(t, "fsync", synced)
	within(t, "fsync", synced)
}

// A close is not done while its last write is in no request.
func TestACloseWaitsForWhatWasWrittenSinceTheLast(t *testing.T) {
	w := newWorld(t)
	fs, _, dir := w.behindMount()
	_, other := w.mount("other", Config{})
	f := createHere(t, filepath.Join(dir, "f"))
	defer f.Close()
	again, third := opened(t, f.Name()), opened(t, f.Name())
	_, err := f.WriteString("a")
	must(t, "write", err)
	in := inodeOf(t, fs, "f")
	in.mu.Lock()
	making := in.making
	in.mu.Unlock()
	making.mutex <- struct{}{} // the flush has what is written now, and does not get to its request
	must(t, "close", again.Close())
	time.Sleep(10 * behindDelay)
	_, err = f.WriteString("b")
	must(t, "write", err)
	closed := make(chan error, 1)
	go func() { closed <- third.Close() }()
	time.Sleep(10 * time.Millisecond)
	<-making.mutex
	within(t, "close", closed)
	expect(t, "read elsewhere", filepath.Join(other, "d", "f"), []byte("ab"))
}

// Nobody waits for a bucket that is away because a file that was closed has grown.
func TestAClosedFileThatGrowsHoldsUpNobody(t *testing.T) {
	w := newWorld(t)
	_, m, dir := w.behindMount()
	_, other := w.mount("other", Config{})
	f := createHere(t, filepath.Join(dir, "f"))
	again := opened(t, f.Name())
	away := make(chan struct{})
	w.bucket.setFail(func(string, store.Key) error { <-away; return nil })
	m.close()
	makeFiles(t, dir, 0, 1)
	time.Sleep(10 * behindDelay) // it is under way, and what follows waits for it
	_, err := f.WriteString("small")
	must(t, "write", err)
	must(t, "close", again.Close())
	grown, made, seen := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { _, err := f.Write(make([]byte, 300<<10)); grown <- err }()
	time.Sleep(10 * time.Millisecond)
	m.open()
	defer func() {
		close(away)
		must(t, "close", f.Close())
	}()
	within(t, "write", grown)
	go func() { made <- os.Mkdir(filepath.Join(dir, "x"), 0o755) }()
	go func() { _, err := os.ReadDir(filepath.Join(other, "d")); seen <- err }()
	within(t, "mkdir", made)
	within(t, "ls on the other mount", seen)
}

// Who flushes a file does not wait for the queue with the file locked, as the queue
// may wait for the lock.
func TestAFlushAndTheCloseOfTheSameFileDoNotWaitForEachOther(t *testing.T) {
	w := newWorld(t)
	fs, m, dir := w.behindMount()
	f := createHere(t, filepath.Join(dir, "f"))
	again := opened(t, f.Name())
	in := inodeOf(t, fs, "f")
	must(t, "lock", in.lock(t.Context()))
	flushed := make(chan error, 1)
	go func() { flushed <- fs.flush(t.Context(), in) }()
	time.Sleep(20 * time.Millisecond) // it waits for the lock
	m.close()
	makeFiles(t, dir, 0, 1)
	time.Sleep(10 * behindDelay) // under way
	makeFiles(t, dir, 1, 2)
	in.unlock()
	time.Sleep(20 * time.Millisecond) // the flush is about to tell of the file
	closed := make(chan error, 1)
	go func() { closed <- again.Close() }()
	time.Sleep(20 * time.Millisecond)
	m.open()
	within(t, "flush", flushed)
	within(t, "close", closed)
	must(t, "close", f.Close())
}
