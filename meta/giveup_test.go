package meta_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// While the service is away operations wait; after the time to give up they fail,
// and those that begin then fail at once; when it is back all is as before.
func TestAClientGivesUpAServiceThatStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 5 * time.Minute
		h := newToy()
		local := direct(t, h)
		var away atomic.Bool
		c := connect(t, nil, meta.ClientConfig{GiveUp: limit, Dial: func(ctx context.Context) (net.Conn, error) {
			if away.Load() {
				return nil, errors.New("refused")
			}
			return local.Dial(ctx)
		}})
		if got := c.Away(); got != 0 {
			t.Errorf("a service that is there is away for %v", got)
		}
		away.Store(true)
		local.Close()
		local = direct(t, h)
		synctest.Wait()

		// For a minute: it is waited for.
		done := make(chan error, 1)
		go func() { done <- makeName(t.Context(), c, "a") }()
		time.Sleep(time.Minute)
		if got := c.Away(); got != time.Minute {
			t.Errorf("it is away for %v, want a minute", got)
		}
		away.Store(false)
		if err := <-done; err != nil {
			t.Errorf("an operation that a minute without the service had to wait: %v", err)
		}

		// For good.
		away.Store(true)
		local.Close()
		local = direct(t, h)
		synctest.Wait()
		began := time.Now()
		if err := makeName(t.Context(), c, "b"); err == nil || time.Since(began).Round(time.Second) != limit {
			t.Errorf("a change failed with %v after %v, want an error after %v", err, time.Since(began), limit)
		}
		began = time.Now()
		_, err := c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs})
		var refused *meta.Error
		if err == nil || errors.As(err, &refused) || time.Since(began) > time.Millisecond {
			t.Errorf("the next failed with %v after %v, want an error of its own at once", err, time.Since(began))
		}
		away.Store(false)
		time.Sleep(10 * time.Second)
		if err := makeName(t.Context(), c, "c"); err != nil || c.Away() != 0 {
			t.Errorf("the service is back, and a change fails: %v (away for %v)", err, c.Away())
		}
	})
}

// A service that is connected and does not answer is given up too.
func TestAClientGivesUpAnAnswerThatDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		over := make(chan struct{})
		defer close(over)
		h.serve = func(ctx context.Context, req *meta.Request) *meta.Reply {
			if req.Op == meta.OpStatfs {
				<-over
			}
			return nil
		}
		c := connect(t, direct(t, h), meta.ClientConfig{GiveUp: time.Minute})
		began := time.Now()
		if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpStatfs}); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want one that is no interruption", err)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("it took %v, want a minute", took)
		}
	})
}
