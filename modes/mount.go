package modes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"flexfs/admin"
	"flexfs/cache"
	"flexfs/fuse"
	"flexfs/internal/tlspin"
	"flexfs/meta"
	"flexfs/store"
	"flexfs/store/remote"
	"flexfs/store/seal"
)

// How often a mount tries an operation on a block, proxies and bucket both, and
// how long it waits before the second time, before it takes the bucket to be away.
const (
	blockTries = 4
	blockPause = 200 * time.Millisecond
)

// Mount is a mounted volume.
type Mount struct {
	Admin  Access
	Volume string // name or id; "": the one that the token is for
	Dir    string // the mount point
	Secret []byte // of an encrypted volume; nil: none. Listen takes it and clears it

	MemCapacity int64  // bytes for blocks, see shares
	DiskFolder  string // for a cache of blocks on disk; "": none
	DiskQuota   cache.Quota

	ReadOnly, AllowOther           bool
	NoATime, NoDev, NoExec, NoSUID bool
	At                             int64 // the second since 1970 whose end is shown, or if negative how many seconds ago that was; 0: what is now is shown
	NonEmpty                       bool  // a mount point with files in it, which the mount hides, is all right

	WriteBehind bool // see fuse.Config

	GiveUp time.Duration // for which calls wait for servers that are out of reach, before they fail; 0: for ever
	Drain  time.Duration // for which a mount that ends stores what was written; 0: fuse.DefaultDrain

	DebugAddr string // for metrics and profiles; "": none

	Timing remote.Timing // of the proxy groups; zero fields have the defaults
	Log    *slog.Logger

	settings atomic.Pointer[admin.MountSettings]
	feed     feed[admin.MountSettings]
	last     admin.Fetched[admin.MountSettings]
	started  time.Time
	secretID string // of the secret, see seal.Sealer.Fingerprint; "": none

	group   *remote.Group
	outage  *store.Outage
	disk    *cache.Disk // nil: none
	mem     *cache.Mem
	client  *meta.Client
	fs      *fuse.FS
	mounted *fuse.Mounted
	debug   *debugServer
	guarded bool // it is to have a guard
	guard   *guard

	stop context.CancelFunc // ends what runs in the background
	wg   sync.WaitGroup     // of that
}

// Listen mounts the volume. After it Dir answers; it is to be followed by
// Serve.
func (m *Mount) Listen(ctx context.Context) (err error) {
	if err := checkMountPoint(m.Dir, m.NonEmpty); err != nil {
		return err
	}
	background, stop := context.WithCancel(context.Background())
	m.stop, m.started = stop, time.Now()
	if m.guarded {
		m.guard = startGuard(m.Log)
	}
	defer func() {
		if err != nil {
			m.close()
			m.guard.close()
		}
	}()
	if m.debug, err = listenDebug(m.DebugAddr, m.metrics); err != nil {
		return err
	}
	if err := m.fetchSettings(ctx); err != nil {
		return err
	}
	blocks, err := m.openBlocks(ctx)
	if err != nil {
		return err
	}
	m.wg.Go(func() { m.group.Run(background) })
	if err := m.connect(ctx, blocks); err != nil {
		return err
	}
	if err := m.registerSecret(ctx); err != nil {
		return err
	}
	m.wg.Go(func() { m.feed.follow(background, m.last, m.apply) })
	if m.mounted, err = m.fs.Mount(ctx, m.Dir); err != nil {
		return err
	}
	m.wg.Go(func() {
		if err := m.debug.serve(background, m.Log); err != nil {
			m.Log.Warn("metrics", "err", err)
		}
	})
	return nil
}

