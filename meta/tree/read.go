package tree

import (
	"context"
	"errors"
	"syscall"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// A view is a look at one state of a volume for a session.
type view struct {
	engine.Reader
	v    *volume
	s    *session
	hold []meta.Ino // what the session is told of
}

// read answers from one state of the volume. The session becomes a holder of
// what it is told before the state is looked at, or else is looked at again: so
// no change slips in between. Nor does one that the session was told of before
// it was made. What others made in directories that are delegated to them is seen:
// they are called back.
func (s *session) read(ctx context.Context, fn func(*view) (*meta.Reply, error)) (*meta.Reply, error) {
	if s.at != 0 {
		return s.readPast(ctx, fn)
	}
	recalled := false
	for try := 0; ; try++ {
		var reply *meta.Reply
		seen, notices := s.v.changes.Load(), s.v.noticesDone()
		q := view{v: s.v, s: s}
		err := s.v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
			q.Reader = r
			var err error
			reply, err = fn(&q)
			return err
		})
		var no *refusal
		if err != nil && !errors.As(err, &no) {
			return nil, err
		}
		ok, fresh := s.v.hold(s, q.hold)
		if others := s.v.delegatedTo(s, q.hold); others != nil && !recalled {
			s.v.recall(ctx, others)
			recalled = true // what is delegated anew has only what was made since this was asked
			continue
		}
		steady := (!fresh || s.v.changes.Load() == seen) && s.v.noticesDone() == notices
		if !ok || steady || try == 3 {
			if reply == nil {
				reply = new(meta.Reply)
			}
			reply.Cache = ok && steady
			s.out(reply)
			return reply, err
		}
	}
}

// readPast answers from the state that a session of the past sees. It never
// changes, so the client may keep all of it, and is no holder.
func (s *session) readPast(ctx context.Context, fn func(*view) (*meta.Reply, error)) (*meta.Reply, error) {
	var reply *meta.Reply
	err := s.v.view(ctx, s.at, func(r engine.Reader) error {
		var err error
		reply, err = fn(&view{Reader: r, v: s.v, s: s})
		if reply == nil {
			reply = new(meta.Reply)
		}
		reply.Cache = true
		return err
	})
	if err == nil || reply != nil {
		s.out(reply)
	}
	return reply, err
}

// inode returns an inode that the client named.
func (q *view) inode(ino meta.Ino) (*inode, error) {
	in, err := q.v.inode(q, q.s.in(ino))
	if err != nil {
		return nil, err
	}
	q.hold = append(q.hold, in.Ino)
	return in, q.s.reaches(q, in)
}

// dir returns a directory that the client named.
func (q *view) dir(ino meta.Ino) (*inode, error) {
	in, err := q.inode(ino)
	if err != nil {
		return nil, err
	}
	if !in.IsDir() {
		return nil, refuse(syscall.ENOTDIR, "inode %d is not a directory", ino)
	}
	return in, nil
}

// inode reads an inode.
func (v *volume) inode(r engine.Reader, ino meta.Ino) (*inode, error) {
	b, err := r.Get(v.attrKey(ino))
	if err != nil {
		return nil, err
	}
	return aliveInode(ino, b)
}

// aliveInode decodes the attributes of an inode, nil if there are none.
func aliveInode(ino meta.Ino, b []byte) (*inode, error) {
	if b == nil {
		return nil, refuse(syscall.ENOENT, "inode %d is gone", ino)
	}
	in, err := decodeInode(ino, b)
	if err == nil && in.dead {
		err = refuse(syscall.ENOENT, "inode %d is gone", ino)
	}
	return in, err
}

// tell returns what a client that looks at an inode is told: its attributes, and
// its block if it has one only.
func (q *view) tell(in *inode) (*meta.Reply, error) {
	reply := &meta.Reply{Attr: in.told()}
	if !q.oneBlock(in) {
		return reply, nil
	}
	var err error
	reply.Block, err = q.v.block(q, in, 0)
	return reply, err
}

