package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"flexfs/admin"
	"flexfs/internal/tlspin"
	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/modes"
	"flexfs/store"
	"flexfs/store/seal"
)

// checkBlocks makes sure that every block that a file has is in the bucket, and
// undamaged, by asking the metadata service as a mount does. It starts servers that the test
// stopped.
func (c *Cluster) checkBlocks() error {
	if c.admin.ended() {
		c.RestartAdmin()
	}
	if c.meta.ended() {
		c.RestartMeta()
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	access := c.access
	access.Token = c.Token
	got, err := admin.Fetch(ctx, access.Client(), admin.Fetched[admin.MountSettings]{}, 0)
	if err != nil {
		return err
	}
	s := got.Settings
	bucket, err := modes.OpenBucket(ctx, s.BlockStore, c.log("check"))
	if err != nil {
		return err
	}
	volume, err := store.ParseVolume(s.Volume.ID)
	if err != nil {
		return err
	}
	client := meta.NewClient(meta.ClientConfig{
		Dial:  meta.Dial(s.Meta.Address, tlspin.ClientConfig(s.Meta.Pin)),
		Token: func() string { return s.Ticket }, Volume: s.Volume.ID, Name: "check", Log: c.log("check"),
	})
	if err := client.Connect(ctx); err != nil {
		return err
	}
	defer client.Close()
	c.objects = &objects{volume: volume, bucket: bucket}
	w := &walk{client: client, bucket: bucket, volume: volume}
	return w.dir(ctx, meta.Root, "")
}

// A walk goes through all files of a volume.
type walk struct {
	client *meta.Client
	bucket store.Store
	volume store.Volume
}

func (w *walk) dir(ctx context.Context, ino meta.Ino, path string) error {
	for after := ""; ; {
		r, err := w.client.Do(ctx, &meta.Request{Op: meta.OpReaddir, Ino: ino, Name: after, Limit: 1000, Plus: true})
		if err != nil {
			return fmt.Errorf("%s/: %w", path, err)
		}
		for _, e := range r.Entries {
			after = e.Name
			name := path + "/" + e.Name
			switch {
			case e.Attr.IsDir():
				err = w.dir(ctx, e.Attr.Ino, name)
			case e.Attr.IsRegular():
				err = w.file(ctx, e.Attr.Ino, name)
			}
			if err != nil {
				return err
			}
		}
		if r.EOF {
			return nil
		}
	}
}

func (w *walk) file(ctx context.Context, ino meta.Ino, name string) error {
	for index := uint32(0); ; {
		r, err := w.client.Do(ctx, &meta.Request{Op: meta.OpBlocks, Ino: ino, Index: index, Limit: 1000})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, b := range r.Blocks {
			index = b.Index + 1
			if b.Inline {
				continue
			}
			o := b.Object(ino)
			key := store.Key{Volume: w.volume, Ino: uint64(o.Ino), Index: o.Index, Gen: store.Gen(b.Gen)}
			data, err := w.bucket.Get(ctx, key, 0, -1)
			if err == nil {
				_, err = seal.Verify(key, data)
			}
			if err != nil {
				return fmt.Errorf("%s: block %v: %w", name, key, err)
			}
		}
		if r.EOF {
			return nil
		}
	}
}

// dirty returns the files of blocks below the folder of a proxy that has ended
// which it did not upload.
func dirty(folder string) (left []string, err error) {
	err = filepath.WalkDir(filepath.Join(folder, "dirty"), func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.Type().IsRegular() {
			left = append(left, name)
		}
		return err
	})
	return left, err
}

// checkTree verifies the metadata that the service left.
func (c *Cluster) checkTree() error {
	e, err := engine.OpenPebble(c.path("meta", "data"), engine.Options{})
	if err != nil {
		return err
	}
	defer e.Close()
	problems, err := tree.Check(context.Background(), e)
	if err == nil && len(problems) > 0 {
		err = fmt.Errorf("%d problems: %v", len(problems), problems)
	}
	if err != nil || c.objects == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.objects.engine = e
	report, err := c.objects.account(ctx)
	c.t.Log(report)
	return err
}
