package cache

import (
	"context"
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
	var found []*entry
	for i := range fanout {
		dir := fmt.Sprintf("%02x", i)
		for {
			entries, err := d.files.list(dir)
			if err == nil {
				found = d.enter(dir, entries, found)
				break
			}
			// Files that nobody counts would break the quota: no way round.
			d.mu.Lock()
			d.hurt("list", err)
			d.mu.Unlock()
			if !d.sleep(minPause) {
				return false
			}
		}
		select {
		case <-d.closing:
			return false
		default:
		}
	}
	// What was used last is evicted last.
	slices.SortFunc(found, func(a, b *entry) int { return int(a.stamped - b.stamped) })
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range found {
		if d.index[e.key] == e && e.queue == nowhere {
			d.fifo.push(main, e)
		}
	}
	d.limits.at = time.Time{} // it depends on what is used
	return true
}

func (d *Disk) sleep(pause time.Duration) bool {
	select {
	case <-d.closing:
		return false
	case <-time.After(pause):
		return true
	}
}

// enter indexes the files of one folder and appends their entries to found.
func (d *Disk) enter(dir string, entries []fs.DirEntry, found []*entry) []*entry {
	for _, file := range entries {
		key, ok := parseName(dir, file.Name())
		if !ok || !file.Type().IsRegular() {
			d.stranger(dir + "/" + file.Name())
			continue
		}
		info, err := file.Info()
		if err != nil {
			continue // removed meanwhile
		}
		d.mu.Lock()
		if e := d.index[key]; e == nil {
			found = append(found, d.admit(key, info.Size(), info.ModTime().Unix()))
		} else {
			found = append(found, e) // adopted
		}
		d.mu.Unlock()
	}
	return found
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
func (d *Disk) admit(key store.Key, size, stamped int64) *entry {
	e := &entry{key: key, size: size, stamped: stamped, used: stamped, bad: size > seal.MaxSealed}
	d.index[key] = e
	d.used += charge(size)
	return e
}

// adopt indexes the block's file, if there is one, while the scan has not come
// to it yet.
func (d *Disk) adopt(ctx context.Context, key store.Key) {
	var size int64
	var err error
	if !d.guard(ctx, func() { size, err = d.files.stat(fileName(key)) }) || err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, leaving := d.busy[key]
	if d.index[key] == nil && !leaving && !d.isScanned() {
		d.admit(key, size, now())
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
