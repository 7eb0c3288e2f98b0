package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// findDatabase tells whether dir holds a database. A folder with other things in
// it, or with a database whose key files are gone, is an error: making an empty
// database there would hide the loss.
func findDatabase(fsys vfs.FS, dir string) (bool, error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("engine: open %s: %w", dir, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == "LOCK" || name == "lost+found" || strings.HasPrefix(name, ".")
	})
	if len(names) == 0 {
		return false, nil
	}
	if isManifest := func(name string) bool { return strings.HasPrefix(name, "MANIFEST-") }; !slices.ContainsFunc(names, isManifest) {
		if unfinished(names) {
			return false, nil
		}
		return false, fmt.Errorf("engine: open %s: the folder is not empty and has no complete database: %w; restore it from a copy or choose an empty folder", dir, ErrCorrupt)
	}
	desc, err := pebble.Peek(dir, fsys)
	if err == nil && !desc.Exists && !unfinished(names) {
		err = errors.New("files that say where its data is are missing")
	}
	if err != nil {
		return false, openError(fsys, dir, err)
	}
	return desc.Exists, nil
}

// unfinished tells whether names are what a crash leaves of the making of a new
// database: no data yet.
func unfinished(names []string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, "marker.") && !strings.HasPrefix(name, "MANIFEST-") && !strings.HasPrefix(name, "OPTIONS-")
	})
}

// openError says what is wrong with the database in dir, and what to do.
func openError(fsys vfs.FS, dir string, err error) error {
	if inUse(fsys, dir, err) {
		return fmt.Errorf("engine: open %s: %w (%v)", dir, ErrInUse, err)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.ENOENT {
		return fmt.Errorf("engine: open %s: %w", dir, err)
	}
	return fmt.Errorf("engine: open %s: %w: %w; restore it from a copy", dir, ErrCorrupt, err)
}

func inUse(fsys vfs.FS, dir string, err error) bool {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && strings.Contains(err.Error(), "LOCK") {
		return true
	}
	return strings.Contains(err.Error(), "lock held by current process")
}

// damage marks an error of the database that means that its files are damaged.
func damage(err error) error {
	if err != nil && pebble.IsCorruptionError(err) {
		return fmt.Errorf("%w: %w; restore it from a copy", ErrCorrupt, err)
	}
	return err
}

// A pebbleLog brings the database's messages to our log. What it says about its
// daily work is for debugging.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any) {
	l.log.Debug("database", "msg", fmt.Sprintf(format, args...))
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("database", "msg", fmt.Sprintf(format, args...))
}

// Fatalf must not return: the database cannot go on, and what it holds in memory
// must not be answered from any more.
func (l pebbleLog) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	l.log.Error("database failed", "msg", msg)
	panic("engine: " + msg)
}
