package seal

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// A Codec compresses frames. Values are part of the format: never reorder.
type Codec uint8

const (
	None Codec = 0
	LZ4  Codec = 1 // block format, no frame
	Zstd Codec = 2 // one zstd frame
)

// ParseCodec parses "none", "lz4" or "zstd".
func ParseCodec(s string) (Codec, error) {
	for c := None; c <= Zstd; c++ {
		if c.String() == s {
			return c, nil
		}
	}
	return None, fmt.Errorf("seal: %q is not a compression: want none, lz4 or zstd", s)
}

func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// worthIt is the part of a frame that compression must save, or the frame is
// stored as it is and costs no time to read: 1/12.
const worthIt = 12

// A sample decides whether a frame is compressed at all. Data that codecs gain
// next to nothing from can take them longest: random bytes with a few zeros in
// between cost LZ4 twice what text does. Samples of 1 KiB, of each quarter of the
// frame, cost a thirtieth and find what is in it: of programs, texts, logs and
// sequencer output they gave away less than 0.5 % of a ratio.
const (
	samples   = 4
	sampleLen = 1 << 10

	// sampleFrom is the length of a frame from which a sample is cheaper.
	sampleFrom = 8 * samples * sampleLen
)

var errLength = errors.New("wrong length")

// compressors are the codecs' working memory. The zero value is ready. All
// methods may be called concurrently.
type compressors struct {
	lz4     sync.Pool // of *lz4.Compressor
	sampled sync.Pool // of *sample
	zstd    struct {
		encoder, decoder sync.Once
		e                *zstd.Encoder
		d                *zstd.Decoder
		eErr, dErr       error
	}
}

// A sample is part of a frame, and room to compress it in.
type sample struct {
	plain  [samples * sampleLen]byte
	packed [samples*sampleLen + 1<<10]byte // what does not compress gets longer
}

// gains reports whether compression may be worth it, by a sample of a frame that
// is long enough for one.
func (c *compressors) gains(codec Codec, plain []byte) (bool, error) {
	if codec == None {
		return false, nil
	}
	return c.trySample(codec, plain)
}

// compress appends the compressed frame to dst, which must have room for the
// frame's length, though the result may be elsewhere. It reports false if that
// does not save enough, or a sample says so.
func (c *compressors) compress(codec Codec, dst, plain []byte) (_ []byte, ok bool, err error) {
	if codec != None && len(plain) >= sampleFrom {
		if ok, err := c.trySample(codec, plain); !ok {
			return dst, false, err
		}
	}
	return c.compressAll(codec, dst, plain)
}

// trySample reports whether a sample of the frame is worth compressing.
func (c *compressors) trySample(codec Codec, plain []byte) (bool, error) {
	s, _ := c.sampled.Get().(*sample)
	if s == nil {
		s = new(sample)
	}
	defer c.sampled.Put(s)
	quarter := len(plain) / samples
	for i := range samples {
		from := i*quarter + (quarter-sampleLen)/2
		copy(s.plain[i*sampleLen:], plain[from:from+sampleLen])
	}
	_, ok, err := c.compressAll(codec, s.packed[:0], s.plain[:])
	return ok, err
}

// compressAll is compress without a sample.
func (c *compressors) compressAll(codec Codec, dst, plain []byte) (_ []byte, ok bool, err error) {
	limit := len(plain) - len(plain)/worthIt - 1
	if limit <= 0 {
		return dst, false, nil
	}
	switch codec {
	case None:
		return dst, false, nil
	case LZ4:
		n, err := c.compressLZ4(dst[len(dst):len(dst)+limit], plain)
		if err != nil || n == 0 {
			return dst, false, nil // does not fit the limit
		}
		return dst[:len(dst)+n], true, nil
	case Zstd:
		e, err := c.zstdEncoder()
		if err != nil {
			return dst, false, err
		}
		out := e.EncodeAll(plain, dst)
		if len(out)-len(dst) > limit {
			return dst, false, nil
		}
		return out, true, nil
	}
	return dst, false, fmt.Errorf("seal: no such codec: %v", codec)
}

func (c *compressors) compressLZ4(dst, plain []byte) (int, error) {
	z, _ := c.lz4.Get().(*lz4.Compressor)
	if z == nil {
		z = new(lz4.Compressor)
	}
	defer c.lz4.Put(z)
	return z.CompressBlock(plain, dst)
}

// decompress fills dst with what stored was compressed from, and fails unless
// that is exactly len(dst) bytes.
func (c *compressors) decompress(codec Codec, dst, stored []byte) error {
	switch codec {
	case LZ4:
		n, err := lz4.UncompressBlock(stored, dst)
		if err != nil {
			return err
		}
		if n != len(dst) {
			return errLength
		}
		return nil
	case Zstd:
		d, err := c.zstdDecoder()
		if err != nil {
			return err
		}
		out, err := d.DecodeAll(stored, dst[:0:len(dst)])
		if err != nil {
			return err
		}
		if len(out) != len(dst) {
			return errLength
		}
		return nil
	}
	return fmt.Errorf("a compressed frame, but the codec is %v", codec)
}

func (c *compressors) zstdEncoder() (*zstd.Encoder, error) {
	z := &c.zstd
	z.encoder.Do(func() {
		z.e, z.eErr = zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(false), // the frame table has one
			zstd.WithWindowSize(frameSize))
	})
	return z.e, z.eErr
}

func (c *compressors) zstdDecoder() (*zstd.Decoder, error) {
	z := &c.zstd
	z.decoder.Do(func() {
		z.d, z.dErr = zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(0),   // as many as there are processors
			zstd.WithDecodeAllCapLimit(true), // never allocates more than dst has
			zstd.WithDecoderMaxWindow(1<<maxLog))
	})
	return z.d, z.dErr
}
