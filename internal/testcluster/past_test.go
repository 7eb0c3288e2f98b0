package testcluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"flexfs/modes"
)

// digest describes a tree: a line for each name, with what stat tells and a
// digest of the contents.
func digest(t *testing.T, top string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(top, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(name)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		what := ""
		switch {
		case info.Mode().IsRegular():
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			what = hex.EncodeToString(h.Sum(nil))
		case info.Mode()&fs.ModeSymlink != 0:
			if what, err = os.Readlink(name); err != nil {
				return err
			}
		}
		value := make([]byte, 100)
		n, err := syscall.Getxattr(name, "user.note", value)
		if err != nil {
			n = 0
		}
		fmt.Fprintf(&b, "%s ino %d %v nlink %d %d:%d size %d blocks %d mtime %d.%09d ctime %d.%09d note %q %s\n", strings.TrimPrefix(name, top),
			st.Ino, info.Mode(), st.Nlink, st.Uid, st.Gid, st.Size, st.Blocks, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec, value[:n], what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// nextSecond waits for the end of this second, and returns it.
func nextSecond() int64 {
	now := time.Now().Unix()
	time.Sleep(time.Until(time.Unix(now+1, 5e7)))
	return now
}

// try fails the test if something failed.
func try(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// patch overwrites a part of a file.
func patch(t *testing.T, name string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	try(t, err)
	_, err = f.WriteAt(data, off)
	try(t, err, f.Close())
}

func TestThePastIsMountedByteForByte(t *testing.T) {
	c := Start(t, Options{Groups: 1, Volume: map[string]any{"retention": 3600, "blockSize": 256 << 10}})
	m := c.Mount(nil)
	p := m.Path
	steps := []func(){
		func() {
			write(t, p("large"), contents(1, 3<<20))
			write(t, p("small"), []byte("one"))
			try(t, os.MkdirAll(p("d", "e"), 0o755), os.Symlink("small", p("link")))
			write(t, p("d", "e", "deep"), contents(2, 1<<20))
		},
		func() {
			patch(t, p("large"), 1<<20-7, contents(3, 300_000))
			write(t, p("small"), []byte("two, and longer"))
			try(t, os.Chmod(p("d"), 0o700), os.Link(p("small"), p("d", "other")), syscall.Setxattr(p("small"), "user.note", []byte("2"), 0))
		},
		func() {
			try(t, os.Truncate(p("large"), 1<<20+5), os.Rename(p("d", "e"), p("f")), os.Remove(p("small")))
			write(t, p("new"), contents(4, 700_000))
		},
		func() {
			patch(t, p("large"), 2<<20, []byte("after a hole"))
			try(t, os.RemoveAll(p("f")), os.Remove(p("link")), os.Rename(p("new"), p("large")), os.Chown(p("d"), 12, 34))
		},
	}
	was := map[int64]string{}
	for _, step := range steps {
		step()
		at := nextSecond()
		was[at] = digest(t, m.Dir)
	}
	try(t, os.RemoveAll(p("d")), os.Remove(p("large")))
	at := nextSecond()
	was[at] = digest(t, m.Dir)

	for at, want := range was {
		past := c.Mount(func(m *modes.Mount) { m.At = at })
		if got := digest(t, past.Dir); got != want {
			t.Errorf("at the end of second %d there was\n%s\nthe mount shows\n%s", at, want, got)
		}
		if err := os.WriteFile(past.Path("x"), nil, 0o600); err == nil {
			t.Error("the past was changed")
		}
		f, err := os.Open(past.Dir)
		try(t, err, syscall.Flock(int(f.Fd()), syscall.LOCK_EX), f.Close())
		past.Unmount()
	}
	before := c.Mount(func(m *modes.Mount) { m.At = -time.Now().Unix() + at - 1 }) // so many seconds ago
	if !strings.Contains(before.mode.Chosen(), "as it was at the end of ") {
		t.Errorf("the mount says %s", before.mode.Chosen())
	}
}

func TestAMountOfThePastIsStaleWhenItIsNotKeptAnyMore(t *testing.T) {
	c := Start(t, Options{Groups: 1, Members: 1, Volume: map[string]any{"retention": 4}, Lease: time.Second})
	m := c.Mount(nil)
	write(t, m.Path("f"), contents(1, 100_000))
	at := nextSecond()
	past := c.Mount(func(m *modes.Mount) { m.At = at })
	wantFile(t, past.Path("f"), contents(1, 100_000))
	c.Await("the past is gone", func() error {
		write(t, m.Path("f"), []byte("new"))
		_, err := os.Stat(past.Path("f"))
		if err == nil {
			return fmt.Errorf("f is there")
		}
		if !strings.Contains(err.Error(), syscall.ESTALE.Error()) {
			t.Fatalf("f: %v", err)
		}
		return nil
	})
	if err := os.WriteFile(m.Path("g"), nil, 0o600); err != nil {
		t.Errorf("the mount of the present: %v", err)
	}
	past.Unmount()
	if !strings.Contains(c.logs.text(), "the past that is mounted is not kept any more") {
		t.Error("the log does not say why")
	}
}

// flexfs runs the program and returns what it printed.
func flexfs(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	code := modes.Run(t.Context(), append([]string{"flexfs"}, args...), nil, &out, &out)
	return out.String(), code
}

func TestDeletedFilesAreListedAndRestoredOnAMount(t *testing.T) {
	c := Start(t, Options{Groups: 1, Volume: map[string]any{"retention": 3600, "blockSize": 256 << 10}})
	m, other := c.Mount(nil), c.Mount(nil)
	want := func(args []string, code int, parts ...string) {
		t.Helper()
		out, got := flexfs(t, args...)
		if got != code {
			t.Errorf("flexfs %v ended with %d, want %d:\n%s", args, got, code, out)
		}
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("flexfs %v does not say %q:\n%s", args, part, out)
			}
		}
	}
	write(t, m.Path("report"), contents(1, 900_000))
	try(t, os.MkdirAll(m.Path("project", "src", "empty"), 0o755))
	write(t, m.Path("project", "readme"), []byte("hello"))
	write(t, m.Path("project", "src", "data"), contents(2, 600_000))
	try(t, os.Symlink("readme", m.Path("project", "link")), os.Chmod(m.Path("project", "src"), 0o750))
	nextSecond()
	names := func(dir string) string { // without times, which a restore changes
		var b strings.Builder
		try(t, filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			var data []byte
			if info.Mode().IsRegular() {
				if data, err = os.ReadFile(name); err != nil {
					return err
				}
			}
			fmt.Fprintf(&b, "%s %v %x\n", strings.TrimPrefix(name, dir), info.Mode(), sha256.Sum256(data))
			return nil
		}))
		return b.String()
	}
	was := names(m.Path("project"))
	want([]string{"deleted", m.Dir}, 0, "DELETED")
	try(t, os.Remove(m.Path("report")), os.RemoveAll(m.Path("project")))
	for _, mount := range []*Mount{m, other} { // both know that it is not there
		if _, err := os.Stat(mount.Path("report")); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}

	want([]string{"deleted", m.Dir}, 0, " report", " project", "879 KiB")
	want([]string{"deleted", "--recursive", "--output", "json", other.Dir}, 0, `"path": "project/src/data"`, `"type": "link"`)
	want([]string{"restore", m.Path("report")}, 0, "1 × file")
	wantFile(t, m.Path("report"), contents(1, 900_000))
	wantFile(t, other.Path("report"), contents(1, 900_000))
	want([]string{"restore", m.Path("report")}, 1, "nothing of this name was deleted")
	want([]string{"restore", m.Path("project")}, 0, "3 × directory, 2 × file, 1 × link")
	if got := names(m.Path("project")); got != was {
		t.Errorf("there was\n%s\nrestored is\n%s", was, got)
	}
	if got := names(other.Path("project")); got != was {
		t.Errorf("there was\n%s\nanother mount sees\n%s", was, got)
	}

	// Of two files of a name each can be had, and nothing is overwritten.
	nextSecond()
	try(t, os.Remove(m.Path("report")))
	first := nextSecond()
	write(t, m.Path("report"), []byte("second"))
	nextSecond()
	try(t, os.Remove(m.Path("report")))
	write(t, m.Path("report"), []byte("third"))
	want([]string{"restore", m.Path("report")}, 1, "report is there: nothing is overwritten; give another name with --as")
	want([]string{"restore", m.Path("report"), "--as", "second"}, 0, "second")
	wantFile(t, m.Path("second"), []byte("second"))
	want([]string{"restore", m.Path("report"), "--as", "first", "--at", time.Unix(first-1, 0).UTC().Format(time.RFC3339)}, 0)
	wantFile(t, m.Path("first"), contents(1, 900_000))
	wantFile(t, m.Path("report"), []byte("third"))

	// A file that is in use where it was deleted is written to after it is back.
	f, err := os.OpenFile(m.Path("report"), os.O_RDWR, 0)
	try(t, err)
	nextSecond()
	try(t, os.Remove(m.Path("report")))
	want([]string{"restore", other.Path("report")}, 0)
	_, err = f.WriteAt([]byte("T"), 0)
	try(t, err, f.Close())
	wantFile(t, other.Path("report"), []byte("Third"))

	past := c.Mount(func(m *modes.Mount) { m.At = first })
	want([]string{"deleted", past.Dir}, 1, "is in a mount of the past")
	want([]string{"deleted", t.TempDir()}, 1, "is not in a mount of flexfs")
}

