package testcluster

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
)

// What a mount needs it gives back when it ends: goroutines, and descriptors.
func TestMountsLeaveNothingBehind(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	use := func() {
		m := c.Mount(nil)
		write(t, m.Path("f"), contents(1, 3<<20))
		wantFile(t, m.Path("f"), contents(1, 3<<20))
		if err := os.Remove(m.Path("f")); err != nil {
			t.Error(err)
		}
		m.Unmount()
	}
	use() // what stays for good is made
	count := func() (goroutines, files int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	goroutines, files := count()
	const rounds = 5
	for range rounds {
		use()
	}
	// Connections that are idle may be a few more or fewer; one of anything a mount is too many.
	c.Await("all is given back", func() error {
		g, f := count()
		if g-goroutines < rounds && f-files < rounds {
			return nil
		}
		var b bytes.Buffer
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		return fmt.Errorf("%d goroutines and %d descriptors more than before %d mounts\n%s", g-goroutines, f-files, rounds, b.Bytes())
	})
}
