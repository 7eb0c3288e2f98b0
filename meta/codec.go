package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"syscall"
	"time"
	"unsafe"
)

// A message is a sequence of fields, in any order: a tag, which is the field's
// number and the form of what follows, and then either a number or a counted
// run of bytes. A field that is zero is left out and one that is not known is
// skipped, so that both ends may be of different age. Field numbers are part of
// the wire format (docs/format/wire.md): never reuse one.
//
//	tag      uvarint: number<<1 | form
//	form 0   uvarint
//	form 1   length (uvarint), then that many bytes: a string, a message, or
//	         a list of uvarints
//
// A list of messages or strings repeats its field once per element.
const (
	formUint  = 0
	formBytes = 1
)

// MaxOps is the largest number of operations in one OpCompound. None of them
// is an OpCompound.
const MaxOps = 64

// A decoded message may take this much memory: decodeBase, and decodeFactor
// times its encoded length. An honest message stays far below: the worst, a
// listing of short names, takes 20 times its length.
const (
	decodeBase   = 1 << 20
	decodeFactor = 32
)

var errMalformed = errors.New("malformed message")

// A message is what has numbered fields.
type message interface {
	fields(b []byte) []byte       // appends the fields that are not zero
	field(num uint64, d *decoder) // takes the field that d is at
}

// Append appends the encoded request to b.
func (q *Request) Append(b []byte) []byte { return q.fields(b) }

// Decode sets q to what Append encoded. It keeps no part of b. Whatever b is,
// it takes memory in proportion to len(b) only.
func (q *Request) Decode(b []byte) error {
	*q = Request{}
	return decode(b, q)
}

// Append appends the encoded reply to b.
func (r *Reply) Append(b []byte) []byte { return r.fields(b) }

// Decode sets r to what Append encoded. It keeps no part of b. Whatever b is,
// it takes memory in proportion to len(b) only.
func (r *Reply) Decode(b []byte) error {
	*r = Reply{}
	return decode(b, r)
}

func decode(b []byte, m message) error {
	d := decoder{in: b, budget: decodeBase + decodeFactor*len(b)}
	d.message(m)
	if d.err != nil {
		return fmt.Errorf("meta: decode %T: %w", m, d.err)
	}
	return nil
}

// Encoding.

func putUint(b []byte, num uint64, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = binary.AppendUvarint(b, num<<1|formUint)
	return binary.AppendUvarint(b, v)
}

func putInt(b []byte, num uint64, v int64) []byte {
	return putUint(b, num, uint64(v)<<1^uint64(v>>63))
}

func putBool(b []byte, num uint64, v bool) []byte {
	if !v {
		return b
	}
	return putUint(b, num, 1)
}

func putBytes[T ~string | ~[]byte](b []byte, num uint64, v T) []byte {
	if len(v) == 0 {
		return b
	}
	return putElement(b, num, v)
}

