// Package archtest holds the shape of the house: who may import whom, which
// folder is a library's only home, that each package says what it is, and what
// stands at the top level.
package archtest

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "flexfs"

// pkg is what go list tells about a package.
type pkg struct {
	ImportPath   string
	Dir          string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
	TestGoFiles  []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Standard,Imports,TestImports,XTestImports,GoFiles,TestGoFiles", module+"/...")
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }

func standard(path string) bool {
	return !strings.Contains(strings.SplitN(path, "/", 2)[0], ".") && !own(path)
}

func own(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

// homes are the only packages that may import a library: so replacing it
// touches one folder.
var homes = map[string][]string{
	"github.com/urfave/cli":          {"modes"},
	"go.etcd.io/bbolt":               {"admin"},
	"github.com/cockroachdb/pebble":  {"meta/engine"},
	"github.com/jacobsa/fuse":        {"fuse", "internal/memfs", "internal/powercut"},
	"github.com/aws/":                {"store/s3"},
	"github.com/dgraph-io/ristretto": {"cache"},
	"github.com/pierrec/lz4":         {"store/seal"},
	"github.com/klauspost/compress":  {"store/seal"},
	"golang.org/x/crypto":            {"store/seal"},
	"github.com/prometheus/":         {"modes", "internal/testcluster"},
}

// allowed are the packages of ours that a package may import, tests apart.
// What is not listed may import any package below internal and nothing else of
// ours; internal packages that only tests use are free.
var allowed = map[string][]string{
	".":               {"modes"},
	"store":           {},
	"meta":            {},
	"hashring":        {},
	"store/mem":       {"store"},
	"store/dir":       {"store"},
	"store/s3":        {"store"},
	"store/seal":      {"store"},
	"store/writeback": {"store"},
	"store/remote":    {"store", "store/seal", "hashring", "internal/ticket", "internal/tlspin"},
	"cache":           {"store", "store/seal"},
	"meta/engine":     {},
	"meta/tree":       {"meta", "meta/engine"},
	"fuse":            {"meta", "store", "cache"},
	"admin":           {"internal/ticket", "internal/tlspin"},
}

// free are packages that see everything: the wiring and what tests it.
func free(name string) bool {
	return name == "modes" || strings.HasPrefix(name, "internal/") || strings.HasSuffix(name, "test")
}

func TestPackagesImportOnlyWhatTheyMay(t *testing.T) {
	for _, p := range packages(t) {
		name := short(p.ImportPath)
		if p.ImportPath == module {
			name = "."
		}
		may, known := allowed[name]
		if !known && !free(name) {
			t.Errorf("package %s is not in the list of who may import whom: add it there, with thought", name)
		}
		for _, imp := range p.Imports {
			if own(imp) && !free(name) && !slices.Contains(may, short(imp)) {
				t.Errorf("%s imports %s, which it may not: see ARCHITECTURE.md", name, short(imp))
			}
		}
	}
}

func TestLeavesImportOnlyTheStandardLibrary(t *testing.T) {
	for _, p := range packages(t) {
		if !slices.Contains([]string{"store", "meta", "hashring"}, short(p.ImportPath)) {
			continue
		}
		for _, imp := range p.Imports {
			if !standard(imp) {
				t.Errorf("%s imports %s; it is a leaf", short(p.ImportPath), imp)
			}
		}
	}
}

func TestEachLibraryHasOneHome(t *testing.T) {
	for _, p := range packages(t) {
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for lib, home := range homes {
				if strings.HasPrefix(imp, lib) && !slices.Contains(home, short(p.ImportPath)) {
					t.Errorf("%s imports %s, whose home is %v", short(p.ImportPath), imp, home)
				}
			}
		}
	}
}

// The library's package has our package's name; one file of ours, and the serve
// loop, deal with both.
func TestOnlyTheMountSeesTheFUSELibrarysRoot(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, imp := range file.Imports {
				if imp.Path.Value == `"github.com/jacobsa/fuse"` && f != "mount.go" && f != "serve.go" {
					t.Errorf("%s/%s imports github.com/jacobsa/fuse; only mount.go and serve.go may", short(p.ImportPath), f)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		documented := len(p.GoFiles)+len(p.TestGoFiles) == 0
		for _, f := range slices.Concat(p.GoFiles, p.TestGoFiles) {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || hasText(file.Doc)
		}
		if !documented {
			t.Errorf("package %s has no doc comment", short(p.ImportPath))
		}
	}
}

func hasText(doc *ast.CommentGroup) bool { return doc != nil && strings.TrimSpace(doc.Text()) != "" }

func TestTopLevel(t *testing.T) {
	want := []string{
		".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md",
		"admin", "cache", "docs", "fuse", "go.mod", "go.sum", "hashring", "internal", "main.go", "meta", "modes",
		"store", "testdata", "third_party", "tools",
	}
	cmd := exec.Command("git", "ls-files")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skip("not a git checkout")
	}
	there := map[string]bool{}
	for _, path := range strings.Fields(string(out)) {
		top, _, _ := strings.Cut(path, "/")
		there[top] = true
		if !slices.Contains(want, top) {
			t.Errorf("%s is new at the top level: would a newcomer look for it there? Then add it here", top)
			want = append(want, top)
		}
	}
	for _, name := range []string{"main.go", "modes", "store", "cache", "fuse", "hashring", "go.mod", "go.sum", "testdata"} {
		if !there[name] {
			t.Errorf("%s is missing at the top level, where it is prescribed", name)
		}
	}
}
