package admin

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
)

// Scopes say what a token is for.
const (
	scopeAccount     = "account"
	scopeVolumeToken = "volume-token"
	scopeProxyGroup  = "proxy-group"
	scopeMetaStore   = "meta-store"
)

// bearerOf returns whose the token of a request is.
func (tx *tx) bearerOf(token string) (bearer, *Error) {
	unknown := refuse(http.StatusUnauthorized, "the token is not known: it may have been replaced or deleted")
	var h holder
	value := tx.Bucket(bucketTokens).Get(tokenKey(token))
	if value == nil || json.Unmarshal(value, &h) != nil {
		return nil, unknown
	}
	r, err := tx.load(tableOfScope(h.Scope), numKey(h.ID))
	b, ok := r.(bearer)
	if err != nil || !ok || subtle.ConstantTimeCompare([]byte(*b.token()), []byte(token)) != 1 {
		return nil, unknown
	}
	if g, ok := b.(*ProxyGroup); ok && g.over(now()) {
		return nil, unknown
	}
	return b, nil
}

func tableOfScope(scope string) *Table { return FindTable(scope) }

// authenticate returns whose token a request shows, if it is of one of the
// scopes.
func (tx *tx) authenticate(r *http.Request, scopes ...string) (bearer, *Error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token = strings.TrimSpace(token); !ok || token == "" {
		return nil, refuse(http.StatusUnauthorized, "a token is needed: send it as \"Authorization: Bearer ...\"")
	}
	b, err := tx.bearerOf(token)
	if err != nil {
		return nil, err
	}
	for _, scope := range scopes {
		if b.scope() == scope {
			return b, nil
		}
	}
	return nil, refuse(http.StatusForbidden, "this needs the token of %s, and the one sent is that of %s",
		people(scopes...), people(b.scope()))
}

func people(scopes ...string) string {
	var names []string
	for _, scope := range scopes {
		names = append(names, map[string]string{
			scopeAccount: "an account", scopeVolumeToken: "a volume (volume-token)",
			scopeProxyGroup: "a proxy group", scopeMetaStore: "a meta store",
		}[scope])
	}
	return strings.Join(names, " or ")
}
