package admin

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Tickets are signed with one key and checked with all that may have signed
// one which has not expired. A new key is published to those who check, signs
// from some time later, and its predecessor ends when the last ticket by it has
// expired. All of that is a matter of the times kept with the keys, so nothing
// has to run, and a restart in between changes nothing.

const (
	// keyNotice is how long a new key is published before it signs. A proxy
	// or metadata server that has no word from admin for longer refuses new
	// tickets until it has.
	keyNotice = 10 * time.Minute

	// keySlack is how long a key outlives its last ticket: clocks differ.
	keySlack = time.Minute
)

// What a ticket key does.
const (
	KeyNext    = "next"    // published, does not sign yet
	KeySigning = "signing" // signs tickets
	KeyEnding  = "ending"  // its tickets are still valid
)

// A ticketKey is one of the keys that sign tickets. Zero times are those of
// the first key.
type ticketKey struct {
	Seed      []byte    `json:"seed"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	SignsFrom time.Time `json:"signsFrom,omitzero"`
	EndsAt    time.Time `json:"endsAt,omitzero"` // zero: it has no successor

	private ed25519.PrivateKey
}

func (k ticketKey) public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// ended tells whether no ticket by the key is valid any more.
func (k ticketKey) ended(at time.Time) bool { return !k.EndsAt.IsZero() && !at.Before(k.EndsAt) }

// ticketKeys are in the order of SignsFrom, and never none.
type ticketKeys []ticketKey

// signer returns the newest key that may sign.
func (ks ticketKeys) signer(at time.Time) ticketKey {
	for _, k := range slices.Backward(ks) {
		if !at.Before(k.SignsFrom) {
			return k
		}
	}
	return ks[0] // the clock was set back
}

// public are the keys that tickets are checked with.
func (ks ticketKeys) public(at time.Time) (list [][]byte) {
	for _, k := range ks {
		if !k.ended(at) {
			list = append(list, k.public())
		}
	}
	return list
}

// rotated returns the keys with a new one. At once: with that only.
func (ks ticketKeys) rotated(at time.Time, atOnce bool) (ticketKeys, *Error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "%v", err)
	}
	next := ticketKey{Seed: private.Seed(), CreatedAt: at, SignsFrom: at, private: private}
	if atOnce {
		return ticketKeys{next}, nil
	}
	next.SignsFrom = at.Add(keyNotice)
	ks = slices.DeleteFunc(slices.Clone(ks), func(k ticketKey) bool { return k.ended(at) })
	last := &ks[len(ks)-1]
	if at.Before(last.SignsFrom) {
		return nil, refuse(http.StatusConflict, "a new key was made already and signs from %s; ask for \"now\" to end all others at once",
			last.SignsFrom.Format(time.RFC3339))
	}
	last.EndsAt = next.SignsFrom.Add(ticketLife + keySlack)
	return append(ks, next), nil
}

// show returns the keys as the API does.
func (ks ticketKeys) show(at time.Time) []TicketKey {
	list := []TicketKey{}
	signer := ks.signer(at)
	for _, k := range ks {
		sum := sha256.Sum256(k.public())
		shown := TicketKey{ID: hex.EncodeToString(sum[:8]), State: KeyEnding, CreatedAt: k.CreatedAt, SignsFrom: k.SignsFrom, EndsAt: k.EndsAt}
		switch {
		case k.ended(at):
			continue
		case bytes.Equal(k.Seed, signer.Seed):
			shown.State = KeySigning
		case at.Before(k.SignsFrom):
			shown.State = KeyNext
		}
		list = append(list, shown)
	}
	return list
}

// readTicketKeys returns the keys of a database: the one that it was made
// with, unless that was ever replaced.
func readTicketKeys(b *bolt.Tx) (ks ticketKeys, err error) {
	system := b.Bucket(bucketSystem)
	if text := system.Get(keySigners); text == nil {
		ks = ticketKeys{{Seed: bytes.Clone(system.Get(keySigning))}}
	} else if err := json.Unmarshal(text, &ks); err != nil {
		return nil, fmt.Errorf("the keys that sign tickets cannot be read: %w", err)
	}
	for i, k := range ks {
		if len(k.Seed) != ed25519.SeedSize {
			ks = nil
			break
		}
		ks[i].private = ed25519.NewKeyFromSeed(k.Seed)
	}
	if len(ks) == 0 {
		return nil, fmt.Errorf("the key that signs tickets is missing")
	}
	return ks, nil
}

// rotateTicketKey makes a new ticket key. When it returns, all who wait for
// settings are about to hear of it.
func (db *DB) rotateTicketKey(atOnce bool) (ticketKeys, error) {
	db.rotating.Lock()
	defer db.rotating.Unlock()
	ks, problem := db.keys.Load().rotated(now(), atOnce)
	if problem != nil {
		return nil, problem
	}
	text, err := json.Marshal(ks)
	if err != nil {
		return nil, err
	}
	err = db.update(func(tx *tx) error { return tx.Bucket(bucketSystem).Put(keySigners, text) })
	if err != nil {
		return nil, err
	}
	db.keys.Store(&ks)
	db.notify()
	return ks, nil
}

func (a *api) listTicketKeys(c call) error {
	reply(c.w, a.db.keys.Load().show(now()))
	return nil
}

func (a *api) rotateTicketKey(c call) error {
	body, err := io.ReadAll(c.r.Body)
	if err != nil {
		return err
	}
	given, problem := objectOf(body)
	if problem != nil {
		return problem
	}
	for name := range given {
		if name != "now" {
			return bad(name, "a rotation has no such field; there is now")
		}
	}
	var r Rotation
	if string(given["now"]) == "null" || json.Unmarshal(body, &r) != nil {
		return bad("now", "must be true or false")
	}
	ks, err := a.db.rotateTicketKey(r.Now)
	if err == nil {
		list := ks.show(now())
		a.log.Info("ticket key made", "key", list[len(list)-1].ID, "signs_from", ks[len(ks)-1].SignsFrom, "others_end_now", r.Now, "account", c.account.ID)
		reply(c.w, list)
	}
	return err
}
