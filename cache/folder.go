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
//	clean/{2 hex}/      copies of blocks that can be had elsewhere; named as in a
//	                    bucket, with _ for /; the digits are the low byte of the
//	                    key's hash
//	dirty/              blocks that were acknowledged and that the store below is
//	                    not known to have; named likewise. It is one folder, so
//	                    that one sync makes all the names durable that were added
//	                    before. A file has its name only after its bytes are
//	                    durable
//	damaged/            what was in dirty/ and failed its checksum; for an operator
//	                    to look at, and to remove
//
// Other names beside them are left alone.
const (
	lockName    = "lock"
	tmpName     = "tmp"
	cleanName   = "clean"
	dirtyName   = "dirty"
	damagedName = "damaged"
	fanout      = 256
)

// cleanFile returns where a copy of a block is in the folder.
func cleanFile(key store.Key) string {
	const digits = "0123456789abcdef"
	spread := byte(key.Hash())
	return appendName([]byte{'c', 'l', 'e', 'a', 'n', '/', digits[spread>>4], digits[spread&15], '/'}, key)
}

// dirtyFile returns where a dirty block is in the folder.
func dirtyFile(key store.Key) string { return appendName([]byte(dirtyName+"/"), key) }

func damagedFile(key store.Key) string { return appendName([]byte(damagedName+"/"), key) }

func appendName(b []byte, key store.Key) string {
	for _, c := range []byte(key.String()) {
		if c == '/' {
			c = '_'
		}
		b = append(b, c)
	}
	return string(b)
}

// parseName returns the key of the block whose file is dir/name, as file names
// it.
func parseName(dir, name string, file func(store.Key) string) (store.Key, bool) {
	key, err := store.ParseKey(strings.ReplaceAll(name, "_", "/"))
	return key, err == nil && file(key) == dir+"/"+name
}

// files are what is in the folder, by name. Tests put one that fails in place of
// the real one.
type files interface {
	open(name string) (file, error)
	// openFile is open for those who want the descriptor.
	openFile(name string) (*os.File, error)
	// write makes a file of these bytes appear under its name, at once. It
	// does not sync: after a crash of the machine the file may have any
	// content, which verification finds out.
	write(name string, data []byte) error
	// stage makes a file of these bytes, which are durable when it returns,
	// and returns a name of its own for it.
	stage(data []byte) (name string, err error)
	// rename gives a file another name. A crash of the machine may undo it
	// until a syncDir of the new name's folder.
	rename(from, to string) error
	// syncDir makes all names durable that the folder has.
	syncDir(dir string) error
	remove(name string) error
	// stat returns the size, and the time in seconds.
	stat(name string) (size, stamped int64, err error)
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
	root   string
	lock   *os.File
	direct bool // copies, too, are written past the page cache
}

// openFolder makes the folder if it is not there, takes it for this process, and
// removes what an earlier one did not finish.
func openFolder(root string) (*folder, error) {
	for _, name := range []string{cleanName, dirtyName, tmpName} {
		if err := makeFolder(filepath.Join(root, name)); err != nil {
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
	// An earlier process may have ended before it synced what it made.
	if err := errors.Join(f.clearTmp(), syncFolder(root)); err != nil {
		lock.Close()
		return nil, err
	}
	return f, nil
}

// makeFolder is [os.MkdirAll], and makes what it makes durable.
func makeFolder(name string) error {
	err := os.Mkdir(name, 0o700)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeFolder(filepath.Dir(name)); err != nil {
			return err
		}
		return makeFolder(name)
	case errors.Is(err, fs.ErrExist):
		return os.MkdirAll(name, 0o700) // complains if it is a file
	case err != nil:
		return err
	}
	return syncFolder(filepath.Dir(name))
}

func syncFolder(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
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

func (f *folder) path(name string) string { return filepath.Join(f.root, name) }

func (f *folder) open(name string) (file, error) {
	fd, err := openForReading(f.path(name))
	if err != nil {
		return nil, err
	}
	return &descriptor{fd, f.direct}, nil
}

func (f *folder) openFile(name string) (*os.File, error) {
	name = f.path(name)
	fd, err := openForReading(name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openForReading(path string) (fd int, err error) {
	for {
		fd, err = syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
		switch err {
		case nil:
			return fd, nil
		case syscall.EINTR:
		default:
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// A descriptor is a regular file that is open. An [os.File] would cost two more
// system calls, to find out that it cannot be polled.
type descriptor struct {
	fd     int
	direct bool // much is read past the page cache
}

func (d *descriptor) ReadAt(b []byte, off int64) (int, error) {
	if d.direct && off == 0 && len(b) >= minDirect {
		if n := readDirect(d.fd, b); n == len(b) {
			return n, nil
		}
	}
	return pread(d.fd, b, off)
}

func pread(fd int, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := syscall.Pread(fd, b[n:], off+int64(n))
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

func (d *descriptor) size() (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(d.fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Size, nil
}

func (d *descriptor) close() error { return os.NewSyscallError("close", syscall.Close(d.fd)) }

func (f *folder) write(name string, data []byte) error {
	tmp, err := f.temp(data, f.direct, false)
	if err != nil {
		return err
	}
	mkdir := func(dir string) error { return os.MkdirAll(dir, 0o700) }
	return removeIf(move(tmp, f.path(name), mkdir), tmp)
}

func (f *folder) stage(data []byte) (string, error) {
	tmp, err := f.temp(data, true, true)
	if err != nil {
		return "", err
	}
	return tmpName + "/" + filepath.Base(tmp), nil
}

func (f *folder) rename(from, to string) error {
	return move(f.path(from), f.path(to), makeFolder)
}

func (f *folder) syncDir(dir string) error { return syncFolder(f.path(dir)) }

// temp makes a file of these bytes and returns its path.
func (f *folder) temp(data []byte, direct, durable bool) (string, error) {
	tmp, err := f.create()
	if err != nil {
		return "", err
	}
	if direct {
		err = writeDirect(tmp, data)
	} else {
		_, err = tmp.Write(data)
	}
	if err == nil && durable {
		// The size of a file is among what fdatasync makes durable.
		err = os.NewSyscallError("fdatasync", syscall.Fdatasync(int(tmp.Fd())))
	}
	return tmp.Name(), removeIf(errors.Join(err, tmp.Close()), tmp.Name())
}

// removeIf removes a file if there was an error, and returns that.
func removeIf(err error, path string) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, os.Remove(path))
}

// create makes a file to write to; its folder too, should an operator have emptied
// the cache by hand.
func (f *folder) create() (*os.File, error) {
	dir := f.path(tmpName)
	tmp, err := os.CreateTemp(dir, "fill-*")
	if !errors.Is(err, fs.ErrNotExist) {
		return tmp, err
	}
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	return os.CreateTemp(dir, "fill-*")
}

// move renames a file into a folder, which it has mkdir make if it is not there.
func move(from, to string, mkdir func(string) error) error {
	err := os.Rename(from, to)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := mkdir(filepath.Dir(to)); err != nil {
		return err
	}
	return os.Rename(from, to)
}

func (f *folder) remove(name string) error { return os.Remove(f.path(name)) }

func (f *folder) stat(name string) (size, stamped int64, err error) {
	info, err := os.Lstat(f.path(name))
	if err != nil {
		return 0, 0, err
	}
	return info.Size(), info.ModTime().Unix(), nil
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
