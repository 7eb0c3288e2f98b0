package e2e

import (
	"strings"
	"testing"

	"flexfs/internal/faultnet"
	"flexfs/internal/s3test"
)

// A sink is a bucket of an S3 server, at the end of a line that can fail. The
// nil sink is a folder.
type sink struct {
	server *s3test.Server
	line   *faultnet.Net
}

func newSink(t *testing.T) *sink {
	t.Helper()
	server := s3test.Start(t)
	line, err := faultnet.New(strings.TrimPrefix(server.Endpoint(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(line.Close)
	return &sink{server, line}
}

// flags describe the bucket to configure.
func (s *sink) flags(w *world) []string {
	if s == nil {
		return []string{"--apiCode", "dir", "--bucket", w.path("bucket")}
	}
	return []string{"--apiCode", "s3", "--bucket", s.server.Bucket(), "--address", "http://" + s.line.Addr(),
		"--username", s.server.AccessKey, "--password", s.server.SecretKey}
}

// set changes the line to the bucket.
func (s *sink) set(t *testing.T, line faultnet.Line) {
	t.Helper()
	if err := s.line.Set(line); err != nil {
		t.Fatal(err)
	}
}
