// Package tlspin gives servers a TLS identity without a certificate authority.
//
// A server makes a key at its first start ([Certificate]). Whoever configures
// the cluster learns the key's [Pin] once ([Fetch]) and hands it out with the
// server's address; a client then talks to that key only, or to a certificate
// that chains to a trusted authority ([ClientConfig]).
package tlspin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"time"
)

// fetchTimeout bounds a [Fetch] whose context has no earlier deadline.
const fetchTimeout = 10 * time.Second

// A MismatchError says that a server has another key than the pinned one, and
// no certificate that a trusted authority signed for its name either.
type MismatchError struct {
	Want, Got string // pins
	Cause     error  // why the certificate is not trusted by itself
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("tlspin: the server's key is %s, but %s is pinned (%v)", e.Got, e.Want, e.Cause)
}

func (e *MismatchError) Unwrap() error { return e.Cause }

// Pin names the certificate's public key: "sha256:" and the unpadded base64url
// form of the SHA-256 of its SubjectPublicKeyInfo. A certificate that is
// renewed for the same key has the same pin. The form is pinned: it is kept in
// cluster configurations.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// ClientConfig returns a client's configuration that accepts a server if its
// key has the pin, or if its certificate is valid for its name and chains to
// an authority that the system trusts. Without a pin only the latter counts. A
// server that is refused is a [*MismatchError].
//
// A server that is dialled by IP address and is to be trusted by its
// certificate alone needs ServerName set in the result before it is used: TLS
// does not tell the check which address was dialled.
func ClientConfig(pin string) *tls.Config { return clientConfig(pin, nil) }

// clientConfig is [ClientConfig] with the trusted authorities; nil means the
// system's.
func clientConfig(pin string, roots *x509.CertPool) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	if pin == "" {
		return cfg
	}
	// The library's own check, which knows no pins, is replaced by the one in
	// VerifyConnection, which also runs when a session is resumed.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		got := Pin(cs.PeerCertificates[0])
		if got == pin {
			return nil
		}
		name := cs.ServerName
		if name == "" {
			name = cfg.ServerName
		}
		if err := verifyChain(cs.PeerCertificates, name, roots); err != nil {
			return &MismatchError{Want: pin, Got: got, Cause: err}
		}
		return nil
	}
	return cfg
}

// verifyChain is what crypto/tls does by default.
func verifyChain(certs []*x509.Certificate, name string, roots *x509.CertPool) error {
	if name == "" {
		return errors.New("and the server's name is not known")
	}
	between := x509.NewCertPool()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	_, err := certs[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between})
	return err
}

// Fetch connects to the server at addr (host:port), lets it prove that it
// holds its key, and returns the key's pin. It is for the first contact:
// nothing says yet whose key that is.
func Fetch(ctx context.Context, addr string) (pin string, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection takes the pin; trust begins with it
		VerifyConnection: func(cs tls.ConnectionState) error {
			pin = Pin(cs.PeerCertificates[0])
			return nil
		},
	}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("tlspin: learn the key of %s: %w", addr, dialError(err))
	}
	conn.Close()
	return pin, nil
}

// dialError puts what it means before an error that a server without TLS
// causes.
func dialError(err error) error {
	var record tls.RecordHeaderError
	if errors.As(err, &record) {
		return fmt.Errorf("the server does not speak TLS there: %w", err)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return op
	}
	return err
}
