package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/store"
)

// smallBody is up to what size a body is sent without asking first whether it
// is welcome. A proxy that refuses a larger one would have to read it, or cut
// the connection and with it its answer.
const smallBody = 256 << 10

// A Client is one proxy as a [store.Store]. It fails when the proxy fails;
// [Group] goes on without it. A Get with [store.WithLocal] is answered from what
// the proxy holds itself.
type Client struct {
	URL    string        // https://host:port
	HTTP   *http.Client  // must not follow redirections
	Ticket func() string // returns the ticket to show; that of WithTicket comes first
}

// Get implements [store.Store].
func (c *Client) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	switch {
	case off < 0:
		return nil, fmt.Errorf("remote: get %v: the offset %d is negative", key, off)
	case n == 0:
		return nil, c.head(ctx, key)
	case n > maxBody || off > maxBody:
		n = -1 // no block is longer: the rest is meant
	}
	req, err := c.request(ctx, http.MethodGet, key, nil)
	if err != nil {
		return nil, err
	}
	part := off > 0 || n > 0
	if part {
		req.Header.Set("Range", formatRange(off, n))
	}
	resp, err := c.do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
		data, err := readBody(resp)
		return store.Clip(data, off, n), err
	case resp.StatusCode == http.StatusNoContent && part:
		return nil, nil
	case resp.StatusCode == http.StatusPartialContent && part:
		return readPart(resp, off, n)
	}
	return nil, fmt.Errorf("remote: HTTP status %d is no answer to a get", resp.StatusCode)
}

// readPart reads an answer to the request for the n bytes from off.
func readPart(resp *http.Response, off, n int64) ([]byte, error) {
	data, err := readBody(resp)
	if err != nil {
		return nil, err
	}
	got := resp.Header.Get("Content-Range")
	if want := contentRange(off, len(data)); got != want || n >= 0 && int64(len(data)) > n {
		return nil, fmt.Errorf("remote: asked for %s, got %q of %d bytes", formatRange(off, n), got, len(data))
	}
	return data, nil
}

// head finds out whether a block is there.
func (c *Client) head(ctx context.Context, key store.Key) error {
	req, err := c.request(ctx, http.MethodHead, key, nil)
	if err != nil {
		return err
	}
	return c.done(req)
}

// Put implements [store.Store].
func (c *Client) Put(ctx context.Context, key store.Key, data []byte) error {
	return c.put(ctx, key, data, "")
}

// PutCopy has the proxy keep a copy of a block that the proxy at the address
// from will upload: see [Replica]. The error wraps [ErrFull] if there is no room.
func (c *Client) PutCopy(ctx context.Context, key store.Key, data []byte, from string) error {
	if err := checkAddress(from); err != nil {
		return fmt.Errorf("remote: copy %v: %w", key, err)
	}
	return c.put(ctx, key, data, from)
}

func (c *Client) put(ctx context.Context, key store.Key, data []byte, from string) error {
	lent := &loan{data: data}
	defer lent.end()
	req, err := c.request(ctx, http.MethodPut, key, lent.reader())
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(data))
	req.GetBody = func() (io.ReadCloser, error) { return lent.reader(), nil }
	req.Header.Set(headerCRC, formatCRC(store.Sum(ctx, data)))
	if from != "" {
		req.Header.Set(headerCopy, from)
	}
	mayRepeat(req)
	if len(data) > smallBody {
		req.Header.Set("Expect", "100-continue")
	}
	if len(data) == 0 {
		req.Body = http.NoBody
	}
	return c.done(req)
}

// Uploaded tells the proxy that the bucket has the blocks, all of one volume, of
// which it keeps copies: see [Replica]. If it fails some may have been told of.
func (c *Client) Uploaded(ctx context.Context, keys []store.Key) error {
	for batch := range slices.Chunk(keys, maxUploaded) {
		body := formatKeys(batch)
		url := c.URL + loadedPath + batch[0].Volume.String()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			return fmt.Errorf("remote: %w", err)
		}
		c.authorize(req)
		req.Header.Set(headerCRC, checksum([]byte(body)))
		mayRepeat(req)
		if err := c.done(req); err != nil {
			return err
		}
	}
	return nil
}