// told returns what the client is told of an inode that it changed: its
// attributes, and its contents if they are inline.
func (v *volume) told(r engine.Reader, in *inode) (*meta.Reply, error) {
	reply := &meta.Reply{Attr: in.told()}
	if !in.inline {
		return reply, nil
	}
	var err error
	reply.Block, err = v.block(r, in, 0)
	return reply, err
}

// block returns the record of a block, or nil if it is a hole.
func (v *volume) block(r engine.Reader, in *inode, index uint32) (*meta.Block, error) {
	b, err := r.Get(v.blockKey(in.Ino, in.body, index))
	if err != nil || b == nil {
		return nil, err
	}
	return decodeBlock(index, b)
}

func (s *session) getattr(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		in, err := q.inode(req.Ino)
		if err != nil {
			return nil, err
		}
		return q.tell(in)
	})
}

func (s *session) lookup(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		dir, err := q.dir(req.Ino)
		if err != nil {
			return nil, err
		}
		in, err := q.find(dir, req.Name)
		if err != nil {
			return nil, err
		}
		q.hold = append(q.hold, in.Ino)
		return q.tell(in)
	})
}

// find returns what a name in dir stands for.
func (q *view) find(dir *inode, name string) (*inode, error) {
	switch {
	case name == ".":
		return dir, nil
	case name == ".." && dir.Ino == q.s.root:
		return dir, nil
	case name == "..":
		return q.v.inode(q, dir.Parent)
	case len(name) > meta.MaxName:
		return nil, refuse(syscall.ENAMETOOLONG, "a name of %d bytes", len(name))
	}
	b, err := q.Get(q.v.dentryKey(dir.Ino, name))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, refuse(syscall.ENOENT, "%q is not there", name)
	}
	d, err := decodeDentry(b)
	if err != nil {
		return nil, err
	}
	return q.v.inode(q, d.ino)
}

// Bounds of one answer to an OpReaddir: its frame may have 4 MiB.
const (
	maxEntries     = 10_000
	maxListing     = 2 << 20 // bytes, roughly
	entryOverhead  = 24      // bytes of an entry beside its name
	attributesSize = 160     // bytes of attributes beside a link's target
)

func (s *session) readdir(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	limit := int(min(req.Limit, maxEntries))
	if limit == 0 {
		limit = maxEntries
	}
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		dir, err := q.dir(req.Ino)
		if err != nil {
			return nil, err
		}
		return q.list(dir, req, limit)
	})
}

// list returns the entries of dir that a request asks for, limit at most.
func (q *view) list(dir *inode, req *meta.Request, limit int) (*meta.Reply, error) {
	prefix := q.v.dentryKey(dir.Ino, "")
	from := prefix
	if req.Name != "" {
		from = append(q.v.dentryKey(dir.Ino, req.Name), 0)
	}
	reply := &meta.Reply{EOF: true, Attr: dir.told()}
	size := 0
	err := q.Scan(from, after(prefix), false, func(key, value []byte) (bool, error) {
		if len(reply.Entries) == limit || size > maxListing {
			reply.EOF = false
			return false, nil
		}
		d, err := decodeDentry(value)
		if err != nil {
			return false, err
		}
		e := meta.Entry{Name: string(key[len(prefix):]), Attr: meta.Attr{Ino: d.ino, Mode: d.typ}}
		size += len(e.Name) + entryOverhead
		reply.Entries = append(reply.Entries, e)
		return true, nil
	})
	if err != nil || !req.Plus && req.Size == 0 {
		return reply, err
	}
	n, err := q.describe(reply.Entries, req.Size)
	if n < len(reply.Entries) {
		reply.Entries, reply.EOF = reply.Entries[:n], false
	}
	return reply, err
}

// describeStep is how many entries are described at a time. With their contents
// they may have 4 MiB.
const describeStep = 64

