package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// smallLimit bounds each kind of operation on small files, so that a bucket or a
// disk that is slow does not take all the time there is.
const smallLimit = 15 * time.Second

var (
	everywhere = []string{onFloor, onCeiling, onFlexfs}
	cached     = []string{onFloor, onFlexfs} // the ceiling has no caches
)

// scenarios returns all that there are.
func (l *lab) scenarios() []scenario {
	return []scenario{l.raw(1), l.raw(8), l.small(1), l.small(8), l.bigFile(), l.programs(), l.throughProxies()}
}

// small is creating, listing, reading and deleting small files.
func (l *lab) small(threads int) scenario {
	var have []int // what create made for each thread
	do := func(op string) func(context.Context, place) (load, error) {
		return func(ctx context.Context, p place) (load, error) {
			job := smallJob{Op: op, Dir: p.dir(), Files: l.opt.files, Threads: threads, Limit: smallLimit, Have: have}
			if op == "create" {
				job.Have = nil
			}
			var done smallDone
			err := ask(ctx, "driver", job, &done)
			if op == "create" {
				have = done.Have
			}
			n := float64(done.Ops)
			return load{ops: n, bytes: n * smallFile, took: done.Took, p50: done.P50, p99: done.P99}, err
		}
	}
	name := func(what string) string { return fmt.Sprintf("%s, %s", what, plural(threads, "thread")) }
	create, remove := do("create"), do("delete")
	warm := func(what string) []string { return []string{name(what + ", warm")} }
	return scenario{
		name:   fmt.Sprintf("small files, %s", plural(threads, "thread")),
		places: everywhere,
		steps: []step{
			{row: name("create 4 KiB"), unit: perSecond, do: create, neededBy: []string{name("stat, cold"), name("stat, warm"), name("readdir+lstat, cold"),
				name("readdir+lstat, warm"), name("read 4 KiB, cold"), name("read 4 KiB, warm"), name("delete")}},
			{row: name("stat, cold"), unit: perSecond, cold: true, do: do("stat"), neededBy: warm("stat")},
			{row: name("stat, warm"), unit: perSecond, do: do("stat"), places: cached},
			{row: name("readdir+lstat, cold"), unit: perSecond, cold: true, do: do("list"), neededBy: warm("readdir+lstat")},
			{row: name("readdir+lstat, warm"), unit: perSecond, do: do("list"), places: cached},
			{row: name("read 4 KiB, cold"), unit: perSecond, cold: true, do: do("read"), neededBy: warm("read 4 KiB")},
			{row: name("read 4 KiB, warm"), unit: perSecond, do: do("read"), places: cached},
			{row: name("delete"), unit: perSecond, do: remove},
		},
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// bigFile is a file that is written, and read in order and at random.
func (l *lab) bigFile() scenario {
	size := fmt.Sprintf("--size=%d", l.opt.big)
	do := func(options ...string) func(context.Context, place) (load, error) {
		return func(ctx context.Context, p place) (load, error) {
			return fio(ctx, append([]string{"--filename=" + filepath.Join(p.dir(), "big")}, options...)...)
		}
	}
	read := do("--rw=read", "--bs=1M", size)
	part := fmt.Sprintf("--size=%d", l.opt.big/4) // fits into a mount's memory
	const streams = 8
	s := scenario{name: "a big file", places: everywhere, place: func(name string) place {
		if name == onFloor {
			return &floor{folder: l.path("floor"), fio: true}
		}
		return l.place(name)
	}}
	s.steps = []step{
		{row: "sequential write, fsync", unit: megabytes, do: do("--rw=write", "--bs=1M", "--end_fsync=1", size)},
		{row: "memory at rest", unit: mebibytes, cold: true, places: []string{onFlexfs}, do: l.rest},
		{row: "sequential read, cold", unit: megabytes, cold: true, do: read, neededBy: []string{"sequential read, warm", "sequential read, page cache"}},
		{row: "sequential read, warm", unit: megabytes, do: read, places: cached},
		{row: "sequential read, page cache", unit: megabytes, do: do("--rw=read", "--bs=1M", "--invalidate=0", size), places: cached},
		{row: "sequential read, 8 streams, cold", unit: megabytes, cold: true, places: cached, do: do("--rw=read", "--bs=1M", fmt.Sprintf("--numjobs=%d", streams),
			fmt.Sprintf("--size=%d", l.opt.big/streams), fmt.Sprintf("--offset_increment=%d", l.opt.big/streams))},
	}
	var paged, direct, disk []step
	for _, kib := range []int{4, 64} {
		for _, jobs := range []int{1, 8} {
			random := func(more ...string) func(context.Context, place) (load, error) {
				return do(append([]string{"--rw=randread", "--time_based", "--norandommap", "--randrepeat=0", fmt.Sprintf("--runtime=%dms", l.opt.random.Milliseconds()),
					fmt.Sprintf("--bs=%dk", kib), fmt.Sprintf("--numjobs=%d", jobs), size}, more...)...)
			}
			name := func(what string) string {
				return fmt.Sprintf("random read %d KiB, %s, %s", kib, what, plural(jobs, "job"))
			}
			s.steps = append(s.steps, step{row: name("cold"), unit: perSecond, cold: true, do: random(), places: cached})
			paged = append(paged, step{row: name("page cache"), unit: perSecond, do: random("--invalidate=0"), places: cached})
			direct = append(direct, step{row: name("warm"), unit: perSecond, do: random("--direct=1", part)})
			disk = append(disk, step{row: name("disk cache"), unit: perSecond, do: random("--direct=1"), places: cached, restart: true})
		}
	}
	s.steps = append(s.steps, step{neededBy: rowsOf(paged, direct, disk), do: read})
	s.steps = append(s.steps, paged...)
	s.steps = append(s.steps, step{neededBy: rowsOf(direct), do: do("--rw=read", "--bs=1M", "--direct=1", part)})
	s.steps = append(append(s.steps, direct...), disk...)
	s.steps[0].neededBy = rowsOf(s.steps[1:])
	return s
}

func rowsOf(lists ...[]step) []string {
	var names []string
	for _, list := range lists {
		for _, t := range list {
			if t.row != "" {
				names = append(names, t.row)
			}
		}
	}
	return names
}

// rest is a mount's memory when nothing happens.
func (l *lab) rest(ctx context.Context, p place) (load, error) {
	select {
	case <-ctx.Done():
		return load{}, ctx.Err()
	case <-time.After(2 * time.Second):
	}
	now, err := memoryOf(p.servers().mounts[0], "VmRSS:")
	return load{value: float64(now) / (1 << 20)}, err
}
