package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"flexfs/admin"
	"flexfs/internal/measure"
)

const (
	members = 2 // proxies of a group
	readers = 2 // mounts behind it
)

// A proxied is a volume with a big file, a group of proxies, and mounts that read
// through it. The file was written before there was a group, so the proxies have
// nothing of it at first. Cold is new mounts with empty disk caches; the proxies go
// on.
type proxied struct {
	lab     *lab
	volume  *volume
	mounts  []*mount
	proxies []*measure.Process
}

// throughProxies is reading the same file on two mounts at once.
func (l *lab) throughProxies() scenario {
	const first = "two mounts read one file by proxies, first"
	return scenario{
		name:   "proxies",
		places: []string{onFlexfs},
		place:  func(string) place { return &proxied{lab: l} },
		steps: []step{
			{row: first, unit: megabytes, do: l.readBoth, neededBy: []string{"two mounts read one file by proxies, again"}},
			{row: "two mounts read one file by proxies, again", unit: megabytes, cold: true, do: l.readBoth},
		},
	}
}

// readBoth reads the whole file on all mounts at once.
func (l *lab) readBoth(ctx context.Context, p place) (all load, err error) {
	g, ctx := errgroup.WithContext(ctx)
	done := make([]load, readers)
	for i, m := range p.(*proxied).mounts {
		g.Go(func() (err error) {
			done[i], err = fio(ctx, "--filename="+filepath.Join(m.dir, "big"), "--rw=read", "--bs=1M", fmt.Sprintf("--size=%d", l.opt.big))
			return err
		})
	}
	err = g.Wait()
	for _, d := range done {
		all.ops, all.bytes = all.ops+d.ops, all.bytes+d.bytes
		all.took, all.p50, all.p99 = max(all.took, d.took), max(all.p50, d.p50), max(all.p99, d.p99)
	}
	return all, err
}

func (p *proxied) begin(ctx context.Context) (err error) {
	if p.volume, err = p.lab.newVolume(ctx); err != nil {
		return err
	}
	writer, err := p.lab.mountVolume(ctx, p.volume, "mnt")
	if err != nil {
		return err
	}
	_, err = fio(ctx, "--filename="+filepath.Join(writer.dir, "big"), "--rw=write", "--bs=1M", "--end_fsync=1", fmt.Sprintf("--size=%d", p.lab.opt.big))
	if err = errors.Join(err, writer.end()); err != nil {
		return err
	}
	if err := p.startGroup(ctx); err != nil {
		return err
	}
	return p.mountAll(ctx)
}

// startGroup makes a group of proxies for the volume, and starts them.
func (p *proxied) startGroup(ctx context.Context) error {
	addrs := make([]string, members)
	for i := range addrs {
		var err error
		if addrs[i], err = measure.FreeAddr(); err != nil {
			return err
		}
	}
	group, err := admin.Create[admin.ProxyGroup](ctx, p.lab.client, map[string]any{"providerCode": "local", "regionCode": "local", "addresses": addrs})
	if err != nil {
		return err
	}
	if _, err := admin.Create[admin.VolumeProxyGroup](ctx, p.lab.client, map[string]any{"volumeID": p.volume.id, "proxyGroupID": group.ID}); err != nil {
		return err
	}
	token := p.lab.path(p.volume.name + "-group-token")
	if err := os.WriteFile(token, []byte(group.Token), 0o600); err != nil {
		return err
	}
	for i, addr := range addrs {
		name := fmt.Sprintf("%s-proxy-%d", p.volume.name, i+1)
		s, err := p.lab.start(name, "proxy", "--adminAddr", p.lab.adminAddr, "--tokenFile", token, "--credsFile", p.lab.credentials(),
			"--bindAddr", addr, "--address", addr, "--diskFolder", p.lab.path(name, "blocks"), "--stateFolder", p.lab.path(name))
		if err != nil {
			return err
		}
		p.proxies = append(p.proxies, s)
		if err := s.AwaitListening(ctx, addr); err != nil {
			return err
		}
	}
	return nil
}

// mountAll mounts the volume as often as there are readers, and waits until all
// use the group.
func (p *proxied) mountAll(ctx context.Context) error {
	for i := range readers {
		m, err := p.lab.mountVolume(ctx, p.volume, fmt.Sprintf("mnt%d", i+1))
		if err != nil {
			return err
		}
		p.mounts = append(p.mounts, m)
		err = m.proc.Await(ctx, func() error {
			metrics, err := metricsOf(ctx, m.debug)
			if err == nil && metrics["flexfs_mount_proxy_group"] == 0 {
				err = errors.New("the mount uses no proxy group")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *proxied) endMounts() error {
	var err error
	for _, m := range p.mounts {
		err = errors.Join(err, m.end())
	}
	p.mounts = nil
	return err
}

func (p *proxied) end() error {
	err := p.endMounts()
	for i, s := range p.proxies {
		err = errors.Join(err, s.Stop(), os.RemoveAll(p.lab.path(fmt.Sprintf("%s-proxy-%d", p.volume.name, i+1))))
	}
	return errors.Join(err, p.lab.drop(p.volume))
}

func (p *proxied) dir() string { return p.mounts[0].dir }

func (p *proxied) cold(ctx context.Context) error {
	if err := p.endMounts(); err != nil {
		return err
	}
	return p.mountAll(ctx)
}

func (p *proxied) servers() servers {
	s := servers{meta: p.lab.admin, proxies: p.proxies}
	for _, m := range p.mounts {
		s.mounts = append(s.mounts, m.proc)
		s.debug = append(s.debug, m.debug)
	}
	return s
}