// putElement is putBytes for an element of a list, where an empty one counts.
func putElement[T ~string | ~[]byte](b []byte, num uint64, v T) []byte {
	b = binary.AppendUvarint(b, num<<1|formBytes)
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func putInos(b []byte, num uint64, inos []Ino) []byte {
	if len(inos) == 0 {
		return b
	}
	n := 0
	for _, ino := range inos {
		n += (bits.Len64(uint64(ino)|1) + 6) / 7
	}
	b = binary.AppendUvarint(b, num<<1|formBytes)
	b = binary.AppendUvarint(b, uint64(n))
	for _, ino := range inos {
		b = binary.AppendUvarint(b, uint64(ino))
	}
	return b
}

// putHoles writes a list of uvarints: where each hole begins and ends.
func putHoles(b []byte, num uint64, holes []Hole) []byte {
	if len(holes) == 0 {
		return b
	}
	body := make([]byte, 0, 8*len(holes))
	for _, h := range holes {
		body = binary.AppendUvarint(body, uint64(h.Lo))
		body = binary.AppendUvarint(body, uint64(h.Hi))
	}
	return putElement(b, num, body)
}

// putMessage leaves a message without fields out, unless keep says that its
// being there means something.
func putMessage(b []byte, num uint64, m message, keep bool) []byte {
	start := len(b)
	b = binary.AppendUvarint(b, num<<1|formBytes)
	b = append(b, 0) // the length, if it fits one byte: most do
	body := len(b)
	b = m.fields(b)
	n := len(b) - body
	switch {
	case n == 0 && !keep:
		return b[:start]
	case n < 0x80:
		b[body-1] = byte(n)
		return b
	}
	var size [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(size[:], uint64(n))
	b = append(b, size[1:k]...) // room
	copy(b[body-1+k:], b[body:body+n])
	copy(b[body-1:], size[:k])
	return b
}

func putList[T any, P interface {
	*T
	message
}](b []byte, num uint64, list []T) []byte {
	for i := range list {
		b = putMessage(b, num, P(&list[i]), true)
	}
	return b
}

// Decoding.

// A decoder takes fields off the front of in. After an error in is empty and
// every value is zero.
type decoder struct {
	in     []byte
	form   uint64
	tag    uint64
	num    uint64 // value of the field it is at, if form is formUint
	data   []byte // and if it is formBytes
	budget int    // bytes that may still be allocated
	inside bool   // of a compound's part
	err    error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.in, d.num, d.data = nil, 0, nil
}

func (d *decoder) uvarint() uint64 {
	if len(d.in) > 0 && d.in[0] < 0x80 {
		v := d.in[0]
		d.in = d.in[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(d.in)
	if n <= 0 {
		d.fail(errMalformed)
		return 0
	}
	d.in = d.in[n:]
	return v
}

// next takes one field off in.
func (d *decoder) next() bool {
	if len(d.in) == 0 {
		return false
	}
	d.tag = d.uvarint()
	d.form = d.tag & 1
	d.num, d.data = d.uvarint(), nil
	if d.form == formBytes {
		if d.num > uint64(len(d.in)) {
			d.fail(errMalformed)
			return false
		}
		d.data, d.in = d.in[:d.num], d.in[d.num:]
	}
	return d.err == nil
}

// message takes all of in.
func (d *decoder) message(m message) {
	for d.next() {
		m.field(d.tag>>1, d)
	}
}

// sub decodes the field that d is at into m.
func (d *decoder) sub(m message) {
	body := d.bytes()
	rest := d.in
	d.in = body
	d.message(m)
	if d.err == nil {
		d.in = rest
	}
}

func (d *decoder) uint(most uint64) uint64 {
	if d.form != formUint || d.num > most {
		d.fail(errMalformed)
		return 0
	}
	return d.num
}

func (d *decoder) uint64() uint64 { return d.uint(math.MaxUint64) }
func (d *decoder) uint32() uint32 { return uint32(d.uint(math.MaxUint32)) }
func (d *decoder) uint16() uint16 { return uint16(d.uint(math.MaxUint16)) }
func (d *decoder) bool() bool     { return d.uint(1) == 1 }
func (d *decoder) ino() Ino       { return Ino(d.uint64()) }

func (d *decoder) int64() int64 {
	v := d.uint64()
	return int64(v>>1) ^ -int64(v&1)
}

func (d *decoder) bytes() []byte {
	if d.form != formBytes {
		d.fail(errMalformed)
		return nil
	}
	return d.data
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) clone() []byte {
	if p := d.bytes(); len(p) > 0 {
		return append(make([]byte, 0, len(p)), p...)
	}
	return nil
}

// allocate asks for n times size bytes of the budget.
func (d *decoder) allocate(n int, size uintptr) bool {
	d.budget -= n * int(size) // no overflow: n is at most len(in)
	if d.budget < 0 {
		d.fail(errors.New("message takes too much memory"))
	}
	return d.err == nil
}

// run counts the elements of the list that d is at the first element of.
func (d *decoder) run() int {
	ahead := decoder{in: d.in}
	n := 1
	for ahead.next() && ahead.tag == d.tag {
		n++
	}
	return n
}

// grow returns s with room for the element that d is at.
func grow[T any](d *decoder, s []T) []T {
	if len(s) < cap(s) {
		return s
	}
	n := d.run()
	var t T
	if !d.allocate(n+len(s), unsafe.Sizeof(t)) {
		return s
	}
	return append(make([]T, 0, len(s)+n), s...)
}

// element appends the element that d is at to s.
func element[T any, P interface {
	*T
	message
}](d *decoder, s []T) []T {
	s = grow(d, s)
	if d.err != nil {
		return s
	}
	s = s[:len(s)+1]
	d.sub(P(&s[len(s)-1]))
	return s
}

func (d *decoder) names(s []string) []string {
	s = grow(d, s)
	if d.err != nil {
		return s
	}
	return append(s, d.string())
}

func (d *decoder) inos(s []Ino) []Ino {
	body := d.bytes()
	n := 0
	for _, c := range body {
		if c < 0x80 {
			n++
		}
	}
	if len(body) == 0 || !d.allocate(n+len(s), unsafe.Sizeof(Ino(0))) {
		return s
	}
	s = append(make([]Ino, 0, len(s)+n), s...)
	rest := d.in
	d.in = body
	for len(d.in) > 0 {
		s = append(s, Ino(d.uvarint()))
	}
	if d.err == nil {
		d.in = rest
	}
	return s
}

// holes decodes a list of holes, which must ascend.
func (d *decoder) holes(s []Hole) []Hole {
	body := d.bytes()
	n := 0
	for _, c := range body {
		if c < 0x80 {
			n++
		}
	}
	if len(body) == 0 || !d.allocate(n/2+len(s), unsafe.Sizeof(Hole{})) {
		return s
	}
	s = append(make([]Hole, 0, len(s)+n/2), s...)
	rest := d.in
	d.in = body
	at := uint64(0)
	if len(s) > 0 {
		at = uint64(s[len(s)-1].Hi)
	}
	for len(d.in) > 0 {
		lo, hi := d.uvarint(), d.uvarint()
		if lo < at || hi <= lo || hi > math.MaxUint32 {
			d.fail(errMalformed)
			break
		}
		s = append(s, Hole{uint32(lo), uint32(hi)})
		at = hi
	}
	if d.err == nil {
		d.in = rest
	}
	return s
}

// parts decodes one part of a compound, of which none is a compound itself.
func parts[T any, P interface {
	*T
	message
}](d *decoder, s []T) []T {
	if d.inside || len(s) == MaxOps {
		d.fail(errors.New("compound is too deep or too long"))
		return s
	}
	d.inside = true
	s = element[T, P](d, s)
	d.inside = false
	return s
}

// The messages. Field numbers are part of the wire format.

func (t *Time) fields(b []byte) []byte {
	b = putInt(b, 1, t.Sec)
	return putUint(b, 2, uint64(t.Nsec))
}

func (t *Time) field(num uint64, d *decoder) {
	switch num {
	case 1:
		t.Sec = d.int64()
	case 2:
		t.Nsec = uint32(d.uint(1e9 - 1))
	}
}

func (a *Attr) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(a.Ino))
	b = putUint(b, 2, uint64(a.Mode))
	b = putUint(b, 3, uint64(a.Uid))
	b = putUint(b, 4, uint64(a.Gid))
	b = putUint(b, 5, uint64(a.Nlink))
	b = putUint(b, 6, uint64(a.Rdev))
	b = putUint(b, 7, a.Size)
	b = putUint(b, 8, a.Bytes)
	b = putMessage(b, 9, &a.Atime, false)
	b = putMessage(b, 10, &a.Mtime, false)
	b = putMessage(b, 11, &a.Ctime, false)
	b = putMessage(b, 12, &a.Btime, false)
	b = putUint(b, 13, a.Change)
	b = putUint(b, 14, a.Data)
	b = putUint(b, 15, uint64(a.Parent))
	b = putBytes(b, 16, a.Target)
	return putUint(b, 17, uint64(a.Xattrs))
}

func (a *Attr) field(num uint64, d *decoder) {
	switch num {
	case 1:
		a.Ino = d.ino()
	case 2:
		a.Mode = d.uint32()
	case 3:
		a.Uid = d.uint32()
	case 4:
		a.Gid = d.uint32()
	case 5:
		a.Nlink = d.uint32()
	case 6:
		a.Rdev = d.uint32()
	case 7:
		a.Size = d.uint64()
	case 8:
		a.Bytes = d.uint64()
	case 9:
		d.sub(&a.Atime)
	case 10:
		d.sub(&a.Mtime)
	case 11:
		d.sub(&a.Ctime)
	case 12:
		d.sub(&a.Btime)
	case 13:
		a.Change = d.uint64()
	case 14:
		a.Data = d.uint64()
	case 15:
		a.Parent = d.ino()
	case 16:
		a.Target = d.string()
	case 17:
		a.Xattrs = d.uint32()
	}
}

func (e *Entry) fields(b []byte) []byte {
	b = putBytes(b, 1, e.Name)
	b = putMessage(b, 2, &e.Attr, false)
	if e.Block != nil {
		b = putMessage(b, 3, e.Block, true)
	}
	return b
}

func (e *Entry) field(num uint64, d *decoder) {
	switch num {
	case 1:
		e.Name = d.string()
	case 2:
		d.sub(&e.Attr)
	case 3:
		if e.Block == nil && d.allocate(1, unsafe.Sizeof(Block{})) {
			e.Block = new(Block)
		}
		if e.Block != nil {
			d.sub(e.Block)
		}
	}
}

func (e *Deleted) fields(b []byte) []byte {
	b = putBytes(b, 1, e.Name)
	b = putInt(b, 2, e.At)
	return putMessage(b, 3, &e.Attr, false)
}

func (e *Deleted) field(num uint64, d *decoder) {
	switch num {
	case 1:
		e.Name = d.string()
	case 2:
		e.At = d.int64()
	case 3:
		d.sub(&e.Attr)
	}
}

func (g *Gen) fields(b []byte) []byte {
	b = putUint(b, 1, g.Session)
	return putUint(b, 2, g.Seq)
}

func (g *Gen) field(num uint64, d *decoder) {
	switch num {
	case 1:
		g.Session = d.uint64()
	case 2:
		g.Seq = d.uint64()
	}
}

func (k *Block) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(k.Index))
	b = putMessage(b, 2, &k.Gen, false)
	b = putUint(b, 3, uint64(k.Len))
	b = putBool(b, 4, k.Inline)
	b = putBytes(b, 5, k.Data)
	b = putMessage(b, 6, &k.Base, false)
	b = putBool(b, 7, k.Whole)
	b = putUint(b, 8, uint64(k.BaseLen))
	b = putHoles(b, 9, k.Holes)
	b = putHoles(b, 10, k.BaseHoles)
	return putMessage(b, 11, &k.Origin, false)
}

