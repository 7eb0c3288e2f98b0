package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A relay stands before the bucket. It counts requests, and holds each up for a
// while. Bodies go from socket to socket within the kernel.
type relay struct {
	addr   string
	target string
	delay  time.Duration

	ln net.Listener

	gets, puts, others atomic.Int64

	mu     sync.Mutex
	conns  map[*net.TCPConn]bool // of clients; guarded by mu
	closed traffic               // of those that are no more; guarded by mu
}

// traffic is what went to a bucket, and what came back.
type traffic struct {
	gets, puts, others int64 // requests
	up, down           int64 // bytes, headers included
}

func (t traffic) since(before traffic) traffic {
	return traffic{t.gets - before.gets, t.puts - before.puts, t.others - before.others, t.up - before.up, t.down - before.down}
}

func startRelay(target string, delay time.Duration) (*relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{addr: ln.Addr().String(), target: target, delay: delay, ln: ln, conns: make(map[*net.TCPConn]bool)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go r.serve(c.(*net.TCPConn))
		}
	}()
	return r, nil
}

func (r *relay) close() error {
	err := r.ln.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
	return err
}

// traffic returns what there was so far.
func (r *relay) traffic() traffic {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.closed
	for c := range r.conns {
		up, down := carried(c)
		t.up, t.down = t.up+up, t.down+down
	}
	t.gets, t.puts, t.others = r.gets.Load(), r.puts.Load(), r.others.Load()
	return t
}

// carried returns the bytes that came and went on a connection, as the kernel
// counts them.
func carried(c *net.TCPConn) (received, sent int64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			received, sent = int64(info.Bytes_received), int64(info.Bytes_acked) // what was sent twice counts once
		}
	})
	return received, sent
}

// serve passes on what a client sends, and what is answered.
func (r *relay) serve(client *net.TCPConn) {
	r.mu.Lock()
	r.conns[client] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		up, down := carried(client)
		r.closed.up, r.closed.down = r.closed.up+up, r.closed.down+down
		delete(r.conns, client)
		client.Close()
	}()
	c, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	server := c.(*net.TCPConn)
	defer server.Close()
	go func() {
		io.Copy(client, server)
		client.CloseWrite()
		client.CloseRead()
	}()
	r.requests(bufio.NewReader(client), client, server)
}

// requests passes on requests until there are no more.
func (r *relay) requests(in *bufio.Reader, client, server *net.TCPConn) error {
	for {
		head, method, length, err := readHead(in)
		if err != nil {
			return err
		}
		r.count(method)
		time.Sleep(r.delay)
		if _, err := server.Write(head); err != nil {
			return err
		}
		if length < 0 {
			return errors.New("a body without a length")
		}
		ready := min(length, int64(in.Buffered()))
		if _, err := io.CopyN(server, in, ready); err != nil {
			return err
		}
		if _, err := io.CopyN(server, client, length-ready); err != nil {
			return err
		}
	}
}

func (r *relay) count(method string) {
	switch method {
	case "GET":
		r.gets.Add(1)
	case "PUT", "POST":
		r.puts.Add(1)
	default:
		r.others.Add(1)
	}
}

// readHead reads the head of a request, and says how long its body is; -1 if it
// does not say.
func readHead(in *bufio.Reader) (head []byte, method string, length int64, err error) {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, "", 0, err
		}
		head = append(head, line...)
		text := strings.TrimRight(string(line), "\r\n")
		if method == "" {
			method, _, _ = strings.Cut(text, " ")
			continue
		}
		if text == "" {
			return head, method, length, nil
		}
		name, value, _ := strings.Cut(text, ":")
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case "Content-Length":
			if length, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				return nil, "", 0, err
			}
		case "Transfer-Encoding":
			length = -1
		}
	}
}
