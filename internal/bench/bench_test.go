package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// beBench has this test program be the command, which starts itself again.
const beBench = "FLEXFS_BENCH_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(beBench) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A tiny run on a real mount: everything is started, measured, and gone.
func TestAFewRowsAreMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a whole cluster")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skip("needs /dev/fuse and root")
	}
	dir := t.TempDir()
	program, report := filepath.Join(dir, "flexfs"), filepath.Join(dir, "out", "bench.json")
	if out, err := exec.Command("go", "build", "-o", program, "flexfs").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-flexfs", program, "-json", report, "-markdown", report+".md", "-repeats", "1", "-files", "20", "-big", "8388608",
		"-run", "^(request PUT 4 MiB, 8 clients|read 4 KiB, cold, 8 threads|sequential write, fsync)$")
	cmd.Env = append(os.Environ(), beBench+"=1", "TMPDIR="+tmp)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	table, err := os.ReadFile(report + ".md")
	if err != nil || strings.Count(string(table), "\n") != 2+3 || !strings.Contains(string(table), "\n| sequential write, fsync | ") {
		t.Errorf("the table for documents is %v\n%s", err, table)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r results
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 3 || r.Repeats != 1 {
		t.Fatalf("there are %d rows and %d repeats, not 3 and 1\n%s", len(r.Rows), r.Repeats, out)
	}
	if put := r.Rows[0].Ceiling; put == nil || put.Value <= 0 || put.Samples[0].Puts < 8 {
		t.Errorf("requests alone were not measured: %+v", put)
	}
	for _, row := range r.Rows[1:] {
		if row.Floor == nil || row.Ceiling == nil || row.Flexfs == nil || row.Flexfs.Value <= 0 || row.OfFloor <= 0 || row.OfCeiling <= 0 ||
			row.Flexfs.CPUPerOp <= 0 || row.Flexfs.MetaPerOp <= 0 || row.Flexfs.PeakMount <= 0 {
			t.Errorf("%s lacks figures: %+v", row.Name, row)
		}
	}
	write := r.Rows[2]
	if write.OfRaw <= 0 {
		t.Error("writing was not compared with requests alone")
	}
	if s := write.Flexfs.Samples[0]; s.Puts < 2 || s.ToBucket < 8<<20 || s.Bytes != 8<<20 {
		t.Errorf("8 MiB were written with %d PUTs of %d bytes", s.Puts, s.ToBucket)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("%d files are left behind (%v)", len(left), err)
	}
}

func TestFioReportsAreRead(t *testing.T) {
	l, err := parseFio([]byte(`{"jobs":[{"error":0,"read":{"io_bytes":8192,"total_ios":2,"runtime":1500,
		"clat_ns":{"percentile":{"50.000000":7000,"99.000000":9000}}},"write":{"io_bytes":0,"total_ios":0}}]}`))
	if want := (load{ops: 2, bytes: 8192, took: 1500 * time.Millisecond, p50: 7000, p99: 9000}); err != nil || l != want {
		t.Errorf("it is %+v (%v), and should be %+v", l, err, want)
	}
	for _, text := range []string{`{}`, `no`, `{"jobs":[{"error":5,"read":{"total_ios":1,"runtime":1}}]}`, `{"jobs":[{}]}`} {
		if _, err := parseFio([]byte(text)); err == nil {
			t.Errorf("%s was taken for a report", text)
		}
	}
}

func TestMetricsAreRead(t *testing.T) {
	got, err := parseMetrics(strings.NewReader("# HELP a b\na 1\nb{x=\"y z\"} 2.5\nb{x=\"w\"} 1e3\n\n"))
	if err != nil || got["a"] != 1 || got["b"] != 1002.5 || len(got) != 2 {
		t.Errorf("it is %v (%v)", got, err)
	}
	if _, err := parseMetrics(strings.NewReader("a b\n")); err == nil {
		t.Error("a word was taken for a number")
	}
}

