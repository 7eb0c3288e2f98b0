package fuse

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What this file system has not is refused with one of three errnos, so that
// programs do without it, and nothing happens to the file.
func TestWhatIsNotThereIsRefused(t *testing.T) {
	w := newWorld(t)
	_, dir := w.mount("one", Config{})
	data := pattern(3*testBlockSize, 1)
	put(t, filepath.Join(dir, "a"), data)
	put(t, filepath.Join(dir, "b"), data)
	a, err := os.OpenFile(filepath.Join(dir, "a"), os.O_RDWR, 0)
	must(t, "open", err)
	defer a.Close()
	b, err := os.OpenFile(filepath.Join(dir, "b"), os.O_RDWR, 0)
	must(t, "open", err)
	defer b.Close()
	fd := int(a.Fd())
	allocate := func(mode uint32) error { return unix.Fallocate(fd, mode, testBlockSize, testBlockSize) }
	ioctl := func(request uintptr, arg any) error {
		var e syscall.Errno
		switch arg := arg.(type) {
		case []byte:
			_, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&arg[0])))
		case int:
			_, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		}
		if e == 0 {
			return nil
		}
		return e
	}
	same := &unix.FileDedupeRange{Src_length: testBlockSize, Info: []unix.FileDedupeRangeInfo{{Dest_fd: int64(b.Fd())}}}
	verity := make([]byte, 128)
	verity[0], verity[4], verity[9] = 1, 1, 16 // version 1, SHA-256, blocks of 4096
	for what, err := range map[string]error{
		"FICLONE":                   unix.IoctlFileClone(fd, int(b.Fd())),
		"FICLONERANGE":              unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{Src_fd: int64(b.Fd()), Src_length: testBlockSize}),
		"FIDEDUPERANGE":             first(unix.IoctlFileDedupeRange(fd, same), dedupeStatus(same)),
		"FALLOC_FL_INSERT_RANGE":    allocate(unix.FALLOC_FL_INSERT_RANGE),
		"FALLOC_FL_COLLAPSE_RANGE":  allocate(unix.FALLOC_FL_COLLAPSE_RANGE),
		"FS_IOC_FIEMAP":             ioctl(0xc020660b, append([]byte{9: 0xff, 31: 0}, make([]byte, 4096)...)), // of 65,280 bytes
		"FS_IOC_GETFLAGS":           ioctl(unix.FS_IOC_GETFLAGS, make([]byte, 8)),
		"FS_IOC_SETFLAGS":           ioctl(unix.FS_IOC_SETFLAGS, []byte{0x40, 0, 0, 0, 0, 0, 0, 0}),
		"FS_IOC_GET_ENCRYPTION_KEY": ioctl(unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS, make([]byte, 128)),
		"FS_IOC_ENABLE_VERITY":      ioctl(unix.FS_IOC_ENABLE_VERITY, verity),
		"FIFREEZE":                  ioctl(0xc0045877, 0),
	} {
		if e, _ := err.(syscall.Errno); !slices.Contains([]syscall.Errno{syscall.EOPNOTSUPP, syscall.ENOTTY, syscall.EINVAL}, e) {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect(t, "what was to be changed", filepath.Join(dir, "a"), data)
}

func dedupeStatus(r *unix.FileDedupeRange) error {
	if s := r.Info[0].Status; s < 0 {
		return syscall.Errno(-s)
	}
	return nil
}
