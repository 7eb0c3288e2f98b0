package coherence

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"flexfs/internal/soak"
)

// needSQLite skips the test where there is no sqlite3, which internal/setup
// installs.
func needSQLite(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("there is no sqlite3")
	}
}

// sqlite runs a script and returns what it says.
func sqlite(t *testing.T, db, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sqlite3", "-batch", "-bail", db)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		return err.Error()
	}
	return strings.TrimSpace(string(out))
}

// A writer does transactions of two rows each, in programs that are killed.
type writer struct {
	*rand.Rand
	db, mode string
	id       int

	next int   // the number of its next transaction
	done []int // those that were committed
}

// work does transactions until n are committed, or the time is over.
func (wr *writer) work(n int, over func() bool) error {
	for len(wr.done) < n && !over() {
		if err := wr.program(n - len(wr.done)); err != nil {
			return err
		}
	}
	return nil
}

// program runs one sqlite3 for some transactions, and mostly kills it before it
// is done.
func (wr *writer) program(most int) error {
	n := min(most, 1+wr.IntN(40))
	var script bytes.Buffer
	fmt.Fprintf(&script, "PRAGMA busy_timeout=20000; PRAGMA journal_mode=%s; PRAGMA cache_size=5;\n", wr.mode)
	first := wr.next
	for range n {
		fmt.Fprintf(&script, "BEGIN IMMEDIATE; INSERT INTO t VALUES(%d,%d,'a',hex(randomblob(2000))); UPDATE sum SET n=n+1;"+
			" INSERT INTO t VALUES(%[1]d,%[2]d,'b',hex(randomblob(20))); COMMIT; SELECT 'done', %[2]d;\n", wr.id, wr.next)
		wr.next++
	}
	cmd := exec.Command("sqlite3", "-batch", "-bail", wr.db)
	cmd.Stdin = &script
	var says bytes.Buffer
	cmd.Stderr = &says
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()
	dies := wr.IntN(n + n/2 + 1)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var k int
		if c, _ := fmt.Sscanf(lines.Text(), "done|%d", &k); c == 1 {
			wr.done = append(wr.done, k)
			if k-first == dies { // somewhere in the next
				time.Sleep(time.Duration(wr.IntN(8000)) * time.Microsecond)
				cmd.Process.Kill()
			}
		}
	}
	io.Copy(io.Discard, out)
	cmd.Wait()
	if text := says.String(); text != "" && !strings.Contains(text, "locked") {
		return fmt.Errorf("sqlite3 says %s", text)
	}
	return nil
}

