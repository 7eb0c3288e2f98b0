package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// A table collects what the demo did.
type table struct{ rows []row }

type row struct {
	name  string
	took  time.Duration
	bytes int64
	said  string
}

func (t *table) add(name string, took time.Duration, bytes int64, said string) {
	t.rows = append(t.rows, row{name, took, bytes, said})
}

func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nWHAT RAN\tSECONDS\tMB\tWHAT CAME OF IT")
	for _, r := range t.rows {
		mb := ""
		if r.bytes > 0 {
			mb = fmt.Sprintf("%.1f", float64(r.bytes)/1e6)
		}
		fmt.Fprintf(tw, "%s\t%.1f\t%s\t%s\n", r.name, r.took.Seconds(), mb, r.said)
	}
	tw.Flush()
}
