package modes

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"flexfs/admin"
	"flexfs/internal/ticket"
)

const (
	// refreshEvery is how long admin may keep a request for settings open when
	// nothing changes. A change is answered at once.
	refreshEvery = 10 * time.Second

	firstFetch = 10 * time.Second // for the settings at the start
)

// A feed is the settings of a program: from admin, and from the file with the
// last ones while admin is away.
type feed[T admin.MountSettings | admin.ProxySettings | admin.MetaSettings] struct {
	client *admin.Client
	file   string // "": they are not kept
	log    *slog.Logger
}

// first returns the settings to start with. What admin refuses is an error;
// if it does not answer, the last settings do.
func (f *feed[T]) first(ctx context.Context) (admin.Fetched[T], error) {
	within, cancel := context.WithTimeout(ctx, firstFetch)
	defer cancel()
	got, err := admin.Fetch(within, f.client, admin.Fetched[T]{}, 0)
	var refused *admin.Error
	switch {
	case err == nil:
		f.keep(got.Settings)
		return got, nil
	case errors.As(err, &refused) && refused.Status < 500:
		return got, fmt.Errorf("settings: %w", err)
	case f.file == "":
		return got, fmt.Errorf("settings: %w (a mount needs admin to start; later it goes on without)", err)
	}
	var noFile error
	if got.Settings, noFile = f.kept(); noFile != nil {
		return got, fmt.Errorf("settings: %w, and there are none from before (%v)", err, noFile)
	}
	f.log.Warn("admin does not answer, starting with the last settings", "file", f.file, "err", err)
	return got, nil
}

// kept returns the last settings.
func (f *feed[T]) kept() (last T, err error) {
	data, err := os.ReadFile(f.file)
	if err == nil {
		err = json.Unmarshal(data, &last)
	}
	return last, err
}

// follow calls apply whenever admin has answered, until ctx is done.
func (f *feed[T]) follow(ctx context.Context, last admin.Fetched[T], apply func(T)) {
	admin.Follow(ctx, f.client, last, refreshEvery, f.log, func(got admin.Fetched[T]) {
		if got.Changed {
			f.keep(got.Settings)
		}
		apply(got.Settings)
	})
}

// keep writes the file: it holds secrets.
func (f *feed[T]) keep(settings T) {
	if f.file == "" {
		return
	}
	if err := writeSecret(f.file, settings); err != nil {
		f.log.Warn("settings are not kept; a start while admin is away will fail", "file", f.file, "err", err)
	}
}

// ticketKeys are admin's keys for tickets, as last heard.
type ticketKeys struct {
	keys atomic.Pointer[[]ed25519.PublicKey]
}

func (t *ticketKeys) update(list [][]byte) {
	var keys []ed25519.PublicKey
	for _, k := range list {
		keys = append(keys, ed25519.PublicKey(k))
	}
	t.keys.Store(&keys)
}

// check verifies a ticket.
func (t *ticketKeys) check(text string) (ticket.Ticket, error) {
	return ticket.Verify(text, *t.keys.Load(), time.Now())
}