func (k *Block) field(num uint64, d *decoder) {
	switch num {
	case 1:
		k.Index = d.uint32()
	case 2:
		d.sub(&k.Gen)
	case 3:
		k.Len = d.uint32()
	case 4:
		k.Inline = d.bool()
	case 5:
		k.Data = d.clone()
	case 6:
		d.sub(&k.Base)
	case 7:
		k.Whole = d.bool()
	case 8:
		k.BaseLen = d.uint32()
	case 9:
		k.Holes = d.holes(k.Holes)
	case 10:
		k.BaseHoles = d.holes(k.BaseHoles)
	case 11:
		d.sub(&k.Origin)
	}
}

func (o *Origin) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(o.Ino))
	return putUint(b, 2, uint64(o.Index))
}

func (o *Origin) field(num uint64, d *decoder) {
	switch num {
	case 1:
		o.Ino = d.ino()
	case 2:
		o.Index = d.uint32()
	}
}

func (l *Lock) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(l.Type))
	b = putBool(b, 2, l.Flock)
	b = putUint(b, 3, l.Owner)
	b = putUint(b, 4, uint64(l.Pid))
	b = putUint(b, 5, l.Start)
	b = putUint(b, 6, l.End)
	return putBool(b, 7, l.Alone)
}

func (l *Lock) field(num uint64, d *decoder) {
	switch num {
	case 1:
		l.Type = d.uint32()
	case 2:
		l.Flock = d.bool()
	case 3:
		l.Owner = d.uint64()
	case 4:
		l.Pid = d.uint32()
	case 5:
		l.Start = d.uint64()
	case 6:
		l.End = d.uint64()
	case 7:
		l.Alone = d.bool()
	}
}

