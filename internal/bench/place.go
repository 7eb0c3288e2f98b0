package main

import (
	"context"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"flexfs/internal/measure"
)

// A place is where work is done: the mount, or what it is compared with.
type place interface {
	// begin makes the place ready and empty.
	begin(ctx context.Context) error
	// end leaves nothing of it, also if it did not begin well.
	end() error
	// dir is the folder to work in.
	dir() string
	// cold makes that nothing of the files is in any cache.
	cold(ctx context.Context) error
	// servers are the processes that do the work.
	servers() servers
}

// The names of places.
const (
	onFloor   = "floor"
	onCeiling = "ceiling"
	onFlexfs  = "flexfs"
)

// place returns a place that has not begun.
func (l *lab) place(name string) place {
	switch name {
	case onFloor:
		return &floor{folder: l.path("floor")}
	case onCeiling:
		return &ceiling{folder: l.path("memfs")}
	}
	return &flexfs{lab: l}
}

// servers are processes of ours that are at work for a place, by what they are.
type servers struct {
	mounts  []*measure.Process
	meta    *measure.Process
	proxies []*measure.Process
	debug   []string // addresses of the mounts' metrics
}

// A flexfs is a volume and a mount of it. Cold is a new mount with an empty disk
// cache: the old mount's memory is gone, and so is what the kernel knew of it.
type flexfs struct {
	lab    *lab
	volume *volume
	mount  *mount
}

func (f *flexfs) begin(ctx context.Context) (err error) {
	if f.volume, err = f.lab.newVolume(ctx); err != nil {
		return err
	}
	f.mount, err = f.lab.mountVolume(ctx, f.volume, "mnt")
	return err
}

func (f *flexfs) end() error {
	err := errors.Join(f.mount.end(), f.lab.drop(f.volume))
	f.mount, f.volume = nil, nil
	return err
}

func (f *flexfs) dir() string { return f.mount.dir }

func (f *flexfs) cold(ctx context.Context) (err error) {
	err = f.mount.end()
	f.mount = nil
	if err != nil {
		return err
	}
	f.mount, err = f.lab.mountVolume(ctx, f.volume, "mnt")
	return err
}

// restart is a new mount that has the disk cache of the one before.
func (f *flexfs) restart(ctx context.Context) (err error) {
	if err := f.mount.stop(); err != nil {
		return err
	}
	f.mount, err = f.lab.mountVolume(ctx, f.volume, "mnt")
	return err
}

func (f *flexfs) servers() servers {
	return servers{mounts: []*measure.Process{f.mount.proc}, meta: f.lab.admin, debug: []string{f.mount.debug}}
}

// A floor is a folder on the local disk. Cold is without the kernel's caches,
// unless it has only files that fio takes out of them itself.
type floor struct {
	folder string
	fio    bool
}

func (f *floor) begin(context.Context) error { return os.Mkdir(f.folder, 0o755) }
func (f *floor) end() error                  { return os.RemoveAll(f.folder) }
func (f *floor) dir() string                 { return f.folder }
func (f *floor) servers() servers            { return servers{} }

func (f *floor) cold(context.Context) error {
	if f.fio {
		return nil
	}
	return dropCaches(f.folder)
}

// dropCaches has the kernel write what it has to the disk that dir is on, and
// forget everything.
func dropCaches(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// A ceiling is a file system in memory, behind the same FUSE library. It has no
// caches.
type ceiling struct {
	folder string
	proc   *measure.Process
}

func (c *ceiling) begin(ctx context.Context) (err error) {
	if err := os.MkdirAll(c.folder, 0o755); err != nil {
		return err
	}
	if c.proc, err = measure.Start("memfs", nil, self, roleFlag, "memfs", c.folder); err != nil {
		return err
	}
	return awaitMount(ctx, c.proc, c.folder)
}

func (c *ceiling) end() error {
	if c.proc == nil {
		return nil
	}
	err := errors.Join(unmount(c.folder), c.proc.AwaitEnd())
	c.proc = nil
	return err
}

func (c *ceiling) dir() string                { return c.folder }
func (c *ceiling) cold(context.Context) error { return nil }
func (c *ceiling) servers() servers           { return servers{mounts: []*measure.Process{c.proc}} }

// procFile names a file of a process in /proc.
func procFile(p *measure.Process, name string) string {
	return "/proc/" + strconv.Itoa(p.Pid) + "/" + name
}
