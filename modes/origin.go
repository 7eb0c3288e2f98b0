package modes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"flexfs/admin"
	"flexfs/store"
	"flexfs/store/dir"
	"flexfs/store/s3"
)

// How many operations on blocks a process has under way; each may hold one in
// memory.
const originRequests = 64

// openOrigin is OpenBucket with a limit. A bucket repeats what failed by itself.
func openOrigin(ctx context.Context, b admin.BlockStore, log *slog.Logger) (store.Store, error) {
	s, err := OpenBucket(ctx, b, log)
	if err != nil {
		return nil, err
	}
	return store.Limit(s, originRequests), nil
}

// OpenBucket opens the bucket of a block store. Its errors say what is wrong
// with it.
func OpenBucket(ctx context.Context, b admin.BlockStore, log *slog.Logger) (s store.Store, err error) {
	switch b.APICode {
	case "dir":
		s, err = openFolder(b)
	case "s3":
		s, err = s3.Open(ctx, s3.Config{
			Bucket: b.Bucket, Prefix: b.Prefix, Region: b.RegionCode, Endpoint: b.Address,
			AccessKey: b.Username, SecretKey: b.Password, Log: log,
		})
	default:
		err = fmt.Errorf("apiCode %q is not known to this version: it knows s3 and dir", b.APICode)
	}
	if err != nil {
		return nil, fmt.Errorf("block store %d: %w", b.ID, err)
	}
	return s, nil
}

func openFolder(b admin.BlockStore) (store.Store, error) {
	info, err := os.Stat(b.Bucket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("folder %s does not exist on this machine: create it, or mount what it is on", b.Bucket)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is not a folder", b.Bucket)
	}
	path := filepath.Join(b.Bucket, b.Prefix)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return dir.Open(path)
}

// origins are the buckets of several volumes: a [store.Store] that goes by the
// key's volume. A bucket is opened when it is first needed.
type origins struct {
	log *slog.Logger

	mu      sync.Mutex
	volumes map[store.Volume]admin.BlockStore
	buckets map[admin.BlockStore]*bucket
}

// A bucket is opened by the first who needs it; while that fails, by the next.
type bucket struct {
	mu    sync.Mutex
	store store.Store // nil: not open yet
}

// update replaces the volumes. Buckets that stay in use stay open.
func (o *origins) update(list []admin.VolumeSettings) {
	volumes := map[store.Volume]admin.BlockStore{}
	buckets := map[admin.BlockStore]*bucket{}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, v := range list {
		id, err := store.ParseVolume(v.Volume.ID)
		if err != nil {
			continue // admin makes the ids
		}
		volumes[id] = v.BlockStore
		if buckets[v.BlockStore] = o.buckets[v.BlockStore]; buckets[v.BlockStore] == nil {
			buckets[v.BlockStore] = new(bucket)
		}
	}
	o.volumes, o.buckets = volumes, buckets
}

// known returns an error if the volume is not among those of the last update.
func (o *origins) known(volume store.Volume) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.volumes[volume]; !ok {
		return fmt.Errorf("volume %v is not served here", volume)
	}
	return nil
}

// of returns the bucket of a volume.
func (o *origins) of(ctx context.Context, volume store.Volume) (store.Store, error) {
	o.mu.Lock()
	settings, ok := o.volumes[volume]
	b := o.buckets[settings]
	o.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("volume %v is not served here", volume)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.store == nil {
		s, err := openOrigin(ctx, settings, o.log)
		if err != nil {
			return nil, err
		}
		b.store = s
	}
	return b.store, nil
}

func (o *origins) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	s, err := o.of(ctx, key.Volume)
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, key, off, n)
}

func (o *origins) Put(ctx context.Context, key store.Key, data []byte) error {
	s, err := o.of(ctx, key.Volume)
	if err != nil {
		return err
	}
	return s.Put(ctx, key, data)
}

func (o *origins) Delete(ctx context.Context, key store.Key) error {
	s, err := o.of(ctx, key.Volume)
	if err != nil {
		return err
	}
	return s.Delete(ctx, key)
}

// GetFrames passes the question on.
func (o *origins) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	s, err := o.of(ctx, key.Volume)
	if err != nil {
		return nil, nil, err
	}
	return store.GetFrames(ctx, s, key, off, n)
}
