package memfs

// chunk is how a file is cut: reads are answered with parts of chunks, not with
// copies.
const chunk = 1 << 20

// contents are the bytes of a file. A chunk that is missing or short is zeros.
type contents [][]byte

var zeros [chunk]byte

// read returns n bytes from off as they lie in memory. They may change.
func (c contents) read(off, n int64) (parts [][]byte, total int) {
	for n > 0 {
		at := off % chunk
		k := min(n, chunk-at)
		var part []byte
		if i := off / chunk; i < int64(len(c)) && at < int64(len(c[i])) {
			part = c[i][at:min(at+k, int64(len(c[i])))]
		} else {
			part = zeros[:k]
		}
		parts = append(parts, part)
		off, n, total = off+int64(len(part)), n-int64(len(part)), total+len(part)
	}
	return parts, total
}

func (c *contents) write(off int64, data []byte) {
	for len(data) > 0 {
		i, at := off/chunk, off%chunk
		k := min(int64(len(data)), chunk-at)
		for int64(len(*c)) <= i {
			*c = append(*c, nil)
		}
		(*c)[i] = grown((*c)[i], at+k)
		copy((*c)[i][at:], data[:k])
		off, data = off+k, data[k:]
	}
}

// grown returns b with n bytes at least. Small files take little, and a chunk
// that is written in pieces is not copied each time.
func grown(b []byte, n int64) []byte {
	if int64(len(b)) >= n {
		return b
	}
	if int64(cap(b)) >= n {
		return b[:n]
	}
	size := n
	if n > chunk/16 {
		size = chunk
	}
	fresh := make([]byte, n, size)
	copy(fresh, b)
	return fresh
}

func (c *contents) truncate(size int64) {
	keep := min((size+chunk-1)/chunk, int64(len(*c)))
	*c = (*c)[:keep:keep]
	if i := size / chunk; i < int64(len(*c)) {
		last := (*c)[i]
		if cut := size % chunk; cut < int64(len(last)) {
			(*c)[i] = append([]byte(nil), last[:cut]...)
		}
	}
}
