package remote

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

// nominal is how the tests' servers check tickets: the text of one is the volume
// that it is for.
func nominal(text string) (ticket.Ticket, error) {
	return ticket.Ticket{Volume: text, Write: true, Expires: time.Now().Add(time.Hour).Unix()}, nil
}

// anyVolume shows, with each request, a nominal ticket for the volume that it is
// about: storetest uses several, a Client only one.
type anyVolume struct{ http.RoundTripper }

func (a anyVolume) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	volume, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, blocksPath), "/")
	r.Header.Set("Authorization", "Bearer "+volume)
	return a.RoundTripper.RoundTrip(r)
}

// serving returns a function for Server.Store: all volumes are in s.
func serving(s store.Store) func(store.Volume) (store.Store, error) {
	return func(store.Volume) (store.Store, error) { return s, nil }
}

func TestClientAndHandlerAreAStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		srv := httptest.NewServer(Handler(Server{Tickets: nominal, Store: serving(mem.New(t))}))
		t.Cleanup(srv.Close)
		return &Client{
			URL:    srv.URL,
			HTTP:   &http.Client{Transport: anyVolume{srv.Client().Transport}},
			Ticket: func() string { return "" },
		}
	})
}
