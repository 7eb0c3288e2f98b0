package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"

	"flexfs/store"
)

// A File is a block that a server has as a file, so that it can be sent without
// being brought into the server's memory.
type File struct {
	*os.File               // at its start; whoever got it closes it
	Size     int64         // of the sealed block, and of the file
	CRC      uint32        // CRC-32C of all of it
	Sent     func(n int64) // is told how many bytes clients were given; may be nil
}

// An answer is what a request for a block gets.
type answer struct {
	body  [2][]byte // in a row
	file  *File     // instead: all of it
	head  int       // length of the part that is a head, for headerHead; else -1
	part  bool      // the body is a part of the block, from off
	off   int64
	empty bool    // there is no body by the nature of the request
	lent  *[]byte // what the body is in, to be given back to buffers
}

// release gives back what the answer holds.
func (a *answer) release() {
	if a.file != nil {
		a.file.Close()
	}
	if a.lent != nil {
		buffers.Put(a.lent)
	}
}

// bufferSize is how much of a file is in memory at a time while it is sent
// through TLS: some 16 of its records.
const bufferSize = 256 << 10

// buffers are *[]byte of bufferSize.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// get answers a GET, from a file if the block is in one.
func (h *handler) get(ctx context.Context, s store.Store, key store.Key, r *http.Request) (answer, error) {
	if frames := r.Header.Get(headerFrames); frames != "" {
		return getFrames(ctx, s, key, frames)
	}
	off, n, part := parseRange(r.Header.Get("Range"))
	if f := h.open(ctx, key); f != nil {
		if !part {
			return answer{file: f, head: -1}, nil
		}
		if a, err := partOf(f, off, n); err == nil {
			return a, nil
		}
		ctx = store.WithVerify(ctx) // the file is not what it was
	}
	if !part {
		off, n = 0, -1
	}
	data, err := s.Get(ctx, key, off, n)
	return answer{body: [2][]byte{data}, head: -1, part: part, off: off}, failed(err)
}

// open returns the file of a block, or nil if there is none that may be used.
func (h *handler) open(ctx context.Context, key store.Key) *File {
	if h.Open == nil || store.MustVerify(ctx) {
		return nil
	}
	f, err := h.Open(ctx, key)
	if err != nil {
		return nil // the store has the block, or knows why not
	}
	return f
}

// partOf returns the n bytes from off, or all from there if n is negative, of a
// file, which it closes.
func partOf(f *File, off, n int64) (answer, error) {
	defer f.Close()
	if n < 0 || n > f.Size-off {
		n = max(f.Size-off, 0)
	}
	a := answer{head: -1, part: true, off: off}
	if n == 0 {
		return a, nil
	}
	var buf []byte
	if n <= bufferSize {
		a.lent = buffers.Get().(*[]byte)
		buf = (*a.lent)[:n]
	} else {
		buf = make([]byte, n)
	}
	if _, err := f.ReadAt(buf, off); err != nil {
		a.release()
		return a, fmt.Errorf("remote: %w", err)
	}
	if f.Sent != nil {
		f.Sent(n)
	}
	a.body[0] = buf
	return a, nil
}

// errCut is wrapped by the error of an answer that was begun and cannot be
// finished: the client must not take what comes next for the rest of it.
var errCut = errors.New("part of the answer is sent")

// send sends an answer. It is an error, which wraps errCut, if the file that is
// to be sent turns out to be damaged; that the client went away is none.
func (h *handler) send(w http.ResponseWriter, r *http.Request, a *answer) error {
	bound(w)
	header := w.Header()
	size := int64(len(a.body[0]) + len(a.body[1]))
	if a.empty || a.part && size == 0 {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	crc := ""
	if a.file != nil {
		size, crc = a.file.Size, formatCRC(a.file.CRC)
	} else {
		crc = checksum(a.body[0], a.body[1])
	}
	header["Content-Type"] = octets
	header["Content-Length"] = []string{strconv.FormatInt(size, 10)}
	header[headerCRC] = []string{crc}
	if a.head >= 0 {
		header.Set(headerHead, strconv.Itoa(a.head))
	}
	if a.part {
		header.Set("Content-Range", contentRange(a.off, int(size)))
		w.WriteHeader(http.StatusPartialContent)
	}
	n, err := int64(0), error(nil)
	if a.file != nil {
		n, err = sendFile(w, r, a.file)
	} else {
		n, err = sendBytes(w, a.body)
	}
	h.stats.sent.Add(n)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EIO) {
		return fmt.Errorf("remote: %w: %w", errCut, err)
	}
	if err != nil {
		h.Log.Debug("client went away", "client", r.RemoteAddr, "err", err)
	}
	return nil
}

// octets is the type of all blocks. Nobody changes it.
var octets = []string{"application/octet-stream"}

func sendBytes(w http.ResponseWriter, body [2][]byte) (sent int64, err error) {
	for _, part := range body {
		n, err := w.Write(part)
		sent += int64(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// sendFile sends all of a file: from the kernel to the client if nothing is to be
// done to its bytes, and otherwise by way of a small part of memory. A file that
// is shorter than it should be is an [io.ErrUnexpectedEOF].
func sendFile(w http.ResponseWriter, r *http.Request, f *File) (sent int64, err error) {
	if f.Sent != nil {
		defer func() { f.Sent(sent) }()
	}
	if to, ok := w.(io.ReaderFrom); ok && r.TLS == nil {
		// With the header gone, net/http leaves all of the file to the kernel.
		if c, ok := r.Context().Value(connKey{}).(syscall.Conn); ok {
			tcpCork(c, 1)
			defer tcpCork(c, 0)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return 0, err
		}
		sent, err = to.ReadFrom(&io.LimitedReader{R: f.File, N: f.Size})
	} else {
		sent, err = copyFile(w, f)
	}
	if err == nil && sent < f.Size {
		err = io.ErrUnexpectedEOF
	}
	return sent, err
}

func copyFile(w io.Writer, f *File) (sent int64, err error) {
	lent := buffers.Get().(*[]byte)
	defer buffers.Put(lent)
	for sent < f.Size {
		buf := (*lent)[:min(f.Size-sent, bufferSize)]
		if _, err := f.ReadAt(buf, sent); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return sent, err
		}
		n, err := w.Write(buf)
		sent += int64(n)
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}
