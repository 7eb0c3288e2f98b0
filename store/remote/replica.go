package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"flexfs/store"
)

// A Replica is what a proxy does for another member of its group, which has
// taken a block that is not in the bucket yet. Its methods may be called
// concurrently.
type Replica interface {
	// Keep stores a copy of a block that the proxy at the address from has
	// and will upload. When it returns nil the copy is durable, is found by
	// reads of the block, and will be uploaded from here should from not do
	// it. It does not keep or change data. From is whatever the client said:
	// it is to be asked for nothing but through [Peers], which knows the
	// members. If it fails, for whatever reason, the other one is told that
	// there is no room here.
	Keep(ctx context.Context, key store.Key, data []byte, from string) error

	// Uploaded says that the bucket has the blocks: their copies are copies
	// like all others. Blocks of which there is none are passed over.
	Uploaded(ctx context.Context, keys []store.Key) error

	// Pending reports whether this proxy has the block and will upload it.
	Pending(key store.Key) bool
}

// ErrFull is wrapped by the error of a proxy that has no room for a copy, or
// keeps none: see [Replica].
var ErrFull = errors.New("there is no room for a copy")

const (
	maxUploaded     = 1000                       // keys of a request
	maxUploadedBody = maxUploaded * (maxKey + 1) // bytes
	maxKey          = 104                        // bytes of a key's text
	maxAddress      = 253 + 1 + 5                // bytes of a host name, a colon, a port
)

type ticketKey struct{}

// WithTicket returns a context whose requests to proxies show the ticket text:
// that of the client on whose behalf they are made.
func WithTicket(ctx context.Context, text string) context.Context {
	return context.WithValue(ctx, ticketKey{}, text)
}

// ticketOf returns the ticket of [WithTicket], or "".
func ticketOf(ctx context.Context) string {
	text, _ := ctx.Value(ticketKey{}).(string)
	return text
}

// checkAsked checks the headers with which members ask each other.
func (h *handler) checkAsked(r *http.Request) error {
	local, from := r.Header.Get(headerLocal), r.Header.Get(headerCopy)
	get, head := r.Method == http.MethodGet, r.Method == http.MethodHead
	switch {
	case local == "", local == localHeld && (get || head), local == localPending && head:
	default:
		return refuse(codeRequest, "%s %.20q is not for a %s", headerLocal, local, r.Method)
	}
	if from == "" {
		return nil
	}
	if r.Method != http.MethodPut {
		return refuse(codeRequest, "%s is not for a %s", headerCopy, r.Method)
	}
	if err := checkAddress(from); err != nil {
		return refuse(codeRequest, "%s: %v", headerCopy, err)
	}
	if h.Replica == nil {
		return refuse(codeFull, "this proxy keeps no copies")
	}
	return nil
}

// fromPeer reports whether r asks for nothing that this proxy would ask others for.
func fromPeer(r *http.Request) bool {
	return r.Header.Get(headerLocal) != "" || r.Header.Get(headerCopy) != ""
}

// store stores a block that was put: as a copy for another member, or in s.
func (h *handler) store(ctx context.Context, s store.Store, key store.Key, data []byte, r *http.Request) error {
	if from := r.Header.Get(headerCopy); from != "" {
		if err := h.Replica.Keep(ctx, key, data, from); err != nil {
			return refuse(codeFull, "%v", err)
		}
		return nil
	}
	return failed(s.Put(ctx, key, data))
}

// pending answers whether this proxy will upload the block.
func (h *handler) pending(key store.Key) error {
	if h.Replica == nil || !h.Replica.Pending(key) {
		return refuse(codeNotExist, "the block does not wait for its upload here")
	}
	return nil
}

// serveUploaded takes the news that blocks are in the bucket.
func (h *handler) serveUploaded(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	err := h.uploaded(w, r)
	c := codeOf(err)
	switch {
	case r.Context().Err() != nil:
		c = codeGone
	case err != nil:
		h.refuse(w, r, c, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	h.stats.count(r.Method, c, time.Since(start))
}

func (h *handler) uploaded(w http.ResponseWriter, r *http.Request) error {
	volume, err := store.ParseVolume(r.PathValue("volume"))
	if err != nil {
		return refuse(codeRequest, "%v", err)
	}
	if err := h.admit(r, volume); err != nil {
		return err
	}
	if err := h.enter(r.Context(), h.peers); err != nil {
		return err
	}
	defer leave(h.peers)
	body, err := readRequest(w, r, maxUploadedBody)
	if err != nil {
		return err
	}
	keys, err := parseKeys(volume, string(body))
	if err != nil {
		return refuse(codeRequest, "%v", err)
	}
	if h.Replica == nil {
		return nil // nor is there anything to do
	}
	return failed(h.Replica.Uploaded(WithTicket(r.Context(), bearer(r)), keys))
}

// formatKeys returns keys, one per line.
func formatKeys(keys []store.Key) string {
	var b strings.Builder
	for _, key := range keys {
		b.WriteString(key.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// parseKeys parses what formatKeys returns, if all keys are of the volume.
func parseKeys(volume store.Volume, text string) ([]store.Key, error) {
	var keys []store.Key
	for line := range strings.Lines(text) {
		key, err := store.ParseKey(strings.TrimSuffix(line, "\n"))
		switch {
		case err != nil:
			return nil, err
		case key.Volume != volume:
			return nil, fmt.Errorf("block %v is of another volume", key)
		case len(keys) == maxUploaded:
			return nil, fmt.Errorf("there are more than %d blocks", maxUploaded)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// checkAddress reports what keeps s from being the address of a member.
func checkAddress(s string) error {
	if len(s) > maxAddress {
		return fmt.Errorf("an address of %d bytes", len(s))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	odd := func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`/\@"%?#`, c) }
	if err != nil || n == 0 || host == "" || strings.ContainsFunc(host, odd) {
		return fmt.Errorf("%q is not host:port", s)
	}
	return nil
}

// readRequest reads the whole body of a request and checks it. It gives the
// client a time for it.
func readRequest(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	switch {
	case r.ContentLength < 0:
		return nil, refuse(codeRequest, "the length of the body is not given")
	case r.ContentLength > limit:
		return nil, refuse(codeTooLarge, "%d bytes are more than %d", r.ContentLength, limit)
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // an error: w has none, as in a test
	data := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, data); err != nil {
		return nil, refuse(codeRequest, "read the body: %v", err)
	}
	rc.SetReadDeadline(time.Time{})
	if crc := r.Header.Get(headerCRC); crc != checksum(data) {
		return nil, refuse(codeDamaged, "the body's checksum is %s, but its header says %q", checksum(data), crc)
	}
	return data, nil
}
