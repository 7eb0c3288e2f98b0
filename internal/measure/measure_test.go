package measure

import (
	"context"
	"os"
	"testing"
	"time"
)

func TestTheMedianIsInTheMiddle(t *testing.T) {
	id := func(x float64) float64 { return x }
	for _, c := range []struct {
		all  []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{8, 1, 2, 100}, 5}} {
		if got := Median(c.all, id); got != c.want {
			t.Errorf("the median of %v is %v, and should be %v", c.all, got, c.want)
		}
	}
}

func TestQuantilesAreOfTheList(t *testing.T) {
	var list []time.Duration
	if got := Quantile(list, 0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	for i := range 100 {
		list = append(list, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0: 0, 0.5: 50, 0.99: 99, 1: 99} {
		if got := Quantile(list, q); got != want {
			t.Errorf("quantile %v is %d, and should be %d", q, got, want)
		}
	}
}

func TestForeignIsWhatNobodyElseHad(t *testing.T) {
	if got := Foreign(10*time.Second, 4*time.Second, 5*time.Second); got < 0.099 || got > 0.101 {
		t.Errorf("of 10 s, 4 idle and 5 ours, others had %v", got)
	}
	if got := Foreign(time.Second, time.Second, time.Second); got != 0 {
		t.Errorf("more than all was used, and others had %v of it", got)
	}
	if got := Foreign(0, 0, 0); got != 0 {
		t.Errorf("of no time others had %v", got)
	}
}

func TestAProcessIsStartedAwaitedAndStopped(t *testing.T) {
	p, err := Start("sleeper", []string{"WORD=said"}, "/bin/sh", "-c", "echo $WORD; exec sleep 60")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Await(ctx, func() error { _, err := CPU(p.Pid); return err }); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := p.Await(ctx, func() error { return os.ErrNotExist }); err == nil {
		t.Error("a process that has ended was ready")
	}
}

func TestAProcessThatFailsSaysWhy(t *testing.T) {
	p, err := Start("failing", nil, "/bin/sh", "-c", "echo no luck; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AwaitEnd(); err == nil || err.Error() != "failing failed:\nno luck\n" {
		t.Errorf("the error is %v", err)
	}
}
