package admin

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func TestWhatWasConfiguredSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "folder", "admin.db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	first, made, err := db.Bootstrap()
	if err != nil || !made || !isUUID(first.Token) {
		t.Fatalf("Bootstrap: %+v, made %v, %v", first, made, err)
	}
	if _, err := db.Create(FindTable("providers"), map[string]any{"code": "minio"}, 1); err != nil {
		t.Fatal(err)
	}
	key := db.keys.Load().signer(now())
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want only the owner to read it", info.Mode(), err)
	}

	db, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if !db.keys.Load().signer(now()).private.Equal(key.private) {
		t.Error("the key that signs tickets changed at a restart")
	}
	again, made, err := db.Bootstrap()
	if err != nil || made || again.ID != first.ID || again.Token != "" {
		t.Errorf("second Bootstrap: %+v, made %v, %v; want the first account without its token", again, made, err)
	}
	if _, err := db.Show(FindTable("providers"), "minio"); err != nil {
		t.Error(err)
	}
}

// A database from before there were former members, reports and a second key
// opens, is left as it is until somebody changes something, and means the same.
func TestAnOlderDatabaseIsLeftAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.db")
	group := `{"id":1,"providerCode":"local","regionCode":"local","addresses":["a:1","b:1"],"noSSL":false,"token":"` + newUUID() + `","pins":{"b:1":"` + somePin(1) + `"}}`
	volume := `{"id":"00000000-0000-4000-8000-000000000001","name":"v","accountID":1,"metaStoreID":1,"blockStoreID":1,"blockSize":4194304,"inlineMax":16384,` +
		`"compression":"lz4","encryption":false,"secretID":"","retention":0,"maxBlocks":0,"maxInodes":0,"maxProxied":0,"flags":"","notes":"","createdAt":"2026-01-01T00:00:00Z"}`
	reopen(t, path, func(db *DB) {
		if _, _, err := db.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		place := map[string]any{"providerCode": "local", "regionCode": "local"}
		for table, fields := range map[string]map[string]any{
			"meta-stores":  {"address": "m:1"},
			"block-stores": {"apiCode": "dir", "bucket": "/b"},
			"proxy-groups": {"addresses": []string{"x:1"}},
		} {
			maps.Copy(fields, place)
			if _, err := db.Create(FindTable(table), fields, 1); err != nil {
				t.Fatal(err)
			}
		}
		err := db.update(func(tx *tx) error {
			made, err := tx.load(FindTable("proxy-groups"), numKey(1))
			if err != nil {
				return err
			}
			old, err := decodeRecord(FindTable("proxy-groups"), []byte(group))
			if err != nil {
				return err
			}
			return errors.Join(tx.index(made, old),
				tx.Bucket([]byte("proxy-groups")).Put(numKey(1), []byte(group)),
				tx.Bucket([]byte("volumes")).Put([]byte("00000000-0000-4000-8000-000000000001"), []byte(volume)),
				tx.Bucket([]byte("volume-proxy-groups")).Put(pairKey("00000000-0000-4000-8000-000000000001", numKey(1)), []byte(`{"volumeID":"00000000-0000-4000-8000-000000000001","proxyGroupID":1}`)))
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	reopen(t, path, func(db *DB) {
		if _, err := db.Show(FindTable("proxy-groups"), "1"); err != nil {
			t.Error(err)
		}
	})
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("opening it changed it (%v)", err)
	}
	reopen(t, path, func(db *DB) {
		token, err := db.Create(FindTable("volume-tokens"), map[string]any{"volumeID": "v"}, 1)
		if err != nil {
			t.Fatal(err)
		}
		settings := func() (s *MountSettings) {
			err := db.view(func(tx *tx) (err error) {
				s, err = tx.mountSettings(token.(*VolumeToken))
				return err
			})
			if err != nil || len(s.Groups) != 1 {
				t.Fatalf("%+v, %v", s, err)
			}
			return s
		}
		s := settings()
		if g := s.Groups[0]; g.WriteThrough || s.Volume.WriteThrough || len(g.Members) != 2 || len(g.Former) != 0 || !g.ChangedAt.IsZero() {
			t.Errorf("settings %+v", s)
		}
		if err := db.Update(FindTable("proxy-groups"), map[string]any{"addresses": []string{"a:1"}}, "1"); err != nil {
			t.Fatal(err)
		}
		if g := settings().Groups[0]; len(g.Former) != 1 || g.Former[0] != (Member{"b:1", somePin(1)}) {
			t.Errorf("former %+v", g.Former)
		}
	})
}

func TestADatabaseInUseIsRefusedSoon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.db")
	if os.Getenv("FLEXFS_TEST_LOCK") != "" { // the other process, see below
		_, err := Open(os.Getenv("FLEXFS_TEST_LOCK"))
		fmt.Println(err)
		return
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	start := time.Now()
	_, err = Open(path)
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || !strings.Contains(err.Error(), path) {
		t.Errorf("Open of a locked database: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the refusal took %v", took)
	}
	cmd := exec.Command(os.Args[0], "-test.run=TestADatabaseInUseIsRefusedSoon")
	cmd.Env = append(os.Environ(), "FLEXFS_TEST_LOCK="+path)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "in use by another process") {
		t.Errorf("Open in another process: %s, %v", out, err)
	}
}

func TestFilesThatAreNotOurDatabaseAreRefusedAndKept(t *testing.T) {
	foreign := func(path string) error {
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			return err
		}
		defer db.Close()
		return db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucket([]byte("theirs"))
			return err
		})
	}
	changed := func(do func(tx *bolt.Tx) error) func(string) error {
		return func(path string) error {
			db, err := Open(path)
			if err != nil {
				return err
			}
			defer db.Close()
			if _, _, err := db.Bootstrap(); err != nil {
				return err
			}
			return db.bolt.Update(do)
		}
	}
	write := func(text string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	for name, c := range map[string]struct {
		make func(path string) error
		want string
	}{
		"empty":           {write(""), "empty"},
		"text":            {write("hello"), "damaged"},
		"long text":       {write(strings.Repeat("hello", 100_000)), "damaged"},
		"zeros":           {write(strings.Repeat("\x00", 1<<16)), "damaged"},
		"another program": {foreign, `bucket "theirs"`},
		"later form": {changed(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketSystem).Put(keySchema, []byte("99"))
		}), `form "99"`},
		"no key":   {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketSystem).Delete(keySigning) }), "key that signs tickets"},
		"no table": {changed(func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("volumes")) }), "table volumes is missing"},
		"no JSON": {changed(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("providers")).Put([]byte("x"), []byte("{"))
		}), "provider cannot be read"},
		"wrong place": {changed(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("providers")).Put([]byte("x"), []byte(`{"code":"y"}`))
		}), "provider y is in the place"},
		"lost reference": {changed(func(tx *bolt.Tx) error { return tx.Bucket([]byte("providers")).Delete([]byte("aws")) }), "refers to provider aws"},
		"lost token": {changed(func(tx *bolt.Tx) error {
			k, _ := tx.Bucket(bucketTokens).Cursor().First()
			return tx.Bucket(bucketTokens).Delete(k)
		}), "token of account 1"},
		"needless token": {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketTokens).Put([]byte("x"), []byte("{}")) }), "index of tokens"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "admin.db")
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			db, err := Open(path)
			if err == nil {
				db.Close()
				t.Fatal("Open succeeded")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got error %q, want one that says %q and names the file", err, c.want)
			}
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file was changed by a refused Open (%v)", err)
			}
		})
	}
}