func (l *InoLock) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(l.Ino))
	return putMessage(b, 2, &l.Lock, false)
}

func (l *InoLock) field(num uint64, d *decoder) {
	switch num {
	case 1:
		l.Ino = d.ino()
	case 2:
		d.sub(&l.Lock)
	}
}

func (s *Statfs) fields(b []byte) []byte {
	b = putUint(b, 1, s.Bytes)
	b = putUint(b, 2, s.MaxBytes)
	b = putUint(b, 3, s.Inodes)
	return putUint(b, 4, s.MaxInodes)
}

func (s *Statfs) field(num uint64, d *decoder) {
	switch num {
	case 1:
		s.Bytes = d.uint64()
	case 2:
		s.MaxBytes = d.uint64()
	case 3:
		s.Inodes = d.uint64()
	case 4:
		s.MaxInodes = d.uint64()
	}
}

func (v *Inval) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(v.Ino))
	b = putBool(b, 2, v.Attr)
	b = putBool(b, 3, v.Data)
	b = putBool(b, 4, v.Entries)
	for _, name := range v.Names {
		b = putElement(b, 5, name)
	}
	return b
}

func (v *Inval) field(num uint64, d *decoder) {
	switch num {
	case 1:
		v.Ino = d.ino()
	case 2:
		v.Attr = d.bool()
	case 3:
		v.Data = d.bool()
	case 4:
		v.Entries = d.bool()
	case 5:
		v.Names = d.names(v.Names)
	}
}

