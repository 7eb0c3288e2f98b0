package tree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	"flexfs/meta/engine"
)

// A past is a Reader of a volume as it was at the end of a second: what a key
// had then is in the first history record of a later second, and is what it has
// now if there is none. Tables without history are read as they are now, and so
// are the attributes of inodes that were not there yet: no name leads to them.
//
// The range of a Scan lies within one table.
type past struct {
	engine.Reader
	second int64
}

// recorded tells whether the table of a key has history.
func recorded(key []byte) bool {
	return len(key) > 4 && (key[4] == tableInode || key[4] == tableDentry)
}

// Get implements engine.Reader with one seek more.
func (p *past) Get(key []byte) ([]byte, error) {
	if !recorded(key) {
		return p.Reader.Get(key)
	}
	f, err := p.fact(key)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return p.Reader.Get(key)
	}
	return f.value, nil
}

// MGet implements engine.Reader.
func (p *past) MGet(keys ...[]byte) ([][]byte, error) {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		var err error
		if values[i], err = p.Get(key); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// Scan implements engine.Reader: what is there now and what history tells,
// merged.
func (p *past) Scan(from, to []byte, reverse bool, fn func(key, value []byte) (bool, error)) error {
	if !recorded(from) {
		return p.Reader.Scan(from, to, reverse, fn)
	}
	next, stop := iter.Pull2(p.facts(from, to, reverse))
	defer stop()
	f, err := next2(next)
	more := true
	// gone tells the facts before key, which is not there any more; nil: all.
	gone := func(key []byte) error {
		for f != nil && more && err == nil && (key == nil || precedes(f.key, key, reverse)) {
			if f.value != nil {
				if more, err = fn(f.key, f.value); err != nil || !more {
					return err
				}
			}
			f, err = next2(next)
		}
		return err
	}
	scanned := p.Reader.Scan(from, to, reverse, func(key, value []byte) (bool, error) {
		if err := gone(key); err != nil || !more {
			return false, err
		}
		if f != nil && bytes.Equal(f.key, key) {
			value = f.value
			if f, err = next2(next); err != nil {
				return false, err
			}
			if value == nil {
				return true, nil
			}
		}
		var failed error
		more, failed = fn(key, value)
		return more, failed
	})
	if scanned != nil || !more {
		return scanned
	}
	return gone(nil)
}

func precedes(a, b []byte, reverse bool) bool {
	if reverse {
		a, b = b, a
	}
	return bytes.Compare(a, b) < 0
}

// next2 returns the next fact, or nil at the end.
func next2(next func() (*fact, error, bool)) (*fact, error) {
	f, err, _ := next()
	return f, err
}

// A fact is what history tells about a key: the value that it had, nil if it was
// not there.
type fact struct{ key, value []byte }

// fact returns what history tells about one key, or nil.
func (p *past) fact(key []byte) (f *fact, err error) {
	err = p.Reader.Scan(historyAt(key, p.second+1), historyAfter(key), false, func(_, value []byte) (bool, error) {
		f = &fact{key: key}
		f.value, err = parseHistory(value)
		return false, err
	})
	return f, err
}

// facts yields what history tells about the keys from <= key < to.
func (p *past) facts(from, to []byte, reverse bool) iter.Seq2[*fact, error] {
	if reverse {
		return p.factsDown(from, to)
	}
	return p.factsUp(from, to)
}

// maxSkips is how many records are passed over one by one, before a seek is
// cheaper.
const maxSkips = 8

// factsUp reads on from one key to the next, and seeks over what a key that
// changes often has too many of.
func (p *past) factsUp(from, to []byte) iter.Seq2[*fact, error] {
	return func(yield func(*fact, error) bool) {
		var told []byte
		start, end := historyOf(from), historyEnd(to)
		for start != nil {
			pos := start
			start = nil
			skips := 0
			err := p.Reader.Scan(pos, end, false, func(hkey, value []byte) (bool, error) {
				key, second, err := splitHistory(hkey)
				if err != nil || bytes.Compare(key, to) >= 0 {
					return false, err
				}
				if old := bytes.Equal(key, told) || bytes.Compare(key, from) < 0; old || second <= p.second {
					if skips++; skips < maxSkips {
						return true, nil
					}
					if start = historyAfter(key); !old {
						start = historyAt(key, p.second+1)
					}
					return false, nil
				}
				f := &fact{key: key}
				if f.value, err = parseHistory(value); err != nil {
					return false, err
				}
				told, skips = key, 0
				return yield(f, nil), nil
			})
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// factsDown seeks twice for each key.
func (p *past) factsDown(from, to []byte) iter.Seq2[*fact, error] {
	return func(yield func(*fact, error) bool) {
		start, end := historyOf(from), historyEnd(to)
		for {
			var key []byte
			err := p.Reader.Scan(start, end, true, func(hkey, _ []byte) (bool, error) {
				var err error
				key, _, err = splitHistory(hkey)
				return false, err
			})
			var f *fact
			if err == nil && key != nil && bytes.Compare(key, to) < 0 && bytes.Compare(key, from) >= 0 {
				f, err = p.fact(key)
			}
			switch {
			case err != nil:
				yield(nil, err)
				return
			case key == nil || f != nil && !yield(f, nil):
				return
			}
			end = historyAt(key, 0)
		}
	}
}

// historyOf is where the history of a key begins: nothing is stored there.
func historyOf(key []byte) []byte {
	b := make([]byte, 0, len(key)+16)
	b = append(b, key[:4]...)
	b = append(b, tableHistory)
	return append(b, key[4:]...)
}

// historyAt is where the value is kept that a key had just before a second.
func historyAt(key []byte, second int64) []byte {
	return binary.BigEndian.AppendUint64(append(historyOf(key), 0), uint64(second))
}

// historyAfter is behind the history of a key.
func historyAfter(key []byte) []byte { return append(historyOf(key), 1) }

// historyEnd is behind the history of all keys before to, and before that of most
// others.
func historyEnd(to []byte) []byte {
	b := historyOf(to)
	if b[len(b)-1] == 0 { // a name, and what follows it
		b = append(b, bytes.Repeat([]byte{0xff}, 9)...)
	}
	return b
}

// splitHistory returns the key that a history record is about, and its second.
func splitHistory(hkey []byte) (key []byte, second int64, err error) {
	n := len(hkey) - 9
	if n < 7 || hkey[4] != tableHistory || hkey[n] != 0 {
		return nil, 0, fmt.Errorf("tree: key of history: %w", errValue)
	}
	return slices.Concat(hkey[:4], hkey[5:n]), int64(binary.BigEndian.Uint64(hkey[n+1:])), nil
}

// parseHistory returns a copy of the value that a history record keeps, nil if
// there was none.
func parseHistory(b []byte) ([]byte, error) {
	switch {
	case len(b) == 1 && b[0] == 0:
		return nil, nil
	case len(b) > 0 && b[0] == 1:
		return append([]byte{}, b[1:]...), nil
	}
	return nil, fmt.Errorf("tree: history record: %w", errValue)
}
