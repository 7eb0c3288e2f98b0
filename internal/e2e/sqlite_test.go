package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// transactions is a script of n transactions of two rows each, which says when
// each is committed.
func transactions(who string, n int) string {
	var b strings.Builder
	b.WriteString("PRAGMA busy_timeout=60000;\n")
	for i := range n {
		fmt.Fprintf(&b, "BEGIN IMMEDIATE; INSERT INTO t VALUES('%s',%d,'a',hex(randomblob(3000))); INSERT INTO t VALUES('%[1]s',%[2]d,'b',''); COMMIT; SELECT 'done';\n", who, i)
	}
	return b.String()
}

func sqlite(t *testing.T, db, script string) string {
	t.Helper()
	cmd := exec.Command("sqlite3", "-batch", "-bail", db)
	cmd.Stdin = strings.NewReader(script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(cmd, 2*time.Minute); err != nil && out.Len() == 0 {
		return err.Error()
	}
	return strings.TrimSpace(out.String())
}

// A mount dies in the middle of a transaction. When its lease has ended the other
// has the database, undoes what was half done, and goes on.
func TestADatabaseSurvivesTheKillOfAMount(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("there is no sqlite3")
	}
	w := newWorldOf(t, shape{mounts: 2})
	one, two := filepath.Join(w.dirs[0], "db"), filepath.Join(w.dirs[1], "db")
	if got := sqlite(t, one, "CREATE TABLE t(w,n,part,text);"); got != "" {
		t.Fatal(got)
	}
	dying, other := make(chan string), make(chan string)
	go func() { dying <- sqlite(t, one, transactions("one", 10000)) }()
	w.await(func() error {
		if got := sqlite(t, two, "PRAGMA busy_timeout=60000; SELECT count(*)>20 FROM t WHERE w='one';"); got != "60000\n1" {
			return fmt.Errorf("sqlite says %s", got)
		}
		return nil
	})
	go func() { other <- sqlite(t, two, transactions("two", 60)) }()
	time.Sleep(200 * time.Millisecond)
	w.kill("mount")
	committed := map[string]int{"one": strings.Count(<-dying, "done"), "two": strings.Count(<-other, "done")}
	if committed["two"] != 60 {
		t.Errorf("%d transactions on the mount that lives, want 60", committed["two"])
	}
	if got := sqlite(t, two, "PRAGMA integrity_check;"); got != "ok" {
		t.Fatalf("the database is not whole: %s", got)
	}
	if got := sqlite(t, two, "SELECT w,n FROM t GROUP BY w,n HAVING count(*)<>2;"); got != "" {
		t.Errorf("transactions done by halves: %s", got)
	}
	for who, n := range committed {
		got := sqlite(t, two, fmt.Sprintf("SELECT count(*)>=2*%d FROM t WHERE w='%s';", n, who))
		if got != "1" {
			t.Errorf("%d transactions of %s were committed, and not all are there (%s)", n, who, got)
		}
	}
	t.Logf("committed before the kill and on the other mount: %v", committed)
}
