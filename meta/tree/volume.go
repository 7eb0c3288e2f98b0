package tree

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// inoBatch is how many inode numbers are taken from the engine at a time. A
// crash loses at most as many of 2^64.
const inoBatch = 1024

// A volume is a file system that this server keeps.
type volume struct {
	srv       *Server
	id        string
	num       uint32
	blockSize uint32
	config    atomic.Pointer[VolumeConfig]

	configured atomic.Bool // config is what the operator set

	// changes counts the transactions: it grows after one is visible and before
	// its holders are looked up.
	changes atomic.Uint64

	leasing  sync.Mutex   // held while inode numbers are leased
	reserved atomic.Int64 // the numbers below it that clients give are reserved; there may be more

	// writing is held for reading while a transaction has a second and is not
	// visible. It is taken before what the engine locks.
	writing sync.RWMutex

	locks lockTable

	chronicle chronicle

	// mu guards what follows. Lock order: session.run, what the engine locks,
	// volume.mu, session.mu. Nobody talks to a client while holding any.
	mu              sync.Mutex
	sessions        map[uint64]*session
	absent          map[*session]struct{} // alive before the server started, and not back
	holders         map[meta.Ino]map[*session]struct{}
	changing        map[meta.Ino][]*notice             // of changes under way
	delegated       map[meta.Ino]*session              // directories
	streaks         map[meta.Ino]streak                // likewise
	open            map[meta.Ino]map[*session]struct{} // unlinked inodes in use
	left            map[meta.Ino]time.Time             // that lost sessions had in use, and until when they are kept
	nextIno, endIno meta.Ino                           // leased numbers
	notices         uint64                             // counts those that are over, and the inodes that were released
	bytes, inodes   int64                              // as the counters, with what runs
	second          int64                              // the latest that was used
	periods         []period                           // in which it was used, the last ones
	stamped         int64                              // the latest that was noted
}

func parseUUID(s string) (id [16]byte, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || strings.ToLower(s) != s {
		return id, fmt.Errorf("tree: %q is not a volume id (a lower-case UUID)", s)
	}
	if _, err := hex.Decode(id[:], []byte(strings.ReplaceAll(s, "-", ""))); err != nil {
		return id, fmt.Errorf("tree: %q is not a volume id (a lower-case UUID)", s)
	}
	return id, nil
}

func formatUUID(id []byte) string {
	h := hex.EncodeToString(id)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// A volume's record: 1 number(4) block-size(4).
const volumeLen = 9

func (srv *Server) newVolume(id string, record []byte) (*volume, error) {
	if len(record) != volumeLen || record[0] != 1 {
		return nil, fmt.Errorf("tree: record of volume %s: %w", id, errValue)
	}
	v := &volume{
		srv: srv, id: id,
		num:       binary.BigEndian.Uint32(record[1:]),
		blockSize: binary.BigEndian.Uint32(record[5:]),
		sessions:  make(map[uint64]*session),
		absent:    make(map[*session]struct{}),
		holders:   make(map[meta.Ino]map[*session]struct{}),
		changing:  make(map[meta.Ino][]*notice),
		delegated: make(map[meta.Ino]*session),
		streaks:   make(map[meta.Ino]streak),
		open:      make(map[meta.Ino]map[*session]struct{}),
		left:      make(map[meta.Ino]time.Time),
	}
	v.locks.init()
	v.config.Store(&VolumeConfig{BlockSize: v.blockSize})
	return v, nil
}

// load reads the volumes of the engine and their sessions.
func (srv *Server) load(ctx context.Context) error {
	return srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		prefix := volumeKey([16]byte{})[:5]
		return r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
			if len(key) != len(prefix)+16 {
				return false, fmt.Errorf("tree: key of a volume: %w", errValue)
			}
			v, err := srv.newVolume(formatUUID(key[len(prefix):]), value)
			if err != nil {
				return false, err
			}
			if err := v.load(r); err != nil {
				return false, fmt.Errorf("volume %s: %w", v.id, err)
			}
			srv.volumes[v.id] = v
			return true, nil
		})
	})
}

func (v *volume) load(r engine.Reader) error {
	var err error
	if v.bytes, err = v.counter(r, counterBytes); err != nil {
		return err
	}
	if v.inodes, err = v.counter(r, counterInodes); err != nil {
		return err
	}
	if err := v.loadClock(r); err != nil {
		return err
	}
	return v.loadSessions(r)
}

