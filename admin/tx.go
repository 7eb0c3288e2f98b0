package admin

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// A tx is a transaction on the tables.
type tx struct {
	*bolt.Tx
	dirty  bool    // something changed
	purged []int64 // proxy groups that are no more
}

func (tx *tx) bucket(t *Table) *bolt.Bucket { return tx.Bucket([]byte(t.Name)) }

func (tx *tx) nextID(table string) (int64, error) {
	id, err := tx.Bucket([]byte(table)).NextSequence()
	return int64(id), err
}

// each calls fn with every object of a table. fn must not change the table.
func (tx *tx) each(t *Table, fn func(record) error) error {
	return tx.bucket(t).ForEach(func(_, value []byte) error {
		r, err := decodeRecord(t, value)
		if err != nil {
			return err
		}
		return fn(r)
	})
}

// load returns the object with a key, or nil.
func (tx *tx) load(t *Table, key []byte) (record, error) {
	value := tx.bucket(t).Get(key)
	if value == nil {
		return nil, nil
	}
	return decodeRecord(t, value)
}

// put writes r in its place, if that changes anything.
func (tx *tx) put(t *Table, r record) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if bytes.Equal(tx.bucket(t).Get(r.key()), value) {
		return nil
	}
	tx.dirty = true
	return tx.bucket(t).Put(r.key(), value)
}

// find returns the object that a path names.
func (tx *tx) find(t *Table, id []string) (record, error) {
	name := strings.Join(id, "/")
	if len(id) != len(t.Key) {
		return nil, refuse(http.StatusNotFound, "a %s is named by %s, not by %q", t.Singular, strings.Join(t.Key, "/"), name)
	}
	if t.Name == "volumes" {
		v, err := tx.volume(id[0])
		if err != nil {
			return nil, err
		}
		return v, nil
	}
	key, err := tx.keyOf(t, id)
	if err != nil {
		return nil, err
	}
	r, err2 := tx.load(t, key)
	_, group := r.(*ProxyGroup)
	if err2 == nil && (r == nil || gone(r) && !group) { // a deleted group is shown
		return nil, notFound(t, name)
	}
	return r, err2
}

func (tx *tx) keyOf(t *Table, id []string) ([]byte, error) {
	var parts [][]byte
	for i, field := range t.Key {
		switch {
		case field == "volumeID":
			v, err := tx.volume(id[i])
			if err != nil {
				return nil, err
			}
			parts = append(parts, v.key())
		case t.Field(field).Kind == KindInt:
			n, err := strconv.ParseInt(id[i], 10, 64)
			if err != nil || n < 1 {
				return nil, refuse(http.StatusNotFound, "%s %q does not exist: ids are numbers", t.Singular, id[i])
			}
			parts = append(parts, numKey(n))
		default:
			parts = append(parts, []byte(id[i]))
		}
	}
	return bytes.Join(parts, []byte{0}), nil
}

// volume returns a volume by its id, or one that is not retired by its name.
func (tx *tx) volume(nameOrID string) (*Volume, *Error) {
	t := FindTable("volumes")
	var found *Volume
	if isUUID(nameOrID) {
		r, err := tx.load(t, []byte(nameOrID))
		if err != nil {
			return nil, refuse(http.StatusInternalServerError, "%v", err)
		}
		if r != nil {
			found = r.(*Volume)
		}
	} else if err := tx.each(t, func(r record) error {
		if v := r.(*Volume); v.Name == nameOrID && v.RetiredAt == nil {
			found = v
		}
		return nil
	}); err != nil {
		return nil, refuse(http.StatusInternalServerError, "%v", err)
	}
	if found == nil {
		return nil, notFound(t, strconv.Quote(nameOrID))
	}
	return found, nil
}

func (tx *tx) create(t *Table, r record, by int64) error {
	if err := r.complete(tx, by); err != nil {
		return err
	}
	was, err := tx.load(t, r.key())
	switch {
	case err != nil:
		return err
	case was != nil && !gone(was):
		return refuse(http.StatusConflict, "%s exists already", r.title())
	}
	if b, ok := r.(bearer); ok && *b.token() == "" {
		*b.token() = newUUID()
	}
	return tx.save(t, nil, r)
}

