package modes

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"flexfs/admin"
	"flexfs/internal/tlspin"
	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
)

// Meta is the metadata service.
type Meta struct {
	Admin     Access
	Addr      string // to listen on; port 0 picks one
	Address   string // host:port that mounts reach it by; "": from Addr
	DBFolder  string // for the database, the certificate and the last settings
	SSLCert   string // files; "": a certificate is made
	SSLKey    string
	CacheMem  int64         // bytes of memory for what was read; 0: the engine's default
	NoSync    bool          // acknowledge changes before they are on stable storage
	Lease     time.Duration // of mounts' caches and locks; 0: the service's default
	Keep      time.Duration // of deleted blocks at least; 0: the service's default
	DebugAddr string        // for metrics and profiles; "": none
	Log       *slog.Logger

	debug  *debugServer
	client *admin.Client // nil: as Admin says
	engine *engine.Pebble
	source *tlspin.Source
	ln     net.Listener

	tickets ticketKeys
	origins origins

	mu      sync.Mutex
	volumes map[string]tree.VolumeConfig // by id; guarded by mu
}

func metaCommand() *cli.Command {
	m := &Meta{Addr: "0.0.0.0:443", DBFolder: homeFolder("meta")}
	var l logging
	var access accessFlags
	serve := &cli.Command{
		Name:  "serve",
		Usage: "serve metadata, where one machine is not enough for admin and it",
		Flags: append(append([]cli.Flag{
			textFlag(&m.Addr, "bindAddr", "`ADDRESS` to listen on"),
			textFlag(&m.Address, "address", "`ADDRESS` host:port as it is in admin; else the machine's name and bindAddr's port"),
			textFlag(&m.DBFolder, "dbFolder", "`FOLDER` of the database and the certificate"),
			textFlag(&m.SSLCert, "sslCert", "`FILE` with the certificate, PEM; else one is made"),
			textFlag(&m.SSLKey, "sslKey", "`FILE` with its key"),
			debugFlag(&m.DebugAddr),
			boolFlag(&m.NoSync, "noSync", "answer before changes are on stable storage; a loss of power then loses acknowledged changes"),
		}, access.flags("token", "the meta store")...), l.flags()...),
		Action: func(c *cli.Context) (err error) {
			if _, err := positional(c); err != nil {
				return err
			}
			m.Log = l.logger(c.App.ErrWriter)
			say := func(text string) { m.Log.Warn(text) }
			if m.Admin, err = access.resolve(c.Context, say, homeFolder("meta", "credentials.json"), homeFolder("credentials.json")); err != nil {
				return err
			}
			return listenAndServe(c.Context, m)
		},
	}
	return &cli.Command{
		Name:        "meta",
		Usage:       "the metadata service on its own",
		Subcommands: []*cli.Command{serve, checkCommand(), reconcileCommand()},
	}
}

func checkCommand() *cli.Command {
	folder := homeFolder("admin")
	blocks := false
	return &cli.Command{
		Name:  "check",
		Usage: "verify every invariant of the metadata in a folder; the service must not be running",
		Flags: []cli.Flag{
			textFlag(&folder, "dbFolder", "`FOLDER` of the database: the dbFolder of admin or of the service"),
			boolFlag(&blocks, "blocks", "look in the buckets, too, for the blocks that files have"),
		},
		Action: func(c *cli.Context) error {
			if _, err := positional(c); err != nil {
				return err
			}
			return check(c, folder, blocks)
		},
	}
}

func check(c *cli.Context, folder string, blocks bool) error {
	m, err := openStopped(folder)
	if err != nil {
		return err
	}
	defer m.engine.Close()
	problems, err := tree.Check(c.Context, m.engine)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(c.App.Writer, p)
	}
	if len(problems) > 0 {
		return fmt.Errorf("%d problems found", len(problems))
	}
	if blocks {
		missing, err := m.checkBuckets(c.Context, c.App.Writer)
		if err != nil {
			return err
		}
		if missing > 0 {
			return fmt.Errorf("%d blocks are not in the buckets", missing)
		}
	}
	fmt.Fprintln(c.App.Writer, "no problems found")
	return nil
}

// Listen opens the database and binds the address.
func (m *Meta) Listen() (err error) {
	m.origins.log = m.Log
	dir := filepath.Join(m.DBFolder, "data")
	if err := os.MkdirAll(m.DBFolder, 0o700); err != nil {
		return err
	}
	if m.engine, err = engine.OpenPebble(dir, engine.Options{CacheSize: m.CacheMem, NoSync: m.NoSync, Log: m.Log}); err != nil {
		return err
	}
	if m.source, err = (identity{false, m.SSLCert, m.SSLKey}).source(m.DBFolder, m.Log); err == nil {
		m.debug, err = listenDebug(m.DebugAddr, nil)
	}
	if err == nil {
		m.ln, err = listen(m.Addr)
	}
	if err != nil {
		m.debug.close()
		m.engine.Close()
	}
	return err
}

