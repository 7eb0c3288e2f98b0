package admin

import (
	"slices"
	"strings"
)

// A Kind is what a [Field] holds. In JSON a KindSize is a number of bytes
// and a KindDuration one of seconds.
type Kind string

// The kinds of fields.
const (
	KindString   Kind = "string"
	KindInt      Kind = "int"
	KindBool     Kind = "bool"
	KindSize     Kind = "size"
	KindDuration Kind = "duration"
	KindList     Kind = "list" // of strings
	KindMap      Kind = "map"  // of strings by string
	KindTime     Kind = "time" // RFC 3339
	KindObjects  Kind = "objects"
)

// A Field is one of an object's. Its name is that of the JSON and of the
// command line.
type Field struct {
	Name     string
	Kind     Kind
	Doc      string
	Required bool     // at creation
	Default  any      // at creation; nil: the zero value
	Values   []string // the legal ones, if they are few
	Fixed    bool     // given at creation, never changed
	ReadOnly bool     // admin's own
	Secret   bool     // left out of listings
	Unshown  bool     // in settings only, and never shown to an operator
	Action   bool     // an update may ask for it; not kept
	Live     bool     // made for an answer about one object; not kept, and ignored in a request
}

// A Table holds the objects of one type. It describes them to the API, its
// document and the command line.
type Table struct {
	Name     string   // as in /v1/configure/{Name}
	Singular string   // as in "create proxy-group"
	Doc      string   // a sentence
	Key      []string // the fields that name an object, in the order of the path
	Fields   []Field
	Force    string // what deleting by force does beside; "": there is no such thing

	record func() record // a new object with its defaults
}

