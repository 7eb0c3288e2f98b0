package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
)

// registerSecret answers a mount that says which secret its volume's blocks
// are sealed with.
func (a *api) registerSecret(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = a.registerBody(r, body)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *api) registerBody(r *http.Request, body []byte) error {
	var v Volume
	first := false
	err := a.db.update(func(tx *tx) error {
		b, problem := tx.authenticate(r, scopeVolumeToken)
		if problem != nil {
			return problem
		}
		id, problem := parseSecret(body)
		if problem != nil {
			return problem
		}
		s, err := tx.mountSettings(b.(*VolumeToken))
		if err != nil {
			return err
		}
		v = s.Volume
		if problem := s.mayRegister(id); problem != nil {
			return problem
		}
		first, v.SecretID = v.SecretID == "", id
		return tx.put(FindTable("volumes"), &v)
	})
	if err == nil && first {
		a.log.Info("secret of volume registered", "volume", v.Name, "secret_id", v.SecretID)
	}
	return err
}

func parseSecret(body []byte) (string, *Error) {
	given, problem := objectOf(body)
	if problem != nil {
		return "", problem
	}
	for name := range given {
		if name != "secretID" {
			return "", bad(name, "a secret has no such field; there is secretID")
		}
	}
	var s Secret
	if json.Unmarshal(body, &s) != nil {
		return "", bad("secretID", "must be a text")
	}
	return s.SecretID, checkSecretID(s.SecretID)
}

// mayRegister refuses whatever is not the first secret of the volume or the
// same again.
func (s *MountSettings) mayRegister(id string) *Error {
	v := s.Volume
	switch {
	case !v.Encryption:
		return refuse(http.StatusConflict, "%s is not encrypted and has no secret", v.title())
	case v.SecretID == id:
		return nil
	case v.SecretID != "":
		return refuse(http.StatusConflict, "the secret is not that of %s, which has another (its id is %s)", v.title(), v.SecretID)
	case slices.Contains(s.Flags, "ro"):
		return refuse(http.StatusForbidden, "no secret of %s is registered yet, and this token may not write", v.title())
	}
	return nil
}
