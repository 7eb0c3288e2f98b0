package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// samples are, per table, fields that make an object and for each field that
// can be changed another value.
var samples = map[string]struct{ make, change map[string]any }{
	"accounts":            {map[string]any{"name": "Ada"}, map[string]any{"name": "Ada L", "email": "ada@example.com", "token": newUUID()}},
	"providers":           {map[string]any{"code": "minio"}, map[string]any{"name": "Our MinIO"}},
	"regions":             {map[string]any{"providerCode": "aws", "code": "mars-1"}, map[string]any{"name": "Mars"}},
	"block-stores":        {at(map[string]any{"bucket": "bucket"}), map[string]any{"username": "u", "password": "p", "address": "https://s3.example.com"}},
	"meta-stores":         {at(map[string]any{"address": "m:1"}), map[string]any{"address": "m:2", "token": newUUID()}},
	"proxy-groups":        {at(map[string]any{"addresses": []any{"p:1"}}), map[string]any{"addresses": []any{"p:1", "p:2"}, "noSSL": true, "writeThrough": true, "token": newUUID()}},
	"volumes":             {map[string]any{"name": "vol", "metaStoreID": 1.0, "blockStoreID": 1.0}, map[string]any{"name": "vol2", "inlineMax": 4096.0, "compression": "zstd", "retention": -1.0, "maxBlocks": 1e6, "maxInodes": 1e6, "maxProxied": 4.0, "writeThrough": true, "flags": "ro,noExec", "notes": "x"}},
	"volume-proxy-groups": {map[string]any{"volumeID": "my-volume", "proxyGroupID": 2.0}, map[string]any{}},
	"volume-tokens":       {map[string]any{"volumeID": "my-volume"}, map[string]any{"token": newUUID(), "flags": "ro", "notes": "n"}},
}

// others are values for fields that cannot be changed.
var others = map[Kind]any{KindString: "other", KindInt: 77.0, KindBool: true, KindSize: 524288.0, KindMap: map[string]any{"a": "b"}, KindObjects: []any{map[string]any{"address": "other:1"}}, KindTime: "2001-01-01T00:00:00Z"}

// sampled returns a site with a second group, and the object made of a
// table's sample.
func sampled(t *testing.T, table *Table) (*site, map[string]any, []string) {
	t.Helper()
	s := newSite(t)
	create[ProxyGroup](s.bench, at(map[string]any{"addresses": []string{"p:9"}}))
	var made map[string]any
	if err := s.account.Create(t.Context(), table, samples[table.Name].make, &made); err != nil {
		t.Fatalf("create %s: %v", table.Singular, err)
	}
	var id []string
	for _, field := range table.Key {
		id = append(id, fmt.Sprint(made[field]))
	}
	return s, made, id
}

