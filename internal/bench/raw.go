package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"flexfs/admin"
	"flexfs/internal/measure"
	"flexfs/internal/tlspin"
	"flexfs/meta"
	"flexfs/modes"
	"flexfs/store"
)

const (
	rawObject = 4 << 20   // bytes: a block
	rawFrame  = 128 << 10 // bytes: the least that a mount fetches
	rawLimit  = 2 * time.Second
)

// A rawJob is requests to the metadata service, or to the bucket, without a file
// system. Each client does them one after the other.
type rawJob struct {
	Do       string // one of rawOps
	Clients  int
	N        int           // at most, of all clients together
	Limit    time.Duration // it stops then, with less done
	Have     int           // how many names or objects each client made before
	Settings admin.MountSettings
}

// rawOps do the i-th operation of client c.
var rawOps = map[string]func(ctx context.Context, r *rawClients, c, i int) error{
	"make": func(ctx context.Context, r *rawClients, c, i int) error {
		_, err := r.meta.Do(ctx, &meta.Request{Op: meta.OpMake, Ino: r.dirs[c], Name: rawName(i), Mode: syscall.S_IFREG | 0o644})
		return err
	},
	"lookup": func(ctx context.Context, r *rawClients, c, i int) error {
		_, err := r.meta.Do(ctx, &meta.Request{Op: meta.OpLookup, Ino: r.dirs[c], Name: rawName(i)})
		return err
	},
	"unlink": func(ctx context.Context, r *rawClients, c, i int) error {
		_, err := r.meta.Do(ctx, &meta.Request{Op: meta.OpUnlink, Ino: r.dirs[c], Name: rawName(i)})
		return err
	},
	"PUT 4 MiB": func(ctx context.Context, r *rawClients, c, i int) error {
		return r.bucket.Put(ctx, r.key(c, i), r.object)
	},
	"GET 4 MiB": func(ctx context.Context, r *rawClients, c, i int) error {
		return r.get(ctx, r.key(c, i%r.have), 0, rawObject)
	},
	"GET 128 KiB": func(ctx context.Context, r *rawClients, c, i int) error {
		return r.get(ctx, r.key(c, i%r.have), rand.Int64N(rawObject/rawFrame)*rawFrame, rawFrame)
	},
}

func rawName(i int) string { return fmt.Sprintf("f%06d", i) }

// rawClients are what a raw job needs.
type rawClients struct {
	meta   *meta.Client
	dirs   []meta.Ino // a folder for each client
	bucket store.Store
	volume store.Volume
	object []byte
	have   int // objects of each client
}

// key names what a client puts.
func (r *rawClients) key(c, i int) store.Key {
	return store.Key{Volume: r.volume, Ino: uint64(c + 1), Index: uint32(i), Gen: store.Gen{Session: 1, Seq: 1}}
}

func (r *rawClients) get(ctx context.Context, key store.Key, off, n int64) error {
	data, err := r.bucket.Get(ctx, key, off, n)
	if err == nil && int64(len(data)) != n {
		err = fmt.Errorf("%v has %d bytes, not %d", key, len(data), n)
	}
	return err
}

// do does the job.
func (j *rawJob) do() (*smallDone, error) {
	ctx := context.Background()
	r, err := j.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer r.meta.Close()
	took, have, errs := make([][]time.Duration, j.Clients), make([]int, j.Clients), make([]error, j.Clients)
	var wg sync.WaitGroup
	start := time.Now()
	for c := range j.Clients {
		n := j.N / j.Clients
		if j.Do == "lookup" || j.Do == "unlink" {
			n = min(n, j.Have)
		}
		wg.Go(func() {
			for i := 0; i < n && time.Since(start) < j.Limit; i++ {
				began := time.Now()
				if errs[c] = rawOps[j.Do](ctx, r, c, i); errs[c] != nil {
					return
				}
				took[c], have[c] = append(took[c], time.Since(began)), i+1
			}
		})
	}
	wg.Wait()
	done := &smallDone{Took: time.Since(start), Have: have}
	all := slices.Concat(took...)
	slices.Sort(all)
	done.Ops, done.P50, done.P99 = len(all), measure.Quantile(all, 0.5), measure.Quantile(all, 0.99)
	return done, errors.Join(errs...)
}

