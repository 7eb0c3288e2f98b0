package fuse

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// connections is where most systems mount the control file system of FUSE.
const connections = "/sys/fs/fuse/connections"

// OpenAbort opens the kernel's switch that cuts a mount off, see Config.OnMount: one
// byte written to it ends all calls on the mount with an error, whatever has become
// of the mount's process. It is the switch of this mount for good; when the mount is
// gone it does nothing. The caller is to close the file.
//
// It is the file abort of the connection in fusectl; see the kernel's
// Documentation/filesystems/fuse/fuse.rst, "Interrupting filesystem operations".
func OpenAbort(connection string) (*os.File, error) {
	f, err := os.OpenFile(connections+"/"+connection+"/abort", os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = openControl(connection + "/abort")
	}
	if err != nil {
		return nil, fmt.Errorf("fuse: %w", err)
	}
	return f, nil
}

// openControl opens a file of fusectl where that is not mounted, which only an
// administrator can.
func openControl(name string) (*os.File, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "fusectl:" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
