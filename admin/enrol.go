package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
)

// maxWaitingMembers bounds the proxies of a group that are remembered without
// being members.
const maxWaitingMembers = 64

// enrol answers a server that says where it is and which key it has.
func (a *api) enrol(w http.ResponseWriter, r *http.Request) {
	var answer Enrolled
	body, err := io.ReadAll(r.Body)
	if err == nil {
		answer, err = a.enrolBody(r, body)
	}
	if err != nil {
		a.fail(w, r, err)
		return
	}
	reply(w, answer)
}

func (a *api) enrolBody(r *http.Request, body []byte) (Enrolled, error) {
	var b bearer
	var answer Enrolled
	var news outcome
	err := a.db.update(func(tx *tx) error {
		var problem *Error
		if b, problem = tx.authenticate(r, scopeProxyGroup, scopeMetaStore); problem != nil {
			return problem
		}
		e, problem := parseEnrolment(body)
		if problem != nil {
			return problem
		}
		answer, news = enrolAt(b, e)
		return tx.put(tableOfScope(b.scope()), b)
	})
	if err != nil {
		return Enrolled{}, err
	}
	logOutcome(a.log, news, b)
	if news.refused {
		return Enrolled{}, refuse(http.StatusConflict, "the key differs from the one that %s is known to have at this address: if it was changed on purpose, run \"flexfs configure %s\"",
			b.title(), resetHint(b))
	}
	return answer, nil
}

// An outcome is what the key of a server led to.
type outcome struct {
	news    string // for the log; "": nothing new
	address string
	pin     string
	refused bool
}

func logOutcome(log *slog.Logger, o outcome, b bearer) {
	switch {
	case o.news == "":
	case o.refused:
		log.Warn(o.news, "address", o.address, "of", b.title(), "key", o.pin, "to_accept_it", resetHint(b))
	default:
		log.Info(o.news, "address", o.address, "of", b.title(), "key", o.pin)
	}
}

// resetHint is the command that makes admin learn keys anew.
func resetHint(b bearer) string {
	if m, ok := b.(*MetaStore); ok {
		return fmt.Sprintf("update meta-store %d --resetPin", m.ID)
	}
	return fmt.Sprintf("update proxy-group %d --resetPins", idOf(b))
}

func parseEnrolment(body []byte) (e Enrolment, problem *Error) {
	given, problem := objectOf(body)
	if problem != nil {
		return e, problem
	}
	for name := range given {
		if name != "address" && name != "pin" {
			return e, bad(name, "an enrolment has no such field; there are address, pin")
		}
	}
	if json.Unmarshal(body, &e) != nil {
		return e, refuse(http.StatusBadRequest, "address and pin must be texts")
	}
	if e.Address, problem = cleanAddress("address", e.Address); problem != nil {
		return e, problem
	}
	if e.Pin != "" {
		return e, checkPin(e.Pin)
	}
	return e, nil
}

// enrolAt notes an enrolment in the object that it is for.
func enrolAt(b bearer, e Enrolment) (Enrolled, outcome) {
	if m, ok := b.(*MetaStore); ok {
		return Enrolled{Member: m.Address == e.Address}, m.learn(e.Pin)
	}
	g := b.(*ProxyGroup)
	if f := g.former(e.Address); f != nil && (f.Pin == "" || f.Pin == e.Pin) {
		f.Pin = e.Pin
		return Enrolled{}, outcome{}
	}
	if !slices.Contains(g.Addresses, e.Address) {
		return Enrolled{}, g.remember(e)
	}
	return Enrolled{Member: true}, g.learn(e.Address, e.Pin)
}

// names tells whether an object has a server at the address.
func names(b bearer, addr string) bool {
	if m, ok := b.(*MetaStore); ok {
		return m.Address == addr
	}
	g, ok := b.(*ProxyGroup)
	return ok && slices.Contains(g.Addresses, addr)
}

// remember keeps the key of a proxy that is not a member, for when it is.
func (g *ProxyGroup) remember(e Enrolment) outcome {
	pin, known := g.Waiting[e.Address]
	if known && pin == e.Pin || !known && len(g.Waiting) >= maxWaitingMembers {
		return outcome{}
	}
	if g.Waiting == nil {
		g.Waiting = map[string]string{}
	}
	g.Waiting[e.Address] = e.Pin
	return outcome{news: "proxy enrolled that is not a member of its group", address: e.Address, pin: e.Pin}
}

// learn takes a member's key if none is known, and notes one that differs.
func (g *ProxyGroup) learn(addr, pin string) outcome {
	if g.NoSSL {
		return outcome{}
	}
	known, refused := g.Pins[addr], g.RefusedPins[addr]
	o := learn(&known, &refused, addr, pin)
	g.Pins = with(g.Pins, addr, known)
	g.RefusedPins = with(g.RefusedPins, addr, refused)
	return o
}

func (m *MetaStore) learn(pin string) outcome {
	return learn(&m.Pin, &m.RefusedPin, m.Address, pin)
}

// learn decides about a key that a server showed. A key other than the known
// one is never taken: whoever answers at the address may be somebody else.
func learn(known, refused *string, addr, pin string) outcome {
	o := outcome{address: addr, pin: pin}
	switch {
	case pin == "":
	case *known == "":
		*known, *refused = pin, ""
		o.news = "key of server learnt and pinned"
	case *known != pin:
		o.refused = true
		if *refused != pin {
			o.news = "server shows another key than the pinned one, it is not trusted"
		}
		*refused = pin
	case *refused != "":
		*refused = ""
		o.news = "server shows its pinned key again"
	}
	return o
}

// with returns m with a value set, or taken out if it is "".
func with(m map[string]string, key, value string) map[string]string {
	if value == "" {
		delete(m, key)
		return m
	}
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}
