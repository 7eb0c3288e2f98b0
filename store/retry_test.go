package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/storetest"
)

func TestRetry(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		// Every other operation fails. With many callers at once one of them can
		// meet the failures several times in a row, but not so often.
		return store.Retry(&flaky{Store: mem.New(t)}, 40, time.Nanosecond)
	})
}

var errFlaky = errors.New("flaky")

func TestRetryTriesUpToNTimes(t *testing.T) {
	for failures := range 6 {
		s := &stub{}
		for range failures {
			s.errs = append(s.errs, errFlaky)
		}
		err := store.Retry(s, 4, 0).Put(t.Context(), store.Key{}, nil)
		wantCalls, ok := failures+1, failures < 4
		if !ok {
			wantCalls = 4
		}
		if s.calls != wantCalls || (err == nil) != ok {
			t.Errorf("with %d failures: %d calls, want %d; %v", failures, s.calls, wantCalls, err)
		}
		if err != nil && (!errors.Is(err, errFlaky) || !strings.Contains(err.Error(), "4 attempts")) {
			t.Errorf("the error is %v: it should wrap the last one and tell how many there were", err)
		}
	}
}

func TestRetryReturnsAnswersAtOnce(t *testing.T) {
	for _, answer := range []error{store.ErrNotExist, store.ErrCorrupt, fs.ErrPermission, errors.ErrUnsupported} {
		s := &stub{errs: []error{fmt.Errorf("get: %w", answer)}}
		if _, err := store.Retry(s, 4, time.Hour).Get(t.Context(), store.Key{}, 0, -1); !errors.Is(err, answer) || s.calls != 1 {
			t.Errorf("after %q: %d calls and %v", answer, s.calls, err)
		}
	}
}

func TestRetryEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s := &stub{errs: []error{errFlaky, errFlaky, errFlaky}}
		start := time.Now()
		err := store.Retry(s, 4, 10*time.Second).Delete(ctx, store.Key{})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errFlaky) || s.calls != 1 || time.Since(start) != time.Second {
			t.Errorf("%v after %v and %d calls", err, time.Since(start), s.calls)
		}
	})
}

func TestThePausesOfRetryGrowAndDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		totals := make(map[time.Duration]bool)
		for range 20 {
			s := &stub{}
			var times []time.Time
			for range 9 {
				s.errs = append(s.errs, errFlaky)
			}
			err := store.Retry(&timed{s, &times}, 10, 100*time.Millisecond).Put(t.Context(), store.Key{}, nil)
			if err != nil || len(times) != 10 {
				t.Fatalf("%v after %d calls", err, len(times))
			}
			pause := 100 * time.Millisecond
			for i := 1; i < len(times); i++ {
				if d := times[i].Sub(times[i-1]); d < pause/2 || d > pause {
					t.Errorf("pause %d took %v, want between half and all of %v", i, d, pause)
				}
				pause = min(2*pause, 10*time.Second)
			}
			totals[times[9].Sub(times[0])] = true
		}
		if len(totals) < 10 {
			t.Errorf("20 retries took only %d different times", len(totals))
		}
	})
}

// timed notes when it is put to.
type timed struct {
	store.Store
	times *[]time.Time
}

func (s *timed) Put(ctx context.Context, key store.Key, data []byte) error {
	*s.times = append(*s.times, time.Now())
	return s.Store.Put(ctx, key, data)
}

func TestRetryDoesNotBelieveMoreBytesThanItAskedFor(t *testing.T) {
	s := &stub{data: []byte("too many")}
	if data, err := store.Retry(s, 2, 0).Get(t.Context(), store.Key{}, 0, 3); err == nil || s.calls != 2 {
		t.Errorf("Get of 3 bytes returned %q after %d calls", data, s.calls)
	}
}
