package tlspin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestFirstStartMakesAKeyThatLaterStartsKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ssl")
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	first, err := Certificate(certFile, keyFile, []string{"proxy.example", "192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	leaf := first.current().Leaf
	if err := leaf.VerifyHostname("proxy.example"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("192.0.2.1"); err != nil {
		t.Error(err)
	}
	if years := time.Until(leaf.NotAfter).Hours() / 24 / 365; years < 99 {
		t.Errorf("the certificate ends in %.0f years, want about 100", years)
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("key file has mode %o, want 600", got)
	}
	second, err := Certificate(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.Pin() != second.Pin() {
		t.Errorf("pin is %s after a restart, was %s", second.Pin(), first.Pin())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("temporary files stay behind: %v", left)
	}
}

func TestServersThatStartTogetherShareOneKey(t *testing.T) {
	dir := t.TempDir()
	pins := make([]string, 8)
	var wg sync.WaitGroup
	for i := range pins {
		wg.Go(func() {
			s, err := Certificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), nil)
			if err != nil {
				t.Error(err)
				return
			}
			pins[i] = s.Pin()
		})
	}
	wg.Wait()
	for _, pin := range pins {
		if pin != pins[0] {
			t.Fatalf("pins differ: %v", pins)
		}
	}
}

func TestAKeyWithoutCertificateKeepsItsPin(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	first, err := Certificate(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	second, err := Certificate(certFile, keyFile, []string{"other.example"})
	if err != nil {
		t.Fatal(err)
	}
	if first.Pin() != second.Pin() {
		t.Errorf("pin is %s, want that of the key that was there, %s", second.Pin(), first.Pin())
	}
}

func TestFilesThatCannotBeUsedAreRefused(t *testing.T) {
	good := t.TempDir()
	if _, err := Certificate(filepath.Join(good, "cert"), filepath.Join(good, "key"), nil); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(cert, key string) error{
		"certificate without key": func(_, key string) error { return os.Remove(key) },
		"truncated key":           func(_, key string) error { return os.Truncate(key, 10) },
		"truncated certificate":   func(cert, _ string) error { return os.Truncate(cert, 10) },
		"empty key, no certificate": func(cert, key string) error {
			return errors.Join(os.Truncate(key, 0), os.Remove(cert))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
			copyFile(t, filepath.Join(good, "cert"), certFile)
			copyFile(t, filepath.Join(good, "key"), keyFile)
			if err := spoil(certFile, keyFile); err != nil {
				t.Fatal(err)
			}
			_, err := Certificate(certFile, keyFile, nil)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), keyFile) && !strings.Contains(err.Error(), certFile) {
				t.Errorf("error names no file: %v", err)
			}
		})
	}
}

