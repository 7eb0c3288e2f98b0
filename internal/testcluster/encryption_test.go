package testcluster

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"flexfs/modes"
)

const (
	marker = "what nobody but a mount may read"
	secret = "correct horse battery staple"
)

// Contents of an encrypted volume are nowhere but in mounts. That the search
// would find them shows on a volume that is not encrypted.
func TestContentsOfAnEncryptedVolumeAreSealed(t *testing.T) {
	for name, encrypted := range map[string]bool{"encrypted": true, "open": false} {
		t.Run(name, func(t *testing.T) {
			c := Start(t, Options{Groups: 1, Volume: map[string]any{"compression": "none", "encryption": encrypted}})
			disk := t.TempDir()
			mount := func(disk string) *Mount {
				m := c.Mount(func(m *modes.Mount) {
					m.DiskFolder, m.DiskQuota.Bytes = disk, 64<<20
					if encrypted {
						m.Secret = []byte(secret)
					}
				})
				c.Await("the group is in use", func() error { return chosen(m) })
				return m
			}
			files := map[string][]byte{
				"small":   []byte(marker),
				"smaller": bytes.Repeat([]byte(marker), 100),
				"large":   append(bytes.Repeat([]byte(marker), 10_000), contents(30, 9<<20)...),
			}
			first := mount(disk)
			for name, data := range files {
				write(t, first.Path(name), data)
			}
			wantRewritten(t, first.Path("small"), files["small"])
			first.Unmount()
			second := mount("")
			for name, data := range files {
				wantFile(t, second.Path(name), data)
			}
			if n := second.Stats().Proxies.Counts.Proxied; n == 0 {
				t.Error("the second mount read nothing through a proxy")
			}
			second.Unmount()

			cached := 0
			for _, p := range c.Groups[0].Proxies {
				p.Stop()
				cached += holders(t, p.Folder, marker)
			}
			c.StopMeta()
			for place, n := range map[string]int{
				"the bucket": holders(t, c.Bucket, marker), "the proxies' caches": cached,
				"the mount's disk cache": holders(t, disk, marker), "the metadata": holders(t, c.path("meta"), marker),
			} {
				if (n > 0) == encrypted {
					t.Errorf("%d files of %s have contents of the volume", n, place)
				}
			}
			if n := holders(t, c.dir, secret); n > 0 {
				t.Errorf("%d files of the servers have the secret", n)
			}
			if encrypted {
				if log := c.logs.text(); strings.Contains(log, secret) || strings.Contains(log, marker) {
					t.Error("the log has the secret or contents")
				}
			}
		})
	}
}

// wantRewritten changes a byte of a file in place, and back.
func wantRewritten(t *testing.T, name string, want []byte) {
	t.Helper()
	for _, b := range []byte{'X', want[0]} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt([]byte{b}, 0)
		if err2 := f.Close(); err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
	}
	wantFile(t, name, want)
}

// holders returns how many files below folder have the text in them.
func holders(t *testing.T, folder, text string) (n int) {
	t.Helper()
	err := filepath.WalkDir(folder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if bytes.Contains(data, []byte(text)) {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
