package mem_test

import (
	"fmt"
	"strings"
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func TestMem(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return mem.New(t) })
}

// A recorder keeps what would have been errors of a test.
type recorder struct {
	errors  []string
	cleanup []func()
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Cleanup(fn func()) { r.cleanup = append(r.cleanup, fn) }
func (r *recorder) end() {
	for _, fn := range r.cleanup {
		fn()
	}
}
func (r *recorder) want(t *testing.T, part string) {
	t.Helper()
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], part) {
		t.Errorf("the fake reported %q, want one error with %q", r.errors, part)
	}
}

func TestABlockThatChangesUnderItsKeyIsReported(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		r := new(recorder)
		s := mem.New(r)
		s.Put(t.Context(), storetest.Key(1), []byte("old"))
		if deleted {
			s.Delete(t.Context(), storetest.Key(1))
		}
		if err := s.Put(t.Context(), storetest.Key(1), []byte("new")); err == nil {
			t.Error("the Put of other bytes succeeded")
		}
		r.end()
		r.want(t, "changed under its key")
	}
}

func TestSomebodyWhoWritesToHandedOutBytesIsReported(t *testing.T) {
	for name, after := range map[string]func(s *mem.Store){
		"at the end":      func(s *mem.Store) {},
		"at the next Get": func(s *mem.Store) { s.Get(t.Context(), storetest.Key(1), 0, -1) },
		"at Delete":       func(s *mem.Store) { s.Delete(t.Context(), storetest.Key(1)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := new(recorder)
			s := mem.New(r)
			s.Put(t.Context(), storetest.Key(1), []byte("bytes"))
			data, err := s.Get(t.Context(), storetest.Key(1), 1, 2)
			if err != nil {
				t.Fatal(err)
			}
			data[0]++
			after(s)
			r.end()
			r.want(t, "wrote to the bytes")
		})
	}
}

func TestWithoutATestThePutIsRefused(t *testing.T) {
	s := mem.New(nil)
	if err := s.Put(t.Context(), storetest.Key(1), []byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), storetest.Key(1), []byte("new")); err == nil {
		t.Error("other bytes under the same key were taken")
	}
}
