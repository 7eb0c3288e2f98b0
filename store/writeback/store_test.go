package writeback

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"flexfs/store"
	"flexfs/store/storetest"
)

// play runs a test in a world of n nodes, which options change before they start.
func play(t *testing.T, n int, test func(t *testing.T, w *world), options ...func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, n)
		for _, option := range options {
			option(w)
		}
		stop := w.start()
		defer stop()
		time.Sleep(time.Second) // until the disks are scanned
		test(t, w)
	})
}

func (w *world) storeOf(name string) *Store {
	_, s := w.node(name).running()
	return s
}

func (w *world) setSlow(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow = d
}

func (w *world) setRefuse(refuse func(store.Key) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = refuse
}

func (w *world) setOrder(key store.Key, order []*node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.order[key] = order
}

func (w *world) putsOf(key store.Key) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.puts[key]
}

// stepsOf counts the steps of the kind so far.
func (w *world) stepsOf(kind string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[kind]
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		w := newWorld(t, 2)
		w.setSlow(0)
		for _, n := range w.nodes {
			n.disk.hold = true
		}
		t.Cleanup(w.start())
		return w.storeOf("P")
	})
}

func TestPutIsOnTwoAndThenInTheBucket(t *testing.T) {
	play(t, 3, func(t *testing.T, w *world) {
		w.setSlow(10 * time.Second)
		key, data := numbered(1)
		start := time.Now()
		if err := w.storeOf("P").Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 20*time.Millisecond {
			t.Errorf("Put took %v, as if it waited for the bucket", took)
		}
		for _, name := range []string{"P", "S"} {
			if got := w.node(name).serves(key); !bytes.Equal(got, data) {
				t.Errorf("%s does not have the block", name)
			}
		}
		if !w.storeOf("P").Pending(key) || w.storeOf("S").Pending(key) || w.storeOf("T").Pending(key) {
			t.Error("want the block to be pending on P alone")
		}
		time.Sleep(11 * time.Second)
		if got, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the bucket has %d bytes, error %v", len(got), err)
		}
		if w.storeOf("P").Pending(key) {
			t.Error("the block is pending though it is uploaded")
		}
		w.check()
		st := w.storeOf("P").Stats()
		if st.Acknowledged != 1 || st.AcknowledgedBytes != int64(len(data)) || st.Uploads != 1 || st.UploadedBytes != int64(len(data)) || st.Lag < 10*time.Second {
			t.Errorf("P counts %+v", st)
		}
		if st := w.storeOf("S").Stats(); st.Copies != 1 || st.Uploads+st.Found+st.Takeovers != 0 {
			t.Errorf("S counts %+v", st)
		}
		if w.stepsOf("read@P") != 0 || w.stepsOf("ask@S") != 0 {
			t.Errorf("the block was read %d times from the disk, and asked for %d times; want neither", w.stepsOf("read@P"), w.stepsOf("ask@S"))
		}
	})
}

func TestBlocksInMemoryAreBounded(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setSlow(10 * time.Second)
		s := w.storeOf("P")
		for i := range 20 {
			key, data := numbered(i) // of some 1000 bytes
			if err := s.Put(t.Context(), key, data); err != nil {
				t.Fatal(err)
			}
			w.ack(key, data)
		}
		if m := s.Stats().Memory; m > 5000 || m < 4000 {
			t.Errorf("%d bytes are in memory, want almost 5000", m)
		}
		time.Sleep(time.Minute)
		if n := w.stepsOf("read@P"); n != 16 {
			t.Errorf("%d blocks were read from the disk, want 16", n)
		}
		w.check()
	}, func(w *world) { w.memory = 5000 })
}

