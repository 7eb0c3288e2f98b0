package meta

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Version is the newest version of the protocol that this package speaks. It
// speaks all versions from 1.
const Version = 1

// A frame carries one message. Integers are big-endian (docs/format/wire.md).
//
//	0   length    u32  of what follows it: 16 + the body's
//	4   format    u8   1
//	5   kind      u8   request, reply, push request, push reply
//	6   op        u16
//	8   id        u64  chosen by who asks, echoed in the reply
//	16  deadline  u32  ms that the asker will wait; 0: for ever
//	20  body           an encoded Request or Reply
const (
	frameHead   = 20
	frameFormat = 1

	// MaxFrame is the largest frame, its length field included.
	MaxFrame = 4 << 20
)

// Kinds of frames. Part of the wire format.
const (
	kindRequest     = 1 // client to server: a Request
	kindReply       = 2 // server to client: its Reply
	kindPushRequest = 3 // server to client: a Request
	kindPushReply   = 4 // client to server: its Reply
)

// Limits of one connection. Part of the protocol: a peer that goes beyond one
// is cut off, so that neither side's reader ever has to wait for a handler:
// behind the request that it would wait with, there may be the answer that the
// handler waits for.
const (
	// MaxRequests is how many requests of a client may be unanswered, not
	// counting waiting locks. Our client stays well below.
	MaxRequests = 512

	// MaxWaits is how many waiting OpSetlk of a client may be unanswered.
	MaxWaits = 1024

	// MaxPushes is how many pushes of a server may be unanswered.
	MaxPushes = 256
)

const (
	// handshakeTimeout bounds the time from a connection's start to the answer
	// to its OpHello, TLS included.
	handshakeTimeout = 10 * time.Second

	// writeTimeout bounds one write, by a quarter more at most. Then the peer is
	// taken for dead.
	writeTimeout = 30 * time.Second

	// maxQueued is how many bytes wait for the writer before senders do.
	maxQueued = 1 << 20

	// readBuffer is enough for some hundred small frames in one read.
	readBuffer = 64 << 10
)

var (
	errTooLarge = errors.New("message is larger than a frame")
	errBroken   = errors.New("connection is closed")

	// errNotDone goes with errBroken if the request was certainly not done.
	errNotDone = errors.New("request was not done")

	// errAbandoned: the caller's context ended, not the call.
	errAbandoned = errors.New("given up")
)

// A header is the part of a frame before its body.
type header struct {
	kind     byte
	op       Op
	id       uint64
	deadline uint32
}

func (h header) append(b []byte, body int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(frameHead-4+body))
	b = append(b, frameFormat, h.kind)
	b = binary.BigEndian.AppendUint16(b, uint16(h.op))
	b = binary.BigEndian.AppendUint64(b, h.id)
	return binary.BigEndian.AppendUint32(b, h.deadline)
}

// parseHeader also returns the length of the body.
func parseHeader(b []byte) (header, int, error) {
	n := int64(binary.BigEndian.Uint32(b)) + 4
	switch {
	case n < frameHead || n > MaxFrame:
		return header{}, 0, fmt.Errorf("meta: frame of %d bytes", n)
	case b[4] != frameFormat:
		return header{}, 0, fmt.Errorf("meta: frame format %d, want %d", b[4], frameFormat)
	}
	h := header{
		kind:     b[5],
		op:       Op(binary.BigEndian.Uint16(b[6:])),
		id:       binary.BigEndian.Uint64(b[8:]),
		deadline: binary.BigEndian.Uint32(b[16:]),
	}
	return h, int(n) - frameHead, nil
}

// deadlineOf tells how long ctx lasts, as a frame says it.
func deadlineOf(ctx context.Context) uint32 {
	t, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	ms := time.Until(t).Milliseconds()
	return uint32(min(max(ms, 1), 1<<32-1))
}

// A framer sends and receives frames over a connection. Many may send, one
// receives. Who finds nobody writing writes itself, which wakes nobody up; what is
// sent in the meantime is left to the writer, and goes out together.
type framer struct {
	nc  net.Conn
	in  *bufio.Reader
	big bytes.Buffer // the body of a frame that in's buffer is too small for

	wake chan struct{} // has one element if the writer has something to do
	done chan struct{} // closed when the connection is

	until time.Time // the write deadline; of who writes

	mu      sync.Mutex
	room    sync.Cond // queue has become short, or err is set
	queue   []byte
	spare   []byte // the next queue, if nobody writes
	writing bool   // somebody has taken the queue
	err     error  // why the connection is closed
}