// fetchSettings asks admin what to mount and how.
func (m *Mount) fetchSettings(ctx context.Context) (err error) {
	m.feed = feed[admin.MountSettings]{client: m.Admin.Client(), log: m.Log}
	if m.last, err = m.feed.first(ctx); err != nil {
		return err
	}
	s := &m.last.Settings
	m.settings.Store(s)
	if m.Volume != "" && m.Volume != s.Volume.Name && !strings.EqualFold(m.Volume, s.Volume.ID) {
		return fmt.Errorf("the token is for volume %s, not for %s: use a token of %[2]s (flexfs configure create volume-token --volumeID %[2]s)", s.Volume.Name, m.Volume)
	}
	for flag, field := range m.forced() {
		*field = *field || slices.Contains(s.Flags, flag)
	}
	return nil
}

// forced are the settings that a volume or a token may force on a mount.
func (m *Mount) forced() map[string]*bool {
	return map[string]*bool{"ro": &m.ReadOnly, "noATime": &m.NoATime, "noDev": &m.NoDev, "noExec": &m.NoExec, "noSUID": &m.NoSUID}
}

// openBlocks builds the whole data path: a tier that is not configured is not
// in it.
func (m *Mount) openBlocks(ctx context.Context) (store.Store, error) {
	s := m.settings.Load()
	sealer, err := m.newSealer(&s.Volume)
	if err != nil {
		return nil, err
	}
	origin, err := OpenBucket(ctx, s.BlockStore, m.Log) // the truth
	if err != nil {
		return nil, err
	}
	m.group = remote.New(remote.Config{ // through the proxies, or straight on
		Origin: origin, Groups: groupsOf(s), MaxProxied: s.Volume.MaxProxied, Ticket: m.ticket, Timing: m.Timing, Log: m.Log,
	})
	m.group.Probe(ctx)
	m.outage = store.NewOutage(m.GiveUp, m.Log)
	far := m.outage.Watch(store.Limit(store.Retry(m.group, blockTries, blockPause), originRequests))
	if m.DiskFolder != "" {
		if m.disk, err = openDisk(far, m.DiskFolder, m.DiskQuota, false, m.Log); err != nil { // sealed blocks on a local disk
			return nil, err
		}
		far = m.disk
	}
	plain := sealer.Over(far) // compressed and, on an encrypted volume, encrypted below here
	size, _ := m.shares()
	m.mem, err = cache.NewMem(plain, size) // decoded
	if err != nil {
		return nil, err
	}
	return m.outage.Outlast(m.mem), nil // what the file system reads and writes
}

// maxWriting bounds what a mount has of written and read-ahead data: with more,
// no bucket is written faster, and the cache can use it.
const maxWriting = 512 << 20

// shares divides three quarters of MemCapacity between the cache and what is being
// written and read ahead. The rest is for blocks that are on their way, plain and
// sealed, and for garbage that is not collected yet.
func (m *Mount) shares() (cache, writing int64) {
	all := m.MemCapacity / 4 * 3
	writing = min(all/2, maxWriting)
	return all - writing, writing
}

// away returns for how long the metadata service or the bucket has been out of
// reach.
func (m *Mount) away() time.Duration { return max(m.client.Away(), m.outage.Away()) }

// groupsOf converts the settings of proxy groups.
func groupsOf(s *admin.MountSettings) []remote.GroupSettings {
	var groups []remote.GroupSettings
	for _, g := range s.Groups {
		groups = append(groups, groupOf(g))
	}
	return groups
}

func groupOf(g admin.GroupSettings) remote.GroupSettings {
	return remote.GroupSettings{
		ID: g.ID, Name: g.ProviderCode + "/" + g.RegionCode, NoSSL: g.NoSSL,
		Members: membersOf(g.Members), Former: membersOf(g.Former), ChangedAt: g.ChangedAt,
	}
}

func membersOf(list []admin.Member) (members []remote.Member) {
	for _, m := range list {
		members = append(members, remote.Member{Address: m.Address, Pin: m.Pin})
	}
	return members
}

