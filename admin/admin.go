// Package admin holds what an operator configures: providers, regions, block
// and metadata stores, proxy groups, volumes, tokens. [DB] keeps it, [Handler]
// serves it as a REST API, [Client] reaches that. Mounts, proxies and metadata
// servers learn their settings here and go on with the last ones while admin is
// away.
package admin

import "time"

// The objects, as the API's JSON shows them. Fields marked secret are left out
// of listings and shown by a request for the one object only.
type (
	// An Account may configure everything.
	Account struct {
		ID        int64     `json:"id"`
		Name      string    `json:"name"`
		Email     string    `json:"email"`
		Token     string    `json:"token,omitempty"` // secret
		CreatedAt time.Time `json:"createdAt"`
	}

	// A Provider is a cloud or a site.
	Provider struct {
		Code string `json:"code"`
		Name string `json:"name"`
	}

	// A Region is a place of a provider.
	Region struct {
		ProviderCode string `json:"providerCode"`
		Code         string `json:"code"`
		Name         string `json:"name"`
	}

	// A BlockStore is a bucket. What says where it is cannot be changed.
	BlockStore struct {
		ID           int64  `json:"id"`
		ProviderCode string `json:"providerCode"`
		RegionCode   string `json:"regionCode"`
		APICode      string `json:"apiCode"` // s3 or dir
		Bucket       string `json:"bucket"`  // of dir: a folder's path
		Prefix       string `json:"prefix"`
		Username     string `json:"username"`           // access key; "": the machine's own identity
		Password     string `json:"password,omitempty"` // secret, and shown to no one: settings alone carry it
		Address      string `json:"address"`            // endpoint URL; "": the provider's
	}

	// A MetaStore is a metadata server.
	MetaStore struct {
		ID           int64  `json:"id"`
		ProviderCode string `json:"providerCode"`
		RegionCode   string `json:"regionCode"`
		Address      string `json:"address"`         // host:port
		Pin          string `json:"pin"`             // of its key, see package tlspin; "": not known yet
		Token        string `json:"token,omitempty"` // secret; the server's own

		// RefusedPin is a key other than Pin's that the server showed. It is
		// not trusted until an operator resets the pin.
		RefusedPin string `json:"refusedPin,omitempty"`
	}

	// A ProxyGroup is a set of proxies that share the blocks of their volumes.
	ProxyGroup struct {
		ID           int64    `json:"id"`
		ProviderCode string   `json:"providerCode"`
		RegionCode   string   `json:"regionCode"`
		Addresses    []string `json:"addresses"` // host:port each
		NoSSL        bool     `json:"noSSL"`
		WriteThrough bool     `json:"writeThrough"`    // a write is answered when the bucket has it
		Token        string   `json:"token,omitempty"` // secret; its proxies'

		// Pins are the keys of members by address, learnt when a proxy
		// enrolled or at first contact.
		Pins map[string]string `json:"pins,omitempty"`

		// RefusedPins are keys by address that members showed and that differ
		// from their pins. They are not trusted until an operator resets the
		// pins.
		RefusedPins map[string]string `json:"refusedPins,omitempty"`

		// Waiting are the keys by address of proxies that enrolled with the
		// group's token and are not among Addresses.
		Waiting map[string]string `json:"waiting,omitempty"`

		// Former are members that an update took out of Addresses and that may
		// still hold blocks which are nowhere else; the oldest first.
		Former []FormerMember `json:"former,omitempty"`

		// ChangedAt is when Addresses last named other members than before;
		// zero: never.
		ChangedAt time.Time `json:"changedAt,omitzero"`

		// RemovedAt is when the group was deleted: it is remembered until its
		// proxies have drained.
		RemovedAt time.Time `json:"removedAt,omitzero"`

		// Status is how the members and former members are: what they reported
		// last. It is made for an answer that shows the group alone.
		Status []MemberStatus `json:"status,omitempty"`
	}

	// A FormerMember was a member of a proxy group.
	FormerMember struct {
		Address   string    `json:"address"`
		Pin       string    `json:"pin"`
		RemovedAt time.Time `json:"removedAt"`
		SeenAt    time.Time `json:"seenAt,omitzero"`    // its last report, to the hour
		DrainedAt time.Time `json:"drainedAt,omitzero"` // since when it has reported nothing left to upload
	}

	// A MemberStatus is how a member or former member of a proxy group is. What
	// it reported is 0 if ReportedAt is zero.
	MemberStatus struct {
		Address     string    `json:"address"`
		State       string    `json:"state"` // see the States
		Former      bool      `json:"former"`
		RemovedAt   time.Time `json:"removedAt,omitzero"`  // of a former member
		DrainedAt   time.Time `json:"drainedAt,omitzero"`  // of a former member: since when it has had nothing left to upload
		ReportedAt  time.Time `json:"reportedAt,omitzero"` // when it was heard of last, by admin's clock
		DirtyBytes  int64     `json:"dirtyBytes"`
		DirtyBlocks int64     `json:"dirtyBlocks"`
		OldestDirty time.Time `json:"oldestDirty,omitzero"`
		Bytes       int64     `json:"bytes"`
		Limit       int64     `json:"limit"`
		Blocks      int64     `json:"blocks"`
		Hits        int64     `json:"hits"`
		Misses      int64     `json:"misses"`
		DiskOK      bool      `json:"diskOK"`
		Started     time.Time `json:"started,omitzero"`
	}

	// A Volume is a file system.
	Volume struct {
		ID           string     `json:"id"` // UUID
		Name         string     `json:"name"`
		AccountID    int64      `json:"accountID"`
		MetaStoreID  int64      `json:"metaStoreID"`
		BlockStoreID int64      `json:"blockStoreID"`
		BlockSize    int64      `json:"blockSize"`    // bytes, fixed
		InlineMax    int64      `json:"inlineMax"`    // bytes
		Compression  string     `json:"compression"`  // lz4, zstd or none
		Encryption   bool       `json:"encryption"`   // blocks are sealed with a secret that mounts have, fixed
		SecretID     string     `json:"secretID"`     // by which mounts tell that secret from others; "": none has registered it
		Retention    int64      `json:"retention"`    // seconds of history; 0 none, -1 for ever
		MaxBlocks    int64      `json:"maxBlocks"`    // 0 no limit
		MaxInodes    int64      `json:"maxInodes"`    // 0 no limit
		MaxProxied   int64      `json:"maxProxied"`   // first blocks of a file that go through proxies; 0 all
		WriteThrough bool       `json:"writeThrough"` // proxies answer a write when the bucket has it, whatever their group says
		Flags        string     `json:"flags"`        // mount flags forced on all mounts, comma-separated
		Notes        string     `json:"notes"`
		CreatedAt    time.Time  `json:"createdAt"`
		RetiredAt    *time.Time `json:"retiredAt,omitempty"`
	}

	// A VolumeProxyGroup lets a volume use a group.
	VolumeProxyGroup struct {
		VolumeID     string `json:"volumeID"`
		ProxyGroupID int64  `json:"proxyGroupID"`

		// RemovedAt is when it was deleted: for a while mounts still ask the
		// group for blocks that are nowhere else.
		RemovedAt time.Time `json:"removedAt,omitzero"`
	}

	// A VolumeToken lets its bearer mount a volume or a folder of it.
	VolumeToken struct {
		ID        int64  `json:"id"`
		Token     string `json:"token,omitempty"` // secret
		VolumeID  string `json:"volumeID"`
		MountPath string `json:"mountPath"` // "/": all
		Flags     string `json:"flags"`     // mount flags forced, such as ro
		Notes     string `json:"notes"`
	}
)

