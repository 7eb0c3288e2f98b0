package remote

import (
	"context"
	"errors"

	"flexfs/store"
	"flexfs/store/seal"
)

// A kind is which method of a [store.Store] an operation is.
type kind int

const (
	kindGet kind = iota
	kindFrames
	kindPut
	kindDelete
)

// An operation is a call of a method, with its arguments.
type operation struct {
	kind   kind
	key    store.Key
	off, n int64
	data   []byte // of a Put
}

// An outcome is what a Get or GetFrames returned. Each request has its own.
type outcome struct {
	data   []byte // or the head
	frames []byte
}

func (o *operation) isRead() bool { return o.kind == kindGet || o.kind == kindFrames }

func (o *operation) class() class {
	switch {
	case o.kind == kindPut:
		return classPut
	case o.kind == kindDelete:
		return classOther
	case o.n >= 0 && o.n < smallGet:
		return classSmall
	}
	return classLarge
}

// far does it through a proxy.
func (o *operation) far(ctx context.Context, c *Client) (out outcome, err error) {
	if o.kind == kindFrames {
		out.data, out.frames, err = c.GetFrames(ctx, o.key, o.off, o.n)
		return out, err
	}
	return o.plain(ctx, c)
}

// near does it without a proxy. A bucket does not know where frames are; if whole
// they are found with Gets all the same.
func (o *operation) near(ctx context.Context, s store.Store, whole bool) (out outcome, err error) {
	if o.kind != kindFrames {
		return o.plain(ctx, s)
	}
	out.data, out.frames, err = store.GetFrames(ctx, s, o.key, o.off, o.n)
	if whole && errors.Is(err, errors.ErrUnsupported) {
		out.data, out.frames, err = seal.GetFrames(ctx, s, o.key, o.off, o.n)
	}
	return out, err
}

// plain does it with any Store.
func (o *operation) plain(ctx context.Context, s store.Store) (out outcome, err error) {
	switch o.kind {
	case kindPut:
		err = s.Put(ctx, o.key, o.data)
	case kindDelete:
		err = s.Delete(ctx, o.key)
	default:
		out.data, err = s.Get(ctx, o.key, o.off, o.n)
	}
	return out, err
}
