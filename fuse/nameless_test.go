package fuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/meta/engine"
)

// Until it has a name nobody else can see a file, so what its close and fsync
// promise is due when it gets one.
func TestAFileThatGetsANameIsWholeOnTheOtherMount(t *testing.T) {
	_, a, b := twoMounts(t)
	fd, err := unix.Open(a, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	must(t, "open with O_TMPFILE", err)
	f := os.NewFile(uintptr(fd), "nameless")
	defer f.Close()
	want := pattern(3*testBlockSize+100, 1)
	_, err = f.Write(want)
	must(t, "write", err)
	dup, err := unix.Dup(fd)
	must(t, "dup", err)
	must(t, "close", unix.Close(dup))
	name := filepath.Join(b, "f")
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Fatalf("before it has a name: %v", err)
	}
	must(t, "linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, filepath.Join(a, "f"), unix.AT_SYMLINK_FOLLOW))
	expect(t, "named", name, want)

	copy(want, "later")
	_, err = f.WriteAt([]byte("later"), 0)
	must(t, "write", err)
	must(t, "close", f.Close())
	expect(t, "closed", name, want)
	must(t, "unlink", os.Remove(name))
	if _, err := os.Stat(filepath.Join(a, "f")); !os.IsNotExist(err) {
		t.Errorf("after an unlink on the other mount: %v", err)
	}
}

func TestAFileWithoutANameIsGivenUpWhenItIsClosed(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	for _, named := range []bool{false, true} {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
		must(t, "open with O_TMPFILE", err)
		var st unix.Stat_t
		must(t, "fstat", unix.Fstat(fd, &st))
		if !w.inUse(st.Ino) {
			t.Fatal("the service does not know that it is in use")
		}
		if named {
			must(t, "linkat", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, filepath.Join(dir, "f"), unix.AT_SYMLINK_FOLLOW))
		}
		must(t, "close", unix.Close(fd))
		for end := time.Now().Add(20 * time.Second); w.inUse(st.Ino); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the service was not told that it is closed (named: %v)", named)
			}
		}
	}
}

// inUse tells whether the service has noted that some session uses an inode
// without a name (docs/format/metadata.md: S session O ino).
func (w *world) inUse(ino uint64) bool {
	w.t.Helper()
	suffix := binary.BigEndian.AppendUint64([]byte{'O'}, ino)
	found := false
	err := w.engine.View(context.Background(), func(r engine.Reader) error {
		return r.Scan([]byte{0, 0, 0, 1, 'S'}, []byte{0, 0, 0, 1, 'T'}, false, func(key, _ []byte) (bool, error) {
			found = found || len(key) == 22 && bytes.HasSuffix(key, suffix)
			return true, nil
		})
	})
	must(w.t, "view", err)
	return found
}
