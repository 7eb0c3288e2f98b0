package testcluster

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"flexfs/admin"
	"flexfs/internal/tlspin"
	"flexfs/modes"
)

func TestMetricsAreWhatPrometheusExpects(t *testing.T) {
	c := Start(t, Options{Groups: 1})
	debug := freeAddress(t)
	m := c.Mount(func(m *modes.Mount) { m.DebugAddr = debug })
	data := contents(1, 9<<20)
	write(t, m.Path("a"), data)
	wantFile(t, c.Mount(nil).Path("a"), data)
	g, err := admin.Get[admin.ProxyGroup](t.Context(), c.Client, fmt.Sprint(c.Groups[0].ID))
	if err != nil {
		t.Fatal(err)
	}
	proxies := ""
	for _, p := range c.Groups[0].Proxies {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlspin.ClientConfig(g.Pins[p.Addr])}}
		proxies += scrape(t, client, "https://"+p.Addr+"/metrics")
	}
	mount := scrape(t, http.DefaultClient, "http://"+debug+"/metrics")
	for _, name := range []string{
		`flexfs_proxy_requests_total{method="PUT",result="ok"} `, `flexfs_proxy_request_seconds_bucket{method="GET",le="+Inf"} `,
		"flexfs_proxy_sent_bytes_total ", "flexfs_proxy_disk_hits_total ", "flexfs_proxy_disk_misses_total ", "flexfs_proxy_dirty_bytes ", "flexfs_proxy_dirty_age_seconds ", "flexfs_proxy_upload_lag_seconds ", "flexfs_proxy_peer_fills_total ",
		"flexfs_proxy_disk_joined_total ", "flexfs_proxy_disk_evictions_total ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(proxies, "\n"+name) {
			t.Errorf("the proxies' metrics lack %s", name)
		}
	}
	for _, name := range []string{
		"flexfs_mount_proxied_total ", "flexfs_mount_proxy_group 1", "flexfs_mount_member_requests_total{", "flexfs_mount_write_bytes_total 9.437184e+06",
		"flexfs_mount_hedged_total ", "flexfs_mount_bypasses_total ", "flexfs_mount_searches_total ", "flexfs_mount_searches_found_total ", "flexfs_mount_member_beaten_total{",
	} {
		if !strings.Contains(mount, "\n"+name) {
			t.Errorf("the mount's metrics lack %s", name)
		}
	}
}

// scrape returns metrics that have no fault.
func scrape(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer client.CloseIdleConnections()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, error %v: %s", url, resp.StatusCode, err, text)
	}
	problems, err := promlint.New(strings.NewReader(string(text))).Lint()
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s: %s", url, p.Metric, p.Text)
	}
	return string(text)
}

func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
