package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/admin"
	"flexfs/internal/measure"
	"flexfs/internal/s3test"
	"flexfs/modes"
)

const (
	bucketName = "bench"
	accessKey  = "bench-access-key"
	secretKey  = "bench-secret-key"
)

// A lab is what all rows use: a bucket, and admin with the metadata service.
type lab struct {
	opt options
	dir string // on the local disk

	gateway    *measure.Process
	relay      *relay
	admin      *measure.Process
	adminAddr  string
	adminDebug string
	access     modes.Access
	client     *admin.Client
	blockStore int64
	metaStore  int64
	volumes    int // made so far

	undo []func() error
}

func newLab(ctx context.Context, o options, dir string) (*lab, error) {
	l := &lab{opt: o, dir: dir}
	spread(dir)
	for _, start := range []func(context.Context) error{l.startBucket, l.startAdmin, l.makeStores} {
		if err := start(ctx); err != nil {
			return nil, errors.Join(err, l.close())
		}
	}
	return l, nil
}

// spread has ext4 put what is in the folders of dir apart from each other, as the
// folders of different programs mostly are. Else a new file of flexfs costs up to a
// millisecond more for the thousands that the floor has just deleted, whose inodes
// ext4 without a journal passes over one by one. Other file systems refuse.
func spread(dir string) {
	const topDir = 0x20000 // FS_TOPDIR_FL
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	fd := int(f.Fd())
	if flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS); err == nil {
		unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// close ends everything, last started first.
func (l *lab) close() error {
	var err error
	for i := len(l.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, l.undo[i]())
	}
	return err
}

func (l *lab) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

// startBucket starts versitygw on files in memory, and the relay before it.
func (l *lab) startBucket(ctx context.Context) error {
	dir := l.path("bucket")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("bucket", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "size=60%,mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	l.undo = append(l.undo, func() error { return syscall.Unmount(dir, syscall.MNT_DETACH) })
	if err := os.Mkdir(filepath.Join(dir, bucketName), 0o700); err != nil {
		return err
	}
	program := l.opt.versitygw
	if program == "" {
		var err error
		if program, err = s3test.Binary(); err != nil {
			return err
		}
	}
	addr, err := measure.FreeAddr()
	if err != nil {
		return err
	}
	keys := []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}
	if l.gateway, err = measure.Start("versitygw", keys, program, "--port", addr, "--keep-alive", "--quiet", "posix", dir); err != nil {
		return err
	}
	l.undo = append(l.undo, l.gateway.Kill) // its files are gone in a moment anyway
	if err := l.gateway.AwaitListening(ctx, addr); err != nil {
		return err
	}
	if l.relay, err = startRelay(addr, l.opt.delay); err != nil {
		return err
	}
	l.undo = append(l.undo, l.relay.close)
	return nil
}

func (l *lab) startAdmin(ctx context.Context) error {
	addrs := make([]string, 3)
	for i := range addrs {
		var err error
		if addrs[i], err = measure.FreeAddr(); err != nil {
			return err
		}
	}
	l.adminAddr, l.adminDebug = addrs[0], addrs[2]
	var err error
	l.admin, err = l.start("admin", "admin", "--bindAddr", addrs[0], "--dbFolder", l.path("admin"),
		"--metaBindAddr", addrs[1], "--metaAddress", addrs[1], "--debugAddr", addrs[2])
	if err != nil {
		return err
	}
	l.undo = append(l.undo, l.admin.Stop)
	if err := l.admin.AwaitListening(ctx, addrs[0]); err != nil {
		return err
	}
	var creds modes.Credentials
	err = l.admin.Await(ctx, func() error {
		creds, err = modes.ReadCredentials(l.credentials())
		return err
	})
	if err != nil {
		return err
	}
	l.access = modes.Access{Addr: creds.AdminAddr, Pin: creds.AdminPin, Token: creds.Token}
	l.client = l.access.Client()
	return nil
}

// credentials is the file with how to reach admin.
func (l *lab) credentials() string { return l.path("admin", "credentials.json") }

// start starts the program.
func (l *lab) start(name string, args ...string) (*measure.Process, error) {
	return measure.Start(name, []string{"HOME=" + l.dir}, l.opt.flexfs, args...)
}

func (l *lab) makeStores(ctx context.Context) error {
	blocks, err := admin.Create[admin.BlockStore](ctx, l.client, map[string]any{"providerCode": "local", "regionCode": "local",
		"apiCode": "s3", "bucket": bucketName, "address": "http://" + l.relay.addr, "username": accessKey, "password": secretKey})
	if err != nil {
		return err
	}
	metas, err := admin.List[admin.MetaStore](ctx, l.client, nil)
	if err != nil {
		return err
	}
	if len(metas) != 1 {
		return fmt.Errorf("admin has %d metadata services, not the one that it hosts", len(metas))
	}
	l.blockStore, l.metaStore = blocks.ID, metas[0].ID
	return nil
}

