package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"flexfs/store"
)

// The folder of a [Disk]. The form is pinned: caches survive a change of the
// program.
//
//	lock                held while the folder is in use
//	tmp/                files being written; emptied at start
//	clean/{2 hex}/      copies of blocks that are in the store below; named as
//	                    in a bucket, with _ for /; the digits are the low byte
//	                    of the key's hash
//
// Other names beside them are left alone.
const (
	lockName  = "lock"
	tmpName   = "tmp"
	cleanName = "clean"
	fanout    = 256
)

// fileName returns where a block is below the clean folder.
func fileName(key store.Key) string {
	const digits = "0123456789abcdef"
	spread := byte(key.Hash())
	name := key.String()
	b := make([]byte, 0, 3+len(name))
	b = append(b, digits[spread>>4], digits[spread&15], '/')
	for _, c := range []byte(name) {
		if c == '/' {
			c = '_'
		}
		b = append(b, c)
	}
	return string(b)
}

// parseName returns the key of the block that is at dir/name below the clean
// folder.
func parseName(dir, name string) (store.Key, bool) {
	key, err := store.ParseKey(strings.ReplaceAll(name, "_", "/"))
	return key, err == nil && fileName(key) == dir+"/"+name
}

// files are the blocks' files, by name below the clean folder. Tests put one
// that fails in place of the real one.
type files interface {
	open(name string) (file, error)
	// write makes a file of these bytes appear under its name, at once.
	write(name string, data []byte) error
	remove(name string) error
	stat(name string) (size int64, err error)
	list(dir string) ([]fs.DirEntry, error)
	// touch sets the time of the last use to now.
	touch(name string) error
	// space returns the size of the file system, and what is free of it.
	space() (total, free int64, err error)
}

// A file is open for reading.
type file interface {
	// ReadAt is that of [io.ReaderAt].
	ReadAt(b []byte, off int64) (int, error)
	size() (int64, error)
	close() error
}

// A folder is the real files.
type folder struct {
	root string
	lock *os.File
}

// openFolder makes the folder if it is not there, takes it for this process, and
// removes what an earlier one did not finish.
func openFolder(root string) (*folder, error) {
	for _, name := range []string{cleanName, tmpName} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o700); err != nil {
			return nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(root, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another process", root)
		}
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	f := &folder{root: root, lock: lock}
	if err := f.clearTmp(); err != nil {
		lock.Close()
		return nil, err
	}
	return f, nil
}

func (f *folder) clearTmp() error {
	left, err := filepath.Glob(filepath.Join(f.root, tmpName, "fill-*"))
	for _, name := range left {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// Close gives the folder up to other processes.
func (f *folder) Close() error { return f.lock.Close() }

func (f *folder) path(name string) string { return filepath.Join(f.root, cleanName, name) }

func (f *folder) open(name string) (file, error) {
	name = f.path(name)
	for {
		fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
		switch err {
		case nil:
			return descriptor(fd), nil
		case syscall.EINTR:
		default:
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// A descriptor is a regular file that is open. An [os.File] would cost two more
// system calls, to find out that it cannot be polled.
type descriptor int

func (d descriptor) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := syscall.Pread(int(d), b[n:], off+int64(n))
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return n, os.NewSyscallError("pread", err)
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

func (d descriptor) size() (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(d), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Size, nil
}

func (d descriptor) close() error { return os.NewSyscallError("close", syscall.Close(int(d))) }

// write does not sync: after a crash of the machine the file may have any
// content, which verification finds out.
func (f *folder) write(name string, data []byte) error {
	tmp, err := f.temp()
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = move(tmp.Name(), f.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// temp makes a file to write to; its folder too, should an operator have emptied
// the cache by hand.
func (f *folder) temp() (*os.File, error) {
	dir := filepath.Join(f.root, tmpName)
	tmp, err := os.CreateTemp(dir, "fill-*")
	if !errors.Is(err, fs.ErrNotExist) {
		return tmp, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, "fill-*")
}

// move renames a file into a folder that may not be there yet.
func move(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return os.Rename(from, to)
}

func (f *folder) remove(name string) error { return os.Remove(f.path(name)) }

func (f *folder) stat(name string) (int64, error) {
	info, err := os.Lstat(f.path(name))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *folder) list(dir string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(f.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

func (f *folder) touch(name string) error {
	return os.Chtimes(f.path(name), time.Time{}, time.Now())
}

func (f *folder) space() (total, free int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(f.root, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: f.root, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