func TestWriteThrough(t *testing.T) {
	full := func(names ...string) func(*world) {
		return func(w *world) {
			for _, name := range names {
				w.node(name).setFull(true)
			}
		}
	}
	for _, test := range []struct {
		name    string
		nodes   int
		setUp   func(*world)
		counted func(Stats) int64
	}{
		{"no other member", 1, func(*world) {}, func(s Stats) int64 { return s.Alone }},
		{"no room here", 3, full("P"), func(s Stats) int64 { return s.NoRoom }},
		{"no room elsewhere", 3, full("S", "T"), func(s Stats) int64 { return s.Peer }},
		{"no room anywhere", 3, full("P", "S", "T"), func(s Stats) int64 { return s.NoRoom + s.Peer }},
		{"as the volume says", 3, func(w *world) { w.removeMember("P") }, func(s Stats) int64 { return s.Asked }},
		{"others freeze", 2, func(w *world) { w.node("S").suffer(harm{freeze: time.Minute}) }, func(s Stats) int64 { return s.Late }},
	} {
		t.Run(test.name, func(t *testing.T) {
			play(t, test.nodes, func(t *testing.T, w *world) {
				test.setUp(w)
				key, data := numbered(1)
				start := time.Now()
				if err := w.storeOf("P").Put(t.Context(), key, data); err != nil {
					t.Fatal(err)
				}
				w.ack(key, data)
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("Put took %v", took)
				}
				if _, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil {
					t.Errorf("the bucket does not have the block: %v", err)
				}
				if w.node("P").serves(key) != nil {
					t.Error("the block is dirty though the bucket has it")
				}
				if st := w.storeOf("P").Stats(); test.counted(st) != 1 || st.Acknowledged != 0 {
					t.Errorf("counted are %+v", st)
				}
				time.Sleep(3 * time.Minute)
				w.check()
				if n := w.putsOf(key); n != 1 {
					t.Errorf("the block was put into the bucket %d times", n)
				}
			})
		})
	}
}

func TestPutFailsIfAllFails(t *testing.T) {
	play(t, 3, func(t *testing.T, w *world) {
		w.setAway(true)
		for _, n := range w.nodes {
			n.setFull(true)
		}
		key, data := numbered(1)
		err := w.storeOf("P").Put(t.Context(), key, data)
		if !errors.Is(err, errNetwork) || !errors.Is(err, errFull) {
			t.Errorf("Put: %v, want what the disk and the bucket say", err)
		}
		if st := w.storeOf("P").Stats(); st.Waiting != 0 || st.Memory != 0 {
			t.Errorf("after a Put that failed, %d blocks wait and %d bytes are held", st.Waiting, st.Memory)
		}
	})
}

// One that fails when it is here but nowhere else comes to the bucket later.
func TestPutThatFailedHalfWay(t *testing.T) {
	play(t, 1, func(t *testing.T, w *world) {
		w.setAway(true)
		key, data := numbered(1)
		if err := w.storeOf("P").Put(t.Context(), key, data); !errors.Is(err, errNetwork) {
			t.Errorf("Put: %v, want what the bucket says", err)
		}
		w.setAway(false)
		time.Sleep(time.Minute)
		w.ack(key, data)
		w.check()
	})
}

func TestPutEndsWithItsContext(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		w.setAway(true)
		w.node("S").suffer(harm{freeze: time.Minute})
		key, data := numbered(1)
		start := time.Now()
		if err := w.storeOf("P").Put(ctx, key, data); err == nil {
			t.Error("Put succeeded without the other member and the bucket")
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("Put took %v, longer than its context", took)
		}
		w.setAway(false)
		time.Sleep(3 * time.Minute)
		w.check()
	})
}

func TestTheSameBlockAtTheSameTime(t *testing.T) {
	play(t, 3, func(t *testing.T, w *world) {
		key, data := numbered(1)
		var work sync.WaitGroup
		for i := range 20 {
			work.Go(func() {
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
				if err := w.storeOf([]string{"P", "S", "T"}[i%3]).Put(t.Context(), key, data); err != nil {
					t.Error(err)
				}
				w.ack(key, data)
			})
		}
		work.Wait()
		time.Sleep(2 * time.Minute)
		w.check()
	})
}

