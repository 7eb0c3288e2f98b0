package remote

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"flexfs/store"
	"flexfs/store/seal"
)

// getFrames answers a GET with headerFrames.
func getFrames(ctx context.Context, s store.Store, key store.Key, span string) (answer, error) {
	off, n, err := parseSpan(span)
	if err != nil {
		return answer{}, refuse(codeRequest, "%v", err)
	}
	head, frames, err := store.GetFrames(ctx, s, key, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		head, frames, err = seal.GetFrames(ctx, s, key, off, n)
	}
	return answer{body: [2][]byte{head, frames}, head: len(head)}, failed(err)
}

// formatSpan returns the headerFrames of the n plain bytes from off, or of all
// from there if n is negative.
func formatSpan(off, n int64) string {
	if n < 0 {
		return fmt.Sprintf("%d-", off)
	}
	return fmt.Sprintf("%d-%d", off, n)
}

// parseSpan parses what formatSpan returns.
func parseSpan(s string) (off, n int64, err error) {
	from, length, ok := strings.Cut(s, "-")
	if ok {
		off, err = parseSize(from)
	}
	if n = -1; ok && err == nil && length != "" {
		n, err = parseSize(length)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("%q is not an offset and a length", s)
	}
	return off, n, nil
}

// GetFrames implements [store.FrameGetter].
func (c *Client) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	if off < 0 {
		return nil, nil, fmt.Errorf("remote: get frames of %v: the offset %d is negative", key, off)
	}
	req, err := c.request(ctx, http.MethodGet, key, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(headerFrames, formatSpan(min(off, maxBody), min(n, maxBody))) // no block is longer
	resp, err := c.do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := readBody(resp)
	if err != nil {
		return nil, nil, err
	}
	size, err := headLength(resp, len(body))
	if err != nil {
		return nil, nil, err
	}
	return body[:size:size], body[size:], nil
}

// headLength returns how much of the body of an answer is the head.
func headLength(resp *http.Response, body int) (int, error) {
	n, err := strconv.Atoi(resp.Header.Get(headerHead))
	if err != nil || n < 0 || n > body {
		return 0, fmt.Errorf("remote: %q is not the length of a head in %d bytes", resp.Header.Get(headerHead), body)
	}
	return n, nil
}

var _ store.FrameGetter = (*Client)(nil)
