package modes

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"

	"github.com/urfave/cli/v2"
)

// A debugServer shows metrics and profiles, without asking who wants to know.
// Its nil value serves nothing.
type debugServer struct {
	ln      net.Listener
	metrics figures // beside those of every process; may be nil
}

func debugFlag(dst *string) cli.Flag {
	return textFlag(dst, "debugAddr", "`ADDRESS` for /metrics (Prometheus) and /debug/pprof/, open to all who reach it, like 127.0.0.1:6060; else there is none")
}

// listenDebug binds the address, if there is one.
func listenDebug(addr string, metrics figures) (*debugServer, error) {
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
	mux.Handle("GET /metrics", metricsHandler(d.metrics))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return serveHTTP(ctx, ctx, d.ln, nil, mux, log)
}
