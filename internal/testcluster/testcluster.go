// Package testcluster runs a whole cluster inside a test: admin, a metadata
// service, proxy groups and mounts, made of the types that the program is made
// of, on loopback ports, with all they keep in the test's folders.
package testcluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"flexfs/admin"
	"flexfs/cache"
	"flexfs/internal/faultnet"
	"flexfs/internal/leak"
	"flexfs/modes"
	"flexfs/store/remote"
)

// patience bounds every wait for a server.
const patience = 30 * time.Second

// Options say what a cluster is made of. The zero value is a good one.
type Options struct {
	Groups  int // proxy groups of the volume; 0: 2, negative: none
	Members int // of each group; 0: 2

	Volume     map[string]any    // fields of the volume, such as blockSize
	BlockStore *admin.BlockStore // nil: a folder
	Lease      time.Duration     // of the metadata service; 0: 2 s
	Timing     remote.Timing     // of mounts' probes; zero fields: fast ones
	Drain      time.Duration     // for which proxies that end upload; 0: 30 s
	FaultyNet  bool              // clients reach each proxy by a line that can fail: see Proxy.Net
}

// A Cluster runs until the end of its test, which then makes sure that all
// blocks of all files are in the bucket, that the metadata is consistent, and that
// no goroutine of ours and no descriptor is left, unless the bucket is a real one.
type Cluster struct {
	Client *admin.Client // of an account
	Volume admin.Volume
	Groups []*Group
	Bucket string // folder of the blocks, if they are in one

	Token string // for the volume

	t      testing.TB
	opt    Options
	dir    string
	admin  *process
	access modes.Access
	meta   *process
	metaID int64
	lines  []*faultnet.Net

	objects *objects // of the volume; nil: there is none

	mu     sync.Mutex
	mounts []*Mount // guarded by mu
	logs   *testLog
}

// A Group is a proxy group.
type Group struct {
	ID      int64
	Token   string
	Proxies []*Proxy
}

// A Proxy is a member of a group, or one that was taken out of it.
type Proxy struct {
	Addr   string        // where clients connect to
	Folder string        // its cache
	Net    *faultnet.Net // the line from Addr to the proxy; nil: they connect directly

	c     *Cluster
	group *Group
	dir   string
	bind  string // where it listens
	run   *process
	proxy *modes.Proxy
}

// A Mount is a mounted volume.
type Mount struct {
	Dir string

	c    *Cluster
	mode *modes.Mount
	run  *process
}

// Start runs a cluster. Mounts are not part of it: see Mount.
func Start(t testing.TB, opt Options) *Cluster {
	t.Helper()
	opt.defaults()
	c := &Cluster{t: t, opt: opt, dir: t.TempDir(), logs: &testLog{t: t}}
	t.Cleanup(c.logs.end)
	if opt.BlockStore == nil { // idle connections to a real one are kept for 15 seconds
		leak.Check(t)
	}
	c.StartAdmin("127.0.0.1:0")
	t.Cleanup(c.end)
	c.startMeta("127.0.0.1:0")
	c.configure()
	return c
}

func (o *Options) defaults() {
	if o.Groups == 0 {
		o.Groups = 2
	}
	if o.Members == 0 {
		o.Members = 2
	}
	if o.Lease == 0 {
		o.Lease = 2 * time.Second
	}
	if o.Drain == 0 {
		o.Drain = patience
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.Timing.Probe, 500 * time.Millisecond},
		{&o.Timing.Round, 300 * time.Millisecond},
		{&o.Timing.Pause, 200 * time.Millisecond},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
}

