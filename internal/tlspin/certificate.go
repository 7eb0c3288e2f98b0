package tlspin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// lifetime of a certificate that we make. Its key is trusted by its pin, which
// does not end; the date is there because the format wants one.
const lifetime = 100 * 365 * 24 * time.Hour

// A Source is a server's certificate and key, kept in two files. When the
// files change, connections made from then on use the new ones.
type Source struct {
	// Log is told of changed files that cannot be used, once per change; the
	// last good certificate stays in use. Set it before the first
	// connection. Nil is silence.
	Log *slog.Logger

	certFile, keyFile string

	mu       sync.Mutex // guards the rest
	cert     *tls.Certificate
	loaded   stamp // of the files that cert is from
	reported stamp // of the files last complained of
}

// Certificate returns the certificate in certFile with the key in keyFile, PEM
// both. If there is neither, it makes a key (ECDSA P-256, readable by the
// owner only) and a certificate signed by itself for hosts, names or IP
// addresses; without hosts, for this machine's name and localhost. A key
// without a certificate gets one.
func Certificate(certFile, keyFile string, hosts []string) (*Source, error) {
	if err := ensure(certFile, keyFile, hosts); err != nil {
		return nil, fmt.Errorf("tlspin: make a certificate: %w", err)
	}
	s := &Source{certFile: certFile, keyFile: keyFile, loaded: stampOf(certFile, keyFile)}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("tlspin: load certificate %s with key %s: %w", certFile, keyFile, err)
	}
	s.cert = &cert
	return s, nil
}

// Pin returns the pin of the certificate that is in use now.
func (s *Source) Pin() string { return Pin(s.current().Leaf) }

// GetCertificate is for [tls.Config].
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current(), nil
}

// ServerConfig returns a server's configuration with this certificate.
func (s *Source) ServerConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.GetCertificate}
}

// current returns the certificate in the files or, while they cannot be used
// (one of the two is replaced and the other not yet), the last good one.
func (s *Source) current() *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := stampOf(s.certFile, s.keyFile) // before they are read: a later change shows
	if now == s.loaded {
		return s.cert
	}
	cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
	if err != nil {
		if s.Log != nil && s.reported != now {
			s.Log.Warn("changed certificate cannot be used, the last good one stays", "cert", s.certFile, "key", s.keyFile, "err", err)
		}
		s.reported = now
		return s.cert
	}
	s.cert, s.loaded = &cert, now
	return s.cert
}

// A stamp changes when one of the two files does.
type stamp [2]struct {
	mod   time.Time
	size  int64
	inode uint64
}

func stampOf(certFile, keyFile string) (s stamp) {
	for i, name := range []string{certFile, keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			continue // the zero stamp: differs from that of any file
		}
		s[i].mod, s[i].size, s[i].inode = info.ModTime(), info.Size(), inode(info)
	}
	return s
}

// ensure makes what is missing. Servers that start at the same time on the
// same files end with the same key.
func ensure(certFile, keyFile string, hosts []string) error {
	if exists(certFile) {
		return nil // without its key, loading says so
	}
	if certFile == keyFile {
		return fmt.Errorf("%s does not exist, and a new key needs a file of its own", certFile)
	}
	if !exists(keyFile) {
		if err := makeKey(keyFile); err != nil {
			return err
		}
	}
	return makeCert(certFile, keyFile, hosts)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func makeKey(keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	err = publish(keyFile, "PRIVATE KEY", der, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was first: its key it is
	}
	return err
}

func makeCert(certFile, keyFile string, hosts []string) error {
	signer, err := readKey(keyFile)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	names, ips := split(hosts)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: "flexfs"},
		NotBefore:             now.Add(-24 * time.Hour), // clocks differ
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              names,
		IPAddresses:           ips,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &signer.PublicKey, signer)
	if err != nil {
		return err
	}
	err = publish(certFile, "CERTIFICATE", der, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func readKey(keyFile string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", keyFile)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is a %T; bring its certificate, or remove the key and a new pair is made", keyFile, key)
	}
	return ec, nil
}

// split sorts hosts into names and addresses.
func split(hosts []string) (names []string, ips []net.IP) {
	if len(hosts) == 0 {
		hosts = []string{"localhost", "127.0.0.1", "::1"}
		if name, err := os.Hostname(); err == nil {
			hosts = append(hosts, name)
		}
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			ips = append(ips, ip)
		} else {
			names = append(names, host)
		}
	}
	return names, ips
}

// publish makes a file appear under its name whole and durable, or fails with
// [fs.ErrExist] if there is one.
func publish(name, kind string, der []byte, mode fs.FileMode) error {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = errors.Join(
		tmp.Chmod(mode),
		pem.Encode(tmp, &pem.Block{Type: kind, Bytes: der}),
		tmp.Sync(),
		tmp.Close(),
	)
	if err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), name); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
