package testcluster

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
