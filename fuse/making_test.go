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
	"syscall"
	"testing"
	"time"

	"flexfs/meta"
)

// delegated makes a directory in which files are made here first, and returns it.
func delegated(t testing.TB, fs *FS, mount string) string {
	t.Helper()
	dir := filepath.Join(mount, "d")
	must(t, "mkdir", os.Mkdir(dir, 0o755))
	return dir
}

// openHere makes a file that the service must not have been told of.
func openHere(t *testing.T, fs *FS, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	must(t, "create", err)
	t.Cleanup(func() { f.Close() })
	if n := fs.unmadeFiles(); n == 0 {
		t.Fatalf("the service was told of %s at once", name)
	}
	return f
}

func (fs *FS) unmadeFiles() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := 0
	for _, in := range fs.inodes {
		if !in.isMade() {
			n++
		}
	}
	return n
}

// What one mount made, and the service was not told of, others see: they cannot
// tell the difference.
func TestOthersSeeWhatWasMadeHere(t *testing.T) {
	for what, look := range map[string]func(t *testing.T, dir string){
		"stat": func(t *testing.T, dir string) {
			st, err := os.Stat(filepath.Join(dir, "f"))
			must(t, "stat", err)
			if st.Size() != 0 || st.Mode() != 0o644 {
				t.Errorf("it has %d bytes and mode %v", st.Size(), st.Mode())
			}
		},
		"list": func(t *testing.T, dir string) {
			es, err := os.ReadDir(dir)
			must(t, "list", err)
			if len(es) != 1 || es[0].Name() != "f" {
				t.Errorf("there is %v", es)
			}
		},
		"stat of the directory": func(t *testing.T, dir string) {
			var st syscall.Stat_t
			must(t, "stat", syscall.Stat(dir, &st))
			if st.Size != 1 {
				t.Errorf("it has %d entries", st.Size)
			}
		},
		"create": func(t *testing.T, dir string) {
			if f, err := os.OpenFile(filepath.Join(dir, "f"), os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, os.ErrExist) {
				t.Errorf("it could be made once more: %v", err)
				f.Close()
			}
		},
		"mkdir": func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "f"), 0o700); !errors.Is(err, os.ErrExist) {
				t.Errorf("a directory of that name could be made: %v", err)
			}
		},
		"rmdir": func(t *testing.T, dir string) {
			if err := syscall.Rmdir(dir); err != syscall.ENOTEMPTY {
				t.Errorf("its directory could be removed: %v", err)
			}
		},
		"a directory in its place": func(t *testing.T, dir string) {
			must(t, "mkdir", os.Mkdir(dir+"2", 0o755))
			if err := syscall.Rename(dir+"2", dir); err != syscall.ENOTEMPTY {
				t.Errorf("its directory could be replaced: %v", err)
			}
		},
		"rename": func(t *testing.T, dir string) {
			must(t, "rename", os.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")))
			must(t, "rename", os.Rename(filepath.Join(dir, "g"), filepath.Join(dir, "f")))
		},
		"link":  func(t *testing.T, dir string) { must(t, "link", os.Link(filepath.Join(dir, "f"), dir+"f")) },
		"chmod": func(t *testing.T, dir string) { must(t, "chmod", os.Chmod(filepath.Join(dir, "f"), 0o600)) },
		"lock": func(t *testing.T, dir string) {
			f, err := os.Open(filepath.Join(dir, "f"))
			must(t, "open", err)
			defer f.Close()
			must(t, "lock", syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
		},
	} {
		for where, same := range map[string]bool{"another mount": false, "the same mount": true} {
			t.Run(what+", "+where, func(t *testing.T) {
				w := newWorld(t)
				one, a := w.mount("one", Config{})
				_, b := w.mount("two", Config{})
				dir := delegated(t, one, a)
				f := openHere(t, one, filepath.Join(dir, "f"))
				at := b
				if same {
					at = a
				}
				look(t, filepath.Join(at, "d"))
				_, err := f.WriteString("contents")
				must(t, "write and close", errors.Join(err, f.Close()))
				expect(t, "read elsewhere", filepath.Join(b, "d", "f"), []byte("contents"))
				expect(t, "read here", filepath.Join(dir, "f"), []byte("contents"))
			})
		}
	}
}

