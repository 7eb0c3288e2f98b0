package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// Run ends sessions whose leases have ended and removes what nobody needs any
// more, until ctx is done or the engine fails, whose error it returns then: the
// process should end.
func (srv *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { srv.collectAll(ctx) })
	wg.Go(func() { srv.reconcileAll(ctx) })
	tick := time.NewTicker(min(srv.cfg.Lease/4, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-srv.broken:
			return fmt.Errorf("tree: the engine failed: %w", srv.brokenWith)
		case <-tick.C:
		}
		srv.expire()
		for _, v := range srv.list() {
			for _, s := range v.full() {
				wg.Go(func() { v.trim(ctx, s) })
			}
		}
	}
}

// busyPause is what the collector rests between two rounds while there is work
// left.
const busyPause = 100 * time.Millisecond

// collectAll collects from time to time. It starts when those who were there
// before the server have had their time to say what they have in use.
func (srv *Server) collectAll(ctx context.Context) {
	pause := srv.cfg.Lease * 9 / 8
	for {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = time.Second
		if srv.collect(ctx) {
			pause = busyPause
		}
	}
}

func (srv *Server) list() []*volume {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	var all []*volume
	for _, v := range srv.volumes {
		all = append(all, v)
	}
	return all
}

// expire ends the sessions whose leases have ended.
func (srv *Server) expire() {
	for _, v := range srv.list() {
		v.mu.Lock()
		var late []*session
		for _, s := range v.sessions {
			if time.Now().After(s.leaseEnd()) {
				late = append(late, s)
			}
		}
		v.mu.Unlock()
		for _, s := range late {
			v.lapse(s)
		}
	}
}

// collect does the delayed work that is due, of each volume a bounded part, and
// tells whether it left some.
func (srv *Server) collect(ctx context.Context) (more bool) {
	for _, v := range srv.list() {
		if cfg, err := srv.cfg.Volumes(v.id); err == nil {
			if err := v.configure(cfg); err != nil {
				srv.cfg.Log.Error("settings of a volume are not usable", "volume", v.id, "err", err)
			}
		}
		if !v.configured.Load() { // how long the past is kept is not known
			continue
		}
		left, err := v.collect(ctx)
		if err != nil && ctx.Err() == nil {
			srv.cfg.Log.Warn("garbage stays for now", "volume", v.id, "err", err) // the next round finds it again
		}
		more = more || left && err == nil
	}
	return more
}

// A task is a piece of delayed work.
type task struct {
	key, value []byte
	kind       byte
}

// tasksPerRound bounds the delayed work of a volume that is read at a time.
const tasksPerRound = 2000

// collectTime is how long a volume's delayed work is done before others get on.
const collectTime = time.Second

// collect does the delayed work that is due, until it is done or time is over.
func (v *volume) collect(ctx context.Context) (more bool, err error) {
	if err := v.thaw(ctx); err != nil {
		return false, err
	}
	for end := time.Now().Add(collectTime); time.Now().Before(end); {
		tasks, err := v.due(ctx)
		if err != nil || len(tasks) == 0 {
			return false, err
		}
		if err := v.work(ctx, tasks, end); err != nil {
			return false, err
		}
	}
	return true, nil
}

// due returns delayed work whose time has come, in the order of time.
func (v *volume) due(ctx context.Context) ([]task, error) {
	prefix := v.key(tableDelayed)
	to := binary.BigEndian.AppendUint64(slices.Clone(prefix), uint64(v.now()))
	var tasks []task
	err := v.srv.cfg.Engine.View(ctx, func(r engine.Reader) (err error) {
		tasks, err = tasksIn(r, prefix, to)
		return err
	})
	return tasks, err
}

// tasksIn returns delayed work, in the order of its keys.
func tasksIn(r engine.Reader, from, to []byte) (tasks []task, err error) {
	err = r.Scan(from, to, false, func(key, value []byte) (bool, error) {
		if len(key) < 14 {
			return false, fmt.Errorf("tree: key of delayed work: %w", errValue)
		}
		tasks = append(tasks, task{slices.Clone(key), slices.Clone(value), key[13]})
		return len(tasks) < tasksPerRound, nil
	})
	return tasks, err
}

