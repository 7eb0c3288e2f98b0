package fuse

import "testing"

// What the kernel was given that it believes whatever it was told meanwhile is
// taken back twice.
func TestWhatMayComeLateIsTakenBackTwice(t *testing.T) {
	k := &slowKernel{}
	fs := newWorld(t).newFS("one", Config{})
	fs.kernel = k
	in := fs.inode(10)
	taken := func(want int64) {
		t.Helper()
		if fs.forgetAttrs(in); k.attrs.Load() != want {
			t.Errorf("attributes were taken back %d times, want %d", k.attrs.Load(), want)
		}
	}
	taken(0)
	in.trusted.Add(1)
	taken(1)
	taken(1)
	in.late.Store(true)
	in.trusted.Add(1)
	taken(2)
	taken(3)
	taken(3)
}
