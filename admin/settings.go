package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"

	"flexfs/internal/ticket"
)

// ticketLife is how long a mount may go on with its volume's proxies and
// metadata after it last heard from admin. A request for settings renews it.
const ticketLife = time.Hour

// mountSettings are those of the bearer of a volume token, ticket apart.
func (tx *tx) mountSettings(vt *VolumeToken) (*MountSettings, error) {
	v, problem := tx.volume(vt.VolumeID)
	if problem != nil {
		return nil, problem
	}
	if v.RetiredAt != nil {
		return nil, refuse(http.StatusForbidden, "%s was deleted at %s and cannot be mounted", v.title(), v.RetiredAt.Format(time.RFC3339))
	}
	meta, err := load[MetaStore](tx, "meta-stores", v.MetaStoreID)
	if err != nil {
		return nil, err
	}
	blocks, err := load[BlockStore](tx, "block-stores", v.BlockStoreID)
	if err != nil {
		return nil, err
	}
	groups, err := tx.groupsOf(v)
	if err != nil {
		return nil, err
	}
	flags, problem := cleanFlags(v.Flags + "," + vt.Flags)
	if problem != nil {
		return nil, problem
	}
	return &MountSettings{
		Volume:     *v,
		MountPath:  vt.MountPath,
		Flags:      append([]string{}, splitFlags(flags)...),
		BlockStore: *blocks,
		Meta:       Member{meta.Address, meta.Pin},
		Groups:     groups,
	}, nil
}

// groupsOf returns the proxy groups of a volume in the order of their ids.
// Those that it no longer uses and that have not drained are among them, with
// former members only.
func (tx *tx) groupsOf(v *Volume) ([]GroupSettings, error) {
	groups := []GroupSettings{}
	prefix := pairKey(v.ID, nil)
	c := tx.bucket(FindTable("volume-proxy-groups")).Cursor()
	at := now()
	for key, value := c.Seek(prefix); bytes.HasPrefix(key, prefix); key, value = c.Next() {
		use, err := decodeRecord(FindTable("volume-proxy-groups"), value)
		if err != nil {
			return nil, err
		}
		r, err := tx.load(FindTable("proxy-groups"), key[len(prefix):])
		if err != nil {
			return nil, err
		}
		s := r.(*ProxyGroup).settings(at)
		if !gone(use) {
			groups = append(groups, s)
		} else if s = s.drains(); !use.(*VolumeProxyGroup).over(at) && len(s.Former) > 0 {
			groups = append(groups, s)
		}
	}
	return groups, nil
}

func (g *ProxyGroup) settings(at time.Time) GroupSettings {
	s := GroupSettings{ID: g.ID, ProviderCode: g.ProviderCode, RegionCode: g.RegionCode,
		NoSSL: g.NoSSL, WriteThrough: g.WriteThrough, Members: []Member{}, ChangedAt: g.ChangedAt}
	for _, addr := range g.Addresses {
		s.Members = append(s.Members, Member{addr, g.Pins[addr]})
	}
	for _, f := range g.formerAt(at) {
		s.Former = append(s.Former, Member{f.Address, f.Pin})
	}
	return s
}

// proxySettings also have the volumes that were taken from the group or
// retired lately: their last blocks may not be in the bucket yet.
func (tx *tx) proxySettings(g *ProxyGroup) (*ProxySettings, error) {
	at := now()
	s := &ProxySettings{Group: g.settings(at), Volumes: []VolumeSettings{}}
	err := tx.each(FindTable("volume-proxy-groups"), func(r record) error {
		vg := r.(*VolumeProxyGroup)
		if vg.ProxyGroupID != g.ID || vg.over(at) {
			return nil
		}
		v, problem := tx.volume(vg.VolumeID)
		if problem != nil {
			return problem
		}
		if v.RetiredAt != nil && at.Sub(*v.RetiredAt) >= keepSilent {
			return nil
		}
		return tx.addVolume(&s.Volumes, v)
	})
	return s, err
}

func (tx *tx) metaSettings(m *MetaStore) (*MetaSettings, error) {
	s := &MetaSettings{Volumes: []VolumeSettings{}}
	return s, tx.each(FindTable("volumes"), func(r record) error {
		if v := r.(*Volume); v.MetaStoreID == m.ID {
			return tx.addVolume(&s.Volumes, v)
		}
		return nil
	})
}

func (tx *tx) addVolume(list *[]VolumeSettings, v *Volume) error {
	blocks, err := load[BlockStore](tx, "block-stores", v.BlockStoreID)
	if err == nil {
		*list = append(*list, VolumeSettings{*v, *blocks})
	}
	return err
}

// load returns the object of a reference, which exists: references are
// checked when they are made.
func load[T any](tx *tx, table string, id int64) (*T, error) {
	r, err := tx.load(FindTable(table), numKey(id))
	if err != nil {
		return nil, err
	}
	v, ok := any(r).(*T)
	if !ok {
		return nil, fmt.Errorf("%s %d is missing", FindTable(table).Singular, id)
	}
	return v, nil
}

