package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"flexfs/store"
	"flexfs/store/seal"
)

// scan completes the index with the files that are there, without reading them.
// It reports false if the Disk was closed meanwhile.
func (d *Disk) scan() bool {
	if !d.scanDirty() {
		return false
	}
	var found []*entry
	for i := range fanout {
		dir := fmt.Sprintf("%s/%02x", cleanName, i)
		entries, ok := d.list(dir)
		if !ok {
			return false
		}
		found = d.enter(dir, entries, cleanFile, found)
	}
	// What was used last is evicted last.
	byTime(found)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range found {
		if d.index[e.key] == e && e.queue == nowhere && !e.inDirty {
			d.fifo.push(main, e)
		}
	}
	d.removed = nil           // nothing is written before the scan is over: none of them came back
	d.limits.at = time.Time{} // it depends on what is used
	return true
}

// scanDirty is scan for dirty blocks. What is damaged only takes room.
func (d *Disk) scanDirty() bool {
	damaged, ok := d.list(damagedName)
	if !ok {
		return false
	}
	d.countDamaged(damaged)
	entries, ok := d.list(dirtyName)
	if !ok {
		return false
	}
	found := d.enter(dirtyName, entries, dirtyFile, nil)
	byTime(found)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range found {
		if d.index[e.key] == e && e.inDirty && !e.bad && (e.queue == nowhere || e.queue == dirty) {
			d.fifo.remove(e) // if it is there already, out of order
			d.fifo.push(dirty, e)
		}
	}
	if l := &d.fifo.lists[dirty]; l.len > 0 {
		d.cfg.Log.Info("blocks of an earlier run wait to be uploaded", "folder", d.cfg.Dir, "blocks", l.len, "bytes", l.bytes)
	}
	return true
}

func byTime(found []*entry) {
	slices.SortStableFunc(found, func(a, b *entry) int { return cmp.Compare(a.stamped, b.stamped) })
}

func (d *Disk) countDamaged(entries []fs.DirEntry) {
	for _, file := range entries {
		if info, err := file.Info(); err == nil {
			d.mu.Lock()
			d.used += charge(info.Size())
			d.mu.Unlock()
		}
	}
}

// list returns what is in a folder. It reports false if the Disk was closed.
func (d *Disk) list(dir string) (entries []fs.DirEntry, ok bool) {
	for {
		select {
		case <-d.closing:
			return nil, false
		default:
		}
		entries, err := d.files.list(dir)
		if err == nil {
			return entries, true
		}
		// Files that nobody counts would break the quota: no way round.
		d.mu.Lock()
		d.hurt("list", err)
		d.mu.Unlock()
		if !d.sleep(minPause) {
			return nil, false
		}
	}
}

func (d *Disk) sleep(pause time.Duration) bool {
	select {
	case <-d.closing:
		return false
	case <-time.After(pause):
		return true
	}
}

// enter indexes the files of one folder, which are named by name, and appends
// their entries to found.
func (d *Disk) enter(dir string, entries []fs.DirEntry, name func(store.Key) string, found []*entry) []*entry {
	for _, file := range entries {
		key, ok := parseName(dir, file.Name(), name)
		if !ok || !file.Type().IsRegular() {
			d.stranger(dir + "/" + file.Name())
			continue
		}
		info, err := file.Info()
		if err != nil {
			continue // removed meanwhile
		}
		if dir == dirtyName && info.Size() > seal.MaxSealed {
			d.stranger(dir + "/" + file.Name())
			continue
		}
		if e := d.enterFile(key, info, dir == dirtyName); e != nil {
			found = append(found, e)
		}
	}
	return found
}

// enterFile returns the entry of a file, which may have been adopted.
func (d *Disk) enterFile(key store.Key, info fs.FileInfo, inDirty bool) *entry {
	d.mu.Lock()
	e := d.index[key]
	held := d.busy[key] != nil || e == nil && d.removed[key]
	if e == nil && !held {
		e = d.admit(key, info.Size(), info.ModTime().Unix(), inDirty)
	}
	if held || inDirty || !e.inDirty {
		d.mu.Unlock()
		return e
	}
	// The same block is in both folders: a crash undid that the copy was removed
	// when the block became dirty.
	h := d.hold(key)
	d.mu.Unlock()
	d.removeCopy(e, h, info.Size())
	return e
}

// removeCopy removes the clean file of a block that is dirty, and ends the hold.
func (d *Disk) removeCopy(e *entry, h *hold, size int64) {
	err := d.files.remove(cleanFile(e.key))
	d.mu.Lock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.hurt("remove", err)
		d.used += charge(size) // until the next start
	}
	forgotten := h.forgotten
	if forgotten {
		e.bad = true
		delete(d.index, e.key)
		d.fifo.remove(e)
	} else {
		d.end(e.key, h)
	}
	d.mu.Unlock()
	if forgotten {
		d.expel(e, h)
	}
}

// stranger says once that there are files which are not ours, and are not
// counted.
func (d *Disk) stranger(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.unknown && name != probeName {
		d.unknown = true
		d.cfg.Log.Warn("the folder of the disk cache has other files, which are left alone", "folder", d.cfg.Dir, "one", name)
	}
}

// admit indexes a file that was there. d.mu must be held.
func (d *Disk) admit(key store.Key, size, stamped int64, inDirty bool) *entry {
	e := &entry{key: key, size: size, stamped: stamped, used: stamped, bad: size > seal.MaxSealed, inDirty: inDirty}
	d.index[key] = e
	d.used += charge(size)
	return e
}

// adopt indexes the block's file, if there is one, while the scan has not come
// to it yet.
func (d *Disk) adopt(ctx context.Context, key store.Key) {
	var size, stamped int64
	var inDirty bool
	var err error
	if !d.guard(ctx, func() {
		size, stamped, err = d.files.stat(dirtyFile(key))
		if inDirty = err == nil; !inDirty {
			size, _, err = d.files.stat(cleanFile(key))
			stamped = now() // it is being used
		}
	}) || err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.index[key] == nil && d.busy[key] == nil && !d.removed[key] && !d.isScanned() {
		e := d.admit(key, size, stamped, inDirty)
		if inDirty && !e.bad {
			d.fifo.push(dirty, e)
		}
	}
}

func (d *Disk) isScanned() bool {
	select {
	case <-d.scanned:
		return true
	default:
		return false
	}
}
