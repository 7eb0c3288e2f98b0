package fuse

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A file is written, cut, punched and read on one mount after the other, and
// must always have the bytes that a slice has to which the same was done.
func TestRandomOperationsOnOneFile(t *testing.T) {
	w := newWorld(t)
	budget := NewBudget(16 << 20)
	_, a := w.mount("a", Config{Budget: budget})
	_, b := w.mount("b", Config{Budget: budget})
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			name := fmt.Sprint("f", seed)
			put(t, filepath.Join(a, name), nil)
			m := &fileModel{t: t, r: rand.New(rand.NewPCG(seed, 1))}
			for _, dir := range []string{a, b} {
				f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
				must(t, "open", err)
				defer f.Close()
				m.files = append(m.files, f)
			}
			// Small files are kept with the metadata, so some seeds stay small.
			m.max = []int{12_000, 40_000, 3 << 20}[seed%3]
			for step := range 150 {
				m.step(step)
			}
		})
	}
	soonZero(t, budget)
}

type fileModel struct {
	t     *testing.T
	r     *rand.Rand
	files []*os.File
	at    int // the mount that works
	max   int
	want  []byte
}

func (m *fileModel) step(step int) {
	t, f := m.t, m.files[m.at]
	what := ""
	off, n := m.r.IntN(m.max), 1+m.r.IntN(m.max/2)
	n = min(n, m.max-off)
	switch op := m.r.IntN(10); op {
	case 0:
		what = fmt.Sprintf("truncate to %d", off)
		must(t, what, f.Truncate(int64(off)))
		m.resize(off)
	case 1:
		what = fmt.Sprintf("punch %d+%d", off, n)
		must(t, what, syscall.Fallocate(int(f.Fd()), punchHole|keepSize, int64(off), int64(n)))
		if off < len(m.want) {
			clear(m.want[off:min(off+n, len(m.want))])
		}
	case 2:
		what = fmt.Sprintf("allocate %d+%d", off, n)
		must(t, what, syscall.Fallocate(int(f.Fd()), 0, int64(off), int64(n)))
		m.resize(max(len(m.want), off+n))
	case 3:
		what = "fsync"
		must(t, what, f.Sync())
	case 4, 5:
		must(t, "fsync", f.Sync())
		m.at = 1 - m.at
		what = fmt.Sprintf("go on with mount %d", m.at)
		f = m.files[m.at]
	default:
		what = fmt.Sprintf("write %d+%d", off, n)
		p := pattern(n, byte(step))
		_, err := f.WriteAt(p, int64(off))
		must(t, what, err)
		m.resize(max(len(m.want), off+n))
		copy(m.want[off:], p)
	}
	t.Logf("step %d mount %d %s", step, m.at, what)
	got := make([]byte, m.max+1)
	k, err := f.ReadAt(got, 0)
	if err != nil && err != io.EOF {
		t.Fatalf("step %d, mount %d, after %s: read: %v", step, m.at, what, err)
	}
	if bytes.Equal(got[:k], m.want) {
		return
	}
	i := 0
	for i < k && i < len(m.want) && got[i] == m.want[i] {
		i++
	}
	t.Fatalf("step %d, mount %d, after %s: %d bytes, want %d; they differ from %d on", step, m.at, what, k, len(m.want), i)
}

func (m *fileModel) resize(n int) {
	if n <= len(m.want) {
		m.want = m.want[:n]
		return
	}
	m.want = append(m.want, make([]byte, n-len(m.want))...)
}
