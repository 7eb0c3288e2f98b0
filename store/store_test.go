package store_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"flexfs/store"
)

// The names and hashes are pinned: the names are those of objects in existing
// buckets, and clients and proxies of different builds must agree on the hashes.
// A change that breaks this test breaks its users.
var pinned = []struct {
	key  store.Key
	name string
	hash uint64
}{
	{
		store.Key{},
		"00000000-0000-0000-0000-000000000000/0000/0/0/0-0", 0x9065d5f9f9c1e615,
	},
	{
		store.Key{Volume: store.Volume{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, Ino: 1, Gen: store.Gen{Session: 1, Seq: 1}},
		"00010203-0405-0607-0809-0a0b0c0d0e0f/b456/1/0/1-1", 0x60ce13d8d527127b,
	},
	{
		store.Key{Volume: store.Volume{0xde, 0xad, 0xbe, 0xef, 15: 0xff}, Ino: 0x123456789, Index: 77, Gen: store.Gen{Session: 0x1f, Seq: 0xabcdef}},
		"deadbeef-0000-0000-0000-0000000000ff/9a71/123456789/4d/1f-abcdef", 0x521766011352e4e4,
	},
	{
		store.Key{Volume: store.Volume{15: 1}, Ino: 1<<64 - 1, Index: 1<<32 - 1, Gen: store.Gen{Session: 1<<64 - 1, Seq: 1<<64 - 1}},
		"00000000-0000-0000-0000-000000000001/64b5/ffffffffffffffff/ffffffff/ffffffffffffffff-ffffffffffffffff", 0x95918fab3e71f86a,
	},
}

func TestKeysArePinned(t *testing.T) {
	for _, p := range pinned {
		if got := p.key.String(); got != p.name {
			t.Errorf("the name of %#v is %s, was %s", p.key, got, p.name)
		}
		if got := p.key.Hash(); got != p.hash {
			t.Errorf("the hash of %s is %#x, was %#x", p.name, got, p.hash)
		}
		if got, err := store.ParseKey(p.name); got != p.key || err != nil {
			t.Errorf("ParseKey(%s) = %#v, %v", p.name, got, err)
		}
	}
}

func TestTheHashOfAKeyDoesNotDependOnItsVersion(t *testing.T) {
	a := pinned[2].key
	b := a
	b.Gen = store.Gen{Session: 99, Seq: 100}
	if a.Hash() != b.Hash() {
		t.Error("two versions of a block have different owners")
	}
	b.Index++
	if a.Hash() == b.Hash() {
		t.Error("two blocks of a file have the same hash")
	}
}

func TestParseKeyTakesNoOtherForm(t *testing.T) {
	good := pinned[2].name
	for _, s := range []string{
		"", "/", good + "/", "/" + good, good + "0/", strings.ToUpper(good),
		strings.Replace(good, "9a71", "9a72", 1), // another inode's spread
		strings.Replace(good, "/4d/", "/04d/", 1),
		strings.Replace(good, "/4d/", "/1000000000/", 1),
		strings.Replace(good, "/4d/", "//", 1),
		strings.Replace(good, "1f-", "1f_", 1),
		strings.Replace(good, "1f-", "+1f-", 1),
		strings.Replace(good, "1f-", "-1f-", 1),
		strings.Replace(good, "deadbeef-", "deadbeef", 1),
		strings.Replace(good, "deadbeef", "deadbeeg", 1),
		"../" + good,
	} {
		if key, err := store.ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v", s, key)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, p := range pinned {
		f.Add(p.name)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if key, err := store.ParseKey(s); err == nil && key.String() != s {
			t.Errorf("ParseKey(%q) prints as %q", s, key)
		}
	})
}

func FuzzKeyString(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), uint64(1), uint32(2), uint64(3), uint64(4))
	f.Fuzz(func(t *testing.T, volume []byte, ino uint64, index uint32, session, seq uint64) {
		key := store.Key{Ino: ino, Index: index, Gen: store.Gen{Session: session, Seq: seq}}
		copy(key.Volume[:], volume)
		if got, err := store.ParseKey(key.String()); got != key || err != nil {
			t.Errorf("ParseKey(%v) = %v, %v", key, got, err)
		}
	})
}

func TestClip(t *testing.T) {
	block := []byte("0123456789")
	for _, test := range []struct {
		off, n int64
		want   string
	}{
		{0, -1, "0123456789"}, {0, 10, "0123456789"}, {0, 11, "0123456789"}, {0, 3, "012"},
		{4, -1, "456789"}, {4, 2, "45"}, {9, 5, "9"}, {10, 1, ""}, {11, -1, ""}, {1 << 62, 1 << 62, ""}, {3, 0, ""}, {-1, 5, ""},
	} {
		got := store.Clip(block, test.off, test.n)
		if string(got) != test.want {
			t.Errorf("Clip(%d, %d) = %q, want %q", test.off, test.n, got, test.want)
		}
		_ = append(got, '!') // must not reach into the block
		if test.off+test.n < 10 && !bytes.Equal(block, []byte("0123456789")) {
			t.Fatalf("appending to Clip(%d, %d) changed the block", test.off, test.n)
		}
	}
}

func TestVerifyTravelsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(store.WithVerify(t.Context()))
	defer cancel()
	if !store.MustVerify(ctx) || store.MustVerify(t.Context()) {
		t.Error("MustVerify does not tell a context of WithVerify from another")
	}
}

// A stub answers each call with the next of its errors, then with success.
type stub struct {
	errs  []error
	calls int
	data  []byte
}

func (s *stub) next() error {
	s.calls++
	if s.calls <= len(s.errs) {
		return s.errs[s.calls-1]
	}
	return nil
}

func (s *stub) Get(_ context.Context, _ store.Key, off, n int64) ([]byte, error) {
	return s.data, s.next()
}
func (s *stub) Put(context.Context, store.Key, []byte) error { return s.next() }
func (s *stub) Delete(context.Context, store.Key) error      { return s.next() }

func TestDeleteAllWithoutABulkDeleterStopsAtTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	s := &stub{errs: []error{nil, broken}}
	if err := store.DeleteAll(t.Context(), s, make([]store.Key, 5)); !errors.Is(err, broken) || s.calls != 2 {
		t.Errorf("DeleteAll: %v after %d calls", err, s.calls)
	}
}

func TestGetFramesOfAnOrdinaryStoreIsUnsupported(t *testing.T) {
	for name, s := range map[string]store.Store{
		"bare":    &stub{},
		"retried": store.Retry(&stub{}, 3, 0),
		"limited": store.Limit(&stub{}, 3),
	} {
		if _, _, err := store.GetFrames(t.Context(), s, store.Key{}, 0, 1); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
