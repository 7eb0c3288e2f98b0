package fuse

import (
	"sync"
	"time"
)

// An entering is the listings with attributes that the kernel was given and may
// still be entering into its cache, by who reads them. It takes what they say for
// newer than an end of all names that comes meanwhile. Who reads on, or closes the
// directory, has entered what it got before; and so has everybody when the kernel
// lets somebody alter the directory, which those who read it keep it from.
type entering struct {
	mu    sync.Mutex
	since map[*dirHandle]time.Time
}

// listingTime bounds how long the end of all names waits for a program that does
// not read on: so long may a busy machine keep it from that, or from its entering.
const listingTime = time.Second

// begin must be called before the answer that gives a listing.
func (e *entering) begin(d *dirHandle) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.since == nil {
		e.since = map[*dirHandle]time.Time{}
	}
	e.since[d] = time.Now()
}

func (e *entering) end(d *dirHandle) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.since, d)
}

// endOf is end for all who read a directory.
func (e *entering) endOf(dir *inode) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for d := range e.since {
		if d.in == dir {
			delete(e.since, d)
		}
	}
}

// wait waits until what was given is entered.
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
	for d, since := range e.since {
		if time.Since(since) > listingTime {
			delete(e.since, d)
		} else if since.Before(before) {
			busy = true
		}
	}
	return busy
}
