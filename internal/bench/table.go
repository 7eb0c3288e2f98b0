package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// print shows the results as a table.
func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "medians of %s; %d CPUs, Linux %s; bucket %.0f ms away; flexfs mount %s\n", plural(r.Repeats, "repeat"), r.CPUs, r.Kernel, 1e3*r.BucketDelay, r.Mount)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, strings.Join(columns, "\t")+"\t")
	for _, row := range r.Rows {
		fmt.Fprintln(tw, strings.Join(row.cells(), "\t")+"\t")
	}
	tw.Flush()
}

var columns = []string{"row", "floor", "ceiling", "flexfs", "unit", "of floor", "of ceil", "of raw", "p50 ms", "p99 ms", "CPU", "per", "meta/op", "req/op", "fetched", "sent", "peak MiB", "others", "goal"}

// markdown returns the table as documents have it.
func (r *results) markdown() string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(columns)
	b.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
	for _, row := range r.Rows {
		line(row.cells())
	}
	return b.String()
}

func (row rowResult) cells() []string {
	f := cmp.Or(row.Flexfs, row.Ceiling, row.Floor)
	cpu, per := fmt.Sprintf("%.1f us", 1e6*f.CPUPerOp), "op"
	if row.Unit == megabytes {
		cpu, per = fmt.Sprintf("%.2f s", f.CPUPerGiB), "GiB"
	}
	return []string{row.Name, value(row.Floor), value(row.Ceiling), value(row.Flexfs), string(row.Unit), ratio(row.OfFloor), ratio(row.OfCeiling), ratio(row.OfRaw),
		short(1e3 * f.P50), short(1e3 * f.P99), cpu, per, short(f.MetaPerOp), short(f.ReqPerOp), short(f.Fetched), short(f.Sent),
		fmt.Sprintf("%.0f+%.0f", f.PeakMount/(1<<20), f.PeakMeta/(1<<20)), fmt.Sprintf("%.0f%%", 100*f.Foreign), row.judged()}
}

func value(f *figure) string {
	if f == nil {
		return "-"
	}
	return short(f.Value)
}

func ratio(x float64) string {
	if x == 0 {
		return "-"
	}
	return short(x)
}

// short writes a number with as many digits as count.
func short(x float64) string {
	switch {
	case x == 0:
		return "0"
	case x < 0.001:
		return "<0.001"
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x < 0.1:
		return strconv.FormatFloat(x, 'f', 3, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// judged says what the goals are and whether they are reached.
func (row rowResult) judged() string {
	var all []string
	for _, g := range row.Goals {
		bound := ">=" + short(g.AtLeast)
		if g.AtLeast == 0 {
			bound = "<=" + short(g.AtMost)
		}
		if g.Figure != "value" {
			bound = g.Figure + bound
		}
		if g.Reached {
			bound += " yes"
		} else {
			bound += " NO"
		}
		all = append(all, bound)
	}
	return strings.Join(all, ", ")
}