// A volume is a fresh one, for a scenario.
type volume struct {
	id    string
	name  string
	token string // a file

	settings admin.MountSettings // that its mounts are given
}

func (l *lab) newVolume(ctx context.Context) (*volume, error) {
	l.volumes++
	name := fmt.Sprintf("volume-%d", l.volumes)
	made, err := admin.Create[admin.Volume](ctx, l.client, map[string]any{"name": name, "blockStoreID": l.blockStore, "metaStoreID": l.metaStore})
	if err != nil {
		return nil, err
	}
	token, err := admin.Create[admin.VolumeToken](ctx, l.client, map[string]any{"volumeID": made.ID})
	if err != nil {
		return nil, err
	}
	v := &volume{id: made.ID, name: name, token: l.path(name + "-token")}
	if err := os.WriteFile(v.token, []byte(token.Token), 0o600); err != nil {
		return nil, err
	}
	access := l.access
	access.Token = token.Token
	client := access.Client()
	// Admin learns the key of its metadata service a moment after its start.
	return v, l.admin.Await(ctx, func() error {
		fetched, err := admin.Fetch(ctx, client, admin.Fetched[admin.MountSettings]{}, 0)
		if err == nil && fetched.Settings.Meta.Pin == "" {
			err = errors.New("admin does not know the key of the metadata service yet")
		}
		v.settings = fetched.Settings
		return err
	})
}

// drop takes the contents of a volume out of the memory that the bucket is in. They
// would be kept for its retention, which no benchmark lasts.
func (l *lab) drop(v *volume) error {
	if v == nil {
		return nil
	}
	return os.RemoveAll(l.path("bucket", bucketName, v.id))
}

// mountFlags are those of a mount beside the ones that say where everything is. The
// rest is as a user has it who says nothing.
func (l *lab) mountFlags() []string {
	return append([]string{"--diskFolder", "FOLDER"}, strings.Fields(l.opt.mount)...)
}

// A mount is a running flexfs mount.
type mount struct {
	lab   *lab
	proc  *measure.Process
	dir   string
	cache string // folder of its disk cache
	debug string // address of its metrics and profiles
}

// mountVolume mounts a volume in a folder of that name, whose disk cache is empty
// unless a mount there was only stopped.
func (l *lab) mountVolume(ctx context.Context, v *volume, name string) (*mount, error) {
	m := &mount{lab: l, dir: l.path(name), cache: l.path(name + "-cache")}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.debug, err = measure.FreeAddr(); err != nil {
		return nil, err
	}
	flags := l.mountFlags()
	flags[1] = m.cache
	m.proc, err = l.start("mount "+name, append(append([]string{"mount", "--foreground", "--adminAddr", l.adminAddr, "--tokenFile", v.token,
		"--credsFile", l.credentials(), "--debugAddr", m.debug}, flags...), v.name, m.dir)...)
	if err != nil {
		return nil, err
	}
	if err := awaitMount(ctx, m.proc, m.dir); err != nil {
		return nil, errors.Join(err, m.end())
	}
	return m, nil
}

// awaitMount waits until a process has mounted something on dir.
func awaitMount(ctx context.Context, p *measure.Process, dir string) error {
	up, err := deviceOf(filepath.Dir(dir))
	if err != nil {
		return err
	}
	return p.Await(ctx, func() error {
		dev, err := deviceOf(dir)
		if err == nil && dev == up {
			err = errors.New("nothing is mounted on " + dir)
		}
		return err
	})
}

func deviceOf(dir string) (uint64, error) {
	var s syscall.Stat_t
	err := syscall.Stat(dir, &s)
	return s.Dev, err
}

// stop unmounts, and waits until all is stored and the process has ended.
func (m *mount) stop() error { return errors.Join(unmount(m.dir), m.proc.AwaitEnd()) }

// end stops the mount and removes its disk cache.
func (m *mount) end() error {
	if m == nil {
		return nil
	}
	return errors.Join(m.stop(), os.RemoveAll(m.cache))
}

// unmount unmounts dir, and cuts off who uses it if they do not stop.
func unmount(dir string) error {
	for range 200 {
		err := syscall.Unmount(dir, 0)
		if err == nil || errors.Is(err, syscall.EINVAL) { // or nothing is mounted there
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(errors.New(dir+" is still in use"), syscall.Unmount(dir, syscall.MNT_DETACH))
}

// output runs a program and returns what it wrote to its standard output; its
// error has what it said otherwise.
func output(cmd *exec.Cmd) ([]byte, error) {
	var said strings.Builder
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, said.String())
	}
	return out, nil
}
