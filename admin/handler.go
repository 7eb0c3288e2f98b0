package admin

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	bolterrors "go.etcd.io/bbolt/errors"
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
	routes := a.routes()
	a.document = document(routes)
	for path, m := range pathsOf(routes) {
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

	document []byte // see openapi.go
}

func (a *api) routes() []route {
	list := []route{
		{method: "GET", path: "/v1/health", answer: "Health", handle: a.health,
			summary: "Tell whether requests can be served"},
		{method: "GET", path: "/v1/openapi.json", answer: "Document", handle: a.serveDocument,
			summary: "Return this document"},
		{method: "POST", path: "/v1/enrol", scopes: []string{scopeProxyGroup, scopeMetaStore},
			body: "Enrolment", answer: "Enrolled", errors: []int{409}, handle: a.enrol,
			summary: "Tell where a server is and which key it has; a key other than the known one is refused"},
		{method: "POST", path: "/v1/proxies/report", scopes: []string{scopeProxyGroup},
			body: "ProxyReport", answer: "ReportAnswer", handle: a.report,
			summary: "Tell how a proxy is; the last report of each is kept in memory, and shown with the group"},
		a.settingsRoute("mount", scopeVolumeToken, "MountSettings"),
		{method: "POST", path: "/v1/settings/mount/secret", scopes: []string{scopeVolumeToken},
			body: "Secret", errors: []int{409}, handle: a.registerSecret,
			summary: "Register the secret of an encrypted volume, once, with a token that may write; another than the registered one is refused"},
		a.settingsRoute("proxy", scopeProxyGroup, "ProxySettings"),
		a.settingsRoute("meta", scopeMetaStore, "MetaSettings"),
	}
	list = append(list, a.ticketKeyRoutes()...)
	for _, t := range Tables {
		list = append(list, a.tableRoutes(t)...)
	}
	return list
}

func (a *api) settingsRoute(who, scope, schema string) route {
	return route{method: "GET", path: "/v1/settings/" + who, scopes: []string{scope},
		answer: schema, errors: []int{400}, settings: true, handle: a.serveSettings(scope),
		query: []Field{{Name: "wait", Kind: KindString,
			Doc: "with If-None-Match: how long to wait for a change, like 30s; at most 1m"}},
		summary: "Return what a " + who + " needs, or wait until that changes"}
}

func (a *api) tableRoutes(t *Table) []route {
	account, schema := []string{scopeAccount}, t.typeName()
	return []route{
		{method: "GET", path: t.path(), scopes: account, query: t.filterFields(), answer: schema, list: true, errors: []int{400, 404},
			handle: a.configure(t, a.list), summary: "List all, without secrets, or those that match: " + t.Name},
		{method: "POST", path: t.path(), scopes: account, body: "New" + schema, answer: schema, errors: []int{409},
			handle: a.configure(t, a.create), summary: "Create a " + t.Singular},
		{method: "GET", path: t.pathOfOne(), scopes: account, answer: schema, errors: []int{404},
			handle: a.configure(t, a.show), summary: "Show a " + t.Singular},
		{method: "PUT", path: t.pathOfOne(), scopes: account, body: "Change" + schema, errors: []int{404, 409},
			handle: a.configure(t, a.change), summary: "Change the given fields of a " + t.Singular + "; others may be sent as they are"},
		{method: "DELETE", path: t.pathOfOne(), scopes: account, query: t.deleteFields(), errors: []int{400, 404, 409},
			handle: a.configure(t, a.remove), summary: "Delete a " + t.Singular + ", unless it is in use"},
	}
}

func (a *api) ticketKeyRoutes() []route {
	const path = "/v1/configure/ticket-keys"
	account := []string{scopeAccount}
	return []route{
		{method: "GET", path: path, scopes: account, answer: "TicketKey", list: true,
			handle: a.configure(&Table{}, a.listTicketKeys), summary: "List the keys that sign tickets, not themselves but their ids"},
		{method: "POST", path: path, scopes: account, body: "Rotation", answer: "TicketKey", list: true, errors: []int{409},
			handle: a.configure(&Table{}, a.rotateTicketKey), summary: "Make a new key that signs tickets; the others end when the tickets by them have, or at once"},
	}
}

func (t *Table) path() string { return "/v1/configure/" + t.Name }

// pathOfOne is the path of an object, its key in braces.
func (t *Table) pathOfOne() string {
	return t.path() + "/{" + strings.Join(t.Key, "}/{") + "}"
}

func (a *api) dispatch(m methods) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == "HEAD" {
			method = "GET"
		}
		handle, ok := m[method]
		if !ok {
			w.Header().Set("Allow", m.names())
			a.fail(w, r, refuse(http.StatusMethodNotAllowed, "%s is not for %s; there are %s", r.Method, r.URL.Path, m.names()))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		handle(w, r)
	}
}

// health answers whether requests can be served.
func (a *api) health(w http.ResponseWriter, r *http.Request) {
	if err := a.db.view(func(*tx) error { return nil }); err != nil {
		a.fail(w, r, err)
		return
	}
	reply(w, Health{"ok"})
}

// Health is the answer of a server that can serve requests.
type Health struct {
	Status string `json:"status"` // ok
}

func (a *api) serveDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(a.document)
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
	force, err := forceOf(c)
	if err != nil {
		return err
	}
	err = a.db.Delete(c.table, force, c.id...)
	if err == nil {
		a.log.Info("object deleted", "table", c.table.Name, "id", strings.Join(c.id, "/"), "account", c.account.ID)
		c.w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func forceOf(c call) (bool, error) {
	text := c.r.URL.Query().Get("force")
	if text == "" {
		return false, nil
	}
	force, err := strconv.ParseBool(text)
	if err != nil {
		return false, bad("force", "must be true or false")
	}
	return force, nil
}

// fail answers with an error.
func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	var refused *Error
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &refused):
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		refused = refuse(http.StatusServiceUnavailable, "admin is ending: try again")
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
