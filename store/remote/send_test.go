package remote

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// files are blocks that a server has as files, as a disk cache has.
type files struct {
	dir string

	mu     sync.Mutex
	good   map[store.Key]File // what is known of each
	sent   int64
	opened int
}

func (f *files) path(key store.Key) string {
	return filepath.Join(f.dir, strings.ReplaceAll(key.String(), "/", "_"))
}

// add makes a file of a block.
func (f *files) add(t *testing.T, key store.Key, data []byte) {
	t.Helper()
	f.write(t, key, data)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.good == nil {
		f.good = make(map[store.Key]File)
	}
	f.good[key] = File{Size: int64(len(data)), CRC: crc32.Checksum(data, castagnoli), Sent: func(n int64) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.sent += n
	}}
}

// write changes a file, which stays known as it was.
func (f *files) write(t *testing.T, key store.Key, data []byte) {
	t.Helper()
	if err := os.WriteFile(f.path(key), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// open is a Server's Open.
func (f *files) open(_ context.Context, key store.Key) (*File, error) {
	file, err := os.Open(f.path(key))
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened++
	known := f.good[key]
	known.File = file
	return &known, nil
}

func (f *files) numbers() (opened int, sent int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened, f.sent
}

// fileBlock is a block longer than one buffer, and no multiple of it.
func fileBlock(key store.Key) []byte { return storetest.Data(key, 3*bufferSize+1234) }

// fromFiles returns a server's client, with the block 0 in a file, and the
// others below in the bucket.
func fromFiles(t *testing.T, secure bool) (*Client, *files, *spy) {
	t.Helper()
	bucket := &spy{Store: mem.New(t)}
	f := &files{dir: t.TempDir()}
	for i := range 2 {
		if err := bucket.Store.Put(t.Context(), storetest.Key(i), fileBlock(storetest.Key(i))); err != nil {
			t.Fatal(err)
		}
	}
	f.add(t, storetest.Key(0), fileBlock(storetest.Key(0)))
	x := open(t, Server{Tickets: nominal, Store: serving(bucket), Open: f.open}, secure)
	return x.client(t), f, bucket
}

func TestABlockThatIsAFileIsSentFromIt(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		c, f, bucket := fromFiles(t, secure)
		key := storetest.Key(0)
		want := fileBlock(key)
		size := int64(len(want))
		var all int64
		for _, part := range []struct{ off, n int64 }{
			{0, -1}, {0, 1}, {0, size}, {0, size + 1}, {1, -1}, {5, bufferSize}, {5, bufferSize + 1}, {size - 1, 10}, {size, -1}, {size + 10, 5},
		} {
			got, err := c.Get(t.Context(), key, part.off, part.n)
			if err != nil || !bytes.Equal(got, store.Clip(want, part.off, part.n)) {
				t.Errorf("%d bytes from %d: got %d bytes, error %v", part.n, part.off, len(got), err)
			}
			all += int64(len(got))
		}
		if bucket.seen() != 0 {
			t.Error("the store was asked, too")
		}
		if _, sent := f.numbers(); sent != all {
			t.Errorf("%d bytes are said to be sent, want %d", sent, all)
		}
	})
}

func TestABlockThatIsNoFileComesFromTheStore(t *testing.T) {
	c, f, bucket := fromFiles(t, false)
	key := storetest.Key(1)
	if got, err := c.Get(t.Context(), key, 0, -1); err != nil || !bytes.Equal(got, fileBlock(key)) {
		t.Errorf("got %d bytes, error %v", len(got), err)
	}
	if opened, _ := f.numbers(); opened != 0 || bucket.seen() != 1 {
		t.Error("it came from elsewhere")
	}
}

// A client that had bad bytes from here does not get them from the file again.
func TestWhatIsToBeVerifiedIsNotSentFromAFile(t *testing.T) {
	c, f, bucket := fromFiles(t, false)
	if _, err := c.Get(store.WithVerify(t.Context()), storetest.Key(0), 0, -1); err != nil {
		t.Error(err)
	}
	if opened, _ := f.numbers(); opened != 0 || bucket.seen() != 1 {
		t.Error("the file was sent as it is")
	}
}

// The header, with length and checksum, is out when a file turns out to be
// shorter than it was: the client must see that, and the store is asked to look
// after its copy.
func TestAFileThatIsCutShortIsNotTakenForTheBlock(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		for _, left := range []int64{0, 10, bufferSize, bufferSize + 1} {
			c, f, bucket := fromFiles(t, secure)
			key := storetest.Key(0)
			if err := os.Truncate(f.path(key), left); err != nil {
				t.Fatal(err)
			}
			if got, err := c.Get(t.Context(), key, 0, -1); err == nil {
				t.Errorf("cut to %d bytes, the block is %d bytes long", left, len(got))
			}
			await(t, "the store is asked to verify", func() bool { return bucket.asked(key) })
			// Of a part nothing is out yet.
			want := fileBlock(key)
			got, err := c.Get(t.Context(), key, bufferSize+10, 100)
			if err != nil || !bytes.Equal(got, want[bufferSize+10:][:100]) {
				t.Errorf("cut to %d bytes, a part of the block is %d bytes long, error %v", left, len(got), err)
			}
		}
	})
}

// Bytes that changed on the disk do not fit the checksum that was noted when
// they were good.
func TestAFileThatRotsIsNotBelieved(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		c, f, _ := fromFiles(t, secure)
		key := storetest.Key(0)
		bad := bytes.Clone(fileBlock(key))
		bad[bufferSize+7]++
		f.write(t, key, bad)
		if _, err := c.Get(t.Context(), key, 0, -1); err == nil {
			t.Error("rotten bytes are taken for the block")
		}
	})
}

func TestAHandlerWithoutAConnectionSendsFilesToo(t *testing.T) {
	f := &files{dir: t.TempDir()}
	key := storetest.Key(0)
	f.add(t, key, fileBlock(key))
	resp := ask(Handler(Server{Tickets: nominal, Store: serving(mem.New(t)), Open: f.open}), "GET", pathOf(0), nil)
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(body, fileBlock(key)) || resp.Header.Get(headerCRC) != checksum(body) {
		t.Errorf("answered %d and %d bytes", resp.StatusCode, len(body))
	}
}

// A buffer that is given back while it is still being sent would carry another
// answer's bytes.
func TestPartsOfFilesDoNotShareBuffers(t *testing.T) {
	c, f, _ := fromFiles(t, false)
	for i := range 8 {
		f.add(t, storetest.Key(i), fileBlock(storetest.Key(i)))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		key := storetest.Key(i)
		want := fileBlock(key)
		wg.Go(func() {
			for off := range int64(50) {
				got, err := c.Get(t.Context(), key, off*1000, bufferSize)
				if err != nil || !bytes.Equal(got, want[off*1000:][:bufferSize]) {
					t.Errorf("block %d from %d: %d bytes, error %v", i, off*1000, len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
}