// connect reaches metadata service and bucket as a mount does.
func (j *rawJob) connect(ctx context.Context) (*rawClients, error) {
	s := j.Settings
	r := &rawClients{dirs: make([]meta.Ino, j.Clients), object: make([]byte, rawObject), have: j.Have}
	rand.NewChaCha8([32]byte{}).Read(r.object)
	var err error
	if r.volume, err = store.ParseVolume(s.Volume.ID); err != nil {
		return nil, err
	}
	if r.bucket, err = modes.OpenBucket(ctx, s.BlockStore, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	cfg := tlspin.ClientConfig(s.Meta.Pin)
	if cfg.ServerName, _, err = net.SplitHostPort(s.Meta.Address); err != nil {
		return nil, err
	}
	r.meta = meta.NewClient(meta.ClientConfig{Dial: meta.Dial(s.Meta.Address, cfg), Token: func() string { return s.Ticket }, Volume: s.Volume.ID, Name: "bench"})
	if err := r.meta.Connect(ctx); err != nil {
		return nil, err
	}
	for c := range r.dirs {
		if r.dirs[c], err = r.folder(ctx, fmt.Sprintf("%d-of-%d", c, j.Clients)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// folder returns a folder below the root, which it makes if need be.
func (r *rawClients) folder(ctx context.Context, name string) (meta.Ino, error) {
	reply, err := r.meta.Do(ctx, &meta.Request{Op: meta.OpMake, Ino: meta.Root, Name: name, Mode: syscall.S_IFDIR | 0o755})
	if errors.Is(err, fs.ErrExist) {
		reply, err = r.meta.Do(ctx, &meta.Request{Op: meta.OpLookup, Ino: meta.Root, Name: name})
	}
	if err != nil {
		return 0, err
	}
	return reply.Attr.Ino, nil
}

// A rawPlace is a volume that nobody mounts.
type rawPlace struct {
	lab    *lab
	volume *volume
}

func (p *rawPlace) begin(ctx context.Context) (err error) {
	p.volume, err = p.lab.newVolume(ctx)
	return err
}

func (p *rawPlace) end() error                 { return p.lab.drop(p.volume) }
func (p *rawPlace) dir() string                { return "" }
func (p *rawPlace) cold(context.Context) error { return nil }
func (p *rawPlace) servers() servers           { return servers{meta: p.lab.admin} }

// rawRow names a row of raw requests.
func rawRow(op string, clients int) string {
	return fmt.Sprintf("request %s, %s", op, plural(clients, "client"))
}

// raw is requests without a file system, by so many clients: what the rows that
// need them could reach at most.
func (l *lab) raw(clients int) scenario {
	have := 0 // names or objects of each client
	do := func(op string, n int, size float64) func(context.Context, place) (load, error) {
		return func(ctx context.Context, p place) (load, error) {
			job := rawJob{Do: op, Clients: clients, N: n, Limit: rawLimit, Have: have, Settings: p.(*rawPlace).volume.settings}
			var done smallDone
			err := ask(ctx, "raw", job, &done)
			if err == nil && (op == "make" || op == "PUT 4 MiB") {
				have = slices.Min(done.Have)
			}
			return load{ops: float64(done.Ops), bytes: float64(done.Ops) * size, took: done.Took, p50: done.P50, p99: done.P99}, err
		}
	}
	row := func(op string) string { return rawRow(op, clients) }
	objects := max(int(l.opt.big/rawObject/4), clients)
	return scenario{
		name:   "requests, " + plural(clients, "client"),
		places: []string{onCeiling},
		place:  func(string) place { return &rawPlace{lab: l} },
		steps: []step{
			{row: row("make"), unit: perSecond, do: do("make", l.opt.files, 0), neededBy: []string{row("lookup"), row("unlink")}},
			{row: row("lookup"), unit: perSecond, do: do("lookup", l.opt.files, 0)},
			{row: row("unlink"), unit: perSecond, do: do("unlink", l.opt.files, 0)},
			{row: row("PUT 4 MiB"), unit: megabytes, do: do("PUT 4 MiB", objects, rawObject), neededBy: []string{row("GET 4 MiB"), row("GET 128 KiB")}},
			{row: row("GET 4 MiB"), unit: megabytes, do: do("GET 4 MiB", objects, rawObject)},
			{row: row("GET 128 KiB"), unit: perSecond, do: do("GET 128 KiB", l.opt.files, rawFrame)},
		},
	}
}

// rawOf says which requests a row of files could be made of at most, by its name.
var rawOf = map[string]string{
	"create 4 KiB, 1 thread":           rawRow("make", 1),
	"create 4 KiB, 8 threads":          rawRow("make", 8),
	"stat, cold, 1 thread":             rawRow("lookup", 1),
	"stat, cold, 8 threads":            rawRow("lookup", 8),
	"read 4 KiB, cold, 1 thread":       rawRow("lookup", 1),
	"read 4 KiB, cold, 8 threads":      rawRow("lookup", 8),
	"delete, 1 thread":                 rawRow("unlink", 1),
	"delete, 8 threads":                rawRow("unlink", 8),
	"sequential write, fsync":          rawRow("PUT 4 MiB", 8),
	"sequential read, cold":            rawRow("GET 4 MiB", 8),
	"sequential read, 8 streams, cold": rawRow("GET 4 MiB", 8),
	"random read 4 KiB, cold, 1 job":   rawRow("GET 128 KiB", 1),
	"random read 4 KiB, cold, 8 jobs":  rawRow("GET 128 KiB", 8),
	"random read 64 KiB, cold, 1 job":  rawRow("GET 128 KiB", 1),
	"random read 64 KiB, cold, 8 jobs": rawRow("GET 128 KiB", 8),
}
