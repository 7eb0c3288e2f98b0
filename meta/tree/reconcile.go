package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// An Object is what a bucket has in the name of a block.
type Object struct {
	Ref      BlockRef
	Size     int64     // bytes, as stored
	Modified time.Time // by the bucket's clock
}

// A Reconciled tells what the objects of a volume's bucket are.
type Reconciled struct {
	Objects, Bytes        int64 // all of them
	Young                 int64 // put less than a grace ago, so not looked at
	Held                  int64 // written by sessions that are alive, which may still commit them
	Named                 int64 // by files, by the past, or by what is going to delete them
	Strange               int64 // of a session or inode that was never given out: they stay
	Orphans, OrphanBytes  int64 // that nothing names
	Removed, RemovedBytes int64 // of the orphans
}

// ErrNoVolume is wrapped by the error of a Reconcile of a volume that the database
// does not have: nobody mounted it yet.
var ErrNoVolume = errors.New("there is no such volume in the database")

// examineStep is how many objects are looked at in one state of the engine.
const examineStep = 1000

// maxSuspects bounds the objects that no file names and that are remembered until
// it is known that nothing is going to delete them anyway: some 5 MiB.
const maxSuspects = 50_000

// examinePause is what a search rests after every examineStep objects, so that
// others get on.
const examinePause = 5 * time.Millisecond

// Reconcile looks for objects in a volume's bucket that nothing names: what a
// client wrote and never made part of a file because it died. With remove it
// deletes them. show, if not nil, is called for each.
//
// An object is only taken for one of those if the session that wrote it has
// ended, as a commit may name only versions of its own session; if it was put a
// grace ago; if no record of its block, of now or of the past, names it; and if
// the delayed work is not going to delete it. What is found so can never be
// named again.
func (srv *Server) Reconcile(ctx context.Context, volume string, remove bool, show func(Object)) (Reconciled, error) {
	srv.mu.Lock()
	v := srv.volumes[volume]
	srv.mu.Unlock()
	if v == nil {
		return Reconciled{}, fmt.Errorf("tree: reconcile volume %s: %w", volume, ErrNoVolume)
	}
	if srv.cfg.List == nil {
		return Reconciled{}, fmt.Errorf("tree: reconcile: %w", errors.ErrUnsupported)
	}
	w := &sweep{v: v, remove: remove, show: show, since: time.Now().Add(-srv.cfg.Grace)}
	err := srv.cfg.List(ctx, volume, func(o Object) error { return w.see(ctx, o) })
	if err == nil {
		err = w.examine(ctx)
	}
	if err == nil {
		err = w.conclude(ctx)
	}
	if err != nil {
		err = fmt.Errorf("tree: reconcile volume %s: %w", volume, err)
	}
	return w.out, err
}

// A sweep is one search for objects that nothing names.
type sweep struct {
	v      *volume
	remove bool
	show   func(Object)
	since  time.Time // what was put later is young

	batch    []Object // to be examined
	suspects []Object // no record names them
	out      Reconciled
}

// see takes an object of the listing.
func (w *sweep) see(ctx context.Context, o Object) error {
	w.out.Objects++
	w.out.Bytes += o.Size
	switch {
	case o.Modified.After(w.since):
		w.out.Young++
	case w.v.alive(o.Ref.Gen.Session):
		w.out.Held++
	default:
		w.batch = append(w.batch, o)
	}
	if w.out.Objects%examineStep != 0 && len(w.batch) < examineStep {
		return nil
	}
	if err := w.examine(ctx); err != nil {
		return err
	}
	if len(w.suspects) >= maxSuspects {
		if err := w.conclude(ctx); err != nil {
			return err
		}
	}
	return rest(ctx, examinePause)
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// alive tells whether a session may still commit what it wrote.
func (v *volume) alive(session uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sessions[session] != nil
}

// examine looks for records that name the objects of the batch.
func (w *sweep) examine(ctx context.Context) error {
	if len(w.batch) == 0 {
		return nil
	}
	batch := w.batch
	w.batch = nil
	return w.v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		lastSession, err := w.v.counter(r, counterSession)
		if err != nil {
			return err
		}
		next, err := w.v.nextInos(r)
		if err != nil {
			return err
		}
		for _, o := range batch {
			if o.Ref.Gen.Session > uint64(lastSession) || !next.gave(o.Ref.Ino) {
				w.out.Strange++ // an older copy of the database was put back, it seems
				continue
			}
			named, err := w.v.needed(r, o.Ref)
			if err != nil {
				return err
			}
			if named {
				w.out.Named++
			} else {
				w.suspects = append(w.suspects, o)
			}
		}
		return nil
	})
}