// A member that hears nothing asks, and believes an answer; it looks before it
// uploads.
func TestTakeover(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setSlow(50 * time.Second)
		w.mu.Lock()
		w.always["news"] = fault{lost: true}
		w.mu.Unlock()
		key, data := numbered(1)
		w.put(key, data)
		time.Sleep(45 * time.Second)
		if n := w.stepsOf("ask@S"); n != 2 {
			t.Errorf("S has asked %d times in 45 s, want 2", n)
		}
		if w.stepsOf("look@S") != 0 {
			t.Error("S looks for a block that P is going to upload")
		}
		time.Sleep(time.Minute)
		w.check()
		if st := w.storeOf("S").Stats(); st.Takeovers != 1 || st.Found != 1 || st.Uploads != 0 {
			t.Errorf("S counts %+v", st)
		}
	})
}

func TestTakeoverAtOnceIfThePeerIsDown(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.mu.Lock()
		w.on = once("upload@P#1", func() { w.node("P").suffer(harm{down: time.Hour}) })
		w.mu.Unlock()
		key, data := numbered(1)
		w.put(key, data)
		time.Sleep(4 * time.Second)
		if _, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil {
			t.Errorf("4 s after P died the bucket does not have its block: %v", err)
		}
		if n := w.stepsOf("ask@S"); n != 0 {
			t.Errorf("S has asked a dead member %d times", n)
		}
	})
}

// The copy is what saves a block that is damaged here.
func TestDamagedBlockIsNotUploaded(t *testing.T) {
	for _, drops := range []bool{false, true} {
		play(t, 2, func(t *testing.T, w *world) {
			w.setAway(true)
			w.node("P").disk.drops = drops
			key, data := numbered(1)
			w.put(key, data)
			w.node("P").suffer(harm{down: time.Millisecond, rot: true})
			time.Sleep(time.Second)
			w.setAway(false)
			time.Sleep(10 * time.Second)
			if w.storeOf("P").Pending(key) {
				t.Error("P says that it will upload a block that it cannot read")
			}
			if _, err := w.bucket.Get(t.Context(), key, 0, -1); err == nil {
				t.Error("the bucket has the block already; where from?")
			}
			if st := w.storeOf("P").Stats(); !drops && st.Lost != 1 {
				t.Errorf("P counts %d blocks as lost, want 1", st.Lost)
			}
			time.Sleep(time.Minute)
			w.check()
			if w.stepsOf("upload@S") != 1 {
				t.Errorf("S has uploaded the block %d times", w.stepsOf("upload@S"))
			}
		})
	}
}

func TestBucketAwayForAnHour(t *testing.T) {
	var log lines
	play(t, 3, func(t *testing.T, w *world) {
		w.setAway(true)
		for i := range 100 {
			key, data := numbered(i)
			if err := w.storeOf("P").Put(t.Context(), key, data); err != nil {
				t.Fatal(err)
			}
			w.ack(key, data)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		w.setAway(false)
		time.Sleep(30 * time.Second)
		for i := range 100 {
			key, _ := numbered(i)
			if _, err := w.bucket.Get(t.Context(), key, 0, 0); err != nil {
				t.Fatalf("30 s after the bucket came back it does not have %v", key)
			}
		}
		time.Sleep(time.Minute)
		w.check()
		if n := log.count("does not take blocks"); n < 30 || n > 150 {
			t.Errorf("%d lines tell that the bucket is away, want about one a minute", n)
		}
		if n := log.count(""); n > 300 {
			t.Errorf("%d lines were logged", n)
		}
	}, func(w *world) { w.log = slog.New(slog.NewTextHandler(&log, nil)) })
}

// lines counts lines of a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, string(p))
	return len(p), nil
}

