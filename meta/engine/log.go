package engine

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// zeroStep is how much of a log is made ready at a time.
const zeroStep = 1 << 20

// A logFS is a file system on which a sync of the database's log writes its
// records and nothing else. A log that grew would have its new size and the place
// of its new blocks written with each sync, which takes twice as long. So zeros are
// written ahead, many records' worth at a time, and records over them. A log that is
// used again has its size, but for what it grows beyond it.
//
// A reader takes zeros for the end of a log, as it does in one that was used before.
type logFS struct{ vfs.FS }

// Unwrap implements vfs.FS.
func (fs logFS) Unwrap() vfs.FS { return fs.FS }

// Create implements vfs.FS.
func (fs logFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, category)
	if err != nil || !strings.HasSuffix(name, ".log") {
		return f, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if f, err = fs.OpenReadWrite(name, category); err != nil { // for WriteAt
		return nil, err
	}
	return &logFile{File: f}, nil
}

// ReuseForWrite implements vfs.FS.
func (fs logFS) ReuseForWrite(old, name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(old, name, category)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &logFile{File: f, ready: info.Size()}, nil
}

// A logFile is a log that is written from its start to its end, by one at a time.
type logFile struct {
	vfs.File
	offset int64 // of the next write
	ready  int64 // how far the file has been written, with whatever
}

// Write implements vfs.File.
func (f *logFile) Write(p []byte) (int, error) {
	end := f.offset + int64(len(p))
	if end > f.ready {
		// Where this fails the write itself tells.
		next := end + zeroStep
		f.WriteAt(make([]byte, next-f.ready), f.ready)
		f.ready = next
	}
	n, err := f.File.Write(p)
	f.offset += int64(n)
	return n, err
}