// work does tasks, those that are left at end not: history first, as what it needs is deleted only after it, and
// blocks of several at once, as one request deletes many.
func (v *volume) work(ctx context.Context, tasks []task, end time.Time) error {
	var history []task
	for _, t := range tasks {
		if t.kind == delayedHistory {
			history = append(history, t)
		}
	}
	if len(history) > 0 {
		if err := v.purge(ctx, history); err != nil {
			return err
		}
	}
	var refs []BlockRef
	var done [][]byte
	var bodies, inodes, trees []task
	for _, t := range tasks {
		if time.Now().After(end) {
			break
		}
		body := t.key[14:] // after the volume, table, due and kind
		switch {
		case (t.kind == delayedBlocks || t.kind == delayedCloned) && len(body) == 18:
			more, err := t.refs()
			if err != nil {
				return err
			}
			more, counts, err := v.letGo(ctx, t, more)
			if err != nil {
				return err
			}
			if len(refs)+len(more) > refsPerRecord && len(refs) > 0 {
				if err := v.finishDeletes(ctx, refs, done); err != nil {
					return err
				}
				refs, done = nil, nil
			}
			refs = append(refs, more...)
			done = append(append(done, counts...), t.key)
		case t.kind == delayedHistory:
		case t.kind == delayedBody && len(body) == 12:
			bodies = append(bodies, t)
		case t.kind == delayedInode && len(body) == 8:
			inodes = append(inodes, t)
		case t.kind == delayedTree && len(body) == 8:
			trees = append(trees, t)
		default:
			return fmt.Errorf("tree: delayed work %q: %w", t.kind, errValue)
		}
	}
	if err := v.finishDeletes(ctx, refs, done); err != nil {
		return err
	}
	err := v.together(bodies, func(t task) error { return v.collectBody(ctx, t, end) })
	if err != nil {
		return err
	}
	err = v.together(inodes, func(t task) error { return v.collectInode(ctx, t.key, t.ino(), end) })
	if err != nil {
		return err
	}
	return v.together(trees, func(t task) error { return v.takeAllApart(ctx, t.key, t.ino(), end) })
}

// workers is how many tasks are done at a time that wait for stable storage and for
// the bucket: they wait together.
const workers = 16

// together does tasks that are of one inode each.
func (v *volume) together(tasks []task, do func(task) error) error {
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	slots := make(chan struct{}, workers)
	for _, t := range tasks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(t); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = errors.Join(failed, err)
			}
		})
	}
	wg.Wait()
	return failed
}

// ino returns the inode that a task is of.
func (t *task) ino() meta.Ino { return meta.Ino(binary.BigEndian.Uint64(t.key[14:])) }

// refs returns the objects that a task is about.
func (t *task) refs() ([]BlockRef, error) {
	if t.kind == delayedCloned {
		return decodeCloned(t.value)
	}
	return decodeRefs(meta.Ino(binary.BigEndian.Uint64(t.key[14:])), t.value)
}

// letGo ends the references of a task, and returns the objects that nothing
// names any more and the keys of their counts. The task is left with those.
func (v *volume) letGo(ctx context.Context, t task, refs []BlockRef) (last []BlockRef, counts [][]byte, err error) {
	if shared, err := v.anyShared(ctx, refs); err != nil || !shared {
		return refs, nil, err
	}
	form := appendRef
	if t.kind == delayedCloned {
		form = appendCloned
	}
	last, err = v.unshare(ctx, refs, func(tx engine.Tx, last []BlockRef) error {
		if len(last) == 0 {
			return tx.Delete(t.key)
		}
		var value []byte
		for _, r := range last {
			value = form(value, r)
		}
		return tx.Put(t.key, value)
	})
	return last, v.counts(last), err
}

// counts returns the keys of the counts of objects that may have one.
func (v *volume) counts(refs []BlockRef) [][]byte {
	var keys [][]byte
	for _, r := range refs {
		keys = append(keys, v.sharedKey(r))
	}
	return keys
}

