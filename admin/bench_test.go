package admin

import (
	"bytes"
	"encoding/base64"

	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bolterrors "go.etcd.io/bbolt/errors"
)

// A bench is an admin server with a first account. Its clients call the
// handler without a network. What passes between them is compared with the
// API's document, and no answer may have a secret that it should not.
type bench struct {
	t       *testing.T
	db      *DB
	handler http.Handler
	log     *safeBuffer
	account *Client
	doc     *doc
}

func newBench(t *testing.T) *bench {
	t.Helper()
	db := openTemp(t)
	account, made, err := db.Bootstrap()
	if err != nil || !made {
		t.Fatalf("Bootstrap: made %v, %v", made, err)
	}
	b := &bench{t: t, db: db, log: &safeBuffer{}}
	b.handler = NewHandler(db, Options{Log: slog.New(slog.NewTextHandler(b.log, nil))})
	b.doc = fetchDoc(t, b.handler)
	b.account = b.client(account.Token)
	return b
}

func openTemp(t *testing.T) *DB {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "admin", "admin.db"))
	if err != nil {
		t.Fatal(err)
	}
	db.bolt.NoSync = true // what the disk keeps is not what these tests are about
	t.Cleanup(func() {
		if err := db.view((*tx).verify); err != nil && !errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
			t.Errorf("the database is not sound after the test: %v", err)
		}
		db.Close()
	})
	return db
}

func (b *bench) client(token string) *Client {
	return &Client{URL: "http://admin", Token: token, HTTP: &http.Client{Transport: b}}
}

// RoundTrip calls the handler and checks the exchange.
func (b *bench) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	b.handler.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if err := b.doc.check(r, rec.Code, rec.Body.Bytes()); err != nil {
		b.t.Errorf("%s %s: not as the document says: %v", r.Method, r.URL, err)
	}
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// send makes a request and returns the status and the body.
func (b *bench) send(token, method, path, body string) (int, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, "http://admin"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := b.RoundTrip(r)
	if err != nil {
		b.t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// make creates an object that the test needs.
func create[T Object](b *bench, fields map[string]any) T {
	b.t.Helper()
	v, err := Create[T](b.t.Context(), b.account, fields)
	if err != nil {
		b.t.Fatalf("create %s: %v", TableOf[T]().Singular, err)
	}
	return v
}

func get[T Object](b *bench, id ...any) T {
	b.t.Helper()
	var parts []string
	for _, part := range id {
		parts = append(parts, fmt.Sprint(part))
	}
	v, err := Get[T](b.t.Context(), b.account, parts...)
	if err != nil {
		b.t.Fatalf("show %s %v: %v", TableOf[T]().Singular, id, err)
	}
	return v
}

func update[T Object](b *bench, fields map[string]any, id ...any) {
	b.t.Helper()
	var parts []string
	for _, part := range id {
		parts = append(parts, fmt.Sprint(part))
	}
	if err := Update[T](b.t.Context(), b.account, fields, parts...); err != nil {
		b.t.Fatalf("update %s %v %v: %v", TableOf[T]().Singular, id, fields, err)
	}
}

// A site has one of everything.
type site struct {
	*bench
	meta   MetaStore
	blocks BlockStore
	group  ProxyGroup
	volume Volume
	token  VolumeToken
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{bench: newBench(t)}
	s.meta = create[MetaStore](s.bench, at(map[string]any{"address": "meta.example.com:9000"}))
	s.blocks = create[BlockStore](s.bench, at(map[string]any{"bucket": "genomes", "username": "AKIDEXAMPLE", "password": "bucket-secret"}))
	s.group = create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"proxy1.example.com:443", "proxy2.example.com:443"}}))
	s.volume = create[Volume](s.bench, map[string]any{"name": "my-volume", "metaStoreID": s.meta.ID, "blockStoreID": s.blocks.ID})
	create[VolumeProxyGroup](s.bench, map[string]any{"volumeID": "my-volume", "proxyGroupID": s.group.ID})
	s.token = create[VolumeToken](s.bench, map[string]any{"volumeID": "my-volume"})
	return s
}

// at adds a place to fields.
func at(fields map[string]any) map[string]any {
	fields["providerCode"], fields["regionCode"] = "aws", "us-east-1"
	return fields
}

// wantRefused checks the kind of a refusal, and that its text has the words.
func wantRefused(t *testing.T, err error, status int, field string, words ...string) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) {
		t.Errorf("got error %v, want a refusal with status %d", err, status)
		return
	}
	if refused.Status != status || refused.Field != field {
		t.Errorf("got status %d for field %q (%v), want %d for %q", refused.Status, refused.Field, err, status, field)
	}
	for _, word := range words {
		if !strings.Contains(refused.Message, word) {
			t.Errorf("the refusal %q does not say %q", refused.Message, word)
		}
	}
}

