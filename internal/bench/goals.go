package main

// A goal is what a figure of a row should be.
type goal struct {
	of      string // one of goalFigures
	atLeast float64
	atMost  float64 // if atLeast is 0
}

// goalFigures are the figures that goals are about.
var goalFigures = map[string]func(*figure) float64{
	"value":     func(f *figure) float64 { return f.Value },
	"cpuPerOp":  func(f *figure) float64 { return f.CPUPerOp },
	"cpuPerGiB": func(f *figure) float64 { return f.CPUPerGiB },
	"fetched":   func(f *figure) float64 { return f.Fetched },
	"peakMount": func(f *figure) float64 { return f.PeakMount },
}

// goals are those of rows, by their name, on two cores and with a bucket that is
// near.
var goals = map[string][]goal{
	"create 4 KiB, 1 thread":        {{of: "value", atLeast: 2000}},
	"create 4 KiB, 8 threads":       {{of: "value", atLeast: 5000}},
	"read 4 KiB, cold, 1 thread":    {{of: "value", atLeast: 2500}},
	"read 4 KiB, cold, 8 threads":   {{of: "value", atLeast: 5000}},
	"read 4 KiB, warm, 1 thread":    {{of: "value", atLeast: 4000}},
	"read 4 KiB, warm, 8 threads":   {{of: "value", atLeast: 7500}},
	"stat, cold, 1 thread":          {{of: "value", atLeast: 4500}},
	"stat, cold, 8 threads":         {{of: "value", atLeast: 11000}},
	"readdir+lstat, cold, 1 thread": {{of: "value", atLeast: 100_000}},
	"delete, 1 thread":              {{of: "value", atLeast: 2500}},
	"delete, 8 threads":             {{of: "value", atLeast: 7000}},

	"random read 4 KiB, cold, 1 job":  {{of: "value", atLeast: 1500}, {of: "fetched", atMost: 40}},
	"random read 4 KiB, warm, 1 job":  {{of: "value", atLeast: 20_000}, {of: "cpuPerOp", atMost: 25e-6}},
	"random read 4 KiB, warm, 8 jobs": {{of: "value", atLeast: 45_000}, {of: "cpuPerOp", atMost: 25e-6}},
	"sequential write, fsync":         {{of: "value", atLeast: 400}, {of: "cpuPerGiB", atMost: 1.2}},
	"sequential read, cold":           {{of: "value", atLeast: 700}, {of: "cpuPerGiB", atMost: 1.2}},
	"sequential read, warm":           {{of: "value", atLeast: 1300}, {of: "cpuPerGiB", atMost: 1.2}, {of: "fetched", atMost: 0.01}},

	"untar":            {{of: "value", atMost: 4}},
	"grep -r, cold":    {{of: "value", atMost: 2}},
	"grep -r, warm":    {{of: "value", atMost: 0.5}},
	"git clone":        {{of: "value", atMost: 4}},
	"git status, cold": {{of: "value", atMost: 0.4}},
	"memory at rest":   {{of: "value", atMost: 60}},
}

// A goalResult is a goal and whether it is reached.
type goalResult struct {
	Figure  string  `json:"figure"`
	AtLeast float64 `json:"atLeast,omitempty"`
	AtMost  float64 `json:"atMost,omitempty"`
	Is      float64 `json:"is"`
	Reached bool    `json:"reached"`
}

// judge compares a figure with the goals of its row.
func judge(row string, f *figure) []goalResult {
	var all []goalResult
	if f == nil {
		return nil
	}
	for _, g := range goals[row] {
		is := goalFigures[g.of](f)
		r := goalResult{Figure: g.of, AtLeast: g.atLeast, AtMost: g.atMost, Is: is, Reached: is >= g.atLeast}
		if g.atLeast == 0 {
			r.Reached = is <= g.atMost
		}
		all = append(all, r)
	}
	return all
}
