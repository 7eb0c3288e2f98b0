package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

func variants() map[string]seal.Options {
	m := make(map[string]seal.Options)
	for _, codec := range []seal.Codec{seal.None, seal.LZ4, seal.Zstd} {
		m[codec.String()] = seal.Options{Codec: codec}
		m[codec.String()+" encrypted"] = seal.Options{Codec: codec, Secret: []byte("correct horse")}
	}
	return m
}

// sealers are the variants, for tests that may share them: deriving keys takes
// long.
var sealers = sync.OnceValue(func() map[string]*seal.Sealer {
	m := make(map[string]*seal.Sealer)
	for name, opt := range variants() {
		m[name] = seal.NewSealer(opt)
	}
	return m
})

func TestSealed(t *testing.T) {
	for _, name := range []string{"lz4", "zstd encrypted"} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return sealers()[name].Over(mem.New(t)) })
		})
	}
}

// framed is a Store that answers GetFrames itself, and refuses ranges.
type framed struct {
	store.Store
	t *testing.T
}

func (f framed) GetFrames(ctx context.Context, key store.Key, off, n int64) (head, frames []byte, err error) {
	return seal.GetFrames(ctx, f.Store, key, off, n)
}

func (f framed) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if off != 0 || n >= 0 {
		f.t.Errorf("Get(%d, %d) of a store that can GetFrames", off, n)
	}
	return f.Store.Get(ctx, key, off, n)
}

func TestSealedOverFrames(t *testing.T) {
	for _, name := range []string{"none", "lz4 encrypted"} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return sealers()[name].Over(framed{mem.New(t), t}) })
		})
	}
}

// A counter counts the requests and bytes that a bucket would see.
type counter struct {
	store.Store
	gets, bytes int
}

func (c *counter) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := c.Store.Get(ctx, key, off, n)
	c.gets++
	c.bytes += len(data)
	return data, err
}

func TestARandomReadCostsItsFramesOnly(t *testing.T) {
	bucket := &counter{Store: mem.New(t)}
	key := storetest.Key(1)
	opt := seal.Options{Codec: seal.LZ4}
	if err := seal.New(bucket, opt).Put(t.Context(), key, storetest.Data(key, 4<<20)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name       string
		off        int64
		gets, most int
	}{
		{"in the first frame", 5000, 1, 140_000},
		{"cold", 3 << 20, 2, 140_000},
		{"across two frames", 128<<10*3 - 100, 2, 270_000},
	} {
		s := seal.New(bucket, opt) // knows no heads
		for _, again := range []bool{false, true} {
			bucket.gets, bucket.bytes = 0, 0
			if _, err := s.Get(t.Context(), key, test.off, 4096); err != nil {
				t.Fatal(err)
			}
			gets := test.gets
			if again {
				gets = 1
			}
			if bucket.gets != gets || bucket.bytes > test.most {
				t.Errorf("4 KiB %s (again: %v) took %d requests for %d bytes, want %d for at most %d",
					test.name, again, bucket.gets, bucket.bytes, gets, test.most)
			}
		}
	}
}

// Where the blocks before were stored as they are, the frames of one whose head is
// not known are read together with it; a wrong guess costs a request and no more.
func TestFramesAreReadWithTheHeadWhereTheyShouldBe(t *testing.T) {
	bucket := &meeting{Store: mem.New(t), met: make(chan struct{})}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	raw, packed := seal.Options{Codec: seal.None}, seal.Options{Codec: seal.LZ4}
	const blocks = 12
	plain := map[int][]byte{}
	for i := range blocks {
		opt, size := raw, 2<<20
		switch i {
		case 6:
			size = 1 << 20 // of the same kind, but elsewhere
		case 8: // so small that the frames come with the head
			opt = packed
		}
		plain[i] = bytes.Repeat([]byte{byte(i + 1), 2, 3, 4}, size/4)
		if err := seal.New(bucket, opt).Put(t.Context(), storetest.Key(i), plain[i]); err != nil {
			t.Fatal(err)
		}
	}
	s := seal.New(bucket, raw)
	for i := range blocks {
		const off, n = 3*128<<10 + 100, 4096
		bucket.gets.Store(0)
		bucket.wait.Store(i >= 3 && i <= 8) // both requests are on their way before one is answered
		got, err := s.Get(ctx, storetest.Key(i), off, n)
		if err != nil || !bytes.Equal(got, plain[i][off:off+n]) {
			t.Errorf("block %d: %d bytes, %v", i, len(got), err)
		}
		want := int64(2)
		if i == 6 {
			want = 3
		}
		if gets := bucket.gets.Load(); gets != want {
			t.Errorf("block %d took %d requests, want %d", i, gets, want)
		}
	}
}

