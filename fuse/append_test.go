package fuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"flexfs/meta"
)

// appender opens the file to append to it.
func (p *pair) appender() *os.File {
	p.t.Helper()
	f, err := os.OpenFile(filepath.Join(p.here, "f"), os.O_WRONLY|os.O_APPEND, 0)
	must(p.t, "open to append", err)
	p.t.Cleanup(func() { f.Close() })
	return f
}

// append appends to the file on the other mount, and closes it.
func (p *pair) append(s string) {
	p.t.Helper()
	f, err := os.OpenFile(filepath.Join(p.there, "f"), os.O_WRONLY|os.O_APPEND, 0)
	must(p.t, "open elsewhere", err)
	write(p.t, f, s)
	must(p.t, "close elsewhere", f.Close())
}

func write(t *testing.T, f *os.File, s string) {
	t.Helper()
	_, err := f.WriteString(s)
	must(t, "write", err)
}

// ours and theirs are records that are appended here and elsewhere.
const ours, theirs = "AAAAAAAA", "BBBBBBBB"

// haveBoth checks that the file has one record of each mount.
func (p *pair) haveBoth() {
	p.t.Helper()
	if got := string(p.read()); strings.Count(got, "A") != len(ours) || strings.Count(got, "B") != len(theirs) {
		p.t.Errorf("the file has %q, want one record of each mount", got)
	}
}

// After an append here and one elsewhere something else happens to the file here.
func TestWhatAnotherMountAppendedStaysWhateverFollowsAnAppend(t *testing.T) {
	for name, then := range map[string]func(p *pair, f *os.File) error{
		"nothing": func(*pair, *os.File) error { return nil },
		"write": func(_ *pair, f *os.File) error {
			_, err := f.WriteAt([]byte("H"), 0)
			return err
		},
		"longer":   func(_ *pair, f *os.File) error { return f.Truncate(1000) },
		"punch":    func(_ *pair, f *os.File) error { return unix.Fallocate(int(f.Fd()), punchHole|keepSize, 0, 2) },
		"allocate": func(_ *pair, f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 1000) },
		"copy": func(p *pair, f *os.File) error {
			from, err := os.Open(filepath.Join(p.here, "from"))
			must(p.t, "open", err)
			defer from.Close()
			_, err = unix.CopyFileRange(int(from.Fd()), nil, int(f.Fd()), nil, 10, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, newWorld(t))
			must(t, "write", os.WriteFile(filepath.Join(p.here, "from"), []byte("0123456789"), 0o644))
			f := p.open([]byte(strings.Repeat(".", 50)))
			app := p.appender()
			write(t, app, ours)
			p.append(theirs)
			must(t, name, then(p, f))
			must(t, "close", app.Close())
			p.haveBoth()
		})
	}
}

func TestWhatAnotherMountAppendedStaysWhenAWriteCameBeforeAnAppend(t *testing.T) {
	p := newPair(t, newWorld(t))
	f := p.open([]byte(strings.Repeat(".", 50)))
	app := p.appender()
	write(t, f, "H")
	write(t, app, ours)
	p.append(theirs)
	must(t, "close", app.Close())
	p.haveBoth()
}

// The service was not told of the file, and tells of it when another mount looks,
// without its contents.
func TestWhatAnotherMountAppendedToAFileThatIsBeingMadeStays(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	here := delegated(t, fs, w.mountFS(fs))
	_, there := w.mount("two", Config{})
	p := &pair{t: t, here: here, there: filepath.Join(there, filepath.Base(here))}
	f, err := os.Create(filepath.Join(p.here, "f"))
	must(t, "create", err)
	defer f.Close()
	app := p.appender()
	write(t, app, ours)
	_, err = f.WriteAt([]byte("H"), 0)
	must(t, "write", err)
	p.append(theirs)
	must(t, "close", app.Close())
	if got, want := string(p.read()), "H"+ours[1:]+theirs; got != want {
		t.Errorf("the file has %q, want %q", got, want)
	}
}

