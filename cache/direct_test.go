package cache

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestWritesPastThePageCacheAreWhole(t *testing.T) {
	whole := make([]byte, 4<<20+directAlign)
	rand.NewChaCha8([32]byte{1}).Read(whole)
	for _, at := range []int{0, 1, 512, directAlign} { // of which only some are aligned
		for _, n := range []int{0, 1, minDirect - 1, minDirect, minDirect + 1, 1<<20 + 4095, 4 << 20} {
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			data := whole[at:][:n]
			if err := writeDirect(f, data); err != nil {
				t.Fatalf("%d bytes at %d: %v", n, at, err)
			}
			if _, err := f.Write([]byte("x")); err != nil { // as any file takes it
				t.Errorf("after %d bytes at %d: %v", n, at, err)
			}
			f.Close()
			got, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(got, append(bytes.Clone(data), 'x')) {
				t.Errorf("of %d bytes at %d the file has others: %d bytes, error %v", n, at, len(got), err)
			}
		}
	}
}
