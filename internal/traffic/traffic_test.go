package traffic

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A spy is a test that may fail without this one failing.
type spy struct {
	testing.TB
	errors []string
	end    []func()
}

func (s *spy) Helper()                   {}
func (s *spy) Logf(string, ...any)       {}
func (s *spy) Cleanup(f func())          { s.end = append(s.end, f) }
func (s *spy) Errorf(f string, a ...any) { s.errors = append(s.errors, f) }

func TestAGoodFileSystemPasses(t *testing.T) {
	dir := t.TempDir()
	tr := Start(t, dir, dir)
	tr.Do(100)
	if r := tr.Phase("first"); r.Calls < 100 || r.Failed > 0 || r.Max == 0 {
		t.Errorf("report: %v", r)
	}
	total := tr.Stop()
	tr.Verify(dir)
	if n := tr.Total().Calls; n < total.Calls+2*files {
		t.Errorf("%d calls before all files were read, %d after", total.Calls, n)
	}
}

// Damage of every kind that a file may have is found.
func TestWhatIsWrongIsFound(t *testing.T) {
	for name, damage := range map[string]func(path string, f *file) error{
		"a byte":  func(path string, f *file) error { return change(path, len(f.data)-1) },
		"shorter": func(path string, f *file) error { return os.Truncate(path, int64(len(f.data)-1)) },
		"longer":  func(path string, f *file) error { return os.Truncate(path, int64(len(f.data)+1)) },
		"gone":    func(path string, f *file) error { return os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := &spy{TB: t}
			tr := Start(s, dir)
			tr.Do(40)
			tr.Stop()
			if len(s.errors) > 0 {
				t.Fatalf("before the damage: %v", s.errors)
			}
			for _, f := range tr.all {
				if f.made {
					if err := damage(filepath.Join(dir, f.name), f); err != nil {
						t.Fatal(err)
					}
					break
				}
			}
			tr.Verify(dir)
			if len(s.errors) != 1 {
				t.Errorf("one file is damaged; errors: %s", strings.Join(s.errors, "\n"))
			}
		})
	}
}

func change(path string, off int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, int64(off)); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, int64(off))
	return err
}

func TestARemovedFileThatStaysIsFound(t *testing.T) {
	dir := t.TempDir()
	s := &spy{TB: t}
	tr := Start(s, dir)
	tr.Stop()
	for _, f := range tr.all {
		if !f.made {
			if err := os.WriteFile(filepath.Join(dir, f.name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	tr.Verify(dir)
	if len(s.errors) != 1 {
		t.Errorf("one file is there that was removed; errors: %v", s.errors)
	}
}