func newFramer(nc net.Conn) *framer {
	f := &framer{
		nc:   nc,
		in:   bufio.NewReaderSize(nc, readBuffer),
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
	}
	f.room.L = &f.mu
	return f
}

// close breaks the connection; the first caller's reason counts. It does not
// wait for anything.
func (f *framer) close(reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	f.err = reason
	close(f.done)
	f.room.Broadcast()
	f.nc.Close()
}

// reason tells why the connection is closed.
func (f *framer) reason() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// send sends one frame, at once if nobody else is writing. It waits while the queue
// is long, and may wait for the peer. An error other than errTooLarge means that the
// connection is closed. That it is nil does not mean that the frame arrived.
func (f *framer) send(h header, m message) error {
	batch, err := f.put(h, m, true)
	if batch != nil {
		f.write(batch)
	}
	return err
}

// post is send for those for whom the peer may be waiting: it leaves the frame to
// the writer.
func (f *framer) post(h header, m message) error {
	_, err := f.put(h, m, false)
	return err
}

// put queues one frame. The caller must write what it returns.
func (f *framer) put(h header, m message, write bool) (batch []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) > maxQueued && f.err == nil {
		f.room.Wait()
	}
	if f.err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, f.err)
	}
	start := len(f.queue)
	f.queue = h.append(f.queue, 0)
	f.queue = m.fields(f.queue)
	n := len(f.queue) - start
	if n > MaxFrame {
		f.queue = f.queue[:start]
		return nil, errTooLarge
	}
	binary.BigEndian.PutUint32(f.queue[start:], uint32(n-4))
	if write && start == 0 {
		return f.takeLocked(), nil
	}
	f.wakeWriter()
	return nil, nil
}

// wakeWriter has the writer look at the queue. f.mu is held.
func (f *framer) wakeWriter() {
	if f.writing || len(f.queue) == 0 {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// writeQueued writes what is queued, until the connection is closed.
func (f *framer) writeQueued() {
	for {
		select {
		case <-f.wake:
		case <-f.done:
			return
		}
		f.mu.Lock()
		batch := f.takeLocked()
		f.mu.Unlock()
		if batch != nil {
			f.write(batch)
		}
	}
}

// takeLocked returns what is queued, for write, unless somebody else is writing.
func (f *framer) takeLocked() []byte {
	if f.writing || len(f.queue) == 0 {
		return nil
	}
	f.writing = true
	batch := f.queue
	f.queue, f.spare = f.spare[:0], nil
	f.room.Broadcast()
	return batch
}

// write sends what was taken.
func (f *framer) write(batch []byte) {
	if now := time.Now(); f.until.Sub(now) < writeTimeout {
		f.until = now.Add(writeTimeout * 5 / 4) // not for each write: a timer has its price
		f.nc.SetWriteDeadline(f.until)
	}
	if _, err := f.nc.Write(batch); err != nil {
		f.close(fmt.Errorf("meta: %w", err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing = false
	if cap(batch) <= maxQueued { // else it has grown for a rare large frame
		f.spare = batch
	}
	f.wakeWriter()
}

// receive reads one frame. The body is valid until the next call.
func (f *framer) receive() (header, []byte, error) {
	head, err := f.in.Peek(frameHead)
	if err != nil {
		if len(head) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return header{}, nil, err
	}
	h, n, err := parseHeader(head)
	if err != nil {
		return header{}, nil, err
	}
	f.in.Discard(frameHead)
	if n <= f.in.Size() {
		body, err := f.in.Peek(n)
		if err != nil {
			return header{}, nil, fmt.Errorf("meta: frame is cut off: %w", err)
		}
		f.in.Discard(n) // body stays as it is until in reads again
		return h, body, nil
	}
	return f.receiveBig(h, n)
}

// receiveBig takes memory only as the bytes come: a header is just a claim.
func (f *framer) receiveBig(h header, n int) (header, []byte, error) {
	if f.big.Cap() > maxQueued {
		f.big = bytes.Buffer{}
	}
	f.big.Reset()
	if _, err := io.CopyN(&f.big, f.in, int64(n)); err != nil {
		return header{}, nil, fmt.Errorf("meta: frame is cut off: %w", err)
	}
	return h, f.big.Bytes(), nil
}