func TestTheDocumentDescribesTheRoutesAndNoOthers(t *testing.T) {
	s := newSite(t)
	var served, described []string
	for _, r := range (&api{db: s.db}).routes() {
		served = append(served, r.method+" "+r.path)
	}
	ids := map[string]bool{}
	for path, item := range s.doc.Paths {
		for method, op := range item {
			described = append(described, strings.ToUpper(method)+" "+path)
			if ids[op.OperationID] {
				t.Errorf("operationId %s is there twice", op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	if !slices.Equal(served, described) {
		t.Errorf("served:\n%s\ndescribed:\n%s", strings.Join(served, "\n"), strings.Join(described, "\n"))
	}
}

// paths of the document with an object's key in the place of braces.
func concrete(path string) string {
	for name, value := range map[string]string{"{id}": "1", "{code}": "nowhere", "{providerCode}": "aws", "{volumeID}": "no-volume", "{proxyGroupID}": "77"} {
		path = strings.ReplaceAll(path, name, value)
	}
	return path
}

func TestEachOperationTakesTheTokensDescribedAndNoOthers(t *testing.T) {
	s := newSite(t)
	tokens := map[string]string{scopeAccount: s.account.Token, scopeVolumeToken: s.token.Token, scopeProxyGroup: s.group.Token, scopeMetaStore: s.meta.Token}
	if len(s.doc.Components.SecuritySchemes) != len(tokens) {
		t.Errorf("%d security schemes are described, there are %d", len(s.doc.Components.SecuritySchemes), len(tokens))
	}
	for path, item := range s.doc.Paths {
		for method, op := range item {
			method, path := strings.ToUpper(method), concrete(path)
			status, _ := s.send("", method, path, "")
			if refused := status == http.StatusUnauthorized; refused != (len(op.Security) > 0) {
				t.Errorf("%s %s without a token: status %d, and %d schemes are described", method, path, status, len(op.Security))
			}
			if len(op.Security) == 0 {
				continue
			}
			for _, wrong := range []string{"x", newUUID(), strings.ToUpper(s.account.Token)} {
				if status, _ := s.send(wrong, method, path, ""); status != http.StatusUnauthorized {
					t.Errorf("%s %s with an unknown token: status %d, want 401", method, path, status)
				}
			}
			for scope, token := range tokens {
				may := slices.ContainsFunc(op.Security, func(m map[string][]string) bool { return m[scope] != nil })
				body := "not json" // so that nothing is changed
				if method == "DELETE" && may {
					continue // tried elsewhere
				}
				status, text := s.send(token, method, path, body)
				if refused := status == http.StatusForbidden; refused == may || status == http.StatusUnauthorized {
					t.Errorf("%s %s with the token of a %s: status %d (%s), may: %v", method, path, scope, status, text, may)
				}
			}
		}
	}
}

func TestOtherMethodsAndPathsAreRefused(t *testing.T) {
	s := newSite(t)
	for path, item := range s.doc.Paths {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH"} {
			if _, ok := item[strings.ToLower(method)]; ok {
				continue
			}
			status, text := s.send(s.account.Token, method, concrete(path), "{}")
			if status != http.StatusMethodNotAllowed || !strings.Contains(text, `"error"`) {
				t.Errorf("%s %s: status %d %s, want 405 as JSON", method, path, status, text)
			}
		}
	}
	for _, path := range []string{"/", "/v1", "/v1/configure", "/v1/configure/planets", "/v1/configure/regions/aws", "/v1/configure/volumes/a/b", "/v1/configure/volumes/"} {
		if status, text := s.send(s.account.Token, "GET", path, ""); status != http.StatusNotFound || !strings.Contains(text, `"error"`) {
			t.Errorf("GET %s: status %d %s, want 404 as JSON", path, status, text)
		}
	}
}

func TestTablesNameTheFieldsOfTheirTypes(t *testing.T) {
	for _, table := range Tables {
		typ := reflect.TypeOf(table.record()).Elem()
		var inType, inTable []string
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			inType = append(inType, name)
		}
		for _, f := range table.Fields {
			if !f.Action {
				inTable = append(inTable, f.Name)
			}
			if f.Doc == "" {
				t.Errorf("%s: field %s has no words for people", table.Name, f.Name)
			}
		}
		slices.Sort(inType)
		slices.Sort(inTable)
		if !slices.Equal(inType, inTable) {
			t.Errorf("%s: the type has the fields %v, the table %v", table.Name, inType, inTable)
		}
		for _, key := range table.Key {
			if table.Field(key) == nil {
				t.Errorf("%s: key %s is not a field", table.Name, key)
			}
		}
	}
}

func TestObjectsAreAsDescribed(t *testing.T) {
	for _, table := range Tables {
		t.Run(table.Name, func(t *testing.T) {
			s, made, id := sampled(t, table) // the bench compares the answer with its schema
			schema := s.doc.Components.Schemas["New"+table.typeName()]
			for name, property := range schema["properties"].(map[string]any) {
				property := property.(map[string]any)
				if want, ok := property["default"]; ok && made[name] != want {
					t.Errorf("%s is %v by default, described is %v", name, made[name], want)
				}
				if values, ok := property["enum"].([]any); ok {
					fields := maps.Clone(samples[table.Name].make)
					fields[name] = "something else"
					wantRefused(t, s.account.Create(t.Context(), table, fields, new(any)), http.StatusBadRequest, name)
					if table.Field(name).Fixed {
						continue
					}
					for _, value := range values {
						if err := s.account.Update(t.Context(), table, map[string]any{name: value}, id...); err != nil {
							t.Errorf("%s %v is described: %v", name, value, err)
						}
					}
				}
			}
		})
	}
}

func TestRequiredFieldsAreThoseDescribed(t *testing.T) {
	for _, table := range Tables {
		t.Run(table.Name, func(t *testing.T) {
			s, _, _ := sampled(t, table)
			schema := s.doc.Components.Schemas["New"+table.typeName()]
			required := schema["required"].([]any)
			for field := range samples[table.Name].make {
				if !contains(required, field) {
					t.Errorf("%s is not described as required; take it out of the sample", field)
				}
			}
			for _, name := range required {
				fields := maps.Clone(samples[table.Name].make)
				delete(fields, name.(string))
				err := s.account.Create(t.Context(), table, fields, new(any))
				wantRefused(t, err, http.StatusBadRequest, name.(string), "missing")
			}
		})
	}
}

func TestFieldsThatCanBeChangedAreThoseDescribed(t *testing.T) {
	for _, table := range Tables {
		t.Run(table.Name, func(t *testing.T) {
			s, _, id := sampled(t, table)
			described := s.doc.Components.Schemas["Change"+table.typeName()]["properties"].(map[string]any)
			for _, f := range table.Fields {
				if f.Action {
					if _, ok := described[f.Name]; !ok {
						t.Errorf("action %s is not described", f.Name)
					}
					continue
				}
				value, changes := samples[table.Name].change[f.Name]
				if _, ok := described[f.Name]; ok != changes {
					t.Fatalf("%s can be changed: described %v, sampled %v", f.Name, ok, changes)
				}
				if f.Live {
					continue
				}
				if !changes {
					err := s.account.Update(t.Context(), table, map[string]any{f.Name: others[f.Kind]}, id...)
					wantRefused(t, err, http.StatusBadRequest, f.Name)
				} else if f.Name != "username" && f.Name != "password" { // they go together
					changeTo(t, s, table, f, value, id)
				}
			}
			if err := s.account.Update(t.Context(), table, samples[table.Name].change, id...); err != nil {
				t.Errorf("all at once: %v", err)
			}
		})
	}
}

func changeTo(t *testing.T, s *site, table *Table, f Field, value any, id []string) {
	t.Helper()
	if err := s.account.Update(t.Context(), table, map[string]any{f.Name: value}, id...); err != nil {
		t.Errorf("change %s to %v: %v", f.Name, value, err)
		return
	}
	var shown map[string]any
	if err := s.account.Get(t.Context(), table, &shown, id...); err != nil {
		t.Fatal(err)
	}
	if _, ok := shown[f.Name]; f.Unshown && !ok {
		return
	}
	if !reflect.DeepEqual(shown[f.Name], value) {
		t.Errorf("%s was changed to %v and is %v", f.Name, value, shown[f.Name])
	}
}

func TestWhatWasShownMayBeSentBack(t *testing.T) {
	for _, table := range Tables {
		s, _, id := sampled(t, table)
		var shown map[string]any
		if err := s.account.Get(t.Context(), table, &shown, id...); err != nil {
			t.Fatal(err)
		}
		if err := s.account.Update(t.Context(), table, shown, id...); err != nil {
			t.Errorf("%s: %v", table.Name, err)
		}
	}
}

func TestWrongFieldsAreRefusedByName(t *testing.T) {
	for _, table := range Tables {
		t.Run(table.Name, func(t *testing.T) {
			s, _, id := sampled(t, table)
			for _, name := range []string{"colour", "NAME", "Id", ""} {
				fields := maps.Clone(samples[table.Name].make)
				fields[name] = "x"
				wantRefused(t, s.account.Create(t.Context(), table, fields, new(any)), http.StatusBadRequest, name, "no such field")
				wantRefused(t, s.account.Update(t.Context(), table, map[string]any{name: "x"}, id...), http.StatusBadRequest, name, "no such field")
			}
			for _, f := range table.Fields {
				for _, wrong := range []any{nil, map[string]any{"x": 1}, []any{1}, 1.5} {
					err := s.account.Update(t.Context(), table, map[string]any{f.Name: wrong}, id...)
					wantRefused(t, err, http.StatusBadRequest, f.Name, "must be")
				}
				if f.Action {
					fields := maps.Clone(samples[table.Name].make)
					fields[f.Name] = true
					wantRefused(t, s.account.Create(t.Context(), table, fields, new(any)), http.StatusBadRequest, f.Name, "update")
				}
			}
		})
	}
}

func TestBodiesThatAreNotAnObjectAreRefused(t *testing.T) {
	s := newSite(t)
	for _, body := range []string{"", "null", "[]", `"x"`, "1", "{", `{"code":"x"} {}`, `{"code":"x"}x`, "\x00", `{"code":"a","code":`} {
		for _, request := range []string{"POST /v1/configure/providers", "PUT /v1/configure/providers/aws"} {
			method, path, _ := strings.Cut(request, " ")
			if status, text := s.send(s.account.Token, method, path, body); status != http.StatusBadRequest || !strings.Contains(text, "JSON object") {
				t.Errorf("%s with body %q: %d %s, want 400", request, body, status, text)
			}
		}
	}
	long := `{"code":"x","name":"` + strings.Repeat("x", maxBody) + `"}`
	if status, text := s.send(s.account.Token, "POST", "/v1/configure/providers", long); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of %d bytes: %d %s, want 413", len(long), status, text)
	}
}

func TestListingsCanBeFilteredByWhatIsDescribed(t *testing.T) {
	for _, table := range Tables {
		t.Run(table.Name, func(t *testing.T) {
			s, made, _ := sampled(t, table)
			var described []string
			for _, p := range s.doc.Paths[table.path()]["get"].Parameters {
				described = append(described, p.Name)
			}
			for name, value := range made {
				if !slices.Contains(described, name) {
					_, err := listBy(s, table, name, value)
					wantRefused(t, err, http.StatusBadRequest, name, described[0])
					continue
				}
				found, err := listBy(s, table, name, value)
				if err != nil || len(found) == 0 {
					t.Errorf("list by %s=%v: %d found, %v", name, value, len(found), err)
				}
				for _, f := range found {
					if !reflect.DeepEqual(f[name], value) {
						t.Errorf("list by %s=%v found %v", name, value, f)
					}
				}
				if table.Name == "volumes" && name == "id" || name == "volumeID" {
					continue // a volume that does not exist is an error
				}
				if found, err := listBy(s, table, name, "something-else"); err != nil || len(found) != 0 {
					t.Errorf("list by %s=something-else: %v, %v", name, found, err)
				}
			}
			_, err := listBy(s, table, "colour", "red")
			wantRefused(t, err, http.StatusBadRequest, "colour", described[0])
		})
	}
}

func listBy(s *site, table *Table, name string, value any) ([]map[string]any, error) {
	var found []map[string]any
	text := fmt.Sprint(value)
	if f, ok := value.(float64); ok {
		text = fmt.Sprint(int64(f))
	}
	return found, s.account.List(s.t.Context(), table, map[string][]string{name: {text}}, &found)
}

func TestTheDocumentIsSelfContained(t *testing.T) {
	s := newSite(t)
	_, text := s.send("", "GET", "/v1/openapi.json", "")
	var whole any
	if err := json.Unmarshal([]byte(text), &whole); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				used[strings.TrimPrefix(ref, "#/components/schemas/")] = true
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	walk(whole)
	for name := range used {
		if s.doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is referred to and not there", name)
		}
	}
	for name := range s.doc.Components.Schemas {
		if !used[name] {
			t.Errorf("schema %s is not referred to", name)
		}
	}
}
