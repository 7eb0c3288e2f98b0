package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"flexfs/internal/ticket"
	"flexfs/store"
	"flexfs/store/mem"
	"flexfs/store/seal"
	"flexfs/store/storetest"
)

// A keeper is a Replica in memory.
type keeper struct {
	mu      sync.Mutex
	copies  map[store.Key]string // who will upload them; guarded by mu
	tickets []string             // of the requests; guarded by mu
	err     error                // of Keep; guarded by mu
}

func (k *keeper) Keep(ctx context.Context, key store.Key, data []byte, from string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return k.err
	}
	if k.copies == nil {
		k.copies = make(map[store.Key]string)
	}
	k.copies[key] = fmt.Sprintf("%d bytes from %s", len(data), from)
	k.tickets = append(k.tickets, ticketOf(ctx))
	return nil
}

func (k *keeper) Uploaded(ctx context.Context, keys []store.Key) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		delete(k.copies, key)
	}
	k.tickets = append(k.tickets, ticketOf(ctx))
	return nil
}

func (k *keeper) Pending(key store.Key) bool { return k.of(key) != "" }

func (k *keeper) of(key store.Key) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.copies[key]
}

func (k *keeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.copies)
}

func (k *keeper) fails(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

// served starts a server of s with the replica, and returns its client.
func served(t *testing.T, s store.Store, r Replica) *Client {
	t.Helper()
	srv := httptest.NewServer(Handler(Server{Tickets: nominal, Store: serving(s), Replica: r}))
	t.Cleanup(srv.Close)
	return &Client{URL: srv.URL, HTTP: srv.Client(), Ticket: func() string { return testVolume }}
}

func TestACopyIsKeptUntilTheBlockIsUploaded(t *testing.T) {
	bucket, kept := mem.New(t), new(keeper)
	c := served(t, bucket, kept)
	var keys []store.Key
	for i := range 2*maxUploaded + 1 { // three requests
		key := storetest.Key(0)
		key.Index = uint32(i)
		keys = append(keys, key)
	}
	for _, key := range keys[:2] {
		if err := c.PutCopy(t.Context(), key, []byte("abc"), "a:1"); err != nil {
			t.Fatal(err)
		}
		if got := kept.of(key); got != "3 bytes from a:1" {
			t.Errorf("the copy is of %q", got)
		}
		if pending, err := c.Pending(t.Context(), key); !pending || err != nil {
			t.Errorf("the block is pending: %v, %v", pending, err)
		}
	}
	if n := len(bucket.Keys()); n > 0 {
		t.Errorf("%d copies went to the bucket", n)
	}
	if err := c.Uploaded(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	if pending, err := c.Pending(t.Context(), keys[1]); pending || err != nil || kept.count() > 0 {
		t.Errorf("after the upload the block is pending: %v, %v; there are %d copies", pending, err, kept.count())
	}
}

func TestNoRoomForACopyIsSaid(t *testing.T) {
	kept := new(keeper)
	kept.fails(fmt.Errorf("keep: %w", ErrFull))
	for name, r := range map[string]Replica{"full": kept, "none": nil} {
		t.Run(name, func(t *testing.T) {
			err := served(t, mem.New(t), r).PutCopy(t.Context(), storetest.Key(0), make([]byte, 2*smallBody), "a:1")
			if !errors.Is(err, ErrFull) || isFault(err) {
				t.Errorf("PutCopy = %v, want ErrFull, and the member to stay in use", err)
			}
		})
	}
	err := served(t, mem.New(t), nil).Uploaded(t.Context(), []store.Key{storetest.Key(0)})
	if err != nil {
		t.Errorf("who keeps no copies was told of an upload: %v", err)
	}
}

// What a proxy is asked to do reaches the store below with the client's ticket
// and the client's wish.
func TestTheTicketAndTheWishReachTheStore(t *testing.T) {
	var seen []string
	s := &spy{Store: mem.New(t), before: func(ctx context.Context, op string, _ store.Key) error {
		seen = append(seen, fmt.Sprintf("%s %v %v", op, ticketOf(ctx) == testVolume, store.IsLocal(ctx)))
		return nil
	}}
	kept := new(keeper)
	c := served(t, s, kept)
	c.Ticket = func() string { return "not this one" }
	ctx := WithTicket(t.Context(), testVolume)
	key := storetest.Key(0)
	if err := c.Put(ctx, key, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{ctx, store.WithLocal(ctx)} {
		if _, err := c.Get(ctx, key, 0, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(ctx, key, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.GetFrames(ctx, key, 0, 1); !errors.Is(err, store.ErrCorrupt) { // it has none
			t.Fatal(err)
		}
	}
	if err := c.Delete(store.WithLocal(ctx), key); err != nil {
		t.Fatal(err)
	}
	want := "[put true false get true false get true false get true false get true true get true true get true true delete true false]"
	if got := fmt.Sprint(seen); got != want {
		t.Errorf("the store saw\n%s, want\n%s", got, want)
	}
	if err := c.PutCopy(ctx, key, []byte("abc"), "a:1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Uploaded(ctx, []store.Key{key}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(kept.tickets); got != fmt.Sprint([]string{testVolume, testVolume}) {
		t.Errorf("the replica saw the tickets %s", got)
	}
}

func TestBadRequestsOfPeersAreRefused(t *testing.T) {
	kept := new(keeper)
	h := Handler(Server{Tickets: nominal, Store: serving(mem.New(t)), Replica: kept, Verify: seal.Verify})
	uploaded := func(volume, body string, header ...string) *http.Response {
		return ask(h, "POST", loadedPath+volume, strings.NewReader(body), append([]string{headerCRC, checksum([]byte(body))}, header...)...)
	}
	copied := func(from, body string) *http.Response {
		return ask(h, "PUT", pathOf(0), strings.NewReader(body), headerCopy, from, headerCRC, checksum([]byte(body)))
	}
	line := storetest.Key(0).String() + "\n"
	other := storetest.Key(0)
	other.Volume[0]++
	for _, test := range []struct {
		name   string
		resp   *http.Response
		status int
		code   code
	}{
		{"unknown wish", ask(h, "GET", pathOf(0), nil, headerLocal, "2"), 400, codeRequest},
		{"get what is pending", ask(h, "GET", pathOf(0), nil, headerLocal, localPending), 400, codeRequest},
		{"put what is held", ask(h, "PUT", pathOf(0), strings.NewReader("abc"), headerLocal, localHeld, headerCRC, checksum([]byte("abc"))), 400, codeRequest},
		{"get a copy", ask(h, "GET", pathOf(0), nil, headerCopy, "a:1"), 400, codeRequest},
		{"missing block is not pending", ask(h, "HEAD", pathOf(0), nil, headerLocal, localPending), 404, codeNotExist},
		{"copy from nowhere in particular", copied("a", "abc"), 400, codeRequest},
		{"copy from no port", copied("a:0", "abc"), 400, codeRequest},
		{"copy from a path", copied("a/b:1", "abc"), 400, codeRequest},
		{"copy from a user", copied("u@a:1", "abc"), 400, codeRequest},
		{"copy from far too long a name", copied(strings.Repeat("a", 300)+":1", "abc"), 400, codeRequest},
		{"copy that is not the block", copied("a:1", "abc"), 422, codeDamaged},
		{"uploaded in no volume", uploaded("x", line), 400, codeRequest},
		{"uploaded without a ticket", uploaded(testVolume, line, "Authorization", ""), 401, codeTicket},
		{"uploaded with another volume's ticket", uploaded(other.Volume.String(), line), 403, codeVolume},
		{"uploaded in another volume", uploaded(testVolume, line+other.String()+"\n"), 400, codeRequest},
		{"uploaded rubbish", uploaded(testVolume, "x\n"), 400, codeRequest},
		{"uploaded nothing in between", uploaded(testVolume, line+"\n"+line), 400, codeRequest},
		{"uploaded and damaged", uploaded(testVolume, line, headerCRC, "00000000"), 422, codeDamaged},
		{"uploaded too many", uploaded(testVolume, strings.Repeat(line, maxUploaded+1)), 400, codeRequest},
		{"uploaded far too many", uploaded(testVolume, strings.Repeat("x", maxUploadedBody+1)), 413, codeTooLarge},
		{"uploaded of no known length", ask(h, "POST", loadedPath+testVolume, io.MultiReader(strings.NewReader(line))), 400, codeRequest},
	} {
		t.Run(test.name, func(t *testing.T) { wantRefusal(t, test.resp, test.status, test.code) })
	}
	if n := kept.count(); n > 0 {
		t.Errorf("%d copies came in", n)
	}
	if resp := uploaded(testVolume, strings.Repeat(line, maxUploaded)); resp.StatusCode != 204 {
		t.Errorf("as many as may be are answered with %d", resp.StatusCode)
	}
}

// Copies and news need a ticket for writing, what is held or pending one for
// reading.
func TestTicketsGuardThePeersRequests(t *testing.T) {
	kept := new(keeper)
	reader := func(text string) (ticket.Ticket, error) {
		t, err := nominal(text)
		t.Write = false
		return t, err
	}
	h := Handler(Server{Tickets: reader, Store: serving(mem.New(t)), Replica: kept})
	line := storetest.Key(0).String() + "\n"
	wantRefusal(t, ask(h, "PUT", pathOf(0), strings.NewReader(line), headerCopy, "a:1", headerCRC, checksum([]byte(line))), 403, codeReadOnly)
	wantRefusal(t, ask(h, "POST", loadedPath+testVolume, strings.NewReader(line), headerCRC, checksum([]byte(line))), 403, codeReadOnly)
	wantRefusal(t, ask(h, "HEAD", pathOf(0), nil, headerLocal, localPending), 404, codeNotExist)
	wantRefusal(t, ask(h, "GET", pathOf(0), nil, headerLocal, localHeld), 404, codeNotExist)
	for _, header := range [][]string{{headerLocal, localPending}, {headerLocal, localHeld}} {
		wantRefusal(t, ask(h, "HEAD", pathOf(0), nil, append(header, "Authorization", "")...), 401, codeTicket)
	}
	if len(kept.tickets) > 0 {
		t.Error("a request with a ticket for reading reached the replica")
	}
}

// Two proxies whose clients take all their turns and that wait for each other's
// copies must not wait for ever, nor long.
func TestMembersThatWaitForEachOtherGoOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		release := make(chan struct{})
		s := &spy{Store: w.bucket, before: func(ctx context.Context, op string, _ store.Key) error {
			if !store.IsLocal(ctx) {
				<-release
			}
			return nil
		}}
		h := Handler(Server{Tickets: nominal, Store: serving(s), Replica: new(keeper), MaxRequests: 1})
		done := make(chan struct{})
		go func() { ask(h, "GET", pathOf(0), nil); close(done) }()
		time.Sleep(time.Second)
		start := time.Now()
		body := []byte("abc")
		if resp := ask(h, "PUT", pathOf(1), bytes.NewReader(body), headerCopy, "a:1", headerCRC, checksum(body)); resp.StatusCode != 204 {
			t.Errorf("a copy is answered with %d", resp.StatusCode)
		}
		wantRefusal(t, ask(h, "GET", pathOf(1), nil, headerLocal, localHeld), 404, codeNotExist)
		wantRefusal(t, ask(h, "HEAD", pathOf(2), nil, headerLocal, localPending), 404, codeNotExist)
		if took := time.Since(start); took > 0 {
			t.Errorf("they waited for %v", took)
		}
		close(release)
		<-done
	})
}

func TestAddressesAreHostAndPort(t *testing.T) {
	for s, good := range map[string]bool{
		"a:1": true, "proxy-1.example.com:9040": true, "10.0.0.1:65535": true, "[::1]:443": true, "[fe80::1]:443": true,
		"": false, "a": false, ":1": false, "a:": false, "a:x": false, "a:-1": false, "a:65536": false, "a b:1": false,
		"a\n:1": false, "ä:1": false, "http://a:1": false, "a:1:2": false, "a?x:1": false, `a"b:1`: false,
		strings.Repeat("a", 253) + ":65535": true, strings.Repeat("a", 254) + ":65535": false,
	} {
		if err := checkAddress(s); (err == nil) != good {
			t.Errorf("checkAddress(%q) = %v", s, err)
		}
	}
}

func FuzzParseKeys(f *testing.F) {
	key := storetest.Key(0)
	f.Add(key.String() + "\n")
	f.Add(key.String() + "\n" + storetest.Key(1).String())
	f.Add("\n")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := parseKeys(key.Volume, text)
		if err != nil {
			return
		}
		if len(text) > 0 && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		if got := formatKeys(keys); got != text {
			t.Fatalf("%q became %q", text, got)
		}
	})
}

// The bound on a request of keys must hold for the longest of them.
func TestTheLongestKeysFit(t *testing.T) {
	all := ^uint64(0)
	key := store.Key{Volume: storetest.Key(0).Volume, Ino: all, Index: ^uint32(0), Gen: store.Gen{Session: all, Seq: all}}
	if n := len(key.String()); n > maxKey {
		t.Errorf("a key has %d bytes", n)
	}
}
