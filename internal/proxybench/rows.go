package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"flexfs/internal/measure"
)

// results are what was measured, as the table shows it and as JSON. Times are in
// seconds, rates in GiB/s, CPU in seconds per GiB; all are medians of the
// repeats.
type results struct {
	Repeats     int     `json:"repeats"`
	BucketDelay float64 `json:"bucketDelay"`

	Hits   []hitRow  `json:"hits"`
	Misses []missRow `json:"misses"`
	Puts   []putRow  `json:"puts"`
}

// A figure is what one server did in a row.
type figure struct {
	Rate      float64 `json:"rate"`
	P50       float64 `json:"p50"`
	ServerCPU float64 `json:"serverCPU"`
	ClientCPU float64 `json:"clientCPU"`
	Foreign   float64 `json:"foreign"` // share of the machine that other programs had
}

// A hitRow is GETs of blocks that are cached. The ratios are medians of those of
// neighbouring runs.
type hitRow struct {
	TLS     bool   `json:"tls"`
	Size    int    `json:"size"`
	Clients int    `json:"clients"`
	Nginx   figure `json:"nginx"`
	Flexfs  figure `json:"flexfs"`

	RateRatio      float64 `json:"rateRatio"`
	ServerCPURatio float64 `json:"serverCPURatio"`
	ClientCPURatio float64 `json:"clientCPURatio"`
}

// A missRow is GETs of blocks that only the bucket has, one after the other.
type missRow struct {
	TLS    bool    `json:"tls"`
	Size   int     `json:"size"`
	Bucket float64 `json:"bucket"` // median time of one that is asked for in the bucket itself
	Proxy  float64 `json:"proxy"`  // and of one through the proxy
	Hit    float64 `json:"hit"`    // and of the same when the proxy has it
}

// A putRow is PUTs of new blocks of 4 MiB.
type putRow struct {
	Group   string `json:"group"`
	Clients int    `json:"clients"`
	Flexfs  figure `json:"flexfs"`
}

const (
	large = 4 << 20
	small = 256 << 10

	// working is how many bytes the clients go round in. They are in the page
	// cache.
	working = 256 << 20
)

func figureOf(all []*sample) figure {
	return figure{
		Rate: measure.Median(all, (*sample).rate), P50: measure.Median(all, (*sample).p50), Foreign: measure.Median(all, (*sample).foreign),
		ServerCPU: measure.Median(all, (*sample).serverCPU), ClientCPU: measure.Median(all, (*sample).clientCPU),
	}
}

// hits measures blocks that the proxy has in its cache.
func (r *results) hits(ctx context.Context, l *lab) error {
	for _, size := range []int{large, small} {
		blocks, err := l.fill(working/size, size, true)
		if err != nil {
			return err
		}
		for _, pair := range [][2]*target{{l.nginx, l.plain}, {l.nginxTLS, l.tls}} {
			for _, t := range pair {
				if err := l.warm(ctx, t, blocks); err != nil {
					return err
				}
			}
			for _, clients := range []int{1, 16} {
				row, err := l.compare(ctx, pair, blocks, clients)
				if err != nil {
					return err
				}
				row.Size = size
				r.Hits = append(r.Hits, *row)
			}
		}
	}
	return nil
}

// warm asks for all blocks once, checks what comes, and waits until a proxy has
// written them to its disk. It then asks again.
func (l *lab) warm(ctx context.Context, t *target, blocks []block) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var all int64
	for range 2 {
		var bytes int64
		for _, b := range blocks {
			var crc uint32
			n, err := c.get(b.path(), l.ticket, func(p []byte) { crc = crc32.Update(crc, castagnoli, p) })
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			if crc != b.crc {
				return fmt.Errorf("%s answers other bytes than block %v has", t.name, b.key)
			}
			bytes += n
		}
		if folder := l.folder[t]; folder != "" && all == 0 {
			all = bytes
			if err := holds(ctx, folder, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// holds waits until the files in a folder are that large together.
func holds(ctx context.Context, folder string, bytes int64) error {
	for ctx.Err() == nil {
		var have int64
		err := filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil // it was moved meanwhile
			}
			if info, err := e.Info(); err == nil {
				have += info.Size()
			}
			return nil
		})
		if err != nil || have >= bytes {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%s is not filled: %w", folder, ctx.Err())
}

// compare measures nginx and the proxy in turns.
func (l *lab) compare(ctx context.Context, pair [2]*target, blocks []block, clients int) (*hitRow, error) {
	get := func(c *conn, n int64) (int64, time.Duration, error) {
		start := time.Now()
		size, err := c.get(blocks[n%int64(len(blocks))].path(), l.ticket, nil)
		return size, time.Since(start), err
	}
	var all [2][]*sample
	for range l.opt.repeats {
		for i, t := range pair {
			s, err := run(ctx, t, clients, l.opt.run, get)
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], s)
		}
	}
	row := &hitRow{TLS: pair[1].tls != nil, Clients: clients, Nginx: figureOf(all[0]), Flexfs: figureOf(all[1])}
	turn := make([]int, l.opt.repeats)
	for i := range turn {
		turn[i] = i
	}
	ratio := func(f func(*sample) float64) float64 {
		return measure.Median(turn, func(i int) float64 { return f(all[1][i]) / f(all[0][i]) })
	}
	row.RateRatio, row.ServerCPURatio, row.ClientCPURatio = ratio((*sample).rate), ratio((*sample).serverCPU), ratio((*sample).clientCPU)
	name := fmt.Sprintf("get-%s-%d-x%d", scheme(row.TLS), working/len(blocks), clients)
	return row, l.profile(ctx, pair[1], name, clients, get)
}