func TestChangedFilesAreUsedByTheNextConnection(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	src, err := Certificate(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	src.Log = slog.New(slog.NewTextHandler(&log, nil))
	addr := serve(t, src.ServerConfig())
	old := fetch(t, addr)
	if old != src.Pin() {
		t.Fatalf("fetched %s, the server has %s", old, src.Pin())
	}

	next, err := Certificate(filepath.Join(other, "cert"), filepath.Join(other, "key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(other, "cert"), certFile) // the key does not match yet
	for range 3 {
		if got := fetch(t, addr); got != old {
			t.Errorf("with half of a new pair the server has %s, want the old %s", got, old)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 1 {
		t.Errorf("%d lines in the log, want 1:\n%s", n, log.String())
	}
	copyFile(t, filepath.Join(other, "key"), keyFile)
	if got := fetch(t, addr); got != next.Pin() {
		t.Errorf("after the change the server has %s, want %s", got, next.Pin())
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, addr); got != next.Pin() {
		t.Errorf("with the key file gone the server has %s, want the last good %s", got, next.Pin())
	}
}

func TestAClientAcceptsThePinnedKeyOrATrustedChain(t *testing.T) {
	ca := newAuthority(t)
	signed := ca.sign(t, "localhost")
	dir := t.TempDir()
	own, err := Certificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	selfSigned := own.ServerConfig()
	trusted := &tls.Config{Certificates: []tls.Certificate{signed}}
	signedPin := Pin(leaf(t, signed))

	for _, tc := range []struct {
		name   string
		server *tls.Config
		pin    string
		host   string
		ok     bool
	}{
		{"pinned key", selfSigned, own.Pin(), "localhost", true},
		{"pinned key under any name", selfSigned, own.Pin(), "elsewhere.example", true},
		{"another key than the pinned", selfSigned, signedPin, "localhost", false},
		{"pin that is none", selfSigned, "sha256:", "localhost", false},
		{"self-signed without pin", selfSigned, "", "localhost", false},
		{"trusted chain without pin", trusted, "", "localhost", true},
		{"trusted chain with another pin", trusted, own.Pin(), "localhost", true},
		{"trusted chain for another name", trusted, own.Pin(), "elsewhere.example", false},
		{"trusted chain for another name without pin", trusted, "", "elsewhere.example", false},
		{"trusted chain by an address it does not name", trusted, own.Pin(), "127.0.0.1", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := clientConfig(tc.pin, ca.pool)
			cfg.ServerName = tc.host
			err := dial(t, serve(t, tc.server), cfg)
			if (err == nil) != tc.ok {
				t.Fatalf("error is %v, want success %v", err, tc.ok)
			}
			var mismatch *MismatchError
			if err != nil && tc.pin != "" && !errors.As(err, &mismatch) {
				t.Errorf("error is %T %v, want a MismatchError", err, err)
			}
		})
	}
}

func TestAServerWithoutANameNeedsThePin(t *testing.T) {
	ca := newAuthority(t)
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(t, "localhost")}})
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := tls.Client(conn, clientConfig("sha256:other", ca.pool)).Handshake(); err == nil {
		t.Error("a server of unknown name was accepted for its chain")
	}
}

func TestAResumedSessionIsCheckedToo(t *testing.T) {
	dir := t.TempDir()
	own, err := Certificate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), []string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, own.ServerConfig())
	sessions := tls.NewLRUClientSessionCache(4)
	cfg := clientConfig(own.Pin(), nil)
	cfg.ServerName, cfg.ClientSessionCache = "localhost", sessions
	if err := dial(t, addr, cfg); err != nil {
		t.Fatal(err)
	}
	cfg = clientConfig("sha256:other", nil)
	cfg.ServerName, cfg.ClientSessionCache = "localhost", sessions
	if err := dial(t, addr, cfg); err == nil {
		t.Error("a resumed session escaped the pin")
	}
}

func TestOldProtocolsAreRefused(t *testing.T) {
	ca := newAuthority(t)
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(t, "localhost")}, MaxVersion: tls.VersionTLS12})
	cfg := clientConfig("", ca.pool)
	cfg.ServerName = "localhost"
	if err := dial(t, addr, cfg); err == nil {
		t.Error("a TLS 1.2 server was accepted")
	}
}

func TestFetchOfAServerWithoutTLSFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	}()
	_, err = Fetch(t.Context(), ln.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("error is %v, want one that says there is no TLS", err)
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Fetch(ctx, ln.Addr().String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want that the deadline passed", err)
	}
}

// TestPinForm holds the form of a pin, which is kept in cluster
// configurations.
func TestPinForm(t *testing.T) {
	cert := &x509.Certificate{RawSubjectPublicKeyInfo: []byte("a key")}
	const want = "sha256:j6Oqsvqpt54KA5jaW1q9B4AUJEKlvoC5pkYI1xjLH80"
	if got := Pin(cert); got != want {
		t.Errorf("pin is %s, want %s", got, want)
	}
}

// serve accepts TLS connections until the test ends and returns the address.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if conn.(*tls.Conn).Handshake() == nil {
					_, _ = conn.Write([]byte{1})
				}
			})
		}
	})
	return ln.Addr().String()
}

// dial makes one connection and reads the byte that serve sends, so that a
// session ticket has arrived.
func dial(t *testing.T, addr string, cfg *tls.Config) error {
	t.Helper()
	d := tls.Dialer{Config: cfg}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	return err
}

func fetch(t *testing.T, addr string) string {
	t.Helper()
	pin, err := Fetch(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return pin
}

// copyFile replaces a file the way a careful tool does: by renaming.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to+".tmp", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(to+".tmp", to); err != nil {
		t.Fatal(err)
	}
}

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

func (a *authority) sign(t *testing.T, name string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func leaf(t *testing.T, cert tls.Certificate) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}
