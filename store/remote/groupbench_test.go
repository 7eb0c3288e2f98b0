package remote

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// A ready proxy answers at once, with few allocations, so that what is measured
// is the rest.
type ready struct {
	data   []byte
	header http.Header
}

func (r *ready) RoundTrip(req *http.Request) (*http.Response, error) {
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		trace.GotFirstResponseByte()
	}
	if req.Method == http.MethodPut || req.URL.Path == healthPath {
		return &http.Response{StatusCode: http.StatusNoContent, Header: r.header, Body: http.NoBody, Request: req}, nil
	}
	return &http.Response{StatusCode: http.StatusPartialContent, Header: r.header, ContentLength: int64(len(r.data)),
		Body: io.NopCloser(bytes.NewReader(r.data)), Request: req}, nil
}

func benchmarkGroup(b *testing.B, op func(*Group, store.Key) error) {
	data := bytes.Repeat([]byte{7}, 4096)
	header := http.Header{headerProxy: {"1"}, headerCRC: {checksum(data)}, "Content-Range": {contentRange(0, len(data))}}
	g := New(Config{
		Origin: mem.New(nil), Groups: []GroupSettings{plain(1, "a:1", "a:2", "a:3", "a:4")},
		Ticket:    func() string { return testVolume },
		transport: func(Member) http.RoundTripper { return &ready{data, header} },
	})
	g.Probe(context.Background())
	if g.Status().Chosen != 1 {
		b.Fatal("the group is not used")
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := op(g, storetest.Key(1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGroupGet(b *testing.B) {
	benchmarkGroup(b, func(g *Group, key store.Key) error {
		_, err := g.Get(b.Context(), key, 0, 4096)
		return err
	})
}

func BenchmarkGroupPut(b *testing.B) {
	data := bytes.Repeat([]byte{7}, 4096)
	benchmarkGroup(b, func(g *Group, key store.Key) error { return g.Put(b.Context(), key, data) })
}
