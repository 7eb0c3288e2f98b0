package admin

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

// maxBody bounds a request, in bytes: the largest object is a proxy group of
// maxMembers addresses.
const maxBody = 1 << 20

// Options are what a handler may be told.
type Options struct {
	Log *slog.Logger // of changes and failures; nil: none
}

// NewHandler returns the REST API on a database. Its document is served at
// /v1/openapi.json. The handler needs no end of its own: requests that wait
// end when the database is closed.
func NewHandler(db *DB, opt Options) http.Handler {
	a := &api{db: db, log: opt.Log}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	paths := map[string]methods{}
	for _, r := range a.routes() {
		if paths[r.path] == nil {
			paths[r.path] = methods{}
		}
		paths[r.path][r.method] = r.handle
	}
	for path, m := range paths {
		mux.HandleFunc(path, a.dispatch(m))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a.fail(w, r, refuse(http.StatusNotFound, "there is nothing at %s; see /v1/openapi.json", r.URL.Path))
	})
	return mux
}

type api struct {
	db      *DB
	log     *slog.Logger
	waiting atomic.Int64 // requests for settings
}

// A route is an operation of the API.
type route struct {
	method, path string
	handle       http.HandlerFunc
}

func (a *api) routes() []route {
	list := []route{
		{"GET", "/v1/health", a.health},
		{"GET", "/v1/settings/mount", a.serveSettings(scopeVolumeToken)},
		{"GET", "/v1/settings/proxy", a.serveSettings(scopeProxyGroup)},
		{"GET", "/v1/settings/meta", a.serveSettings(scopeMetaStore)},
		{"POST", "/v1/enrol", a.enrol},
	}
	for _, t := range Tables {
		list = append(list,
			route{"GET", t.path(), a.configure(t, a.list)},
			route{"POST", t.path(), a.configure(t, a.create)},
			route{"GET", t.pathOfOne(), a.configure(t, a.show)},
			route{"PUT", t.pathOfOne(), a.configure(t, a.change)},
			route{"DELETE", t.pathOfOne(), a.configure(t, a.remove)})
	}
	return list
}

func (t *Table) path() string { return "/v1/configure/" + t.Name }

// pathOfOne is the path of an object, its key in braces.
func (t *Table) pathOfOne() string {
	return t.path() + "/{" + strings.Join(t.Key, "}/{") + "}"
}

// methods are the operations on one path.
type methods map[string]http.HandlerFunc

func (a *api) dispatch(m methods) http.HandlerFunc {
	allowed := slices.Sorted(maps.Keys(m))
	return func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == "HEAD" {
			method = "GET"
		}
		handle, ok := m[method]
		if !ok {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			a.fail(w, r, refuse(http.StatusMethodNotAllowed, "%s is not for %s; there are %s", r.Method, r.URL.Path, strings.Join(allowed, ", ")))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		handle(w, r)
	}
}

// health answers whether requests can be served.
func (a *api) health(w http.ResponseWriter, r *http.Request) {
	if err := a.db.view(func(*tx) error { return nil }); err != nil {
		a.fail(w, r, refuse(http.StatusServiceUnavailable, "the database is closed"))
		return
	}
	reply(w, map[string]string{"status": "ok"})
}

// A call is a request about a table by an account.
type call struct {
	table   *Table
	id      []string // of the object
	account *Account
	w       http.ResponseWriter
	r       *http.Request
}

// configure lets accounts through to do.
func (a *api) configure(t *Table, do func(call) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := call{table: t, w: w, r: r}
		for _, field := range t.Key {
			if part := r.PathValue(field); part != "" {
				c.id = append(c.id, part)
			}
		}
		err := a.db.view(func(tx *tx) error {
			b, problem := tx.authenticate(r, scopeAccount)
			if problem != nil {
				return problem
			}
			c.account = b.(*Account)
			return nil
		})
		if err == nil {
			err = do(c)
		}
		if err != nil {
			a.fail(w, r, err)
		}
	}
}

func (a *api) list(c call) error {
	list, err := a.db.List(c.table, c.r.URL.Query())
	if err == nil {
		reply(c.w, list)
	}
	return err
}

func (a *api) show(c call) error {
	object, err := a.db.Show(c.table, c.id...)
	if err == nil {
		reply(c.w, object)
	}
	return err
}

func (a *api) create(c call) error {
	body, err := io.ReadAll(c.r.Body)
	if err != nil {
		return err
	}
	object, err := a.db.Create(c.table, body, c.account.ID)
	if err == nil {
		a.log.Info("object created", "object", object.(record).title(), "account", c.account.ID)
		reply(c.w, object)
	}
	return err
}

func (a *api) change(c call) error {
	body, err := io.ReadAll(c.r.Body)
	if err != nil {
		return err
	}
	if err = a.db.Update(c.table, body, c.id...); err == nil {
		a.log.Info("object changed", "table", c.table.Name, "id", strings.Join(c.id, "/"), "account", c.account.ID)
		c.w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (a *api) remove(c call) error {
	err := a.db.Delete(c.table, c.id...)
	if err == nil {
		a.log.Info("object deleted", "table", c.table.Name, "id", strings.Join(c.id, "/"), "account", c.account.ID)
		c.w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// fail answers with an error.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	var refused *Error
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &refused):
	case errors.As(err, &long):
		refused = refuse(http.StatusRequestEntityTooLarge, "the request is longer than %d bytes", long.Limit)
	default:
		a.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		refused = refuse(http.StatusInternalServerError, "the request failed on the server: see its log")
	}
	if refused.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(refused.Status)
	json.NewEncoder(w).Encode(refused)
}

func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}
