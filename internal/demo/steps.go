package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// A demo is the steps and what they hand on to each other.
type demo struct {
	*cluster
	source string
	table  table

	sum [sha256.Size]byte // of the big file
}

func (d *demo) steps() []step {
	return []step{
		{"bring everything up", d.bringUp},
		{"mount a second time", d.mountAgain},
		{"copy Go's source tree", d.copySource},
		{"compare it on the second mount", d.compare},
		{"ask the proxies", d.askProxies},
		{"build a Go program on the mount", d.buildGo},
		{"clone a git repository", d.cloneGit},
		{"run an SQLite transaction", d.transact},
		{"write a big file", d.writeBig},
		{"kill a proxy during reads", d.killOne},
		{"add and remove a proxy", d.changeMembers},
		{"take every proxy away", d.killAll},
		{"bring one proxy back", d.bringBack},
		{"what the mounts say", d.say},
	}
}

func (d *demo) bringUp(ctx context.Context) (string, int64, error) {
	if err := d.start(ctx); err != nil {
		return "", 0, err
	}
	return fmt.Sprintf("admin, metadata, %d proxies in 2 groups, a mount", len(d.proxies)), 0, nil
}

func (d *demo) mountAgain(ctx context.Context) (string, int64, error) {
	if err := d.mountSecond(ctx); err != nil {
		return "", 0, err
	}
	s, err := d.stats(ctx, d.second)
	return s.group(), 0, err
}

func (d *demo) copySource(ctx context.Context) (string, int64, error) {
	if _, err := output(ctx, d.dir, "cp", "-a", d.source, filepath.Join(d.mount, "src")); err != nil {
		return "", 0, err
	}
	files, bytes, err := sizeOf(d.source)
	return fmt.Sprintf("cp -a of %d files", files), bytes, err
}

// compare reads every file of the copy on the second mount.
func (d *demo) compare(ctx context.Context) (string, int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	files, total := 0, int64(0)
	err := filepath.WalkDir(d.source, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || ctx.Err() != nil {
			return err
		}
		rel, err := filepath.Rel(d.source, path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		files, total = files+1, total+info.Size()
		g.Go(func() error { return same(path, filepath.Join(d.second, "src", rel)) })
		return nil
	})
	if e := g.Wait(); e != nil {
		err = e
	}
	return fmt.Sprintf("%d files have the same SHA-256", files), total, err
}

// askProxies asks while all of them live and none has forgotten.
func (d *demo) askProxies(ctx context.Context) (string, int64, error) {
	hits, misses, err := d.proxyHits(ctx)
	return fmt.Sprintf("%d hits in their caches, %d misses", hits, misses), 0, err
}

// same compares contents, permissions and modification time of two files.
func same(want, got string) error {
	w, err := os.Stat(want)
	if err != nil {
		return err
	}
	g, err := os.Stat(got)
	if err != nil {
		return err
	}
	if w.Mode() != g.Mode() || !w.ModTime().Equal(g.ModTime()) || w.Size() != g.Size() {
		return fmt.Errorf("%s is %v %d %v, and its copy is %v %d %v", want, w.Mode(), w.Size(), w.ModTime(), g.Mode(), g.Size(), g.ModTime())
	}
	a, err := sumOf(want)
	if err != nil {
		return err
	}
	b, err := sumOf(got)
	if err == nil && a != b {
		err = fmt.Errorf("%s and its copy differ", want)
	}
	return err
}

func sumOf(name string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}

const program = `package main

import "fmt"

func main() { fmt.Println("built on flexfs") }
`

func (d *demo) buildGo(ctx context.Context) (string, int64, error) {
	dir := filepath.Join(d.mount, "hello")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", 0, err
	}
	for name, text := range map[string]string{"main.go": program, "go.mod": "module hello\n\ngo 1.26\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return "", 0, err
		}
	}
	if _, err := output(ctx, dir, "go", "build", "-o", "hello", "."); err != nil {
		return "", 0, err
	}
	said, err := output(ctx, d.second, filepath.Join(d.second, "hello", "hello"))
	return "run on the second mount, it says: " + said, 0, err
}

// cloneGit makes a repository of a part of the source and clones it.
func (d *demo) cloneGit(ctx context.Context) (string, int64, error) {
	origin := filepath.Join(d.dir, "origin")
	git := func(dir string, args ...string) (string, error) {
		return output(ctx, dir, "git", append([]string{"-c", "user.name=demo", "-c", "user.email=demo@example.com", "-c", "safe.directory=*"}, args...)...)
	}
	if _, err := output(ctx, d.dir, "cp", "-a", filepath.Join(d.source, "net"), origin); err != nil {
		return "", 0, err
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"commit", "-q", "-m", "as it is"}} {
		if _, err := git(origin, args...); err != nil {
			return "", 0, err
		}
	}
	clone := filepath.Join(d.mount, "clone")
	for _, args := range [][]string{{"clone", "-q", "--no-local", origin, clone}, {"-C", clone, "fsck", "--strict"}, {"-C", filepath.Join(d.second, "clone"), "log", "--oneline"}} {
		if _, err := git(d.dir, args...); err != nil {
			return "", 0, err
		}
	}
	changed, err := git(filepath.Join(d.second, "clone"), "status", "--porcelain")
	if err == nil && changed != "" {
		err = fmt.Errorf("git status on the second mount says:\n%s", changed)
	}
	files, bytes, err2 := sizeOf(clone)
	if err == nil {
		err = err2
	}
	return fmt.Sprintf("%d files; fsck and status are clean", files), bytes, err
}

