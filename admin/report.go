package admin

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// silentAfter is how long after its last report a proxy counts as silent; it
// reports every few seconds.
const silentAfter = time.Minute

// What a member of a group is doing, see [MemberStatus].
const (
	StateOK         = "ok"
	StateSilent     = "silent"      // no report within the last minute, or since admin's start
	StateDiskFailed = "disk-failed" // it serves, without a cache
	StateDraining   = "draining"    // a former member that has blocks to upload, or may get some
	StateDrained    = "drained"     // a former member that has nothing left to upload
)

// reports are the last ones of proxies, in memory. Their methods may be called
// concurrently.
type reports struct {
	mu   sync.Mutex
	last map[int64]map[string]heard // by group and address; guarded by mu
}

// heard is a report and when it came.
type heard struct {
	ProxyReport
	at time.Time
}

// keep notes a report, and forgets those of servers that the group does not
// know, or not any more: so there are never more than the group has.
func (rs *reports) keep(g *ProxyGroup, r ProxyReport, at time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.last == nil {
		rs.last = map[int64]map[string]heard{}
	}
	if rs.last[g.ID] == nil {
		rs.last[g.ID] = map[string]heard{}
	}
	rs.last[g.ID][r.Address] = heard{r, at}
	maps.DeleteFunc(rs.last[g.ID], func(addr string, _ heard) bool {
		return !slices.Contains(g.Addresses, addr) && g.former(addr) == nil
	})
}

// forget drops the reports of groups that are no more.
func (rs *reports) forget(groups []int64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, id := range groups {
		delete(rs.last, id)
	}
}

func (rs *reports) of(group int64, addr string) heard {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.last[group][addr]
}

// former returns the former member at an address, or nil.
func (g *ProxyGroup) former(addr string) *FormerMember {
	i := slices.IndexFunc(g.Former, func(f FormerMember) bool { return f.Address == addr })
	if i < 0 {
		return nil
	}
	return &g.Former[i]
}

// report answers a proxy that says how it is.
func (a *api) report(w http.ResponseWriter, r *http.Request) {
	var answer ReportAnswer
	body, err := io.ReadAll(r.Body)
	if err == nil {
		answer, err = a.reportBody(r, body)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	reply(w, answer)
}

func (a *api) reportBody(r *http.Request, body []byte) (answer ReportAnswer, err error) {
	var g *ProxyGroup
	err = a.db.view(func(tx *tx) error {
		b, problem := tx.authenticate(r, scopeProxyGroup)
		if problem == nil {
			g = b.(*ProxyGroup)
			return nil
		}
		return problem
	})
	if err != nil {
		return answer, err
	}
	report, problem := parseReport(body)
	if problem != nil {
		return answer, problem
	}
	at := now()
	g.Former = g.formerAt(at)
	answer.Member = slices.Contains(g.Addresses, report.Address)
	f := g.former(report.Address)
	answer.Former = f != nil
	a.db.reports.keep(g, report, at)
	if f != nil && f.heard(report, at) != *f {
		err = a.db.noteDrain(g.ID, report, at)
	}
	return answer, err
}

// noteDrain keeps what a former member's report means for how long it is to be
// remembered. Nobody who waits for settings is woken: they are as they were.
func (db *DB) noteDrain(group int64, r ProxyReport, at time.Time) error {
	return db.update(func(tx *tx) error {
		t := FindTable("proxy-groups")
		loaded, err := tx.load(t, numKey(group))
		if loaded == nil || err != nil {
			return err
		}
		g := loaded.(*ProxyGroup)
		f := g.former(r.Address)
		if f == nil {
			return nil
		}
		*f = f.heard(r, at)
		err = tx.put(t, g)
		tx.dirty = false
		return err
	})
}

func parseReport(body []byte) (r ProxyReport, problem *Error) {
	given, problem := objectOf(body)
	if problem != nil {
		return r, problem
	}
	known := members(ProxyReport{OldestDirty: time.Unix(0, 0), Started: time.Unix(0, 0)})
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if known[name] == nil {
			return r, bad(name, "a report has no such field")
		}
		one, err := json.Marshal(map[string]json.RawMessage{name: given[name]})
		if err != nil || string(given[name]) == "null" || json.Unmarshal(one, &r) != nil {
			return r, bad(name, "must be of its type, see /v1/openapi.json")
		}
	}
	if r.Address, problem = cleanAddress("address", r.Address); problem != nil {
		return r, problem
	}
	for name, n := range map[string]int64{
		"dirtyBytes": r.DirtyBytes, "dirtyBlocks": r.DirtyBlocks, "bytes": r.Bytes, "limit": r.Limit,
		"blocks": r.Blocks, "hits": r.Hits, "misses": r.Misses,
	} {
		if n < 0 {
			return r, bad(name, "%d is negative", n)
		}
	}
	return r, nil
}

// statusOf says how the members and former members of a group are.
func (db *DB) statusOf(g *ProxyGroup, at time.Time) (list []MemberStatus) {
	for _, addr := range g.Addresses {
		list = append(list, memberStatus(db.reports.of(g.ID, addr), FormerMember{Address: addr}, at))
	}
	for _, f := range g.formerAt(at) {
		list = append(list, memberStatus(db.reports.of(g.ID, f.Address), f, at))
	}
	return list
}

// memberStatus of a member has only the address in f.
func memberStatus(r heard, f FormerMember, at time.Time) MemberStatus {
	s := MemberStatus{
		Address: f.Address, State: StateOK, Former: !f.RemovedAt.IsZero(),
		RemovedAt: f.RemovedAt, DrainedAt: f.DrainedAt, ReportedAt: r.at,
		DirtyBytes: r.DirtyBytes, DirtyBlocks: r.DirtyBlocks, OldestDirty: r.OldestDirty,
		Bytes: r.Bytes, Limit: r.Limit, Blocks: r.Blocks, Hits: r.Hits, Misses: r.Misses, DiskOK: r.DiskOK, Started: r.Started,
	}
	if s.Former && r.at.IsZero() {
		s.ReportedAt = f.SeenAt
	}
	switch {
	case !f.DrainedAt.IsZero():
		s.State = StateDrained
	case at.Sub(r.at) >= silentAfter:
		s.State = StateSilent
	case s.Former:
		s.State = StateDraining
	case !r.DiskOK:
		s.State = StateDiskFailed
	}
	return s
}
