package modes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"flexfs/admin"
	"flexfs/internal/tlspin"
)

// Admin is the server that keeps the configuration of a cluster. It hosts a
// metadata service too, unless NoMeta is set.
type Admin struct {
	Addr     string // to listen on; port 0 picks one
	DBFolder string // for the database, the certificate and the metadata service
	NoSSL    bool   // plain HTTP, for trusted networks
	SSLCert  string // files; "": a certificate is made
	SSLKey   string

	NoMeta       bool
	MetaBindAddr string        // for the metadata service to listen on
	MetaAddress  string        // host:port that mounts reach it by; "": from MetaBindAddr
	Lease        time.Duration // of mounts' caches and locks; 0: the service's default
	Keep         time.Duration // of deleted blocks at least; 0: the service's default

	DebugAddr string // for metrics and profiles; "": none

	NewCredentials bool // write the first account's credentials file even if it is not new

	Log *slog.Logger

	db     *admin.DB
	source *tlspin.Source
	ln     net.Listener
	h      http.Handler
	meta   *Meta
	debug  *debugServer
}

func adminCommand() *cli.Command {
	a := &Admin{Addr: "0.0.0.0:443", DBFolder: homeFolder("admin"), MetaBindAddr: "0.0.0.0:8443"}
	var l logging
	return &cli.Command{
		Name:  "admin",
		Usage: "serve the configuration of a cluster, and its metadata",
		Description: "At the first start an account is made; its credentials are written to credentials.json in dbFolder,\n" +
			"for: flexfs configure --credsFile <dbFolder>/credentials.json ...",
		Flags: append([]cli.Flag{
			textFlag(&a.Addr, "bindAddr", "`ADDRESS` to listen on"),
			textFlag(&a.DBFolder, "dbFolder", "`FOLDER` of the database and the certificate"),
			boolFlag(&a.NoSSL, "noSSL", "serve plain HTTP; tokens and bucket keys can then be read on the network"),
			textFlag(&a.SSLCert, "sslCert", "`FILE` with the certificate, PEM; else one is made"),
			textFlag(&a.SSLKey, "sslKey", "`FILE` with its key"),
			boolFlag(&a.NoMeta, "noMeta", "do not host a metadata service"),
			textFlag(&a.MetaBindAddr, "metaBindAddr", "`ADDRESS` for the metadata service to listen on"),
			textFlag(&a.MetaAddress, "metaAddress", "`ADDRESS` host:port that mounts reach the metadata service by; else the machine's name and metaBindAddr's port"),
			debugFlag(&a.DebugAddr),
			boolFlag(&a.NewCredentials, "newCredentials", "write credentials.json of the first account again"),
		}, l.flags()...),
		Action: func(c *cli.Context) error {
			if _, err := positional(c); err != nil {
				return err
			}
			a.Log = l.logger(c.App.ErrWriter)
			return listenAndServe(c.Context, a)
		},
	}
}

// A server is a mode that listens.
type server interface {
	Listen() error
	Serve(ctx context.Context) error
}

func listenAndServe(ctx context.Context, s server) error {
	if err := s.Listen(); err != nil {
		return err
	}
	notifySystemd("READY=1")
	err := s.Serve(ctx)
	notifySystemd("STOPPING=1")
	return err
}

