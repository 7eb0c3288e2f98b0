// Package metatest examines implementations of package meta's interfaces, and
// holds what such examinations need.
package metatest

import (
	"context"
	"encoding/binary"
	"io"
	"net"

	"flexfs/meta"
)

// A Fault is what happens to a request of a client.
type Fault int

const (
	// OK: nothing.
	OK Fault = iota
	// Lost: the connection breaks before the service has the request.
	Lost
	// ReplyLost: the connection breaks after the service has answered, before
	// the client has the reply.
	ReplyLost
	// Silent: from now on nothing comes through the connection in either
	// direction, and neither end is told.
	Silent
)

// Faulty returns a ClientConfig's Dial that connects as dial does. decide says
// what happens to each request, and is called by one goroutine per connection.
func Faulty(dial func(context.Context) (net.Conn, error), decide func(meta.Op) Fault) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		service, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		client, inner := net.Pipe()
		lost := make(chan uint64, 1) // the id of a request whose reply shall be lost
		silent := make(chan struct{})
		go forward(service, inner, func(op meta.Op, id uint64) bool {
			switch decide(op) {
			case Lost:
				return false
			case ReplyLost:
				lost <- id
			case Silent:
				close(silent)
			}
			return true
		}, silent)
		var losing uint64
		go forward(inner, service, func(_ meta.Op, id uint64) bool {
			select {
			case losing = <-lost:
			default:
			}
			return losing == 0 || id != losing
		}, silent)
		return client, nil
	}
}

// forward passes the frames of from on to to as long as pass lets it. Then, and
// when one end closes, it closes both.
func forward(to, from net.Conn, pass func(op meta.Op, id uint64) bool, silent <-chan struct{}) {
	defer to.Close()
	defer from.Close()
	for {
		head := make([]byte, 20)
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		frame := make([]byte, 4+binary.BigEndian.Uint32(head))
		copy(frame, head)
		if _, err := io.ReadFull(from, frame[20:]); err != nil {
			return
		}
		if !pass(meta.Op(binary.BigEndian.Uint16(head[6:])), binary.BigEndian.Uint64(head[8:])) {
			return
		}
		select {
		case <-silent:
			io.Copy(io.Discard, from) // until its end gives up
			return
		default:
		}
		if _, err := to.Write(frame); err != nil {
			return
		}
	}
}
