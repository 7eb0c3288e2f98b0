package ticket

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"
)

// Clocks that differ by minutes are all right; what is beyond is told so that one
// sees which clock is wrong.
func TestATicketThatEndedSaysWhichTimeItIs(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	admins := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	text := Sign(Ticket{Volume: "v", Expires: admins.Add(time.Hour).Unix()}, private)
	for _, skew := range []time.Duration{-10 * 365 * 24 * time.Hour, -30 * time.Minute, 0, 30 * time.Minute} {
		if _, err := Verify(text, []ed25519.PublicKey{public}, admins.Add(skew)); err != nil {
			t.Errorf("where the clock is %v ahead of admin's: %v", skew, err)
		}
	}
	_, err = Verify(text, []ed25519.PublicKey{public}, admins.Add(2*time.Hour))
	if !errors.Is(err, ErrExpired) || !strings.Contains(err.Error(), "here it is 2026-05-01 14:00:00 +0000 UTC") {
		t.Errorf("where the clock is two hours ahead: %v", err)
	}
}
