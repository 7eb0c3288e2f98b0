package modes

import (
	"maps"
	"slices"
	"strings"

	"flexfs/cache"
	"flexfs/store/remote"
)

// cacheMetrics shows a cache's statistics in the form of Prometheus.
func cacheMetrics(prefix string, s cache.Stats) []remote.Metric {
	counter := func(name, help string, n int64) remote.Metric {
		return remote.Metric{Name: prefix + name, Help: help, Type: "counter", Value: float64(n)}
	}
	gauge := func(name, help string, n int64) remote.Metric {
		return remote.Metric{Name: prefix + name, Help: help, Type: "gauge", Value: float64(n)}
	}
	return []remote.Metric{
		counter("hits_total", "Gets answered from the cache.", s.Hits),
		counter("misses_total", "Gets that went on.", s.Misses),
		counter("joined_total", "Gets that waited for a fetch under way.", s.Joined),
		counter("hit_bytes_total", "Bytes answered from the cache.", s.HitBytes),
		counter("evictions_total", "Blocks that made room for others.", s.Evictions),
		counter("dropped_total", "Blocks that came and were not kept.", s.Dropped),
		counter("corrupt_total", "Copies that failed their checksum.", s.Corrupt),
		counter("errors_total", "Errors of the disk.", s.Errors),
		gauge("bytes", "Bytes held.", s.Bytes),
		gauge("blocks", "Blocks held.", s.Blocks),
		gauge("limit_bytes", "Bytes that are never exceeded.", s.Limit),
	}
}

// metrics shows a mount's statistics in the form of Prometheus.
func (m *Mount) metrics() []remote.Metric {
	const prefix = "flexfs_mount_"
	s := m.Stats()
	list := cacheMetrics(prefix+"memory_", s.Memory)
	if s.Disk != nil {
		list = append(list, cacheMetrics(prefix+"disk_", *s.Disk)...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		list = append(list, remote.Metric{
			Name: prefix + strings.ReplaceAll(spaced(name), " ", "_") + "_total", Help: "Of the file system: " + spaced(name) + ".",
			Type: "counter", Value: float64(s.Files[name]),
		})
	}
	n := s.Proxies.Counts
	for _, c := range []struct {
		name, help string
		n          int64
	}{
		{"proxied_total", "Operations that a proxy did.", n.Proxied},
		{"direct_total", "Operations that went to the bucket without asking a proxy.", n.Direct},
		{"fallbacks_total", "Operations that went to the bucket as the proxies failed.", n.Fallbacks},
		{"failovers_total", "Requests sent to a proxy as the block's owner was down.", n.Failovers},
		{"switches_total", "Changes of group, or to the bucket and back.", n.Switches},
	} {
		list = append(list, remote.Metric{Name: prefix + c.name, Help: c.help, Type: "counter", Value: float64(c.n)})
	}
	return append(list, remote.Metric{Name: prefix + "proxy_group", Help: "Id of the proxy group in use, 0: none.", Type: "gauge", Value: float64(s.Proxies.Chosen)})
}
