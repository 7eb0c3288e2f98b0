package soak

import (
	"testing"
	"time"
)

func TestTheSameSeedMakesTheSameChoices(t *testing.T) {
	t.Setenv(minutesVar, "0.5")
	t.Setenv(seedVar, "7")
	a, b := Start(t), Start(t)
	if a.Uint64() != b.Uint64() || a.Part(3).Uint64() != b.Part(3).Uint64() {
		t.Error("two with seed 7 differ")
	}
	if a.Part(1).Uint64() == a.Part(2).Uint64() {
		t.Error("two parts make the same choices")
	}
	if left := time.Until(a.Deadline); a.Over() || left > 30*time.Second {
		t.Errorf("half a minute ends in %v", left)
	}
	t.Setenv(seedVar, "")
	if c, d := Start(t), Start(t); c.Seed == d.Seed {
		t.Error("seeds that nobody chose are the same")
	}
}

func TestALongTestIsSkippedUnlessItIsAskedFor(t *testing.T) {
	t.Setenv(minutesVar, "")
	ran := false
	t.Run("long", func(t *testing.T) { Start(t); ran = true })
	if ran {
		t.Error("it ran")
	}
}