// A meeting has the first two requests wait for each other, if they are to.
type meeting struct {
	store.Store
	met  chan struct{}
	wait atomic.Bool
	gets atomic.Int64
}

func (m *meeting) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	if nth := m.gets.Add(1); m.wait.Load() && nth <= 2 {
		select {
		case m.met <- struct{}{}:
		case <-m.met:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return m.Store.Get(ctx, key, off, n)
}

func encode(t *testing.T, opt seal.Options, key store.Key, plain []byte) []byte {
	t.Helper()
	b, err := seal.NewSealer(opt).Encode(nil, key, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEncodeIsDeterministic(t *testing.T) {
	for name, s := range sealers() {
		var first []byte
		for i := range 5 {
			other := storetest.Key(100 + i)
			if _, err := s.Encode(nil, other, storetest.Data(other, 50_000*i)); err != nil { // leaves traces in pooled memory
				t.Fatal(err)
			}
			b, err := s.Encode([]byte("before"), storetest.Key(1), storetest.Data(storetest.Key(1), 300_000))
			if err != nil {
				t.Fatal(err)
			}
			if string(b[:6]) != "before" {
				t.Fatal("Encode did not append")
			}
			if first == nil {
				first = b
			}
			if !bytes.Equal(b, first) {
				t.Errorf("%s: the same block was sealed to different bytes", name)
			}
		}
	}
}

func TestEncodeCompresses(t *testing.T) {
	plain := bytes.Repeat([]byte("some text that repeats "), 50_000)
	for _, codec := range []seal.Codec{seal.LZ4, seal.Zstd} {
		if b := encode(t, seal.Options{Codec: codec}, storetest.Key(1), plain); len(b) > len(plain)/20 {
			t.Errorf("%v made %d bytes of %d", codec, len(b), len(plain))
		}
	}
}

func TestEncodeRefusesTooMuch(t *testing.T) {
	if _, err := seal.NewSealer(seal.Options{}).Encode(nil, storetest.Key(1), make([]byte, store.MaxBlock+1)); err == nil {
		t.Error("a block longer than store.MaxBlock was sealed")
	}
	if _, err := seal.NewSealer(seal.Options{Codec: 77}).Encode(nil, storetest.Key(1), make([]byte, 100)); err == nil {
		t.Error("a block was sealed with a codec that does not exist")
	}
}

func TestTheLargestBlockIsWithinTheBounds(t *testing.T) {
	key := storetest.Key(1)
	data := storetest.Data(key, store.MaxBlock)
	for name, s := range sealers() {
		b, err := s.Encode(nil, key, data)
		if err != nil {
			t.Fatal(err)
		}
		h, err := seal.ParseHead(b[:seal.MaxHead])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(b) > seal.MaxSealed || h.SealedLen() != int64(len(b)) || h.PlainLen() != store.MaxBlock || h.Key() != key {
			t.Errorf("%s: sealed to %d bytes, and the head says %d, %d, %v", name, len(b), h.SealedLen(), h.PlainLen(), h.Key())
		}
	}
}

// random returns bytes that cannot be compressed.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// A lender notes the block that it is lent.
type lender struct {
	store.Store
	sealed []byte
	sum    uint32
}

func (l *lender) Borrow(ctx context.Context, key store.Key, loan *store.Loan) error {
	l.sealed = loan.Data()
	l.sealed[0] ^= 1 // it must not be computed here
	l.sum = store.Sum(ctx, l.sealed)
	l.sealed[0] ^= 1
	return l.Store.Put(ctx, key, loan.Data())
}

// What is stored as it is, is sealed where it is; its sealed form is that of any
// other.
func TestABlockIsSealedWhereItIs(t *testing.T) {
	const size = 512 << 10
	key := storetest.Key(1)
	for name, test := range map[string]struct {
		sealer  string
		data    []byte
		room    int
		inPlace bool
	}{
		"random":               {"lz4", random(size), seal.Room(size), true},
		"not to be compressed": {"none", make([]byte, size), seal.Room(size), true},
		"more room":            {"zstd", random(size), seal.Room(size) + 100, true},
		"too little room":      {"lz4", random(size), seal.Room(size) - 1, false},
		"zeros":                {"lz4", make([]byte, size), seal.Room(size), false},
		"zeros at the end":     {"lz4", append(random(size-128<<10), make([]byte, 128<<10)...), seal.Room(size), false},
		"odd":                  {"lz4", random(size - 1), seal.Room(size), false},
		"encrypted":            {"none encrypted", random(size), seal.Room(size) + 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			next := &lender{Store: mem.New(t)}
			s := sealers()[test.sealer].Over(next)
			buf := append(make([]byte, test.room), test.data...)
			free := false
			l := store.NewLoan(buf, test.room, func() { free = true })
			for i := range len(test.data) / store.PartSize / 2 * 2 {
				if i != 2 { // all of the parts of some frames
					l.SumPart(i)
				}
			}
			if err := store.Lend(t.Context(), s, key, l); err != nil {
				t.Fatal(err)
			}
			if free {
				t.Error("the memory is free before its owner is done")
			}
			if l.Done(); !free {
				t.Error("the memory is not free when all are done")
			}
			if in := &next.sealed[len(next.sealed)-1] == &buf[len(buf)-1]; in != test.inPlace {
				t.Errorf("sealed where it is: %v, want %v", in, test.inPlace)
			}
			want, err := sealers()[test.sealer].Encode(nil, key, test.data)
			if err != nil || !bytes.Equal(next.sealed, want) {
				t.Errorf("sealed to %d bytes, want %d others: %v", len(next.sealed), len(want), err)
			}
			if sum := store.Sum(t.Context(), next.sealed); next.sum != sum {
				t.Errorf("the sum that comes along is %08x, want %08x", next.sum, sum)
			}
			if sum, err := seal.Verify(key, next.sealed); err != nil || sum != next.sum {
				t.Errorf("Verify: %08x, %v; want %08x", sum, err, next.sum)
			}
			if got, err := s.Get(t.Context(), key, 0, -1); err != nil || !bytes.Equal(got, test.data) {
				t.Errorf("reads as %d other bytes: %v", len(got), err)
			}
		})
	}
}

// Each byte of a sealed block matters: a block with any one changed, missing or
// added is corrupt, to those who know the secret and to those who do not.
func TestAnyDamageIsNoticed(t *testing.T) {
	key := storetest.Key(1)
	for _, opt := range []seal.Options{{Codec: seal.LZ4}, {Codec: seal.LZ4, Secret: []byte("s")}} {
		s := seal.NewSealer(opt)
		good, err := s.Encode(nil, key, storetest.Data(key, 140_000))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Verify(key, good); err != nil {
			t.Fatal(err)
		}
		noticed := func(what string, b []byte) {
			t.Helper()
			if _, err := seal.Verify(key, b); !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("Verify of a block with %s: %v, want ErrCorrupt", what, err)
			}
			if _, err := s.Decode(key, b); !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("Decode of a block with %s: %v, want ErrCorrupt", what, err)
			}
		}
		for i := 0; i < len(good); i += 1 + i/200*37 {
			bad := bytes.Clone(good)
			bad[i] ^= 0x10
			noticed(fmt.Sprintf("byte %d changed", i), bad)
		}
		for _, n := range []int{0, 1, 71, 72, 76, 95, 5000, len(good) - 1} {
			noticed(fmt.Sprintf("%d bytes only", n), good[:n])
		}
		noticed("a byte more", append(bytes.Clone(good), 0))
	}
}

