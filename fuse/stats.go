package fuse

import "sync/atomic"

// Stats counts what happened since the mount. Fields only grow.
type Stats struct {
	Ops         atomic.Int64 // operations of the kernel
	Requests    atomic.Int64 // to the metadata service
	Reads       atomic.Int64
	ReadBytes   atomic.Int64
	Writes      atomic.Int64
	WriteBytes  atomic.Int64
	Uploads     atomic.Int64 // blocks stored
	UploadBytes atomic.Int64
	Commits     atomic.Int64
	Merges      atomic.Int64 // commits done again because another mount changed the same block
	Ahead       atomic.Int64 // blocks read ahead
	Pages       atomic.Int64 // parts of directories fetched ahead
	Waits       atomic.Int64 // writes that waited for memory
	Invals      atomic.Int64 // inodes that the service told to forget
	Epochs      atomic.Int64 // times that the kernel was told to forget all names
	Errors      atomic.Int64 // uploads that failed
	Behind      atomic.Int64 // closes that did not wait, see Config.WriteBehind
	Clones      atomic.Int64 // blocks copied without their contents
	Panics      atomic.Int64 // operations answered with EIO because of a fault here
}

// Stats returns the mount's counters.
func (fs *FS) Stats() *Stats { return &fs.stats }
