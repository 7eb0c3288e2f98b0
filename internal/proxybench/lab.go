package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"flexfs/admin"
	"flexfs/internal/measure"
	"flexfs/internal/tlspin"
	"flexfs/modes"
	"flexfs/store"
	"flexfs/store/seal"
)

// A lab is all that is measured: a bucket and admin in this process, proxies and
// nginx in their own.
type lab struct {
	opt    options
	dir    string
	www    string // what nginx serves
	bucket *bucket
	admin  *modes.Admin
	client *admin.Client
	volume store.Volume
	ticket string

	plain, tls *target // groups of one proxy
	pair       *target // a group of two, without TLS; its address is one member's
	nginx      *target
	nginxTLS   *target
	debug      map[*target]string // where a target's profiles are
	folder     map[*target]string // where a target keeps blocks

	next    atomic.Uint64 // of the keys
	sealer  *seal.Sealer
	servers []*measure.Process
	undo    []func() error
}

func newLab(ctx context.Context, o options, dir string) (*lab, error) {
	l := &lab{opt: o, dir: dir, www: filepath.Join(dir, "www"), sealer: seal.NewSealer(seal.Options{}), debug: make(map[*target]string), folder: make(map[*target]string)}
	if err := l.startAll(ctx); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *lab) startAll(ctx context.Context) (err error) {
	if l.bucket, err = startBucket(); err != nil {
		return err
	}
	l.undo = append(l.undo, l.bucket.close)
	if err := l.startAdmin(); err != nil {
		return err
	}
	if err := l.makeVolume(ctx); err != nil {
		return err
	}
	for _, g := range []struct {
		to    **target
		name  string
		n     int
		noSSL bool
	}{{&l.plain, "plain", 1, true}, {&l.tls, "tls", 1, false}, {&l.pair, "pair", 2, true}} {
		if *g.to, err = l.startGroup(ctx, g.name, g.n, g.noSSL); err != nil {
			return err
		}
	}
	if err := l.startNginx(ctx); err != nil {
		return err
	}
	return l.takeTicket(ctx)
}

// close ends everything, last started first.
func (l *lab) close() error {
	var err error
	for i := len(l.servers) - 1; i >= 0; i-- {
		err = errors.Join(err, l.servers[i].Stop())
	}
	for i := len(l.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, l.undo[i]())
	}
	return err
}

func (l *lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l *lab) startAdmin() error {
	l.admin = &modes.Admin{Addr: "127.0.0.1:0", DBFolder: l.path("admin"), NoMeta: true, Log: slog.New(slog.DiscardHandler)}
	if err := l.admin.Listen(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.admin.Serve(ctx) }()
	l.undo = append(l.undo, func() error { cancel(); return <-done })
	creds, err := modes.ReadCredentials(l.admin.CredentialsFile())
	if err != nil {
		return err
	}
	access := l.admin.Access()
	access.Token = creds.Token
	l.client = access.Client()
	return nil
}

// place is where all of it is said to be.
var place = map[string]any{"providerCode": "local", "regionCode": "local"}

// at returns the fields with the place.
func at(fields map[string]any) map[string]any {
	for k, v := range place {
		fields[k] = v
	}
	return fields
}

func (l *lab) makeVolume(ctx context.Context) error {
	blocks, err := admin.Create[admin.BlockStore](ctx, l.client, at(map[string]any{
		"apiCode": "s3", "bucket": bucketName, "address": "http://" + l.bucket.addr, "username": "bench", "password": "bench"}))
	if err != nil {
		return err
	}
	meta, err := admin.Create[admin.MetaStore](ctx, l.client, at(map[string]any{"address": "127.0.0.1:1"})) // nobody asks it
	if err != nil {
		return err
	}
	volume, err := admin.Create[admin.Volume](ctx, l.client, map[string]any{"name": "bench", "blockStoreID": blocks.ID, "metaStoreID": meta.ID})
	if err != nil {
		return err
	}
	l.volume, err = store.ParseVolume(volume.ID)
	return err
}

// takeTicket gets what a mount shows to proxies.
func (l *lab) takeTicket(ctx context.Context) error {
	token, err := admin.Create[admin.VolumeToken](ctx, l.client, map[string]any{"volumeID": l.volume.String()})
	if err != nil {
		return err
	}
	access := l.admin.Access()
	access.Token = token.Token
	settings, err := admin.Fetch(ctx, access.Client(), admin.Fetched[admin.MountSettings]{}, 0)
	l.ticket = settings.Settings.Ticket
	return err
}

