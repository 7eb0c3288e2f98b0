package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const stranger = 54321

// asStranger runs f as another user, without privileges. Credentials belong to
// threads: the thread ends with f.
func asStranger(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked
		syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0)
		syscall.RawSyscall(syscall.SYS_SETRESGID, stranger, stranger, stranger)
		syscall.RawSyscall(syscall.SYS_SETRESUID, stranger, stranger, stranger)
		err = f()
	}()
	<-done
	return err
}

// strangersACL is a list for the owner, with perm for the stranger.
func strangersACL(perm uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, uint32(perm), stranger}, {4, 0, 1<<32 - 1}, {16, 7, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// So it is for who asks for the list itself, and for nothing else.
func TestAnAccessControlListIsReadAsTheOtherMountSetIt(t *testing.T) {
	w := newWorld(t)
	_, a := w.mount("a", Config{})
	_, b := w.mount("b", Config{})
	put(t, filepath.Join(a, "f"), []byte("x"))
	f, err := os.Open(filepath.Join(b, "f"))
	must(t, "open", err)
	defer f.Close()
	buf := make([]byte, 200)
	for perm := range uint16(8) {
		want := strangersACL(perm)
		must(t, "set the list", syscall.Setxattr(filepath.Join(a, "f"), "system.posix_acl_access", want, 0))
		n, err := unix.Fgetxattr(int(f.Fd()), "system.posix_acl_access", buf)
		if err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("the list is %x (%v), want %x", buf[:n], err, want)
		}
	}
}

// The kernel of the other mount keeps the list that it asked for, or that there
// is none.
func TestAnAccessControlListHoldsOnTheOtherMountAtOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	w := newWorld(t)
	_, a := w.mount("a", Config{AllowOther: true})
	_, b := w.mount("b", Config{AllowOther: true})
	must(t, "mkdir", os.Mkdir(filepath.Join(a, "d"), 0o770))
	put(t, filepath.Join(a, "d/f"), []byte("x"))
	try := func(what string, want error) {
		t.Helper()
		for range 2 { // the second time the kernel may know
			err := asStranger(func() error {
				_, err := os.Stat(filepath.Join(b, "d/f"))
				return err
			})
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		}
	}
	name := filepath.Join(a, "d")
	set := func(perm uint16) {
		must(t, "set the list", syscall.Setxattr(name, "system.posix_acl_access", strangersACL(perm), 0))
	}
	for range 3 {
		try("without a list", syscall.EACCES)
		set(5)
		try("with a list that lets in", nil)
		set(0)
		try("with a list that shuts out", syscall.EACCES)
		set(7)
		try("with a list that lets in", nil)
		must(t, "chmod", os.Chmod(name, 0o700)) // takes all from the mask
		try("behind a mask", syscall.EACCES)
		must(t, "chmod", os.Chmod(name, 0o750))
		try("with a mask that lets in", nil)
		must(t, "remove the list", syscall.Removexattr(name, "system.posix_acl_access"))
	}
}
