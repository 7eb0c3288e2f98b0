package posixtest

import (
	"os"
	"path/filepath"
	"testing"
)

// The checks hold for the file systems of this machine.
func TestLocalFileSystem(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	Run(t, dir)
}
