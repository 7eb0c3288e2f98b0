package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"flexfs/internal/tlspin"
)

// stats are what flexfs stats says of a mount, as far as the demo needs it.
type stats struct {
	Proxies struct {
		Chosen int64
		Groups []groupStats
		Counts struct{ Proxied, Direct, Fallbacks, Failovers int64 }
	}
	Memory struct{ Hits, Misses int64 }
}

type groupStats struct {
	ID      int64
	RTT     time.Duration `json:"rttNanos"`
	Members []struct{ Address string }
}

// chosen returns the group in use, or nil.
func (s stats) chosen() *groupStats {
	for i, g := range s.Proxies.Groups {
		if s.Proxies.Chosen != 0 && g.ID == s.Proxies.Chosen {
			return &s.Proxies.Groups[i]
		}
	}
	return nil
}

// group says which group a mount chose.
func (s stats) group() string {
	g := s.chosen()
	if g == nil {
		return "no group, the bucket directly"
	}
	return fmt.Sprintf("group %d of %d, RTT %v", g.ID, len(s.Proxies.Groups), g.RTT.Round(time.Microsecond))
}

// String says where a mount's blocks came from.
func (s stats) String() string {
	n := s.Proxies.Counts
	return fmt.Sprintf("%s; %d hits in memory, %d requests to proxies (%d not to the owner), %d to the bucket",
		s.group(), s.Memory.Hits, n.Proxied, n.Failovers, n.Direct+n.Fallbacks)
}

// A proxyGroup is what configure shows of one.
type proxyGroup struct {
	Addresses []string
	Pins      map[string]string
}

func (c *cluster) group(ctx context.Context, id int) (g proxyGroup, err error) {
	out, err := c.flexfs(ctx, "configure", "show", "proxy-group", fmt.Sprint(id), "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &g)
	}
	return g, err
}

func (c *cluster) members(ctx context.Context, group int) ([]string, error) {
	g, err := c.group(ctx, group)
	return g.Addresses, err
}

// setMembers changes a group as its operator does.
func (c *cluster) setMembers(ctx context.Context, group int, addresses []string) error {
	_, err := c.flexfs(ctx, "configure", "update", "proxy-group", fmt.Sprint(group), "--addresses", strings.Join(addresses, ","))
	return err
}

// proxyHits sums, over the proxies that live, the blocks that they served and
// those of them that they had.
func (c *cluster) proxyHits(ctx context.Context) (hits, misses int64, err error) {
	for id := 1; id <= 2; id++ {
		g, err := c.group(ctx, id)
		if err != nil {
			return 0, 0, err
		}
		for _, addr := range g.Addresses {
			var s struct{ Disk struct{ Hits, Misses int64 } }
			if err := getJSON(ctx, addr, g.Pins[addr], "/v1/stats", &s); err != nil {
				return 0, 0, err
			}
			hits += s.Disk.Hits
			misses += s.Disk.Misses
		}
	}
	return hits, misses, nil
}

func getJSON(ctx context.Context, addr, pin, path string, v any) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlspin.ClientConfig(pin), DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}
