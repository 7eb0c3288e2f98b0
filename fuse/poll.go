package fuse

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/jacobsa/fuse/fuseops"
)

// A Go program registers every file that it opens with epoll, and the kernel
// asks the file system whether the file can be polled. If that program is the
// one that serves the mount, the thread that waits for the answer keeps what the
// runtime needs to give one: with as many such threads as processors, nothing
// goes on. Once told that there is no polling (which is right: files of a disk
// are always ready) the kernel does not ask again. So each mount begins with
// opening and polling a file that is only there for that.
const (
	pollName = ".flexfs-poll"
	pollIno  = fuseops.InodeID(1<<64 - 2)
)

// teachPoll makes the kernel ask, and answers no.
func (fs *FS) teachPoll(dir string) error {
	fs.teaching.Store(true)
	defer fs.teaching.Store(false)
	fd, err := syscall.Open(dir+"/"+pollName, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", pollName, err)
	}
	defer syscall.Close(fd)
	p := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: 1}
	wait := syscall.NsecToTimespec(int64(time.Second))
	_, _, e := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
	if e != 0 {
		return fmt.Errorf("poll: %w", e)
	}
	return nil
}

// teach answers for the file that is polled, and reports whether op is about it.
func (c *call) teach(op any) bool {
	switch op := op.(type) {
	case *fuseops.LookUpInodeOp:
		if op.Parent != fuseops.RootInodeID || op.Name != pollName {
			return false
		}
		op.Entry.Child = pollIno
		op.Entry.Attributes = fuseops.InodeAttributes{Nlink: 1, Mode: 0o444}
		op.Entry.AttributesExpiration = time.Now().Add(time.Second)
		return true
	case *fuseops.GetInodeAttributesOp:
		op.Attributes = fuseops.InodeAttributes{Nlink: 1, Mode: 0o444}
		return op.Inode == pollIno
	case *fuseops.OpenFileOp:
		return op.Inode == pollIno
	case *fuseops.FlushFileOp:
		return op.Inode == pollIno
	}
	return false
}
