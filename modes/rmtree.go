package modes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"flexfs/fuse"
)

func rmtreeCommand() *cli.Command {
	return &cli.Command{
		Name:      "rmtree",
		Usage:     "remove directories of a mount with all that is in them, at once; for root",
		ArgsUsage: "<dir>...",
		Description: "Each <dir> is gone, on all mounts, when this returns, however much is in it. The metadata service then removes what was in it in\n" +
			"the background, and df shows it bit by bit. What is open lives until it is closed, what has another name keeps that.\n" +
			"Permissions of what is in it are not looked at, so this is for root only.",
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("the dir is missing")
			}
			var failed error
			for _, dir := range c.Args().Slice() {
				if err := rmtree(dir); err != nil {
					failed = errors.Join(failed, err)
				}
			}
			return failed
		},
	}
}

// goneWithin bounds the wait for the kernel to forget a name that is gone. It does
// so at once, and in any case when the mount's lease has ended.
const goneWithin = 30 * time.Second

// rmtree removes a directory of a mount with all that is in it.
func rmtree(dir string) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	parent, name := filepath.Split(path)
	if name == "" {
		return fmt.Errorf("%s: the root of everything is not removed", dir)
	}
	if err := checkTree(dir, path, parent); err != nil {
		return err
	}
	switch err := syscall.Setxattr(parent, fuse.RemoveTreeXattr, []byte(name), 0); {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: only root may remove a tree at once; rm -r does it one by one", dir)
	case err != nil:
		return &os.PathError{Op: "rmtree", Path: dir, Err: err}
	}
	for end := time.Now().Add(goneWithin); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return nil // somebody made a new one, it seems
}

// checkTree refuses what is no directory in a mount of flexfs: elsewhere the
// attribute would be kept, and do nothing.
func checkTree(dir, path, parent string) error {
	var st, in syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "rmtree", Path: dir, Err: err}
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return fmt.Errorf("%s is not a directory: rm removes it", dir)
	}
	if err := syscall.Stat(parent, &in); err != nil {
		return &os.PathError{Op: "rmtree", Path: parent, Err: err}
	}
	if st.Dev != in.Dev {
		return fmt.Errorf("%s is a mount point", dir)
	}
	root, err := filepath.EvalSymlinks(parent)
	if err != nil {
		return err
	}
	for {
		var top syscall.Stat_t
		if err := syscall.Stat(root, &top); err != nil || top.Dev != st.Dev || root == "/" {
			return fmt.Errorf("%s is not in a mount of flexfs", dir)
		}
		if _, err := syscall.Getxattr(root, statsXattr, make([]byte, 64<<10)); err == nil || errors.Is(err, syscall.ERANGE) {
			return nil
		}
		root = filepath.Dir(root)
	}
}