// Tables are all tables. Objects refer only to those of tables before theirs.
var Tables = []*Table{
	{
		Name: "accounts", Singular: "account", Key: []string{"id"},
		Doc:    "Who may configure everything.",
		record: func() record { return new(Account) },
		Fields: []Field{
			idField,
			{Name: "name", Kind: KindString, Required: true, Doc: "for people"},
			{Name: "email", Kind: KindString, Doc: "for people"},
			tokenField, rotateField,
			createdField,
		},
	},
	{
		Name: "providers", Singular: "provider", Key: []string{"code"},
		Doc:    "A cloud or a site.",
		record: func() record { return new(Provider) },
		Fields: []Field{
			{Name: "code", Kind: KindString, Required: true, Fixed: true, Doc: "its name in other objects, like aws"},
			{Name: "name", Kind: KindString, Doc: "for people"},
		},
	},
	{
		Name: "regions", Singular: "region", Key: []string{"providerCode", "code"},
		Doc:    "A place of a provider.",
		record: func() record { return new(Region) },
		Fields: []Field{
			providerField,
			{Name: "code", Kind: KindString, Required: true, Fixed: true, Doc: "its name in other objects, like us-east-1"},
			{Name: "name", Kind: KindString, Doc: "for people"},
		},
	},
	{
		Name: "block-stores", Singular: "block-store", Key: []string{"id"},
		Doc:    "A bucket that holds the blocks of volumes.",
		record: func() record { return &BlockStore{APICode: "s3"} },
		Fields: []Field{
			idField, providerField, regionField,
			{Name: "apiCode", Kind: KindString, Fixed: true, Default: "s3", Values: []string{"s3", "dir"}, Doc: "how it is reached"},
			{Name: "bucket", Kind: KindString, Required: true, Fixed: true, Doc: "the bucket's name; of apiCode dir, a folder's absolute path"},
			{Name: "prefix", Kind: KindString, Fixed: true, Doc: "what the names of all objects begin with, before a slash"},
			{Name: "username", Kind: KindString, Doc: "access key; empty: the identity of the machine"},
			{Name: "password", Kind: KindString, Secret: true, Unshown: true, Doc: "secret key; only settings show it"},
			{Name: "address", Kind: KindString, Doc: "endpoint URL; empty: the provider's own"},
		},
	},
	{
		Name: "meta-stores", Singular: "meta-store", Key: []string{"id"},
		Doc:    "A metadata server.",
		record: func() record { return new(MetaStore) },
		Fields: []Field{
			idField, providerField, regionField,
			{Name: "address", Kind: KindString, Required: true, Doc: "host:port"},
			{Name: "pin", Kind: KindString, ReadOnly: true, Doc: "of the server's key; learnt when it enrolled or at first contact"},
			{Name: "refusedPin", Kind: KindString, ReadOnly: true, Doc: "of another key that the server showed since; not trusted"},
			tokenField, rotateField,
			{Name: "resetPin", Kind: KindBool, Action: true, Doc: "forget the pin, so that the server's key of now is learnt"},
		},
	},
	{
		Name: "proxy-groups", Singular: "proxy-group", Key: []string{"id"},
		Doc:    "Proxies that share the blocks of their volumes.",
		Force:  "take it from the volumes that use it, too: mounts go on with their other groups or the bucket",
		record: func() record { return new(ProxyGroup) },
		Fields: []Field{
			idField, providerField, regionField,
			{Name: "addresses", Kind: KindList, Required: true, Doc: "host:port of each proxy"},
			{Name: "noSSL", Kind: KindBool, Doc: "the proxies speak HTTP without TLS, for trusted networks"},
			{Name: "writeThrough", Kind: KindBool, Doc: "proxies answer a write when the bucket has it, not when two of them have it on disk"},
			{Name: "pins", Kind: KindMap, ReadOnly: true, Doc: "of the proxies' keys by address; learnt when they enrolled or at first contact"},
			{Name: "refusedPins", Kind: KindMap, ReadOnly: true, Doc: "of other keys that proxies showed since, by address; not trusted"},
			{Name: "waiting", Kind: KindMap, ReadOnly: true, Doc: "pins by address of proxies that enrolled and are not among the addresses"},
			{Name: "former", Kind: KindObjects, ReadOnly: true, Doc: "proxies that were members and may still hold blocks that are nowhere else"},
			{Name: "changedAt", Kind: KindTime, ReadOnly: true, Doc: "when the members last changed"},
			{Name: "removedAt", Kind: KindTime, ReadOnly: true, Doc: "when it was deleted; it is shown, not listed, until its proxies have drained"},
			{Name: "status", Kind: KindObjects, ReadOnly: true, Live: true, Doc: "how its members and former members are, as they reported last"},
			tokenField, rotateField,
			{Name: "resetPins", Kind: KindBool, Action: true, Doc: "forget all pins, so that the proxies' keys of now are learnt"},
			{Name: "forgetFormer", Kind: KindBool, Action: true, Doc: "forget all former members; blocks that only they hold are lost to mounts until they are uploaded"},
		},
	},
	{
		Name: "volumes", Singular: "volume", Key: []string{"id"},
		Doc:    "A file system. Deleting it sets retiredAt; listings leave retired ones out, unless asked for with retired=true.",
		record: func() record { v := DefaultVolume(); return &v },
		Fields: []Field{
			{Name: "id", Kind: KindString, ReadOnly: true, Doc: "UUID; wherever it is asked for, the name will do"},
			{Name: "name", Kind: KindString, Required: true, Doc: "unique among volumes that are not retired"},
			{Name: "accountID", Kind: KindInt, Fixed: true, Doc: "whose it is; 0: the account that asks"},
			{Name: "metaStoreID", Kind: KindInt, Required: true, Fixed: true, Doc: "where its metadata is"},
			{Name: "blockStoreID", Kind: KindInt, Required: true, Fixed: true, Doc: "where its blocks are"},
			{Name: "blockSize", Kind: KindSize, Fixed: true, Default: DefaultVolume().BlockSize, Doc: "256KiB to 8MiB, a power of two"},
			{Name: "inlineMax", Kind: KindSize, Default: DefaultVolume().InlineMax, Doc: "files up to this size live with the metadata, if the volume is not encrypted; at most 64KiB"},
			{Name: "compression", Kind: KindString, Default: DefaultVolume().Compression, Values: []string{"lz4", "zstd", "none"}, Doc: "of blocks written from now on"},
			{Name: "encryption", Kind: KindBool, Fixed: true, Doc: "contents are encrypted with a secret that only mounts have (mount --secretFile); names and attributes are not"},
			{Name: "secretID", Kind: KindString, ReadOnly: true, Doc: "by which mounts tell the volume's secret from others; registered by the first"},
			{Name: "retention", Kind: KindDuration, Default: DefaultVolume().Retention, Doc: "how long history is kept; 0: not at all, -1: for ever"},
			{Name: "maxBlocks", Kind: KindInt, Doc: "0: no limit"},
			{Name: "maxInodes", Kind: KindInt, Doc: "0: no limit"},
			{Name: "maxProxied", Kind: KindInt, Doc: "only so many first blocks of a file go through proxies; 0: all"},
			{Name: "writeThrough", Kind: KindBool, Doc: "proxies answer a write when the bucket has it, whatever their group says"},
			{Name: "flags", Kind: KindString, Doc: "mount flags forced on all mounts, comma-separated: " + strings.Join(MountFlags, ", ")},
			{Name: "notes", Kind: KindString, Doc: "for people"},
			createdField,
			{Name: "retiredAt", Kind: KindTime, ReadOnly: true, Doc: "when it was deleted"},
		},
	},
	{
		Name: "volume-proxy-groups", Singular: "volume-proxy-group", Key: []string{"volumeID", "proxyGroupID"},
		Doc:    "Lets a volume use a proxy group.",
		record: func() record { return new(VolumeProxyGroup) },
		Fields: []Field{
			volumeField,
			{Name: "proxyGroupID", Kind: KindInt, Required: true, Fixed: true, Doc: "the group"},
			{Name: "removedAt", Kind: KindTime, ReadOnly: true, Doc: "never shown: when it was deleted"},
		},
	},
	{
		Name: "volume-tokens", Singular: "volume-token", Key: []string{"id"},
		Doc:    "Lets its bearer mount a volume or a folder of it.",
		record: func() record { return &VolumeToken{MountPath: "/"} },
		Fields: []Field{
			idField, tokenField, rotateField, volumeField,
			{Name: "mountPath", Kind: KindString, Fixed: true, Default: "/", Doc: "the folder that mounts see as their root"},
			{Name: "flags", Kind: KindString, Doc: "mount flags forced, comma-separated: " + strings.Join(MountFlags, ", ")},
			{Name: "notes", Kind: KindString, Doc: "for people"},
		},
	},
}