func (l *lines) count(what string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

// A bucket that does not answer is left alone; those of other volumes are not.
func TestOneBucketDoesNotHoldUpAnother(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		play(t, 2, func(t *testing.T, w *world) {
			bad := make([]store.Volume, 10)
			for i := range bad {
				bad[i] = store.Volume{byte(i + 1)}
			}
			w.setRefuse(func(key store.Key) error {
				if key.Volume[1] != 0 {
					return nil
				}
				if hangs {
					time.Sleep(time.Hour)
				}
				return errNetwork
			})
			s := w.storeOf("P")
			w.setSlow(20 * time.Second) // how long the bucket is waited for
			for i := range 200 {
				key, data := numbered(i)
				key.Volume = bad[i%len(bad)]
				if err := s.Put(t.Context(), key, data); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(3 * time.Minute)
			w.setSlow(20 * time.Millisecond)
			key, data := numbered(0)
			w.put(key, data)
			time.Sleep(time.Second)
			if _, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil {
				t.Errorf("a block waits for the bucket of another volume (hangs: %v): %v", hangs, err)
			}
			w.setRefuse(nil)
			time.Sleep(time.Hour)
			w.check()
		})
	}
}

// A block that the bucket never takes does not hold up others of its volume.
func TestOneBlockDoesNotHoldUpAnother(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		poison, _ := numbered(3000)
		w.setRefuse(func(key store.Key) error {
			if key.Ino >= poison.Ino {
				return errors.New("sim: not this one")
			}
			return nil
		})
		for i := range 9 {
			w.put(numbered(3000 + i))
		}
		time.Sleep(time.Minute)
		for i := range 100 {
			w.put(numbered(i))
		}
		time.Sleep(20 * time.Second)
		if left := len(w.node("P").disk.dirty(0)); left != 9 {
			t.Errorf("%d blocks are dirty, want the 9 that the bucket does not take", left)
		}
		w.setRefuse(nil)
		time.Sleep(time.Minute)
		w.check()
	})
}

// After an outage, old blocks are uploaded first, but not only they.
func TestNewBlocksDoNotWaitForAllOldOnes(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setSlow(time.Second)
		w.setAway(true)
		s := w.storeOf("P")
		for i := range 2000 {
			key, data := numbered(i)
			if err := s.Put(t.Context(), key, data); err != nil {
				t.Fatal(err)
			}
		}
		w.setAway(false)
		time.Sleep(20 * time.Second)
		key, data := numbered(2000)
		w.put(key, data)
		time.Sleep(3 * time.Second)
		if _, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil {
			t.Errorf("a new block waits for old ones: %v", err)
		}
		if left := len(w.node("P").disk.dirty(0)); left < 1000 {
			t.Errorf("only %d blocks are left: the test shows nothing", left)
		}
		first, _ := numbered(0)
		if _, err := w.bucket.Get(t.Context(), first, 0, -1); err != nil {
			t.Errorf("the oldest block waits for newer ones: %v", err)
		}
		time.Sleep(10 * time.Minute)
		w.check()
	})
}

func TestNewsIsBatched(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setSlow(0)
		s := w.storeOf("P")
		var work sync.WaitGroup
		for i := range 1200 {
			work.Go(func() {
				key, data := numbered(i)
				if err := s.Put(t.Context(), key, data); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		time.Sleep(10 * time.Second)
		w.check()
		if n := w.stepsOf("news@P"); n < 3 || n > 40 {
			t.Errorf("the other member was told %d times of 1200 blocks", n)
		}
	})
}

func TestDeletedBlockIsNotUploaded(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setAway(true)
		s := w.storeOf("P")
		var keys []store.Key
		for i := range 10 {
			key, data := numbered(i)
			if err := s.Put(t.Context(), key, data); err != nil {
				t.Fatal(err)
			}
			keys = append(keys, key)
		}
		time.Sleep(time.Second)
		if err := s.Delete(t.Context(), keys[0]); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteAll(t.Context(), keys[1:]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.setAway(false)
		time.Sleep(2 * time.Minute)
		w.check()
		if left := w.bucket.Keys(); len(left) != 0 {
			t.Errorf("%d deleted blocks were uploaded", len(left))
		}
	})
}

