package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"flexfs/internal/measure"
)

// A usage is what was used since some past moment.
type usage struct {
	at                  time.Time
	mount, meta, proxy  time.Duration // CPU
	bucket, load        time.Duration // CPU of versitygw; of what works on the place, and of this process
	machine, idle       time.Duration // of all CPUs
	metaCalls           float64       // of the mounts to the metadata service
	toBucket            traffic
	peakMount, peakMeta int64 // bytes of memory since the usage before
}

// use returns what was used so far, and has peaks of memory begin anew.
func (l *lab) use(ctx context.Context, s servers) (u usage, err error) {
	var errs []error
	sum := func(list ...*measure.Process) (all time.Duration) {
		for _, p := range list {
			if p == nil {
				continue
			}
			cpu, err := measure.CPU(p.Pid)
			if err != nil {
				err = fmt.Errorf("CPU time of %s: %w", p.Name, err)
			}
			errs = append(errs, err)
			all += cpu
		}
		return all
	}
	u.at = time.Now()
	u.mount, u.meta, u.proxy, u.bucket = sum(s.mounts...), sum(s.meta), sum(s.proxies...), sum(l.gateway)
	own, err1 := measure.OwnCPU()
	children, err2 := measure.ChildrenCPU()
	u.load = own + children
	var err3 error
	u.machine, u.idle, err3 = measure.Machine()
	u.toBucket = l.relay.traffic()
	errs = append(errs, err1, err2, err3)
	for _, p := range s.mounts {
		peak, err := peakOf(p)
		u.peakMount = max(u.peakMount, peak)
		errs = append(errs, err)
	}
	if s.meta != nil {
		u.peakMeta, err = peakOf(s.meta)
		errs = append(errs, err)
	}
	for _, addr := range s.debug {
		m, err := metricsOf(ctx, addr)
		u.metaCalls += m["flexfs_mount_requests_total"]
		errs = append(errs, err)
	}
	return u, errors.Join(errs...)
}

// peakOf returns the most memory that a process had since it was asked last.
func peakOf(p *measure.Process) (int64, error) {
	peak, err := memoryOf(p, "VmHWM:")
	if err != nil {
		return 0, err
	}
	const resetPeak = "5"
	return peak, os.WriteFile(procFile(p, "clear_refs"), []byte(resetPeak), 0)
}

// memoryOf returns a field of a process's status in bytes.
func memoryOf(p *measure.Process, field string) (int64, error) {
	text, err := os.ReadFile(procFile(p, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", procFile(p, "status"), field)
}

// metricsOf asks a program for its metrics.
func metricsOf(ctx context.Context, addr string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return parseMetrics(resp.Body)
}

// parseMetrics reads metrics as Prometheus has them. Those of one name with
// several labels are added.
func parseMetrics(r io.Reader) (map[string]float64, error) {
	all := make(map[string]float64)
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := s.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := cutLast(line, " ")
		v, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("not a metric: %q", line)
		}
		name, _, _ = strings.Cut(name, "{")
		all[name] += v
	}
	return all, s.Err()
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