// unlessEnding returns err, or nil if it comes from being told to end.
func unlessEnding(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Listen opens the database and binds the addresses. After it, Access is known
// and clients may connect.
func (a *Admin) Listen() (err error) {
	if a.db, err = admin.Open(filepath.Join(a.DBFolder, "admin.db")); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	a.source, err = identity{a.NoSSL, a.SSLCert, a.SSLKey}.source(a.DBFolder, a.Log)
	if err != nil {
		return err
	}
	if a.debug, err = listenDebug(a.DebugAddr, nil); err != nil {
		return err
	}
	if a.ln, err = listen(a.Addr); err != nil {
		return err
	}
	a.h = admin.NewHandler(a.db, admin.Options{Log: a.Log})
	if err := a.bootstrap(); err != nil {
		return err
	}
	if a.NoMeta {
		return nil
	}
	return a.listenMeta()
}

func (a *Admin) close() {
	a.debug.close()
	if a.ln != nil {
		a.ln.Close()
	}
	a.db.Close()
}

// Access returns how programs on this machine reach the server, without a
// token.
func (a *Admin) Access() Access {
	if a.source == nil {
		return Access{Addr: "http://" + reachable(a.ln)}
	}
	return Access{Addr: reachable(a.ln), Pin: a.source.Pin()}
}

// CredentialsFile is where the first account's credentials are written.
func (a *Admin) CredentialsFile() string { return filepath.Join(a.DBFolder, "credentials.json") }

// bootstrap makes the first account and tells its token to whoever may read
// the credentials file.
func (a *Admin) bootstrap() error {
	account, made, err := a.db.Bootstrap()
	if err != nil {
		return err
	}
	if !made && !a.NewCredentials {
		return nil
	}
	shown, err := a.db.Show(admin.FindTable("accounts"), fmt.Sprint(account.ID))
	if err != nil {
		return err
	}
	access := a.Access()
	creds := Credentials{AdminAddr: access.Addr, AdminPin: access.Pin, Token: shown.(*admin.Account).Token}
	if err := creds.write(a.CredentialsFile()); err != nil {
		return err
	}
	a.Log.Info("credentials of the first account written", "file", a.CredentialsFile())
	return nil
}

// listenMeta makes the hosted metadata service known to the configuration and
// binds its address.
func (a *Admin) listenMeta() error {
	a.meta = &Meta{
		Addr: a.MetaBindAddr, DBFolder: filepath.Join(a.DBFolder, "meta"), SSLCert: a.SSLCert, SSLKey: a.SSLKey,
		Lease: a.Lease, Keep: a.Keep, Log: a.Log,
	}
	if err := a.meta.Listen(); err != nil {
		return err
	}
	address := a.MetaAddress
	if address == "" {
		address = advertised(a.meta.ln)
	}
	token, err := a.metaStore(address)
	if err != nil {
		a.meta.Close()
		return fmt.Errorf("metadata service: %w", err)
	}
	a.meta.Address = address
	a.meta.client = &admin.Client{URL: "http://admin", Token: token, HTTP: &http.Client{Transport: within{a.h}}}
	return nil
}

// advertised returns the host:port that other machines are likely to reach a
// listener by.
func advertised(ln net.Listener) string {
	addr := ln.Addr().(*net.TCPAddr)
	name, err := os.Hostname()
	if !addr.IP.IsUnspecified() || err != nil {
		return reachable(ln)
	}
	return net.JoinHostPort(name, fmt.Sprint(addr.Port))
}

// metaStore returns the token of the hosted service's object. Its id is kept
// in a file; without that, the object with the address is it, or a new one.
func (a *Admin) metaStore(address string) (token string, err error) {
	table := admin.FindTable("meta-stores")
	file := filepath.Join(a.DBFolder, "meta-store.json")
	var kept struct {
		ID int64 `json:"id"`
	}
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &kept)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if kept.ID, err = a.findMetaStore(address); err != nil {
			return "", err
		}
		if err := writeSecret(file, kept); err != nil {
			return "", err
		}
	case err != nil:
		return "", fmt.Errorf("%s: %w", file, err)
	}
	object, err := a.db.Show(table, fmt.Sprint(kept.ID))
	if err != nil {
		return "", fmt.Errorf("%w; if it was deleted on purpose start with --noMeta, else remove %s to make a new one", err, file)
	}
	m := object.(*admin.MetaStore)
	if a.MetaAddress != "" && m.Address != a.MetaAddress {
		if err := a.db.Update(table, map[string]string{"address": a.MetaAddress}, fmt.Sprint(m.ID)); err != nil {
			return "", err
		}
		a.Log.Info("address of the metadata service changed", "from", m.Address, "to", a.MetaAddress)
	}
	return m.Token, nil
}

func (a *Admin) findMetaStore(address string) (int64, error) {
	table := admin.FindTable("meta-stores")
	found, err := a.db.List(table, map[string][]string{"address": {address}})
	if err != nil {
		return 0, err
	}
	if len(found) > 0 {
		return found[0].(*admin.MetaStore).ID, nil
	}
	made, err := a.db.Create(table, map[string]string{"providerCode": localPlace, "regionCode": localPlace, "address": address}, 0)
	if err != nil {
		return 0, err
	}
	return made.(*admin.MetaStore).ID, nil
}

// Serve answers until ctx is done, then lets requests finish.
func (a *Admin) Serve(ctx context.Context) error {
	defer a.db.Close()
	access := a.Access()
	a.Log.Info("admin serving", "address", access.Addr, "pin", access.Pin, "db_folder", a.DBFolder)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serveHTTP(ctx, ctx, a.ln, a.source, a.h, a.Log) })
	g.Go(func() error {
		l := &admin.Learner{DB: a.db, Log: a.Log}
		return l.Run(ctx)
	})
	g.Go(func() error { return a.debug.serve(ctx, a.Log) })
	if a.meta != nil {
		g.Go(func() error { return a.meta.Serve(ctx) })
	}
	return g.Wait()
}

// within carries requests to a handler in this process.
type within struct{ h http.Handler }

func (w within) RoundTrip(r *http.Request) (*http.Response, error) {
	a := &answer{header: http.Header{}, status: http.StatusOK}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	w.h.ServeHTTP(a, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: r,
	}, nil
}

// answer is an [http.ResponseWriter] that keeps what is written.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }
