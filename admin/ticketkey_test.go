package admin

import (
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"flexfs/internal/ticket"
)

// A verifier is a proxy or metadata server with the keys that it last heard.
type verifier [][]byte

func (v verifier) accepts(text string) bool {
	var keys []ed25519.PublicKey
	for _, k := range v {
		keys = append(keys, k)
	}
	_, err := ticket.Verify(text, keys, time.Now())
	return err == nil
}

// verifiers are what a proxy and a metadata server have that fetch now.
func (s *site) verifiers() []verifier {
	return []verifier{fetch[ProxySettings](s.bench, s.group.Token).TicketKeys, fetch[MetaSettings](s.bench, s.meta.Token).TicketKeys}
}

func (s *site) rotate(now bool) []TicketKey {
	s.t.Helper()
	list, err := s.account.RotateTicketKey(s.t.Context(), Rotation{Now: now})
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// Whenever a mount and a verifier fetched, the one in the last hour and the
// other in the last minutes: the ticket passes.
func TestAKeyIsReplacedAndNobodyNotices(t *testing.T) {
	const step = 2 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		var tickets []string // one a step
		var heard [][]verifier
		signers := map[string]bool{}
		for i := range 80 {
			if i == 30 {
				s.rotate(false)
			}
			tickets = append(tickets, fetch[MountSettings](s.bench, s.token.Token).Ticket)
			heard = append(heard, s.verifiers())
			signers[s.signer()] = true
			for _, deaf := range []int{0, 4} { // steps since the verifiers heard from admin
				for _, old := range []int{0, 14, 29} { // steps since the mount did
					if i < deaf || i < old {
						continue
					}
					for _, v := range heard[i-deaf] {
						if !v.accepts(tickets[i-old]) {
							t.Fatalf("at %v: a ticket of %v is refused by who heard from admin %v ago", time.Duration(i)*step, time.Duration(old)*step, time.Duration(deaf)*step)
						}
					}
				}
			}
			time.Sleep(step)
		}
		if len(signers) != 2 {
			t.Errorf("%d keys signed, want 2", len(signers))
		}
		for _, v := range s.verifiers() {
			if len(v) != 1 {
				t.Errorf("%d keys are still good, want the new one only", len(v))
			}
		}
	})
}

// signer is the id of the key that signs.
func (s *site) signer() string {
	s.t.Helper()
	list, err := s.account.TicketKeys(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	id := ""
	for _, k := range list {
		if k.State == KeySigning && id != "" {
			s.t.Errorf("two keys sign: %+v", list)
		}
		if k.State == KeySigning {
			id = k.ID
		}
	}
	return id
}

func TestAStolenKeyEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		stolen := fetch[MountSettings](s.bench, s.token.Token)
		s.rotate(false) // the next one may have been stolen, too
		mount := poll(s.bench, s.token.Token, "/v1/settings/mount", "").Header().Get("ETag")
		proxy := poll(s.bench, s.group.Token, "/v1/settings/proxy", "").Header().Get("ETag")
		meta := poll(s.bench, s.meta.Token, "/v1/settings/meta", "").Header().Get("ETag")

		// All who wait hear of it at once.
		start := time.Now()
		var wg sync.WaitGroup
		wait := func(token, path, tag string) *httptest.ResponseRecorder {
			rec := poll(s.bench, token, path+"?wait=30s", tag)
			if took := time.Since(start); took != time.Second || rec.Code != http.StatusOK {
				t.Errorf("%s: %d after %v, want 200 after 1 s", path, rec.Code, took)
			}
			return rec
		}
		wg.Go(func() { wait(s.token.Token, "/v1/settings/mount", mount) })
		wg.Go(func() { wait(s.group.Token, "/v1/settings/proxy", proxy) })
		wg.Go(func() { wait(s.meta.Token, "/v1/settings/meta", meta) })
		time.Sleep(time.Second)
		if list := s.rotate(true); len(list) != 1 || list[0].State != KeySigning {
			t.Errorf("the keys are %+v, want the new one", list)
		}
		wg.Wait()
		fresh := fetch[MountSettings](s.bench, s.token.Token)
		for _, v := range s.verifiers() {
			if v.accepts(stolen.Ticket) || !v.accepts(fresh.Ticket) || len(v) != 1 {
				t.Errorf("%d keys; the stolen one's ticket passes: %v, a new one's: %v", len(v), v.accepts(stolen.Ticket), v.accepts(fresh.Ticket))
			}
		}
	})
}

func TestAKeyIsPublishedBeforeItSigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		first := s.signer()
		list := s.rotate(false)
		if len(list) != 2 || list[0].ID != first || list[0].State != KeySigning || list[1].State != KeyNext {
			t.Errorf("the keys are %+v", list)
		}
		_, err := s.account.RotateTicketKey(t.Context(), Rotation{})
		wantRefused(t, err, http.StatusConflict, "", "made already")
		time.Sleep(keyNotice - time.Second)
		if s.signer() != first {
			t.Error("the new key signs early")
		}
		time.Sleep(time.Second)
		if s.signer() != list[1].ID {
			t.Error("the new key does not sign")
		}
		// Another rotation while the first key still counts.
		if list := s.rotate(false); len(list) != 3 || list[0].State != KeyEnding {
			t.Errorf("the keys are %+v", list)
		}
		for range 20 {
			time.Sleep(keyNotice)
			s.rotate(false)
		}
		if list, err := s.account.TicketKeys(t.Context()); err != nil || len(list) > 10 {
			t.Errorf("%d keys, %v: they must end", len(list), err)
		}
	})
}

func TestARotationSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := t.TempDir() + "/admin.db"
		var first, second []byte
		reopen(t, path, func(db *DB) {
			first = db.keys.Load().signer(now()).Seed
			ks, err := db.rotateTicketKey(false)
			if err != nil {
				t.Fatal(err)
			}
			second = ks[1].Seed
		})
		check := func(what string, signer []byte, publics int) {
			t.Helper()
			reopen(t, path, func(db *DB) {
				ks := *db.keys.Load()
				if string(ks.signer(now()).Seed) != string(signer) || len(ks.public(now())) != publics {
					t.Errorf("%s: another key signs, or %d count; want %d", what, len(ks.public(now())), publics)
				}
			})
		}
		check("published", first, 2)
		time.Sleep(keyNotice)
		check("signing", second, 2)
		time.Sleep(ticketLife)
		check("last tickets expired", second, 2) // clocks differ
		time.Sleep(keySlack)
		check("over", second, 1)
	})
}

// A change of keys that cannot be written is none.
func TestARotationThatIsNotWrittenIsNone(t *testing.T) {
	s := newSite(t)
	before := s.signer()
	s.db.bolt.Close()
	if _, err := s.db.rotateTicketKey(true); err == nil {
		t.Fatal("written into a closed database")
	}
	if got := s.db.keys.Load().show(now()); len(got) != 1 || got[0].ID != before {
		t.Errorf("the keys are %+v", got)
	}
}

func TestOfManyRotationsEachCounts(t *testing.T) {
	s := newSite(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := s.account.RotateTicketKey(t.Context(), Rotation{Now: i%2 == 0})
			var refused *Error
			if err != nil && (!errors.As(err, &refused) || refused.Status != http.StatusConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var ks ticketKeys
	err := s.db.bolt.View(func(tx *bolt.Tx) (err error) {
		ks, err = readTicketKeys(tx)
		return err
	})
	if err != nil || s.signer() != ks.show(now())[0].ID || len(ks) != len(*s.db.keys.Load()) {
		t.Errorf("in the file are %+v, %v; in use %+v", ks.show(now()), err, s.db.keys.Load().show(now()))
	}
}

func TestKeysAreNotShown(t *testing.T) {
	s := newSite(t)
	s.rotate(true)
	_, text := s.send(s.account.Token, "GET", "/v1/configure/ticket-keys", "")
	if strings.Contains(text, "seed") || len(text) > 300 {
		t.Errorf("shown: %s", text)
	}
	for _, body := range []string{"", "[]", `{"now":1}`, `{"now":null}`, `{"then":true}`} {
		if status, text := s.send(s.account.Token, "POST", "/v1/configure/ticket-keys", body); status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", body, status, text)
		}
	}
}