// settings returns what the bearer of a token needs, and its ETag.
func (db *DB) settings(tx *tx, b bearer) (body any, etag string, err error) {
	at := now()
	ks := *db.keys.Load()
	keys := ks.public(at)
	var signer []byte
	switch b := b.(type) {
	case *VolumeToken:
		body, err = tx.mountSettings(b)
		signer = ks.signer(at).public() // a new one means a new ticket, which must not wait
	case *ProxyGroup:
		var s *ProxySettings
		if s, err = tx.proxySettings(b); err == nil {
			s.TicketKeys = keys
		}
		body = s
	case *MetaStore:
		var s *MetaSettings
		if s, err = tx.metaSettings(b); err == nil {
			s.TicketKeys = keys
		}
		body = s
	}
	if err != nil {
		return nil, "", err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(append(text, signer...))
	return body, `"` + hex.EncodeToString(sum[:16]) + `"`, nil
}

// ticketFor signs what the bearer of a volume token shows to proxies and to
// the metadata service.
func (db *DB) ticketFor(s *MountSettings, vt *VolumeToken) (text string, expires time.Time) {
	at := now()
	expires = at.Add(ticketLife)
	return ticket.Sign(ticket.Ticket{
		Volume:    s.Volume.ID,
		Write:     !slices.Contains(s.Flags, "ro"),
		MountPath: s.MountPath,
		Name:      vt.title(),
		Expires:   expires.Unix(),
	}, db.keys.Load().signer(at).private), expires
}

// Of the answer 304 to a mount: its new ticket.
const (
	headerTicket  = "Flexfs-Ticket"
	headerExpires = "Flexfs-Ticket-Expires" // RFC 3339
)

// maxWait bounds how long a request for settings waits for a change.
const maxWait = time.Minute

// maxWaiting bounds the requests that wait at a time; each costs a goroutine
// and its connection, some 20 kB. Those above it are answered at once.
const maxWaiting = 50_000

// serveSettings answers a request for settings by the holder of a token of
// the scope.
func (a *api) serveSettings(scope string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		wait, err := waitOf(r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if a.waiting.Add(1) > maxWaiting {
			wait = 0
		}
		defer a.waiting.Add(-1)
		ctl := http.NewResponseController(w)
		ctl.SetWriteDeadline(time.Now().Add(wait + time.Minute)) // beyond the server's own, where that can be
		deadline := time.NewTimer(wait)
		defer deadline.Stop()
		for last := wait == 0; ; {
			changed := a.db.changes()
			sent, err := a.trySettings(w, r, scope, last)
			if err != nil {
				a.fail(w, r, err)
				return
			}
			if sent {
				return
			}
			select {
			case <-changed:
			case <-deadline.C:
				last = true
			case <-a.db.closed:
				a.fail(w, r, bolterrors.ErrDatabaseNotOpen)
				return
			case <-r.Context().Done(): // the caller is gone, or the server ends
				a.fail(w, r, refuse(http.StatusServiceUnavailable, "admin ends"))
				return
			}
		}
	}
}

func waitOf(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, nil
	}
	wait, err := time.ParseDuration(text)
	if err != nil || wait < 0 {
		return 0, bad("wait", "%q is not a duration like 30s", text)
	}
	return min(wait, maxWait), nil
}

// trySettings answers if the settings are not those that the caller has, or
// if this is the last try.
func (a *api) trySettings(w http.ResponseWriter, r *http.Request, scope string, last bool) (sent bool, err error) {
	var b bearer
	var body any
	var etag string
	err = a.db.view(func(tx *tx) error {
		var problem *Error
		if b, problem = tx.authenticate(r, scope); problem != nil {
			return problem
		}
		body, etag, err = a.db.settings(tx, b)
		return err
	})
	if err != nil {
		return false, err
	}
	same := hasTag(r.Header.Get("If-None-Match"), etag)
	if same && !last {
		return false, nil
	}
	w.Header().Set("ETag", etag)
	w.Header().Set("Cache-Control", "no-store")
	if s, ok := body.(*MountSettings); ok {
		s.Ticket, s.Expires = a.db.ticketFor(s, b.(*VolumeToken))
		if same {
			w.Header().Set(headerTicket, s.Ticket)
			w.Header().Set(headerExpires, s.Expires.Format(time.RFC3339))
		}
	}
	if same {
		w.WriteHeader(http.StatusNotModified)
		return true, nil
	}
	reply(w, body)
	return true, nil
}

// hasTag tells whether an If-None-Match names an ETag.
func hasTag(header, etag string) bool {
	for _, tag := range strings.Split(header, ",") {
		if strings.TrimPrefix(strings.TrimSpace(tag), "W/") == etag {
			return true
		}
	}
	return false
}