// change applies an update to r, which is as it was loaded.
func (tx *tx) change(t *Table, r record, fields any) error {
	old, err := tx.load(t, r.key())
	if err != nil {
		return err
	}
	if v, ok := r.(*Volume); ok && v.RetiredAt != nil {
		return refuse(http.StatusConflict, "%s cannot be changed: it was deleted", v.title())
	}
	if gone(r) {
		return refuse(http.StatusConflict, "%s cannot be changed: it was deleted", r.title())
	}
	actions, bad := decode(t, r, fields, false)
	if bad != nil {
		return bad
	}
	act(r, actions)
	if err := r.check(); err != nil {
		return err
	}
	return tx.save(t, old, r)
}

// act does what an update asked for beside setting fields.
func act(r record, actions []string) {
	for _, action := range actions {
		switch action {
		case "rotateToken":
			*r.(bearer).token() = newUUID()
		case "resetPins":
			g := r.(*ProxyGroup)
			g.Pins, g.RefusedPins, g.Waiting = nil, nil, nil
		case "forgetFormer":
			r.(*ProxyGroup).Former = nil
		case "resetPin":
			m := r.(*MetaStore)
			m.Pin, m.RefusedPin = "", ""
		}
	}
}

// save writes r in the place of old (nil: there was none) after everything
// that r must fit to was checked.
func (tx *tx) save(t *Table, old, r record) error {
	if err := tx.checkRefs(r); err != nil {
		return err
	}
	if err := tx.checkName(r); err != nil {
		return err
	}
	forget(old, r)
	if was, ok := old.(*ProxyGroup); ok {
		r.(*ProxyGroup).follow(was, now())
	}
	if err := tx.index(old, r); err != nil {
		return err
	}
	return tx.put(t, r)
}

// forget clears keys of servers that an update took away.
func forget(old, r record) {
	switch was := old.(type) {
	case *ProxyGroup:
		if g := r.(*ProxyGroup); g.NoSSL {
			g.Pins, g.RefusedPins = nil, nil
		}
	case *MetaStore:
		if m := r.(*MetaStore); was.Address != m.Address {
			m.Pin, m.RefusedPin = "", ""
		}
	}
}

func (tx *tx) checkRefs(r record) error {
	for _, ref := range r.refs() {
		t := FindTable(ref.table)
		if ref.text == "" || ref.text == "0" {
			return bad(ref.field, "is missing")
		}
		if tx.bucket(t).Get(ref.key) == nil {
			return bad(ref.field, "%s %s does not exist", t.Singular, ref.text)
		}
	}
	return nil
}

// checkName keeps the names of volumes unique.
func (tx *tx) checkName(r record) error {
	v, ok := r.(*Volume)
	if !ok || v.RetiredAt != nil {
		return nil
	}
	other, err := tx.volume(v.Name)
	if err == nil && other.ID != v.ID {
		e := bad("name", "a volume %s exists already", v.Name)
		e.Status = http.StatusConflict
		return e
	}
	return nil
}

func (tx *tx) retire(v *Volume) error {
	if v.RetiredAt != nil {
		return refuse(http.StatusConflict, "%s was deleted already", v.title())
	}
	at := now()
	v.RetiredAt = &at
	return tx.put(FindTable("volumes"), v)
}

// remove deletes an object that nothing uses, or by force with what uses it,
// where there is such a thing.
func (tx *tx) remove(t *Table, r record, force bool) error {
	if err := tx.sweep(now()); err != nil {
		return err
	}
	switch r := r.(type) {
	case *ProxyGroup:
		return tx.dissolve(r, force)
	case *VolumeProxyGroup:
		r.RemovedAt = now()
		return tx.put(t, r)
	}
	if err := tx.checkUnused(t, r); err != nil {
		return err
	}
	if t.Name == "accounts" && tx.bucket(t).Stats().KeyN == 1 {
		return refuse(http.StatusConflict, "%s is the only one: without it nobody could configure anything", r.title())
	}
	if err := tx.index(r, nil); err != nil {
		return err
	}
	tx.dirty = true
	return tx.bucket(t).Delete(r.key())
}

