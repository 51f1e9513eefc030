package kata_test

import (
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/config"
)

// readDoc returns a page of the documentation.
func readDoc(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryKeyIsDocumented(t *testing.T) {
	page := readDoc(t, "docs/configuration.md")
	var keys []string
	for section := range reflect.TypeFor[config.Config]().Fields() {
		for key := range section.Type.Fields() {
			keys = append(keys, section.Tag.Get("toml")+"."+key.Tag.Get("toml"))
		}
	}
	for _, k := range keys {
		if !strings.Contains(page, "| `"+k+"` |") {
			t.Errorf("docs/configuration.md has no line for %s", k)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+\\.[a-z_]+)` \\|").FindAllStringSubmatch(page, -1) {
		if !slices.Contains(keys, m[1]) {
			t.Errorf("docs/configuration.md has a line for %s, which is no key", m[1])
		}
	}
}

// testNames returns the names of all tests and fuzz tests by file, whatever
// their build tags.
func testNames(t *testing.T) map[string][]string {
	t.Helper()
	names := make(map[string][]string)
	sources(t, func(path string, _ *token.FileSet, file *ast.File) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && regexp.MustCompile(`^(Test|Fuzz)[A-Z]`).MatchString(f.Name.Name) {
				names[path] = append(names[path], f.Name.Name)
			}
		}
	})
	return names
}

// A promise is a numbered line of docs/SPECIFICATION.md. It names the tests that
// hold it as `path/file_test.go` TestName, or says that it is not met.
func TestPromisesNameTheirTests(t *testing.T) {
	names := testNames(t)
	reference := regexp.MustCompile("`([a-z0-9_/]+_test\\.go)` ((?:(?:Test|Fuzz)[A-Za-z0-9]+(?:, )?)+)")
	seen := make(map[string]bool)
	for _, line := range promises(t) {
		number, text := line[0], line[1]
		if seen[number] {
			t.Errorf("promise %s is there twice", number)
		}
		seen[number] = true
		refs := reference.FindAllStringSubmatch(text+" ", -1)
		if len(refs) == 0 && !strings.Contains(text, "**not met**") && !strings.Contains(text, "**not tested**") {
			t.Errorf("promise %s names no test, and does not say that it is not met or not tested", number)
		}
		for _, ref := range refs {
			for name := range strings.SplitSeq(ref[2], ", ") {
				if !slices.Contains(names[ref[1]], name) {
					t.Errorf("promise %s: there is no %s in %s", number, name, ref[1])
				}
			}
		}
	}
	if len(seen) == 0 {
		t.Error("docs/SPECIFICATION.md has no promises")
	}
}

// promises returns number and text of each.
func promises(t *testing.T) [][2]string {
	t.Helper()
	var list [][2]string
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+\.\d+) \| (.*) \|$`).FindAllStringSubmatch(readDoc(t, "docs/SPECIFICATION.md"), -1) {
		list = append(list, [2]string{m[1], m[2]})
	}
	return list
}

// TestTestsNamedInDocsExist holds every page, not only the specification.
func TestTestsNamedInDocsExist(t *testing.T) {
	var all []string
	for _, list := range testNames(t) {
		all = append(all, list...)
	}
	// containerd's, by which its suites are compared.
	all = append(all, regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]+\b`).FindAllString(readDoc(t, "test/suites/exceptions.txt"), -1)...)
	eachPage(t, func(path, text string) {
		for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z][A-Za-z0-9]+\b`).FindAllString(text, -1) {
			if !slices.Contains(all, name) && name != "TestName" {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
	})
}

func TestLinksBetweenPagesLead(t *testing.T) {
	eachPage(t, func(path, text string) {
		for _, m := range regexp.MustCompile(`\]\(([^)#]+)(?:#[^)]*)?\)`).FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
		}
	})
}

// eachPage calls f with every page of documentation.
func eachPage(t *testing.T, f func(path, text string)) {
	t.Helper()
	pages := []string{"README.md", "CONTRIBUTING.md"}
	err := filepath.WalkDir("docs", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		f(p, readDoc(t, p))
	}
}

// TestPackagesAreInTheArchitecture holds the list of packages to the tree.
func TestPackagesAreInTheArchitecture(t *testing.T) {
	_, page, _ := strings.Cut(readDoc(t, "docs/architecture.md"), "\n## Packages\n")
	page, _, _ = strings.Cut(page, "\n## ")
	for _, p := range ours(t) {
		if under(p.path(), "internal") && p.Name != "main" && !strings.Contains(page, "`"+strings.TrimPrefix(p.path(), "internal/")+"`") {
			t.Errorf("docs/architecture.md does not name %s", p.path())
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\|").FindAllStringSubmatch(page, -1) {
		if st, err := os.Stat(filepath.Join("internal", m[1])); err != nil || !st.IsDir() {
			t.Errorf("docs/architecture.md names the package %s, which is not there", m[1])
		}
	}
}
