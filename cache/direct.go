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

// readDirect fills b from the start of a file, past the page cache: all of it in few
// requests to the disk, where the kernel would read ahead in small steps, and without
// a copy. It returns how much it read: what is less than all is to be read otherwise.
// b must have room for its length rounded up, see [roomy].
func readDirect(fd int, b []byte) (n int) {
	whole := alignUp(len(b))
	if cap(b) < whole || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%directAlign != 0 || setFlag(uintptr(fd), syscall.O_DIRECT) != nil {
		return 0
	}
	defer setFlag(uintptr(fd), 0)
	for n < len(b) && n%directAlign == 0 {
		m, err := syscall.Pread(fd, b[n:whole], int64(n))
		if err == syscall.EINTR {
			continue
		}
		if err != nil || m == 0 {
			break
		}
		n += m
	}
	return min(n, len(b))
}

// roomy returns n bytes that [readDirect] can fill.
func roomy(n int64) []byte {
	if n < minDirect {
		return make([]byte, n)
	}
	return make([]byte, n, alignUp(int(n)))
}

func alignUp(n int) int { return (n + directAlign - 1) &^ (directAlign - 1) }

// setDirect changes the flag of an open file.
func setDirect(f *os.File, flag uintptr) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = setFlag(fd, flag) })
	return errors.Join(err, failed)
}

func setFlag(fd, flag uintptr) error {
	if _, _, err := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFL, flag); err != 0 {
		return os.NewSyscallError("fcntl", err)
	}
	return nil
}
