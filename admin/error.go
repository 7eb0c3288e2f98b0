package admin

import (
	"fmt"
	"net/http"
	"strings"
)

// An Error is a request that admin refused. It is what the API answers, as
// JSON, and what [Client] returns.
type Error struct {
	Status  int      `json:"-"`                // of HTTP
	Message string   `json:"error"`            // for people
	Field   string   `json:"field,omitempty"`  // the field or parameter that is wrong, if it is one
	UsedBy  []string `json:"usedBy,omitempty"` // what uses the object that was to be deleted
}

func (e *Error) Error() string { return "admin: " + e.Message }

// bad is an Error about the value of one field.
func bad(field, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
}

func refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...)}
}

// maxUsers bounds the users of an object that an Error names.
const maxUsers = 20

func inUse(title, what string, users []string) *Error {
	more := ""
	if n := len(users) - maxUsers; n > 0 {
		users = users[:maxUsers]
		more = fmt.Sprintf(" and %d more", n)
	}
	e := refuse(http.StatusConflict, "%s is in use by %s%s: %s", title, strings.Join(users, ", "), more, what)
	e.UsedBy = users
	return e
}
