package meta

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

// fill sets every field of v, and of what it contains, to a value that is not
// zero and differs from those of its neighbours.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(int64(-*n)) // Time.Sec, Reply.Lease: may be negative
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		v.SetUint(uint64(*n)) // an Errno is a uintptr
	default:
		panic(fmt.Sprint("no idea how to fill a ", v.Type()))
	}
}

// filledRequest has every field set, and a part with every field set but the
// parts that it must not have.
func filledRequest() *Request {
	n := 0
	part := Request{Name: "part"}
	q := &Request{Ops: []Request{part}}
	fillBut(reflect.ValueOf(q).Elem(), "Ops", &n)
	q.Ops = []Request{part, {}}
	fillBut(reflect.ValueOf(&q.Ops[1]).Elem(), "Ops", &n)
	return q
}

func filledReply() *Reply {
	n := 0
	r := &Reply{}
	fillBut(reflect.ValueOf(r).Elem(), "Replies", &n)
	r.Replies = []Reply{{EOF: true}, {}}
	fillBut(reflect.ValueOf(&r.Replies[1]).Elem(), "Replies", &n)
	return r
}

func fillBut(v reflect.Value, but string, n *int) {
	for i := range v.NumField() {
		if v.Type().Field(i).Name != but {
			fill(v.Field(i), n)
		}
	}
}

func TestEveryFieldOfARequestIsCarried(t *testing.T) {
	want := filledRequest()
	var got Request
	if err := got.Decode(want.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("decoded\n%+v\nwant\n%+v", got, *want)
	}
}

func TestEveryFieldOfAReplyIsCarried(t *testing.T) {
	want := filledReply()
	var got Reply
	if err := got.Decode(want.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("decoded\n%+v\nwant\n%+v", got, *want)
	}
}

// Each field alone, so that none is carried only in the company of another.
func TestEachFieldIsCarriedAlone(t *testing.T) {
	alone := func(t *testing.T, full, empty, got message, decode func([]byte) error) {
		from, to := reflect.ValueOf(full).Elem(), reflect.ValueOf(empty).Elem()
		for i := range from.NumField() {
			name := from.Type().Field(i).Name
			to.SetZero()
			to.Field(i).Set(from.Field(i))
			b := empty.fields(nil)
			if len(b) == 0 {
				t.Errorf("%T.%s is not encoded", full, name)
			}
			if err := decode(b); err != nil {
				t.Errorf("%T.%s: %v", full, name, err)
			}
			if !reflect.DeepEqual(got, empty) {
				t.Errorf("%T.%s: decoded %+v, want %+v", full, name, got, empty)
			}
		}
	}
	var q Request
	alone(t, filledRequest(), &Request{}, &q, q.Decode)
	var r Reply
	alone(t, filledReply(), &Reply{}, &r, r.Decode)
}

func TestZeroIsEncodedAsNothing(t *testing.T) {
	if b := new(Request).Append(nil); len(b) != 0 {
		t.Errorf("an empty request is % x", b)
	}
	if b := new(Reply).Append(nil); len(b) != 0 {
		t.Errorf("an empty reply is % x", b)
	}
}

func TestZeroElementsOfListsCount(t *testing.T) {
	want := &Reply{
		Block:   &Block{},
		Blocks:  make([]Block, 3),
		Entries: make([]Entry, 2),
		Names:   []string{"", "", ""},
		Inos:    []Ino{0, 0},
		Replies: make([]Reply, 2),
	}
	var got Reply
	if err := got.Decode(want.Append(nil)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("decoded %+v, want %+v", got, *want)
	}
}

// Messages of 127 and 128 bytes differ in the size of their length.
func TestMessagesOfAllLengthsAreCarried(t *testing.T) {
	for n := range 300 {
		want := &Reply{Attr: Attr{Target: strings.Repeat("x", n)}, EOF: true}
		var got Reply
		if err := got.Decode(want.Append([]byte("before"))[6:]); err != nil {
			t.Fatalf("target of %d bytes: %v", n, err)
		}
		if !reflect.DeepEqual(&got, want) {
			t.Fatalf("target of %d bytes: decoded %+v", n, got)
		}
	}
}

