// Package memfs is a file system in memory behind FUSE: what a mount of ours
// could reach at most. It answers each request at once, in the goroutine that
// read it, and has the kernel cache nothing. Nothing is ever stored.
package memfs

// fuse.X is the library's X here.

import (
	"context"
	"os"

	"github.com/jacobsa/fuse"
)

const (
	// maxBackground and readAheadKiB are those of our mounts.
	maxBackground = 64
	readAheadKiB  = 4096
)

// Serve mounts an empty file system on dir and returns when it is unmounted.
func Serve(ctx context.Context, dir string) error {
	mounted, err := fuse.Mount(dir, server{newFS()}, &fuse.MountConfig{
		FSName:                  "memfs",
		Subtype:                 "memfs",
		Options:                 map[string]string{"allow_other": ""},
		DisableWritebackCaching: true,
		EnableAsyncReads:        true,
		EnableAsyncDIO:          true,
		EnableParallelDirOps:    true,
		EnableAtomicTrunc:       true,
		MaxBackground:           maxBackground,
		MaxReadahead:            readAheadKiB << 10,
		ExtraInitFlags:          fuse.InitAutoInvalData | fuse.InitHandleKillprivV2 | fuse.InitDirectIOAllowMmap,
	})
	if err != nil {
		return err
	}
	return mounted.Join(ctx)
}

// A server is the loop.
type server struct{ fs *fs }

// ServeOps implements [fuse.Server]. Nothing here waits, so it needs no second
// goroutine.
func (s server) ServeOps(c *fuse.Connection) {
	for {
		ctx, op, err := c.ReadOp()
		if err != nil { // unmounted
			return
		}
		c.Reply(ctx, s.fs.answer(op)) // that fails if the caller was killed
	}
}

var root = os.ModeDir | 0o755
