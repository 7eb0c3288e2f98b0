package seal

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"flexfs/store"
)

// noise returns a frame of random bytes, with some zeros at the start of each 512.
func noise(zeros int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, frameSize)
	r.Read(b)
	for at := 0; at < len(b); at += 512 {
		clear(b[at : at+zeros])
	}
	return b
}

// What would save next to nothing is not compressed in order to find that out.
func TestASampleTellsWhatIsWorthCompressing(t *testing.T) {
	line := []byte("a line of a log, like many others, number 1234567\n")
	half := noise(0)
	copy(half, bytes.Repeat(line, frameSize/2/len(line)))
	for name, test := range map[string]struct {
		frame []byte
		want  map[Codec]bool
	}{
		"random bytes":            {noise(0), map[Codec]bool{LZ4: false, Zstd: false}},
		"random with a few zeros": {noise(24), map[Codec]bool{LZ4: false, Zstd: false}},
		"random with more zeros":  {noise(100), map[Codec]bool{LZ4: true, Zstd: true}},
		"half text":               {half, map[Codec]bool{LZ4: true, Zstd: true}},
		"text":                    {bytes.Repeat(line, frameSize/len(line)), map[Codec]bool{LZ4: true, Zstd: true}},
	} {
		for codec, want := range test.want {
			var c compressors
			got, err := c.trySample(codec, test.frame)
			if err != nil || got != want {
				t.Errorf("%s, %v: a sample is worth compressing: %v (%v), want %v", name, codec, got, err, want)
			}
			_, packed, err := c.compress(codec, make([]byte, 0, frameSize), test.frame)
			if err != nil || packed != want {
				t.Errorf("%s, %v: it was compressed: %v (%v), want %v", name, codec, packed, err, want)
			}
		}
	}
}

// Bytes that are stored as they are, as most of a block of pictures is, are not
// copied to be read.
func TestWhatIsStoredAsItIsIsNotCopied(t *testing.T) {
	s := NewSealer(Options{Codec: LZ4})
	key := store.Key{Ino: 1}
	plain := append(noise(0), noise(0)[:1000]...)
	sealed, err := s.Encode(nil, key, plain)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Decode(key, sealed)
	if err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("Decode: %v, %d bytes", err, len(got))
	}
	if &got[0] != &sealed[len(sealed)-len(plain)] {
		t.Error("it was copied")
	}
}