// Two mounts make files of the same names in the same directories, and each name
// is made once.
func TestANameIsMadeOnce(t *testing.T) {
	w := newWorld(t)
	_, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	const dirs, names = 20, 10
	var wg sync.WaitGroup
	made := make([][]string, 4)
	for i := range made {
		at := []string{a, b}[i%2]
		wg.Go(func() {
			for d := range dirs {
				dir := fmt.Sprint(d)
				if err := os.Mkdir(filepath.Join(at, dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
					t.Errorf("mkdir: %v", err)
				}
				for n := range names {
					name := filepath.Join(dir, fmt.Sprint((n+i*3)%names))
					f, err := os.OpenFile(filepath.Join(at, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
					if errors.Is(err, os.ErrExist) {
						continue
					}
					if err != nil {
						t.Errorf("create: %v", err)
						return
					}
					_, err = fmt.Fprint(f, i)
					if err := errors.Join(err, f.Close()); err != nil {
						t.Errorf("write and close: %v", err)
					}
					made[i] = append(made[i], name)
				}
			}
		})
	}
	wg.Wait()
	all := slices.Concat(made...)
	slices.Sort(all)
	if n := len(slices.Compact(slices.Clone(all))); n != dirs*names || len(all) != n {
		t.Fatalf("%d were made, of %d names", len(all), n)
	}
	for i, list := range made {
		for _, name := range list {
			expect(t, name, filepath.Join(a, name), []byte(fmt.Sprint(i)))
			expect(t, name, filepath.Join(b, name), []byte(fmt.Sprint(i)))
		}
	}
}

// What fstat says of a file while it is written is what every mount says later:
// programs compare times.
func TestAFileMadeHereKeepsItsAttributes(t *testing.T) {
	w := newWorld(t)
	one, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	dir := delegated(t, one, a)
	f := openHere(t, one, filepath.Join(dir, "f"))
	_, err := f.WriteString("some")
	must(t, "write", err)
	time.Sleep(2 * time.Millisecond)
	must(t, "chmod", errors.Join(f.Chmod(0o640), f.Chown(3, 4)))
	var was, here, there syscall.Stat_t
	must(t, "fstat", syscall.Fstat(int(f.Fd()), &was))
	if was.Ino == 0 || was.Mode != syscall.S_IFREG|0o640 || was.Uid != 3 || was.Gid != 4 || was.Size != 4 || was.Nlink != 1 {
		t.Errorf("fstat says %+v", was)
	}
	must(t, "close", f.Close())
	must(t, "stat", errors.Join(syscall.Stat(f.Name(), &here), syscall.Stat(filepath.Join(b, "d", "f"), &there)))
	was.Dev, here.Dev, there.Dev = 0, 0, 0
	if was != here || was != there {
		t.Errorf("fstat said %+v\nstat says   %+v\nelsewhere   %+v", was, here, there)
	}

	// Times that are set stay, and those of the directory are of now.
	must(t, "mkdir", os.Mkdir(filepath.Join(dir, "e"), 0o755))
	dir = filepath.Join(dir, "e")
	f = openHere(t, one, filepath.Join(dir, "g"))
	must(t, "utimes", syscall.Futimes(int(f.Fd()), []syscall.Timeval{{Sec: 5}, {Sec: 7, Usec: 8}}))
	must(t, "close", f.Close())
	must(t, "stat", errors.Join(syscall.Stat(filepath.Join(b, "d", "e", "g"), &there), syscall.Stat(dir, &here)))
	if there.Atim.Sec != 5 || there.Mtim != (syscall.Timespec{Sec: 7, Nsec: 8000}) {
		t.Errorf("times that were set are %v and %v", there.Atim, there.Mtim)
	}
	if now := time.Now().Unix(); here.Mtim.Sec < now-5 || here.Mtim.Sec > now+1 {
		t.Errorf("the directory was changed at %d, now is %d", here.Mtim.Sec, now)
	}
}

// A file that was made here outlives the session whose directory it was.
func TestWhatWasMadeHereOutlivesALostSession(t *testing.T) {
	w := newShortWorld(t)
	one, a := w.mount("one", Config{})
	_, b := w.mount("two", Config{})
	dir := delegated(t, one, a)
	f := openHere(t, one, filepath.Join(dir, "f"))
	g := openHere(t, one, filepath.Join(dir, "g"))
	for _, f := range []*os.File{f, g} {
		_, err := f.WriteString("mine")
		must(t, "write", err)
	}
	w.loseSessions(one)
	must(t, "close", f.Close())
	expect(t, "a file made before the session was lost", filepath.Join(b, "d", "f"), []byte("mine"))
	must(t, "close", g.Close())
	expect(t, "another", filepath.Join(b, "d", "g"), []byte("mine"))
}

// takenMeta has another make a file of the same name before this mount tells of
// its own, as it may when a session was lost.
type takenMeta struct {
	Meta
	once sync.Once
}

func (m *takenMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	if req.Op == meta.OpMake && req.Ino2 != 0 {
		m.once.Do(func() {
			other := *req
			other.Ino2, other.Blocks, other.Delegate = 0, nil, false
			m.Meta.Do(ctx, &other)
		})
	}
	return m.Meta.Do(ctx, req)
}

func TestANameThatOthersTookMeanwhileIsLostAndSaidSo(t *testing.T) {
	w := newWorld(t)
	one := w.newFS("one", Config{})
	one.meta = &takenMeta{Meta: one.meta}
	a := w.mountFS(one)
	_, b := w.mount("two", Config{})
	dir := delegated(t, one, a)
	f := openHere(t, one, filepath.Join(dir, "f"))
	_, err := f.WriteString("mine")
	must(t, "write", err)
	if err := f.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close says %v, want EIO", err)
	}
	for _, mount := range []string{a, b} {
		expect(t, "what the other made", filepath.Join(mount, "d", "f"), nil)
	}
	if n := one.unmadeFiles(); n != 0 {
		t.Errorf("%d files are still to be made", n)
	}
}

// muteMeta loses answers to what makes files: done or not, nobody knows.
type muteMeta struct {
	Meta
	mu   sync.Mutex
	lose int // answers
	done bool
}

func (m *muteMeta) Do(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	m.mu.Lock()
	lose, done := m.lose > 0 && req.Op == meta.OpMake && req.Ino2 != 0, m.done
	if lose {
		m.lose--
	}
	m.mu.Unlock()
	if !lose {
		return m.Meta.Do(ctx, req)
	}
	if done {
		if _, err := m.Meta.Do(ctx, req); err != nil {
			return nil, err
		}
	}
	return nil, &meta.Error{Op: req.Op, Errno: syscall.EIO, Msg: "the session was lost"}
}

// Whether or not the service had made the file when its answer was lost, there is
// one with what was written, once.
func TestAMakeWithoutAnswerIsDoneOnce(t *testing.T) {
	for name, done := range map[string]bool{"done": true, "not done": false} {
		for what, size := range map[string]int{"empty": 0, "inline": 100, "blocks": testBlockSize + 100} {
			t.Run(what+", "+name, func(t *testing.T) {
				w := newWorld(t)
				one := w.newFS("one", Config{})
				m := &muteMeta{Meta: one.meta, lose: 2, done: done}
				one.meta = m
				a := w.mountFS(one)
				_, b := w.mount("two", Config{})
				dir := delegated(t, one, a)
				f := openHere(t, one, filepath.Join(dir, "f"))
				want := bytes.Repeat([]byte("x"), size)
				_, err := f.Write(want)
				must(t, "write", err)
				for range 2 {
					if err := f.Sync(); !errors.Is(err, syscall.EIO) {
						t.Fatalf("fsync says %v while the answers are lost", err)
					}
				}
				want = append(want, 'y')
				_, err = f.WriteString("y")
				must(t, "write more", errors.Join(err, f.Sync(), f.Close()))
				expect(t, "read elsewhere", filepath.Join(b, "d", "f"), want)
				es, err := os.ReadDir(filepath.Join(b, "d"))
				must(t, "list", err)
				if len(es) != 1 {
					t.Errorf("there is %v", es)
				}
			})
		}
	}
}

// A program need not close what it made for others to find it there after a while,
// and a sync of the directory makes it so at once.
func TestAFileThatStaysOpenIsMade(t *testing.T) {
	w := newWorld(t)
	one, a := w.mount("one", Config{})
	dir := delegated(t, one, a)
	openHere(t, one, filepath.Join(dir, "f"))
	d, err := os.Open(dir)
	must(t, "open", err)
	defer d.Close()
	must(t, "fsync of the directory", d.Sync())
	if n := one.unmadeFiles(); n != 0 {
		t.Errorf("%d files are not made after a sync of the directory", n)
	}
	openHere(t, one, filepath.Join(dir, "g"))
	one.mu.Lock()
	for in := range one.dirty {
		in.mu.Lock()
		if in.making != nil {
			in.making.since = time.Now().Add(-maxAge)
		}
		in.mu.Unlock()
	}
	one.mu.Unlock()
	w.await("file made in the background", func() bool { return one.unmadeFiles() == 0 })
}