// smallDB returns the bytes of a database with something in it.
func smallDB(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := db.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if _, err := db.Create(FindTable("proxy-groups"), at(map[string]any{"addresses": []string{fmt.Sprintf("proxy%d.example.com:443", i)}}), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestATruncatedDatabaseIsAnErrorThatSaysWhatToDo(t *testing.T) {
	data := smallDB(t)
	path := filepath.Join(t.TempDir(), "admin.db")
	for size := 0; size < len(data); size += 1024 {
		if err := os.WriteFile(path, data[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path)
		if err == nil { // pages at the end may be free
			if err := db.view((*tx).verify); err != nil {
				t.Errorf("%d of %d bytes: opened, but %v", size, len(data), err)
			}
			db.Close()
			continue
		}
		if !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "newest good copy") {
			t.Errorf("%d of %d bytes: %v", size, len(data), err)
		}
	}
}

func TestADatabaseWithAnyDamagedPageOpensSoundOrNotAtAll(t *testing.T) {
	data := smallDB(t)
	path := filepath.Join(t.TempDir(), "admin.db")
	refused := 0
	for at := 0; at < len(data); at += 512 {
		for _, damage := range []func(b []byte){
			func(b []byte) { b[0] ^= 0xff },
			func(b []byte) { clear(b[:min(len(b), 64)]) },
			func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, 64)) },
		} {
			bad := bytes.Clone(data)
			damage(bad[at:])
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := Open(path)
			if err != nil {
				refused++
				continue
			}
			if err := db.view((*tx).verify); err != nil {
				t.Errorf("damage at %d: opened, but %v", at, err)
			}
			db.Close()
		}
	}
	if refused == 0 {
		t.Error("no damage was found")
	}
}

