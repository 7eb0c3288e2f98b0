package fuse

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nextName returns the name of the entry at which a directory is.
func nextName(t *testing.T, fd int) string {
	t.Helper()
	buf := make([]byte, 300) // room for one entry, and not for three
	n, err := unix.ReadDirent(fd, buf)
	must(t, "getdents", err)
	if n == 0 {
		return ""
	}
	end := 19
	for buf[end] != 0 {
		end++
	}
	return string(buf[19:end])
}

func TestSeeksInADirectoryFindTheSameEntriesAndAskOnce(t *testing.T) {
	w := newWorld(t)
	fs, dir := w.mount("one", Config{})
	const files = 2500
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%0100d", i)))
		must(t, "create", err)
		must(t, "close", f.Close())
	}
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	must(t, "open", err)
	defer syscall.Close(fd)
	const step = 100
	at := map[int64]string{}
	for pos := int64(0); pos < files; pos += step {
		_, err := syscall.Seek(fd, pos, 0)
		must(t, "seek", err)
		at[pos] = nextName(t, fd)
	}
	asked := fs.stats.Requests.Load()
	for range 200 {
		pos := rand.Int64N(files/step) * step
		if pos == 0 {
			continue // there it begins anew
		}
		_, err := syscall.Seek(fd, pos, 0)
		must(t, "seek", err)
		if got := nextName(t, fd); got != at[pos] || got == "" {
			t.Fatalf("at %d is %q, it was %q", pos, got, at[pos])
		}
	}
	if n := fs.stats.Requests.Load() - asked; n > 0 {
		t.Errorf("seeks asked the service %d times", n)
	}
}
