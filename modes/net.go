package modes

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"flexfs/internal/tlspin"
)

const (
	dialTimeout = 10 * time.Second // to connect, TLS included

	// shutdownTimeout bounds what a server waits for requests in flight when
	// it is told to end.
	shutdownTimeout = 10 * time.Second
)

// dialTLS connects to a server that has the pinned key or a certificate that
// the system trusts for its name.
func dialTLS(ctx context.Context, addr, pin string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	cfg := tlspin.ClientConfig(pin)
	cfg.ServerName = host
	d := tls.Dialer{Config: cfg}
	return d.DialContext(ctx, "tcp", addr)
}

// adminHTTP returns an HTTP client that talks to admin's key only.
func adminHTTP(pin string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:       tlspin.ClientConfig(pin),
		TLSHandshakeTimeout:   dialTimeout,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		MaxIdleConnsPerHost:   2,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: 90 * time.Second, // a long poll answers within 60 s
	}}
}

// identity is a server's certificate.
type identity struct {
	noSSL   bool
	sslCert string
	sslKey  string
}

// source returns the certificate, made at the first start in folder if no
// files are named, or nil without TLS.
func (id identity) source(folder string, log *slog.Logger) (*tlspin.Source, error) {
	if id.noSSL {
		return nil, nil
	}
	cert, key := id.sslCert, id.sslKey
	if (cert == "") != (key == "") {
		return nil, errors.New("--sslCert and --sslKey go together: give both, or neither and a certificate is made")
	}
	if cert == "" {
		cert, key = filepath.Join(folder, "ssl", "cert"), filepath.Join(folder, "ssl", "key")
	} else if err := bothExist(cert, key); err != nil {
		return nil, err
	}
	src, err := tlspin.Certificate(cert, key, nil)
	if err != nil {
		return nil, err
	}
	src.Log = log
	return src, nil
}

// listen binds addr; its errors say what to do.
func listen(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s is in use by another program: stop that, or choose another --bindAddr", addr)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s may not be used without privileges (ports below 1024): choose another --bindAddr, or run as root", addr)
	}
	return nil, fmt.Errorf("--bindAddr %s: %w", addr, cause(err))
}

// cause returns what is within a net.OpError: the rest of its text says again
// what was tried.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// reachable returns the address that others on this machine reach a listener
// by.
func reachable(ln net.Listener) string {
	addr := ln.Addr().(*net.TCPAddr)
	if addr.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(addr.Port))
	}
	return addr.String()
}

// serveHTTP answers on ln, with TLS if there is a certificate, until ctx is
// done, then lets requests finish. base is the context of requests.
func serveHTTP(ctx, base context.Context, ln net.Listener, src *tlspin.Source, h http.Handler, log *slog.Logger) error {
	return runHTTP(ctx, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // failed handshakes, which anybody can cause
	}, ln, src)
}

// runHTTP runs a server on ln, with TLS if there is a certificate, until ctx is
// done, then lets requests finish.
func runHTTP(ctx context.Context, srv *http.Server, ln net.Listener, src *tlspin.Source) error {
	if src != nil {
		ln = tls.NewListener(ln, src.ServerConfig())
	}
	var silent silentConns
	srv.ConnState = silent.note
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	silent.close()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(within); err != nil {
		srv.Close()
	}
	<-done
	return nil
}

// silentConns are the connections of a server on which no request came yet.
// Clients keep such in reserve, and http.Server.Shutdown would wait for them.
type silentConns struct {
	mu     sync.Mutex
	all    map[net.Conn]struct{}
	closed bool
}

func (s *silentConns) note(conn net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(s.all, conn)
	case s.closed:
		conn.Close()
	default:
		if s.all == nil {
			s.all = map[net.Conn]struct{}{}
		}
		s.all[conn] = struct{}{}
	}
}

func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.all {
		conn.Close()
	}
}

// splitList returns the parts of a comma-separated list.
func splitList(s string) []string {
	var list []string
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}

// bothExist wants the files of a certificate that the operator named.
func bothExist(cert, key string) error {
	for _, name := range []string{cert, key} {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("the certificate for --sslCert and --sslKey: %w", err)
		}
	}
	return nil
}
