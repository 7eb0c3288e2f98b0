package modes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"flexfs/admin"
	"flexfs/cache"
	"flexfs/internal/tlspin"
	"flexfs/store"
	"flexfs/store/remote"
	"flexfs/store/seal"
	"flexfs/store/writeback"
)

// Proxy is a server that keeps blocks of its group's volumes close to their
// clients.
type Proxy struct {
	Admin       Access
	Addr        string // to listen on; port 0 picks one
	Address     string // host:port as the group lists it; "": from Addr
	DiskFolder  string // for blocks
	DiskQuota   cache.Quota
	MemCapacity int64  // bytes of memory for the blocks of requests
	StateFolder string // for the certificate and the last settings
	NoSSL       bool   // plain HTTP, for trusted networks; must be what the group says
	SSLCert     string // files; "": a certificate is made
	SSLKey      string
	Limits      remote.Limits
	Drain       time.Duration // what is left after it when the proxy ends is uploaded after its next start
	DebugAddr   string        // for metrics and profiles; "": none
	Log         *slog.Logger

	debug   *debugServer
	client  *admin.Client
	source  *tlspin.Source
	ln      net.Listener
	conns   *remote.Listener // ln within limits
	disk    *cache.Disk
	tickets ticketKeys
	origins origins
	through atomic.Pointer[writeThrough]
	started time.Time

	below    below            // the disk
	peers    *remote.Peers    // the other members
	blocks   *writeback.Store // all of it, as clients see it
	requests remote.Stats
}

func proxyCommand() *cli.Command {
	p := &Proxy{Addr: "0.0.0.0:443", DiskFolder: "/cache", DiskQuota: cache.Quota{Percent: 90}, StateFolder: homeFolder("proxy"), Drain: 30 * time.Second}
	memory := Amount{Percent: 20}
	var l logging
	var access accessFlags
	return &cli.Command{
		Name:  "proxy",
		Usage: "serve a proxy of a group: keep blocks close to clients",
		Flags: append(append([]cli.Flag{
			textFlag(&p.Addr, "bindAddr", "`ADDRESS` to listen on"),
			textFlag(&p.Address, "address", "`ADDRESS` host:port as it is in the group; else the machine's name and bindAddr's port"),
			textFlag(&p.DiskFolder, "diskFolder", "`FOLDER` for blocks, on a fast disk"),
			quotaFlag(&p.DiskQuota, "diskQuota", "`SIZE` that blocks may take, or the share of the disk: 500GiB, 90%"),
			amountFlag(&memory, "memCapacity", "`SIZE` of memory for the blocks of requests, or the share of the machine's: 2GiB, 20%; the rest is the system's to cache files"),
			textFlag(&p.StateFolder, "stateFolder", "`FOLDER` of the certificate and the last settings"),
			boolFlag(&p.NoSSL, "noSSL", "serve plain HTTP; the group must say so too"),
			durationFlag(&p.Drain, "drainTimeout", "`TIME` for which a proxy that is told to end uploads what the bucket lacks; the rest is uploaded after its next start"),
			countFlag(&p.Limits.Conns, "maxConns", "`N` connections at most; 0 is 16384"),
			countFlag(&p.Limits.PerHost, "maxConnsPerHost", "`N` connections at most from one IPv4 address or IPv6 network of 64 bits; 0 is 4096"),
			textFlag(&p.SSLCert, "sslCert", "`FILE` with the certificate, PEM; else one is made"),
			textFlag(&p.SSLKey, "sslKey", "`FILE` with its key"),
			debugFlag(&p.DebugAddr),
		}, access.flags("token", "the proxy group")...), l.flags()...),
		Action: func(c *cli.Context) (err error) {
			if _, err := positional(c); err != nil {
				return err
			}
			if p.MemCapacity, err = memory.memory(); err != nil {
				return err
			}
			limitMemory(p.MemCapacity + p.MemCapacity/4 + 64<<20)
			p.Log = l.logger(c.App.ErrWriter)
			say := func(text string) { p.Log.Warn(text) }
			if p.Admin, err = access.resolve(c.Context, say, homeFolder("proxy", "credentials.json"), homeFolder("credentials.json")); err != nil {
				return err
			}
			return listenAndServe(c.Context, p)
		},
	}
}

// Listen opens the cache and binds the address.
func (p *Proxy) Listen() (err error) {
	p.origins.log = p.Log
	if p.disk, err = openDisk(&p.below, p.DiskFolder, p.DiskQuota, true, p.Log); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.debug, err = listenDebug(p.DebugAddr, p.metrics); err != nil {
		return err
	}
	if p.source, err = (identity{p.NoSSL, p.SSLCert, p.SSLKey}).source(p.StateFolder, p.Log); err != nil {
		return err
	}
	if p.ln, err = listen(p.Addr); err != nil {
		return err
	}
	p.conns = remote.Limit(p.ln, p.Limits, p.Log)
	return nil
}

func (p *Proxy) close() error {
	p.debug.close()
	if p.ln != nil {
		p.ln.Close()
	}
	return p.disk.Close()
}

