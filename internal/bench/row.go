package main

import (
	"time"

	"flexfs/internal/measure"
)

// A unit is what the figure of a row is.
type unit string

const (
	perSecond unit = "/s"   // operations per second
	megabytes unit = "MB/s" // of the program that works
	seconds   unit = "s"    // for all of it
	mebibytes unit = "MiB"  // of memory
)

// A sample is one measurement of a row in a place.
type sample struct {
	Ops     float64 `json:"ops"`
	Bytes   float64 `json:"bytes"` // that the program at work wrote or read
	Seconds float64 `json:"seconds"`
	Value   float64 `json:"value"` // in the unit of the row
	P50     float64 `json:"p50"`   // seconds of an operation
	P99     float64 `json:"p99"`

	MountCPU  float64 `json:"mountCPU"` // seconds
	MetaCPU   float64 `json:"metaCPU"`
	ProxyCPU  float64 `json:"proxyCPU"`
	BucketCPU float64 `json:"bucketCPU"`
	LoadCPU   float64 `json:"loadCPU"` // of what works on the place, and of the relay
	Foreign   float64 `json:"foreign"` // share of the machine that others had

	PeakMount int64 `json:"peakMount"` // bytes of memory
	PeakMeta  int64 `json:"peakMeta"`

	MetaCalls  float64 `json:"metaCalls"`
	Gets       int64   `json:"gets"`
	Puts       int64   `json:"puts"`
	Others     int64   `json:"others"`
	FromBucket int64   `json:"fromBucket"` // bytes
	ToBucket   int64   `json:"toBucket"`
}

// sampleOf says what a load cost between two usages.
func sampleOf(l load, u unit, before, after usage) sample {
	s := sample{
		Ops: l.ops, Bytes: l.bytes, Seconds: l.took.Seconds(), P50: l.p50.Seconds(), P99: l.p99.Seconds(),
		MountCPU: (after.mount - before.mount).Seconds(), MetaCPU: (after.meta - before.meta).Seconds(), ProxyCPU: (after.proxy - before.proxy).Seconds(),
		BucketCPU: (after.bucket - before.bucket).Seconds(), LoadCPU: (after.load - before.load).Seconds(),
		PeakMount: after.peakMount, PeakMeta: after.peakMeta, MetaCalls: after.metaCalls - before.metaCalls,
	}
	t := after.toBucket.since(before.toBucket)
	s.Gets, s.Puts, s.Others, s.FromBucket, s.ToBucket = t.gets, t.puts, t.others, t.down, t.up
	ours := s.MountCPU + s.MetaCPU + s.ProxyCPU + s.BucketCPU + s.LoadCPU
	s.Foreign = measure.Foreign(after.machine-before.machine, after.idle-before.idle, time.Duration(ours*float64(time.Second)))
	switch u {
	case perSecond:
		s.Value = per(s.Ops, s.Seconds)
	case megabytes:
		s.Value = per(s.Bytes/1e6, s.Seconds)
	case seconds:
		s.Value = s.Seconds
	case mebibytes:
		s.Value = l.value
	}
	return s
}

// per is a / b, or 0 if there is no b.
func per(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// A figure is what a place did in a row: medians of its samples.
type figure struct {
	Value     float64  `json:"value"` // in the row's unit
	P50       float64  `json:"p50"`   // seconds
	P99       float64  `json:"p99"`
	CPUPerOp  float64  `json:"cpuPerOp"`  // seconds of our processes
	CPUPerGiB float64  `json:"cpuPerGiB"` // the same by what the program at work wrote or read
	MetaPerOp float64  `json:"metaPerOp"` // calls of the mount to the metadata service
	ReqPerOp  float64  `json:"reqPerOp"`  // requests to the bucket
	Fetched   float64  `json:"fetched"`   // bytes from the bucket for each byte that the program at work wrote or read
	Sent      float64  `json:"sent"`      // and to it
	PeakMount float64  `json:"peakMount"` // bytes of memory
	PeakMeta  float64  `json:"peakMeta"`
	Foreign   float64  `json:"foreign"`
	Samples   []sample `json:"samples"`
}

func figureOf(all []sample) *figure {
	if len(all) == 0 {
		return nil
	}
	median := func(f func(sample) float64) float64 { return measure.Median(all, f) }
	return &figure{
		Value: median(func(s sample) float64 { return s.Value }),
		P50:   median(func(s sample) float64 { return s.P50 }), P99: median(func(s sample) float64 { return s.P99 }),
		CPUPerOp:  median(func(s sample) float64 { return per(s.cpu(), s.Ops) }),
		CPUPerGiB: median(func(s sample) float64 { return per(s.cpu(), s.Bytes/(1<<30)) }),
		MetaPerOp: median(func(s sample) float64 { return per(s.MetaCalls, s.Ops) }),
		ReqPerOp:  median(func(s sample) float64 { return per(float64(s.Gets+s.Puts+s.Others), s.Ops) }),
		Fetched:   median(func(s sample) float64 { return per(float64(s.FromBucket), s.Bytes) }),
		Sent:      median(func(s sample) float64 { return per(float64(s.ToBucket), s.Bytes) }),
		PeakMount: median(func(s sample) float64 { return float64(s.PeakMount) }),
		PeakMeta:  median(func(s sample) float64 { return float64(s.PeakMeta) }),
		Foreign:   median(func(s sample) float64 { return s.Foreign }), Samples: all,
	}
}

// cpu is what our own processes used.
func (s sample) cpu() float64 { return s.MountCPU + s.MetaCPU + s.ProxyCPU }

// ratioOf returns how fast the one place was compared with the other, above 1 is
// faster: the median over the repeats, in each of which both were measured one
// after the other.
func ratioOf(u unit, one, other []sample) float64 {
	turns := make([]int, min(len(one), len(other)))
	for i := range turns {
		turns[i] = i
	}
	return measure.Median(turns, func(i int) float64 {
		a, b := one[i].Value, other[i].Value
		if u == seconds {
			a, b = b, a
		}
		return per(a, b)
	})
}
