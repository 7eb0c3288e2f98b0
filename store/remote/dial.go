package remote

import (
	"net"
	"time"
)

// connectTimeout bounds the making of a TCP connection, and then the TLS
// handshake. It leaves room for one lost packet.
const connectTimeout = 3 * time.Second

// silence is after how long a connection whose other end acknowledges nothing is
// given up. A host that crashed and is back, or a firewall that forgot the
// connection, shows in no other way.
const silence = 5 * time.Second

// dialer returns what connects to proxies.
func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3},
		Control:         endSilence,
	}
}
