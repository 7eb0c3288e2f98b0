package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A tree is real files: the folder cmd of Go's own source, as an archive and as a
// git repository, both on the local disk.
type tree struct {
	lab     *lab
	archive string
	origin  string
	files   int
	bytes   int64
}

const inserts = 200 // transactions of SQLite

// programs are what people run on trees of files.
func (l *lab) programs() scenario {
	t := &tree{lab: l}
	const untar, clone = "untar", "git clone"
	return scenario{
		name:   "real programs",
		places: everywhere,
		steps: []step{
			{do: t.prepare},
			{row: untar, unit: seconds, do: t.untar, neededBy: []string{"grep -r, cold", "grep -r, warm"}},
			{row: "grep -r, cold", unit: seconds, cold: true, do: t.grep, neededBy: []string{"grep -r, warm"}},
			{row: "grep -r, warm", unit: seconds, do: t.grep, places: cached},
			{row: clone, unit: seconds, cold: true, do: t.clone, neededBy: []string{"git status, cold"}},
			{row: "git status, cold", unit: seconds, cold: true, do: t.status},
			{row: "SQLite inserts", unit: perSecond, do: insert},
		},
	}
}

// timed runs a program on so many files and bytes.
func timed(cmd *exec.Cmd, files int, bytes int64) (load, error) {
	start := time.Now()
	_, err := output(cmd)
	return load{ops: float64(files), bytes: float64(bytes), took: time.Since(start)}, err
}

// prepare makes archive and repository, once.
func (t *tree) prepare(ctx context.Context, _ place) (load, error) {
	if t.archive != "" {
		return load{}, nil
	}
	root, err := output(exec.CommandContext(ctx, "go", "env", "GOROOT"))
	if err != nil {
		return load{}, fmt.Errorf("where is Go's own source? %w", err)
	}
	src := filepath.Join(strings.TrimSpace(string(root)), "src")
	if t.files, t.bytes, err = sizeOf(filepath.Join(src, "cmd")); err != nil {
		return load{}, err
	}
	archive, origin := t.lab.path("cmd.tar"), t.lab.path("origin")
	if _, err := output(exec.CommandContext(ctx, "tar", "-C", src, "-cf", archive, "cmd")); err != nil {
		return load{}, err
	}
	if _, err := output(exec.CommandContext(ctx, "cp", "-r", filepath.Join(src, "cmd"), origin)); err != nil {
		return load{}, err
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A", "-f"}, {"commit", "-q", "-m", "as it is"}} {
		if _, err := output(git(ctx, append([]string{"-C", origin}, args...)...)); err != nil {
			return load{}, err
		}
	}
	t.archive, t.origin = archive, origin
	return load{}, nil
}

// sizeOf returns how many files a folder has, and their bytes.
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

// git is git without the settings of who runs it.
func git(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "user.name=bench", "-c", "user.email=bench@example.com", "-c", "safe.directory=*", "-c", "gc.auto=0"}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	return cmd
}

func (t *tree) untar(ctx context.Context, p place) (load, error) {
	return timed(exec.CommandContext(ctx, "tar", "-C", p.dir(), "-xf", t.archive), t.files, t.bytes)
}

// grep searches for what is not there, so that all is read.
func (t *tree) grep(ctx context.Context, p place) (load, error) {
	l, err := timed(exec.CommandContext(ctx, "grep", "-r", "no such words in all of it", filepath.Join(p.dir(), "cmd")), t.files, t.bytes)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return l, nil
	}
	return l, errors.Join(err, errors.New("grep found what is not there"))
}

func (t *tree) clone(ctx context.Context, p place) (load, error) {
	return timed(git(ctx, "clone", "-q", "--no-local", t.origin, filepath.Join(p.dir(), "clone")), t.files, t.bytes)
}

func (t *tree) status(ctx context.Context, p place) (load, error) {
	start := time.Now()
	out, err := output(git(ctx, "-C", filepath.Join(p.dir(), "clone"), "status", "--porcelain"))
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("git sees changes:\n%s", out)
	}
	return load{ops: float64(t.files), took: time.Since(start)}, err
}

// insert has SQLite insert rows, each in a transaction of its own.
func insert(ctx context.Context, p place) (load, error) {
	name := filepath.Join(p.dir(), "test.db")
	if _, err := output(exec.CommandContext(ctx, "sqlite3", name, "CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT);")); err != nil {
		return load{}, err
	}
	cmd := exec.CommandContext(ctx, "sqlite3", name)
	cmd.Stdin = strings.NewReader(strings.Repeat("INSERT INTO t(x) VALUES(hex(randomblob(32)));\n", inserts))
	return timed(cmd, inserts, 0)
}
