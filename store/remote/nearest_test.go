package remote

import (
	"testing"
	"time"
)

// A member may come into use while the groups are compared: at first nobody has an
// answer, then somebody has.
func TestAMemberThatComesBackMeanwhile(t *testing.T) {
	g := New(Config{Groups: []GroupSettings{plain(1, "a:1"), plain(2, "b:1")}, Ticket: func() string { return "" }})
	for none := range 12 {
		asked := 0
		g.nearest(func(*member) (time.Duration, bool) { asked++; return time.Millisecond, asked > none })
	}
}
