package dir_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"flexfs/store"
	"flexfs/store/dir"
	"flexfs/store/storetest"
)

func open(t *testing.T, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDir(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir()) })
}

func TestBlocksSurviveAnotherOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blocks")
	key := storetest.Key(1)
	if err := open(t, path).Put(t.Context(), key, []byte("bytes")); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, path).Get(t.Context(), key, 0, -1)
	if err != nil || string(got) != "bytes" {
		t.Errorf("after another Open: %q, %v", got, err)
	}
}

// The names are what an existing directory has; they must not change.
func TestTheNameOfAFileIsPinned(t *testing.T) {
	path := t.TempDir()
	key := store.Key{Volume: store.Volume{0xab, 15: 1}, Ino: 0x1234, Index: 7, Gen: store.Gen{Session: 0x1f, Seq: 0x2e}}
	if err := open(t, path).Put(t.Context(), key, []byte("x")); err != nil {
		t.Fatal(err)
	}
	spread := strings.Split(key.String(), "/")[1]
	want := filepath.Join(path, "ab000000-0000-0000-0000-000000000001", spread, "1234.7.1f-2e")
	if _, err := os.Stat(want); err != nil {
		t.Error(err)
	}
}

func TestOpenRemovesOldTemporaryFilesOnly(t *testing.T) {
	path := t.TempDir()
	open(t, path)
	old, young := filepath.Join(path, "tmp", "old"), filepath.Join(path, "tmp", "young")
	for _, name := range []string{old, young} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	day := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(old, day, day); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("the old file is still there (%v)", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the young file, perhaps another process's, is gone: %v", err)
	}
}

func TestPutLeavesNoTemporaryFile(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	blocked := filepath.Join(path, storetest.Key(2).Volume.String(), strings.Split(storetest.Key(9).String(), "/")[1])
	if err := s.Put(t.Context(), storetest.Key(2), bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), storetest.Key(9), []byte("x")); err == nil {
		t.Error("a Put into a folder that is a file succeeded")
	}
	left, err := os.ReadDir(filepath.Join(path, "tmp"))
	if err != nil || len(left) != 0 {
		t.Errorf("tmp holds %v (%v)", left, err)
	}
}

func TestForeignFilesAreNotListed(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	key := storetest.Key(1)
	if err := s.Put(t.Context(), key, nil); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(path, key.Volume.String())
	spread := strings.Split(key.String(), "/")[1]
	for _, name := range []string{"README", spread + "/notes.txt", spread + "/1.2.3"} {
		if err := os.WriteFile(filepath.Join(top, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []store.Key
	err := s.List(t.Context(), key.Volume, func(k store.Listed) error { got = append(got, k.Key); return nil })
	if err != nil || len(got) != 1 || got[0] != key {
		t.Errorf("List: %v, %v; want %v", got, err, key)
	}
}

func TestOpenRefusesAPathWithoutParent(t *testing.T) {
	if _, err := dir.Open(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Error("Open made two levels of folders: a disk that is not mounted would be filled in the wrong place")
	}
}

func TestAVolumeRemovedByHandCanBeWrittenAgain(t *testing.T) {
	path := t.TempDir()
	s := open(t, path)
	key := storetest.Key(1)
	if err := s.Put(t.Context(), key, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(path, key.Volume.String())); err != nil {
		t.Fatal(err)
	}
	if err := store.Retry(s, 2, 0).Put(t.Context(), key, nil); err != nil {
		t.Error(err)
	}
}