func TestRatiosAreOfNeighbours(t *testing.T) {
	of := func(values ...float64) (all []sample) {
		for _, v := range values {
			all = append(all, sample{Value: v})
		}
		return all
	}
	for _, c := range []struct {
		unit       unit
		one, other []sample
		want       float64
	}{
		{perSecond, of(10, 30, 1000), of(20, 30, 40), 1},
		{seconds, of(10, 10), of(5, 5), 0.5},
		{megabytes, of(10, 20), of(40), 0.25}, // a repeat that was broken off
		{megabytes, of(10), nil, 0},
		{megabytes, of(10), of(0), 0},
	} {
		if got := ratioOf(c.unit, c.one, c.other); got != c.want {
			t.Errorf("%v and %v in %s give %v, and should give %v", c.one, c.other, c.unit, got, c.want)
		}
	}
}

func TestFiguresAreMediansPerOperation(t *testing.T) {
	f := figureOf([]sample{
		{Ops: 10, Bytes: 1 << 30, Value: 5, MountCPU: 1, MetaCPU: 2, ProxyCPU: 2, MetaCalls: 20, Gets: 5, FromBucket: 1 << 29},
		{Ops: 10, Bytes: 1 << 30, Value: 7, MountCPU: 1, MetaCPU: 2, ProxyCPU: 4, MetaCalls: 40, Gets: 5, FromBucket: 1 << 29},
	})
	if f.Value != 6 || math.Abs(f.CPUPerOp-0.6) > 1e-9 || math.Abs(f.CPUPerGiB-6) > 1e-9 || f.MetaPerOp != 3 || f.ReqPerOp != 0.5 || f.Fetched != 0.5 {
		t.Errorf("it is %+v", f)
	}
	if figureOf(nil) != nil {
		t.Error("nothing has a figure")
	}
}

func TestGoalsAreJudged(t *testing.T) {
	reached := func(row, of string, f *figure) bool {
		for _, r := range judge(row, f) {
			if r.Figure == of {
				return r.Reached
			}
		}
		t.Fatalf("%s is not judged by its %s", row, of)
		return false
	}
	for value, want := range map[float64]bool{19999: false, 20000: true} {
		if got := reached("random read 4 KiB, warm, 1 job", "value", &figure{Value: value}); got != want {
			t.Errorf("%v: reached is %v", value, got)
		}
	}
	for value, want := range map[float64]bool{0: true, 0.5: false} {
		if got := reached("sequential read, warm", "fetched", &figure{Fetched: value}); got != want {
			t.Errorf("%v fetched: reached is %v", value, got)
		}
	}
	if got := judge("no such row", &figure{}); got != nil {
		t.Errorf("a row without goals is judged %+v", got)
	}
}

func TestEveryGoalIsOfARow(t *testing.T) {
	l := &lab{opt: options{big: 1 << 20, files: 10}}
	all := l.scenarios()
	there := make(map[string]bool)
	for _, s := range all {
		for _, row := range rowsOf(s.steps) {
			if there[row] {
				t.Errorf("there are two rows %q", row)
			}
			there[row] = true
		}
	}
	for row, list := range goals {
		if !there[row] {
			t.Errorf("there is a goal for %q, which is no row", row)
		}
		for _, g := range list {
			if goalFigures[g.of] == nil {
				t.Errorf("%q has a goal of %q, which is no figure", row, g.of)
			}
		}
	}
}

func TestRawRequestsAreRowsOfTheirOwn(t *testing.T) {
	l := &lab{opt: options{big: 1 << 20, files: 10}}
	units := make(map[string]unit)
	for _, s := range l.scenarios() {
		for _, t := range s.steps {
			units[t.row] = t.unit
		}
	}
	for row, raw := range rawOf {
		if units[row] == "" || units[row] != units[raw] {
			t.Errorf("%q is compared with %q, but they are %q and %q", row, raw, units[row], units[raw])
		}
	}
}

