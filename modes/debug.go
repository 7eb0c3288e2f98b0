package modes

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"

	"github.com/urfave/cli/v2"

	"flexfs/store/remote"
)

// A debugServer shows metrics and profiles, without asking who wants to know.
// Its nil value serves nothing.
type debugServer struct {
	ln      net.Listener
	metrics func() []remote.Metric // beside those of every process; may be nil
}

func debugFlag(dst *string) cli.Flag {
	return textFlag(dst, "debugAddr", "`ADDRESS` for /metrics (Prometheus) and /debug/pprof/, open to all who reach it, like 127.0.0.1:6060; else there is none")
}

// listenDebug binds the address, if there is one.
func listenDebug(addr string, metrics func() []remote.Metric) (*debugServer, error) {
	if addr == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--debugAddr %s: %w", addr, cause(err))
	}
	return &debugServer{ln, metrics}, nil
}

func (d *debugServer) close() {
	if d != nil {
		d.ln.Close()
	}
}

// serve answers until ctx is done.
func (d *debugServer) serve(ctx context.Context, log *slog.Logger) error {
	if d == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", d.serveMetrics)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return serveHTTP(ctx, ctx, d.ln, nil, mux, log)
}

func (d *debugServer) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	list := processMetrics()
	if d.metrics != nil {
		list = append(d.metrics(), list...)
	}
	for _, m := range list {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %[1]s %[3]s\n%[1]s %[4]s\n", m.Name, m.Help, m.Type, strconv.FormatFloat(m.Value, 'g', -1, 64))
	}
}

// processMetrics are those of every process of Go.
func processMetrics() []remote.Metric {
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return []remote.Metric{
		{Name: "go_goroutines", Help: "Goroutines that exist.", Type: "gauge", Value: float64(runtime.NumGoroutine())},
		{Name: "go_memstats_heap_inuse_bytes", Help: "Bytes of the heap in use.", Type: "gauge", Value: float64(mem.HeapInuse)},
		{Name: "go_memstats_sys_bytes", Help: "Bytes of memory from the system.", Type: "gauge", Value: float64(mem.Sys)},
		{Name: "go_gc_cycles_total", Help: "Garbage collections.", Type: "counter", Value: float64(mem.NumGC)},
	}
}
