package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"flexfs/meta"
	"flexfs/meta/engine"
)

// The window is the part of the past that can be told. It begins at the second
// since which all changes were recorded, and moves on as their records are
// purged. Two counters keep it: counterPast is its beginning, counterSecond the
// latest second in which something was changed, so that time never goes back,
// not even when the server is started anew.

// A period is a time during which the retention was the same. It is the same
// for all changes of one second.
type period struct {
	from      int64
	retention time.Duration
}

// maxPeriods bounds the periods that are remembered: changes that are under way
// are of the last ones.
const maxPeriods = 16

// now returns the second for history and delayed work. It never goes back.
func (v *volume) now() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	second := time.Now().Unix()
	if len(v.periods) == 0 { // the last second of the server before this one is not used again
		second = max(second, v.second+1)
	}
	if second <= v.second {
		return v.second
	}
	v.second = second
	n := len(v.periods)
	if r := v.config.Load().Retention; n == 0 || v.periods[n-1].retention != r {
		v.periods = append(v.periods[max(0, n-maxPeriods+1):n:n], period{second, r})
	}
	return v.second
}

// retention returns how long what is changed in a second is kept.
func (v *volume) retention(second int64) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.config.Load().Retention
	for i := len(v.periods) - 1; i >= 0; i-- {
		r = v.periods[i].retention
		if v.periods[i].from <= second {
			break
		}
	}
	return r
}

// keep returns until when what is given up in a second is kept: until its history
// is purged, and then as long as a reader may go on with what it was told. It is
// never collected if the past is kept for ever.
func (v *volume) keep(second int64) int64 {
	retention := v.retention(second)
	if retention < 0 {
		return never
	}
	return purgedAt(second, retention) + 1 + ceilSeconds(v.srv.cfg.Keep)
}

// purgedAt returns when the history of a second is purged.
func purgedAt(second int64, retention time.Duration) int64 {
	if retention < 0 {
		return never
	}
	return second + ceilSeconds(retention) + 1
}

func ceilSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

const never = 1<<63 - 1

// errUnstamped: a change is the first of its second and has not locked the clock.
var errUnstamped = errors.New("tree: the clock is not locked")

// clockKey is locked by those who change the counters of the window.
func (v *volume) clockKey() []byte { return v.counterKey(counterSecond) }

// stamp notes the second of a change, if it is the first one of it: so it is
// known before anything that happened in it. Whether history is recorded changes
// with a second only.
func (c *change) stamp(locked bool) error {
	if c.v.stampedAt(c.second) {
		return nil
	}
	if !locked {
		return errUnstamped
	}
	if err := c.Put(c.v.clockKey(), binary.BigEndian.AppendUint64(nil, uint64(c.second))); err != nil {
		return err
	}
	since, err := c.v.counter(c, counterPast)
	if err != nil {
		return err
	}
	switch {
	case c.retention == 0 && since != 0:
		err = c.Delete(c.v.counterKey(counterPast))
	case c.retention != 0 && since == 0:
		err = c.Put(c.v.counterKey(counterPast), binary.BigEndian.AppendUint64(nil, uint64(c.second)))
	}
	c.stamped = true
	return err
}

// stampedAt tells whether a change of a second was noted.
func (v *volume) stampedAt(second int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stamped >= second
}

// loadClock reads the second at which the server before this one left off.
func (v *volume) loadClock(r engine.Reader) error {
	var err error
	v.second, err = v.counter(r, counterSecond)
	v.stamped = v.second
	return err
}

// purge deletes history records that are old enough, and with them moves the
// beginning of the window.
func (v *volume) purge(ctx context.Context, tasks []task) error {
	commit, err := v.srv.cfg.Engine.Update(ctx, [][]byte{v.clockKey()}, func(tx engine.Tx) error {
		since, err := v.counter(tx, counterPast)
		if err != nil {
			return err
		}
		last := since
		for _, t := range tasks {
			hkey := append(t.key[:4:4], t.key[14:]...)
			_, second, err := splitHistory(hkey)
			if err == nil {
				err = tx.Delete(t.key)
			}
			if err == nil {
				err = tx.Delete(hkey)
			}
			if err != nil {
				return err
			}
			last = max(last, second)
		}
		if since == 0 || last == since {
			return nil
		}
		return tx.Put(v.counterKey(counterPast), binary.BigEndian.AppendUint64(nil, uint64(last)))
	})
	if err != nil {
		return err
	}
	return v.srv.durable(commit) // before what only the past needs is deleted
}