// doc is the API's document.
type doc struct {
	Paths      map[string]map[string]operation
	Components struct {
		Schemas         map[string]map[string]any
		SecuritySchemes map[string]any
	}
}

type operation struct {
	OperationID string
	Parameters  []struct {
		Name, In string
		Required bool
		Schema   map[string]any
	}
	RequestBody struct {
		Content map[string]struct{ Schema map[string]any }
	}
	Responses map[string]struct {
		Content map[string]struct{ Schema map[string]any }
		Headers map[string]any
	}
	Security []map[string][]string
}

func fetchDoc(t *testing.T, h http.Handler) *doc {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/v1/openapi.json", nil))
	d := &doc{}
	if err := json.Unmarshal(rec.Body.Bytes(), d); err != nil {
		t.Fatalf("the document is not JSON: %v", err)
	}
	return d
}

// find returns the operation that a request is for, and its path.
func (d *doc) find(method, path string) (operation, bool) {
	want := strings.Split(path, "/")
search:
	for template, item := range d.Paths {
		have := strings.Split(template, "/")
		if len(have) != len(want) {
			continue
		}
		for i := range have {
			if have[i] != want[i] && !strings.HasPrefix(have[i], "{") {
				continue search
			}
		}
		op, ok := item[strings.ToLower(method)]
		return op, ok
	}
	return operation{}, false
}

// check compares an answer with the document. Requests that it does not
// describe must be refused as such.
func (d *doc) check(r *http.Request, status int, body []byte) error {
	op, ok := d.find(r.Method, r.URL.EscapedPath())
	if !ok {
		if status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
			return fmt.Errorf("it does not describe the request, and the answer is %d", status)
		}
		return nil
	}
	want, ok := op.Responses[fmt.Sprint(status)]
	if !ok {
		return fmt.Errorf("status %d is not described: %s", status, body)
	}
	schema := want.Content["application/json"].Schema
	if schema == nil {
		if len(body) > 0 {
			return fmt.Errorf("a body is not described: %s", body)
		}
		return nil
	}
	var value any
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&value); err != nil {
		return fmt.Errorf("the body is not JSON: %w", err)
	}
	return d.valid(schema, value, "answer")
}

// valid checks a value against the part of JSON Schema that the document uses.
func (d *doc) valid(schema map[string]any, v any, where string) error {
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/components/schemas/")
		if d.Components.Schemas[name] == nil {
			return fmt.Errorf("%s: there is no schema %s", where, name)
		}
		return d.valid(d.Components.Schemas[name], v, where)
	}
	if enum, ok := schema["enum"].([]any); ok && !contains(enum, v) {
		return fmt.Errorf("%s: %v is none of %v", where, v, enum)
	}
	switch v := v.(type) {
	case map[string]any:
		return d.validObject(schema, v, where)
	case []any:
		items, ok := schema["items"].(map[string]any)
		if !ok {
			return fmt.Errorf("%s: an array is not described", where)
		}
		for i, item := range v {
			if err := d.valid(items, item, fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
		return wantType(schema, "array", where)
	case string:
		return wantType(schema, "string", where)
	case float64:
		return wantType(schema, "integer", where)
	case bool:
		return wantType(schema, "boolean", where)
	}
	return fmt.Errorf("%s: %v is not described", where, v)
}

func (d *doc) validObject(schema, v map[string]any, where string) error {
	properties, _ := schema["properties"].(map[string]any)
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := v[name.(string)]; !ok {
			return fmt.Errorf("%s: %v is missing", where, name)
		}
	}
	for name, value := range v {
		property, ok := properties[name].(map[string]any)
		if !ok {
			property, ok = schema["additionalProperties"].(map[string]any)
		}
		if !ok && schema["additionalProperties"] == false {
			return fmt.Errorf("%s: %s is not described", where, name)
		}
		if !ok {
			continue
		}
		if err := d.valid(property, value, where+"."+name); err != nil {
			return err
		}
	}
	return wantType(schema, "object", where)
}

func wantType(schema map[string]any, is, where string) error {
	if schema["type"] != is {
		return fmt.Errorf("%s: is of type %s, and %v is described", where, is, schema["type"])
	}
	return nil
}

func contains(list []any, v any) bool {
	for _, have := range list {
		if have == v {
			return true
		}
	}
	return false
}

// A safeBuffer may be written to and read by several goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// count returns how often the log says something.
func (b *safeBuffer) count(words string) int { return strings.Count(b.String(), words) }

// somePin returns a pin that differs from those of other n.
func somePin(n byte) string {
	return "sha256:" + base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{n}, 32))
}
