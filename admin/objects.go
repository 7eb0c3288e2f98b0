package admin

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keys in the buckets are pinned: databases have them. A number is 8 bytes,
// big-endian, so that a bucket is in the order of ids; a code and a UUID are
// themselves; the parts of a composite key are joined by a zero byte.

func numKey(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func pairKey(a string, b []byte) []byte { return append(append([]byte(a), 0), b...) }

func numRef(field, table string, id int64) ref {
	return ref{field, table, numKey(id), strconv.FormatInt(id, 10)}
}

func placeRefs(provider, region string) []ref {
	place := ref{"regionCode", "regions", pairKey(provider, []byte(region)), ""}
	if region != "" {
		place.text = provider + "/" + region
	}
	return []ref{{"providerCode", "providers", []byte(provider), provider}, place}
}

// first returns the first error, as an error.
func first(errs ...*Error) *Error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// now is the time as the API shows it.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (a *Account) key() []byte    { return numKey(a.ID) }
func (a *Account) title() string  { return fmt.Sprintf("account %d (%s)", a.ID, a.Name) }
func (a *Account) refs() []ref    { return nil }
func (a *Account) token() *string { return &a.Token }
func (a *Account) scope() string  { return scopeAccount }

func (a *Account) complete(tx *tx, _ int64) (err error) {
	a.CreatedAt = now()
	a.ID, err = tx.nextID("accounts")
	return err
}

func (a *Account) check() *Error {
	if strings.TrimSpace(a.Name) == "" {
		return bad("name", "is empty")
	}
	return first(checkText("name", a.Name, maxName), checkText("email", a.Email, maxName))
}

func (a *Account) hide(listing bool) {
	if listing {
		a.Token = ""
	}
}

func (p *Provider) key() []byte               { return []byte(p.Code) }
func (p *Provider) title() string             { return "provider " + p.Code }
func (p *Provider) refs() []ref               { return nil }
func (p *Provider) complete(*tx, int64) error { return nil }
func (p *Provider) hide(bool)                 {}
func (p *Provider) check() *Error {
	return first(checkCode("code", p.Code), checkText("name", p.Name, maxName))
}

func (r *Region) key() []byte               { return pairKey(r.ProviderCode, []byte(r.Code)) }
func (r *Region) title() string             { return "region " + r.ProviderCode + "/" + r.Code }
func (r *Region) refs() []ref               { return placeRefs(r.ProviderCode, r.Code)[:1] }
func (r *Region) complete(*tx, int64) error { return nil }
func (r *Region) hide(bool)                 {}

func (r *Region) check() *Error {
	return first(checkCode("providerCode", r.ProviderCode), checkCode("code", r.Code), checkText("name", r.Name, maxName))
}

func (b *BlockStore) key() []byte   { return numKey(b.ID) }
func (b *BlockStore) title() string { return fmt.Sprintf("block store %d (%s)", b.ID, b.Bucket) }
func (b *BlockStore) refs() []ref   { return placeRefs(b.ProviderCode, b.RegionCode) }
func (b *BlockStore) hide(bool)     { b.Password = "" }

func (b *BlockStore) complete(tx *tx, _ int64) (err error) {
	b.ID, err = tx.nextID("block-stores")
	return err
}

func (b *BlockStore) check() *Error {
	err := first(
		checkOneOf("apiCode", b.APICode, FindTable("block-stores").Field("apiCode").Values),
		checkPrefix(b.Prefix),
		checkText("username", b.Username, maxText),
		checkText("password", b.Password, maxText))
	switch {
	case err != nil:
		return err
	case b.APICode == "s3":
		return b.checkS3()
	case b.Username != "" || b.Password != "" || b.Address != "":
		return bad("apiCode", "a folder (dir) has no username, password and address")
	}
	return checkFolder("bucket", b.Bucket)
}

func (b *BlockStore) checkS3() *Error {
	switch {
	case b.Username == "" && b.Password != "":
		return bad("username", "is missing; a password was given")
	case b.Username != "" && b.Password == "":
		return bad("password", "is missing; a username was given")
	}
	return first(checkBucket(b.Bucket), checkEndpoint(b.Address))
}

func (m *MetaStore) key() []byte    { return numKey(m.ID) }
func (m *MetaStore) title() string  { return fmt.Sprintf("meta store %d (%s)", m.ID, m.Address) }
func (m *MetaStore) refs() []ref    { return placeRefs(m.ProviderCode, m.RegionCode) }
func (m *MetaStore) token() *string { return &m.Token }
func (m *MetaStore) scope() string  { return scopeMetaStore }

func (m *MetaStore) complete(tx *tx, _ int64) (err error) {
	m.ID, err = tx.nextID("meta-stores")
	return err
}

func (m *MetaStore) check() (err *Error) {
	m.Address, err = cleanAddress("address", m.Address)
	return err
}

func (m *MetaStore) hide(listing bool) {
	if listing {
		m.Token = ""
	}
}

func (g *ProxyGroup) key() []byte    { return numKey(g.ID) }
func (g *ProxyGroup) refs() []ref    { return placeRefs(g.ProviderCode, g.RegionCode) }
func (g *ProxyGroup) token() *string { return &g.Token }
func (g *ProxyGroup) scope() string  { return scopeProxyGroup }

func (g *ProxyGroup) title() string {
	if gone(g) {
		return fmt.Sprintf("proxy group %d (deleted)", g.ID)
	}
	return fmt.Sprintf("proxy group %d", g.ID)
}

func (g *ProxyGroup) complete(tx *tx, _ int64) (err error) {
	if len(g.Addresses) == 0 {
		return bad("addresses", "is empty: name at least one proxy as host:port")
	}
	g.ID, err = tx.nextID("proxy-groups")
	return err
}

// check also drops the pins of addresses that are no longer there, and takes
// those of members that enrolled before they were added.
func (g *ProxyGroup) check() (err *Error) {
	if g.Addresses, err = cleanAddresses("addresses", g.Addresses); err != nil {
		return err
	}
	gone := func(addr, _ string) bool { return !slices.Contains(g.Addresses, addr) }
	maps.DeleteFunc(g.Pins, gone)
	maps.DeleteFunc(g.RefusedPins, gone)
	for _, addr := range g.Addresses {
		if pin, ok := g.Waiting[addr]; ok {
			delete(g.Waiting, addr)
			g.learn(addr, pin)
		}
	}
	return nil
}

func (g *ProxyGroup) hide(listing bool) {
	if listing {
		g.Token = ""
	}
}

func (v *Volume) key() []byte { return []byte(v.ID) }
func (v *Volume) hide(bool)   {}

func (v *Volume) title() string {
	if v.RetiredAt != nil {
		return fmt.Sprintf("volume %s (%s, retired)", v.Name, v.ID)
	}
	return "volume " + v.Name
}

func (v *Volume) refs() []ref {
	return []ref{
		numRef("accountID", "accounts", v.AccountID),
		numRef("metaStoreID", "meta-stores", v.MetaStoreID),
		numRef("blockStoreID", "block-stores", v.BlockStoreID),
	}
}

func (v *Volume) complete(_ *tx, by int64) error {
	v.ID, v.CreatedAt = newUUID(), now()
	if v.AccountID == 0 {
		v.AccountID = by
	}
	return nil
}

func (v *Volume) check() (err *Error) {
	if v.Flags, err = cleanFlags(v.Flags); err != nil {
		return err
	}
	return first(
		checkVolumeName(v.Name),
		checkBlockSize(v.BlockSize),
		checkRange("inlineMax", v.InlineMax, 0, maxInline),
		checkOneOf("compression", v.Compression, FindTable("volumes").Field("compression").Values),
		checkRange("retention", v.Retention, -1, maxRetention),
		checkRange("maxBlocks", v.MaxBlocks, 0, math.MaxInt64/maxBlockSize),
		checkRange("maxInodes", v.MaxInodes, 0, math.MaxInt64),
		checkRange("maxProxied", v.MaxProxied, 0, math.MaxUint32),
		checkText("notes", v.Notes, maxText))
}

func (vg *VolumeProxyGroup) key() []byte {
	return pairKey(vg.VolumeID, numKey(vg.ProxyGroupID))
}

func (vg *VolumeProxyGroup) title() string {
	return fmt.Sprintf("volume proxy group %s/%d", vg.VolumeID, vg.ProxyGroupID)
}

func (vg *VolumeProxyGroup) refs() []ref {
	return []ref{
		{"volumeID", "volumes", []byte(vg.VolumeID), vg.VolumeID},
		numRef("proxyGroupID", "proxy-groups", vg.ProxyGroupID),
	}
}

func (vg *VolumeProxyGroup) check() *Error { return nil }
func (vg *VolumeProxyGroup) hide(bool)     {}

func (vg *VolumeProxyGroup) complete(tx *tx, _ int64) error {
	if err := tx.liveVolume(&vg.VolumeID); err != nil {
		return err
	}
	g, err := tx.load(FindTable("proxy-groups"), numKey(vg.ProxyGroupID))
	if err == nil && g != nil && gone(g) {
		return refuse(http.StatusConflict, "%s cannot be used any more", g.title())
	}
	return err
}

func (vt *VolumeToken) key() []byte    { return numKey(vt.ID) }
func (vt *VolumeToken) title() string  { return fmt.Sprintf("volume token %d", vt.ID) }
func (vt *VolumeToken) token() *string { return &vt.Token }
func (vt *VolumeToken) scope() string  { return scopeVolumeToken }

func (vt *VolumeToken) refs() []ref {
	return []ref{{"volumeID", "volumes", []byte(vt.VolumeID), vt.VolumeID}}
}

func (vt *VolumeToken) complete(tx *tx, _ int64) (err error) {
	if err := tx.liveVolume(&vt.VolumeID); err != nil {
		return err
	}
	vt.ID, err = tx.nextID("volume-tokens")
	return err
}

func (vt *VolumeToken) check() (err *Error) {
	if vt.Flags, err = cleanFlags(vt.Flags); err != nil {
		return err
	}
	return first(checkFolder("mountPath", vt.MountPath), checkText("notes", vt.Notes, maxText))
}

func (vt *VolumeToken) hide(listing bool) {
	if listing {
		vt.Token = ""
	}
}

// liveVolume replaces a volume's name by its id, and refuses retired ones.
func (tx *tx) liveVolume(id *string) error {
	v, err := tx.volume(*id)
	if err != nil {
		return bad("volumeID", "%s", err.Message)
	}
	if v.RetiredAt != nil {
		return refuse(http.StatusConflict, "%s was deleted at %s", v.title(), v.RetiredAt.Format(time.RFC3339))
	}
	*id = v.ID
	return nil
}