func (v *Volume) fields(b []byte) []byte {
	b = putBytes(b, 1, v.ID)
	b = putBytes(b, 2, v.Name)
	b = putUint(b, 3, uint64(v.BlockSize))
	b = putUint(b, 4, uint64(v.InlineMax))
	b = putBool(b, 5, v.ReadOnly)
	return putInt(b, 6, v.At)
}

func (v *Volume) field(num uint64, d *decoder) {
	switch num {
	case 1:
		v.ID = d.string()
	case 2:
		v.Name = d.string()
	case 3:
		v.BlockSize = d.uint32()
	case 4:
		v.InlineMax = d.uint32()
	case 5:
		v.ReadOnly = d.bool()
	case 6:
		v.At = d.int64()
	}
}

func (q *Request) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(q.Op))
	b = putUint(b, 2, uint64(q.Slot))
	b = putUint(b, 3, uint64(q.Seq))
	b = putUint(b, 4, uint64(q.Ino))
	b = putUint(b, 5, uint64(q.Ino2))
	b = putBytes(b, 6, q.Name)
	b = putBytes(b, 7, q.Name2)
	b = putUint(b, 8, uint64(q.Mode))
	b = putUint(b, 9, uint64(q.Uid))
	b = putUint(b, 10, uint64(q.Gid))
	b = putUint(b, 11, uint64(q.Rdev))
	b = putUint(b, 12, uint64(q.Flags))
	b = putUint(b, 13, uint64(q.Set))
	b = putMessage(b, 14, &q.Attr, false)
	b = putMessage(b, 15, &q.Time, false)
	b = putUint(b, 16, q.Size)
	b = putUint(b, 17, uint64(q.Index))
	b = putUint(b, 18, uint64(q.Index2))
	b = putUint(b, 19, uint64(q.Limit))
	b = putBytes(b, 20, q.Data)
	b = putList(b, 21, q.Blocks)
	b = putMessage(b, 22, &q.Lock, false)
	b = putBool(b, 23, q.Plus)
	b = putBool(b, 24, q.Exist)
	b = putBool(b, 25, q.Wait)
	b = putUint(b, 26, q.ID)
	b = putInos(b, 27, q.Inos)
	b = putList(b, 28, q.Locks)
	b = putList(b, 29, q.Invals)
	b = putList(b, 30, q.Ops)
	b = putBytes(b, 31, q.Token)
	b = putBytes(b, 32, q.Volume)
	b = putBytes(b, 33, q.Secret)
	b = putUint(b, 34, q.Session)
	b = putUint(b, 35, uint64(q.Version))
	b = putUint(b, 36, uint64(q.Umask))
	b = putInt(b, 37, q.At)
	b = putBool(b, 38, q.Delegate)
	return putBool(b, 39, q.Partial)
}

