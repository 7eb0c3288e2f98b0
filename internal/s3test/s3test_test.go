package s3test_test

import (
	"net/http"
	"testing"

	"flexfs/internal/s3test"
)

func status(url string) (int, error) {
	resp, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

func TestServerStopsAndReturnsAtTheSameAddress(t *testing.T) {
	s := s3test.Start(t)
	url := s.Endpoint() + "/" + s.Bucket()
	for range 2 {
		if code, err := status(url); code != http.StatusForbidden {
			t.Fatalf("a stranger's request got status %d (%v), want 403", code, err)
		}
		s.Stop()
		if code, err := status(url); err == nil {
			t.Fatalf("the stopped server answered %d", code)
		}
		s.Restart()
	}
}
