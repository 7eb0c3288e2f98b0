package seal_test

import (
	"bytes"
	"testing"

	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

// text is a block of 4 MiB that compresses as logs do.
func text() []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < 4<<20; i++ {
		b.WriteString("2026-01-02T03:04:05Z INFO request served path=/v1/blocks/")
		b.WriteString(storetest.Key(i * 7919).String())
		b.WriteString(" status=200\n")
	}
	return b.Bytes()[:4<<20]
}

func BenchmarkEncode(b *testing.B) {
	plain := text()
	for name, opt := range variants() {
		b.Run(name, func(b *testing.B) {
			s := seal.NewSealer(opt)
			buf, err := s.Encode(nil, storetest.Key(1), plain)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(plain)))
			b.ReportMetric(float64(len(plain))/float64(len(buf)), "ratio")
			for b.Loop() {
				if buf, err = s.Encode(buf[:0], storetest.Key(1), plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	plain := text()
	for name, opt := range variants() {
		b.Run(name, func(b *testing.B) {
			s := seal.NewSealer(opt)
			buf, err := s.Encode(nil, storetest.Key(1), plain)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				if _, err := s.Decode(storetest.Key(1), buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A random read of 4 KiB, of a block whose head is known.
func BenchmarkRange(b *testing.B) {
	for name, opt := range variants() {
		b.Run(name, func(b *testing.B) {
			s := seal.New(mem.New(nil), opt)
			if err := s.Put(b.Context(), storetest.Key(1), text()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := s.Get(b.Context(), storetest.Key(1), 3<<20, 4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
