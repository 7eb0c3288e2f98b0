package fuse

import (
	"context"
	"errors"
	"syscall"

	"flexfs/meta"
)

// errno turns any error into the number that the program gets. The metadata
// service's choice goes through as it is; what else went wrong is EIO, so that
// no cache or network error tells a program something about its file.
func errno(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(syscall.Errno); ok {
		return e // bare: this package chose it
	}
	var refused *meta.Error
	switch {
	case errors.As(err, &refused):
		return refused.Errno
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	default:
		return syscall.EIO
	}
}

// refusal returns the errno with which the metadata service refused, or 0.
func refusal(err error) syscall.Errno {
	var refused *meta.Error
	if errors.As(err, &refused) {
		return refused.Errno
	}
	return 0
}