func (d *demo) transact(ctx context.Context) (string, int64, error) {
	const sql = `PRAGMA journal_mode=DELETE; CREATE TABLE t(i INTEGER PRIMARY KEY, x TEXT);
BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT i, hex(randomblob(32)) FROM n; COMMIT;
BEGIN; DELETE FROM t; ROLLBACK;`
	if _, err := output(ctx, d.mount, "sqlite3", "test.db", sql); err != nil {
		return "", 0, err
	}
	said, err := output(ctx, d.second, "sqlite3", "test.db", "PRAGMA integrity_check; SELECT count(*) FROM t;")
	if err == nil && said != "ok\n20000" {
		err = fmt.Errorf("the second mount says %q", said)
	}
	return "20000 rows, one rollback; on the second mount: " + strings.ReplaceAll(said, "\n", ", "), 0, err
}

// bigFile is large against the memory of the second mount, so that reads of it
// go through proxies.
const bigFile = 96 << 20

func (d *demo) writeBig(ctx context.Context) (string, int64, error) {
	f, err := os.Create(filepath.Join(d.mount, "big"))
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	if _, err = io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{}), bigFile); err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	d.sum = [sha256.Size]byte(h.Sum(nil))
	return "with fsync", bigFile, err
}

// underLoad does something while files are read and written, and goes on until
// the big one was read once more from start to end.
func (d *demo) underLoad(ctx context.Context, do func() (string, error)) (string, int64, error) {
	if err := os.MkdirAll(filepath.Join(d.mount, "busy"), 0o755); err != nil {
		return "", 0, err
	}
	l := startLoad(filepath.Join(d.second, "big"), d.sum, filepath.Join(d.mount, "busy"))
	said, err := "", l.begun(ctx)
	if err == nil {
		said, err = do()
	}
	if err == nil {
		err = l.pass(ctx)
	}
	done, bytes, failed := l.end()
	if failed != nil {
		err = failed // the cause, if both failed
	}
	return said + ": " + done, bytes, err
}

// killOne kills a member of the group in use while its blocks are read.
func (d *demo) killOne(ctx context.Context) (string, int64, error) {
	s, err := d.stats(ctx, d.second)
	if err != nil {
		return "", 0, err
	}
	g := s.chosen()
	if g == nil || len(g.Members) == 0 {
		return "", 0, fmt.Errorf("the second mount uses no group: %v", s)
	}
	victim := g.Members[0].Address
	return d.underLoad(ctx, func() (string, error) { return "killed " + victim, d.kill(ctx, victim) })
}

// changeMembers adds a proxy to group 1 and takes it away again.
func (d *demo) changeMembers(ctx context.Context) (string, int64, error) {
	return d.underLoad(ctx, func() (string, error) {
		addr, err := d.addProxy(ctx, "")
		if err != nil {
			return "", err
		}
		before, err := d.members(ctx, 1)
		if err != nil {
			return "", err
		}
		if err := d.setMembers(ctx, 1, append(slices.Clone(before), addr)); err != nil {
			return "", err
		}
		return "added and removed " + addr, d.setMembers(ctx, 1, before)
	})
}

// killAll kills every proxy there is.
func (d *demo) killAll(ctx context.Context) (string, int64, error) {
	return d.underLoad(ctx, func() (string, error) {
		n := len(d.proxies)
		for addr := range d.proxies {
			if err := d.kill(ctx, addr); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("killed %d, read from the bucket", n), nil
	})
}

// bringBack starts a proxy at an address of group 1 and waits until both mounts
// use it.
func (d *demo) bringBack(ctx context.Context) (string, int64, error) {
	return d.underLoad(ctx, func() (string, error) {
		members, err := d.members(ctx, 1)
		if err != nil {
			return "", err
		}
		if _, err := d.addProxy(ctx, members[0]); err != nil {
			return "", err
		}
		return "both mounts use " + members[0], until(ctx, func() error {
			for _, dir := range []string{d.mount, d.second} {
				if s, err := d.stats(ctx, dir); err != nil || s.chosen() == nil {
					return fmt.Errorf("%s does not use the proxy again (%v)", dir, err)
				}
			}
			return nil
		})
	})
}

func (d *demo) say(ctx context.Context) (string, int64, error) {
	var said []string
	for _, dir := range []string{d.mount, d.second} {
		s, err := d.stats(ctx, dir)
		if err != nil {
			return "", 0, err
		}
		said = append(said, filepath.Base(dir)+": "+s.String())
	}
	return strings.Join(said, "; "), 0, nil
}
