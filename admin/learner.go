package admin

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"flexfs/internal/tlspin"
)

// A Learner asks servers for their keys. One that did not enrol is pinned at
// first contact, and one that shows another key than its pin is noted, so that
// an operator sees it.
type Learner struct {
	DB  *DB
	Log *slog.Logger

	// Fetch returns the pin of the server at an address. Nil is
	// [tlspin.Fetch].
	Fetch func(ctx context.Context, addr string) (string, error)

	Every   time.Duration // between rounds for servers without a pin; 0 is 5 s
	Recheck time.Duration // between rounds for all; 0 is 5 min
}

// Bounds of a round.
const (
	maxFetches   = 8               // at a time
	fetchTimeout = 3 * time.Second // per server
)

// A server is one whose key matters.
type server struct {
	table  *Table
	id     int64
	addr   string
	pinned bool
}

// Run works until ctx ends. Between its rounds a change of the configuration
// begins one.
func (l *Learner) Run(ctx context.Context) error {
	every, recheck := l.Every, l.Recheck
	if every <= 0 {
		every = 5 * time.Second
	}
	if recheck <= 0 {
		recheck = 5 * time.Minute
	}
	var checked time.Time // all servers, last
	for {
		changed := l.DB.changes()
		all := time.Since(checked) >= recheck
		if all {
			checked = time.Now()
		}
		if err := l.round(ctx, all); err != nil && ctx.Err() == nil {
			l.Log.Error("keys of servers cannot be learnt", "err", err)
		}
		if !sleep(ctx, min(every, time.Second)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(every):
		}
	}
}

// round asks the servers without a pin, or all.
func (l *Learner) round(ctx context.Context, all bool) error {
	servers, err := l.DB.servers()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxFetches)
	for _, s := range servers {
		if s.pinned && !all || ctx.Err() != nil {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			l.ask(ctx, s)
		})
	}
	wg.Wait()
	return nil
}

func (l *Learner) ask(ctx context.Context, s server) {
	fetch := l.Fetch
	if fetch == nil {
		fetch = tlspin.Fetch
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	pin, err := fetch(ctx, s.addr)
	if err != nil {
		l.Log.Debug("server does not show its key", "address", s.addr, "err", err)
		return
	}
	if err := l.DB.noteKey(s, pin, l.Log); err != nil {
		l.Log.Error("key of server cannot be kept", "address", s.addr, "err", err)
	}
}

// servers are all that show a key.
func (db *DB) servers() (list []server, err error) {
	groups, stores := FindTable("proxy-groups"), FindTable("meta-stores")
	return list, db.view(func(tx *tx) error {
		inGroups := tx.each(groups, func(r record) error {
			g := r.(*ProxyGroup)
			for _, addr := range g.Addresses {
				if !g.NoSSL {
					list = append(list, server{groups, g.ID, addr, g.Pins[addr] != ""})
				}
			}
			return nil
		})
		return errors.Join(inGroups, tx.each(stores, func(r record) error {
			m := r.(*MetaStore)
			list = append(list, server{stores, m.ID, m.Address, m.Pin != ""})
			return nil
		}))
	})
}

// noteKey applies what a server showed, if the configuration still names it.
func (db *DB) noteKey(s server, pin string, log *slog.Logger) error {
	if err := checkPin(pin); err != nil {
		return err
	}
	var b bearer
	var news outcome
	err := db.update(func(tx *tx) error {
		r, err := tx.load(s.table, numKey(s.id))
		if r == nil || err != nil {
			return err
		}
		b = r.(bearer)
		if !names(b, s.addr) {
			return nil
		}
		_, news = enrolAt(b, Enrolment{s.addr, pin})
		return tx.put(s.table, r)
	})
	if err == nil && b != nil {
		logOutcome(log, news, b)
	}
	return err
}
