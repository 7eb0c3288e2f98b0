package powercut

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"
	"github.com/jacobsa/fuse/fuseutil"
)

// New returns a disk with an empty file system on the folder dir, until the test
// ends. It skips the test where loop devices or mkfs.ext4 are not to be had. What
// uses dir must have ended before the test's clean-up gets here.
func New(t testing.TB, dir string) *Disk {
	t.Helper()
	for _, tool := range []string{"losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("a disk whose power can be cut: %v", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("a disk whose power can be cut needs root")
	}
	mount := t.TempDir()
	d := &Disk{t: t, dir: dir, file: filepath.Join(mount, name), stable: map[int64][]byte{}, cached: map[int64][]byte{}}
	served, err := fuse.Mount(mount, fuseutil.NewFileSystemServer(&server{d: d}), &fuse.MountConfig{
		FSName: "powercut", DisableWritebackCaching: true, EnableNoOpendirSupport: true,
	})
	if err != nil {
		t.Skipf("a disk whose power can be cut: %v", err)
	}
	t.Cleanup(func() {
		if err := again(func() error { return fuse.Unmount(mount) }); err != nil {
			t.Errorf("the disk below %s: %v", dir, err)
			return
		}
		if err := served.Join(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	if err := d.attach(); err != nil {
		t.Skipf("a disk whose power can be cut: %v", err)
	}
	t.Cleanup(d.detach)
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil {
		t.Error(err)
	}
	return d
}

// attach mounts the file system on a loop device.
func (d *Disk) attach() error {
	out, err := exec.Command("losetup", "--find", "--show", d.file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	d.loop = strings.TrimSpace(string(out))
	if err := syscall.Mount(d.loop, d.dir, "ext4", 0, ""); err != nil {
		exec.Command("losetup", "--detach", d.loop).Run()
		return fmt.Errorf("mount %s: %w", d.loop, err)
	}
	return nil
}

func (d *Disk) detach() {
	if err := again(func() error { return syscall.Unmount(d.dir, 0) }); err != nil {
		d.t.Errorf("unmount %s: %v", d.dir, err)
	}
	if out, err := exec.Command("losetup", "--detach", d.loop).CombinedOutput(); err != nil {
		d.t.Errorf("losetup: %v: %s", err, out)
	}
}

// again tries to unmount for as long as something that is ending may be in the way.
func again(unmount func() error) (err error) {
	for range 100 {
		if err = unmount(); err == nil || errors.Is(err, syscall.EINVAL) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// name of the file in a server's root, and its inode.
const (
	name = "disk"
	ino  = fuseops.RootInodeID + 1
)

// A server is a file system of one file, the disk.
type server struct {
	fuseutil.NotImplementedFileSystem
	d *Disk
}

func attributes(inode fuseops.InodeID) fuseops.InodeAttributes {
	if inode == ino {
		return fuseops.InodeAttributes{Size: size, Nlink: 1, Mode: 0o600}
	}
	return fuseops.InodeAttributes{Nlink: 2, Mode: os.ModeDir | 0o700}
}

func (s *server) LookUpInode(_ context.Context, op *fuseops.LookUpInodeOp) error {
	if op.Name != name {
		return syscall.ENOENT
	}
	op.Entry = fuseops.ChildInodeEntry{Child: ino, Attributes: attributes(ino)}
	return nil
}

func (s *server) GetInodeAttributes(_ context.Context, op *fuseops.GetInodeAttributesOp) error {
	op.Attributes = attributes(op.Inode)
	return nil
}

func (s *server) OpenFile(_ context.Context, op *fuseops.OpenFileOp) error {
	op.UseDirectIO = true // the kernel keeps nothing that the disk does not know of
	return nil
}

func (s *server) ReadFile(_ context.Context, op *fuseops.ReadFileOp) error {
	op.BytesRead = int(min(int64(len(op.Dst)), size-op.Offset))
	return s.d.read(op.Dst[:op.BytesRead], op.Offset)
}

func (s *server) WriteFile(_ context.Context, op *fuseops.WriteFileOp) error {
	return s.d.write(op.Data, op.Offset)
}

func (s *server) SyncFile(context.Context, *fuseops.SyncFileOp) error { return s.d.flush() }

func (s *server) FlushFile(context.Context, *fuseops.FlushFileOp) error { return nil }

func (s *server) ReleaseFileHandle(context.Context, *fuseops.ReleaseFileHandleOp) error { return nil }

func (s *server) ForgetInode(context.Context, *fuseops.ForgetInodeOp) error { return nil }

func (s *server) BatchForget(context.Context, *fuseops.BatchForgetOp) error { return nil }
