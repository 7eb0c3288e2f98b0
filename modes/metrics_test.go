package modes

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"flexfs/store/remote"
)

// A member whose key was replaced is former and member at one address.
func TestMetricsOfAGroupTellItsMembersOnly(t *testing.T) {
	g := remote.GroupStatus{ID: 7, Members: []remote.MemberStatus{
		{Address: "a:1", State: "up", Requests: 5},
		{Address: "a:1", State: "up", Requests: 3, Former: true},
		{Address: "b:1", State: "up", Former: true},
	}}
	w := httptest.NewRecorder()
	metricsHandler(func(e emit) { e.group("flexfs_mount_", g) }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `flexfs_mount_member_requests_total{group="7",proxy="a:1"} 5`) || strings.Contains(string(text), "b:1") {
		t.Errorf("got\n%s", text)
	}
}