// bank has writers on two mounts do n transactions each to one database, and
// then makes sure that what was committed is there, and nothing by halves. It
// returns how many were committed.
func bank(t *testing.T, w *World, mode string, seed uint64, n int, over func() bool) (committed int) {
	t.Helper()
	db := "db-" + strings.ToLower(mode) + fmt.Sprint(seed)
	if got := sqlite(t, w.Mounts[0].Path(db), "CREATE TABLE t(w,n,part,text); CREATE TABLE sum(n); INSERT INTO sum VALUES(0);"); got != "" {
		t.Fatal(got)
	}
	var writers []*writer
	var wg sync.WaitGroup
	for id := range 2 {
		wr := &writer{Rand: rand.New(rand.NewPCG(seed, uint64(id))), db: w.Mounts[id].Path(db), mode: mode, id: id}
		writers = append(writers, wr)
		wg.Go(func() {
			if err := wr.work(n, over); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, m := range w.Mounts {
		if got := sqlite(t, m.Path(db), "PRAGMA integrity_check;"); got != "ok" {
			t.Fatalf("the database is not whole: %s", got)
		}
		if got := sqlite(t, m.Path(db), "SELECT w,n FROM t GROUP BY w,n HAVING count(*)<>2 OR min(part)<>'a' OR max(part)<>'b';"); got != "" {
			t.Errorf("transactions done by halves: %s", got)
		}
		if got := sqlite(t, m.Path(db), "SELECT (SELECT n FROM sum)-(SELECT count(*)/2 FROM t);"); got != "0" {
			t.Errorf("the sum differs from the transactions by %s", got)
		}
	}
	for _, wr := range writers {
		there := map[string]bool{}
		for _, line := range strings.Fields(sqlite(t, w.Mounts[2].Path(db), fmt.Sprintf("SELECT DISTINCT n FROM t WHERE w=%d;", wr.id))) {
			there[line] = true
		}
		for _, k := range wr.done {
			if !there[fmt.Sprint(k)] {
				t.Errorf("transaction %d of writer %d was committed and is not there", k, wr.id)
			}
		}
		t.Logf("%s, writer %d: %d transactions, %d of them committed", mode, wr.id, wr.next, len(wr.done))
		committed += len(wr.done)
	}
	return committed
}

// Writers on two mounts, in programs that are killed, lose nothing that was
// committed.
func TestSQLiteOnTwoMounts(t *testing.T) {
	needSQLite(t)
	w := New(t, Options{})
	for i, mode := range []string{"DELETE", "TRUNCATE", "PERSIST"} {
		t.Run(mode, func(t *testing.T) {
			bank(t, w, mode, uint64(i), 50, func() bool { return false })
		})
	}
}

// A database in WAL mode has an index in memory that its users share, which two
// mounts cannot. While one has it the others find it locked; afterwards they
// have it.
func TestSQLiteInWALModeIsOfOneMountAtATime(t *testing.T) {
	needSQLite(t)
	w := New(t, Options{Lease: 2 * time.Second})
	a, b := w.Mounts[0].Path("db"), w.Mounts[1].Path("db")
	if got := sqlite(t, a, "PRAGMA journal_mode=WAL; CREATE TABLE t(n); INSERT INTO t VALUES(1);"); got != "wal" {
		t.Fatal(got)
	}
	if got := sqlite(t, b, "INSERT INTO t VALUES(2); SELECT sum(n) FROM t;"); got != "3" {
		t.Errorf("after the first mount has closed it: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sqlite3", "-batch", "-interactive", a)
	in, err := cmd.StdinPipe()
	w.must("pipe", err)
	out, err := cmd.StdoutPipe()
	w.must("pipe", err)
	w.must("start", cmd.Start())
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	ask := func(script, want string) {
		t.Helper()
		fmt.Fprintln(in, script)
		for lines.Scan() {
			if strings.HasSuffix(lines.Text(), want) {
				return
			}
		}
		t.Errorf("%s: no %s comes", script, want)
	}
	ask("INSERT INTO t VALUES(3); SELECT 'sum', sum(n) FROM t;", "sum|6")
	locked := func(when string) {
		t.Helper()
		fd, err := open(b+"-shm", unix.O_RDWR, 0)
		w.must("open", err)
		defer unix.Close(fd)
		err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 1 << 20, Len: 1})
		if err != unix.EAGAIN {
			t.Errorf("%s, a lock of the other mount beside all others: %v, want EAGAIN", when, err)
		}
	}
	locked("while one mount has it")
	if got := sqlite(t, a, "INSERT INTO t VALUES(4); SELECT sum(n) FROM t;"); got != "10" {
		t.Errorf("another program on the same mount: %s", got)
	}
	ask("SELECT 'sum', sum(n) FROM t;", "sum|10")
	w.Crash(0, 1)
	locked("after the service was started again")
	// SQLite tries for 10 s.
	if got := sqlite(t, b, "INSERT INTO t VALUES(9);"); !strings.Contains(got, "locking protocol") {
		t.Errorf("on the other mount SQLite says %q", got)
	}
	ask("INSERT INTO t VALUES(5); SELECT 'sum', sum(n) FROM t;", "sum|15")
	cmd.Process.Kill()
	cmd.Wait()
	if got := sqlite(t, b, "PRAGMA busy_timeout=20000; INSERT INTO t VALUES(6); SELECT sum(n) FROM t; PRAGMA integrity_check;"); got != "20000\n21\nok" {
		t.Errorf("after the program was killed: %s", got)
	}
}

// The writers must get on too: they commit 10,000 transactions an hour at the least,
// the first minute apart.
func TestSoakSQLite(t *testing.T) {
	needSQLite(t)
	s := soak.Start(t)
	length := time.Until(s.Deadline)
	w := New(t, Options{Lease: 3 * time.Second})
	committed := 0
	for n := uint64(0); !s.Over(); n++ {
		mode := []string{"DELETE", "TRUNCATE", "PERSIST"}[n%3]
		t.Run(fmt.Sprint(mode, " ", n), func(t *testing.T) { committed += bank(t, w, mode, s.Seed+n, 500, s.Over) })
	}
	t.Logf("%d transactions were committed in %v", committed, length.Round(time.Second))
	if least := int(10_000 * (length - time.Minute).Hours()); committed < least {
		t.Errorf("%d transactions were committed, want %d at the least", committed, least)
	}
}
