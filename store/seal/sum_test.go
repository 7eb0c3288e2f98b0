package seal

import "testing"

func TestSumsOfPartsMakeThatOfTheWhole(t *testing.T) {
	data := make([]byte, 2*frameSize+1000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	for _, cut := range []int{0, 1, 7, 332, frameSize, 2*frameSize + 999, len(data)} {
		for _, end := range []int{cut, cut + frameSize, len(data)} {
			if end = min(end, len(data)); end < cut {
				continue
			}
			if got, want := joinSums(checksum(data[:cut]), checksum(data[cut:end]), end-cut), checksum(data[:end]); got != want {
				t.Errorf("%d bytes and %d more: %08x, want %08x", cut, end-cut, got, want)
			}
		}
	}
}