func TestAFolderThatCannotBeUsedIsAnError(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); err == nil {
		t.Error("Open of a folder succeeded")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "admin.db")); err == nil {
		t.Error("Open below a file succeeded")
	}
}

func TestAFailedChangeLeavesNothing(t *testing.T) {
	s := newSite(t)
	changed := s.db.changes()
	boom := errors.New("boom")
	err := s.db.update(func(tx *tx) error {
		if err := tx.create(FindTable("providers"), &Provider{Code: "gone"}, 1); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if _, err := s.db.Show(FindTable("providers"), "gone"); err == nil {
		t.Error("the provider of the failed change is there")
	}
	select {
	case <-changed:
		t.Error("a failed change woke those who wait")
	default:
	}
}

func TestConcurrentChangesAllCount(t *testing.T) {
	const workers, each = 8, 10
	s := newSite(t)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				name := fmt.Sprintf("v-%d-%d", w, i)
				if _, err := Create[Volume](t.Context(), s.account, map[string]any{"name": name, "metaStoreID": s.meta.ID, "blockStoreID": s.blocks.ID}); err != nil {
					t.Errorf("create %s: %v", name, err)
				}
				if err := Update[Volume](t.Context(), s.account, map[string]any{"notes": name}, "my-volume"); err != nil {
					t.Errorf("update: %v", err)
				}
				if _, err := Create[VolumeToken](t.Context(), s.account, map[string]any{"volumeID": name}); err != nil {
					t.Errorf("token of %s: %v", name, err)
				}
				if _, err := List[Volume](t.Context(), s.account, nil); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := Delete[Volume](t.Context(), s.account, name); err != nil {
						t.Errorf("delete %s: %v", name, err)
					}
				}
			}
		})
	}
	wg.Wait()
	volumes, err := List[Volume](t.Context(), s.account, nil)
	if want := workers*each/2 + 1; err != nil || len(volumes) != want {
		t.Errorf("%d volumes, %v; want %d", len(volumes), err, want)
	}
	tokens, err := List[VolumeToken](t.Context(), s.account, nil)
	if want := workers*each + 1; err != nil || len(tokens) != want {
		t.Fatalf("%d tokens, %v; want %d", len(tokens), err, want)
	}
	for i, token := range tokens {
		if token.ID != int64(i+1) {
			t.Fatalf("token %d has id %d", i, token.ID)
		}
	}
}

func TestOnlyOneOfManyGetsAName(t *testing.T) {
	s := newSite(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 16 {
		wg.Go(func() {
			_, err := Create[Volume](t.Context(), s.account, map[string]any{"name": "wanted", "metaStoreID": s.meta.ID, "blockStoreID": s.blocks.ID})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
				return
			}
			wantRefused(t, err, 409, "name", "exists already")
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d volumes got the name", made)
	}
}

func TestIdsAreNotGivenAgain(t *testing.T) {
	s := newSite(t)
	g := create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"p:1"}}))
	if err := Delete[ProxyGroup](t.Context(), s.account, fmt.Sprint(g.ID)); err != nil {
		t.Fatal(err)
	}
	if again := create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"p:1"}})); again.ID <= g.ID {
		t.Errorf("id %d was given after %d was deleted", again.ID, g.ID)
	}
}

func TestKeysInTheFileArePinned(t *testing.T) {
	volume := "01234567-89ab-cdef-0123-456789abcdef"
	for _, c := range []struct {
		r    record
		want string
	}{
		{&Account{ID: 1}, "\x00\x00\x00\x00\x00\x00\x00\x01"},
		{&Provider{Code: "aws"}, "aws"},
		{&Region{ProviderCode: "aws", Code: "us-east-1"}, "aws\x00us-east-1"},
		{&BlockStore{ID: 258}, "\x00\x00\x00\x00\x00\x00\x01\x02"},
		{&MetaStore{ID: 2}, "\x00\x00\x00\x00\x00\x00\x00\x02"},
		{&ProxyGroup{ID: 3}, "\x00\x00\x00\x00\x00\x00\x00\x03"},
		{&Volume{ID: volume}, volume},
		{&VolumeProxyGroup{VolumeID: volume, ProxyGroupID: 3}, volume + "\x00\x00\x00\x00\x00\x00\x00\x00\x03"},
		{&VolumeToken{ID: 4}, "\x00\x00\x00\x00\x00\x00\x00\x04"},
	} {
		if got := string(c.r.key()); got != c.want {
			t.Errorf("key of %s is %q, want %q", c.r.title(), got, c.want)
		}
	}
}
