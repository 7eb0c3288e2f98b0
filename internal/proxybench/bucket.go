package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bucketName is the one bucket that there is.
const bucketName = "bench"

// A bucket is as much of an object store as a proxy asks for, in this process's
// memory. It checks no signature. What proxies put is forgotten, but for that it
// is there.
type bucket struct {
	addr  string
	delay atomic.Int64 // before each answer, in nanoseconds

	srv *http.Server

	mu      sync.Mutex
	objects map[string][]byte // by name; nil: it was put; guarded by mu
}

func startBucket() (*bucket, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &bucket{addr: ln.Addr().String(), objects: make(map[string][]byte)}
	b.srv = &http.Server{Handler: b}
	go b.srv.Serve(ln) // until close
	return b, nil
}

func (b *bucket) close() error { return b.srv.Close() }

// path returns where an object is.
func (b *bucket) path(name string) string { return "/" + bucketName + "/" + name }

func (b *bucket) put(name string, data []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[name] = data
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+bucketName), "/")
	if r.Method == http.MethodPut {
		io.Copy(io.Discard, r.Body)
		b.put(name, nil)
	}
	time.Sleep(time.Duration(b.delay.Load()))
	switch {
	case name == "":
		io.WriteString(w, `<?xml version="1.0"?><ListBucketResult><Name>`+bucketName+`</Name><KeyCount>0</KeyCount></ListBucketResult>`)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		b.serve(w, r, name)
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	}
}

// serve answers with the object, or with the range that is asked for.
func (b *bucket) serve(w http.ResponseWriter, r *http.Request, name string) {
	b.mu.Lock()
	data, ok := b.objects[name]
	b.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`)
		return
	}
	var from, to int
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n == 2 && from <= to && to < len(data) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
		data = data[from : to+1]
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		w.Write(data)
	}
}
