package testcluster

import (
	"context"
	"fmt"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
	"flexfs/meta/tree"
	"flexfs/store"
)

// Account holds a volume's bucket against the metadata that an engine has, when
// nobody is at work any more: whatever is named must be there, and whatever is there
// must be explained. It removes what nothing names, and reports what it counted.
func Account(ctx context.Context, e engine.Engine, bucket store.Store, volume store.Volume) (report string, err error) {
	o := &objects{volume: volume, bucket: bucket, engine: e}
	return o.account(ctx)
}

// objects are those of a volume's bucket, to be held against the metadata when
// nobody is at work any more.
type objects struct {
	volume store.Volume
	bucket store.Store
	engine engine.Engine
}

// account makes sure that whatever a file or its past names is in the bucket, that
// the service would remove just what nothing names, by a scan that has nothing
// in common with the service's search, and that after it has done so all is there and
// nothing is left that nobody can explain. It returns what it counted.
func (o *objects) account(ctx context.Context) (report string, err error) {
	needed, err := o.references(ctx)
	if err != nil {
		return "", err
	}
	srv, err := tree.New(tree.Config{Engine: o.engine, Grace: time.Nanosecond, List: o.each, Delete: o.remove})
	if err != nil {
		return "", err
	}
	orphans := map[tree.BlockRef]bool{}
	found, err := srv.Reconcile(ctx, o.volume.String(), false, func(obj tree.Object) { orphans[obj.Ref] = true })
	if err != nil {
		return "", err
	}
	report = fmt.Sprintf("the bucket has %d objects: %d that something names, %d of sessions that may come back, %d of dead ones",
		found.Objects, found.Named, found.Held, found.Orphans)
	if err := o.compare(ctx, needed, orphans, found); err != nil {
		return report, err
	}
	if _, err := srv.Reconcile(ctx, o.volume.String(), true, nil); err != nil {
		return report, err
	}
	found.Orphans = 0
	if err := o.compare(ctx, needed, nil, found); err != nil {
		return report, fmt.Errorf("after what nothing names was removed: %w", err)
	}
	return report, nil
}

// compare holds the objects against those that are needed; orphans are those that
// the service takes for not needed.
func (o *objects) compare(ctx context.Context, needed map[tree.BlockRef]tree.Naming, orphans map[tree.BlockRef]bool, found tree.Reconciled) error {
	there := map[tree.BlockRef]bool{}
	var free int64
	err := o.each(ctx, "", func(obj tree.Object) error {
		there[obj.Ref] = true
		if needed[obj.Ref] == 0 {
			free++
		} else if orphans[obj.Ref] {
			return fmt.Errorf("object %v, which %v names, would be removed", obj.Ref, needed[obj.Ref])
		}
		return nil
	})
	if err != nil {
		return err
	}
	for ref, why := range needed {
		if !there[ref] && why != tree.InDelete {
			return fmt.Errorf("object %v, which %v names, is not in the bucket", ref, why)
		}
	}
	if explained := found.Held + found.Orphans; free > explained || found.Strange > 0 {
		return fmt.Errorf("%d objects of the bucket are named by nothing, %d of them are of sessions that may come back or have ended, %d are strange",
			free, explained, found.Strange)
	}
	return nil
}

// references returns which objects the metadata names.
func (o *objects) references(ctx context.Context) (map[tree.BlockRef]tree.Naming, error) {
	needed := map[tree.BlockRef]tree.Naming{}
	err := tree.References(ctx, o.engine, func(volume string, ref tree.BlockRef, why tree.Naming) error {
		if volume == o.volume.String() && (needed[ref] == 0 || why < needed[ref]) {
			needed[ref] = why
		}
		return nil
	})
	return needed, err
}

func (o *objects) each(ctx context.Context, _ string, fn func(tree.Object) error) error {
	return store.List(ctx, o.bucket, o.volume, func(l store.Listed) error {
		ref := tree.BlockRef{Ino: meta.Ino(l.Key.Ino), Index: l.Key.Index, Gen: meta.Gen(l.Key.Gen)}
		return fn(tree.Object{Ref: ref, Size: l.Size, Modified: l.Modified})
	})
}

func (o *objects) remove(ctx context.Context, _ string, refs []tree.BlockRef) error {
	keys := make([]store.Key, len(refs))
	for i, ref := range refs {
		keys[i] = store.Key{Volume: o.volume, Ino: uint64(ref.Ino), Index: ref.Index, Gen: store.Gen(ref.Gen)}
	}
	return store.DeleteAll(ctx, o.bucket, keys)
}
