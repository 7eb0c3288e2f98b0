package seal_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"testing"

	"flexfs/store"
	"flexfs/store/seal"
)

var goldenKey = store.Key{
	Volume: store.Volume{0xde, 0xad, 0xbe, 0xef, 15: 0xff},
	Ino:    0x123456789,
	Index:  77,
	Gen:    store.Gen{Session: 0x1f, Seq: 0xabcdef},
}

var goldenPlain = []byte(strings.Repeat("flexfs ", 20))

// Blocks as they are in existing buckets. A change that breaks this test makes
// them unreadable. What a codec makes of a frame may change with its library,
// so of those only the reading is pinned.
var golden = []struct {
	name   string
	opt    seal.Options
	exact  bool
	plain  []byte
	sealed string
}{
	{
		"a plain block", seal.Options{}, true, []byte("hello"),
		"464c5842 01000011 00000005 00000001 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef 000000000000000000000000 800000059a71bb4ca047a35068656c6c6f",
	},
	{
		"an empty block", seal.Options{Codec: seal.LZ4}, true, nil,
		"464c5842 01010011 00000000 00000000 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef 000000000000000000000000 16a364ff",
	},
	{
		"lz4", seal.Options{Codec: seal.LZ4}, false, goldenPlain,
		"464c5842 01010011 0000008c 00000001 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef 000000000000000000000000 0000001b3c569b7818fb472b7f666c6578667320070062007700c06578667320666c6578667320",
	},
	{
		"zstd", seal.Options{Codec: seal.Zstd}, false, goldenPlain,
		"464c5842 01020011 0000008c 00000001 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef 000000000000000000000000 00000018c817ffc203e9a3ba28b52ffd00007d000038666c6578667320015407032b0205",
	},
	{
		"encrypted", seal.Options{Secret: []byte("correct horse battery staple")}, true, []byte("hello"),
		"464c5842 01000111 00000005 00000001 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef d8272ebcf9fbc14f7d37cb46 80000015845e63a444570abb256ae09584c3481101826ce24643475997c8e5865ebb7e4d381416749fd1d1d4e0fee3ef76",
	},
	{
		"empty and encrypted", seal.Options{Secret: []byte("correct horse battery staple")}, true, nil,
		"464c5842 01000111 00000000 00000000 deadbeef0000000000000000000000ff 0000000123456789 0000004d 000000000000001f 0000000000abcdef 4694a405b2930148dae6c215 1645a348e6734658fbf64758beaf074dc9346e54",
	},
}

func TestTheFormatIsPinned(t *testing.T) {
	for _, g := range golden {
		t.Run(g.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(g.sealed, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			s := seal.NewSealer(g.opt)
			got, err := s.Decode(goldenKey, want)
			if err != nil || !bytes.Equal(got, g.plain) {
				t.Errorf("the block is now read as %q, %v", got, err)
			}
			again, err := s.Encode(nil, goldenKey, g.plain)
			if err != nil {
				t.Fatal(err)
			}
			if g.exact && !bytes.Equal(again, want) {
				t.Errorf("the block is now sealed as\n%x, was\n%x", again, want)
			}
		})
	}
}

// Whatever a bucket answers, reading it ends, with the right bytes or with an
// error, and takes no more memory than the largest block.
func FuzzDecode(f *testing.F) {
	for _, g := range golden {
		b, err := hex.DecodeString(strings.ReplaceAll(g.sealed, " ", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, int64(3), int64(70))
	}
	plain := seal.NewSealer(seal.Options{Codec: seal.LZ4})
	f.Fuzz(func(t *testing.T, b []byte, off, n int64) {
		b = withChecksums(b)
		h, err := seal.ParseHead(b)
		if err != nil {
			if !errors.Is(err, store.ErrCorrupt) {
				t.Errorf("ParseHead: %v, want ErrCorrupt", err)
			}
			return
		}
		if h.Len() > seal.MaxHead || h.SealedLen() > seal.MaxSealed || h.PlainLen() > store.MaxBlock {
			t.Errorf("a head of %d bytes for %d in %d", h.Len(), h.PlainLen(), h.SealedLen())
		}
		from, to := h.Span(off, n)
		if from < int64(h.Len()) || from > to || to > h.SealedLen() {
			t.Errorf("Span(%d, %d) = %d, %d of %d to %d", off, n, from, to, h.Len(), h.SealedLen())
		}
		data, err := plain.Decode(h.Key(), b)
		switch {
		case err == nil && int64(len(data)) != h.PlainLen():
			t.Errorf("Decode returned %d bytes, the head says %d", len(data), h.PlainLen())
		case err != nil && !errors.Is(err, store.ErrCorrupt) && !errors.Is(err, seal.ErrSecret):
			t.Errorf("Decode: %v", err)
		}
	})
}

// withChecksums corrects the checksums of what looks like a sealed block, so
// that the fuzzer gets past them.
func withChecksums(b []byte) []byte {
	const fixed = 72
	if len(b) < fixed || b[13]|b[14] != 0 {
		return b
	}
	b = bytes.Clone(b)
	count := int(b[12])<<24 | int(b[15])
	end := fixed + 8*count
	if b[6] != 0 {
		end += 16
	}
	if count < 0 || len(b) < end+4 {
		return b
	}
	at := end + 4
	for i := range count {
		entry := b[fixed+8*i:]
		n := int(entry[0]&0x7f)<<24 | int(entry[1])<<16 | int(entry[2])<<8 | int(entry[3])
		if at+n > len(b) {
			break
		}
		putSum(entry[4:], b[at:at+n])
		at += n
	}
	putSum(b[end:], b[:end])
	return b
}

func putSum(to, b []byte) {
	binary.BigEndian.PutUint32(to, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func FuzzEncode(f *testing.F) {
	f.Add([]byte("some bytes, some bytes, some bytes"), uint8(1), uint32(5000), int64(3), int64(10))
	names := slices.Sorted(maps.Keys(sealers()))
	f.Fuzz(func(t *testing.T, part []byte, which uint8, repeat uint32, off, n int64) {
		if len(part) == 0 {
			part = []byte{0}
		}
		plain := bytes.Repeat(part, int(min(repeat, 300_000/uint32(min(len(part), 300_000)))))
		s := sealers()[names[int(which)%len(names)]]
		b, err := s.Encode(nil, goldenKey, plain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seal.Verify(goldenKey, b); err != nil {
			t.Error(err)
		}
		if got, err := s.Decode(goldenKey, b); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d, %v", len(plain), len(got), err)
		}
	})
}
