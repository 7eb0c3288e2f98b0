package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// print shows the results as tables.
func (r *results) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "blocks in the cache, GET; medians of %d turns; CPU in seconds per GiB\n", r.Repeats)
	fmt.Fprintln(tw, "\tclients\tnginx GiB/s\tflexfs GiB/s\tnginx CPU\tflexfs CPU\tclient CPU\tp50 ms\tothers' CPU\trate ratio\tCPU RATIO\t")
	for _, row := range r.Hits {
		fmt.Fprintf(tw, "%s %s\t%d\t%.2f\t%.2f\t%.3f\t%.3f\t%.3f\t%.2f\t%.0f%%\t%.2f\t%.2f\t\n", scheme(row.TLS), sizeName(row.Size), row.Clients,
			row.Nginx.Rate, row.Flexfs.Rate, row.Nginx.ServerCPU, row.Flexfs.ServerCPU, row.Flexfs.ClientCPU, 1e3*row.Flexfs.P50,
			100*max(row.Nginx.Foreign, row.Flexfs.Foreign), row.RateRatio, row.ServerCPURatio)
	}
	tw.Flush()
	fmt.Fprintf(tw, "\nblocks that are not, GET by 1 client; the bucket thinks for %.0f ms\n", 1e3*r.BucketDelay)
	fmt.Fprintln(tw, "\tbucket ms\tthrough the proxy ms\tADDED ms\tnext time ms\t")
	for _, row := range r.Misses {
		fmt.Fprintf(tw, "%s %s\t%.2f\t%.2f\t%.2f\t%.2f\t\n", scheme(row.TLS), sizeName(row.Size), 1e3*row.Bucket, 1e3*row.Proxy, 1e3*(row.Proxy-row.Bucket), 1e3*row.Hit)
	}
	tw.Flush()
	fmt.Fprintf(tw, "\nnew blocks, PUT 4 MiB; the bucket thinks for %.0f ms\n", 1e3*r.BucketDelay)
	fmt.Fprintln(tw, "\tclients\tGiB/s\tp50 ms\tproxies' CPU\t")
	for _, row := range r.Puts {
		fmt.Fprintf(tw, "%s\t%d\t%.2f\t%.2f\t%.3f\t\n", row.Group, row.Clients, row.Flexfs.Rate, 1e3*row.Flexfs.P50, row.Flexfs.ServerCPU)
	}
	tw.Flush()
}

func sizeName(n int) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
