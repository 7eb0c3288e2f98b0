package remote

import "syscall"

// tcpCork has a connection keep what does not fill a packet, so that the header
// of an answer and what follows it leave together, or (off) send it.
func tcpCork(c syscall.Conn, on int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return // it is closed, as the next write will say
	}
	raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_CORK, on) })
}