// log returns a log whose lines show if the test fails.
func (c *Cluster) log(name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(c.logs, &slog.HandlerOptions{Level: slog.LevelInfo})).With("in", name)
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// must fails the test.
func (c *Cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// StartAdmin starts admin; addr is the one it had, or has port 0.
func (c *Cluster) StartAdmin(addr string) {
	c.t.Helper()
	a := &modes.Admin{Addr: addr, DBFolder: c.path("admin"), NoMeta: true, Log: c.log("admin")}
	c.must(a.Listen())
	c.admin = start("admin", a.Serve)
	c.access = a.Access()
	creds, err := modes.ReadCredentials(a.CredentialsFile())
	c.must(err)
	access := c.access
	access.Token = creds.Token
	c.Client = access.Client()
}

// StopAdmin stops admin. Everything else goes on.
func (c *Cluster) StopAdmin() {
	c.t.Helper()
	c.must(c.admin.stop())
}

// RestartAdmin stops admin if it runs and starts it at the same address.
func (c *Cluster) RestartAdmin() {
	c.t.Helper()
	c.must(c.admin.stop())
	c.StartAdmin(c.access.Addr)
}

// startMeta starts the metadata service and makes it known at the first time.
func (c *Cluster) startMeta(addr string) {
	c.t.Helper()
	m := &modes.Meta{Addr: addr, DBFolder: c.path("meta"), Lease: c.opt.Lease, Log: c.log("meta")}
	c.must(m.Listen())
	if c.metaID == 0 {
		object, err := admin.Create[admin.MetaStore](c.ctx(), c.Client, map[string]any{"providerCode": "local", "regionCode": "local", "address": m.Reachable()})
		c.must(err)
		c.metaID = object.ID
	}
	object, err := admin.Get[admin.MetaStore](c.ctx(), c.Client, fmt.Sprint(c.metaID))
	c.must(err)
	m.Address, m.Admin = object.Address, c.access
	m.Admin.Token = object.Token
	c.meta = start("meta", m.Serve)
	c.await("the metadata service enrols", func() error {
		object, err := admin.Get[admin.MetaStore](c.ctx(), c.Client, fmt.Sprint(c.metaID))
		if err == nil && object.Pin == "" {
			err = fmt.Errorf("meta store %d has no pin", c.metaID)
		}
		return err
	})
}

// StopMeta stops the metadata service: what mounts ask it waits.
func (c *Cluster) StopMeta() {
	c.t.Helper()
	c.must(c.meta.stop())
}

// RestartMeta stops the metadata service if it runs, and starts it again with
// what it kept. Admin must run.
func (c *Cluster) RestartMeta() {
	c.t.Helper()
	c.must(c.meta.stop())
	object, err := admin.Get[admin.MetaStore](c.ctx(), c.Client, fmt.Sprint(c.metaID))
	c.must(err)
	c.startMeta(object.Address)
}

// configure makes the objects of the volume and starts the proxies.
func (c *Cluster) configure() {
	c.t.Helper()
	blocks := admin.BlockStore{ProviderCode: "local", RegionCode: "local", APICode: "dir", Bucket: c.path("bucket")}
	if c.opt.BlockStore != nil {
		blocks = *c.opt.BlockStore
		blocks.ProviderCode, blocks.RegionCode = "local", "local"
	} else {
		c.Bucket = blocks.Bucket
		c.must(os.Mkdir(c.Bucket, 0o700))
	}
	made, err := admin.Create[admin.BlockStore](c.ctx(), c.Client, map[string]any{
		"providerCode": blocks.ProviderCode, "regionCode": blocks.RegionCode, "apiCode": blocks.APICode, "bucket": blocks.Bucket,
		"prefix": blocks.Prefix, "username": blocks.Username, "password": blocks.Password, "address": blocks.Address,
	})
	c.must(err)
	fields := map[string]any{"name": "test", "blockStoreID": made.ID, "metaStoreID": c.metaID}
	for name, value := range c.opt.Volume {
		fields[name] = value
	}
	c.Volume, err = admin.Create[admin.Volume](c.ctx(), c.Client, fields)
	c.must(err)
	c.Token = c.NewToken(nil)
	for range c.opt.Groups {
		c.AddGroup(c.opt.Members)
	}
}

// NewToken makes a token for the volume and returns it.
func (c *Cluster) NewToken(fields map[string]any) string {
	c.t.Helper()
	all := map[string]any{"volumeID": c.Volume.ID}
	for name, value := range fields {
		all[name] = value
	}
	made, err := admin.Create[admin.VolumeToken](c.ctx(), c.Client, all)
	c.must(err)
	return made.Token
}

// AddGroup makes a proxy group of n proxies for the volume and starts them.
func (c *Cluster) AddGroup(n int) *Group {
	c.t.Helper()
	g := &Group{}
	var addresses []string
	var servers []*modes.Proxy
	for range n {
		p, mode := c.newProxy(g, "127.0.0.1:0")
		servers = append(servers, mode)
		addresses = append(addresses, p.Addr)
		g.Proxies = append(g.Proxies, p)
	}
	made, err := admin.Create[admin.ProxyGroup](c.ctx(), c.Client, map[string]any{"providerCode": "local", "regionCode": "local", "addresses": addresses})
	c.must(err)
	g.ID, g.Token = made.ID, made.Token
	if g.Token == "" {
		full, err := admin.Get[admin.ProxyGroup](c.ctx(), c.Client, fmt.Sprint(g.ID))
		c.must(err)
		g.Token = full.Token
	}
	c.Associate(g)
	for i, p := range g.Proxies {
		p.serve(servers[i])
	}
	c.Groups = append(c.Groups, g)
	c.pinned(g)
	return g
}

// pinned waits until admin knows the keys of all proxies of the group.
func (c *Cluster) pinned(g *Group) {
	c.t.Helper()
	c.await("all proxies enrol", func() error {
		full, err := admin.Get[admin.ProxyGroup](c.ctx(), c.Client, fmt.Sprint(g.ID))
		if err == nil && len(full.Pins) < len(full.Addresses) {
			err = fmt.Errorf("%d of %d proxies have a pin", len(full.Pins), len(full.Addresses))
		}
		return err
	})
}

// newProxy binds the address of a proxy.
func (c *Cluster) newProxy(g *Group, addr string) (*Proxy, *modes.Proxy) {
	c.t.Helper()
	p := &Proxy{c: c, group: g, dir: c.t.TempDir()}
	mode := p.mode(addr)
	c.must(mode.Listen())
	p.bind = mode.URL()[len("https://"):]
	p.Addr, p.Folder = p.bind, mode.DiskFolder
	if c.opt.FaultyNet {
		line, err := faultnet.New(p.bind)
		c.must(err)
		c.lines = append(c.lines, line)
		p.Net, p.Addr = line, line.Addr()
	}
	return p, mode
}

func (p *Proxy) mode(addr string) *modes.Proxy {
	return &modes.Proxy{
		Addr: addr, StateFolder: p.dir, DiskFolder: filepath.Join(p.dir, "blocks"), DiskQuota: cache.Quota{Bytes: 1 << 30},
		MemCapacity: 64 << 20, Drain: p.c.opt.Drain, Log: p.c.log("proxy"),
	}
}

func (p *Proxy) serve(mode *modes.Proxy) {
	mode.Address, mode.Admin = p.Addr, p.c.access
	mode.Admin.Token = p.group.Token
	p.run, p.proxy = start("proxy "+p.Addr, mode.Serve), mode
}

// Stats returns what the proxy did since its last start.
func (p *Proxy) Stats() modes.ProxyStats { return p.proxy.Stats() }

// AddProxy starts one more proxy with the group's token. It is not a member of
// the group: see SetMembers.
func (c *Cluster) AddProxy(g *Group) *Proxy {
	c.t.Helper()
	p, mode := c.newProxy(g, "127.0.0.1:0")
	p.serve(mode)
	g.Proxies = append(g.Proxies, p)
	return p
}

// SetMembers makes the proxies the members of the group, and waits until admin
// knows their keys.
func (c *Cluster) SetMembers(g *Group, members ...*Proxy) {
	c.t.Helper()
	addresses := []string{}
	for _, p := range members {
		addresses = append(addresses, p.Addr)
	}
	c.must(admin.Update[admin.ProxyGroup](c.ctx(), c.Client, map[string]any{"addresses": addresses}, fmt.Sprint(g.ID)))
	c.pinned(g)
}

// Associate gives the volume the group.
func (c *Cluster) Associate(g *Group) {
	c.t.Helper()
	_, err := admin.Create[admin.VolumeProxyGroup](c.ctx(), c.Client, map[string]any{"volumeID": c.Volume.ID, "proxyGroupID": g.ID})
	c.must(err)
}

// Dissociate takes the group from the volume.
func (c *Cluster) Dissociate(g *Group) {
	c.t.Helper()
	c.must(admin.Delete[admin.VolumeProxyGroup](c.ctx(), c.Client, c.Volume.ID, fmt.Sprint(g.ID)))
}

// DeleteGroup deletes the group, though the volume uses it. Its proxies go on.
func (c *Cluster) DeleteGroup(g *Group) {
	c.t.Helper()
	c.must(c.Client.DeleteByForce(c.ctx(), admin.TableOf[admin.ProxyGroup](), fmt.Sprint(g.ID)))
}

// Stop ends the proxy: its address refuses connections.
func (p *Proxy) Stop() {
	p.c.t.Helper()
	p.c.must(p.run.stop())
}

// Start starts a stopped proxy at its old address with its old cache.
func (p *Proxy) Start() {
	p.c.t.Helper()
	mode := p.mode(p.bind)
	p.c.must(mode.Listen())
	p.serve(mode)
}

// SetLine changes the lines to all proxies of the group.
func (g *Group) SetLine(line faultnet.Line) {
	for _, p := range g.Proxies {
		p.SetLine(line)
	}
}

// SetLine changes the line to the proxy, see Options.FaultyNet.
func (p *Proxy) SetLine(line faultnet.Line) {
	p.c.t.Helper()
	p.c.must(p.Net.Set(line))
}

// Mount mounts the volume in a folder of its own; change may change how. The
// test is skipped where there is no FUSE.
func (c *Cluster) Mount(change func(*modes.Mount)) *Mount {
	c.t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		c.t.Skip("no /dev/fuse")
	}
	mode := &modes.Mount{
		Admin: c.access, Volume: c.Volume.Name, Dir: c.t.TempDir(), MemCapacity: 64 << 20, Timing: c.opt.Timing, Log: c.log("mount"),
	}
	mode.Admin.Token = c.Token
	if change != nil {
		change(mode)
	}
	ctx, cancel := context.WithTimeout(c.ctx(), patience)
	defer cancel()
	c.must(mode.Listen(ctx))
	m := &Mount{Dir: mode.Dir, c: c, mode: mode, run: start("mount "+mode.Dir, mode.Serve)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mounts = append(c.mounts, m)
	return m
}

// Stats returns what the mount did.
func (m *Mount) Stats() modes.MountStats { return m.mode.Stats() }

// Path returns the path of a file in the mount.
func (m *Mount) Path(elem ...string) string {
	return filepath.Join(append([]string{m.Dir}, elem...)...)
}

// Unmount unmounts; all that was written is then in the bucket.
func (m *Mount) Unmount() {
	m.c.t.Helper()
	m.c.must(m.end())
}

func (m *Mount) end() error {
	late := time.AfterFunc(2*patience, func() { syscall.Unmount(m.Dir, syscall.MNT_DETACH) })
	defer late.Stop()
	return m.run.stop()
}

// ctx is the context of requests to servers.
func (c *Cluster) ctx() context.Context { return context.WithoutCancel(c.t.Context()) }

// Await waits until try succeeds, or fails the test with what and the last
// error.
func (c *Cluster) Await(what string, try func() error) {
	c.t.Helper()
	c.await(what, try)
}

func (c *Cluster) await(what string, try func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waiting until %s: %v", what, err)
		}
	}
}

