package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxAnswer bounds an answer of admin, in bytes: settings of a metadata server
// with 10,000 volumes have some 10 MB.
const maxAnswer = 64 << 20

// A Client reaches admin's API. Its methods may be called concurrently.
// Errors are [*Error] where admin refused the request; any other error means
// that nobody knows whether it was done.
type Client struct {
	URL   string       // like https://admin.example.com:443
	Token string       // which one, depends on the request
	HTTP  *http.Client // nil: http.DefaultClient
}

// An Object is a type with a table.
type Object interface {
	Account | Provider | Region | BlockStore | MetaStore | ProxyGroup | Volume | VolumeProxyGroup | VolumeToken
}

// TableOf returns the table of a type of objects.
func TableOf[T Object]() *Table {
	for _, t := range Tables {
		if _, ok := any(t.record()).(*T); ok {
			return t
		}
	}
	return nil // a test makes sure that it is not
}

// List returns the objects of a table that match the filter, fields and their
// values as text, without secrets.
func List[T Object](ctx context.Context, c *Client, filter url.Values) ([]T, error) {
	var list []T
	return list, c.List(ctx, TableOf[T](), filter, &list)
}

// Get returns an object.
func Get[T Object](ctx context.Context, c *Client, id ...string) (T, error) {
	var object T
	return object, c.Get(ctx, TableOf[T](), &object, id...)
}

// Create makes an object from fields, of type T or a map for those that are
// not to have their defaults, and returns it as it became.
func Create[T Object](ctx context.Context, c *Client, fields any) (T, error) {
	var object T
	return object, c.Create(ctx, TableOf[T](), fields, &object)
}

// Update changes fields of an object.
func Update[T Object](ctx context.Context, c *Client, fields map[string]any, id ...string) error {
	return c.Update(ctx, TableOf[T](), fields, id...)
}

// Delete removes an object.
func Delete[T Object](ctx context.Context, c *Client, id ...string) error {
	return c.Delete(ctx, TableOf[T](), id...)
}

// List is [List] for callers that know the table only; it fills what list
// points to.
func (c *Client) List(ctx context.Context, t *Table, filter url.Values, list any) error {
	path := t.path()
	if len(filter) > 0 {
		path += "?" + filter.Encode()
	}
	return c.do(ctx, "GET", path, nil, list)
}

// Get is [Get] for callers that know the table only.
func (c *Client) Get(ctx context.Context, t *Table, object any, id ...string) error {
	path, err := t.pathTo(id)
	if err != nil {
		return err
	}
	return c.do(ctx, "GET", path, nil, object)
}

// Create is [Create] for callers that know the table only.
func (c *Client) Create(ctx context.Context, t *Table, fields, object any) error {
	return c.do(ctx, "POST", t.path(), fields, object)
}

// Update is [Update] for callers that know the table only.
func (c *Client) Update(ctx context.Context, t *Table, fields any, id ...string) error {
	path, err := t.pathTo(id)
	if err != nil {
		return err
	}
	return c.do(ctx, "PUT", path, fields, nil)
}

// Delete is [Delete] for callers that know the table only.
func (c *Client) Delete(ctx context.Context, t *Table, id ...string) error {
	path, err := t.pathTo(id)
	if err != nil {
		return err
	}
	return c.do(ctx, "DELETE", path, nil, nil)
}

// DeleteByForce removes an object and what uses it, see [Table.Force].
func (c *Client) DeleteByForce(ctx context.Context, t *Table, id ...string) error {
	path, err := t.pathTo(id)
	if err != nil {
		return err
	}
	return c.do(ctx, "DELETE", path+"?force=true", nil, nil)
}

// pathTo refuses what would be the path of something else.
func (t *Table) pathTo(id []string) (string, error) {
	path := t.path()
	for _, part := range id {
		if part == "" || part == "." || part == ".." {
			return "", refuse(http.StatusNotFound, "%s %q does not exist", t.Singular, part)
		}
		path += "/" + url.PathEscape(part)
	}
	if len(id) != len(t.Key) {
		return "", refuse(http.StatusNotFound, "a %s is named by %s", t.Singular, strings.Join(t.Key, " and "))
	}
	return path, nil
}

// Enrol tells admin where the bearer of the token is and which key it has.
func (c *Client) Enrol(ctx context.Context, e Enrolment) (Enrolled, error) {
	var answer Enrolled
	return answer, c.do(ctx, "POST", "/v1/enrol", e, &answer)
}

// Report tells admin how a proxy of the group whose token c has is.
func (c *Client) Report(ctx context.Context, r ProxyReport) (ReportAnswer, error) {
	var answer ReportAnswer
	return answer, c.do(ctx, "POST", "/v1/proxies/report", r, &answer)
}

// TicketKeys returns the keys that sign tickets, the newest last.
func (c *Client) TicketKeys(ctx context.Context) (list []TicketKey, err error) {
	return list, c.do(ctx, "GET", "/v1/configure/ticket-keys", nil, &list)
}

