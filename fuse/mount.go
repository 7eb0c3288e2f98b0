package fuse

// In this file and in serve.go fuse.X is the library's X: see the package's
// comment.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jacobsa/fuse"
	"github.com/jacobsa/fuse/fuseops"

	"flexfs/meta"
)

const (
	// readAheadKiB is how far the kernel reads ahead of a sequential reader.
	// Over a network the default of 128 KiB costs a round trip each time.
	readAheadKiB = 4096

	// maxBackground bounds the kernel's asynchronous requests: read-ahead and
	// direct I/O.
	maxBackground = 64

	// userPatience is how long programs that have files open may go on when the
	// mount is to end.
	userPatience = 20 * time.Second

	// entryPatience is how long an inval waits for the kernel to forget names.
	// A directory's lock may be held by an operation that waits for another
	// mount, which waits for this inval.
	entryPatience = 5 * time.Millisecond

	// maxEntryWaits bounds the threads that wait for directories' locks.
	maxEntryWaits = 16
)

// A Mounted is a mounted file system.
type Mounted struct {
	Dir string

	fs    *FS
	conn  *connection
	until atomic.Int64  // when what is not stored is given up, ns since 1970; 0: it does not end yet
	hurry chan struct{} // closed when it is given up at once
	once  sync.Once     // for that
	done  chan struct{}
	err   error // valid after done
}

// Mount mounts a volume on dir. cfg.Meta must be connected. The session's
// callbacks must reach the FS; where they are set first, use New and FS.Mount.
func Mount(ctx context.Context, dir string, cfg Config) (*Mounted, error) {
	return New(cfg).Mount(ctx, dir)
}

// Mount mounts fs on dir, once. It returns when the mount works.
func (fs *FS) Mount(ctx context.Context, dir string) (*Mounted, error) {
	// A mount that cannot even tell its root is none.
	if err := fs.refresh(ctx, fs.inode(meta.Root)); err != nil {
		return nil, fmt.Errorf("fuse: read the root directory: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("fuse: %w", err)
	}
	m := &Mounted{Dir: dir, fs: fs, conn: &connection{fs: fs, slots: make(chan struct{}, maxEntryWaits)}, hurry: make(chan struct{}), done: make(chan struct{})}
	fs.kernel = m.conn
	stop := fs.start()
	lib, err := fuse.Mount(dir, newServer(fs, m.conn), fs.mountConfig())
	if err != nil {
		stop()
		return nil, fmt.Errorf("fuse: mount on %s: %w", dir, err)
	}
	dev := deviceOf(dir)
	if _, minor, ok := strings.Cut(dev, ":"); ok && fs.cfg.OnMount != nil {
		fs.cfg.OnMount(minor)
	}
	raiseReadAhead(fs, dev)
	go m.finish(lib, stop)
	// The kernel asks for attributes of the root, and the service may be gone by now.
	release := context.AfterFunc(ctx, func() { syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH) })
	err = fs.teachPoll(dir)
	release()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("fuse: try the mount on %s: %w", dir, err), m.cutOff(nil))
	}
	return m, nil
}

func (fs *FS) mountConfig() *fuse.MountConfig {
	name := fs.cfg.FSName
	if name == "" {
		name = "flexfs"
	}
	options := map[string]string{}
	for k, v := range fs.cfg.Options {
		options[k] = v
	}
	if fs.cfg.AllowOther {
		options["allow_other"] = ""
	}
	if os.Getuid() == 0 { // an administrator's mount is a file system like any other
		for _, o := range []string{"suid", "dev"} {
			if _, no := options["no"+o]; !no {
				options[o] = ""
			}
		}
	}
	flags := uint64(fuse.InitAutoInvalData | fuse.InitHandleKillprivV2 | fuse.InitDirectIOAllowMmap |
		fuse.InitPosixACL | fuse.InitDontMask | fuse.InitSetxattrExt | fuse.InitExportSupport)
	if fs.vol().At == 0 { // in the past nobody is there to lock it against: locks are the kernel's
		flags |= fuse.InitPosixLocks | fuse.InitFlockLocks
	}
	return &fuse.MountConfig{
		FSName:                  name,
		Subtype:                 "flexfs",
		ReadOnly:                fs.readOnly(),
		Options:                 options,
		DisableWritebackCaching: true, // it trusts this mount's sizes and times against all others
		EnableSymlinkCaching:    true,
		EnableAsyncReads:        true,
		EnableAsyncDIO:          true,
		EnableParallelDirOps:    true,
		EnableAtomicTrunc:       true,
		EnableReaddirplus:       true, // always: attributes come along anyway, and then a look at what was listed asks nobody
		MaxBackground:           maxBackground,
		MaxReadahead:            readAheadKiB << 10,
		ExtraInitFlags:          flags,
	}
}

