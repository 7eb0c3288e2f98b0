package admin

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// On disk there is a bucket per table, named like it, of objects as JSON, and
//
//	tokens   SHA-256 of a token  ->  its scope and the id of its object, JSON
//	system   "schema"            ->  the number below, decimal
//	system   "key"               ->  seed of the first Ed25519 key that signs tickets
//	system   "keys"              ->  all keys that do, JSON; since the first was replaced
//
// schema counts the forms that this has had. A database of a later form is
// not opened.
const schema = "1"

var (
	bucketTokens = []byte("tokens")
	bucketSystem = []byte("system")
	keySchema    = []byte("schema")
	keySigning   = []byte("key")
	keySigners   = []byte("keys")
)

// lockWait is how long Open waits for another process to let go of the file:
// enough for one that is about to end, too short to seem hanging.
const lockWait = time.Second

// A DB keeps the configuration in a file. Its methods may be called
// concurrently. A change is on stable storage when the method that made it
// returns, and then wakes whoever waits for settings.
type DB struct {
	bolt   *bolt.DB
	keys   atomic.Pointer[ticketKeys]
	closed chan struct{} // closed by Close

	rotating sync.Mutex // while keys are replaced
	reports  reports

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change; guarded by mu
}

// Open opens the database in a file, or makes a new one with the folder it is
// in. The file holds secrets: only its owner can read it. A file that another
// process has open, that is damaged or of a later version is an error that
// says what to do, and is left as it is.
func Open(path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("admin: open database: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		return nil, damaged(path, "it is empty")
	}
	file, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	db := &DB{bolt: file, closed: make(chan struct{}), changed: make(chan struct{})}
	if err := db.prepare(path); err != nil {
		file.Close()
		return nil, err
	}
	return db, nil
}

func damaged(path string, cause any) error {
	return fmt.Errorf("admin: the database %s is damaged: %v. It was left as it is. "+
		"Put the newest good copy in its place, or move it away to begin with an empty configuration", path, cause)
}

// openBolt turns what the library does with damaged files, panics and memory
// faults included, into errors.
func openBolt(path string) (file *bolt.DB, err error) {
	var raw *os.File // the library leaves it open, locked and mapped, if it panics
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			syscall.Flock(int(raw.Fd()), syscall.LOCK_UN) // closing is not enough for a mapped file
			raw.Close()
			file, err = nil, damaged(path, r)
		}
	}()
	file, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout: lockWait,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, perm)
			raw = f
			return f, err
		},
	})
	var system *fs.PathError
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("admin: the database %s is in use by another process: end that one first, or use its API", path)
	case errors.As(err, &system):
		return nil, fmt.Errorf("admin: open database: %w", err)
	case err != nil:
		return nil, damaged(path, err)
	}
	return file, nil
}

// prepare makes a new database complete, or checks an old one.
func (db *DB) prepare(path string) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damaged(path, r)
		}
	}()
	isNew := false
	err = db.bolt.View(func(b *bolt.Tx) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Size() < b.Size() {
			return damaged(path, fmt.Sprintf("%d bytes of %d are missing at its end", b.Size()-info.Size(), b.Size()))
		}
		system := b.Bucket(bucketSystem)
		if isNew = system == nil; isNew {
			return onlyOurs(path, b)
		}
		if version := string(system.Get(keySchema)); version != schema {
			return fmt.Errorf("admin: the database %s has form %q and this program knows form %s: use the version of the program that wrote it, or a later one", path, version, schema)
		}
		if err := (&tx{Tx: b}).verify(); err != nil {
			return damaged(path, err)
		}
		return nil
	})
	if err == nil && isNew {
		err = db.bolt.Update(initialize)
	}
	if err != nil {
		return err
	}
	return db.bolt.View(func(b *bolt.Tx) error {
		ks, err := readTicketKeys(b)
		if err != nil {
			return damaged(path, err)
		}
		db.keys.Store(&ks)
		return nil
	})
}

// onlyOurs refuses to write into somebody else's database.
func onlyOurs(path string, b *bolt.Tx) error {
	if name, _ := b.Cursor().First(); name != nil {
		return fmt.Errorf("admin: %s is a database of another program (it has a bucket %q)", path, name)
	}
	return nil
}

