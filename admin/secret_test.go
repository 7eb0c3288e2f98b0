package admin

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const someSecret, otherSecret = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"

// encrypted makes an encrypted volume and returns its name and a token for it.
func encrypted(s *site, flags string) (volume, token string) {
	s.t.Helper()
	create[Volume](s.bench, map[string]any{"name": "vault", "metaStoreID": 1, "blockStoreID": 1, "encryption": true})
	return "vault", create[VolumeToken](s.bench, map[string]any{"volumeID": "vault", "flags": flags}).Token
}

func TestTheFirstSecretIsTheVolumesForEver(t *testing.T) {
	s := newSite(t)
	volume, token := encrypted(s, "")
	mount := s.client(token)
	if v := fetch[MountSettings](s.bench, token).Volume; !v.Encryption || v.SecretID != "" {
		t.Errorf("a new volume: encryption %v, secretID %q", v.Encryption, v.SecretID)
	}
	if err := mount.RegisterSecret(t.Context(), someSecret); err != nil {
		t.Fatal(err)
	}
	changed := s.db.changes()
	if err := mount.RegisterSecret(t.Context(), someSecret); err != nil {
		t.Errorf("the same again: %v", err)
	}
	select {
	case <-changed:
		t.Error("the same again woke those who wait")
	default:
	}
	wantRefused(t, mount.RegisterSecret(t.Context(), otherSecret), http.StatusConflict, "", "not that of volume vault", someSecret)
	for where, id := range map[string]string{
		"mounts":    fetch[MountSettings](s.bench, token).Volume.SecretID,
		"operators": get[Volume](s.bench, volume).SecretID,
	} {
		if id != someSecret {
			t.Errorf("%s are told the secretID %q", where, id)
		}
	}
	for _, value := range []any{otherSecret, ""} {
		err := Update[Volume](t.Context(), s.account, map[string]any{"secretID": value}, volume)
		wantRefused(t, err, http.StatusBadRequest, "secretID", "set by admin")
	}
	err := Update[Volume](t.Context(), s.account, map[string]any{"encryption": false}, volume)
	wantRefused(t, err, http.StatusBadRequest, "encryption", "fixed")
}

func TestOfManyFirstSecretsOneIsTaken(t *testing.T) {
	s := newSite(t)
	volume, token := encrypted(s, "")
	var wg sync.WaitGroup
	var taken atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			id := strings.Repeat(string(rune('0'+i)), 32)
			if err := s.client(token).RegisterSecret(t.Context(), id); err == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if n := taken.Load(); n != 1 || get[Volume](s.bench, volume).SecretID == "" {
		t.Errorf("%d of 8 different secrets were taken, the volume has %q", n, get[Volume](s.bench, volume).SecretID)
	}
}

func TestSecretsThatAreNotTaken(t *testing.T) {
	s := newSite(t)
	volume, token := encrypted(s, "ro")
	register := func(token, id string) error { return s.client(token).RegisterSecret(t.Context(), id) }
	wantRefused(t, register(token, someSecret), http.StatusForbidden, "", "may not write")
	wantRefused(t, register(s.token.Token, someSecret), http.StatusConflict, "", "my-volume is not encrypted")
	for _, id := range []string{"", "secret", strings.ToUpper(someSecret), someSecret + "00", someSecret[:30] + "\n0"} {
		wantRefused(t, register(token, id), http.StatusBadRequest, "secretID", "hexadecimal")
	}
	for body, words := range map[string]string{`null`: "JSON object", `{"secretID":1}`: "text", `{"secret":"x"}`: "no such field", `{}`: "hexadecimal"} {
		if status, text := s.send(token, "POST", "/v1/settings/mount/secret", body); status != http.StatusBadRequest || !strings.Contains(text, words) {
			t.Errorf("%s: %d %s, want 400 and %q", body, status, text, words)
		}
	}
	if id := get[Volume](s.bench, volume).SecretID; id != "" {
		t.Errorf("the volume has the secret %s", id)
	}
	if err := Delete[Volume](t.Context(), s.account, volume); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, register(token, someSecret), http.StatusForbidden, "", "deleted")
}