// checkUnused refuses to remove what other objects refer to.
func (tx *tx) checkUnused(t *Table, r record) error {
	var users []string
	retired := 0
	for _, other := range Tables {
		err := tx.each(other, func(user record) error {
			if _, ok := user.(*VolumeProxyGroup); ok && gone(user) {
				return nil
			}
			for _, ref := range user.refs() {
				if ref.table != t.Name || !bytes.Equal(ref.key, r.key()) {
					continue
				}
				users = append(users, tx.describe(user))
				if v, ok := user.(*Volume); ok && v.RetiredAt != nil {
					retired++
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	switch len(users) {
	case 0:
		return nil
	case retired:
		return inUse(r.title(), "what retired volumes hold is kept", users)
	}
	return inUse(r.title(), "delete or change that first", users)
}

// describe names an object, and by its name the volume that it is about.
func (tx *tx) describe(r record) string {
	vg, ok := r.(*VolumeProxyGroup)
	if !ok {
		return r.title()
	}
	v, err := tx.volume(vg.VolumeID)
	if err != nil {
		return r.title()
	}
	return v.title()
}

// A holder is whose a token is.
type holder struct {
	Scope string `json:"scope"`
	ID    int64  `json:"id"`
}

func tokenKey(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// index keeps the tokens bucket in step with an object that changes from old
// to r; either may be nil.
func (tx *tx) index(old, r record) error {
	tokens := tx.Bucket(bucketTokens)
	was, _ := old.(bearer)
	is, _ := r.(bearer)
	if was != nil && (is == nil || *is.token() != *was.token()) {
		if err := tokens.Delete(tokenKey(*was.token())); err != nil {
			return err
		}
	}
	if is == nil || (was != nil && *is.token() == *was.token()) {
		return nil
	}
	if err := checkToken(*is.token()); err != nil {
		return err
	}
	key := tokenKey(*is.token())
	if tokens.Get(key) != nil {
		e := bad("token", "is another object's already: leave it out and a new one is made")
		e.Status = http.StatusConflict
		return e
	}
	value, err := json.Marshal(holder{is.scope(), idOf(is)})
	if err != nil {
		return err
	}
	return tokens.Put(key, value)
}

func idOf(b bearer) int64 {
	var id int64
	for _, c := range b.key() {
		id = id<<8 | int64(c)
	}
	return id
}

// verify checks all that must hold: objects can be read and are in their
// place, what they refer to is there, tokens lead to them.
func (tx *tx) verify() error {
	bearers := 0
	for _, t := range Tables {
		b := tx.bucket(t)
		if b == nil {
			return fmt.Errorf("the table %s is missing", t.Name)
		}
		err := b.ForEach(func(key, value []byte) error {
			r, err := decodeRecord(t, value)
			if err != nil {
				return err
			}
			if !bytes.Equal(r.key(), key) {
				return fmt.Errorf("%s is in the place of another", r.title())
			}
			if b, ok := r.(bearer); ok {
				bearers++
				if err := tx.verifyToken(b); err != nil {
					return err
				}
			}
			return tx.verifyRefs(r)
		})
		if err != nil {
			return err
		}
	}
	tokens := tx.Bucket(bucketTokens)
	if tokens == nil || tokens.Stats().KeyN != bearers {
		return fmt.Errorf("the index of tokens does not match the objects")
	}
	return nil
}

func (tx *tx) verifyRefs(r record) error {
	for _, ref := range r.refs() {
		if b := tx.Bucket([]byte(ref.table)); b == nil || b.Get(ref.key) == nil {
			return fmt.Errorf("%s refers to %s %s, which is missing", r.title(), FindTable(ref.table).Singular, ref.text)
		}
	}
	return nil
}

func (tx *tx) verifyToken(b bearer) error {
	var h holder
	tokens := tx.Bucket(bucketTokens)
	if tokens == nil || json.Unmarshal(tokens.Get(tokenKey(*b.token())), &h) != nil || h != (holder{b.scope(), idOf(b)}) {
		return fmt.Errorf("the token of %s is not in the index", b.title())
	}
	return nil
}

// decode sets the fields of r that a request names and returns the actions it
// asks for.
func decode(t *Table, r record, fields any, creating bool) (actions []string, _ *Error) {
	given, err := objectOf(fields)
	if err != nil {
		return nil, err
	}
	before := members(r)
	for _, name := range slices.Sorted(maps.Keys(given)) {
		f := t.Field(name)
		if f == nil {
			known := t.fieldNames(func(f Field) bool { return !f.ReadOnly && (creating != f.Action || !creating && !f.Fixed) })
			return nil, bad(name, "a %s has no such field; there are %s", t.Singular, known)
		}
		if f.Live {
			if err := decodeField(f, given[name], t.record()); err != nil {
				return nil, err
			}
			continue
		}
		if f.Action {
			ask, err := decodeAction(f, given[name], creating)
			if err != nil {
				return nil, err
			}
			if ask {
				actions = append(actions, name)
			}
			continue
		}
		if err := decodeField(f, given[name], r); err != nil {
			return nil, err
		}
	}
	return actions, allowedChange(t, given, before, members(r), creating)
}

// objectOf returns the members of a JSON object.
func objectOf(fields any) (map[string]json.RawMessage, *Error) {
	body, ok := fields.([]byte)
	if !ok {
		var err error
		if body, err = json.Marshal(fields); err != nil {
			return nil, refuse(http.StatusBadRequest, "the object cannot be written as JSON: %v", err)
		}
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(body, &given); err != nil || given == nil {
		return nil, refuse(http.StatusBadRequest, "the request is not a JSON object")
	}
	return given, nil
}

// members returns the JSON of each field of an object.
func members(r any) map[string]json.RawMessage {
	m, err := objectOf(r)
	if err != nil {
		return nil
	}
	return m
}

func decodeAction(f *Field, value json.RawMessage, creating bool) (ask bool, _ *Error) {
	if creating {
		return false, bad(f.Name, "can only be asked for in an update")
	}
	if string(value) == "null" || json.Unmarshal(value, &ask) != nil {
		return false, bad(f.Name, "must be true or false")
	}
	return ask, nil
}

var kindNames = map[Kind]string{
	KindString: "a text", KindInt: "a whole number", KindBool: "true or false", KindSize: "a number of bytes",
	KindDuration: "a number of seconds", KindList: "a list of texts", KindMap: "an object of texts", KindTime: "a time like 2026-01-31T12:00:00Z",
	KindObjects: "a list of objects",
}

func decodeField(f *Field, value json.RawMessage, r record) *Error {
	one, err := json.Marshal(map[string]json.RawMessage{f.Name: value})
	if err == nil && string(value) != "null" {
		err = json.Unmarshal(one, r)
	}
	if err != nil || string(value) == "null" {
		return bad(f.Name, "must be %s", kindNames[f.Kind]) // no more: the value may be a secret
	}
	return nil
}

// allowedChange refuses fields that are not the caller's to set, unless they
// are as they were: so what was shown may be sent back.
func allowedChange(t *Table, given, before, after map[string]json.RawMessage, creating bool) *Error {
	for _, f := range t.Fields {
		if !bytes.Equal(before[f.Name], after[f.Name]) {
			switch {
			case f.ReadOnly:
				return bad(f.Name, "is set by admin, not by requests")
			case f.Fixed && !creating:
				return bad(f.Name, "is fixed when a %s is created and cannot be changed", t.Singular)
			}
		}
		if _, there := given[f.Name]; creating && f.Required && !there {
			return bad(f.Name, "is missing")
		}
	}
	return nil
}

// A filter picks objects by their fields.
type filter struct {
	table   *Table
	want    map[string]string
	retired bool // retired volumes too
}

func newFilter(t *Table, query map[string][]string) (*filter, *Error) {
	f := &filter{table: t, want: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		value := query[name][len(query[name])-1]
		field := t.Field(name)
		switch {
		case t.Name == "volumes" && name == "retired":
			b, err := strconv.ParseBool(value)
			if err != nil {
				return nil, bad(name, "must be true or false")
			}
			f.retired = b
		case field == nil || !field.filters():
			return nil, bad(name, "a %s cannot be listed by it; there are %s", t.Singular, t.fieldNames(Field.filters))
		default:
			f.want[name] = value
		}
	}
	return f, nil
}

// filters tells whether a listing can be asked for by the field's value.
func (f Field) filters() bool {
	simple := f.Kind != KindList && f.Kind != KindMap && f.Kind != KindTime && f.Kind != KindObjects
	return simple && !f.Secret && !f.Unshown && !f.Action
}

// resolve replaces the name of a volume by its id.
func (f *filter) resolve(tx *tx) error {
	field := "volumeID"
	if f.table.Name == "volumes" {
		field = "id"
	}
	name, ok := f.want[field]
	if !ok {
		return nil
	}
	v, err := tx.volume(name)
	if err != nil {
		return err
	}
	f.want[field] = v.ID
	return nil
}

func (f *filter) matches(r record) bool {
	if gone(r) {
		return false
	}
	if v, ok := r.(*Volume); ok && v.RetiredAt != nil && !f.retired {
		return false
	}
	if len(f.want) == 0 {
		return true
	}
	have := members(r)
	for name, want := range f.want {
		value := string(have[name])
		var text string
		if json.Unmarshal(have[name], &text) == nil {
			value = text
		}
		if value != want {
			return false
		}
	}
	return true
}
