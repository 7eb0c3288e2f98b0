// Package remote is a [store.Store] over HTTP: [Handler] serves one, which is
// what a proxy does; [Client] is one proxy as a Store; [Group] is all proxy
// groups of a volume as a Store, of which it uses the nearest, and the bucket
// itself while there is none.
//
// The protocol is described in docs/format/proxy-http.md. Blocks are sealed (see
// package seal): neither side needs to look inside.
package remote

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"

	"flexfs/store"
	"flexfs/store/seal"
)

// Paths and headers are part of the protocol.
const (
	blocksPath = "/v1/blocks/"
	loadedPath = "/v1/uploaded/"
	healthPath = "/v1/health"
	statsPath  = "/v1/stats"
	metricPath = "/metrics"

	headerProxy  = "Flexfs-Proxy"       // in every answer: the version of the protocol, "1"
	headerError  = "Flexfs-Error"       // in a refusal: one of the codes
	headerCRC    = "Flexfs-Crc32c"      // of the body: 8 hexadecimal digits
	headerVerify = "Flexfs-Verify"      // "1": see store.WithVerify
	headerFrames = "Flexfs-Frames"      // in a GET: "off-len", plain bytes that are wanted
	headerHead   = "Flexfs-Head-Length" // in its answer: how much of the body is the head
	headerCopy   = "Flexfs-Copy"        // in a PUT: host:port of the member that will upload the block
	headerLocal  = "Flexfs-Local"       // localHeld in a GET or HEAD, localPending in a HEAD
)

// Values of headerLocal.
const (
	localHeld    = "1"       // see store.WithLocal
	localPending = "pending" // is the block there to be uploaded?
)

// maxBody is the longest body of a request or an answer.
const maxBody = seal.MaxSealed

// maxText bounds the text of a refusal.
const maxText = 1 << 10

// A code says why a request was refused. Codes are part of the protocol.
type code string

const (
	codeNotExist code = "not-exist" // there is no such block
	codeCorrupt  code = "corrupt"   // the block is damaged in the bucket too
	codeTicket   code = "ticket"    // no ticket, or not a valid one
	codeExpired  code = "expired"   // the ticket's time is over
	codeVolume   code = "volume"    // the ticket is for another volume
	codeReadOnly code = "read-only" // the ticket is for reading
	codeUnknown  code = "unknown"   // this proxy does not serve the volume
	codeRequest  code = "request"   // not a request of this protocol
	codeTooLarge code = "too-large" // more than a block
	codeDamaged  code = "damaged"   // the body does not fit its checksum or key
	codeBusy     code = "busy"      // too many requests at once
	codeOrigin   code = "origin"    // the bucket failed, or what is behind the proxy
	codeFull     code = "full"      // no room for a copy
	codeGone     code = "gone"      // the client went away: only counted, never sent
)

// statusOf says with what HTTP status a refusal is sent.
var statusOf = map[code]int{
	codeNotExist: http.StatusNotFound,
	codeCorrupt:  http.StatusBadGateway,
	codeTicket:   http.StatusUnauthorized,
	codeExpired:  http.StatusUnauthorized,
	codeVolume:   http.StatusForbidden,
	codeReadOnly: http.StatusForbidden,
	codeUnknown:  http.StatusMisdirectedRequest,
	codeRequest:  http.StatusBadRequest,
	codeTooLarge: http.StatusRequestEntityTooLarge,
	codeDamaged:  http.StatusUnprocessableEntity,
	codeBusy:     http.StatusServiceUnavailable,
	codeOrigin:   http.StatusBadGateway,
	codeFull:     http.StatusInsufficientStorage,
}

// ErrReadOnly is wrapped by the error of a Put or Delete with a ticket that is
// only good for reading.
var ErrReadOnly = errors.New("the ticket allows reading only")

// errDamaged is wrapped by the error of a body that does not fit its checksum.
var errDamaged = errors.New("the body was damaged on its way")

// A refusal is what a proxy answered instead of what was asked for.
type refusal struct {
	code   code // "" if it is not one of ours: some other server's answer
	status int
	text   string // for people
}

func (r *refusal) Error() string {
	if r.code == "" {
		return fmt.Sprintf("remote: HTTP status %d, and not from a proxy as we know it: %.100q", r.status, r.text)
	}
	return fmt.Sprintf("remote: the proxy refused: %s (%s)", r.text, r.code)
}

func (r *refusal) Unwrap() error {
	switch r.code {
	case codeNotExist:
		return store.ErrNotExist
	case codeCorrupt:
		return store.ErrCorrupt
	case codeReadOnly:
		return ErrReadOnly
	case codeFull:
		return ErrFull
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum returns the value of headerCRC for parts in a row.
func checksum(parts ...[]byte) string {
	var crc uint32
	for _, part := range parts {
		crc = crc32.Update(crc, castagnoli, part)
	}
	return formatCRC(crc)
}

// formatCRC returns the value of headerCRC.
func formatCRC(crc uint32) string {
	const digits = "0123456789abcdef"
	var b [8]byte
	for i := range b {
		b[i] = digits[crc>>(28-4*i)&15]
	}
	return string(b[:])
}

// formatRange returns the Range header of the n bytes from off, or of all from
// there if n is negative.
func formatRange(off, n int64) string {
	if n < 0 {
		return fmt.Sprintf("bytes=%d-", off)
	}
	return fmt.Sprintf("bytes=%d-%d", off, off+n-1)
}

// contentRange returns the Content-Range header of a part that is size bytes, at
// least one, from off. How long the block is, is not said: it may not be known.
func contentRange(off int64, size int) string {
	return fmt.Sprintf("bytes %d-%d/*", off, off+int64(size)-1)
}

// parseRange parses what formatRange returns. Other forms of RFC 9110, such as
// several ranges, are answered with the whole block, as it allows.
func parseRange(s string) (off, n int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes=")
	if !ok {
		return 0, 0, false
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, false
	}
	off, err := parseSize(from)
	if err != nil {
		return 0, 0, false
	}
	if to == "" {
		return off, -1, true
	}
	last, err := parseSize(to)
	if err != nil || last < off {
		return 0, 0, false
	}
	return off, last - off + 1, true
}

// parseSize parses a decimal number without sign that leaves room for sums.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	return int64(n), err
}
