// Package ticket makes and checks the passes that mounts show to proxies and to
// the metadata service. Admin signs them; whoever has admin's public keys can
// check one without asking. A ticket is short-lived, so it needs no revocation.
package ticket

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Why a ticket is refused. Errors of [Verify] wrap one of them.
var (
	ErrInvalid = errors.New("ticket is not valid")
	ErrExpired = errors.New("ticket has expired")
)

// A Ticket says what its bearer may do.
type Ticket struct {
	Volume    string `json:"v"`           // UUID
	Write     bool   `json:"w,omitempty"` // else read only
	MountPath string `json:"p,omitempty"` // the subtree it is for; "" or "/" is all
	Name      string `json:"n,omitempty"` // of the token it was made from, for people
	Expires   int64  `json:"e"`           // seconds since 1970
}

// Sign returns the ticket as text: two base64url parts joined by a dot, the
// JSON of t and the Ed25519 signature over the first part.
func Sign(t Ticket, key ed25519.PrivateKey) string {
	body, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings, a bool and a number
	}
	enc := base64.RawURLEncoding
	part := enc.EncodeToString(body)
	return part + "." + enc.EncodeToString(ed25519.Sign(key, []byte(part)))
}

// Verify checks that text was signed with the private half of one of keys and
// has not expired at now.
func Verify(text string, keys []ed25519.PublicKey, now time.Time) (Ticket, error) {
	var t Ticket
	part, sig, ok := strings.Cut(text, ".")
	if !ok {
		return t, fmt.Errorf("ticket: %w: no signature", ErrInvalid)
	}
	enc := base64.RawURLEncoding.Strict()
	s, err := enc.DecodeString(sig)
	if err != nil {
		return t, fmt.Errorf("ticket: %w: %v", ErrInvalid, err)
	}
	signed := func(key ed25519.PublicKey) bool {
		return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, []byte(part), s)
	}
	if !slices.ContainsFunc(keys, signed) {
		return t, fmt.Errorf("ticket: %w: the signature is not admin's", ErrInvalid)
	}
	body, err := enc.DecodeString(part)
	if err == nil {
		err = json.Unmarshal(body, &t)
	}
	if err != nil {
		return Ticket{}, fmt.Errorf("ticket: %w: %v", ErrInvalid, err)
	}
	if now.Unix() >= t.Expires {
		return Ticket{}, fmt.Errorf("ticket: %w at %v, and here it is %v: admin gives new ones all the time, so a clock may be wrong",
			ErrExpired, time.Unix(t.Expires, 0).UTC(), now.UTC().Truncate(time.Second))
	}
	return t, nil
}
