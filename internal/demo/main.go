// Command demo shows flexfs at work on this machine: it brings everything up in
// an empty folder, runs real programs on real mounts, breaks proxies under
// them, prints what happened and leaves nothing behind. It ends within three
// minutes on two cores, with exit status 0 if no call failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// limit ends a demo that hangs. A demo that works is done well before.
const limit = 170 * time.Second

func main() {
	bin := flag.String("flexfs", "bin/flexfs", "the `program` to show")
	source := flag.String("source", "", "the `folder` to copy onto the mount (default: the Go toolchain's own source)")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := run(ctx, *bin, *source); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the demo. Whatever happens, it ends its processes, removes its mounts
// and its folder, and then checks that nothing is left.
func run(ctx context.Context, bin, source string) (err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if source == "" {
		root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("where is Go's own source? %w", err)
		}
		source = filepath.Join(strings.TrimSpace(string(root)), "src")
	}
	dir, err := os.MkdirTemp("", "flexfs-demo-")
	if err != nil {
		return err
	}
	c := &cluster{bin: bin, dir: dir, mount: filepath.Join(dir, "mnt"), second: filepath.Join(dir, "second")}
	defer func() {
		err = errors.Join(err, c.down(), os.RemoveAll(dir), c.nothingLeft())
		if err == nil {
			fmt.Println("no failed call; no process, mount or file left behind")
		}
	}()

	d := &demo{cluster: c, source: source}
	defer func() { d.table.print(os.Stdout) }()
	for _, s := range d.steps() {
		if err := d.step(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// A step is one thing shown. run returns what to say of it, and the bytes it
// moved through the mounts.
type step struct {
	name string
	run  func(ctx context.Context) (said string, bytes int64, err error)
}

func (d *demo) step(ctx context.Context, s step) error {
	start := time.Now()
	said, bytes, err := s.run(ctx)
	if err != nil {
		said = "FAILED"
	}
	d.table.add(s.name, time.Since(start), bytes, said)
	fmt.Printf("%-34s %6.1fs  %s\n", s.name, time.Since(start).Seconds(), said)
	return err
}

// sizeOf returns the files of a tree and their bytes.
func sizeOf(dir string) (files int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			files, bytes = files+1, bytes+info.Size()
		}
		return err
	})
	return files, bytes, err
}

// output runs a program and returns what it printed; its error names it.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