func TestABlockUnderAWrongKeyIsNoticed(t *testing.T) {
	right := storetest.Key(1)
	b := encode(t, seal.Options{}, right, []byte("bytes"))
	for _, wrong := range []store.Key{
		{},
		{Volume: right.Volume, Ino: right.Ino + 1, Index: right.Index, Gen: right.Gen},
		{Volume: right.Volume, Ino: right.Ino, Index: right.Index, Gen: store.Gen{Session: right.Gen.Session, Seq: right.Gen.Seq + 1}},
	} {
		if _, err := seal.Verify(wrong, b); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("Verify under a wrong key: %v, want ErrCorrupt", err)
		}
	}
}

// A damager damages what the next Get returns, unless it must be verified.
type damager struct{ store.Store }

func (d damager) Get(ctx context.Context, key store.Key, off, n int64) ([]byte, error) {
	data, err := d.Store.Get(ctx, key, off, n)
	if err == nil && len(data) > 0 && !store.MustVerify(ctx) {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	return data, err
}

func TestACorruptCopyIsAskedForAgain(t *testing.T) {
	bucket := mem.New(t)
	key := storetest.Key(1)
	data := storetest.Data(key, 500_000)
	if err := seal.New(bucket, seal.Options{}).Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
	s := seal.New(damager{bucket}, seal.Options{})
	for _, r := range [][2]int64{{0, -1}, {300_000, 100}, {10, 200_000}, {300_000, 100}} {
		got, err := s.Get(t.Context(), key, r[0], r[1])
		if err != nil || !bytes.Equal(got, store.Clip(data, r[0], r[1])) {
			t.Errorf("Get(%d, %d) through a cache with damaged copies: %d bytes, %v", r[0], r[1], len(got), err)
		}
	}
}

func TestSecrets(t *testing.T) {
	bucket := mem.New(nil)
	key := storetest.Key(1)
	data := storetest.Data(key, 200_000)
	right := seal.New(bucket, seal.Options{Codec: seal.LZ4, Secret: []byte("right")})
	if err := right.Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{"another secret": "wrong", "no secret": ""} {
		s := seal.New(bucket, seal.Options{Secret: []byte(secret)})
		for _, r := range [][2]int64{{0, -1}, {150_000, 10}} {
			if _, err := s.Get(t.Context(), key, r[0], r[1]); !errors.Is(err, seal.ErrSecret) {
				t.Errorf("Get with %s: %v, want ErrSecret", name, err)
			}
		}
	}
	sealed, err := bucket.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, data[1000:1032]) {
		t.Error("an encrypted block contains its plain bytes")
	}
}