// connect opens the session with the metadata service.
func (m *Mount) connect(ctx context.Context, blocks store.Store) error {
	s := m.settings.Load()
	id, err := store.ParseVolume(s.Volume.ID)
	if err != nil {
		return err
	}
	m.client = meta.NewClient(meta.ClientConfig{
		Dial: m.dialMeta, Token: m.ticket, Volume: s.Volume.ID, Name: m.name(), At: m.At, Log: m.Log,
		Stale:  func(list []meta.Inval) { m.fs.Stale(list) },
		Inval:  func(list []meta.Inval) []meta.Ino { return m.fs.Inval(list) },
		Resume: func() ([]meta.Ino, []meta.InoLock) { return m.fs.Resume() },
		Lost:   func() { m.fs.Lost() },
		GiveUp: m.GiveUp,
	})
	var service fuse.Meta = m.client
	if s.Volume.Encryption {
		service = sealedMeta{m.client}
	}
	_, writing := m.shares()
	m.fs = fuse.New(fuse.Config{
		OnMount: m.onMount,
		Meta:    service, Blocks: blocks, Volume: id, Room: seal.Room(int(s.Volume.BlockSize)), Budget: fuse.NewBudget(writing), Log: m.Log,
		Stats:  func() any { return m.Stats() },
		GiveUp: m.GiveUp, Away: m.away, Drain: m.Drain, WriteBehind: m.WriteBehind,
		ReadOnly: m.ReadOnly, AllowOther: m.AllowOther, FSName: s.Volume.Name, Options: m.kernelOptions(),
	})
	within, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	if err := m.client.Connect(within); err != nil {
		return fmt.Errorf("metadata service at %s: %w", s.Meta.Address, err)
	}
	return nil
}

// onMount has the guard watch the mount. Without one, which is rare, the mount works
// all the same.
func (m *Mount) onMount(connection string) {
	if m.guard == nil {
		return
	}
	if err := m.guard.watch(connection); err != nil {
		m.Log.Warn("the mount has no guard: if this process is killed, programs that use the mount may hang until umount -f", "err", err)
	}
}

// dialMeta connects to wherever the metadata service is now.
func (m *Mount) dialMeta(ctx context.Context) (net.Conn, error) {
	server := m.settings.Load().Meta
	cfg := tlspin.ClientConfig(server.Pin)
	if host, _, err := net.SplitHostPort(server.Address); err == nil {
		cfg.ServerName = host
	}
	return meta.Dial(server.Address, cfg)(ctx)
}

// ticket returns the newest ticket.
func (m *Mount) ticket() string { return m.settings.Load().Ticket }

// name says to people which mount this is.
func (m *Mount) name() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return host + ":" + m.Dir
}

func (m *Mount) kernelOptions() map[string]string {
	options := map[string]string{}
	for name, on := range map[string]bool{"noatime": m.NoATime, "nodev": m.NoDev, "noexec": m.NoExec, "nosuid": m.NoSUID} {
		if on {
			options[name] = ""
		}
	}
	return options
}

// apply takes over what admin says.
func (m *Mount) apply(s admin.MountSettings) {
	old := m.settings.Swap(&s)
	if !slices.EqualFunc(old.Groups, s.Groups, sameGroup) || old.Volume.MaxProxied != s.Volume.MaxProxied {
		m.Log.Info("proxy groups changed", "groups", len(s.Groups))
		m.group.Update(groupsOf(&s), s.Volume.MaxProxied)
	}
	if old.BlockStore != s.BlockStore {
		m.Log.Warn("the block store's settings changed; they count from the next mount on")
	}
}

func sameGroup(a, b admin.GroupSettings) bool {
	return a.ID == b.ID && a.NoSSL == b.NoSSL && a.ProviderCode == b.ProviderCode && a.RegionCode == b.RegionCode && slices.Equal(a.Members, b.Members) && slices.Equal(a.Former, b.Former) && a.ChangedAt.Equal(b.ChangedAt)
}

