package fuse

import (
	"sync"
	"time"
)

// An entering is the listings with attributes that the kernel was given and may
// still be entering into its cache, by who reads them. It takes what they say for
// newer than an end of all names that comes meanwhile. Who reads on, or closes the
// directory, or has gone back to its program, has entered what it got before; and
// so has everybody when the kernel lets somebody alter the directory, which those
// who read it keep it from.
type entering struct {
	mu      sync.Mutex
	readers map[*dirHandle]*reader
}

// A reader is a thread that was given a part of a directory.
type reader struct {
	since  time.Time
	thread uint32
	ran    time.Duration // how long it had run when it was first seen to
}

const (
	// listingTime bounds how long the end of all names waits for a thread of which
	// nothing tells that it has gone back to its program.
	listingTime = time.Second
	// starvedTime is the bound for one that is seen to get no processor. It is less
	// than a lease, after which other mounts would go on without this one.
	starvedTime = 8 * time.Second
	// enterTime is more processor time than the kernel needs to enter a listing.
	enterTime = 100 * time.Millisecond
)

// begin must be called before the answer that gives a thread a listing.
func (e *entering) begin(d *dirHandle, thread uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.readers == nil {
		e.readers = map[*dirHandle]*reader{}
	}
	e.readers[d] = &reader{since: time.Now(), thread: thread}
}

func (e *entering) end(d *dirHandle) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, d)
}

// endOf is end for all who read a directory.
func (e *entering) endOf(dir *inode) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for d := range e.readers {
		if d.in == dir {
			delete(e.readers, d)
		}
	}
}

// wait waits until what was given is entered. The answers must be with the kernel.
func (e *entering) wait() {
	for begun := time.Now(); e.busy(begun); {
		time.Sleep(time.Millisecond)
	}
}

// busy reports whether something is being entered that was given before a moment.
func (e *entering) busy(before time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	busy := false
	for d, r := range e.readers {
		if !r.since.Before(before) {
			continue
		}
		if r.entered() {
			delete(e.readers, d)
		} else {
			busy = true
		}
	}
	return busy
}

// entered reports whether a reader has entered what it was given, or has been
// waited for long enough. The answer must be with the kernel.
func (r *reader) entered() bool {
	state, ran := threadState(r.thread)
	limit := listingTime
	switch state {
	case 'R': // in the kernel, in its program, or waiting for a processor
		if r.ran == 0 {
			r.ran = ran
		}
		if ran-r.ran > enterTime {
			return true
		}
		if ran > 0 {
			limit = starvedTime
		}
	case 'D', 0: // what it waits for may be in the way of entering, or is not known
	default:
		return true
	}
	return time.Since(r.since) > limit
}
