package tree

import (
	"encoding/binary"
	"sync"

	"flexfs/meta"
)

// A chronicle knows which keys have a history record of the second that runs, as
// there is to be one for each: so a change need not ask the engine, whose
// answer would nearly always be that there is none. It is complete, because no
// second is used by two servers.
//
// It is told of a key by a change that has it locked, and asked by one that has.
type chronicle struct {
	mu     sync.Mutex
	second int64
	keys   map[string]struct{}
	born   map[meta.Ino]struct{} // inodes that were made in the second
	full   bool                  // there was more than it takes
}

// maxChronicle bounds the keys and the inodes of a chronicle: some 20 MiB. What is
// beyond is asked of the engine.
const maxChronicle = 100_000

// at returns whether the chronicle is about a second, and turns the page if that
// is a new one. ch.mu is held.
func (ch *chronicle) at(second int64) bool {
	if second > ch.second {
		ch.second, ch.full = second, false
		ch.keys, ch.born = make(map[string]struct{}), make(map[meta.Ino]struct{})
	}
	return second == ch.second
}

// has tells whether a key has a record of a second, or needs none since its inode,
// or directory, was not there before: no name led to it. It is sure unless it is
// about another second, or is full.
func (ch *chronicle) has(second int64, key []byte) (recorded, sure bool) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !ch.at(second) {
		return false, false
	}
	if _, ok := ch.born[subject(key)]; ok {
		return true, true
	}
	_, ok := ch.keys[string(key)]
	return ok, ok || !ch.full
}

// add notes what a change recorded in a second, and which inodes it made.
func (ch *chronicle) add(second int64, keys map[string]struct{}, born []meta.Ino) {
	if len(keys)+len(born) == 0 {
		return
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if !ch.at(second) {
		return
	}
	if len(ch.keys)+len(ch.born)+len(keys)+len(born) > maxChronicle {
		ch.full = true
		return
	}
	for key := range keys {
		ch.keys[key] = struct{}{}
	}
	for _, ino := range born {
		ch.born[ino] = struct{}{}
	}
}

// remove takes back what was added for a change that is not made.
func (ch *chronicle) remove(second int64, keys map[string]struct{}, born []meta.Ino) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if second != ch.second {
		return
	}
	for key := range keys {
		delete(ch.keys, key)
	}
	for _, ino := range born {
		delete(ch.born, ino)
	}
}

// subject returns the inode that a key with history is about, or the directory that
// it is a name of.
func subject(key []byte) meta.Ino { return meta.Ino(binary.BigEndian.Uint64(key[5:])) }