// Whoever keeps the blocks of an encrypted volume must not be able to put a
// block of his own in place of one, by leaving the encryption out.
func TestAPlainBlockOnAnEncryptedVolumeIsRefused(t *testing.T) {
	key := storetest.Key(1)
	forged := encode(t, seal.Options{}, key, []byte("forged"))
	if _, err := seal.NewSealer(seal.Options{Secret: []byte("s")}).Decode(key, forged); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Decode: %v, want ErrCorrupt", err)
	}
}

func TestEqualBlocksLookDifferentWhenEncrypted(t *testing.T) {
	opt := seal.Options{Secret: []byte("s")}
	plain := make([]byte, 1000)
	a := encode(t, opt, storetest.Key(1), plain)
	b := encode(t, opt, storetest.Key(2), plain)
	if bytes.Equal(a[len(a)-500:], b[len(b)-500:]) {
		t.Error("two keys, same bytes, same sealed bytes")
	}
}

func TestFingerprint(t *testing.T) {
	volume := store.Volume{1}
	of := func(volume store.Volume, secret string) string {
		return seal.NewSealer(seal.Options{Secret: []byte(secret)}).Fingerprint(volume)
	}
	// Pinned: volumes remember it.
	const want = "276bca63f82150f9c990356322f737a2"
	if got := of(volume, "secret"); got != want {
		t.Errorf("the fingerprint of a secret is now %s, was %s", got, want)
	}
	if want == of(volume, "Secret") || want == of(store.Volume{2}, "secret") {
		t.Error("two secrets or volumes have the same fingerprint")
	}
	if got := of(volume, ""); got != "" {
		t.Errorf("the fingerprint of no secret is %q", got)
	}
}

func TestParseCodec(t *testing.T) {
	for _, c := range []seal.Codec{seal.None, seal.LZ4, seal.Zstd} {
		if got, err := seal.ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("ParseCodec(%q) = %v, %v", c, got, err)
		}
	}
	if _, err := seal.ParseCodec("snappy"); err == nil {
		t.Error("ParseCodec took snappy")
	}
}