func (v *volume) counter(r engine.Reader, name string) (int64, error) {
	b, err := r.Get(v.counterKey(name))
	if err != nil || b == nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("tree: counter %q: %w", name, errValue)
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// volume returns a volume, which is made at first use.
func (srv *Server) volume(ctx context.Context, id string) (*volume, error) {
	cfg, err := srv.cfg.Volumes(id)
	if err != nil {
		return nil, refuse(syscall.ENODEV, "volume %s: %v", id, err)
	}
	srv.loading.Lock()
	defer srv.loading.Unlock()
	srv.mu.Lock()
	v := srv.volumes[id]
	srv.mu.Unlock()
	if v == nil {
		if v, err = srv.makeVolume(ctx, id, cfg); err != nil {
			return nil, err
		}
		srv.mu.Lock()
		srv.volumes[id] = v
		srv.mu.Unlock()
	}
	return v, v.configure(cfg)
}

func (v *volume) configure(cfg VolumeConfig) error {
	if cfg.BlockSize != v.blockSize {
		return refuse(syscall.EINVAL, "volume %s was made with blocks of %d bytes, not %d", v.id, v.blockSize, cfg.BlockSize)
	}
	cfg.InlineMax = min(cfg.InlineMax, meta.MaxInline, cfg.BlockSize)
	v.config.Store(&cfg)
	v.configured.Store(true)
	return nil
}

// makeVolume makes an empty file system.
func (srv *Server) makeVolume(ctx context.Context, id string, cfg VolumeConfig) (*volume, error) {
	uuid, err := parseUUID(id)
	if err != nil {
		return nil, refuse(syscall.EINVAL, "%v", err)
	}
	if cfg.BlockSize == 0 {
		return nil, refuse(syscall.EINVAL, "volume %s has no block size", id)
	}
	var v *volume
	last := (&volume{}).counterKey("v") // the highest number in use
	commit, err := srv.cfg.Engine.Update(ctx, [][]byte{last}, func(tx engine.Tx) error {
		num, err := (&volume{}).counter(tx, "v")
		if err != nil {
			return err
		}
		record := []byte{1}
		record = binary.BigEndian.AppendUint32(record, uint32(num+1))
		record = binary.BigEndian.AppendUint32(record, cfg.BlockSize)
		if v, err = srv.newVolume(id, record); err != nil {
			return err
		}
		if err := tx.Put(last, binary.BigEndian.AppendUint64(nil, uint64(num+1))); err != nil {
			return err
		}
		if err := tx.Put(volumeKey(uuid), record); err != nil {
			return err
		}
		return v.makeRoot(tx)
	})
	if err != nil {
		return nil, err
	}
	if err := commit.Wait(); err != nil {
		srv.fail(err)
		return nil, err
	}
	v.inodes = 1
	return v, nil
}

func (v *volume) makeRoot(tx engine.Tx) error {
	now := meta.TimeOf(time.Now())
	root := inode{Attr: meta.Attr{
		Mode: syscall.S_IFDIR | 0o755, Nlink: 2, Parent: meta.Root,
		Atime: now, Mtime: now, Ctime: now, Btime: now, Change: 1,
	}}
	if err := tx.Add(v.counterKey(counterInodes), 1); err != nil {
		return err
	}
	if err := tx.Put(v.counterKey(counterIno), binary.BigEndian.AppendUint64(nil, uint64(meta.Root+1))); err != nil {
		return err
	}
	return tx.Put(v.attrKey(meta.Root), root.encode())
}

// newIno returns an inode number that was never used.
func (v *volume) newIno(ctx context.Context) (meta.Ino, error) {
	v.leasing.Lock()
	defer v.leasing.Unlock()
	v.mu.Lock()
	ino, left := v.nextIno, v.nextIno < v.endIno
	v.nextIno++
	v.mu.Unlock()
	if left {
		return ino, nil
	}
	key := v.counterKey(counterIno)
	_, err := v.srv.cfg.Engine.Update(ctx, [][]byte{key}, func(tx engine.Tx) error {
		n, err := v.counter(tx, counterIno)
		ino = meta.Ino(n)
		if err != nil {
			return err
		}
		return tx.Put(key, binary.BigEndian.AppendUint64(nil, uint64(n+inoBatch)))
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		v.nextIno, v.endIno = 0, 0
		return 0, err
	}
	v.nextIno, v.endIno = ino+1, ino+inoBatch
	return ino, nil
}

// nextInos are the next inode numbers to be given out.
type nextInos struct{ ours, reserved int64 }

func (v *volume) nextInos(r engine.Reader) (next nextInos, err error) {
	if next.ours, err = v.counter(r, counterIno); err != nil {
		return next, err
	}
	next.reserved, err = v.counter(r, counterReserved)
	return next, err
}

// gave reports whether a number was given out.
func (n nextInos) gave(ino meta.Ino) bool {
	if ino >= firstReserved {
		return int64(ino) < n.reserved
	}
	return int64(ino) < n.ours
}

// reserve counts bytes and inodes, unless that would pass a limit.
func (v *volume) reserve(bytes, inodes int64) error {
	cfg := v.config.Load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if inodes > 0 && cfg.MaxInodes != 0 && v.inodes+inodes > int64(cfg.MaxInodes) {
		return refuse(syscall.ENOSPC, "the volume has its %d inodes", cfg.MaxInodes)
	}
	if bytes > 0 && cfg.MaxBytes != 0 && v.bytes+bytes > int64(cfg.MaxBytes) {
		return refuse(syscall.ENOSPC, "the volume has its %d bytes", cfg.MaxBytes)
	}
	v.bytes += bytes
	v.inodes += inodes
	return nil
}

// unreserve takes a reserve back.
func (v *volume) unreserve(bytes, inodes int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.bytes -= bytes
	v.inodes -= inodes
}

func (v *volume) statfs() meta.Statfs {
	cfg := v.config.Load()
	v.mu.Lock()
	defer v.mu.Unlock()
	return meta.Statfs{
		Bytes: uint64(max(v.bytes, 0)), MaxBytes: cfg.MaxBytes,
		Inodes: uint64(max(v.inodes, 0)), MaxInodes: cfg.MaxInodes,
	}
}