// finish waits until the kernel has hung up, and then makes durable what is
// left.
func (m *Mounted) finish(lib *fuse.MountedFileSystem, stop func()) {
	defer close(m.done)
	err := lib.Join(context.Background())
	stop()
	ctx, cancel := m.draining()
	defer cancel()
	if flushErr := m.fs.flushAll(ctx); flushErr != nil {
		err = fmt.Errorf("fuse: what was written is lost: %w", flushErr)
	}
	m.fs.cancel()
	m.err = err
}

// draining returns the context of storing what was written before the mount ends:
// it lasts for Config.Drain from the first call on, and a little in any case.
func (m *Mounted) draining() (context.Context, context.CancelFunc) {
	drain := m.fs.cfg.Drain
	now := time.Now()
	m.until.CompareAndSwap(0, now.Add(drain).UnixNano())
	ctx, cancel := context.WithTimeout(context.Background(), max(time.Unix(0, m.until.Load()).Sub(now), drain/4))
	go func() {
		select {
		case <-m.hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// Hurry makes an end that waits for something come at once: users are cut off,
// and what is not stored yet is given up.
func (m *Mounted) Hurry() { m.once.Do(func() { close(m.hurry) }) }

// Wait returns when the file system is no longer mounted and everything that
// was written is durable, or with an error if that is not so.
func (m *Mounted) Wait() error {
	<-m.done
	return m.err
}

// Unmount makes everything that was written durable and unmounts. While files
// are open it tries again for a while, or until ctx ends; then it takes the mount
// out of the tree as it is, cuts its users off, and returns an error that says so.
func (m *Mounted) Unmount(ctx context.Context) error {
	flushing, cancel := m.draining()
	stop := context.AfterFunc(ctx, cancel)
	if err := m.fs.flushAll(flushing); err != nil {
		m.fs.log.Warn("not all data could be stored before unmounting", "err", err)
	}
	stop()
	cancel()
	patience := time.After(userPatience)
	for {
		err := unmount(m.Dir)
		gone := errors.Is(err, syscall.EINVAL) // somebody else did it, and users may be left
		if err == nil {
			return m.Wait()
		}
		if !gone && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("fuse: unmount %s: %w", m.Dir, err)
		}
		select {
		case <-m.done:
			return m.err
		case <-time.After(20 * time.Millisecond):
			continue
		case <-ctx.Done():
		case <-m.hurry:
		case <-patience:
		}
		if gone {
			return m.forsake()
		}
		return m.cutOff(err)
	}
}

// forsake ends a mount that was taken out of the tree and is in use. That cuts its
// users off when the process ends.
func (m *Mounted) forsake() error {
	ctx, cancel := m.draining()
	defer cancel()
	err := m.fs.flushAll(ctx)
	return errors.Join(fmt.Errorf("fuse: %s is unmounted, was still in use, and its users are cut off", m.Dir), err)
}

// cutOff ends a mount that is in use.
func (m *Mounted) cutOff(cause error) error {
	if err := syscall.Unmount(m.Dir, syscall.MNT_FORCE|syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("fuse: unmount %s: %w", m.Dir, errors.Join(cause, err))
	}
	return errors.Join(fmt.Errorf("fuse: %s was in use and its users were cut off", m.Dir), m.Wait())
}

// unmount unmounts dir, by the helper if we are not allowed to.
func unmount(dir string) error {
	err := syscall.Unmount(dir, 0)
	if !errors.Is(err, syscall.EPERM) {
		return err
	}
	if err := fuse.Unmount(dir); err != nil {
		if strings.Contains(err.Error(), "busy") {
			return fmt.Errorf("%w: %v", syscall.EBUSY, err)
		}
		return err
	}
	return nil
}

// deviceOf returns the device number of the mount on dir, without asking the
// mount itself.
func deviceOf(dir string) string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	dev := ""
	escaped := strings.NewReplacer("\\", "\\134", " ", "\\040", "\t", "\\011", "\n", "\\012").Replace(dir)
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if field := strings.Fields(sc.Text()); len(field) > 4 && field[4] == escaped {
			dev = field[2] // the last is on top
		}
	}
	return dev
}

