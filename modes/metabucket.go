package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/admin"
	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
)

func reconcileCommand() *cli.Command {
	r := &reconcile{grace: 24 * time.Hour}
	folder := homeFolder("admin")
	return &cli.Command{
		Name:  "reconcile",
		Usage: "find what dead mounts left in the buckets; the service must not be running",
		Description: "Lists the bucket of each volume and looks for objects that nothing names: neither a file, nor its past that is kept,\n" +
			"nor what is going to be deleted. A service does that by itself every day; this is to look at it, or to do it now.\n" +
			"Without --remove nothing is removed.",
		Flags: []cli.Flag{
			textFlag(&folder, "dbFolder", "`FOLDER` of the database: the dbFolder of admin or of the service"),
			boolFlag(&r.remove, "remove", "remove them, else they are only counted"),
			boolFlag(&r.list, "list", "print the key of each"),
			durationFlag(&r.grace, "grace", "`AGE` below which objects are left alone"),
		},
		Action: func(c *cli.Context) error {
			if _, err := positional(c); err != nil {
				return err
			}
			m, err := openStopped(folder)
			if err != nil {
				return err
			}
			defer m.engine.Close()
			return r.run(c.Context, m, c.App.Writer)
		},
	}
}

// openStopped opens the database of a metadata service that does not run, with
// the settings that it had last.
func openStopped(folder string) (*Meta, error) {
	home := folder
	if _, err := os.Stat(filepath.Join(home, "data")); errors.Is(err, fs.ErrNotExist) {
		home = filepath.Join(folder, "meta") // admin's folder
	}
	dir := filepath.Join(home, "data")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no metadata in %s: give --dbFolder", folder)
	}
	e, err := engine.OpenPebble(dir, engine.Options{})
	if err != nil {
		return nil, err
	}
	m := &Meta{DBFolder: home, engine: e, Log: slog.New(slog.DiscardHandler)}
	m.origins.log = m.Log
	return m, nil
}

// recall takes over the settings that the service had last, and returns the
// volumes.
func (m *Meta) recall() ([]admin.Volume, error) {
	settings := feed[admin.MetaSettings]{file: filepath.Join(m.DBFolder, "settings.json")}
	last, err := settings.kept()
	if err != nil {
		return nil, fmt.Errorf("the settings that the service had last: %w", err)
	}
	m.apply(last)
	var volumes []admin.Volume
	for _, v := range last.Volumes {
		volumes = append(volumes, v.Volume)
	}
	return volumes, nil
}

// list calls fn for each object of a volume.
func (m *Meta) list(ctx context.Context, volume string, fn func(tree.Object) error) error {
	id, err := store.ParseVolume(volume)
	if err != nil {
		return err
	}
	bucket, err := m.origins.of(ctx, id)
	if err != nil {
		return err
	}
	return store.List(ctx, bucket, id, func(l store.Listed) error {
		ref := tree.BlockRef{Ino: meta.Ino(l.Key.Ino), Index: l.Key.Index, Gen: meta.Gen(l.Key.Gen)}
		return fn(tree.Object{Ref: ref, Size: l.Size, Modified: l.Modified})
	})
}

// blockKey returns the key of an object.
func blockKey(volume store.Volume, ref tree.BlockRef) store.Key {
	return store.Key{Volume: volume, Ino: uint64(ref.Ino), Index: ref.Index, Gen: store.Gen(ref.Gen)}
}

// A reconcile is what flexfs meta reconcile was told.
type reconcile struct {
	remove, list bool
	grace        time.Duration
}