// Reachable returns the host:port that others on this machine reach the service by.
func (m *Meta) Reachable() string { return reachable(m.ln) }

// Close undoes Listen, for who does not call Serve.
func (m *Meta) Close() {
	m.debug.close()
	m.ln.Close()
	m.engine.Close()
}

// Serve answers until ctx is done.
func (m *Meta) Serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, m.engine.Close()) }()
	defer m.ln.Close()
	defer m.debug.close()
	if m.client == nil {
		m.client = m.Admin.Client()
	}
	settings := feed[admin.MetaSettings]{m.client, filepath.Join(m.DBFolder, "settings.json"), m.Log}
	last, err := settings.first(ctx)
	if err != nil {
		return unlessEnding(ctx, err)
	}
	m.apply(last.Settings)
	srv, err := tree.New(tree.Config{
		Engine: m.engine, Log: m.Log, Lease: m.Lease, Keep: m.Keep,
		Authorize: m.authorize, Volumes: m.volume, Delete: m.delete, List: m.list,
	})
	if err != nil {
		return err
	}
	if m.Address == "" {
		m.Address = advertised(m.ln)
	}
	m.Log.Info("metadata service serving", "address", m.ln.Addr().String(), "known_as", m.Address, "pin", m.source.Pin(), "db_folder", m.DBFolder)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return meta.Serve(ctx, tls.NewListener(m.ln, m.source.ServerConfig()), srv, m.Log) })
	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { return m.debug.serve(ctx, m.Log) })
	g.Go(func() error {
		return enrol(ctx, m.client, admin.Enrolment{Address: m.Address, Pin: m.source.Pin()}, m.Log)
	})
	g.Go(func() error { settings.follow(ctx, last, m.apply); return nil })
	return g.Wait()
}

// apply takes over what admin says.
func (m *Meta) apply(s admin.MetaSettings) {
	m.tickets.update(s.TicketKeys)
	m.origins.update(s.Volumes)
	volumes := map[string]tree.VolumeConfig{}
	for _, v := range s.Volumes {
		volumes[v.Volume.ID] = volumeConfig(v.Volume)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes = volumes
}

func volumeConfig(v admin.Volume) tree.VolumeConfig {
	retention := time.Duration(-1)
	if v.Retention >= 0 && v.Retention <= math.MaxInt64/int64(time.Second) {
		retention = time.Duration(v.Retention) * time.Second
	}
	inline := v.InlineMax
	if v.Encryption {
		inline = 0 // contents are here sealed or not at all
	}
	return tree.VolumeConfig{
		Name: v.Name, BlockSize: uint32(v.BlockSize), InlineMax: uint32(inline), Retention: retention,
		MaxBytes: uint64(v.MaxBlocks) * uint64(v.BlockSize), MaxInodes: uint64(v.MaxInodes),
	}
}

func (m *Meta) authorize(token string) (tree.Grant, error) {
	t, err := m.tickets.check(token)
	if err != nil {
		return tree.Grant{}, err
	}
	return tree.Grant{Volume: t.Volume, Write: t.Write, MountPath: t.MountPath, Name: t.Name}, nil
}

func (m *Meta) volume(id string) (tree.VolumeConfig, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.volumes[id]
	if !ok {
		return v, fmt.Errorf("volume %s is not served here", id)
	}
	return v, nil
}

// delete removes blocks from the volume's bucket.
func (m *Meta) delete(ctx context.Context, volume string, blocks []tree.BlockRef) error {
	id, err := store.ParseVolume(volume)
	if err != nil {
		return err
	}
	keys := make([]store.Key, len(blocks))
	for i, b := range blocks {
		keys[i] = blockKey(id, b)
	}
	bucket, err := m.origins.of(ctx, id)
	if err != nil {
		return err
	}
	return store.DeleteAll(ctx, bucket, keys)
}

// enrol tells admin which key this server has, and tries again until it has
// been told. What admin refuses is for the operator to mend.
func enrol(ctx context.Context, client *admin.Client, e admin.Enrolment, log *slog.Logger) error {
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		answer, err := client.Enrol(ctx, e)
		var refused *admin.Error
		switch {
		case err == nil && answer.Member:
			return nil
		case err == nil:
			log.Warn("admin does not tell clients of this server: its address is not the configured one", "address", e.Address)
			return nil
		case errors.As(err, &refused):
			log.Error("admin refuses this server's key, clients will not trust it", "address", e.Address, "pin", e.Pin, "err", err)
			return nil
		}
		log.Debug("not enrolled yet", "err", err)
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
