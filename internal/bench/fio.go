package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

// A load is what programs did in a place.
type load struct {
	ops      float64
	bytes    float64
	took     time.Duration
	p50, p99 time.Duration // of one operation
	value    float64       // of rows that are not about a rate
}

// fio runs fio with the options and returns what it reports.
func fio(ctx context.Context, options ...string) (load, error) {
	args := append([]string{"--name=bench", "--output-format=json", "--thread", "--ioengine=psync", "--group_reporting"}, options...)
	out, err := output(exec.CommandContext(ctx, "fio", args...))
	if err != nil {
		return load{}, err
	}
	return parseFio(out)
}

// parseFio reads fio's report of one group of jobs that read or write.
func parseFio(text []byte) (load, error) {
	type side struct {
		Bytes   float64 `json:"io_bytes"`
		Ops     float64 `json:"total_ios"`
		Runtime float64 `json:"runtime"` // milliseconds
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return load{}, fmt.Errorf("fio's report: %w", err)
	}
	if len(report.Jobs) != 1 {
		return load{}, fmt.Errorf("fio reports %d groups of jobs, not one", len(report.Jobs))
	}
	job := report.Jobs[0]
	if job.Error != 0 {
		return load{}, fmt.Errorf("fio reports error %d", job.Error)
	}
	s := job.Read
	if s.Ops == 0 {
		s = job.Write
	}
	if s.Ops == 0 || s.Runtime == 0 {
		return load{}, errors.New("fio did nothing")
	}
	return load{
		ops: s.Ops, bytes: s.Bytes, took: time.Duration(s.Runtime * float64(time.Millisecond)),
		p50: time.Duration(s.Latency.Percentile["50.000000"]), p99: time.Duration(s.Latency.Percentile["99.000000"]),
	}, nil
}