func scheme(tls bool) string {
	if tls {
		return "TLS"
	}
	return "plain"
}

// profile writes a CPU profile of what the proxy does while clients do op, if
// profiles are wanted.
func (l *lab) profile(ctx context.Context, t *target, name string, clients int, op operation) error {
	if l.opt.profile == "" {
		return nil
	}
	if err := os.MkdirAll(l.opt.profile, 0o755); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		_, err := run(ctx, t, clients, 2*time.Second, op)
		done <- err
	}()
	err := fetch(ctx, "http://"+l.debug[t]+"/debug/pprof/profile?seconds=1", filepath.Join(l.opt.profile, name+".pprof"))
	if failed := <-done; failed != nil {
		return failed
	}
	return err
}

func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, strings.TrimSpace(string(text)))
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// misses measures blocks that only the bucket has.
func (r *results) misses(ctx context.Context, l *lab) error {
	l.bucket.delay.Store(int64(l.opt.delay))
	defer l.bucket.delay.Store(0)
	for _, size := range []int{large, small} {
		for _, t := range []*target{l.plain, l.tls} {
			blocks, err := l.fill(24, size, false)
			if err != nil {
				return err
			}
			row := missRow{TLS: t.tls != nil, Size: size}
			origin := &target{name: "the bucket", addr: l.bucket.addr}
			if row.Bucket, err = l.each(ctx, origin, blocks, func(b block) string { return l.bucket.path(b.key.String()) }); err != nil {
				return err
			}
			if row.Proxy, err = l.each(ctx, t, blocks, block.path); err != nil {
				return err
			}
			if row.Hit, err = l.each(ctx, t, blocks, block.path); err != nil {
				return err
			}
			r.Misses = append(r.Misses, row)
		}
	}
	return nil
}

// each gets the blocks one after the other and returns the median time of one.
func (l *lab) each(ctx context.Context, t *target, blocks []block, path func(block) string) (float64, error) {
	c, err := t.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var took []time.Duration
	for _, b := range blocks {
		start := time.Now()
		if _, err := c.get(path(b), l.ticket, nil); err != nil {
			return 0, fmt.Errorf("%s: %w", t.name, err)
		}
		took = append(took, time.Since(start))
	}
	return measure.Median(took, time.Duration.Seconds), ctx.Err()
}

// puts measures new blocks: in a group of one they are in the bucket when they
// are acknowledged.
func (r *results) puts(ctx context.Context, l *lab) error {
	l.bucket.delay.Store(int64(l.opt.delay))
	defer l.bucket.delay.Store(0)
	plain := noise(large)
	for _, g := range []struct {
		name string
		t    *target
	}{{"one proxy", l.plain}, {"one proxy, TLS", l.tls}, {"two proxies", l.pair}} {
		for _, clients := range []int{1, 4} {
			put := func(c *conn, _ int64) (int64, time.Duration, error) { return l.put(c, plain) }
			var all []*sample
			for range l.opt.repeats {
				s, err := run(ctx, g.t, clients, l.opt.run, put)
				if err != nil {
					return err
				}
				all = append(all, s)
			}
			r.Puts = append(r.Puts, putRow{g.name, clients, figureOf(all)})
			if err := l.profile(ctx, g.t, fmt.Sprintf("put-%s-x%d", g.name, clients), clients, put); err != nil {
				return err
			}
		}
	}
	return nil
}

// put puts a new block. The time is that of the request alone.
func (l *lab) put(c *conn, plain []byte) (int64, time.Duration, error) {
	b := block{key: l.newKey()}
	sealed, err := l.sealer.Encode(nil, b.key, plain)
	if err != nil {
		return 0, 0, err
	}
	crc := fmt.Sprintf("%08x", crc32.Checksum(sealed, castagnoli))
	start := time.Now()
	err = c.put(b.path(), l.ticket, crc, sealed)
	return int64(len(sealed)), time.Since(start), err
}