func (r *reconcile) run(ctx context.Context, m *Meta, w io.Writer) error {
	volumes, err := m.recall()
	if err != nil {
		return err
	}
	srv, err := tree.New(tree.Config{
		Engine: m.engine, Volumes: m.volume, Delete: m.delete, List: m.list, Grace: max(r.grace, time.Nanosecond),
	})
	if err != nil {
		return err
	}
	for _, v := range volumes {
		id, err := store.ParseVolume(v.ID)
		if err != nil {
			return err
		}
		var show func(tree.Object)
		if r.list {
			show = func(o tree.Object) {
				fmt.Fprintf(w, "%v %d %s\n", blockKey(id, o.Ref), o.Size, o.Modified.UTC().Format(time.RFC3339))
			}
		}
		out, err := srv.Reconcile(ctx, v.ID, r.remove, show)
		if errors.Is(err, tree.ErrNoVolume) {
			continue // it was never mounted
		}
		if err != nil {
			return err
		}
		r.report(w, v, out)
	}
	return nil
}

func (r *reconcile) report(w io.Writer, v admin.Volume, out tree.Reconciled) {
	fmt.Fprintf(w, "volume %s (%s): %d objects, %s\n", v.Name, v.ID, out.Objects, roundSize(out.Bytes))
	for _, line := range []struct {
		n    int64
		text string
	}{
		{out.Named, "that something names"},
		{out.Held, "of mounts that have not ended, or may come back"},
		{out.Young, fmt.Sprintf("put less than %s ago", formatDuration(r.grace))},
		{out.Strange, "that this database does not know the mount or the file of; they stay: was an older copy of it put back?"},
	} {
		if line.n > 0 {
			fmt.Fprintf(w, "  %d %s\n", line.n, line.text)
		}
	}
	switch {
	case out.Orphans == 0:
		fmt.Fprintln(w, "  none that nothing names")
	case r.remove:
		fmt.Fprintf(w, "  %d that nothing names, %s: removed\n", out.Orphans, roundSize(out.OrphanBytes))
	default:
		fmt.Fprintf(w, "  %d that nothing names, %s: --remove removes them\n", out.Orphans, roundSize(out.OrphanBytes))
	}
}

// maxMissing bounds the missing blocks that are printed for a volume.
const maxMissing = 100

// checkBuckets looks in the bucket of each volume for the objects that files name,
// and returns how many are not there.
func (m *Meta) checkBuckets(ctx context.Context, w io.Writer) (missing int, err error) {
	volumes, err := m.recall()
	if err != nil {
		return 0, err
	}
	for _, v := range volumes {
		n, err := m.checkBucket(ctx, w, v)
		missing += n
		if err != nil {
			return missing, fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return missing, nil
}

// checkBucket asks a bucket for all that the records of a volume name. It keeps
// 8 bytes in memory for each object of the bucket: the hash of its key. A file's
// object that is not among them is asked for.
func (m *Meta) checkBucket(ctx context.Context, w io.Writer, v admin.Volume) (missing int, err error) {
	id, err := store.ParseVolume(v.ID)
	if err != nil {
		return 0, err
	}
	there := newKeySet()
	if err := m.list(ctx, v.ID, func(o tree.Object) error { there.add(o.Ref); return nil }); err != nil {
		return 0, err
	}
	there.sort()
	named := 0
	err = tree.References(ctx, m.engine, func(volume string, ref tree.BlockRef, why tree.Naming) error {
		if volume != v.ID || why == tree.InDelete {
			return nil
		}
		named++
		if there.has(ref) {
			return nil
		}
		_, err := m.origins.Get(ctx, blockKey(id, ref), 0, 1)
		if !errors.Is(err, store.ErrNotExist) {
			return err
		}
		if missing++; missing <= maxMissing {
			fmt.Fprintf(w, "volume %q: block %d of inode %d, version %d-%d, which %v names, is not in the bucket\n",
				v.Name, ref.Index, ref.Ino, ref.Gen.Session, ref.Gen.Seq, why)
		}
		return nil
	})
	if missing > 0 {
		fmt.Fprintf(w, "volume %q: %d blocks of %d are not in the bucket. Those that proxies have not uploaded yet are among them, and not lost:\n"+
			"  \"flexfs configure status\" shows how many a group has. Check again when it has none.\n", v.Name, missing, named)
	} else if err == nil {
		fmt.Fprintf(w, "volume %q: all %d blocks are in the bucket\n", v.Name, named)
	}
	return missing, err
}
