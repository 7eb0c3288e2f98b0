//go:build !linux

package remote

import "syscall"

// tcpCork does nothing where it is not known.
func tcpCork(syscall.Conn, int) {}
