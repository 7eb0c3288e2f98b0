// Command proxybench measures what a proxy costs: blocks that it has in its
// cache against nginx serving the same bytes as files, blocks that it must
// fetch, and blocks that are written.
//
// The proxy is the program as it is built, in a process of its own, so that its
// CPU time can be told from the client's. Both servers are asked by the same
// client, one that does next to nothing, in turns, and of the repeats the median
// counts. All of it runs in a network namespace of its own, on its loopback
// device, with TCP Reno: what a machine's own congestion control does to
// loopback would otherwise be measured too.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"flexfs/internal/measure"
)

// limit ends a benchmark that hangs.
const limit = 230 * time.Second

// options are what the command line says.
type options struct {
	flexfs  string
	nginx   string
	json    string
	profile string
	repeats int
	run     time.Duration
	delay   time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.flexfs, "flexfs", "bin/flexfs", "the `program` to measure")
	flag.StringVar(&o.nginx, "nginx", "nginx", "the nginx `program` to compare with")
	flag.StringVar(&o.json, "json", "", "write the results to this `file` too")
	flag.StringVar(&o.profile, "profile", "", "write CPU profiles of the proxy, one for each row, to this `folder`")
	flag.IntVar(&o.repeats, "repeats", 5, "how often each row is measured")
	flag.DurationVar(&o.run, "run", 700*time.Millisecond, "how long each time")
	flag.DurationVar(&o.delay, "delay", 10*time.Millisecond, "how long the bucket thinks before it answers")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := measure.Apart(ctx, func() error { return bench(ctx, o) })
	var ended *measure.EndedError
	if errors.As(err, &ended) {
		os.Exit(ended.Code) // it has said why
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "proxybench:", err)
		os.Exit(1)
	}
}

// bench measures everything and leaves nothing behind.
func bench(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "flexfs-proxybench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := newLab(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	r := &results{Repeats: o.repeats, BucketDelay: o.delay.Seconds()}
	for _, measure := range []func(context.Context, *lab) error{r.hits, r.misses, r.puts} {
		if err := measure(ctx, l); err != nil {
			return err
		}
	}
	r.print(os.Stdout)
	if o.json == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(text, '\n'), 0o644)
}