// Pending asks whether the proxy has the block and will upload it.
func (c *Client) Pending(ctx context.Context, key store.Key) (bool, error) {
	req, err := c.request(ctx, http.MethodHead, key, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set(headerLocal, localPending)
	err = c.done(req)
	if errors.Is(err, store.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Delete implements [store.Store].
func (c *Client) Delete(ctx context.Context, key store.Key) error {
	req, err := c.request(ctx, http.MethodDelete, key, nil)
	if err != nil {
		return err
	}
	mayRepeat(req)
	if err := c.done(req); !errors.Is(err, store.ErrNotExist) {
		return err
	}
	return nil
}

// Ping asks the proxy whether it is well and returns how long the answer took,
// from when the request was sent on a connection that was ready.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	// The hooks run on the connection's goroutines, perhaps even after a
	// request that failed.
	var sent, first atomic.Int64
	start := time.Now()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { sent.Store(int64(time.Since(start))) },
		GotFirstResponseByte: func() { first.Store(int64(time.Since(start))) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+healthPath, nil)
	if err != nil {
		return 0, fmt.Errorf("remote: %w", err)
	}
	resp, err := c.do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxText)); err != nil {
		return 0, fmt.Errorf("remote: %w", err)
	}
	return max(time.Duration(first.Load()-sent.Load()), time.Microsecond), nil
}

func (c *Client) request(ctx context.Context, method string, key store.Key, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+blocksPath+key.String(), body)
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	c.authorize(req)
	if store.IsLocal(ctx) && (method == http.MethodGet || method == http.MethodHead) {
		req.Header.Set(headerLocal, localHeld)
	}
	if store.MustVerify(ctx) {
		req.Header.Set(headerVerify, "1")
	}
	return req, nil
}

// authorize adds the ticket.
func (c *Client) authorize(req *http.Request) {
	text := ticketOf(req.Context())
	if text == "" && c.Ticket != nil {
		text = c.Ticket()
	}
	req.Header.Set("Authorization", "Bearer "+text)
}

// mayRepeat makes the transport repeat req, which does no more if it is done
// twice, when a connection turns out to have ended while it was idle. The header
// is not sent.
func mayRepeat(req *http.Request) { req.Header["Idempotency-Key"] = nil }

// done sends req, whose answer has no body.
func (c *Client) done(req *http.Request) error {
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// do sends req and returns its answer if it is a good one.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	proxy := resp.Header.Get(headerProxy) == "1"
	if proxy && resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText)) // what there is of it will do
	r := &refusal{code: code(resp.Header.Get(headerError)), status: resp.StatusCode, text: strings.TrimSpace(string(text))}
	if !proxy || statusOf[r.code] != r.status {
		r.code = ""
	}
	return nil, r
}

// readBody reads and checks the body of an answer.
func readBody(resp *http.Response) ([]byte, error) {
	if resp.ContentLength < 0 || resp.ContentLength > maxBody {
		return nil, fmt.Errorf("remote: an answer of %d bytes is not a block", resp.ContentLength)
	}
	data := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, data); err != nil {
		return nil, fmt.Errorf("remote: after the header of an answer of %d bytes: %w", len(data), err)
	}
	if crc := resp.Header.Get(headerCRC); crc != checksum(data) {
		return nil, fmt.Errorf("remote: %w: its checksum is %s and was %q", errDamaged, checksum(data), crc)
	}
	return data, nil
}

// A loan lets others read data until it ends. The transport may go on to read a
// request's body after it has returned the answer, but the caller of Put may
// write to it then.
type loan struct {
	mu   sync.Mutex
	data []byte // nil when it is over; guarded by mu
	over bool   // guarded by mu
}

func (l *loan) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data, l.over = nil, true
}

func (l *loan) reader() io.ReadCloser { return &loanReader{loan: l} }

type loanReader struct {
	loan *loan
	at   int
}

// Read implements [io.Reader].
func (r *loanReader) Read(p []byte) (int, error) {
	r.loan.mu.Lock()
	defer r.loan.mu.Unlock()
	if r.loan.over {
		return 0, errors.New("remote: the caller has its block back")
	}
	if r.at >= len(r.loan.data) {
		return 0, io.EOF
	}
	n := copy(p, r.loan.data[r.at:])
	r.at += n
	return n, nil
}

// Close implements [io.Closer].
func (r *loanReader) Close() error { return nil }

var _ store.Store = (*Client)(nil)