func initialize(b *bolt.Tx) error {
	for _, t := range Tables {
		if _, err := b.CreateBucket([]byte(t.Name)); err != nil {
			return err
		}
	}
	if _, err := b.CreateBucket(bucketTokens); err != nil {
		return err
	}
	system, err := b.CreateBucket(bucketSystem)
	if err != nil {
		return err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	return errors.Join(system.Put(keySigning, key.Seed()), system.Put(keySchema, []byte(schema)))
}

// Close ends waiting requests for settings and closes the file.
func (db *DB) Close() error {
	select {
	case <-db.closed:
		return nil
	default:
		close(db.closed)
	}
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("admin: close database: %w", err)
	}
	return nil
}

// changes returns a channel that the next change closes.
func (db *DB) changes() <-chan struct{} {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.changed
}

func (db *DB) notify() {
	db.mu.Lock()
	defer db.mu.Unlock()
	close(db.changed)
	db.changed = make(chan struct{})
}

func (db *DB) view(fn func(*tx) error) error {
	return db.bolt.View(func(b *bolt.Tx) error { return fn(&tx{Tx: b}) })
}

func (db *DB) update(fn func(*tx) error) error {
	t := &tx{}
	err := db.bolt.Update(func(b *bolt.Tx) error {
		t.Tx = b
		return fn(t)
	})
	if err == nil {
		db.reports.forget(t.purged)
	}
	if err == nil && t.dirty {
		db.notify()
	}
	return err
}

// Create makes an object of a table from its fields, a JSON object or what
// marshals to one, on behalf of an account. It returns a pointer to it, as it
// is shown.
func (db *DB) Create(t *Table, fields any, account int64) (any, error) {
	r := t.record()
	if _, err := decode(t, r, fields, true); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	err := db.update(func(tx *tx) error { return tx.create(t, r, account) })
	if err != nil {
		return nil, err
	}
	r.hide(false)
	return r, nil
}

// Show returns a pointer to an object of a table.
func (db *DB) Show(t *Table, id ...string) (any, error) {
	var r record
	err := db.view(func(tx *tx) (err error) {
		r, err = tx.find(t, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.hide(false)
	if g, ok := r.(*ProxyGroup); ok {
		at := now()
		g.Former, g.Status = g.formerAt(at), db.statusOf(g, at)
	}
	return r, nil
}

// List returns pointers to the objects of a table that match the filter, in
// the order of their keys, without secrets.
func (db *DB) List(t *Table, filter map[string][]string) ([]any, error) {
	match, err := newFilter(t, filter)
	if err != nil {
		return nil, err
	}
	list := []any{}
	return list, db.view(func(tx *tx) error {
		if err := match.resolve(tx); err != nil {
			return err
		}
		return tx.each(t, func(r record) error {
			r.hide(true)
			if match.matches(r) {
				list = append(list, r)
			}
			return nil
		})
	})
}

// Update changes fields of an object.
func (db *DB) Update(t *Table, fields any, id ...string) error {
	return db.update(func(tx *tx) error {
		r, err := tx.find(t, id)
		if err != nil {
			return err
		}
		return tx.change(t, r, fields)
	})
}

// Delete removes an object that nothing uses; a volume it retires. By force it
// removes what uses it too, in one transaction, if the table can do that: see
// [Table.Force].
func (db *DB) Delete(t *Table, force bool, id ...string) error {
	if force && t.Force == "" {
		return bad("force", "a %s is not deleted by force", t.Singular)
	}
	return db.update(func(tx *tx) error {
		r, err := tx.find(t, id)
		if err != nil {
			return err
		}
		if v, ok := r.(*Volume); ok {
			return tx.retire(v)
		}
		return tx.remove(t, r, force)
	})
}

// decodeRecord parses what is in a bucket.
func decodeRecord(t *Table, value []byte) (record, error) {
	r := t.record()
	if err := json.Unmarshal(value, r); err != nil {
		return nil, fmt.Errorf("a %s cannot be read: %w", t.Singular, err)
	}
	return r, nil
}

func notFound(t *Table, id string) *Error {
	return refuse(http.StatusNotFound, "%s %s does not exist", t.Singular, id)
}
