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

// accounts is how many a bank has, each with 1000 at first.
const accounts = 5

const makeBank = `CREATE TABLE account(id INTEGER PRIMARY KEY, money);
CREATE TABLE transfer(who, n, source, target, amount, text);
INSERT INTO account VALUES (0,1000), (1,1000), (2,1000), (3,1000), (4,1000);`

// transfers is a script of n transactions, which says when each is committed.
func transfers(who string, n int) string {
	var b strings.Builder
	b.WriteString("PRAGMA busy_timeout=60000;\n")
	for i := range n {
		source, target, amount := i%accounts, (i*i+1)%accounts, 1+i%7
		fmt.Fprintf(&b, "BEGIN IMMEDIATE; UPDATE account SET money=money-%d WHERE id=%d; UPDATE account SET money=money+%[1]d WHERE id=%[3]d;\n", amount, source, target)
		fmt.Fprintf(&b, "INSERT INTO transfer VALUES('%s',%d,%d,%d,%d,hex(randomblob(3000))); COMMIT; SELECT 'done';\n", who, i, source, target, amount)
	}
	return b.String()
}

// wrongAccounts selects those that do not have what the transfers leave them.
const wrongAccounts = `SELECT * FROM account WHERE money <> 1000
	+ (SELECT total(amount) FROM transfer WHERE target = id) - (SELECT total(amount) FROM transfer WHERE source = id);`

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

// Mounts die in the middle of a transaction, one after the other. When its lease has
// ended the other has the database, undoes what was half done, and goes on.
func TestADatabaseSurvivesTheKillOfAMount(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("there is no sqlite3")
	}
	w := newWorldOf(t, shape{mounts: 2})
	dbs := []string{filepath.Join(w.dirs[0], "db"), filepath.Join(w.dirs[1], "db")}
	if got := sqlite(t, dbs[0], makeBank); got != "" {
		t.Fatal(got)
	}
	for round, name := range []string{"mount", "mount2", "mount"} {
		dying, other := dbs[round%2], dbs[1-round%2]
		killed, lives := fmt.Sprintf("round %d, killed", round), fmt.Sprintf("round %d, lives", round)
		outOfKilled, outOfOther := make(chan string), make(chan string)
		go func() { outOfKilled <- sqlite(t, dying, transfers(killed, 10000)) }()
		w.await(func() error {
			if got := sqlite(t, other, "PRAGMA busy_timeout=60000; SELECT count(*)>20 FROM transfer WHERE who='"+killed+"';"); got != "60000\n1" {
				return fmt.Errorf("sqlite says %s", got)
			}
			return nil
		})
		go func() { outOfOther <- sqlite(t, other, transfers(lives, 60)) }()
		time.Sleep(200 * time.Millisecond)
		w.kill(name)
		committed := map[string]int{killed: strings.Count(<-outOfKilled, "done")}
		w.again(name)
		committed[lives] = strings.Count(<-outOfOther, "done")
		t.Logf("committed: %v", committed)
		if committed[lives] != 60 {
			t.Errorf("%d transactions on the mount that lives, want 60", committed[lives])
		}
		for _, db := range dbs {
			if got := sqlite(t, db, "PRAGMA integrity_check;"); got != "ok" {
				t.Fatalf("the database is not whole: %s", got)
			}
			if got := sqlite(t, db, wrongAccounts); got != "" {
				t.Errorf("accounts that do not have what they should:\n%s", got)
			}
			for who, n := range committed { // and perhaps one that was not acknowledged
				if got := sqlite(t, db, fmt.Sprintf("SELECT count(DISTINCT n) BETWEEN %d AND %[1]d+1 FROM transfer WHERE who='%s';", n, who)); got != "1" {
					t.Errorf("%d transactions of %q were committed, and not all are there, or more (%s)", n, who, got)
				}
			}
		}
	}
}