func (q *Request) field(num uint64, d *decoder) {
	switch num {
	case 1:
		q.Op = Op(d.uint16())
	case 2:
		q.Slot = d.uint16()
	case 3:
		q.Seq = d.uint32()
	case 4:
		q.Ino = d.ino()
	case 5:
		q.Ino2 = d.ino()
	case 6:
		q.Name = d.string()
	case 7:
		q.Name2 = d.string()
	case 8:
		q.Mode = d.uint32()
	case 9:
		q.Uid = d.uint32()
	case 10:
		q.Gid = d.uint32()
	case 11:
		q.Rdev = d.uint32()
	case 12:
		q.Flags = d.uint32()
	case 13:
		q.Set = SetMask(d.uint32())
	case 14:
		d.sub(&q.Attr)
	case 15:
		d.sub(&q.Time)
	case 16:
		q.Size = d.uint64()
	case 17:
		q.Index = d.uint32()
	case 18:
		q.Index2 = d.uint32()
	case 19:
		q.Limit = d.uint32()
	case 20:
		q.Data = d.clone()
	case 21:
		q.Blocks = element(d, q.Blocks)
	case 22:
		d.sub(&q.Lock)
	case 23:
		q.Plus = d.bool()
	case 24:
		q.Exist = d.bool()
	case 25:
		q.Wait = d.bool()
	case 26:
		q.ID = d.uint64()
	case 27:
		q.Inos = d.inos(q.Inos)
	case 28:
		q.Locks = element(d, q.Locks)
	case 29:
		q.Invals = element(d, q.Invals)
	case 30:
		q.Ops = parts(d, q.Ops)
	case 31:
		q.Token = d.string()
	case 32:
		q.Volume = d.string()
	case 33:
		q.Secret = d.string()
	case 34:
		q.Session = d.uint64()
	case 35:
		q.Version = d.uint32()
	case 36:
		q.Umask = d.uint32()
	case 37:
		q.At = d.int64()
	case 38:
		q.Delegate = d.bool()
	case 39:
		q.Partial = d.bool()
	}
}

func (r *Reply) fields(b []byte) []byte {
	b = putUint(b, 1, uint64(r.Errno))
	b = putBytes(b, 2, r.Msg)
	b = putBool(b, 3, r.Cache)
	b = putMessage(b, 4, &r.Attr, false)
	b = putMessage(b, 5, &r.Parent, false)
	b = putMessage(b, 6, &r.Parent2, false)
	b = putMessage(b, 7, &r.Replaced, false)
	if r.Block != nil {
		b = putMessage(b, 8, r.Block, true)
	}
	b = putList(b, 9, r.Blocks)
	b = putList(b, 10, r.Entries)
	b = putBool(b, 11, r.EOF)
	b = putBool(b, 12, r.Existed)
	b = putBytes(b, 13, r.Data)
	for _, name := range r.Names {
		b = putElement(b, 14, name)
	}
	b = putMessage(b, 15, &r.Lock, false)
	b = putMessage(b, 16, &r.Statfs, false)
	b = putInos(b, 17, r.Inos)
	b = putList(b, 18, r.Replies)
	b = putUint(b, 19, r.Session)
	b = putBytes(b, 20, r.Secret)
	b = putUint(b, 21, uint64(r.Version))
	b = putInt(b, 22, int64(r.Lease))
	b = putMessage(b, 23, &r.VolumeInfo, false)
	b = putMessage(b, 24, &r.Time, false)
	b = putList(b, 25, r.Deleted)
	b = putMessage(b, 26, &r.Next, false)
	return putBool(b, 27, r.Delegated)
}

func (r *Reply) field(num uint64, d *decoder) {
	switch num {
	case 1:
		r.Errno = syscall.Errno(d.uint(maxErrno))
	case 2:
		r.Msg = d.string()
	case 3:
		r.Cache = d.bool()
	case 4:
		d.sub(&r.Attr)
	case 5:
		d.sub(&r.Parent)
	case 6:
		d.sub(&r.Parent2)
	case 7:
		d.sub(&r.Replaced)
	case 8:
		r.Block = new(Block)
		d.sub(r.Block)
	case 9:
		r.Blocks = element(d, r.Blocks)
	case 10:
		r.Entries = element(d, r.Entries)
	case 11:
		r.EOF = d.bool()
	case 12:
		r.Existed = d.bool()
	case 13:
		r.Data = d.clone()
	case 14:
		r.Names = d.names(r.Names)
	case 15:
		d.sub(&r.Lock)
	case 16:
		d.sub(&r.Statfs)
	case 17:
		r.Inos = d.inos(r.Inos)
	case 18:
		r.Replies = parts(d, r.Replies)
	case 19:
		r.Session = d.uint64()
	case 20:
		r.Secret = d.string()
	case 21:
		r.Version = d.uint32()
	case 22:
		r.Lease = time.Duration(d.int64())
	case 23:
		d.sub(&r.VolumeInfo)
	case 24:
		d.sub(&r.Time)
	case 25:
		r.Deleted = element(d, r.Deleted)
	case 26:
		d.sub(&r.Next)
	case 27:
		r.Delegated = d.bool()
	}
}

// maxErrno is the largest error number of Linux, whose numbers are the ones on
// the wire.
const maxErrno = 4095