// startGroup makes a group of n proxies for the volume, and starts them.
func (l *lab) startGroup(ctx context.Context, name string, n int, noSSL bool) (*target, error) {
	addrs, debug := make([]string, n), make([]string, n)
	for i := range n {
		var err error
		if addrs[i], err = measure.FreeAddr(); err != nil {
			return nil, err
		}
		if debug[i], err = measure.FreeAddr(); err != nil {
			return nil, err
		}
	}
	group, err := admin.Create[admin.ProxyGroup](ctx, l.client, at(map[string]any{"addresses": addrs, "noSSL": noSSL}))
	if err != nil {
		return nil, err
	}
	if _, err := admin.Create[admin.VolumeProxyGroup](ctx, l.client, map[string]any{"volumeID": l.volume.String(), "proxyGroupID": group.ID}); err != nil {
		return nil, err
	}
	token := l.path(name + "-token")
	if err := os.WriteFile(token, []byte(group.Token), 0o600); err != nil {
		return nil, err
	}
	t := &target{name: "flexfs", addr: addrs[0]}
	for i, addr := range addrs {
		s, err := l.startProxy(ctx, fmt.Sprint(name, i), addr, debug[i], token, noSSL)
		if err != nil {
			return nil, err
		}
		t.pids = append(t.pids, s.Pid)
	}
	l.debug[t], l.folder[t] = debug[0], l.path(name+"0", "blocks")
	if !noSSL {
		pin, err := tlspin.Fetch(ctx, addrs[0])
		if err != nil {
			return nil, err
		}
		t.tls = tlspin.ClientConfig(pin)
	}
	return t, nil
}

func (l *lab) startProxy(ctx context.Context, name, addr, debug, token string, noSSL bool) (*measure.Process, error) {
	args := []string{"proxy", "--adminAddr", l.admin.Access().Addr, "--tokenFile", token, "--credsFile", l.admin.CredentialsFile(),
		"--bindAddr", addr, "--address", addr, "--debugAddr", debug, "--diskFolder", l.path(name, "blocks"), "--diskQuota", "4GiB",
		"--memCapacity", "1GiB", "--stateFolder", l.path(name)}
	if noSSL {
		args = append(args, "--noSSL")
	}
	s, err := measure.Start("proxy "+name, nil, l.opt.flexfs, args...)
	if err != nil {
		return nil, err
	}
	l.servers = append(l.servers, s)
	return s, s.AwaitListening(ctx, addr)
}

func (l *lab) startNginx(ctx context.Context) error {
	s, plain, secure, err := startNginx(ctx, l.opt.nginx, l.path("nginx"), l.www, l.path("tls0", "ssl"), runtime.NumCPU())
	if s != nil {
		l.servers = append(l.servers, s)
	}
	if err != nil {
		return err
	}
	pids, err := pidsOf(s)
	if err != nil {
		return err
	}
	l.nginx = &target{name: "nginx", addr: plain, pids: pids}
	l.nginxTLS = &target{name: "nginx", addr: secure, pids: pids, tls: l.tls.tls}
	return nil
}

// A block is a sealed block that has a name.
type block struct {
	key store.Key
	crc uint32
}

// path returns where proxies have it, and nginx.
func (b block) path() string { return "/v1/blocks/" + b.key.String() }

// newKey returns a key that was not used yet.
func (l *lab) newKey() store.Key {
	n := l.next.Add(1)
	return store.Key{Volume: l.volume, Ino: n / 64, Index: uint32(n % 64), Gen: store.Gen{Session: 1, Seq: n}}
}

// noise is size bytes that cannot be compressed.
func noise(size int) []byte {
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

// fill puts n new blocks into the bucket and, if files is set, into nginx's
// folder.
func (l *lab) fill(n, size int, files bool) ([]block, error) {
	plain := noise(size)
	var all []block
	for range n {
		key := l.newKey()
		sealed, err := l.sealer.Encode(nil, key, plain)
		if err != nil {
			return nil, err
		}
		b := block{key, crc32.Checksum(sealed, castagnoli)}
		l.bucket.put(key.String(), sealed)
		all = append(all, b)
		if !files {
			continue
		}
		name := filepath.Join(l.www, filepath.FromSlash(strings.TrimPrefix(b.path(), "/")))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(name, sealed, 0o644); err != nil {
			return nil, err
		}
	}
	return all, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