// An ordinary user lists what it may read, and restores what it owns.
func TestAUserRestoresOwnFilesOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be several users")
	}
	c := Start(t, Options{Groups: 1, Members: 1, Volume: map[string]any{"retention": 3600}})
	m := c.Mount(func(m *modes.Mount) { m.AllowOther = true })
	try(t, os.Chmod(m.Dir, 0o1777), os.Chmod(filepath.Dir(m.Dir), 0o755))
	for name, owner := range map[string]int{"mine": 1234, "theirs": 4321} {
		write(t, m.Path(name), []byte(name))
		try(t, os.Chown(m.Path(name), owner, owner))
	}
	try(t, os.Mkdir(m.Path("closed"), 0o711), os.Mkdir(m.Path("listable"), 0o744), os.Mkdir(m.Path("fixed"), 0o755))
	write(t, m.Path("fixed", "mine"), []byte("mine"))
	try(t, os.Chown(m.Path("fixed", "mine"), 1234, 1234))
	nextSecond()
	try(t, os.Remove(m.Path("mine")), os.Remove(m.Path("theirs")), os.Remove(m.Path("fixed", "mine")))
	as := func(args ...string) error { // the user runs getfattr and setfattr, as flexfs does
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // it is not used again
			_, _, errs := syscall.RawSyscall(syscall.SYS_SETRESGID, 1234, 1234, 1234)
			if errs == 0 {
				_, _, errs = syscall.RawSyscall(syscall.SYS_SETRESUID, 1234, 1234, 1234)
			}
			if errs != 0 {
				done <- errs
				return
			}
			if args[0] == "list" {
				_, err := syscall.Getxattr(args[1], "flexfs.deleted", make([]byte, 64<<10))
				done <- err
				return
			}
			done <- syscall.Setxattr(args[1], "flexfs.restore", []byte(args[2]), 0)
		}()
		return <-done
	}
	restore := func(dir, name string) error {
		buf := make([]byte, 64<<10)
		n, err := syscall.Getxattr(dir, "flexfs.deleted", buf)
		try(t, err)
		var page struct {
			Entries []struct {
				Name []byte
				At   int64
				Ino  uint64
			}
		}
		try(t, json.Unmarshal(buf[:n], &page))
		for _, e := range page.Entries {
			if string(e.Name) == name {
				value, err := json.Marshal(map[string]any{"name": e.Name, "at": e.At, "ino": e.Ino})
				try(t, err)
				return as("restore", dir, string(value))
			}
		}
		return fmt.Errorf("%s is not listed", name)
	}
	for _, tc := range []struct {
		what string
		got  error
		want error
	}{
		{"list of a directory for all", as("list", m.Dir), nil},
		{"list of one that it cannot read", as("list", m.Path("closed")), syscall.EACCES},
		{"list of one that it cannot search", as("list", m.Path("listable")), syscall.EACCES},
		{"restore of another's file", restore(m.Dir, "theirs"), syscall.EPERM},
		{"restore into a directory that it cannot write to", restore(m.Path("fixed"), "mine"), syscall.EACCES},
		{"restore of its own", restore(m.Dir, "mine"), nil},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	c.Await("the file shows", func() error { _, err := os.Stat(m.Path("mine")); return err })
}
