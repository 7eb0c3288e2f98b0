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
	"random read 4 KiB, warm, 1 job":  {{of: "value", atLeast: 20000}},
	"random read 4 KiB, warm, 8 jobs": {{of: "value", atLeast: 45000}},
	"sequential read, warm":           {{of: "fetched", atMost: 0.01}},
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
