package remote

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"
)

// The methods and codes that are counted one by one. Others count as the last.
var (
	countedMethods = [...]string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodPost, "other"}
	countedCodes   = [...]code{"", codeNotExist, codeCorrupt, codeTicket, codeExpired, codeVolume, codeReadOnly,
		codeUnknown, codeRequest, codeTooLarge, codeDamaged, codeBusy, codeFull, codeGone, codeOrigin}
)

// bounds are the upper bounds of the histogram of how long requests took.
var bounds = [...]time.Duration{
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond,
	300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second,
}

// Stats count what a [Handler] does. The zero value is ready; methods may be
// called concurrently.
type Stats struct {
	active   atomic.Int64 // requests for blocks now
	sent     atomic.Int64 // bytes of blocks
	received atomic.Int64
	requests [len(countedMethods)][len(countedCodes)]atomic.Int64
	took     [len(countedMethods)]histogram
}

type histogram struct {
	within [len(bounds) + 1]atomic.Int64 // the last: longer than all bounds
	micros atomic.Int64                  // in all
}

func (s *Stats) count(method string, c code, took time.Duration) {
	m := index(countedMethods[:], method)
	s.requests[m][index(countedCodes[:], c)].Add(1)
	h := &s.took[m]
	h.micros.Add(took.Microseconds())
	i := 0
	for i < len(bounds) && took > bounds[i] {
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

// ServerStats are what a handler did since its start. Except for Active they
// only grow.
type ServerStats struct {
	Active        int64                       `json:"active"` // requests for blocks now
	SentBytes     int64                       `json:"sentBytes"`
	ReceivedBytes int64                       `json:"receivedBytes"`
	Requests      map[string]map[string]int64 `json:"requests"` // by method and result, "ok" or a code of the protocol
	Took          map[string]Histogram        `json:"-"`        // by method
}

// A Histogram says how many requests took how long.
type Histogram struct {
	Within map[float64]uint64 // upper bound in seconds: requests that took at most that
	Count  uint64
	Sum    time.Duration
}

// Now returns the numbers of the moment.
func (s *Stats) Now() ServerStats {
	n := ServerStats{
		Active: s.active.Load(), SentBytes: s.sent.Load(), ReceivedBytes: s.received.Load(),
		Requests: map[string]map[string]int64{}, Took: map[string]Histogram{},
	}
	for m, method := range countedMethods {
		results := map[string]int64{}
		for c, code := range countedCodes {
			if k := s.requests[m][c].Load(); k > 0 {
				results[resultOf(code)] = k
			}
		}
		if len(results) > 0 {
			n.Requests[method] = results
			n.Took[method] = s.took[m].now()
		}
	}
	return n
}

func (h *histogram) now() Histogram {
	n := Histogram{Within: map[float64]uint64{}, Sum: time.Duration(h.micros.Load()) * time.Microsecond}
	for i := range h.within {
		n.Count += uint64(h.within[i].Load())
		if i < len(bounds) {
			n.Within[bounds[i].Seconds()] = n.Count
		}
	}
	return n
}

func resultOf(c code) string {
	if c == "" {
		return "ok"
	}
	return string(c)
}

// serveStats answers with what the server says of itself, as one JSON object.
func (h *handler) serveStats(w http.ResponseWriter, _ *http.Request) {
	var status any = h.stats.Now()
	if h.Status != nil {
		status = h.Status()
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(status)
}
