package testcluster

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"flexfs/admin"
	"flexfs/internal/s3test"
	"flexfs/store"
)

// A bucket is one of an S3 server that may be as far away as real ones are, and
// counts what it is asked.
type bucket struct {
	t          testing.TB
	settings   *admin.BlockStore
	folder     string // of the objects
	gets, puts atomic.Int64
	delay      atomic.Int64 // of every request, in nanoseconds
}

// newBucket returns a bucket that answers at once, see is.
func newBucket(t testing.TB) *bucket {
	t.Helper()
	server := s3test.Start(t)
	b := &bucket{t: t, settings: s3Store(server)}
	b.folder = filepath.Join(server.Folder(b.settings.Bucket), b.settings.Prefix)
	target, err := url.Parse(server.Endpoint())
	if err != nil {
		t.Fatal(err)
	}
	pass := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }, // the host is signed
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { // a client that gave up, most often
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && !r.URL.Query().Has("list-type"):
			b.gets.Add(1)
		case r.Method == http.MethodPut:
			b.puts.Add(1)
		}
		body, err := io.ReadAll(r.Body) // only then a client is noticed that goes away
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		select {
		case <-time.After(time.Duration(b.delay.Load())):
		case <-r.Context().Done():
			return
		}
		pass.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	b.settings.Address = front.URL
	return b
}

// is has every request wait for delay.
func (b *bucket) is(delay time.Duration) { b.delay.Store(int64(delay)) }

// keys returns the blocks in the bucket.
func (b *bucket) keys() map[store.Key]bool {
	b.t.Helper()
	keys := map[store.Key]bool{}
	err := filepath.WalkDir(b.folder, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(b.folder, name)
		if err != nil {
			return err
		}
		key, err := store.ParseKey(rel)
		if err == nil {
			keys[key] = true
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
	return keys
}
