package admin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A route is an operation of the API: what serves it and what its document
// says.
type route struct {
	method, path string
	summary      string
	scopes       []string // of the tokens that may; none: no token is needed
	query        []Field  // parameters
	body         string   // schema of the request; "": none
	answer       string   // schema of the answer; "": none
	list         bool     // the answer is an array of them
	errors       []int    // statuses of refusals, beside those that any request may meet
	settings     bool     // see Settings in admin.go
	handle       http.HandlerFunc
}

// status is that of an answer which is not a refusal.
func (r route) status() int {
	if r.answer == "" {
		return http.StatusNoContent
	}
	return http.StatusOK
}

// refusals are the statuses of all refusals that the document names.
func (r route) refusals() []int {
	all := append([]int{http.StatusInternalServerError, http.StatusServiceUnavailable}, r.errors...)
	if len(r.scopes) > 0 {
		all = append(all, http.StatusUnauthorized, http.StatusForbidden)
	}
	if r.body != "" {
		all = append(all, http.StatusBadRequest, http.StatusRequestEntityTooLarge)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

type object = map[string]any

// document returns the OpenAPI document of the routes.
func document(routes []route) []byte {
	paths := object{}
	for _, r := range routes {
		item, ok := paths[r.path].(object)
		if !ok {
			item = object{}
			paths[r.path] = item
		}
		item[strings.ToLower(r.method)] = r.operation()
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title":   "flexfs admin",
			"version": "1",
			"description": "Configures flexfs: what an operator creates, lists, shows, updates and deletes, and the settings that mounts, proxies and metadata servers fetch. " +
				"A refused request changes nothing.",
		},
		"paths": paths,
		"components": object{
			"schemas":         schemas(),
			"securitySchemes": securitySchemes(),
		},
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		panic(err) // maps, texts and numbers
	}
	return text
}

func securitySchemes() object {
	all := object{}
	for _, scope := range []string{scopeAccount, scopeVolumeToken, scopeProxyGroup, scopeMetaStore} {
		all[scope] = object{"type": "http", "scheme": "bearer", "description": "the token of " + people(scope)}
	}
	return all
}

func (r route) operation() object {
	op := object{
		"summary":     r.summary,
		"operationId": r.name(),
		"responses":   r.responses(),
		"security":    []any{},
	}
	for _, scope := range r.scopes {
		op["security"] = append(op["security"].([]any), object{scope: []any{}})
	}
	if params := r.parameters(); len(params) > 0 {
		op["parameters"] = params
	}
	if r.body != "" {
		op["requestBody"] = object{"required": true, "content": content(reference(r.body))}
	}
	return op
}

// name is unique: the method and the words of the path.
func (r route) name() string {
	words := regexp.MustCompile(`[A-Za-z]+`).FindAllString(strings.TrimPrefix(r.path, "/v1/"), -1)
	return strings.ToLower(r.method) + "-" + strings.Join(words, "-")
}

func (r route) parameters() []any {
	var params []any
	for _, m := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(r.path, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, f := range r.query {
		params = append(params, object{"name": f.Name, "in": "query", "description": f.Doc, "schema": f.schema()})
	}
	if r.settings {
		params = append(params, object{"name": "If-None-Match", "in": "header", "schema": object{"type": "string"},
			"description": "the ETag of the settings that the caller has"})
	}
	return params
}

func (r route) responses() object {
	all := object{}
	for _, status := range r.refusals() {
		all[strconv.Itoa(status)] = object{"description": http.StatusText(status), "content": content(reference("Error"))}
	}
	done := object{"description": "done"}
	if r.answer != "" {
		schema := reference(r.answer)
		if r.list {
			schema = object{"type": "array", "items": schema}
		}
		done["content"] = content(schema)
	}
	all[strconv.Itoa(r.status())] = done
	if r.settings {
		done["headers"] = object{"ETag": header("of the settings, ticket apart")}
		all["304"] = object{"description": "the settings are those that the caller has", "headers": object{
			"ETag":        header("of the settings, ticket apart"),
			headerTicket:  header("to a mount: its new ticket"),
			headerExpires: header("to a mount: when its new ticket ends"),
		}}
	}
	return all
}

func header(doc string) object {
	return object{"description": doc, "schema": object{"type": "string"}}
}

func content(schema object) object {
	return object{"application/json": object{"schema": schema}}
}

func reference(schema string) object {
	return object{"$ref": "#/components/schemas/" + schema}
}

// schemas describes all types of the API by themselves, and those of objects
// with the words of their tables.
func schemas() object {
	all := object{}
	for _, t := range Tables {
		name := t.typeName()
		describe(reflect.TypeOf(t.record()).Elem(), all)
		all["New"+name] = t.schema(func(f Field) bool { return !f.ReadOnly && !f.Action }, true)
		all["Change"+name] = t.schema(func(f Field) bool { return !f.ReadOnly && !f.Fixed }, false)
		t.explain(all[name])
	}
	for _, v := range []any{Error{}, Health{}, MountSettings{}, ProxySettings{}, MetaSettings{}, Secret{}, Enrolment{}, Enrolled{}, ProxyReport{}, ReportAnswer{}, TicketKey{}, Rotation{}} {
		describe(reflect.TypeOf(v), all)
	}
	all["Document"] = object{"type": "object", "description": "an OpenAPI document"}
	return all
}

// typeName is the name of the Go type of the table's objects.
func (t *Table) typeName() string { return reflect.TypeOf(t.record()).Elem().Name() }

// schema is that of a request with the fields that it may have.
func (t *Table) schema(may func(Field) bool, creating bool) object {
	properties, required := object{}, []string{}
	for _, f := range t.Fields {
		if !may(f) {
			continue
		}
		properties[f.Name] = f.schema()
		if creating && f.Required {
			required = append(required, f.Name)
		}
	}
	return object{"type": "object", "description": t.Doc, "properties": properties, "required": required}
}

// explain adds a table's words to the schema of its objects.
func (t *Table) explain(schema any) {
	s := schema.(object)
	s["description"] = t.Doc
	properties := s["properties"].(object)
	for _, f := range t.Fields {
		switch {
		case f.Kind == KindObjects: // described by their type
			p := properties[f.Name].(object)
			p["description"], p["readOnly"] = f.Doc, true
		case !f.Action:
			properties[f.Name] = f.schema()
		}
	}
}

func (f Field) schema() object {
	s := map[Kind]object{
		KindString:   {"type": "string"},
		KindInt:      {"type": "integer", "format": "int64"},
		KindBool:     {"type": "boolean"},
		KindSize:     {"type": "integer", "format": "int64"},
		KindDuration: {"type": "integer", "format": "int64"},
		KindList:     {"type": "array", "items": object{"type": "string"}},
		KindMap:      {"type": "object", "additionalProperties": object{"type": "string"}},
		KindTime:     {"type": "string", "format": "date-time"},
	}[f.Kind]
	s["description"] = f.Doc
	switch f.Kind {
	case KindSize:
		s["description"] = f.Doc + " (bytes)"
	case KindDuration:
		s["description"] = f.Doc + " (seconds)"
	}
	if len(f.Values) > 0 {
		s["enum"] = f.Values
	}
	if f.Default != nil {
		s["default"] = f.Default
	}
	if f.ReadOnly {
		s["readOnly"] = true
	}
	return s
}

// describe adds the schema of a struct and of those in it to all.
func describe(t reflect.Type, all object) {
	if all[t.Name()] != nil {
		return
	}
	properties, required := object{}, []string{}
	all[t.Name()] = object{"type": "object", "properties": properties, "additionalProperties": false}
	for i := range t.NumField() {
		name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		properties[name] = schemaOf(t.Field(i).Type, all)
		if option != "omitempty" && option != "omitzero" {
			required = append(required, name)
		}
	}
	all[t.Name()].(object)["required"] = required
}

func schemaOf(t reflect.Type, all object) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[[]byte]():
		return object{"type": "string", "contentEncoding": "base64"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return schemaOf(t.Elem(), all)
	case reflect.Struct:
		describe(t, all)
		return reference(t.Name())
	case reflect.Slice:
		return object{"type": "array", "items": schemaOf(t.Elem(), all)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schemaOf(t.Elem(), all)}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.String:
		return object{"type": "string"}
	}
	panic(fmt.Sprintf("admin: no schema for %v", t)) // a test makes the document
}

// filterFields are the query parameters of a table's listing.
func (t *Table) filterFields() []Field {
	var list []Field
	for _, f := range t.Fields {
		if f.filters() {
			list = append(list, Field{Name: f.Name, Kind: f.Kind, Doc: "only those with this value: " + f.Doc, Values: f.Values})
		}
	}
	if t.Name == "volumes" {
		list = append(list, Field{Name: "retired", Kind: KindBool, Doc: "retired volumes too"})
	}
	return list
}

// deleteFields are the query parameters of a deletion.
func (t *Table) deleteFields() []Field {
	if t.Force == "" {
		return nil
	}
	return []Field{{Name: "force", Kind: KindBool, Doc: t.Force}}
}

// pathsOf groups routes by their paths.
func pathsOf(routes []route) map[string]methods {
	paths := map[string]methods{}
	for _, r := range routes {
		if paths[r.path] == nil {
			paths[r.path] = methods{}
		}
		paths[r.path][r.method] = r.handle
	}
	return paths
}

// methods are the operations on one path.
type methods map[string]http.HandlerFunc

func (m methods) names() string { return strings.Join(slices.Sorted(maps.Keys(m)), ", ") }
