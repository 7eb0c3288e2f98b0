package cache

import (
	"errors"
	"io"
	"os"
	"syscall"
	"unsafe"
)

const (
	// directAlign is what the disks that there are want memory, offsets and
	// lengths to be a multiple of.
	directAlign = 4096

	// minDirect is from how many bytes on it pays to go past the page cache.
	minDirect = 128 << 10
)

// writeDirect writes data to f, which is empty, past the page cache where that can
// be: what is to be synced at once, or is in memory anyway, need not be copied
// there. Where the memory is not aligned, or the disk cannot, it is an ordinary
// write.
func writeDirect(f *os.File, data []byte) error {
	n := len(data) &^ (directAlign - 1)
	if n < minDirect || uintptr(unsafe.Pointer(unsafe.SliceData(data)))%directAlign != 0 || setDirect(f, syscall.O_DIRECT) != nil {
		n = 0
	}
	if n > 0 {
		_, err := f.Write(data[:n])
		if failed := setDirect(f, 0); err == nil {
			err = failed
		}
		if errors.Is(err, syscall.EINVAL) { // not with this disk
			n = 0
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return err
		}
	}
	_, err := f.Write(data[n:])
	return err
}

// setDirect changes the flag of an open file.
func setDirect(f *os.File, flag uintptr) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed syscall.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, failed = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFL, flag)
	})
	if err == nil && failed != 0 {
		err = os.NewSyscallError("fcntl", failed)
	}
	return err
}
