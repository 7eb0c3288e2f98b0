package modes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"flexfs/admin"
	"flexfs/cache"
	"flexfs/store"
	"flexfs/store/remote"
	"flexfs/store/seal"
	"flexfs/store/writeback"
)

const reportEvery = 5 * time.Second // to admin

// build puts together what clients see as this proxy's blocks: writes on two
// members, the disk, and below it the other members and the buckets.
func (p *Proxy) build() {
	p.peers = remote.NewPeers(remote.PeersConfig{Self: p.Address, Verify: seal.Verify, Log: p.Log})
	p.below.Store = p.peers.Fill(&p.origins)
	p.blocks = writeback.New(writeback.Config{
		Self: p.Address, Blocks: p.disk, Local: p.disk, Peers: p.peers, Bucket: &p.origins,
		WriteThrough: p.writesThrough, Memory: min(max(p.MemCapacity/8, minMemory/4), 64<<20), Log: p.Log,
	})
}

// writeThrough says which blocks are acknowledged by the bucket.
type writeThrough struct {
	group   bool // all
	volumes map[store.Volume]bool
}

func (p *Proxy) writesThrough(volume store.Volume) bool {
	t := p.through.Load()
	return t.group || t.volumes[volume]
}

// withBackground runs f while peers are probed and blocks uploaded.
func (p *Proxy) withBackground(ctx context.Context, f func() error) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { p.peers.Run(background) })
	wg.Go(func() { p.blocks.Run(background) })
	return f()
}

// drain uploads what the bucket lacks, and says if something is left.
func (p *Proxy) drain(ctx context.Context) {
	before := p.disk.Stats()
	if err := p.blocks.Drain(ctx); err != nil {
		left := p.disk.Stats()
		p.Log.Warn("not all blocks are in the bucket; they are on this disk and will be uploaded after the next start",
			"blocks", left.DirtyBlocks, "bytes", left.DirtyBytes, "disk_folder", p.DiskFolder)
	} else if before.DirtyBlocks > 0 {
		p.Log.Info("all blocks are in the bucket")
	}
	p.reportOnce(ctx)
}

// salvage uploads what an earlier run left, when this proxy cannot serve: admin
// does not accept it any more, as its group was deleted, or the group wants TLS
// otherwise.
func (p *Proxy) salvage(ctx context.Context, settings feed[admin.ProxySettings]) error {
	select {
	case <-p.disk.Scanned():
	case <-ctx.Done():
		return nil
	}
	dirty := p.disk.Stats()
	if dirty.DirtyBlocks == 0 {
		return nil
	}
	last, err := settings.kept()
	if err != nil {
		return fmt.Errorf("there are %d blocks in %s that may not be in the bucket, and which bucket that is, is not known any more: %w", dirty.DirtyBlocks, p.DiskFolder, err)
	}
	p.Log.Warn("this proxy cannot serve, and has blocks that may not be in the bucket: uploading them", "blocks", dirty.DirtyBlocks, "bytes", dirty.DirtyBytes)
	p.build()
	p.apply(admin.ProxySettings{Volumes: last.Volumes})
	return p.withBackground(ctx, func() error {
		if err := p.blocks.Drain(ctx); err != nil {
			return fmt.Errorf("%d blocks are not uploaded yet: start this proxy again", p.disk.Stats().DirtyBlocks)
		}
		return errors.New("all blocks that it had are in the bucket now")
	})
}

// report tells admin again and again how this proxy is.
func (p *Proxy) report(ctx context.Context) {
	former := false
	for {
		answer, err := p.reportOnce(ctx)
		if err == nil && answer.Former != former {
			if former = answer.Former; former {
				p.Log.Warn("this proxy is not a member of its group any more: it uploads what the bucket lacks, then it may be stopped",
					"blocks", p.disk.Stats().DirtyBlocks)
			}
		}
		if !sleep(ctx, reportEvery-rand.N(reportEvery/5)) {
			return
		}
	}
}

func (p *Proxy) reportOnce(ctx context.Context) (admin.ReportAnswer, error) {
	within, cancel := context.WithTimeout(ctx, reportEvery)
	defer cancel()
	disk := p.disk.Stats()
	answer, err := p.client.Report(within, admin.ProxyReport{
		Address: p.Address, DirtyBytes: disk.DirtyBytes, DirtyBlocks: disk.DirtyBlocks, OldestDirty: disk.OldestDirty,
		Bytes: disk.Bytes, Limit: disk.Limit, Blocks: disk.Blocks, Hits: disk.Hits, Misses: disk.Misses,
		DiskOK: p.disk.InUse(), Started: p.started,
	})
	if err != nil {
		p.Log.Debug("admin was not told how this proxy is", "err", err)
	}
	return answer, err
}

// below is what the disk has below it: it is known later than the disk.
type below struct{ store.Store }

// GetFrames passes the question on.
func (b *below) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	return store.GetFrames(ctx, b.Store, key, off, n)
}

// ProxyStats are what a proxy did since its start.
type ProxyStats struct {
	Address   string             `json:"address"`
	Started   time.Time          `json:"started"`
	DiskOK    bool               `json:"diskOK"` // the cache's disk is in use
	Conns     remote.ConnStats   `json:"conns"`
	Requests  remote.ServerStats `json:"requests"`
	Disk      cache.Stats        `json:"disk"`
	WriteBack writeback.Stats    `json:"writeBack"`
	Peers     remote.PeerStats   `json:"peers"`

	Members []remote.MemberStatus `json:"members"` // the other members, as this one sees them
}

// Stats returns what the proxy did.
func (p *Proxy) Stats() ProxyStats {
	return ProxyStats{
		Address: p.Address, Started: p.started, DiskOK: p.disk.InUse(), Conns: p.conns.Stats(), Requests: p.requests.Now(),
		Disk: p.disk.Stats(), WriteBack: p.blocks.Stats(), Peers: p.peers.Stats(), Members: p.peers.Members(),
	}
}

// metrics tells what the proxy did.
func (p *Proxy) metrics(e emit) {
	s := p.Stats()
	e.gauge("flexfs_proxy_connections", "Connections of clients.", float64(s.Conns.Open))
	e.counter("flexfs_proxy_connections_refused_total", "Connections beyond the limits.", s.Conns.Refused)
	e.server(s.Requests)
	e.cache("flexfs_proxy_disk_", s.Disk)
	e.dirty(s)
	e.peers(s.Peers)
}