// needed tells whether something names an object: the record of its block, as it
// is or as it was in the past that is kept, or, if it was cloned, anything that is
// counted. Delayed work may name it all the same.
func (v *volume) needed(r engine.Reader, ref BlockRef) (bool, error) {
	body, err := v.bodyOf(r, ref.Ino)
	if err != nil {
		return false, err
	}
	key := v.blockKey(ref.Ino, body, ref.Index)
	b, err := r.Get(key)
	if err != nil {
		return false, err
	}
	if b != nil {
		if named, err := isObject(ref, b); named || err != nil {
			return named, err
		}
	}
	if b, err = r.Get(v.sharedKey(ref)); b != nil || err != nil {
		return b != nil, err
	}
	past := append(append(v.key(tableHistory), key[4:]...), 0)
	named := false
	err = r.Scan(past, after(past), false, func(_, value []byte) (bool, error) {
		if len(value) == 0 {
			return false, errValue
		}
		if value[0] == 1 {
			named, err = isObject(ref, value[1:])
		}
		return !named, err
	})
	return named, err
}

// bodyOf returns which body an inode has, 0 if it is gone.
func (v *volume) bodyOf(r engine.Reader, ino meta.Ino) (uint32, error) {
	b, err := r.Get(v.attrKey(ino))
	if b == nil || err != nil {
		return 0, err
	}
	in, err := decodeInode(ino, b)
	if err != nil {
		return 0, err
	}
	return in.body, nil
}

// isObject tells whether a record of the block that an object was made for names
// it.
func isObject(ref BlockRef, record []byte) (bool, error) {
	k, err := decodeBlock(ref.Index, record)
	return err == nil && !k.Inline && refOf(ref.Ino, k) == ref, err
}

// conclude removes the suspects, except those that delayed work names.
func (w *sweep) conclude(ctx context.Context) error {
	if len(w.suspects) == 0 {
		return nil
	}
	due, err := w.due(ctx)
	if err != nil {
		return err
	}
	var orphans []Object
	for _, o := range w.suspects {
		if due[o.Ref] {
			w.out.Named++
			continue
		}
		w.out.Orphans++
		w.out.OrphanBytes += o.Size
		orphans = append(orphans, o)
		if w.show != nil {
			w.show(o)
		}
	}
	w.suspects = nil
	if !w.remove {
		return nil
	}
	for some := range slices.Chunk(orphans, refsPerRecord) {
		if err := w.removeObjects(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

func (w *sweep) removeObjects(ctx context.Context, list []Object) error {
	var refs []BlockRef
	var bytes int64
	for _, o := range list {
		refs = append(refs, o.Ref)
		bytes += o.Size
	}
	if err := w.v.deleteBlocks(ctx, refs); err != nil {
		return err
	}
	w.out.Removed += int64(len(list))
	w.out.RemovedBytes += bytes
	return nil
}

// due returns which of the suspects delayed work is going to delete.
func (w *sweep) due(ctx context.Context) (map[BlockRef]bool, error) {
	suspect := make(map[BlockRef]bool, len(w.suspects))
	for _, o := range w.suspects {
		suspect[o.Ref] = false
	}
	err := w.v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		return w.v.eachDelayedBlock(r, func(ref BlockRef) {
			if _, ok := suspect[ref]; ok {
				suspect[ref] = true
			}
		})
	})
	return suspect, err
}

// eachDelayedBlock calls fn for each object that delayed work is going to delete.
func (v *volume) eachDelayedBlock(r engine.Reader, fn func(BlockRef)) error {
	prefix := v.key(tableDelayed)
	return r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
		body := key[len(prefix):]
		if len(body) < 9 {
			return false, errValue
		}
		var refs []BlockRef
		var err error
		switch {
		case body[8] == delayedBlocks && len(body) == 27:
			refs, err = decodeRefs(meta.Ino(binary.BigEndian.Uint64(body[9:])), value)
		case body[8] == delayedCloned:
			refs, err = decodeCloned(value)
		case body[8] == delayedBody:
			var s shedBody
			if s, err = decodeShed(body[9:], value); err == nil {
				err = v.eachObject(r, s, func(ref BlockRef) error { fn(ref); return nil })
			}
		}
		for _, ref := range refs {
			fn(ref)
		}
		return true, err
	})
}

// reconcileAll reconciles from time to time. Servers that start together do not
// do it together.
func (srv *Server) reconcileAll(ctx context.Context) {
	if srv.cfg.List == nil || srv.cfg.Reconcile < 0 {
		return
	}
	pause := srv.cfg.Reconcile / 24
	for {
		if rest(ctx, pause/2+rand.N(pause)) != nil {
			return
		}
		for _, v := range srv.list() {
			srv.reconcile(ctx, v)
		}
		pause = srv.cfg.Reconcile
	}
}

func (srv *Server) reconcile(ctx context.Context, v *volume) {
	log := srv.cfg.Log.With("volume", v.id)
	out, err := srv.Reconcile(ctx, v.id, true, nil)
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, errors.ErrUnsupported):
		log.Info("this bucket cannot be listed: what dead mounts left in it stays")
		return
	case err != nil:
		log.Warn("what dead mounts left in the bucket stays for now", "err", err)
	}
	log.Info("looked for objects that nothing names", "objects", out.Objects, "bytes", out.Bytes,
		"removed", out.Removed, "removed_bytes", out.RemovedBytes)
	if out.Strange > 0 {
		log.Warn("the bucket has objects of sessions or inodes that this database never gave out; they stay. Was an older copy of the database put back?", "objects", out.Strange)
	}
}