// Ticket keys sign what mounts show to proxies and metadata servers:
//
//	GET  /v1/configure/ticket-keys                -> []TicketKey
//	POST /v1/configure/ticket-keys   Rotation     -> []TicketKey
type (
	// A TicketKey is a key that signs tickets. It is never shown itself.
	TicketKey struct {
		ID        string    `json:"id"`                 // of its public half
		State     string    `json:"state"`              // next, signing or ending
		CreatedAt time.Time `json:"createdAt,omitzero"` // zero: with the database
		SignsFrom time.Time `json:"signsFrom,omitzero"` // zero: always did
		EndsAt    time.Time `json:"endsAt,omitzero"`    // when tickets by it are no longer valid; zero: it has no successor
	}

	// A Rotation asks for a new ticket key.
	Rotation struct {
		// Now: all others end at once, and with them the tickets by them, as
		// they must if one was stolen. Else the new key is published first,
		// and tickets by the old one stay valid until they expire.
		Now bool `json:"now,omitempty"`
	}
)

// Settings are what programs fetch, with their token as bearer:
//
//	GET /v1/settings/mount    volume token      -> MountSettings
//	GET /v1/settings/proxy    proxy group token -> ProxySettings
//	GET /v1/settings/meta     meta store token  -> MetaSettings
//
//	POST /v1/settings/mount/secret   volume token, Secret -> registered
//
// Each answer has an ETag. With If-None-Match and ?wait=30s the request is
// answered when the settings change, or with 304 when the time is over. What
// changes by itself (Ticket) does not count for the ETag; a 304 to a mount has
// a new ticket in its header.
type (
	// MountSettings are what a mount needs.
	MountSettings struct {
		Volume     Volume          `json:"volume"`
		MountPath  string          `json:"mountPath"`
		Flags      []string        `json:"flags"` // of the volume and the token
		BlockStore BlockStore      `json:"blockStore"`
		Meta       Member          `json:"meta"`
		Groups     []GroupSettings `json:"groups"`
		Ticket     string          `json:"ticket"` // see package ticket
		Expires    time.Time       `json:"expires"`
	}

	// A Secret is what the first mount of an encrypted volume registers. It is
	// set once: only the same may be registered again.
	Secret struct {
		SecretID string `json:"secretID"` // see seal.Sealer.Fingerprint
	}

	// GroupSettings are a proxy group as its clients see it.
	GroupSettings struct {
		ID           int64    `json:"id"`
		ProviderCode string   `json:"providerCode"`
		RegionCode   string   `json:"regionCode"`
		NoSSL        bool     `json:"noSSL"`
		WriteThrough bool     `json:"writeThrough"`
		Members      []Member `json:"members"`

		// Former are members of before, which may hold blocks that are nowhere
		// else. They are asked for blocks and given none.
		Former []Member `json:"former,omitempty"`

		// ChangedAt is when the members last changed; zero: never.
		ChangedAt time.Time `json:"changedAt,omitzero"`
	}

	// A Member is a server and the key that it must have ("": not known, a
	// certificate of a trusted authority is then needed).
	Member struct {
		Address string `json:"address"`
		Pin     string `json:"pin"`
	}

	// ProxySettings are what a proxy needs.
	ProxySettings struct {
		TicketKeys [][]byte         `json:"ticketKeys"` // Ed25519 public keys
		Group      GroupSettings    `json:"group"`
		Volumes    []VolumeSettings `json:"volumes"`
	}

	// MetaSettings are what a metadata server needs.
	MetaSettings struct {
		TicketKeys [][]byte         `json:"ticketKeys"`
		Volumes    []VolumeSettings `json:"volumes"` // retired ones too
	}

	// VolumeSettings are a volume and where its blocks are.
	VolumeSettings struct {
		Volume     Volume     `json:"volume"`
		BlockStore BlockStore `json:"blockStore"`
	}

	// A ProxyReport is how a proxy is, by its own clock:
	//
	//	POST /v1/proxies/report   proxy group token -> ReportAnswer
	//
	// Admin keeps the last one of each member and former member in memory.
	ProxyReport struct {
		Address     string    `json:"address"`              // as in the group
		DirtyBytes  int64     `json:"dirtyBytes"`           // acknowledged and not known to be in the bucket
		DirtyBlocks int64     `json:"dirtyBlocks"`          // number of them
		OldestDirty time.Time `json:"oldestDirty,omitzero"` // when the oldest of them came; zero: there is none
		Bytes       int64     `json:"bytes"`                // in the cache, dirty ones too
		Limit       int64     `json:"limit"`                // bytes that the cache may take
		Blocks      int64     `json:"blocks"`               // in the cache
		Hits        int64     `json:"hits"`                 // since the start
		Misses      int64     `json:"misses"`               // since the start
		DiskOK      bool      `json:"diskOK"`               // the cache's disk is in use
		Started     time.Time `json:"started,omitzero"`     // when the proxy was
	}

	// A ReportAnswer is what a proxy is to admin, at most one of both.
	ReportAnswer struct {
		Member bool `json:"member"`
		Former bool `json:"former"` // it was a member, and is to drain
	}

	// An Enrolment is what a proxy or metadata server tells admin at its start:
	//
	//	POST /v1/enrol   proxy group or meta store token
	//
	// A proxy whose address is not among the group's is remembered and not
	// added: membership is the operator's.
	Enrolment struct {
		Address string `json:"address"`
		Pin     string `json:"pin"`
	}

	// Enrolled is admin's answer to an Enrolment.
	Enrolled struct {
		Member bool `json:"member"` // the address is one that mounts are told
	}
)
