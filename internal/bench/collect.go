package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A scenario is work that is done in one go in a fresh place, and rows on the way.
type scenario struct {
	name   string
	places []string
	steps  []step
	place  func(name string) place // nil: the usual ones
}

// A step is a part of a scenario.
type step struct {
	row      string // "": it is not measured
	unit     unit
	cold     bool     // nothing may be in caches before
	restart  bool     // nothing may be in caches but the disk cache
	places   []string // nil: all of the scenario
	neededBy []string // rows that need it done before; nil with no row: all
	do       func(ctx context.Context, p place) (load, error)
}

// A collector does scenarios and keeps what it measured.
type collector struct {
	opt     options
	lab     *lab
	rows    []*rowSamples // in the order of the scenarios
	repeats int           // done wholly
}

type rowSamples struct {
	name    string
	unit    unit
	samples map[string][]sample // by place
}

// repeat does all scenarios again and again, while there is time.
func (c *collector) repeat(ctx context.Context) error {
	all := c.lab.scenarios()
	c.makeRows(all)
	var longest time.Duration
	for c.repeats < c.opt.repeats {
		if end, ok := ctx.Deadline(); ok && time.Until(end) < longest+longest/10 {
			fmt.Fprintf(os.Stderr, "bench: no time for more than %d repeats\n", c.repeats)
			return nil
		}
		start := time.Now()
		for _, s := range all {
			if err := c.scenario(ctx, s); err != nil {
				return err
			}
		}
		longest = max(longest, time.Since(start))
		c.repeats++
	}
	return nil
}

// scenario does one in each of its places in turn.
func (c *collector) scenario(ctx context.Context, s scenario) error {
	for _, name := range s.places {
		steps := c.wanted(s, name)
		if len(steps) == 0 {
			continue
		}
		start := time.Now()
		make := c.lab.place
		if s.place != nil {
			make = s.place
		}
		err := c.in(ctx, name, make(name), steps)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", s.name, name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: %d: %s, %s: %.1fs\n", c.repeats+1, s.name, name, time.Since(start).Seconds())
	}
	return nil
}

// wanted returns the steps that there are in a place and that are asked for, or
// that those need; none if nothing would be measured.
func (c *collector) wanted(s scenario, place string) []step {
	var all []step
	ask := func(row string) bool { return row != "" && c.opt.run.MatchString(row) }
	last := 0
	for _, t := range s.steps {
		if t.places != nil && !slices.Contains(t.places, place) {
			continue
		}
		if t.row == "" && t.neededBy == nil || ask(t.row) || slices.ContainsFunc(t.neededBy, ask) {
			all = append(all, t)
		}
		if ask(t.row) {
			last = len(all)
		}
	}
	return all[:last]
}

// in does the steps in a place, which it makes ready before and clears afterwards.
func (c *collector) in(ctx context.Context, name string, p place, steps []step) (err error) {
	defer func() { err = errors.Join(err, p.end()) }()
	if err := p.begin(ctx); err != nil {
		return err
	}
	for _, t := range steps {
		if t.cold {
			if err := p.cold(ctx); err != nil {
				return err
			}
		}
		if f, ok := p.(*flexfs); ok && t.restart {
			if err := f.restart(ctx); err != nil {
				return err
			}
		}
		if err := c.step(ctx, name, p, t); err != nil {
			return fmt.Errorf("%s: %w", t.row, err)
		}
	}
	return nil
}

func (c *collector) step(ctx context.Context, name string, p place, t step) error {
	before, err := c.lab.use(ctx, p.servers())
	if err != nil {
		return err
	}
	stop := c.profile(ctx, t.row+" "+name, p)
	defer stop()
	done, err := t.do(ctx, p)
	if err != nil || t.row == "" || !c.opt.run.MatchString(t.row) {
		return err
	}
	after, err := c.lab.use(ctx, p.servers())
	if err != nil {
		return err
	}
	for _, r := range c.rows {
		if r.name == t.row {
			r.samples[name] = append(r.samples[name], sampleOf(done, t.unit, before, after))
		}
	}
	return nil
}

// makeRows makes a row of each step that is measured.
func (c *collector) makeRows(all []scenario) {
	for _, s := range all {
		for _, t := range s.steps {
			if t.row != "" && c.opt.run.MatchString(t.row) {
				c.rows = append(c.rows, &rowSamples{name: t.row, unit: t.unit, samples: make(map[string][]sample)})
			}
		}
	}
}

// profile writes CPU profiles of mount and metadata service, one for each second,
// until stop is called, which waits for the last.
func (c *collector) profile(ctx context.Context, name string, p place) (stop func()) {
	if c.opt.profiles == "" || len(p.servers().debug) == 0 {
		return func() {}
	}
	name = filepath.Join(c.opt.profiles, regexp.MustCompile(`[^a-zA-Z0-9]+`).ReplaceAllString(name, "-"))
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for what, addr := range map[string]string{"mount": p.servers().debug[0], "meta": c.lab.adminDebug} {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				file := fmt.Sprintf("%s-%s-%d-%02d.pprof", name, what, c.repeats+1, i)
				if err := fetchProfile(context.WithoutCancel(ctx), addr, file); err != nil {
					fmt.Fprintln(os.Stderr, "bench: no profile:", err)
					return
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func fetchProfile(ctx context.Context, addr, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/debug/pprof/profile?seconds=1", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o755)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// results are what was measured, as it is written as JSON.
type results struct {
	When        time.Time   `json:"when"`
	CPUs        int         `json:"cpus"`
	Kernel      string      `json:"kernel"`
	Repeats     int         `json:"repeats"`
	BucketDelay float64     `json:"bucketDelay"` // seconds
	Mount       string      `json:"mount"`       // flags of flexfs mount
	Rows        []rowResult `json:"rows"`
}

type rowResult struct {
	Name      string       `json:"name"`
	Unit      unit         `json:"unit"`
	Floor     *figure      `json:"floor,omitempty"`
	Ceiling   *figure      `json:"ceiling,omitempty"`
	Flexfs    *figure      `json:"flexfs,omitempty"`
	OfFloor   float64      `json:"ofFloor,omitempty"` // speed of flexfs as a share of the floor's
	OfCeiling float64      `json:"ofCeiling,omitempty"`
	OfRaw     float64      `json:"ofRaw,omitempty"` // of the requests that it needs at least
	Goals     []goalResult `json:"goals,omitempty"`
}

func (c *collector) results() *results {
	r := &results{When: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Kernel: kernel(), Repeats: c.repeats, BucketDelay: c.opt.delay.Seconds()}
	for _, row := range c.rows {
		of := row.samples
		if len(of) == 0 {
			continue // something failed before
		}
		f := figureOf(of[onFlexfs])
		r.Rows = append(r.Rows, rowResult{
			Name: row.name, Unit: row.unit, Floor: figureOf(of[onFloor]), Ceiling: figureOf(of[onCeiling]), Flexfs: f,
			OfFloor: ratioOf(row.unit, of[onFlexfs], of[onFloor]), OfCeiling: ratioOf(row.unit, of[onFlexfs], of[onCeiling]),
			OfRaw: ratioOf(row.unit, of[onFlexfs], c.samplesOf(rawOf[row.name], onCeiling)),
			Goals: judge(row.name, f),
		})
	}
	return r
}

func (c *collector) samplesOf(row, place string) []sample {
	for _, r := range c.rows {
		if r.name == row {
			return r.samples[place]
		}
	}
	return nil
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return strings.TrimRight(string(u.Release[:]), "\x00")
}
