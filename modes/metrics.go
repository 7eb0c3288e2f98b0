package modes

import (
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
