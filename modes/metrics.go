package modes

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"flexfs/cache"
	"flexfs/store/remote"
)

// figures are the metrics of a program, which are counted elsewhere: when
// somebody looks it is called and tells what they are now. It is a
// [prometheus.Collector].
type figures func(emit)

// Describe says nothing, which leaves the names to Collect.
func (f figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (f figures) Collect(ch chan<- prometheus.Metric) { f(emit(ch)) }

// metricsHandler answers with the figures, which may be nil, and with those of
// every process of Go.
func metricsHandler(f figures) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if f != nil {
		r.MustRegister(f)
	}
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

// emit takes metrics. Labels are pairs of name and value, in the same order of
// names for all metrics of a name.
type emit chan<- prometheus.Metric

func (e emit) counter(name, help string, n int64, labels ...string) {
	e.number(prometheus.CounterValue, name, help, float64(n), labels)
}

func (e emit) gauge(name, help string, v float64, labels ...string) {
	e.number(prometheus.GaugeValue, name, help, v, labels)
}

func (e emit) number(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	d, values := describe(name, help, labels)
	e <- prometheus.MustNewConstMetric(d, kind, v, values...)
}

func (e emit) histogram(name, help string, h remote.Histogram, labels ...string) {
	d, values := describe(name, help, labels)
	e <- prometheus.MustNewConstHistogram(d, h.Count, h.Sum.Seconds(), h.Within, values...)
}

func describe(name, help string, labels []string) (d *prometheus.Desc, values []string) {
	var names []string
	for pair := range slices.Chunk(labels, 2) {
		names, values = append(names, pair[0]), append(values, pair[1])
	}
	return prometheus.NewDesc(name, help, names, nil), values
}

// cache tells of a tier of blocks.
func (e emit) cache(prefix string, s cache.Stats) {
	for _, c := range []struct {
		name, help string
		n          int64
	}{
		{"hits_total", "Gets answered from the cache.", s.Hits},
		{"misses_total", "Gets that went on.", s.Misses},
		{"joined_total", "Gets that waited for a fetch under way.", s.Joined},
		{"hit_bytes_total", "Bytes answered from the cache.", s.HitBytes},
		{"evictions_total", "Blocks that made room for others.", s.Evictions},
		{"dropped_total", "Blocks that came and were not kept.", s.Dropped},
		{"corrupt_total", "Copies that failed their checksum.", s.Corrupt},
		{"errors_total", "Errors of the disk.", s.Errors},
	} {
		e.counter(prefix+c.name, c.help, c.n)
	}
	e.gauge(prefix+"bytes", "Bytes held.", float64(s.Bytes))
	e.gauge(prefix+"blocks", "Blocks held.", float64(s.Blocks))
	e.gauge(prefix+"limit_bytes", "Bytes that are never exceeded.", float64(s.Limit))
}

// secondsSince returns how many seconds ago t was; 0 if t is zero.
func secondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(time.Since(t).Seconds(), 0)
}

// server tells of a proxy's requests.
func (e emit) server(s remote.ServerStats) {
	const prefix = "flexfs_proxy_"
	e.gauge(prefix+"requests_active", "Requests for blocks being served.", float64(s.Active))
	e.counter(prefix+"sent_bytes_total", "Bytes of blocks sent to clients.", s.SentBytes)
	e.counter(prefix+"received_bytes_total", "Bytes of blocks received from clients.", s.ReceivedBytes)
	for method, results := range s.Requests {
		for result, n := range results {
			e.counter(prefix+"requests_total", "Requests for blocks by method and result.", n, "method", method, "result", result)
		}
	}
	for method, h := range s.Took {
		e.histogram(prefix+"request_seconds", "How long requests for blocks took.", h, "method", method)
	}
}

// dirty tells of the blocks that a proxy has acknowledged before the bucket.
func (e emit) dirty(s ProxyStats) {
	const prefix = "flexfs_proxy_"
	inUse := 0.0
	if s.DiskOK {
		inUse = 1
	}
	e.gauge(prefix+"disk_in_use", "Whether the disk of the cache works.", inUse)
	e.gauge(prefix+"dirty_bytes", "Bytes of blocks that the bucket may lack.", float64(s.Disk.DirtyBytes))
	e.gauge(prefix+"dirty_blocks", "Blocks that the bucket may lack.", float64(s.Disk.DirtyBlocks))
	e.counter(prefix+"dirty_damaged_total", "Blocks set aside as their file was damaged before the bucket had them: see the folder damaged.", s.Disk.DirtyLost)
	e.counter(prefix+"served_to_others_total", "Gets of other members, and of who searches for a block, answered from here.", s.Disk.LocalHits)
	e.gauge(prefix+"dirty_age_seconds", "Age of the oldest block that the bucket may lack.", secondsSince(s.Disk.OldestDirty))
	w := s.WriteBack
	e.counter(prefix+"write_back_total", "Blocks acknowledged when two members had them.", w.Acknowledged)
	e.counter(prefix+"write_back_bytes_total", "Bytes of them.", w.AcknowledgedBytes)
	for cause, n := range map[string]int64{"asked": w.Asked, "alone": w.Alone, "no-room": w.NoRoom, "peer": w.Peer, "late": w.Late} {
		e.counter(prefix+"write_through_total", "Blocks that were put into the bucket before they were acknowledged, by cause.", n, "cause", cause)
	}
	e.counter(prefix+"copies_total", "Blocks kept for other members.", w.Copies)
	e.counter(prefix+"uploads_total", "Blocks uploaded in the background.", w.Uploads)
	e.counter(prefix+"uploaded_bytes_total", "Bytes of them.", w.UploadedBytes)
	e.counter(prefix+"upload_failures_total", "Uploads that the bucket did not take; they are repeated.", w.Failures)
	e.counter(prefix+"takeovers_total", "Copies that became this proxy's to upload.", w.Takeovers)
	e.counter(prefix+"lost_copies_total", "Blocks that could not be read here for their upload; the other copy counts.", w.Lost)
	e.gauge(prefix+"upload_lag_seconds", "From the acknowledgement to the bucket, of the block uploaded last.", w.Lag.Seconds())
}