// RotateTicketKey makes a new key that signs tickets, and returns all.
func (c *Client) RotateTicketKey(ctx context.Context, r Rotation) (list []TicketKey, err error) {
	return list, c.do(ctx, "POST", "/v1/configure/ticket-keys", r, &list)
}

// RegisterSecret tells admin which secret the blocks of an encrypted volume
// are sealed with, for the bearer of a token of the volume. That it is not the
// volume's is an [*Error] of status 409.
func (c *Client) RegisterSecret(ctx context.Context, secretID string) error {
	return c.do(ctx, "POST", "/v1/settings/mount/secret", Secret{secretID}, nil)
}

// do sends a request and decodes the answer into out, if that is not nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("admin: %w", err)
		}
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	return c.send(req, func(resp *http.Response, text []byte) error {
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(text, out); err != nil {
			return fmt.Errorf("admin: answer of %s: %w", req.URL.Redacted(), err)
		}
		return nil
	})
}

func (c *Client) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// send calls answer with a response that is not a refusal.
func (c *Client) send(req *http.Request, answer func(*http.Response, []byte) error) error {
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("admin: answer of %s: %w", req.URL.Redacted(), err)
	}
	if len(text) > maxAnswer {
		return fmt.Errorf("admin: answer of %s is longer than %d bytes", req.URL.Redacted(), maxAnswer)
	}
	if resp.StatusCode >= 400 {
		return refusal(req, resp, text)
	}
	return answer(resp, text)
}

// refusal makes the error of an answer. One that is not admin's JSON comes
// from something in between, or the address is not admin's.
func refusal(req *http.Request, resp *http.Response, text []byte) error {
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Message == "" {
		return fmt.Errorf("admin: %s answered %s: is that the address of flexfs admin?", req.URL.Redacted(), resp.Status)
	}
	e.Status = resp.StatusCode
	return e
}

// A Fetched is settings as they were fetched last.
type Fetched[T MountSettings | ProxySettings | MetaSettings] struct {
	Settings T
	ETag     string
	Changed  bool // since the fetch before
}

// Fetch returns the settings of the bearer of c's token. With the last ones
// given and a wait of up to a minute, it returns as soon as they differ from
// those, or when the wait is over; the ticket is new in any case.
func Fetch[T MountSettings | ProxySettings | MetaSettings](ctx context.Context, c *Client, last Fetched[T], wait time.Duration) (Fetched[T], error) {
	path := settingsPath[T]()
	if wait > 0 {
		path += "?wait=" + wait.String()
	}
	req, err := c.request(ctx, "GET", path, nil)
	if err != nil {
		return last, err
	}
	if last.ETag != "" {
		req.Header.Set("If-None-Match", last.ETag)
	}
	next := last
	err = c.send(req, func(resp *http.Response, text []byte) error {
		if resp.StatusCode == http.StatusNotModified {
			next.Changed = false
			return renewTicket(&next.Settings, resp.Header)
		}
		next = Fetched[T]{ETag: resp.Header.Get("ETag"), Changed: true}
		if err := json.Unmarshal(text, &next.Settings); err != nil || next.ETag == "" {
			return fmt.Errorf("admin: answer of %s is not settings: %v", req.URL.Redacted(), err)
		}
		return nil
	})
	if err != nil {
		return last, err
	}
	return next, nil
}

func settingsPath[T any]() string {
	switch any(*new(T)).(type) {
	case MountSettings:
		return "/v1/settings/mount"
	case ProxySettings:
		return "/v1/settings/proxy"
	}
	return "/v1/settings/meta"
}

func renewTicket(settings any, h http.Header) error {
	s, ok := settings.(*MountSettings)
	if !ok {
		return nil
	}
	expires, err := time.Parse(time.RFC3339, h.Get(headerExpires))
	if err != nil {
		return errors.New("admin: an answer without a new ticket")
	}
	s.Ticket, s.Expires = h.Get(headerTicket), expires
	return nil
}

// Follow fetches settings until ctx ends, and calls apply with each answer,
// changed or not: the ticket is new. It asks again at once, and admin answers
// when something changed or after the time every (at most a minute). While
// admin cannot be reached it tries again in that time, and says so in the log
// once.
func Follow[T MountSettings | ProxySettings | MetaSettings](ctx context.Context, c *Client, last Fetched[T], every time.Duration, log *slog.Logger, apply func(Fetched[T])) {
	away := false
	for {
		began := time.Now()
		bounded, cancel := context.WithTimeout(ctx, every+answerTime)
		next, err := Fetch(bounded, c, last, every)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !away {
				log.Warn("admin gives no settings, going on with the last ones", "url", c.URL, "err", err)
			}
			away = true
		default:
			if away {
				log.Info("admin gives settings again", "url", c.URL)
			}
			away = false
			last = next
			apply(next)
		}
		// An answer that came early without news, or changes in a row, must
		// not make a busy loop.
		pause := minPause
		if err != nil {
			pause = every
		}
		if !next.Changed {
			pause = max(pause, every-time.Since(began))
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// answerTime is how long admin may take to answer, beyond the wait asked for.
const answerTime = 10 * time.Second

// minPause is between two requests for settings.
const minPause = 50 * time.Millisecond

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