// A log is emptied, or cut, elsewhere. What is here of it, and what is appended
// afterwards, follows what is left.
func TestAppendsFollowWhatATruncationElsewhereLeft(t *testing.T) {
	for name, block := range map[string]int{"in one block": 0, "in two blocks": testBlockSize - 4} {
		for _, size := range []int{0, 20} {
			for _, more := range []string{"", "CCCCCCCC"} {
				t.Run(fmt.Sprintf("%s, to %d, with %d bytes more", name, size, len(more)), func(t *testing.T) {
					p := newPair(t, newWorldOf(t, noInline))
					was := strings.Repeat(".", max(block, 50))
					p.open([]byte(was))
					app := p.appender()
					write(t, app, ours)
					must(t, "truncate elsewhere", os.Truncate(filepath.Join(p.there, "f"), int64(size)))
					if more != "" {
						write(t, app, more)
					}
					must(t, "close", app.Close())
					if got, want := string(p.read()), was[:size]+ours+more; got != want {
						t.Errorf("the file has %d bytes, %q, want %q", len(got), got[:min(len(got), 100)], want)
					}
				})
			}
		}
	}
}

// What was appended is not read behind zeros.
func TestAnAppendMovesWhatWasAppendedToWhereTheFileEnds(t *testing.T) {
	p := newPair(t, newWorld(t))
	p.open([]byte(strings.Repeat(".", 50)))
	app := p.appender()
	write(t, app, ours)
	must(t, "truncate elsewhere", os.Truncate(filepath.Join(p.there, "f"), 0))
	write(t, app, ours)
	got, err := os.ReadFile(filepath.Join(p.here, "f"))
	if want := ours + ours; err != nil || string(got) != want {
		t.Errorf("the file has %q (%v), want %q", got, err, want)
	}
}

// The answer to a commit of appended bytes is lost. They are not appended again if
// that was done; and who appended them is told if nobody knows, as another mount has
// appended to the same block since.
func TestAppendsWhoseCommitWasNotAnsweredAreNotAppendedTwice(t *testing.T) {
	for _, done := range []bool{true, false} {
		for _, others := range []bool{true, false} {
			t.Run(fmt.Sprintf("done %v, others append %v", done, others), func(t *testing.T) {
				w := newWorld(t)
				fs := w.newFS("one", Config{})
				var lose atomic.Bool
				fs.meta = &unsureMeta{fs.meta, func() (bool, bool) { return done, lose.Swap(false) }}
				here := w.mountFS(fs)
				_, there := w.mount("two", Config{})
				p := &pair{t: t, here: here, there: there}
				p.open([]byte("."))
				app := p.appender()
				write(t, app, ours)
				lose.Store(true)
				if err := app.Sync(); !errors.Is(err, syscall.EIO) {
					t.Fatalf("the fsync whose commit was not answered says %v", err)
				}
				want := "." + ours
				if others {
					p.append(theirs)
					if want = "." + theirs; done {
						want = "." + ours + theirs
					}
				}
				write(t, app, "CC")
				err := app.Sync()
				if unknown := errors.Is(err, syscall.EIO); unknown != others || !unknown && err != nil {
					t.Errorf("the second fsync says %v", err)
				}
				must(t, "third fsync", app.Sync())
				if got := string(p.read()); got != want+"CC" {
					t.Errorf("the file has %q, want %q", got, want+"CC")
				}
			})
		}
	}
}

// A program that only appends, or only writes, stores nothing before it closes the
// file; nor does one that cuts off what it appended.
func TestWritesOfOneKindAreStoredTogether(t *testing.T) {
	w := newWorld(t)
	fs := w.newFS("one", Config{})
	in := newFile(t, fs, "f")
	commits := fs.stats.Commits.Load()
	for range 10 {
		writeTo(t, fs, in, 0, []byte(ours), true)
	}
	truncateTo(t, fs, in, 0)
	for i := range uint64(10) {
		writeTo(t, fs, in, i*8, []byte(ours), false)
	}
	if n := fs.stats.Commits.Load() - commits; n != 0 {
		t.Errorf("%d commits before the file is closed", n)
	}
	flushed(t, fs, in)
	if n := fs.stats.Commits.Load() - commits; n != 1 {
		t.Errorf("%d commits, want 1", n)
	}
}

// Of a file that was closed behind others know nothing until the service is told of
// it, with all that was written; it is stored first once it is being told.
func TestAFileThatWasClosedBehindIsNotStoredForAnAppend(t *testing.T) {
	for _, test := range []struct {
		making making
		want   bool
	}{
		{making{}, true},
		{making{behind: true}, false},
		{making{behind: true, asked: true}, true},
		{making{behind: true, unsure: true}, true},
	} {
		in := &inode{making: &test.making}
		in.content.note(0, 1, false, meta.Time{})
		if got := in.storeFirst(true); got != test.want {
			t.Errorf("behind %v, asked %v, unsure %v: stored first is %v, want %v", test.making.behind, test.making.asked, test.making.unsure, got, test.want)
		}
	}
}
