// Command bench measures a mount of flexfs: small files, big files, real
// programs, and mounts behind proxies. The same work is done in the same run on
// the local disk, which is the floor that users know, and on a file system in
// memory behind the same FUSE library, which is the ceiling of what a mount could
// reach. docs/performance.md says what each row is.
//
// The bucket is versitygw with its files in memory, behind a relay that counts
// requests and, if that is asked for, holds each up as a distance would. Admin
// with the metadata service, and mounts, are the program as it is built, in
// processes of their own with their databases and caches on the local disk. All
// of it is in namespaces of its own, so nothing can be left behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"flexfs/internal/measure"
)

// options are what the command line says.
type options struct {
	flexfs    string
	versitygw string
	json      string
	markdown  string
	profiles  string
	mount     string
	run       *regexp.Regexp
	repeats   int
	delay     time.Duration
	limit     time.Duration

	files  int           // how many small files
	big    int64         // bytes of the big file
	random time.Duration // how long each row of random reads
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == roleFlag {
		if err := playRole(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	o := options{run: regexp.MustCompile("")}
	flag.StringVar(&o.flexfs, "flexfs", "bin/flexfs", "the `program` to measure")
	flag.StringVar(&o.versitygw, "versitygw", "", "the S3 server to use (default: the pinned one, which is built if need be)")
	flag.StringVar(&o.json, "json", "bin/bench.json", "write the results to this `file` too")
	flag.StringVar(&o.markdown, "markdown", "", "write the table to this `file` too, as docs/performance.md has it")
	flag.StringVar(&o.profiles, "cpuprofile", "", "write CPU profiles of mount and metadata service, by row and second, to this `folder`")
	flag.StringVar(&o.mount, "mount", "", "more `flags` for flexfs mount, separated by spaces")
	flag.Func("run", "measure only the rows that match this `regexp`", func(s string) (err error) {
		o.run, err = regexp.Compile(s)
		return err
	})
	flag.IntVar(&o.repeats, "repeats", 3, "how often each row is measured, if there is time")
	flag.DurationVar(&o.delay, "bucketDelay", 0, "how long each request to the bucket is held up")
	flag.DurationVar(&o.limit, "limit", 18*time.Minute, "how long all of it may take")
	flag.IntVar(&o.files, "files", 10000, "how many small files there are")
	flag.Int64Var(&o.big, "big", 2<<30, "`bytes` of the big file")
	flag.DurationVar(&o.random, "random", 2*time.Second, "how long each row of random reads takes")
	flag.Parse()

	if err := apart(o); err != nil {
		var ended *measure.EndedError
		if errors.As(err, &ended) {
			os.Exit(ended.Code) // it has said why
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// folder tells the process in the namespaces where it may keep files.
const folder = "FLEXFS_BENCH_FOLDER"

// apart runs the benchmark in namespaces and in a folder of its own, which is
// removed whatever became of it.
func apart(o options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.flexfs, err = filepath.Abs(o.flexfs); err != nil {
		return err
	}
	if os.Getenv(folder) == "" {
		dir, err := os.MkdirTemp("", "flexfs-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		os.Setenv(folder, dir)
	}
	return measure.ApartWithMounts(ctx, func() error { return bench(ctx, o) })
}

// bench measures everything, prints the table, and writes it as JSON. What was
// measured before an error is shown, too.
func bench(ctx context.Context, o options) (err error) {
	defer os.RemoveAll(os.Getenv(folder)) // who would do it otherwise may have been killed
	r, err := measureAll(ctx, o)
	if r == nil || len(r.Rows) == 0 {
		return err
	}
	r.print(os.Stdout)
	text, e := json.MarshalIndent(r, "", "  ")
	return errors.Join(err, e, writeFile(o.json, append(text, '\n')), writeFile(o.markdown, []byte(r.markdown())))
}

// writeFile writes a file that was asked for, and its folder.
func writeFile(name string, text []byte) error {
	if name == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

func measureAll(ctx context.Context, o options) (r *results, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	l, err := newLab(ctx, o, os.Getenv(folder))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	c := &collector{opt: o, lab: l}
	err = c.repeat(ctx)
	r = c.results()
	r.Mount = strings.Join(l.mountFlags(), " ")
	return r, err
}