// Serve waits until ctx is done, and then unmounts; or until somebody else has
// unmounted. All that was written is in the bucket when it returns nil; else the
// error names what is not.
func (m *Mount) Serve(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- m.mounted.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		notifySystemd("STOPPING=1")
		err = m.mounted.Unmount(context.WithoutCancel(ctx))
	}
	m.close()
	if err == nil { // else there may be users left, whom the guard cuts off when the process ends
		m.guard.close()
	}
	return err
}

// Hurry makes a Serve that unmounts, and waits for users of the mount or for a
// server, end soon.
func (m *Mount) Hurry() {
	if m.mounted != nil {
		m.mounted.Hurry()
	}
}

// close ends what Listen began, the mount itself apart.
func (m *Mount) close() {
	if m.client != nil {
		m.client.Close()
	}
	m.stop()
	m.debug.close()
	m.wg.Wait()
	if m.mem != nil {
		m.mem.Close()
	}
	if m.disk != nil {
		if err := m.disk.Close(); err != nil {
			m.Log.Warn("disk cache", "err", err)
		}
	}
}

// Chosen says to people what the mount is and where its blocks come from.
func (m *Mount) Chosen() string {
	s := m.settings.Load()
	how := ""
	if m.ReadOnly {
		how = ", read-only"
	}
	if at := m.client.Volume().At; at != 0 {
		how += ", as it was at the end of " + time.Unix(at, 0).UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("Volume %s (%s) is mounted at %s%s.\n%s", s.Volume.Name, s.Volume.ID, m.Dir, how,
		strings.TrimSpace("Blocks go "+m.group.Status().String()))
}

// MountStats are what user.flexfs.stats shows.
type MountStats struct {
	Volume   string           `json:"volume"`
	ID       string           `json:"id"`
	Dir      string           `json:"dir"`
	ReadOnly bool             `json:"readOnly,omitempty"`
	Forced   []string         `json:"forced,omitempty"` // flags, by the volume or the token
	Since    time.Time        `json:"since"`
	Proxies  remote.Status    `json:"proxies"`
	Memory   cache.Stats      `json:"memory"`
	Disk     *cache.Stats     `json:"disk,omitempty"`
	Files    map[string]int64 `json:"files"`
}

// Stats returns what the mount did since its start.
func (m *Mount) Stats() MountStats {
	s := m.settings.Load()
	stats := MountStats{
		Volume: s.Volume.Name, ID: s.Volume.ID, Dir: m.Dir, ReadOnly: m.ReadOnly || m.client.Volume().ReadOnly, Since: m.started, Forced: s.Flags,
		Proxies: m.group.Status(), Memory: m.mem.Stats(), Files: counters(m.fs.Stats()),
	}
	if m.disk != nil {
		d := m.disk.Stats()
		stats.Disk = &d
	}
	return stats
}

// checkMountPoint wants a folder to mount on.
func checkMountPoint(dir string, nonEmpty bool) error {
	info, err := os.Stat(dir)
	switch {
	case isDeadMount(err):
		return fmt.Errorf("%s is a mount whose program has gone: run umount -l %[1]s first", dir)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("mount point %s does not exist: make the folder first", dir)
	case err != nil:
		return fmt.Errorf("mount point: %w", err)
	case !info.IsDir():
		return fmt.Errorf("mount point %s is not a folder", dir)
	}
	if err := alreadyMounted(dir); err != nil {
		return err
	}
	if nonEmpty {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	defer f.Close()
	if names, _ := f.Readdirnames(1); len(names) > 0 {
		return fmt.Errorf("mount point %s is not empty, and a mount would hide what is in it: choose an empty folder, or give --nonEmpty", dir)
	}
	return nil
}

// alreadyMounted refuses a folder on which a volume is mounted.
func alreadyMounted(dir string) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	kind, err := mountedAt(path)
	if err != nil {
		return fmt.Errorf("list of mounts: %w", err)
	}
	if strings.HasPrefix(kind, "fuse") {
		return fmt.Errorf("there is a mount at %s already: umount it first", dir)
	}
	return nil
}
