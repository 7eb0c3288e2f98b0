package tlspin

import (
	"io/fs"
	"syscall"
)

// inode tells a file that was renamed into place from the one before it, even
// if both have the same size and time.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
