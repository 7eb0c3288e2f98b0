package cache

import (
	"bytes"
	"io/fs"
	"sync"
	"testing"
	"time"

	"flexfs/store"
)

// fakeFiles are files in memory that fail on demand.
type fakeFiles struct {
	mu          sync.Mutex
	m           map[string][]byte
	fail        func(op, name string) error // called without mu; may also wait
	total, free int64
	peak, bytes int64 // sum of charges of m
}

func newFakeFiles() *fakeFiles {
	return &fakeFiles{m: make(map[string][]byte), total: 1 << 40, free: 1 << 40}
}

func (f *fakeFiles) try(op, name string) error {
	f.mu.Lock()
	fail := f.fail
	f.mu.Unlock()
	if fail == nil {
		return nil
	}
	if err := fail(op, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

func (f *fakeFiles) setFail(fail func(op, name string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *fakeFiles) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.m)
}

func (f *fakeFiles) open(name string) (file, error) {
	if err := f.try("open", name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &fakeFile{bytes.NewReader(data), f, name}, nil
}

func (f *fakeFiles) write(name string, data []byte) error {
	if err := f.try("write", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.m[name]; ok {
		f.bytes -= charge(int64(len(old)))
	}
	f.m[name] = bytes.Clone(data)
	f.bytes += charge(int64(len(data)))
	if name != probeName {
		f.peak = max(f.peak, f.bytes)
	}
	return nil
}

func (f *fakeFiles) remove(name string) error {
	if err := f.try("remove", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.m[name]
	if !ok {
		return fs.ErrNotExist
	}
	delete(f.m, name)
	f.bytes -= charge(int64(len(data)))
	return nil
}

func (f *fakeFiles) stat(name string) (int64, error) {
	if err := f.try("stat", name); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	data, ok := f.m[name]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return int64(len(data)), nil
}

func (f *fakeFiles) list(dir string) (entries []fs.DirEntry, err error) {
	if err := f.try("list", dir); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, data := range f.m {
		if name[:2] == dir {
			entries = append(entries, fs.FileInfoToDirEntry(fakeInfo{name[3:], int64(len(data))}))
		}
	}
	return entries, nil
}

func (f *fakeFiles) touch(string) error { return nil }

func (f *fakeFiles) space() (total, free int64, err error) {
	if err := f.try("statfs", ""); err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.total, f.free - f.bytes, nil
}

type fakeFile struct {
	*bytes.Reader
	files *fakeFiles
	name  string
}

func (f *fakeFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.files.try("read", f.name); err != nil {
		return 0, err
	}
	return f.Reader.ReadAt(b, off)
}

func (f *fakeFile) size() (int64, error) { return f.Size(), nil }
func (f *fakeFile) close() error         { return nil }

type fakeInfo struct {
	name string
	size int64
}

func (i fakeInfo) Name() string     { return i.name }
func (i fakeInfo) Size() int64      { return i.size }
func (fakeInfo) Mode() fs.FileMode  { return 0o600 }
func (fakeInfo) ModTime() time.Time { return time.Now() }
func (fakeInfo) IsDir() bool        { return false }
func (fakeInfo) Sys() any           { return nil }

// openFake opens a Disk on fake files, for a bubble of virtual time.
func openFake(t *testing.T, next store.Store, f *fakeFiles, cfg DiskConfig) *Disk {
	t.Helper()
	if cfg.Quota == (Quota{}) {
		cfg.Quota = Quota{Bytes: 1 << 30}
	}
	if cfg.Verify == nil {
		cfg.Verify = anything
	}
	d, err := newDisk(next, cfg, f)
	if err != nil {
		t.Fatal(err)
	}
	d.wg.Go(d.tend)
	t.Cleanup(func() {
		f.setFail(nil)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