// thaw gives the delayed work that was never to be done a time, after a retention
// without end has got one. History goes first, as ever.
func (v *volume) thaw(ctx context.Context) error {
	retention := v.config.Load().Retention
	if retention < 0 {
		return nil
	}
	var tasks []task
	var last int64 // the latest time at which something is due
	err := v.srv.cfg.Engine.View(ctx, func(r engine.Reader) (err error) {
		frozen := v.delayedKey(never, 0)[:13]
		if tasks, err = tasksIn(r, append(frozen[:13:13], delayedHistory), after(frozen)); err != nil {
			return err
		}
		if len(tasks) == 0 || tasks[0].kind != delayedHistory {
			tasks, err = tasksIn(r, frozen, after(frozen))
		}
		if err != nil || len(tasks) == 0 {
			return err
		}
		return r.Scan(v.key(tableDelayed), frozen, true, func(key, _ []byte) (bool, error) {
			last = int64(binary.BigEndian.Uint64(key[5:]))
			return false, nil
		})
	})
	if err != nil || len(tasks) == 0 {
		return err
	}
	history := tasks[0].kind == delayedHistory
	_, err = v.srv.cfg.Engine.Update(ctx, nil, func(tx engine.Tx) error {
		for _, t := range tasks {
			if (t.kind == delayedHistory) != history {
				break
			}
			due := max(v.now()+ceilSeconds(retention)+ceilSeconds(v.srv.cfg.Keep)+2, last+1)
			if history {
				_, second, err := splitHistory(append(t.key[:4:4], t.key[14:]...))
				if err != nil {
					return err
				}
				due = purgedAt(second, retention)
			}
			if err := tx.Delete(t.key); err != nil {
				return err
			}
			if err := tx.Put(append(v.delayedKey(due, t.kind), t.key[14:]...), t.value); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// closeSecond waits until a second is over and everything that changed in it is
// visible. It refuses one that is to come.
func (v *volume) closeSecond(ctx context.Context, second int64) error {
	now := v.now()
	if second > now {
		return refuse(syscall.EINVAL, "%s is to come: the metadata service has %s", formatSecond(second), formatSecond(now))
	}
	for range 50 {
		if v.now() > second {
			v.writing.Lock() // whoever writes for an earlier second has finished then
			//lint:ignore SA2001 whoever held it has finished, and that is all
			v.writing.Unlock()
			return nil
		}
		pause(100*time.Millisecond, ctx.Done())
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return refuse(syscall.EAGAIN, "the clock of the metadata service was set back: %s is not over yet", formatSecond(second))
}

// pastSecond returns the second whose end a client asks to see. at is that
// second, or if negative how many seconds ago it was.
func (v *volume) pastSecond(ctx context.Context, at int64) (int64, error) {
	if at < 0 {
		at += v.now()
	}
	if err := v.closeSecond(ctx, at); err != nil {
		return 0, err
	}
	var c *change // the window may be about to open or close
	if _, err := v.update(ctx, nil, &meta.Request{}, nil, &c, func(*change) error { return nil }); err != nil {
		return 0, err
	}
	return at, v.view(ctx, at, func(engine.Reader) error { return nil })
}

// remembers refuses a second that is not in the window.
func (v *volume) remembers(r engine.Reader, second int64) error {
	since, err := v.counter(r, counterPast)
	switch {
	case err != nil:
		return err
	case since == 0:
		return refuse(syscall.ESTALE, "the volume keeps no past: its retention is 0")
	case second < since:
		return refuse(syscall.ESTALE, "the past of %s is not kept: the earliest that is, is %s", formatSecond(second), formatSecond(since))
	}
	return nil
}

func formatSecond(second int64) string { return time.Unix(second, 0).UTC().Format(time.RFC3339) }

// view calls fn with a state of the volume: as it is, or at the end of a second.
func (v *volume) view(ctx context.Context, second int64, fn func(engine.Reader) error) error {
	return v.srv.cfg.Engine.View(ctx, func(r engine.Reader) error {
		if second == 0 {
			return fn(r)
		}
		if err := v.remembers(r, second); err != nil {
			return err
		}
		return fn(&past{r, second})
	})
}