// finishDeletes deletes blocks and then the records that asked for it. What
// was deleted is not asked for again after a crash.
func (v *volume) finishDeletes(ctx context.Context, refs []BlockRef, done [][]byte) error {
	if err := v.deleteBlocks(ctx, refs); err != nil || len(done) == 0 {
		return err
	}
	commit, err := v.srv.cfg.Engine.Update(ctx, nil, func(tx engine.Tx) error {
		for _, key := range done {
			if err := tx.Delete(key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(refs) == 0 {
		return err
	}
	return v.srv.durable(commit)
}

func (v *volume) deleteBlocks(ctx context.Context, refs []BlockRef) error {
	if len(refs) == 0 {
		return nil
	}
	if v.srv.cfg.Delete == nil {
		return errors.New("tree: nothing deletes blocks")
	}
	if err := v.srv.cfg.Delete(ctx, v.id, refs); err != nil {
		return fmt.Errorf("tree: delete %d blocks: %w", len(refs), err)
	}
	return nil
}

// collectInode removes an inode without a name, in steps, unless it is in use. What
// is left at end is for the next round.
func (v *volume) collectInode(ctx context.Context, key []byte, ino meta.Ino, end time.Time) error {
	dying, condemned, err := v.condemn(ctx, key, ino)
	for err == nil && dying && time.Now().Before(end) {
		var records []record
		if records, err = v.someRecords(ctx, append(v.inoKey(ino), ofBlock), append(v.inoKey(ino), ofBody+1)); err != nil {
			return err
		}
		if len(records) == 0 {
			return v.erase(ctx, key, ino)
		}
		if err = v.srv.durable(condemned); err == nil { // before its blocks go: nobody may have it again
			err = v.collectBlocks(ctx, ino, records)
		}
	}
	return err
}

// A record is that of a block.
type record struct {
	key   []byte
	block *meta.Block
}

// collectBlocks removes blocks of an inode that nobody may have again.
func (v *volume) collectBlocks(ctx context.Context, ino meta.Ino, records []record) error {
	var refs []BlockRef
	keys := make(map[BlockRef][]byte) // of the records that name them
	var done [][]byte
	for _, rec := range records {
		if rec.block.Inline {
			done = append(done, rec.key)
			continue
		}
		r := refOf(ino, rec.block)
		if keys[r] != nil {
			break // cloned within the file: the next round finds it
		}
		refs = append(refs, r)
		keys[r] = rec.key
	}
	shared, err := v.anyShared(ctx, refs)
	if err != nil {
		return err
	}
	if shared {
		last, err := v.unshare(ctx, refs, func(tx engine.Tx, last []BlockRef) error {
			for _, r := range refs {
				if !slices.Contains(last, r) {
					if err := tx.Delete(keys[r]); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		refs = last
		done = append(done, v.counts(last)...)
	}
	for _, r := range refs {
		done = append(done, keys[r])
	}
	return v.finishDeletes(ctx, refs, done)
}

// condemn marks an inode as being removed. If it has a name again, is in use, is
// part of the past or a directory that is not taken apart yet, it is not, and its
// task is done or delayed.
func (v *volume) condemn(ctx context.Context, key []byte, ino meta.Ino) (dying bool, commit engine.Commit, err error) {
	commit, err = v.srv.cfg.Engine.Update(ctx, [][]byte{v.inoKey(ino)}, func(tx engine.Tx) error {
		b, err := tx.Get(v.attrKey(ino))
		if err != nil {
			return err
		}
		if b == nil {
			return tx.Delete(key)
		}
		in, err := decodeInode(ino, b)
		if err != nil {
			return err
		}
		if in.Nlink > 0 {
			return tx.Delete(key)
		}
		if !in.dead && (v.inUse(ino) || in.IsDir() && in.Size > 0) {
			if err := tx.Delete(key); err != nil {
				return err
			}
			return tx.Put(v.delayedInodeKey(v.keep(v.now()), ino), nil)
		}
		if !in.dead {
			last, err := v.lastChange(tx, v.attrKey(ino))
			if err != nil {
				return err
			}
			if last != 0 { // it had a name again meanwhile, or was written to
				if err := tx.Delete(key); err != nil {
					return err
				}
				due := max(v.keep(last), v.now()+ceilSeconds(v.srv.cfg.Keep))
				return tx.Put(v.delayedInodeKey(due, ino), nil)
			}
		}
		in.dead, dying = true, true
		return tx.Put(v.attrKey(ino), in.encode())
	})
	return dying && err == nil, commit, err
}

// lastChange returns the latest second of the history of a key, 0 if it has none.
func (v *volume) lastChange(r engine.Reader, key []byte) (second int64, err error) {
	err = r.Scan(historyOf(key), historyAfter(key), true, func(hkey, _ []byte) (bool, error) {
		var err error
		_, second, err = splitHistory(hkey)
		return false, err
	})
	return second, err
}

// someRecords returns block records, in the order of their keys.
func (v *volume) someRecords(ctx context.Context, from, to []byte) (records []record, err error) {
	err = v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		return r.Scan(from, to, false, func(key, value []byte) (bool, error) {
			k, err := decodeBlock(indexOf(key), value)
			if err != nil {
				return false, err
			}
			records = append(records, record{slices.Clone(key), k})
			return len(records) < refsPerRecord, nil
		})
	})
	return records, err
}

// erase removes what is left of an inode.
func (v *volume) erase(ctx context.Context, key []byte, ino meta.Ino) error {
	prefix := v.inoKey(ino)
	_, err := v.srv.cfg.Engine.Update(ctx, [][]byte{prefix}, func(tx engine.Tx) error {
		// Its attributes and a few more: many small range deletions make an engine slow.
		var keys [][]byte
		err := tx.Scan(prefix, after(prefix), false, func(k, _ []byte) (bool, error) {
			keys = append(keys, slices.Clone(k))
			return true, nil
		})
		if err != nil {
			return err
		}
		for _, k := range append(keys, key) {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	v.changes.Add(1)
	v.mu.Lock()
	defer v.mu.Unlock()
	for s := range v.holders[ino] {
		delete(s.holds, ino)
	}
	delete(v.holders, ino)
	delete(v.left, ino)
	return nil
}
