package modes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

// statsXattr is the extended attribute of a mount's root that holds its
// statistics.
const statsXattr = "user.flexfs.stats"

func statsCommand() *cli.Command {
	output := "table"
	return &cli.Command{
		Name:      "stats",
		Usage:     "show what a mount did since its start, and the proxies it uses",
		ArgsUsage: "<dir>",
		Flags:     []cli.Flag{choiceFlag(&output, "output", "`FORMAT` of what is printed: table for people, json for programs", "table", "json")},
		Action: func(c *cli.Context) error {
			args, err := positional(c, "dir")
			if err != nil {
				return err
			}
			text, err := readStats(args[0])
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(c.App.Writer, json.RawMessage(text))
			}
			var s MountStats
			if err := json.Unmarshal(text, &s); err != nil {
				return fmt.Errorf("statistics of %s: %w", args[0], err)
			}
			return printStats(c, s)
		},
	}
}

// readStats returns the statistics of the mount that dir is in, as JSON.
func readStats(dir string) ([]byte, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for {
		text := make([]byte, 64<<10)
		n, err := syscall.Getxattr(path, statsXattr, text)
		switch {
		case err == nil:
			return text[:n], nil
		case errors.Is(err, syscall.ERANGE) || errors.Is(err, syscall.E2BIG):
			return nil, fmt.Errorf("the statistics of %s are larger than 64 KiB, as it has very many proxies: see its metrics (--debugAddr)", path)
		case isDeadMount(err):
			return nil, fmt.Errorf("%s is a mount whose program has gone: run umount -l %[1]s", dir)
		case errors.Is(err, syscall.ENOENT):
			return nil, &os.PathError{Op: "stats", Path: dir, Err: err}
		case path == "/":
			return nil, fmt.Errorf("%s is not in a mount of flexfs", dir)
		}
		path = filepath.Dir(path)
	}
}

func printStats(c *cli.Context, s MountStats) error {
	w := c.App.Writer
	fmt.Fprintf(w, "volume %s (%s) at %s since %s\n", s.Volume, s.ID, s.Dir, s.Since.Format("2006-01-02 15:04:05"))
	fmt.Fprintf(w, "%v", s.Proxies)
	n := s.Proxies.Counts
	fmt.Fprintf(w, "requests: %d through proxies, %d direct, %d fell back to the bucket, %d by another proxy than the owner\n",
		n.Proxied, n.Direct, n.Fallbacks, n.Failovers)
	fmt.Fprintf(w, "memory: %s of %s, %s\n", roundSize(s.Memory.Bytes), roundSize(s.Memory.Limit), hitRate(s.Memory.Hits, s.Memory.Misses))
	if s.Disk != nil {
		fmt.Fprintf(w, "disk: %s of %s, %s\n", roundSize(s.Disk.Bytes), roundSize(s.Disk.Limit), hitRate(s.Disk.Hits, s.Disk.Misses))
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		n := fmt.Sprint(s.Files[name])
		if strings.HasSuffix(name, "Bytes") {
			n = roundSize(s.Files[name])
		}
		fmt.Fprintf(tw, "%s\t%s\n", spaced(name), n)
	}
	return tw.Flush()
}

// counters returns the fields of a struct of counters by name, as in JSON.
func counters(stats any) map[string]int64 {
	v := reflect.ValueOf(stats).Elem()
	all := map[string]int64{}
	for i := range v.NumField() {
		if n, ok := v.Field(i).Addr().Interface().(*atomic.Int64); ok {
			name := v.Type().Field(i).Name
			all[strings.ToLower(name[:1])+name[1:]] = n.Load()
		}
	}
	return all
}

func hitRate(hits, misses int64) string {
	if hits+misses == 0 {
		return "not asked yet"
	}
	return fmt.Sprintf("%.1f %% of %d gets were hits", 100*float64(hits)/float64(hits+misses), hits+misses)
}