func TestOnlyWhatIsNeededIsDone(t *testing.T) {
	l := &lab{opt: options{big: 1 << 20, files: 10}}
	c := &collector{lab: l}
	names := func(steps []step) string {
		var all []string
		for _, t := range steps {
			all = append(all, t.row)
		}
		return strings.Join(all, "; ")
	}
	for run, want := range map[string]string{
		"^stat, warm, 1 thread$":           "create 4 KiB, 1 thread; stat, cold, 1 thread; stat, warm, 1 thread",
		"^stat, cold, 1 thread$":           "create 4 KiB, 1 thread; stat, cold, 1 thread",
		"^create":                          "create 4 KiB, 1 thread",
		"nothing":                          "",
		"^(delete|read 4 KiB, warm), 1 th": "create 4 KiB, 1 thread; read 4 KiB, cold, 1 thread; read 4 KiB, warm, 1 thread; delete, 1 thread",
	} {
		c.opt.run = regexp.MustCompile(run)
		if got := names(c.wanted(l.small(1), onFlexfs)); got != want {
			t.Errorf("-run %q does %q, and should do %q", run, got, want)
		}
	}
}

func TestNumbersAreShort(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.0001: "<0.001", 0.0123: "0.012", 0.25: "0.25", 9.999: "10.00", 12.34: "12.3", 1234.5: "1234"} {
		if got := short(x); got != want {
			t.Errorf("%v is written %s, and should be %s", x, got, want)
		}
	}
}

func TestHeadsAreRead(t *testing.T) {
	in := bufio.NewReader(strings.NewReader("PUT /a HTTP/1.1\r\nHost: b\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n"))
	head, method, length, err := readHead(in)
	if err != nil || method != "PUT" || length != 3 || !bytes.HasSuffix(head, []byte("3\r\n\r\n")) {
		t.Errorf("the head is %q, %s, %d (%v)", head, method, length, err)
	}
	in.Discard(3)
	if _, method, length, err := readHead(in); err != nil || method != "GET" || length != 0 {
		t.Errorf("the second is %s, %d (%v)", method, length, err)
	}
	if _, _, _, err := readHead(in); err != io.EOF {
		t.Errorf("after the last there is %v", err)
	}
}

func TestTheRelayCountsAndDelays(t *testing.T) {
	const size, delay = 3 << 20, 20 * time.Millisecond
	body := bytes.Repeat([]byte("x"), size)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, body) {
				t.Errorf("the body has %d bytes (%v)", len(got), err)
			}
			return
		}
		w.Write(body)
	}))
	defer srv.Close()
	r, err := startRelay(strings.TrimPrefix(srv.URL, "http://"), delay)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	before := r.traffic()
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Second}}
	defer client.CloseIdleConnections()
	start := time.Now()
	for _, method := range []string{"PUT", "GET", "GET", "HEAD"} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.addr+"/", nil)
		if method == "PUT" {
			req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), size
			req.Header.Set("Expect", "100-continue")
		}
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || method == "GET" && n != size {
			t.Errorf("%s brought %d bytes (%v)", method, n, err)
		}
		resp.Body.Close()
	}
	if took := time.Since(start); took < 4*delay {
		t.Errorf("four requests took %v", took)
	}
	got := r.traffic().since(before)
	if got.gets != 2 || got.puts != 1 || got.others != 1 || got.up < size || got.up > size+4096 || got.down < 2*size || got.down > 2*size+8192 {
		t.Errorf("it counted %+v", got)
	}
}

func TestTheDriverDoesItsShare(t *testing.T) {
	for _, threads := range []int{1, 3} {
		job := smallJob{Dir: t.TempDir(), Files: 3*filesPerDir + 7, Threads: threads, Limit: time.Minute}
		for _, op := range []string{"create", "stat", "read", "list", "delete"} {
			job.Op = op
			done, err := job.do()
			if err != nil || done.Ops != job.Files || done.P99 < done.P50 || done.P50 <= 0 {
				t.Fatalf("%s by %d threads: %+v (%v)", op, threads, done, err)
			}
			job.Have = done.Have
		}
	}
	job := smallJob{Op: "stat", Dir: t.TempDir(), Files: 1, Threads: 1, Limit: time.Minute}
	if _, err := job.do(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the error for a file that is missing is %v", err)
	}
}
