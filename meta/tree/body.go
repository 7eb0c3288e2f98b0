package tree

import (
	"context"
	"encoding/binary"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A file's block records are its body. Bodies of a file are numbered, its
// attributes say which one it has, and only that is read and written.
//
// To cut a file that has a million records would take as many writes. So a cut of
// many gives the file the next body, to which the records move that it keeps, and
// leaves the rest where they are: for the collector, which removes them as it
// removes those of a file without a name. What is written to the file from then on
// does not meet them. The past finds them, as attributes of the past name the body
// of the past: so their removal waits for as long as that can be told, and need not
// be remembered itself.
//
// Records name objects by the file that they were made for, whichever its body.

// shed gives a file a new body that has only the blocks before keep.
func (c *change) shed(in *loaded, keep uint32) error {
	var kept []*meta.Block
	err := c.v.eachBlock(c, &in.inode, 0, func(k *meta.Block) (bool, error) {
		if k.Index >= keep {
			return false, nil
		}
		kept = append(kept, k)
		return true, nil
	})
	if err != nil {
		return err
	}
	old := in.body
	in.body++
	in.inline = false
	var bytes uint64
	for _, k := range kept {
		record := encodeBlock(k)
		if err := c.replace(c.v.blockKey(in.Ino, old, k.Index), record, nil); err != nil {
			return err
		}
		if err := c.replace(c.v.blockKey(in.Ino, in.body, k.Index), nil, record); err != nil {
			return err
		}
		in.inline = in.inline || k.Inline
		bytes += k.Bytes()
	}
	c.addBytes(in, int64(bytes)-int64(in.Bytes))
	key := c.v.delayedBodyKey(c.v.keep(c.second), in.Ino, old)
	return c.Put(key, binary.BigEndian.AppendUint64(nil, uint64(c.second)))
}

// A shedBody is delayed work: a body to be removed, and when its file had it last.
type shedBody struct {
	ino    meta.Ino
	body   uint32
	second int64 // in which it was shed
}

// decodeShed reads delayed work by what follows its kind in its key, and its value.
func decodeShed(key, value []byte) (shedBody, error) {
	if len(key) != 12 || len(value) != 8 {
		return shedBody{}, errValue
	}
	return shedBody{
		meta.Ino(binary.BigEndian.Uint64(key)), binary.BigEndian.Uint32(key[8:]), int64(binary.BigEndian.Uint64(value)),
	}, nil
}

// eachObject calls fn for each object that a body names.
func (v *volume) eachObject(r engine.Reader, s shedBody, fn func(BlockRef) error) error {
	in := &inode{body: s.body}
	in.Ino = s.ino
	return v.eachBlock(r, in, 0, func(k *meta.Block) (bool, error) {
		if k.Inline {
			return true, nil
		}
		err := fn(refOf(s.ino, k))
		return err == nil, err
	})
}

// collectBody removes a body that was shed, in steps. What is left at end is for
// the next round.
func (v *volume) collectBody(ctx context.Context, t task, end time.Time) error {
	s, err := decodeShed(t.key[14:], t.value)
	for err == nil && time.Now().Before(end) {
		var records []record
		body := v.bodyKey(s.ino, s.body)
		records, err = v.someRecords(ctx, body, after(body))
		switch {
		case err != nil:
		case len(records) == 0:
			return v.finishDeletes(ctx, nil, [][]byte{t.key})
		default:
			err = v.collectBlocks(ctx, s.ino, records)
		}
	}
	return err
}
