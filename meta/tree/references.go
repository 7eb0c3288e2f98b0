package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A Naming says why an object is needed.
type Naming int

const (
	InFile   Naming = iota + 1 // it is a block of a file, or of one without a name that is still there
	InPast                     // it was, at a time that is kept
	InDelete                   // it was, and is going to be deleted; it may be gone already
)

func (n Naming) String() string {
	return [...]string{"nothing", "a file", "the past of a file", "work that is to be done"}[n]
}

// References reads a whole database, in one state of it, and calls fn for each
// object that something names, once for each time that it is named. [Server.Reconcile]
// asks of one object at a time whether it is among those: the two have no code in
// common, so each examines the other.
func References(ctx context.Context, e engine.Engine, fn func(volume string, ref BlockRef, why Naming) error) error {
	err := e.View(ctx, func(r engine.Reader) error {
		k := new(checker)
		if err := k.server(r); err != nil {
			return err
		}
		if len(k.problems) > 0 {
			return fmt.Errorf("%v", k.problems[0])
		}
		for num, v := range k.volumes {
			prefix := binary.BigEndian.AppendUint32(nil, num)
			w := referenceScan{r: r, v: v, fn: func(ref BlockRef, why Naming) error { return fn(v.id, ref, why) }}
			err := r.Scan(prefix, after(prefix), false, func(key, value []byte) (bool, error) {
				err := w.record(key[len(prefix):], value)
				if err == nil {
					err = ctx.Err()
				}
				return err == nil, err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("tree: references: %w", err)
	}
	return nil
}

// A referenceScan goes through the records of a volume.
type referenceScan struct {
	r     engine.Reader
	v     *volume
	fn    func(BlockRef, Naming) error
	body  []byte   // what the keys of the block records begin with that a file has
	dying meta.Ino // whose objects go before their records
	since int64    // from which second on the past is kept, 0: it is not
}

// record calls fn for each object that a record names. The key is without its
// volume.
func (w *referenceScan) record(key, value []byte) error {
	switch {
	case len(key) == 10 && key[0] == tableInode && key[9] == ofAttr:
		ino := meta.Ino(binary.BigEndian.Uint64(key[1:]))
		in, err := decodeInode(ino, value)
		if err != nil {
			return err
		}
		w.body = w.v.bodyKey(ino, in.body)[4:]
		if in.dead {
			w.dying = ino
		}
	case isBlockKey(key) && !bytes.HasPrefix(key, w.body): // shed: delayed work tells of it
	case isBlockKey(key):
		why := InFile
		if meta.Ino(binary.BigEndian.Uint64(key[1:])) == w.dying {
			why = InDelete
		}
		return w.block(key, value, why)
	case key[0] == tableHistory && len(key) > 10 && isBlockKey(key[1:len(key)-9]) && len(value) > 1:
		return w.block(key[1:len(key)-9], value[1:], InPast)
	case key[0] == tableDelayed && len(key) == 28 && key[9] == delayedBlocks:
		refs, err := decodeRefs(meta.Ino(binary.BigEndian.Uint64(key[10:])), value)
		return w.delayed(refs, err)
	case key[0] == tableDelayed && len(key) == 28 && key[9] == delayedCloned:
		return w.delayed(decodeCloned(value))
	case string(key) == string([]byte{tableCounter})+counterPast && len(value) == 8:
		w.since = int64(binary.BigEndian.Uint64(value))
	case key[0] == tableDelayed && len(key) > 10 && key[9] == delayedBody:
		return w.shed(decodeShed(key[10:], value))
	}
	return nil
}

func (w *referenceScan) delayed(refs []BlockRef, err error) error {
	for _, ref := range refs {
		if err == nil {
			err = w.fn(ref, InDelete)
		}
	}
	return err
}

// shed calls fn for what a body names that a file had until a second.
func (w *referenceScan) shed(s shedBody, err error) error {
	if err != nil {
		return err
	}
	why := InDelete
	if w.since != 0 && s.second > w.since {
		why = InPast
	}
	return w.v.eachObject(w.r, s, func(ref BlockRef) error { return w.fn(ref, why) })
}

// isBlockKey tells whether a key, without its volume, is that of a block's record.
func isBlockKey(key []byte) bool {
	return key[0] == tableInode && (len(key) == 14 && key[9] == ofBlock || len(key) == 18 && key[9] == ofBody)
}

// block calls fn for what the record of a block names.
func (w *referenceScan) block(key, record []byte, why Naming) error {
	k, err := decodeBlock(indexOf(key), record)
	if err != nil || k.Inline {
		return err
	}
	return w.fn(refOf(meta.Ino(binary.BigEndian.Uint64(key[1:])), k), why)
}
