package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// slow bounds any one request.
const slow = 20 * time.Second

// A target is what is measured: where it listens, and the processes it is.
type target struct {
	name string
	addr string
	tls  *tls.Config // nil: plain
	pids []int
}

// A conn is a thin client: it sends a request, and reads the answer into a
// buffer that it uses again and again.
type conn struct {
	net.Conn
	r   *bufio.Reader
	buf []byte
}

func (t *target) dial(ctx context.Context) (*conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	if t.tls != nil {
		secure := tls.Client(raw, t.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		raw = secure
	}
	return &conn{Conn: raw, r: bufio.NewReader(raw), buf: make([]byte, 256<<10)}, nil
}

// get sends a request for path and calls each with the pieces of the body; nil
// drops them. It returns the length of the body.
func (c *conn) get(path, ticket string, each func([]byte)) (int64, error) {
	c.SetDeadline(time.Now().Add(slow))
	c.buf = append(c.buf[:0], "GET "+path+" HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "+ticket+"\r\n\r\n"...)
	if _, err := c.Write(c.buf); err != nil {
		return 0, err
	}
	size, err := c.header("200")
	if err != nil {
		return 0, fmt.Errorf("GET %s: %w", path, err)
	}
	buf := c.buf[:cap(c.buf)]
	for left := size; left > 0; {
		n, err := c.r.Read(buf[:min(left, int64(len(buf)))])
		if err != nil {
			return 0, fmt.Errorf("GET %s: %w", path, err)
		}
		if each != nil {
			each(buf[:n])
		}
		left -= int64(n)
	}
	return size, nil
}

// put sends a body.
func (c *conn) put(path, ticket, crc string, body []byte) error {
	c.SetDeadline(time.Now().Add(slow))
	head := fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nFlexfs-Crc32c: %s\r\nContent-Length: %d\r\n\r\n", path, ticket, crc, len(body))
	if _, err := io.WriteString(c, head); err != nil {
		return err
	}
	if _, err := c.Write(body); err != nil {
		return err
	}
	_, err := c.header("204")
	if err != nil {
		return fmt.Errorf("PUT %s: %w", path, err)
	}
	return nil
}

// header reads the header of an answer with that status, and returns the length
// of the body.
func (c *conn) header(status string) (size int64, err error) {
	first, err := c.r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := strings.Cut(string(line), ":")
		if strings.EqualFold(name, "Content-Length") {
			if size, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				return 0, err
			}
		}
	}
	if part := strings.Fields(first); len(part) < 2 || part[1] != status {
		text, _ := io.ReadAll(io.LimitReader(c.r, min(size, 300)))
		return 0, errors.New(strings.TrimSpace(first) + ": " + string(text))
	}
	return size, nil
}
