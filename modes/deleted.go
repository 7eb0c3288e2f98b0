package modes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/fuse"
)

// A deletion is a name that was deleted, as it is shown.
type deletion struct {
	Path       string    `json:"path"`
	DeletedAt  time.Time `json:"deletedAt"`
	Type       string    `json:"type"`
	Size       uint64    `json:"size"`
	Mode       string    `json:"mode"`
	Uid        uint32    `json:"uid"`
	Gid        uint32    `json:"gid"`
	ModifiedAt time.Time `json:"modifiedAt"`
	Links      uint32    `json:"links"` // names that it still has

	entry fuse.DeletedEntry
}

func deletedCommand() *cli.Command {
	output := "table"
	recursive := false
	return &cli.Command{
		Name:      "deleted",
		Usage:     "list what was deleted from a directory of a mount",
		ArgsUsage: "<dir>",
		Description: "The newest comes first. How long deleted files are kept is the volume's retention. What was overwritten or changed is\n" +
			"not deleted: see flexfs mount --atTime. To list, one must be allowed to read and to search the directory.",
		Flags: []cli.Flag{
			boolFlag(&recursive, "recursive", "list what was deleted from deleted directories too"),
			choiceFlag(&output, "output", "`FORMAT` of what is printed: table for people, json for programs", "table", "json"),
		},
		Action: func(c *cli.Context) error {
			args, err := positional(c, "dir")
			if err != nil {
				return err
			}
			list, err := listDeleted(args[0], recursive)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(c.App.Writer, list)
			}
			return printDeleted(c.App.Writer, list)
		},
	}
}

func restoreCommand() *cli.Command {
	r := restoring{within: time.Hour}
	return &cli.Command{
		Name:      "restore",
		Usage:     "restore a deleted file or directory of a mount",
		ArgsUsage: "<path>",
		Description: "flexfs deleted lists what there is. Of several that had the name the one that was deleted last is restored, unless --at\n" +
			"is given. One must own it, or be root, and be allowed to write to the directory. Nothing is overwritten.",
		Flags: []cli.Flag{
			flagOf(&r.at, "at", "`TIME` at which what is restored was there: 2026-11-01T12:00:00Z, or how long ago that was, like 2h", parseAtTime, formatAtTime),
			textFlag(&r.as, "as", "`NAME` that it gets, in the same directory; else the one that it had"),
			durationFlag(&r.within, "within", "`DURATION` before a directory was deleted: what was deleted from it later than that comes back with it"),
		},
		Action: func(c *cli.Context) error {
			args, err := positional(c, "path")
			if err != nil {
				return err
			}
			if strings.Contains(r.as, "/") {
				return usagef("--as is a name without /: what is restored stays in its directory")
			}
			return r.run(c, args[0])
		},
	}
}

// pageSize is the most that an extended attribute has.
const pageSize = 64 << 10

// deletedFrom returns what a directory of a mount lost, or one that was deleted
// from it, whose list is an attribute of dir too.
func deletedFrom(dir, attribute string) (all []fuse.DeletedEntry, err error) {
	buf := make([]byte, pageSize)
	for attribute != "" {
		n, err := syscall.Getxattr(dir, attribute, buf)
		switch {
		case errors.Is(err, syscall.EOPNOTSUPP):
			return nil, fmt.Errorf("%s is not in a mount of flexfs", dir)
		case isDeadMount(err):
			return nil, fmt.Errorf("%s is a mount whose program has gone: run umount -l on it", dir)
		case errors.Is(err, syscall.EROFS):
			return nil, fmt.Errorf("%s is in a mount of the past, where nothing is deleted", dir)
		case err != nil:
			return nil, &os.PathError{Op: "deleted", Path: dir, Err: err}
		}
		var page fuse.DeletedPage
		if err := json.Unmarshal(buf[:n], &page); err != nil {
			return nil, fmt.Errorf("deleted files of %s: %w", dir, err)
		}
		all = append(all, page.Entries...)
		attribute = page.Next
	}
	return all, nil
}

// listDeleted returns what was deleted, the newest first.
func listDeleted(dir string, recursive bool) ([]deletion, error) {
	list := []deletion{}
	var walk func(path, attribute string) error
	walk = func(path, attribute string) error {
		entries, err := deletedFrom(dir, attribute)
		if err != nil {
			return err
		}
		for _, e := range latest(entries) {
			d := shown(filepath.Join(path, string(e.Name)), e)
			list = append(list, d)
			if recursive && e.List != "" {
				if err := walk(d.Path, e.List); err != nil && !errors.Is(err, syscall.EACCES) {
					return err
				}
			}
		}
		return nil
	}
	if err := walk("", fuse.DeletedName); err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b deletion) int { return b.DeletedAt.Compare(a.DeletedAt) })
	return list, nil
}

// latest leaves out what was deleted again, under the same name, later.
func latest(entries []fuse.DeletedEntry) []fuse.DeletedEntry {
	var out []fuse.DeletedEntry
	for i, e := range entries { // in the order of names, then of time
		again := func(f fuse.DeletedEntry) bool { return string(f.Name) == string(e.Name) && f.Ino == e.Ino }
		rest := entries[i+1:]
		if n := slices.IndexFunc(rest, func(f fuse.DeletedEntry) bool { return string(f.Name) != string(e.Name) }); n >= 0 {
			rest = rest[:n]
		}
		if !slices.ContainsFunc(rest, again) {
			out = append(out, e)
		}
	}
	return out
}

