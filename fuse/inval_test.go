package fuse

import "testing"

// What the kernel was given that it believes whatever it was told meanwhile is
// taken back twice.
func TestWhatMayComeLateIsTakenBackTwice(t *testing.T) {
	k := &slowKernel{}
	fs := newWorld(t).newFS("one", Config{})
	fs.kernel = k
	in := fs.inode(10)
	for _, want := range []int64{1, 1, 2, 3, 3} {
		switch k.attrs.Load() {
		case 0:
			in.trusted.Add(1)
		case 1:
			if want == 2 {
				in.late.Store(true)
				in.trusted.Add(1)
			}
		}
		if fs.forgetAttrs(in); k.attrs.Load() != want {
			t.Errorf("attributes were taken back %d times, want %d", k.attrs.Load(), want)
		}
	}
}
