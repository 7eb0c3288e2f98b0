// Package posixtest examines a directory: does the file system that it is on do
// what programs expect of one? It knows nothing about flexfs, and is proved by
// running it on a local file system.
package posixtest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// A check is one expectation. It gets an empty directory of its own.
type check struct {
	name string
	root bool // needs to be root, as it acts as another user
	run  func(t *testing.T, dir string)
}

// Run runs all checks below dir, which it leaves as it was. Other users must be
// able to get there.
func Run(t *testing.T, dir string) {
	for _, list := range [][]check{names, nameless, contents, attributes, access, users, acls, births, locks} {
		for _, c := range list {
			t.Run(c.name, func(t *testing.T) {
				if c.root && os.Getuid() != 0 {
					t.Skip("needs root")
				}
				sub, err := os.MkdirTemp(dir, "posixtest-")
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(sub, 0o755); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := os.RemoveAll(sub); err != nil {
						t.Errorf("clean up: %v", err)
					}
				}()
				c.run(t, sub)
			})
		}
	}
}

func write(t *testing.T, name string, data string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func open(t *testing.T, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func stat(t *testing.T, name string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		t.Fatalf("lstat %s: %v", name, err)
	}
	return &st
}

// do fails the test if what failed.
func do(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// refused fails the test unless what failed with one of the errnos.
func refused(t *testing.T, what string, err error, want ...syscall.Errno) {
	t.Helper()
	for _, e := range want {
		if errors.Is(err, e) {
			return
		}
	}
	t.Errorf("%s: %v, want %v", what, err, want)
}

func same(t *testing.T, what string, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %q, want %q", what, clip(got), clip(want))
	}
}

func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// as runs f as another user, without privileges. Credentials belong to threads:
// the thread ends with f.
func as(uid, gid uint32, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0)
		syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
		syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		f()
	}()
	<-done
}

// pattern returns n bytes that differ from place to place.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) ^ seed
	}
	return b
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
			return
		}
	}
}

func list(t *testing.T, dir string) string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func join(dir, name string) string { return filepath.Join(dir, name) }

// aligned returns n bytes as O_DIRECT wants them.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(&b[0])) & 4095
	return b[skip:][:n]
}