// end stops everything, mounts first, and checks what is left.
func (c *Cluster) end() {
	for _, line := range c.lines {
		defer line.Close()
		if err := line.Set(faultnet.Line{}); err != nil {
			c.t.Error(err)
		}
	}
	c.mu.Lock()
	mounts := c.mounts
	c.mu.Unlock()
	for _, m := range mounts {
		if err := m.end(); err != nil {
			c.t.Errorf("unmount %s: %v", m.Dir, err)
		}
	}
	for _, g := range c.Groups {
		for _, p := range g.Proxies {
			c.report(p.run)
			if left, err := dirty(p.Folder); len(left) > 0 || err != nil {
				c.t.Errorf("proxy %s ended with %d blocks that are not in the bucket, such as %v (%v)", p.Addr, len(left), left[:min(1, len(left))], err)
			}
		}
	}
	if c.Token != "" {
		if err := c.checkBlocks(); err != nil {
			c.t.Errorf("blocks: %v", err)
		}
	}
	c.report(c.meta)
	c.report(c.admin)
	if err := c.checkTree(); c.meta != nil && err != nil {
		c.t.Errorf("metadata: %v", err)
	}
}

func (c *Cluster) report(p *process) {
	if p == nil {
		return
	}
	if err := p.stop(); err != nil {
		c.t.Errorf("%s: %v", p.name, err)
	}
}

// A process is a server that runs in this one.
type process struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
}

func start(name string, serve func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = serve(ctx)
	}()
	return p
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends the server and waits for it. Stopping it again does nothing.
func (p *process) stop() error {
	p.cancel()
	select {
	case <-p.done:
	case <-time.After(3 * patience):
		return fmt.Errorf("%s does not end", p.name)
	}
	return p.err
}

// testLog shows what servers logged, if the test fails. Lines after its end are
// dropped.
type testLog struct {
	t testing.TB

	mu    sync.Mutex
	lines []string // guarded by mu
}

// maxLines bounds the log: the last ones are kept.
const maxLines = 500

func (l *testLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == maxLines {
		l.lines = l.lines[1:]
	}
	l.lines = append(l.lines, string(line))
	return len(line), nil
}

func (l *testLog) end() {
	if !l.t.Failed() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		l.t.Log(line)
	}
}

// text returns the last lines.
func (l *testLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "")
}