// The bytes of the wire format. A change of any of them breaks clients and
// servers that are out there, and the answers that the service has stored: do
// not adapt this test, but add a field with a new number.
func TestBytesOfTheWireFormat(t *testing.T) {
	q := &Request{
		Op: OpMake, Slot: 3, Seq: 300, Ino: 1, Name: "a", Mode: 0o100644,
		Time: Time{Sec: -2, Nsec: 5}, Data: []byte{0xff}, Inos: []Ino{1, 200},
		Ops: []Request{{Op: OpPing}, {}}, Version: 1,
	}
	r := &Reply{
		Errno: 2, Msg: "no", Cache: true,
		Attr:  Attr{Ino: 7, Size: 1 << 40, Mtime: Time{Sec: 1}},
		Block: &Block{}, Blocks: []Block{{Index: 9, Gen: Gen{1, 2}, Len: 10, Inline: true}},
		Entries: []Entry{{Name: "n", Attr: Attr{Ino: 8}}}, Names: []string{""},
		Lease: 10 * time.Second, VolumeInfo: Volume{ID: "v"},
	}
	for _, test := range []struct {
		name string
		m    message
		want string
	}{
		{"request", q, "0208" + "0403" + "06ac02" + "0801" + "0d0161" + "10a48302" +
			"1f04" + "0203" + "0405" + "2901ff" + "3703" + "01" + "c801" +
			"3d02" + "0202" + "3d00" + "4601"},
		{"request with a umask", &Request{Op: OpMake, Umask: 0o22}, "0208" + "4812"},
		{"reply", r, "0202" + "05026e6f" + "0601" + "090d" + "0207" + "0e808080808020" + "1502" + "0202" +
			"1100" + "130c" + "0209" + "05040201" + "0402" + "060a" + "0801" +
			"1507" + "03016e" + "0502" + "0208" + "1d00" + "2c8090dfc04a" + "2f03" + "030176"},
		{"reply with an entry and its block", &Reply{Entries: []Entry{{Name: "n", Attr: Attr{Ino: 8}, Block: &Block{Len: 2}}}},
			"150b" + "03016e" + "0502" + "0208" + "0702" + "0602"},
		{"reply to a ping", &Reply{Time: Time{Sec: 1, Nsec: 5}}, "3104" + "0202" + "0405"},
		{"block", &Block{
			Index: 2, Gen: Gen{3, 4}, Len: 20000, Holes: []Hole{{0, 4096}, {8192, 12288}}, Origin: Origin{5, 6},
			Base: Gen{3, 1}, BaseLen: 16384, BaseHoles: []Hole{{4096, 8192}},
		}, "0202" + "050402030404" + "06a09c01" + "0d0402030401" + "10808001" +
			"1307" + "00" + "8020" + "8040" + "8060" + "1504" + "8020" + "8040" + "1704" + "0205" + "0406"},
	} {
		if got := hex.EncodeToString(test.m.fields(nil)); got != test.want {
			t.Errorf("the %s is encoded as\n%s, want\n%s", test.name, got, test.want)
		}
	}
}