// raiseReadAhead makes the kernel read further ahead, if we may.
func raiseReadAhead(fs *FS, dev string) {
	if dev == "" {
		return
	}
	name := "/sys/class/bdi/" + dev + "/read_ahead_kb"
	if err := os.WriteFile(name, fmt.Appendf(nil, "%d", readAheadKiB), 0); err != nil {
		fs.log.Debug("the kernel's read-ahead stays as it is", "err", err)
	}
}

// A connection is the kernel's caches as they are reached through the library.
type connection struct {
	fs    *FS
	slots chan struct{} // an element per goroutine that waits for a directory's lock
	old   atomic.Bool   // the kernel has no end of all names: it is older than Linux 6.16

	mu sync.RWMutex // held for reading while c is in use
	c  *fuse.Connection
}

func (k *connection) open(c *fuse.Connection) {
	k.mu.Lock()
	k.c = c
	k.mu.Unlock()
}

func (k *connection) close() { k.open(nil) }

// notify calls f unless the mount is gone.
func (k *connection) notify(f func(*fuse.Connection) error) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.c == nil {
		return nil
	}
	return f(k.c)
}

func (k *connection) Attrs(ino meta.Ino) bool {
	err := k.notify(func(c *fuse.Connection) error { return c.NotifyInode(fuseops.InodeID(ino), -1, 0) })
	return !errors.Is(err, syscall.ENOENT)
}

func (k *connection) Pages(ino meta.Ino) {
	k.logged(k.notify(func(c *fuse.Connection) error { return c.NotifyInode(fuseops.InodeID(ino), 0, 0) }))
}

func (k *connection) logged(err error) {
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		k.fs.log.Debug("the kernel did not forget", "err", err)
	}
}

// Names makes the kernel drop names in a directory. It is not enough that they
// expire: who looks one up again just then would take our answer, given before,
// for news. And a directory has one place in the kernel: as long as it has that,
// the kernel must move it when it is found elsewhere, and says ESTALE if
// something is being renamed just then.
//
// If the directory's lock is not free the kernel is told to ask again for all
// names, which takes no lock: who waits for the lock cannot even be killed, and
// while that waits for an operation which this process is to answer, its end
// would leave all of the mount waiting for ever.
func (k *connection) Names(dir meta.Ino, names []string) {
	in := k.fs.known(dir)
	free := func() bool { return in == nil || in.calls.Load() == 0 }
	for begin := time.Now(); !free() && time.Since(begin) < entryPatience; {
		time.Sleep(entryPatience / 10)
	}
	if !free() && k.allNames() {
		return
	}
	select {
	case k.slots <- struct{}{}:
	default:
		k.AllNames()
		return
	}
	done := make(chan struct{})
	go func() {
		defer func() { <-k.slots }()
		defer close(done)
		for _, name := range names {
			if !free() && k.allNames() {
				return
			}
			k.logged(k.notify(func(c *fuse.Connection) error { return c.NotifyEntry(fuseops.InodeID(dir), name) }))
		}
	}()
	t := time.NewTimer(entryPatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		k.AllNames()
	}
}

func (k *connection) AllNames() { k.allNames() }

// allNames reports whether the kernel could do it: Linux before 6.16 cannot.
func (k *connection) allNames() bool {
	if k.old.Load() {
		return false
	}
	k.fs.entering.wait()
	k.fs.stats.Epochs.Add(1)
	err := k.notify(func(c *fuse.Connection) error { return c.NotifyEpoch() })
	if errors.Is(err, syscall.EINVAL) {
		k.old.Store(true)
	}
	k.logged(err)
	return err == nil
}
