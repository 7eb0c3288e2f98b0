package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testName   = regexp.MustCompile(`\b(?:Test|Benchmark|Fuzz)[A-Z]\w*`)
	testFunc   = regexp.MustCompile(`(?m)^func (\w+)\(\w+ \*testing\.\w+\)`)
	tableRow   = regexp.MustCompile(`(?m)^\| (.*?) +\| (.+) \|$`)
	scriptName = regexp.MustCompile(`\btestdata/script/\w+\.txt\b`)
)

// A document that says which test proves a sentence is checked: the test is there.
func TestTheTestsThatDocumentsNameExist(t *testing.T) {
	have := testsBelow(t, root(t))
	named := 0
	for _, file := range documents(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range testName.FindAllString(string(text), -1) {
			named++
			if !have[name] {
				t.Errorf("%s names %s, and there is no such test", filepath.Base(file), name)
			}
		}
		for _, name := range scriptName.FindAllString(string(text), -1) {
			named++
			if _, err := os.Stat(filepath.Join(root(t), name)); err != nil {
				t.Errorf("%s names %s: %v", filepath.Base(file), name, err)
			}
		}
	}
	if named < 10 {
		t.Errorf("the documents name %d tests only: are they read at all?", named)
	}
}

// The tables of docs/semantics.md begin each row with words of the section that has
// the table's name. A promise that is changed takes its row with it.
func TestEachRowQuotesTheSentenceItProves(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs", "semantics.md"))
	if err != nil {
		t.Fatal(err)
	}
	prose, tables, _ := strings.Cut(string(text), "\n## Tests\n")
	sections := make(map[string]string)
	for _, s := range strings.Split(prose, "\n## ")[1:] {
		title, body, _ := strings.Cut(s, "\n")
		sections[title] = oneLine(body)
	}
	rows := 0
	for _, table := range strings.Split(tables, "\n### ")[1:] {
		title, body, _ := strings.Cut(table, "\n")
		for _, row := range tableRow.FindAllStringSubmatch(body, -1) {
			if row[1] == "sentence" {
				continue // the head
			}
			rows++
			if !testName.MatchString(row[2]) {
				t.Errorf("the table of %q names no test for %q", title, row[1])
			}
			if !strings.Contains(sections[title], oneLine(row[1])) {
				t.Errorf("the table of %q has a row for %q, which the section %[1]q does not say", title, row[1])
			}
		}
	}
	if rows < 100 {
		t.Errorf("the tables have %d rows only: are they read at all?", rows)
	}
}

// oneLine returns text with single spaces, however its lines are broken.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func documents(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

// testsBelow returns the names of all test functions in dir.
func testsBelow(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "made-by-make" {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "test/") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil || d.IsDir() {
			return nil
		}
		for _, m := range testFunc.FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