// openDisk opens a cache of sealed blocks in folder. whole: a miss fetches the
// whole block, whatever part of it was asked for.
func openDisk(next store.Store, folder string, quota cache.Quota, whole bool, log *slog.Logger) (*cache.Disk, error) {
	return cache.OpenDisk(next, cache.DiskConfig{Dir: folder, Quota: quota, Verify: seal.Verify, Whole: whole, Direct: !whole, Log: log})
}

// URL returns where clients on this machine reach the proxy.
func (p *Proxy) URL() string {
	if p.NoSSL {
		return "http://" + reachable(p.ln)
	}
	return "https://" + reachable(p.ln)
}

// Serve answers until ctx is done, then lets requests finish and uploads what
// the bucket does not have yet.
func (p *Proxy) Serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, p.close()) }()
	p.started, p.client = time.Now(), p.Admin.Client()
	settings := feed[admin.ProxySettings]{p.client, filepath.Join(p.StateFolder, "settings.json"), p.Log}
	last, err := settings.first(ctx)
	if err != nil {
		return unlessEnding(ctx, errors.Join(err, p.salvage(ctx, settings)))
	}
	if err := p.agrees(last.Settings.Group); err != nil {
		return errors.Join(err, p.salvage(ctx, settings))
	}
	if p.Address == "" {
		p.Address = advertised(p.ln)
	}
	p.build()
	p.apply(last.Settings)
	pin := ""
	if p.source != nil {
		pin = p.source.Pin()
	}
	p.Log.Info("proxy serving", "url", p.URL(), "known_as", p.Address, "group", last.Settings.Group.ID, "pin", pin,
		"disk_folder", p.DiskFolder, "disk_bytes", p.disk.Stats().Limit, "not_uploaded_bytes", p.disk.Stats().DirtyBytes)
	return p.withBackground(ctx, func() error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.serve(ctx) })
		g.Go(func() error { return p.debug.serve(ctx, p.Log) })
		g.Go(func() error { return enrol(ctx, p.client, admin.Enrolment{Address: p.Address, Pin: pin}, p.Log) })
		g.Go(func() error { settings.follow(ctx, last, p.apply); return nil })
		g.Go(func() error { p.tryBuckets(ctx, last.Settings.Volumes); return nil })
		g.Go(func() error { p.report(ctx); return nil })
		err := g.Wait()
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.Drain)
		defer cancel()
		p.drain(within)
		return err
	})
}

// agrees wants TLS here and in the group to be the same: or no client gets in.
func (p *Proxy) agrees(group admin.GroupSettings) error {
	switch {
	case p.NoSSL && !group.NoSSL:
		return fmt.Errorf("--noSSL: clients come with TLS, as proxy group %d says: leave it out, or run flexfs configure update proxy-group %d --noSSL", group.ID, group.ID)
	case !p.NoSSL && group.NoSSL:
		return fmt.Errorf("clients come without TLS, as proxy group %d says: start with --noSSL, or run flexfs configure update proxy-group %d --noSSL=false", group.ID, group.ID)
	}
	return nil
}

// apply takes over what admin says.
func (p *Proxy) apply(s admin.ProxySettings) {
	through := writeThrough{group: s.Group.WriteThrough || len(s.Group.Members) < 2, volumes: map[store.Volume]bool{}}
	for _, v := range s.Volumes {
		if id, err := store.ParseVolume(v.Volume.ID); err == nil {
			through.volumes[id] = v.Volume.WriteThrough
		}
	}
	p.through.Store(&through)
	p.tickets.update(s.TicketKeys)
	p.origins.update(s.Volumes)
	p.peers.Update(groupOf(s.Group))
}

// tryBuckets says at once which buckets cannot be used, before a client asks.
func (p *Proxy) tryBuckets(ctx context.Context, volumes []admin.VolumeSettings) {
	for _, v := range volumes {
		id, err := store.ParseVolume(v.Volume.ID)
		if err == nil {
			_, err = p.origins.of(ctx, id)
		}
		if err != nil && ctx.Err() == nil {
			p.Log.Error("the bucket of a volume cannot be used", "volume", v.Volume.Name, "err", err)
		}
	}
}

// serve answers requests for blocks.
func (p *Proxy) serve(ctx context.Context) error {
	srv := remote.NewHTTPServer(remote.Handler(remote.Server{
		Tickets: p.tickets.check,
		Store: func(volume store.Volume) (store.Store, error) {
			if err := p.origins.known(volume); err != nil {
				return nil, err
			}
			return p.blocks, nil
		},
		Open:        p.open,
		Verify:      seal.Verify,
		Replica:     p.blocks,
		Stats:       &p.requests,
		Status:      func() any { return p.Stats() },
		Metrics:     metricsHandler(p.metrics),
		MaxRequests: int(min(max(p.MemCapacity/2/(store.MaxBlock+seal.MaxHead), 16), 1024)),
		Log:         p.Log,
	}), p.Log)
	return runHTTP(ctx, srv, p.conns, p.source)
}

// open opens the file of a block that the disk has.
func (p *Proxy) open(ctx context.Context, key store.Key) (*remote.File, error) {
	o, err := p.disk.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	return &remote.File{File: o.File, Size: o.Size, CRC: o.CRC, Sent: o.Sent}, nil
}