// Fields that several tables have.
var (
	idField       = Field{Name: "id", Kind: KindInt, ReadOnly: true, Doc: "given by admin, never given again"}
	createdField  = Field{Name: "createdAt", Kind: KindTime, ReadOnly: true, Doc: "when it was created"}
	providerField = Field{Name: "providerCode", Kind: KindString, Required: true, Fixed: true, Doc: "where it is"}
	regionField   = Field{Name: "regionCode", Kind: KindString, Required: true, Fixed: true, Doc: "where it is"}
	volumeField   = Field{Name: "volumeID", Kind: KindString, Required: true, Fixed: true, Doc: "the volume's name or id"}
	tokenField    = Field{Name: "token", Kind: KindString, Secret: true, Doc: "UUID; made by admin if not given"}
	rotateField   = Field{Name: "rotateToken", Kind: KindBool, Action: true, Doc: "make a new token; the old one ends"}
)

// MountFlags are the flags that a volume or a token may force on mounts.
var MountFlags = []string{"ro", "noATime", "noDev", "noExec", "noSUID"}

// DefaultVolume returns a volume with the defaults of a new one.
func DefaultVolume() Volume {
	return Volume{
		BlockSize:   4 << 20,
		InlineMax:   16 << 10,
		Compression: "lz4",
		Retention:   7 * 24 * 3600,
	}
}

// FindTable returns the table whose name or singular is name, or nil.
func FindTable(name string) *Table {
	i := slices.IndexFunc(Tables, func(t *Table) bool { return t.Name == name || t.Singular == name })
	if i < 0 {
		return nil
	}
	return Tables[i]
}

// Field returns the field of that name, or nil.
func (t *Table) Field(name string) *Field {
	i := slices.IndexFunc(t.Fields, func(f Field) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &t.Fields[i]
}

func (t *Table) fieldNames(want func(Field) bool) string {
	var names []string
	for _, f := range t.Fields {
		if want(f) {
			names = append(names, f.Name)
		}
	}
	return strings.Join(names, ", ")
}

// A record is a pointer to an object of a table.
type record interface {
	// key is the object's place in its bucket.
	key() []byte
	// title names the object to people.
	title() string
	// complete fills what a new object gets by itself.
	complete(tx *tx, by int64) error
	// check says what is wrong with the values of the object, references
	// apart, and brings them into their one form.
	check() *Error
	// refs are the objects that must exist.
	refs() []ref
	// hide clears secrets: those never shown, and in a listing all.
	hide(listing bool)
}

// A bearer is a record with a token.
type bearer interface {
	record
	token() *string
	scope() string
}

// A ref is a field that names an object of a table by its key.
type ref struct {
	field string
	table string
	key   []byte
	text  string // the key, for people; "" or "0": not given
}