// peers tells of a proxy and the other members of its group.
func (e emit) peers(s remote.PeerStats) {
	const prefix = "flexfs_proxy_peer_"
	e.counter(prefix+"asked_total", "Misses for which other members were asked.", s.Asked)
	e.counter(prefix+"fills_total", "Of them those that another member had.", s.Filled)
	e.counter(prefix+"fill_bytes_total", "Bytes of those.", s.FilledBytes)
	e.counter(prefix+"late_total", "Questions that were not answered in time.", s.Late)
	e.counter(prefix+"rejected_total", "Answers that were not the block.", s.Rejected)
	e.counter(prefix+"copy_failures_total", "Requests to another member to keep a copy that failed.", s.CopyFailures)
}

// metrics tells what a mount did.
func (m *Mount) metrics(e emit) {
	const prefix = "flexfs_mount_"
	s := m.Stats()
	e.cache(prefix+"memory_", s.Memory)
	if s.Disk != nil {
		e.cache(prefix+"disk_", *s.Disk)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		e.counter(prefix+strings.ReplaceAll(spaced(name), " ", "_")+"_total", "Of the file system: "+spaced(name)+".", s.Files[name])
	}
	n := s.Proxies.Counts
	e.counter(prefix+"proxied_total", "Operations that a proxy did.", n.Proxied)
	e.counter(prefix+"direct_total", "Operations that went to the bucket without asking a proxy.", n.Direct)
	e.counter(prefix+"fallbacks_total", "Operations that went to the bucket as the proxies failed.", n.Fallbacks)
	e.counter(prefix+"failovers_total", "Requests sent to a proxy as the block's owner was down.", n.Failovers)
	e.counter(prefix+"retries_denied_total", "Operations not sent to another proxy as too many failed: they went to the bucket.", n.RetriesDenied)
	e.counter(prefix+"checks_total", "Blocks that a proxy did not find and that were looked for in the bucket.", n.Checks)
	e.counter(prefix+"checks_found_total", "Of them those that were there.", n.Found)
	e.counter(prefix+"switches_total", "Changes of group, or to the bucket and back.", n.Switches)
	e.counter(prefix+"hedged_total", "Operations sent to the bucket as well, as a proxy took long.", n.Hedged)
	e.counter(prefix+"hedges_won_total", "Of them those that the bucket answered before.", n.HedgesWon)
	e.counter(prefix+"hedges_denied_total", "Operations that were not, as there were too many of them.", n.HedgesDenied)
	e.counter(prefix+"compared_total", "Operations sent to a proxy and the bucket, to compare them.", n.Compared)
	e.counter(prefix+"bypasses_total", "Times that a proxy was found slower than the bucket, and bypassed.", n.Bypasses)
	e.counter(prefix+"searches_total", "Blocks that were not where they should be, and searched for on all proxies.", n.Searched)
	e.counter(prefix+"searches_found_total", "Of them those that another proxy had.", n.FoundAtPeer)
	e.gauge(prefix+"proxy_group", "Id of the proxy group in use, 0: none.", float64(s.Proxies.Chosen))
	for _, g := range s.Proxies.Groups {
		e.group(prefix, g)
	}
}

// group tells what a mount sees of a proxy group.
func (e emit) group(prefix string, g remote.GroupStatus) {
	id := strconv.FormatInt(g.ID, 10)
	e.gauge(prefix+"group_round_trip_seconds", "Round trip to the nearest usable member of the group, 0: none.", g.RTT.Seconds(), "group", id)
	for _, m := range g.Members {
		labels := []string{"group", id, "proxy", m.Address}
		up := 0.0
		if m.State == "up" {
			up = 1
		}
		e.gauge(prefix+"member_up", "Whether the proxy is used.", up, labels...)
		e.gauge(prefix+"member_round_trip_seconds", "Round trip to the proxy, 0: not known.", m.RTT.Seconds(), labels...)
		e.counter(prefix+"member_requests_total", "Requests sent to the proxy.", m.Requests, labels...)
		e.counter(prefix+"member_failures_total", "Of them those in which the proxy failed.", m.Failures, labels...)
		e.counter(prefix+"member_beaten_total", "Of them those that were sent to the bucket as well, which answered before.", m.Beaten, labels...)
	}
}
