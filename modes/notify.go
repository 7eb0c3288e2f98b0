package modes

import (
	"net"
	"os"
)

// notifySystemd tells systemd, if it started us and wants to know, how we are:
// READY=1, STOPPING=1, STATUS=text. See sd_notify(3).
func notifySystemd(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:] // an abstract socket
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return // there is nobody to tell
	}
	defer conn.Close()
	conn.Write([]byte(state))
}
