package cache

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/store"
)

// fakeFiles are files in memory that fail on demand, and lose in a power cut what
// was not synced.
type fakeFiles struct {
	mu          sync.Mutex
	m           map[string]*fakeInode
	durable     map[string]*fakeInode       // what a power cut leaves for certain
	pending     []fakeChange                // of names, that a power cut may undo
	fail        func(op, name string) error // called without mu; may also wait
	total, free int64
	peak, bytes int64 // sum of charges of m, but of what only tests whether the disk works
	staged      int
	ops         map[string]int // how often each was asked for
}

type fakeInode struct {
	data   []byte
	synced bool
	at     time.Time
}

// A fakeChange gives an inode a name, or takes the name away.
type fakeChange struct {
	name  string
	inode *fakeInode // nil: the name is removed
}

func newFakeFiles() *fakeFiles {
	return &fakeFiles{m: make(map[string]*fakeInode), durable: make(map[string]*fakeInode), ops: make(map[string]int), total: 1 << 40, free: 1 << 40}
}

func (f *fakeFiles) try(op, name string) error {
	f.mu.Lock()
	f.ops[op]++
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

// set changes a name. f.mu must be held.
func (f *fakeFiles) set(name string, n *fakeInode) {
	if old := f.m[name]; old != nil {
		f.bytes -= charge(int64(len(old.data)))
	}
	if n == nil {
		delete(f.m, name)
	} else {
		f.m[name] = n
		f.bytes += charge(int64(len(n.data)))
	}
	f.pending = append(f.pending, fakeChange{name, n})
}

// spoil changes what is in a file.
func (f *fakeFiles) spoil(name string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes += charge(int64(len(data))) - charge(int64(len(f.m[name].data)))
	f.m[name].data = data
}

// cut is a power cut: it leaves each change of a name that was not synced, and
// each part of a file that was not synced, as chance has it, and nothing in tmp.
func (f *fakeFiles) cut(r *rand.Rand) *fakeFiles {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := maps.Clone(f.durable)
	for _, c := range f.pending {
		if r.IntN(2) == 0 {
			continue
		}
		if c.inode == nil {
			delete(names, c.name)
		} else {
			names[c.name] = c.inode
		}
	}
	after := newFakeFiles()
	after.total, after.free = f.total, f.free
	for name, n := range names {
		if strings.HasPrefix(name, tmpName+"/") {
			continue
		}
		n = &fakeInode{bytes.Clone(n.data), n.synced, n.at}
		if !n.synced && len(n.data) > 0 {
			switch r.IntN(3) {
			case 0:
				n.data = n.data[:r.IntN(len(n.data))]
			case 1:
				clear(n.data[r.IntN(len(n.data)):])
			}
		}
		n.synced = true
		after.m[name], after.durable[name] = n, n
		after.bytes += charge(int64(len(n.data)))
	}
	return after
}

func (f *fakeFiles) open(name string) (file, error) {
	if err := f.try("open", name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &fakeFile{bytes.NewReader(n.data), f, name}, nil
}

// openFile is only for real files.
func (f *fakeFiles) openFile(name string) (*os.File, error) {
	if err := f.try("open", name); err != nil {
		return nil, err
	}
	return nil, fs.ErrNotExist
}

func (f *fakeFiles) write(name string, data []byte) error {
	if err := f.try("write", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(name, &fakeInode{data: bytes.Clone(data), at: time.Now()})
	if name != probeName {
		f.peak = max(f.peak, f.bytes)
	}
	return nil
}

func (f *fakeFiles) stage(data []byte) (string, error) {
	f.mu.Lock()
	f.staged++
	name := fmt.Sprintf("%s/fill-%d", tmpName, f.staged)
	f.mu.Unlock()
	if err := f.try("stage", name); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(name, &fakeInode{data: bytes.Clone(data), synced: true, at: time.Now()})
	if len(data) > 100 { // or it is a probe
		f.peak = max(f.peak, f.bytes)
	}
	return name, nil
}

func (f *fakeFiles) rename(from, to string) error {
	if err := f.try("rename", to); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.m[from]
	if n == nil {
		return fs.ErrNotExist
	}
	f.set(from, nil)
	f.set(to, n)
	return nil
}

func (f *fakeFiles) syncDir(dir string) error {
	f.mu.Lock()
	changes := slices.Clone(f.pending) // what comes while the disk is at work is not among them
	f.mu.Unlock()
	if err := f.try("sync", dir); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range changes {
		if path.Dir(c.name) != dir {
			continue
		}
		if c.inode == nil {
			delete(f.durable, c.name)
		} else {
			f.durable[c.name] = c.inode
		}
		f.pending = slices.DeleteFunc(f.pending, func(p fakeChange) bool { return p == c })
	}
	return nil
}

func (f *fakeFiles) remove(name string) error {
	if err := f.try("remove", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m[name] == nil {
		return fs.ErrNotExist
	}
	f.set(name, nil)
	return nil
}

func (f *fakeFiles) stat(name string) (size, stamped int64, err error) {
	if err := f.try("stat", name); err != nil {
		return 0, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.m[name]
	if !ok {
		return 0, 0, fs.ErrNotExist
	}
	return int64(len(n.data)), n.at.Unix(), nil
}

func (f *fakeFiles) list(dir string) (entries []fs.DirEntry, err error) {
	if err := f.try("list", dir); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, n := range f.m {
		if path.Dir(name) == dir {
			entries = append(entries, fs.FileInfoToDirEntry(fakeInfo{path.Base(name), int64(len(n.data)), n.at}))
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
	at   time.Time
}

func (i fakeInfo) Name() string       { return i.name }
func (i fakeInfo) Size() int64        { return i.size }
func (fakeInfo) Mode() fs.FileMode    { return 0o600 }
func (i fakeInfo) ModTime() time.Time { return i.at }
func (fakeInfo) IsDir() bool          { return false }
func (fakeInfo) Sys() any             { return nil }

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
		closeDisk(t, d)
	})
	return d
}
