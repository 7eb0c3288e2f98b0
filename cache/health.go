package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// patience is how long an operation on the disk may take before it counts
	// as hung.
	patience = 5 * time.Second

	// A disk that has maxErrors within errorTime is taken out of use, for
	// minPause at first and up to maxPause if it fails again and again.
	maxErrors = 3
	errorTime = time.Minute
	minPause  = 10 * time.Second
	maxPause  = 5 * time.Minute

	// squeezeTime is for how long a full file system limits the cache to
	// what it had then.
	squeezeTime = time.Minute

	// limitTime is for how long the size of the file system is believed.
	limitTime = time.Second
)

var errHung = errors.New("the disk does not answer")

// probeName is a file that is written to see whether the disk works again. No
// block has such a name.
const probeName = cleanName + "/00/probe"

// health is the state of the disk.
type health struct {
	patience time.Duration
	down     atomic.Bool

	// The rest is guarded by Disk.mu.
	errors  [maxErrors]time.Time // the last ones
	pause   time.Duration
	since   time.Time // of the last change
	probing bool
}

// limits are what the quota comes to at the moment.
type limits struct {
	quota    int64 // bytes
	at       time.Time
	squeeze  int64     // bytes; until then
	until    time.Time // see squeezeTime
	squeezed time.Time // last time
}

// isScarcity reports whether an error is about this process, not the disk.
func isScarcity(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// usable reports whether the disk is to be used. d.mu may be held or not.
func (d *Disk) usable() bool {
	if d.health.down.Load() {
		return false
	}
	select {
	case <-d.closing:
		return false
	default:
		return true
	}
}

// guard runs f, and waits for it to return, but not longer than ctx lasts and
// the disk's patience allows. It reports whether f has returned; if not, it goes
// on in its own time. That it takes too long is noted also when nobody waits.
func (d *Disk) guard(ctx context.Context, f func()) bool {
	done, late := make(chan struct{}), make(chan struct{})
	t := time.AfterFunc(d.health.patience, func() {
		defer close(late)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.hurt("wait", errHung)
	})
	d.wg.Go(func() {
		defer close(done)
		defer t.Stop()
		f()
	})
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-late:
	}
	return false
}

// hurt notes an error of the disk and draws the conclusions. d.mu must be held.
func (d *Disk) hurt(op string, err error) {
	d.count.errors.Add(1)
	t := time.Now()
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		d.squeeze(t)
		return
	case isScarcity(err):
		return
	}
	h := &d.health
	copy(h.errors[1:], h.errors[:])
	h.errors[0] = t
	often := t.Sub(h.errors[maxErrors-1]) < errorTime
	final := errors.Is(err, errHung) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EACCES)
	if h.down.Load() || !often && !final {
		return
	}
	if t.Sub(h.since) > 2*maxPause {
		h.pause = 0 // it worked for long
	}
	h.pause = min(max(2*h.pause, minPause), maxPause)
	h.since = t
	h.down.Store(true)
	d.cfg.Log.Error("the disk of the cache fails and is not used for now", "folder", d.cfg.Dir, "op", op, "err", err, "tryAgainIn", h.pause)
}

// squeeze makes do with less than the quota: the file system is full. d.mu must
// be held.
func (d *Disk) squeeze(t time.Time) {
	l := &d.limits
	if t.Sub(l.squeezed) > 10*squeezeTime {
		d.cfg.Log.Warn("the file system of the disk cache is full; the cache makes do with less than its quota", "folder", d.cfg.Dir, "quota", d.cfg.Quota.String(), "used", d.used)
	}
	l.squeezed = t
	l.squeeze = max(d.used-d.used/16, 0)
	l.until = t.Add(squeezeTime)
}

// limit returns the bytes that may be used now.
func (d *Disk) limit() int64 {
	d.mu.Lock()
	fresh := d.cfg.Quota.Percent == 0 || time.Since(d.limits.at) < limitTime
	d.mu.Unlock()
	var total, free int64
	var err error
	if !fresh {
		total, free, err = d.files.space()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	l := &d.limits
	switch {
	case err != nil:
		d.hurt("statfs", err)
	case !fresh:
		l.quota, l.at = d.cfg.Quota.limit(d.used, total, free), time.Now()
	}
	return l.now(time.Now())
}

// now returns the bytes that may be used at t.
func (l *limits) now(t time.Time) int64 {
	if t.Before(l.until) {
		return min(l.quota, l.squeeze)
	}
	return l.quota
}

// tend is the background work of a Disk: it completes the index, and then keeps
// within a quota that may shrink, and sees after a disk that failed.
func (d *Disk) tend() {
	if !d.scan() {
		return
	}
	close(d.scanned)
	d.trim()
	t := time.NewTicker(minPause / 2)
	defer t.Stop()
	for {
		select {
		case <-d.closing:
			return
		case <-t.C:
		}
		if d.health.down.Load() {
			d.revive()
		} else {
			d.trim()
		}
	}
}

// revive puts a disk that failed back in use, if its pause is over and it works.
func (d *Disk) revive() {
	h := &d.health
	d.mu.Lock()
	due := time.Since(h.since) >= h.pause && !h.probing
	h.probing = h.probing || due
	d.mu.Unlock()
	if !due {
		return
	}
	d.wg.Go(func() { // the disk may hang
		err := d.probe()
		d.mu.Lock()
		defer d.mu.Unlock()
		h.probing = false
		h.since = time.Now()
		if err != nil {
			h.pause = min(2*h.pause, maxPause)
			return
		}
		h.errors = [maxErrors]time.Time{}
		h.down.Store(false)
		d.cfg.Log.Info("the disk of the cache works again and is used", "folder", d.cfg.Dir)
	})
}

// probe writes, reads and removes a file.
func (d *Disk) probe() error {
	want := []byte("does the disk work?")
	if err := d.files.write(probeName, want); err != nil {
		return err
	}
	f, err := d.files.open(probeName)
	if err != nil {
		return err
	}
	defer f.close()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("what was written is not what is read")
	}
	if err := d.files.remove(probeName); err != nil {
		return err
	}
	return d.probeSync()
}

// probeSync writes a file as dirty blocks are written.
func (d *Disk) probeSync() error {
	name, err := d.files.stage([]byte("can it sync?"))
	if err != nil {
		return err
	}
	if err := d.files.remove(name); err != nil {
		return err
	}
	return d.synced.do(d.syncDirty)
}