func TestOpsKeepTheirNumbers(t *testing.T) {
	want := strings.Fields("op(0) hello ping bye lookup getattr readdir blocks make link unlink" +
		" rmdir rename setattr commit punch getxattr listxattr setxattr removexattr statfs" +
		" getlk setlk cancel close compound inval clone removetree deleted restore reserve op(32)")
	for i, name := range want {
		if got := Op(i).String(); got != name {
			t.Errorf("operation %d is %q, want %q", i, got, name)
		}
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	want := &Request{Op: OpLookup, Ino: 3, Name: "x"}
	b := putUint(nil, 1000, 5)
	b = putBytes(b, 1001, "from the future")
	b = want.Append(b)
	b = putUint(b, 1<<40, 1)
	var got Request
	if err := got.Decode(b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&got, want) {
		t.Errorf("decoded %+v, want %+v", got, *want)
	}
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	compound := (&Request{Ops: []Request{{Op: OpPing}}}).Append(nil)
	for name, b := range map[string][]byte{
		"a cut tag":                    {0x80},
		"a cut number":                 {0x02, 0x80},
		"a number of 65 bits":          {0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"an op of 17 bits":             putUint(nil, 1, 1<<16),
		"a mode of 33 bits":            putUint(nil, 8, 1<<32),
		"a bool of 2":                  putUint(nil, 23, 2),
		"a number for a string":        putUint(nil, 6, 1),
		"a string for a number":        putBytes(nil, 4, "x"),
		"a number for a message":       putUint(nil, 14, 1),
		"a string beyond the end":      {0x0d, 5, 'x'},
		"a message beyond its parent":  putElement(nil, 22, []byte{0x0d, 5, 'x'}),
		"a list of cut numbers":        putElement(nil, 27, []byte{0x80}),
		"half a hole":                  putElement(nil, 21, putElement(nil, 9, []byte{1})),
		"holes that go back":           putElement(nil, 21, putElement(nil, 9, []byte{5, 6, 1, 2})),
		"an empty hole":                putElement(nil, 21, putElement(nil, 9, []byte{5, 5})),
		"a billion nanoseconds":        putMessage(nil, 15, &Time{Nsec: 1e9}, false),
		"a compound within a compound": putElement(nil, 30, compound),
		"too many operations":          (&Request{Ops: make([]Request, MaxOps+1)}).Append(nil),
	} {
		var q Request
		if err := q.Decode(b); err == nil {
			t.Errorf("%s is decoded as %+v", name, q)
		}
	}
	if err := new(Reply).Decode(putUint(nil, 1, 4096)); err == nil {
		t.Error("an error number of 4096 is decoded")
	}
}

// Two bytes on the wire are an empty element of a list: a frame of them must not
// become a gigabyte of memory.
func TestHostileMessagesTakeBoundedMemory(t *testing.T) {
	for name, element := range map[string][]byte{
		"entries":                     {10<<1 | formBytes, 0},
		"blocks":                      {9<<1 | formBytes, 0},
		"names":                       {14<<1 | formBytes, 0},
		"entries and blocks in turns": {10<<1 | formBytes, 0, 9<<1 | formBytes, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Repeat(element, 1<<20/len(element))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			var r Reply
			err := r.Decode(b)
			runtime.ReadMemStats(&after)
			if most, took := uint64(2*(decodeBase+decodeFactor*len(b))), after.TotalAlloc-before.TotalAlloc; took > most {
				t.Errorf("decoding %d bytes took %d bytes of memory, want at most %d (error %v)", len(b), took, most, err)
			}
		})
	}
}

func TestADecodedMessageKeepsNothingOfItsBytes(t *testing.T) {
	want := filledReply()
	b := want.Append(nil)
	var got Reply
	if err := got.Decode(b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if !reflect.DeepEqual(&got, want) {
		t.Error("the reply changed with the bytes it was decoded from")
	}
}

// A field that comes twice may leave traces of the first one, so what a decoded
// message encodes to need not be the bytes it was decoded from. But it is the
// same message.
func FuzzDecodeRequest(f *testing.F) {
	f.Add(filledRequest().Append(nil))
	f.Add((&Request{Op: OpCommit, Ino: 3, Blocks: []Block{{Index: 1}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var q, again Request
		if q.Decode(b) != nil {
			return
		}
		if err := again.Decode(q.Append(nil)); err != nil {
			t.Fatalf("%+v cannot be decoded again: %v", q, err)
		}
		if !reflect.DeepEqual(q, again) {
			t.Fatalf("%+v became %+v", q, again)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	f.Add(filledReply().Append(nil))
	f.Add((&Reply{Errno: 2}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again Reply
		if r.Decode(b) != nil {
			return
		}
		if err := again.Decode(r.Append(nil)); err != nil {
			t.Fatalf("%+v cannot be decoded again: %v", r, err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

func someAttr(ino Ino) Attr {
	now := Time{Sec: 1_800_000_000, Nsec: 123_456_789}
	return Attr{Ino: ino, Mode: 0o100644, Uid: 1000, Gid: 1000, Nlink: 1, Size: 123456, Bytes: 131072,
		Atime: now, Mtime: now, Ctime: now, Btime: now, Change: 12, Data: 3, Xattrs: 1}
}

func BenchmarkLookupReply(b *testing.B) {
	r := &Reply{Attr: someAttr(123456), Cache: true}
	buf := r.Append(nil)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			buf = r.Append(buf[:0])
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(buf)))
		var got Reply
		for b.Loop() {
			if err := got.Decode(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReaddirReply(b *testing.B) {
	r := &Reply{}
	for i := range 1000 {
		r.Entries = append(r.Entries, Entry{Name: fmt.Sprintf("file-%06d.dat", i), Attr: someAttr(Ino(1000 + i))})
	}
	buf := r.Append(nil)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			buf = r.Append(buf[:0])
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(buf)))
		var got Reply
		for b.Loop() {
			if err := got.Decode(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