// describe fills in the attributes of entries and, if contents is not 0, blocks
// until these have so many bytes. It returns how many entries there is room for.
func (q *view) describe(entries []meta.Entry, contents uint64) (int, error) {
	size, blocks := 0, uint64(0)
	for from := 0; from < len(entries); from += describeStep {
		some := entries[from:min(from+describeStep, len(entries))]
		inodes, err := q.attributes(some)
		if err == nil && contents > 0 {
			err = q.onlyBlocks(some, inodes)
		}
		if err != nil {
			return 0, err
		}
		for i := range some {
			e := &some[i]
			if size > maxListing || blocks > 0 && blocks >= contents {
				return from + i, nil
			}
			q.hold = append(q.hold, e.Attr.Ino)
			size += len(e.Name) + entryOverhead + attributesSize + len(e.Attr.Target)
			if e.Block != nil {
				n := recordSize + listedHole*len(e.Block.Holes) + len(e.Block.Data)
				size += n
				blocks += uint64(n)
			}
		}
	}
	return len(entries), nil
}

// attributes fills in the attributes of entries, and returns their inodes.
func (q *view) attributes(entries []meta.Entry) ([]*inode, error) {
	keys := make([][]byte, len(entries))
	for i := range entries {
		keys[i] = q.v.attrKey(entries[i].Attr.Ino)
	}
	values, err := q.MGet(keys...)
	if err != nil {
		return nil, err
	}
	inodes := make([]*inode, len(entries))
	for i := range entries {
		if inodes[i], err = aliveInode(entries[i].Attr.Ino, values[i]); err != nil {
			return nil, err
		}
		entries[i].Attr = inodes[i].told()
	}
	return inodes, nil
}

// onlyBlocks fills in the blocks of those entries that have one only.
func (q *view) onlyBlocks(entries []meta.Entry, inodes []*inode) error {
	var keys [][]byte
	var of []int
	for i, in := range inodes {
		if q.oneBlock(in) {
			keys, of = append(keys, q.v.blockKey(in.Ino, in.body, 0)), append(of, i)
		}
	}
	values, err := q.MGet(keys...)
	if err != nil {
		return err
	}
	for k, value := range values {
		if value == nil {
			continue // a hole
		}
		if entries[of[k]].Block, err = decodeBlock(0, value); err != nil {
			return err
		}
	}
	return nil
}

// oneBlock reports whether an inode is a file of one block.
func (q *view) oneBlock(in *inode) bool {
	return in.IsRegular() && in.Size > 0 && in.Size <= uint64(q.v.blockSize)
}

// Bounds of one answer to an OpBlocks: its frame may have 4 MiB.
const (
	maxBlocks  = 16_384
	maxRecords = 2 << 20 // bytes, roughly
	recordSize = 64      // bytes of a record beside its holes and contents
	listedHole = 8       // bytes of a hole
)

func (s *session) blocks(ctx context.Context, req *meta.Request) (*meta.Reply, error) {
	limit := int(min(req.Limit, maxBlocks))
	if limit == 0 {
		limit = maxBlocks
	}
	return s.read(ctx, func(q *view) (*meta.Reply, error) {
		in, err := q.inode(req.Ino)
		if err != nil {
			return nil, err
		}
		if !in.IsRegular() {
			return nil, refuse(syscall.EINVAL, "inode %d is not a file", req.Ino)
		}
		reply := &meta.Reply{Attr: in.told(), EOF: true}
		size := 0
		err = q.v.eachBlock(q, in, req.Index, func(k *meta.Block) (bool, error) {
			if len(reply.Blocks) == limit || size > maxRecords {
				reply.EOF = false
				return false, nil
			}
			size += recordSize + listedHole*len(k.Holes) + len(k.Data)
			reply.Blocks = append(reply.Blocks, *k)
			return true, nil
		})
		return reply, err
	})
}

// eachBlock calls fn for each record of a file from index on, until it returns
// false.
func (v *volume) eachBlock(r engine.Reader, in *inode, index uint32, fn func(*meta.Block) (bool, error)) error {
	body := v.bodyKey(in.Ino, in.body)
	return r.Scan(v.blockKey(in.Ino, in.body, index), after(body), false, func(key, value []byte) (bool, error) {
		if len(key) != len(body)+4 {
			return false, errValue
		}
		k, err := decodeBlock(indexOf(key), value)
		if err != nil {
			return false, err
		}
		return fn(k)
	})
}
