// Package engine keeps ordered keys and values in transactions. It is all that
// package meta/tree knows of databases.
package engine

import (
	"context"
	"errors"
)

// Errors that an engine's own errors wrap.
var (
	// ErrClosed: the engine was closed.
	ErrClosed = errors.New("the database is closed")
	// ErrTooLarge: a key, a value or a transaction is beyond its limit.
	ErrTooLarge = errors.New("too large for a transaction")
	// ErrInUse: another process, or this one, has the database open.
	ErrInUse = errors.New("the database is in use by another process")
	// ErrCorrupt: what is stored is damaged.
	ErrCorrupt = errors.New("the database is damaged")
)

// Limits that every engine must reach and that callers must stay within, so
// that the same tree runs on a local file, PostgreSQL, FoundationDB or TiKV.
const (
	MaxKey   = 1 << 10   // bytes of a key
	MaxValue = 100 << 10 // bytes of a value
	MaxTx    = 10 << 20  // bytes written by one transaction
)

// An Engine is a set of keys with values, ordered by the keys' bytes. All
// methods may be called concurrently.
type Engine interface {
	// View calls fn with a snapshot: the state between two transactions. The
	// Reader must not be used after fn returned.
	View(ctx context.Context, fn func(Reader) error) error

	// Update runs fn as one serializable transaction: all of it happens or,
	// if fn or Update fails, nothing. fn may be run again from the start, so it
	// must have no other effects. locks are the keys that fn is going to
	// contend for: two Updates that share a lock run one after the other. Every
	// key that fn reads and whose change by another would matter must be
	// covered by a lock that the other takes too.
	//
	// When Update returns, later transactions see the writes. They are durable
	// when Wait of the Commit returns nil; the order of durability is the order
	// of visibility.
	Update(ctx context.Context, locks [][]byte, fn func(Tx) error) (Commit, error)

	// Checkpoint writes a consistent copy to dir, which must not exist.
	Checkpoint(ctx context.Context, dir string) error

	// Close waits for what runs. The Engine must not be used after it.
	Close() error
}

// A Commit is a transaction that is visible and may not be durable yet.
type Commit interface {
	// Wait returns when the transaction is on stable storage, and with it all
	// that were visible before: of several in a row the last one is enough to
	// wait for, and costs one sync. Until somebody waits, an engine may leave a
	// transaction unsynced for ever. If Wait fails the engine is broken: the
	// process should end rather than go on.
	Wait() error
}

// A Reader reads. The slices it returns must not be changed and are valid until
// the function that was given the Reader returns; those that Scan passes to its
// function only until that returns.
type Reader interface {
	// Get returns the value of a key, or nil if there is none. A value that
	// is present and empty is not nil.
	Get(key []byte) ([]byte, error)

	// MGet does several Gets in one round trip.
	MGet(keys ...[]byte) ([][]byte, error)

	// Scan calls fn for each key with from <= key < to, ascending or, if
	// reverse, descending, until fn returns false or fails.
	Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error
}

// A Tx reads what the transaction would see after its own writes, and writes.
// It keeps no slice that it is given.
type Tx interface {
	Reader
	Put(key, value []byte) error
	Delete(key []byte) error
	DeleteRange(from, to []byte) error

	// TryLock adds a lock to those that Update was given, if it is free at this
	// moment, and tells whether it did. If not, or if an engine cannot, the
	// caller fails, and runs the transaction again with it among locks.
	TryLock(key []byte) bool

	// Add adds delta to the 8-byte big-endian signed number at key, 0 if there
	// is none. It needs no lock: Adds of concurrent transactions commute.
	Add(key []byte, delta int64) error
}