func shown(path string, e fuse.DeletedEntry) deletion {
	return deletion{
		Path: path, DeletedAt: time.Unix(e.At, 0).UTC(), Type: typeName(e.Mode), Size: e.Size, Mode: fmt.Sprintf("%04o", e.Mode&0o7777),
		Uid: e.Uid, Gid: e.Gid, ModifiedAt: e.Mtime.Time().UTC(), Links: e.Links, entry: e,
	}
}

func typeName(mode uint32) string {
	names := map[uint32]string{
		syscall.S_IFREG: "file", syscall.S_IFDIR: "directory", syscall.S_IFLNK: "link", syscall.S_IFIFO: "fifo",
		syscall.S_IFSOCK: "socket", syscall.S_IFCHR: "device", syscall.S_IFBLK: "device",
	}
	return names[mode&syscall.S_IFMT]
}

func printDeleted(w io.Writer, list []deletion) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "DELETED\tTYPE\tSIZE\tPATH")
	for _, d := range list {
		size := roundSize(int64(d.Size))
		if d.Type != "file" {
			size = "-"
		}
		path := d.Path
		if d.Links > 0 {
			path += fmt.Sprintf("  (has %d other names)", d.Links)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", d.DeletedAt.Format(time.RFC3339), d.Type, size, path)
	}
	return tw.Flush()
}

// A restoring is one run of flexfs restore.
type restoring struct {
	at     int64 // see parseAtTime; 0: the latest
	as     string
	within time.Duration

	done   map[string]int // what was restored, by type
	failed []error
}

func (r *restoring) run(c *cli.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	entries, err := deletedFrom(dir, fuse.DeletedName)
	if err != nil {
		return err
	}
	e, err := r.choose(entries, name)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if r.as != "" {
		name = r.as
	}
	r.done = map[string]int{}
	if err := r.restore(dir, e, name); err != nil {
		return err
	}
	var counts []string
	for _, kind := range slices.Sorted(maps.Keys(r.done)) {
		counts = append(counts, fmt.Sprintf("%d × %s", r.done[kind], kind))
	}
	fmt.Fprintf(c.App.Writer, "%s, deleted at %s, is restored: %s.\n", filepath.Join(dir, name), time.Unix(e.At, 0).UTC().Format(time.RFC3339), strings.Join(counts, ", "))
	if n := len(r.failed); n > 0 {
		return fmt.Errorf("%d could not be restored; the first: %w", n, r.failed[0])
	}
	return nil
}

// choose returns the entry of a name that was deleted last, or first after the
// time at which it was there.
func (r *restoring) choose(entries []fuse.DeletedEntry, name string) (fuse.DeletedEntry, error) {
	at := r.at
	if at < 0 {
		at += time.Now().Unix()
	}
	var found *fuse.DeletedEntry
	for i := range entries {
		e := &entries[i]
		if string(e.Name) != name {
			continue
		}
		if at == 0 && (found == nil || e.At >= found.At) || at != 0 && e.At >= at && (found == nil || e.At < found.At) {
			found = e
		}
	}
	switch {
	case found != nil:
		return *found, nil
	case at != 0:
		return fuse.DeletedEntry{}, fmt.Errorf("nothing of this name was there at %s and deleted later: flexfs deleted lists what was", formatAtTime(at))
	}
	return fuse.DeletedEntry{}, errors.New("nothing of this name was deleted, or it is not kept any more: flexfs deleted lists what was")
}

// restore gives an entry of dir a name, and brings back what was in it.
func (r *restoring) restore(dir string, e fuse.DeletedEntry, name string) error {
	path := filepath.Join(dir, name)
	want := fuse.Restore{Name: e.Name, At: e.At, Ino: e.Ino}
	if name != string(e.Name) {
		want.As = []byte(name)
	}
	value, err := json.Marshal(want)
	if err != nil {
		return err
	}
	err = syscall.Setxattr(dir, fuse.RestoreName, value, 0)
	for n := 0; errors.Is(err, syscall.EBUSY) && n < 100; n++ { // flexfs rmtree is at work on it
		time.Sleep(100 * time.Millisecond)
		err = syscall.Setxattr(dir, fuse.RestoreName, value, 0)
	}
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%s is still being taken apart: try again later", path)
	case errors.Is(err, syscall.EEXIST):
		return fmt.Errorf("%s is there: nothing is overwritten; give another name with --as", path)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: only its owner (user %d) and root can restore it", path, e.Uid)
	case err != nil:
		return &os.PathError{Op: "restore", Path: path, Err: err}
	}
	if err := appears(path); err != nil {
		return err
	}
	r.done[typeName(e.Mode)]++
	if e.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		r.fill(path, e)
	}
	return nil
}

// fill restores what was deleted from a directory shortly before it was itself, or
// after that, as flexfs rmtree does.
func (r *restoring) fill(dir string, e fuse.DeletedEntry) {
	entries, err := deletedFrom(dir, fuse.DeletedName)
	if err != nil {
		r.failed = append(r.failed, err)
		return
	}
	last := map[string]fuse.DeletedEntry{}
	for _, child := range entries {
		if child.At >= e.At-int64(r.within/time.Second) && child.At >= last[string(child.Name)].At {
			last[string(child.Name)] = child
		}
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		if err := r.restore(dir, last[name], name); err != nil {
			r.failed = append(r.failed, err)
		}
	}
}

// appears waits until the kernel has forgotten that a name was absent.
func appears(path string) error {
	for range 500 {
		_, err := os.Lstat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s is restored but does not show yet", path)
}
