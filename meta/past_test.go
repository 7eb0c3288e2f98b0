package meta_test

import (
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/meta"
)

// What was two hours ago is asked for once: a new session sees the same second,
// and when that is not kept any more the Client says so and asks no more.
func TestAClientOfThePastStaysAtItsSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newToy()
		var mu sync.Mutex
		var asked []int64
		kept := true
		h.hello = func(req *meta.Request) *meta.Reply {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, req.At)
			if !kept {
				return &meta.Reply{Errno: syscall.ESTALE, Msg: "it is not kept"}
			}
			return nil
		}
		h.past = 1000
		c := connect(t, direct(t, h), meta.ClientConfig{At: -7200})
		h.forget()
		time.Sleep(time.Minute)
		if got := c.Volume().At; got != 1000 {
			t.Errorf("it is at second %d", got)
		}
		mu.Lock()
		kept = false
		mu.Unlock()
		h.forget()
		time.Sleep(time.Minute)
		for range 2 {
			var refused *meta.Error
			if _, err := c.Do(t.Context(), &meta.Request{Op: meta.OpGetattr, Ino: 1}); !errors.As(err, &refused) || refused.Errno != syscall.ESTALE || refused.Msg != "it is not kept" {
				t.Errorf("after its second is gone: %v", err)
			}
		}
		if c.LeaseValid() {
			t.Error("what is cached is believed")
		}
		mu.Lock()
		defer mu.Unlock()
		// The session that is resumed says its second too.
		if want := []int64{-7200, 1000, 1000, 1000, 1000}; !slices.Equal(asked, want) {
			t.Errorf("it asked for %v, want %v", asked, want)
		}
	})
}
