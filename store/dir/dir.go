// Package dir is a block store in a directory of a local or network file system.
//
// A block is one file:
//
//	{volume id}/{spread}/{ino}.{index}.{session}-{seq}
//
// with the parts of [store.Key.String]. Files appear whole, by rename from the
// folder "tmp". A volume has at most 65,536 folders, which are never removed.
package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"flexfs/store"
)

const (
	// staleAfter is the age from which a temporary file must be what a
	// crash left behind: no Put takes that long.
	staleAfter = time.Hour

	// maxFolders bounds the folders remembered as durable, at some 60 bytes
	// each. Beyond it they are forgotten and synced again.
	maxFolders = 1 << 18
)

// A Store is a [store.Store] in a directory. Several processes may use the same
// directory.
type Store struct {
	path string

	mu      sync.Mutex
	durable map[string]bool // folders whose own name is on stable storage; guarded by mu
}

// Open opens the store in the directory path, which it creates if its parent
// exists. It fails if the directory cannot be written to.
func Open(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	s := &Store{path: path, durable: make(map[string]bool)}
	for _, folder := range []string{path, s.tmp()} {
		if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("dir: open: %w", err)
		}
		if err := syncPath(filepath.Dir(folder)); err != nil {
			return nil, fmt.Errorf("dir: open: %w", err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("dir: open: %w", err)
	}
	return s, nil
}

func (s *Store) tmp() string { return filepath.Join(s.path, "tmp") }

// sweep removes what crashes left in tmp, and finds out whether it is writable.
func (s *Store) sweep() error {
	probe, err := os.CreateTemp(s.tmp(), "probe-")
	if err != nil {
		return err
	}
	probe.Close()
	if err := os.Remove(probe.Name()); err != nil {
		return err
	}
	left, err := os.ReadDir(s.tmp())
	if err != nil {
		return err
	}
	for _, entry := range left {
		info, err := entry.Info()
		if err != nil || time.Since(info.ModTime()) < staleAfter {
			continue // gone meanwhile, or in use by another process
		}
		if err := os.Remove(filepath.Join(s.tmp(), entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// file returns the path of the key's file.
func (s *Store) file(key store.Key) string {
	part := strings.SplitN(key.String(), "/", 3)
	return filepath.Join(s.path, part[0], part[1], strings.ReplaceAll(part[2], "/", "."))
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dir: get %v: %w", key, err)
	}
	f, err := os.Open(s.file(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("dir: get %v: %w", key, store.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("dir: get: %w", err)
	}
	defer f.Close()
	data, err := readRange(f, off, n)
	if err != nil {
		return nil, fmt.Errorf("dir: get: %w", err)
	}
	return data, nil
}

func readRange(f *os.File, off, n int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if off < 0 || off >= info.Size() {
		return nil, nil
	}
	if rest := info.Size() - off; n < 0 || n > rest {
		n = rest
	}
	data := make([]byte, n)
	if _, err := f.ReadAt(data, off); err != nil && err != io.EOF {
		return nil, err
	}
	return data, nil
}

// Put implements [store.Store]. The file and the folders on the way to it are
// on stable storage when it returns nil. A crash leaves the whole block or none,
// and perhaps a file in tmp that a later Open removes.
func (s *Store) Put(ctx context.Context, key store.Key, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("dir: put %v: %w", key, err)
	}
	file := s.file(key)
	folder := filepath.Dir(file)
	if err := s.makeFolder(folder); err != nil {
		return fmt.Errorf("dir: put: %w", err)
	}
	tmp := filepath.Join(s.tmp(), rand.Text())
	if err := writeSynced(tmp, data); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("dir: put: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		os.Remove(tmp)
		s.forget(folder) // perhaps somebody removed it; the next Put makes it again
		return fmt.Errorf("dir: put: %w", err)
	}
	if err := syncPath(folder); err != nil {
		return fmt.Errorf("dir: put: %w", err)
	}
	return nil
}

// makeFolder makes {path}/{volume}/{spread} exist on stable storage.
func (s *Store) makeFolder(folder string) error {
	s.mu.Lock()
	done := s.durable[folder]
	s.mu.Unlock()
	if done {
		return nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	// Another Put may have made either folder a moment ago and not synced
	// its name yet, so sync both whoever made them.
	for _, parent := range []string{filepath.Dir(folder), s.path} {
		if err := syncPath(parent); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.durable) >= maxFolders {
		clear(s.durable)
	}
	s.durable[folder] = true
	return nil
}

func (s *Store) forget(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.durable, folder)
}

// writeSynced writes a new file and syncs it.
func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncPath syncs a directory, and with it the names in it.
func syncPath(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Delete implements [store.Store].
func (s *Store) Delete(ctx context.Context, key store.Key) error {
	return s.DeleteAll(ctx, []store.Key{key})
}

// DeleteAll implements [store.BulkDeleter]. When it returns nil, no crash brings
// the blocks back.
func (s *Store) DeleteAll(ctx context.Context, keys []store.Key) error {
	touched := make(map[string]bool)
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("dir: delete %v: %w", key, err)
		}
		file := s.file(key)
		err := os.Remove(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("dir: delete: %w", err)
		}
		touched[filepath.Dir(file)] = true
	}
	for folder := range touched {
		if err := syncPath(folder); err != nil {
			return fmt.Errorf("dir: delete: %w", err)
		}
	}
	return nil
}

// List implements [store.Lister]. Files that are not blocks are passed over.
func (s *Store) List(ctx context.Context, volume store.Volume, fn func(store.Listed) error) error {
	top := filepath.Join(s.path, volume.String())
	spreads, err := os.ReadDir(top)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("dir: list: %w", err)
	}
	for _, spread := range spreads {
		if !spread.IsDir() {
			continue
		}
		if err := s.listFolder(ctx, volume, spread.Name(), fn); err != nil {
			return err
		}
	}
	return nil
}

// listStep bounds the entries of a folder that are in memory.
const listStep = 1000

func (s *Store) listFolder(ctx context.Context, volume store.Volume, spread string, fn func(store.Listed) error) error {
	folder, err := os.Open(filepath.Join(s.path, volume.String(), spread))
	if err != nil {
		return fmt.Errorf("dir: list: %w", err)
	}
	defer folder.Close()
	for {
		files, err := folder.ReadDir(listStep)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("dir: list: %w", err)
		}
		for _, file := range files {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("dir: list: %w", err)
			}
			if err := listFile(volume, spread, file, fn); err != nil {
				return err
			}
		}
	}
}

func listFile(volume store.Volume, spread string, file fs.DirEntry, fn func(store.Listed) error) error {
	key, err := store.ParseKey(volume.String() + "/" + spread + "/" + strings.ReplaceAll(file.Name(), ".", "/"))
	if err != nil {
		return nil // not a block
	}
	info, err := file.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted just now
	}
	if err != nil {
		return fmt.Errorf("dir: list: %w", err)
	}
	return fn(store.Listed{Key: key, Size: info.Size(), Modified: info.ModTime()})
}
