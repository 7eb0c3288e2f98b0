package leak

import (
	"os"
	"strings"
	"testing"
)

func TestWhatIsLeftIsNamed(t *testing.T) {
	before := take()
	if left := before.left(); left != "" {
		t.Errorf("nothing was left, and it says %s", left)
	}
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		<-stop
		close(stopped)
	}()
	if left := before.left(); !strings.Contains(left, "TestWhatIsLeftIsNamed") {
		t.Errorf("a goroutine is left, and it says %q", left)
	}
	close(stop)
	<-stopped
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if left := before.left(); !strings.HasPrefix(left, "1 descriptors more") || !strings.Contains(left, os.DevNull) {
		t.Errorf("a descriptor is left, and it says %q", left)
	}
	f.Close()
	if left := before.left(); left != "" {
		t.Errorf("all was given back, and it says %s", left)
	}
}

func TestATestThatIsTidyPasses(t *testing.T) {
	Check(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
}