// A delete waits for the upload that is under way, or the block would return.
func TestDeleteDuringTheUpload(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		w.setSlow(time.Second)
		key, data := numbered(1)
		if err := w.storeOf("P").Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if err := w.storeOf("P").Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if left := w.bucket.Keys(); len(left) != 0 {
			t.Error("the block has come back")
		}
		if p := w.node("P").serves(key); p != nil {
			t.Error("the block is still on the disk")
		}
		if w.storeOf("P").Stats().Waiting != 0 {
			t.Error("a deleted block waits")
		}
	})
}

func TestDrain(t *testing.T) {
	play(t, 3, func(t *testing.T, w *world) {
		w.setSlow(time.Second)
		w.mu.Lock()
		w.always["news"] = fault{lost: true}
		w.mu.Unlock()
		for i := range 50 { // half of them are of P, half are copies on P
			key, data := numbered(i)
			if i%2 == 0 {
				w.setOrder(key, []*node{w.node("S"), w.node("P"), w.node("T")})
			}
			w.put(key, data)
		}
		s := w.storeOf("P")
		start := time.Now()
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := s.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain in too short a time: %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Drain(t.Context()) }()
		time.Sleep(time.Millisecond)
		if err := s.Keep(t.Context(), storetest.Key(999), nil, "S"); err == nil {
			t.Error("a proxy that drains has taken a copy")
		}
		key, data := numbered(100)
		if err := s.Put(t.Context(), key, data); err != nil {
			t.Error(err)
		}
		if _, err := w.bucket.Get(t.Context(), key, 0, -1); err != nil {
			t.Errorf("a proxy that drains does not write through: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("Drain: %v", err)
		}
		if took := time.Since(start); took > 14*time.Second {
			t.Errorf("Drain took %v, as if it waited for the others", took)
		}
		if left := w.node("P").disk.dirty(0); len(left) != 0 {
			t.Errorf("%d blocks are dirty after Drain", len(left))
		}
		w.node("P").crash(harm{wipe: true})
		time.Sleep(time.Minute)
		w.look()
		w.node("P").start()
		time.Sleep(time.Second)
		w.check()
	})
}

func TestDrainOfNothing(t *testing.T) {
	play(t, 1, func(t *testing.T, w *world) {
		if err := w.storeOf("P").Drain(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestRestartAgainAndAgain(t *testing.T) {
	play(t, 3, func(t *testing.T, w *world) {
		w.setSlow(3 * time.Second)
		for i := range 40 {
			w.put(numbered(i))
			if i%4 == 0 {
				w.node("P").suffer(harm{down: time.Second})
			}
		}
		for range 30 {
			w.node("P").suffer(harm{down: 500 * time.Millisecond})
			time.Sleep(1500 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		w.check()
	})
}

type testKey struct{}

// What is done in the background for a volume has the rights of who put its
// blocks.
func TestBackgroundWorkHasTheValuesOfThePut(t *testing.T) {
	play(t, 2, func(t *testing.T, w *world) {
		var mu sync.Mutex
		asked := map[string]any{}
		w.mu.Lock()
		w.heard = func(op string, ctx context.Context) {
			mu.Lock()
			defer mu.Unlock()
			asked[op] = ctx.Value(testKey{})
		}
		w.mu.Unlock()
		w.setSlow(40 * time.Second)
		key, data := numbered(1)
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), testKey{}, "ticket"))
		if err := w.storeOf("P").Put(ctx, key, data); err != nil {
			t.Fatal(err)
		}
		cancel()
		time.Sleep(2 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		for _, op := range []string{"copy", "ask", "news"} {
			if asked[op] != "ticket" {
				t.Errorf("%s has the value %v", op, asked[op])
			}
		}
		w.check()
	})
}
