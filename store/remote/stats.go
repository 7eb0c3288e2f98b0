package remote

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// A Metric is a number that a server shows.
type Metric struct {
	Name  string // in the form of Prometheus: flexfs_proxy_...
	Help  string
	Type  string // counter or gauge
	Value float64
}

// The methods and codes that are counted one by one. Others count as the last.
var (
	countedMethods = [...]string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodPost, "other"}
	countedCodes   = [...]code{"", codeNotExist, codeCorrupt, codeTicket, codeExpired, codeVolume, codeReadOnly,
		codeUnknown, codeRequest, codeTooLarge, codeDamaged, codeBusy, codeFull, codeGone, codeOrigin}
)

// buckets are the upper bounds of the histogram of how long requests took.
var buckets = [...]time.Duration{
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond,
	300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second,
}

// stats count what happened since the start. Fields only grow, but active.
type stats struct {
	active   atomic.Int64 // requests for blocks now
	sent     atomic.Int64 // bytes of blocks
	received atomic.Int64
	requests [len(countedMethods)][len(countedCodes)]atomic.Int64
	took     [len(countedMethods)]histogram
}

type histogram struct {
	within [len(buckets) + 1]atomic.Int64 // the last: longer than all bounds
	micros atomic.Int64                   // in all
}

func (s *stats) count(method string, c code, took time.Duration) {
	m := index(countedMethods[:], method)
	s.requests[m][index(countedCodes[:], c)].Add(1)
	h := &s.took[m]
	h.micros.Add(took.Microseconds())
	i := 0
	for i < len(buckets) && took > buckets[i] {
		i++
	}
	h.within[i].Add(1)
}

// index returns where x is in all, or the last index if it is not there.
func index[T comparable](all []T, x T) int {
	for i, y := range all {
		if x == y {
			return i
		}
	}
	return len(all) - 1
}

func resultOf(c code) string {
	if c == "" {
		return "ok"
	}
	return string(c)
}

// single returns the metrics that are one number.
func (h *handler) single() []Metric {
	all := []Metric{
		{"flexfs_proxy_requests_active", "Requests for blocks being served.", "gauge", float64(h.stats.active.Load())},
		{"flexfs_proxy_sent_bytes_total", "Bytes of blocks sent to clients.", "counter", float64(h.stats.sent.Load())},
		{"flexfs_proxy_received_bytes_total", "Bytes of blocks received from clients.", "counter", float64(h.stats.received.Load())},
	}
	if h.Metrics != nil {
		all = append(all, h.Metrics()...)
	}
	return all
}

// serveStats answers with all counters as one JSON object.
func (h *handler) serveStats(w http.ResponseWriter, _ *http.Request) {
	all := make(map[string]any)
	for _, m := range h.single() {
		all[m.Name] = m.Value
	}
	requests := make(map[string]map[string]int64)
	h.eachCount(func(method, result string, n int64) {
		if requests[method] == nil {
			requests[method] = make(map[string]int64)
		}
		requests[method][result] = n
	})
	all["flexfs_proxy_requests_total"] = requests
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(all)
}

// eachCount calls fn for what has been asked at least once.
func (h *handler) eachCount(fn func(method, result string, n int64)) {
	for m, method := range countedMethods {
		for c, code := range countedCodes {
			if n := h.stats.requests[m][c].Load(); n > 0 {
				fn(method, resultOf(code), n)
			}
		}
	}
}

// serveMetrics answers in the text format of Prometheus.
func (h *handler) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	for _, m := range h.single() {
		title(&b, m.Name, m.Help, m.Type)
		fmt.Fprintf(&b, "%s %s\n", m.Name, strconv.FormatFloat(m.Value, 'g', -1, 64))
	}
	const requests = "flexfs_proxy_requests_total"
	title(&b, requests, "Requests for blocks by method and result.", "counter")
	h.eachCount(func(method, result string, n int64) {
		fmt.Fprintf(&b, "%s{method=%q,result=%q} %d\n", requests, method, result, n)
	})
	const seconds = "flexfs_proxy_request_seconds"
	title(&b, seconds, "How long requests for blocks took.", "histogram")
	for m, method := range countedMethods {
		h.stats.took[m].write(&b, seconds, method)
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(b.Bytes())
}

func title(w io.Writer, name, help, kind string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (h *histogram) write(w io.Writer, name, method string) {
	var sum int64
	for i := range h.within {
		sum += h.within[i].Load()
		bound := "+Inf"
		if i < len(buckets) {
			bound = strconv.FormatFloat(buckets[i].Seconds(), 'g', -1, 64)
		}
		fmt.Fprintf(w, "%s_bucket{method=%q,le=%q} %d\n", name, method, bound, sum)
	}
	fmt.Fprintf(w, "%s_sum{method=%q} %g\n", name, method, float64(h.micros.Load())/1e6)
	fmt.Fprintf(w, "%s_count{method=%q} %d\n", name, method, sum)
}
