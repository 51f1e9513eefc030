// Package kata_test holds the repository to its own rules: what documentation,
// names, imports and dependencies have to look like. The rules are explained in
// CONTRIBUTING.md.
package kata_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/seed-efd44b36/kata"

// pkg is what `go list` tells of a package.
type pkg struct {
	Dir, ImportPath, Name, Doc string
	Standard                   bool
	Module                     struct{ Path string }
	GoFiles, Imports           []string
}

// path is the import path within the module.
func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func (p pkg) generated() bool { return under(p.path(), "api") }

// list runs `go list` with the given arguments. That a package does not compile
// is not for these tests to say.
func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=Dir,ImportPath,Name,Doc,Standard,Module,GoFiles,Imports"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// ours returns the packages of the module that have more than tests.
func ours(t *testing.T) []pkg {
	t.Helper()
	return slices.DeleteFunc(list(t, "./..."), func(p pkg) bool { return len(p.GoFiles) == 0 })
}

// under reports whether path is dir or below it.
func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func underAny(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return under(path, d) })
}

func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range ours(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + filepath.Base(p.Dir) + " "
		}
		if !p.generated() && !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: its comment is %q, want one that begins with %q", p.path(), p.Doc, want)
		}
	}
}

func TestNamesSaySomething(t *testing.T) {
	nothing := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "base", "shared"}
	for _, p := range ours(t) {
		if slices.Contains(nothing, p.Name) {
			t.Errorf("%s: name the package for the one thing that it does", p.path())
		}
		for _, f := range p.GoFiles {
			if slices.Contains(nothing, strings.TrimSuffix(f, ".go")) {
				t.Errorf("%s/%s: name the file for what is in it", p.path(), f)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	const (
		packageBytes = 60 << 10
		fileLines    = 600
		mainLines    = 40
	)
	for _, p := range ours(t) {
		if p.generated() {
			continue
		}
		size := 0
		for _, f := range p.GoFiles {
			data, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			size += len(data)
			lines := bytes.Count(data, []byte("\n"))
			if lines > fileLines {
				t.Errorf("%s/%s has %d lines, more than %d: is there a second thing in it?", p.path(), f, lines, fileLines)
			}
			if under(p.path(), "cmd") && lines > mainLines {
				t.Errorf("%s/%s has %d lines, more than %d: move the work to a package of its own", p.path(), f, lines, mainLines)
			}
		}
		if size > packageBytes {
			t.Errorf("%s has %d KiB of source, more than %d: is there a second noun in it?", p.path(), size>>10, packageBytes>>10)
		}
	}
}

// importRules are the layers of the design. Tests may import what they like.
var importRules = []struct {
	from string
	// only: of our packages, these and no others. never: none of these.
	only, never []string
	why         string
}{
	{
		from: "internal/agent",
		only: []string{"internal/agent", "internal/bpf", "internal/link", "internal/safepath", "internal/steer", "internal/tail", "internal/thread", "internal/timeline", "internal/version", "api/agent/v1"},
		why:  "the agent is the guest's side and knows nothing of the host",
	},
	{
		from: "internal/link",
		only: []string{"internal/link"},
		why:  "both sides use the link",
	},
	{
		from:  "internal/vmm",
		never: []string{"internal/sandbox", "internal/agent", "internal/link", "internal/share", "internal/network", "api"},
		why:   "a driver knows machines, not what runs in them",
	},
	{
		from: "internal/spec",
		only: []string{"internal/spec", "internal/safepath"},
		why:  "translating a specification is pure",
	},
	{
		from: "internal/config",
		only: []string{"internal/config"},
		why:  "everybody uses the configuration",
	},
	{
		from: "api",
		only: []string{},
		why:  "protocols depend on nothing",
	},
	{
		from:  "internal/cli",
		never: []string{"internal/agent", "internal/vmm", "internal/share", "internal/network", "internal/resources", "internal/supervise", "api/agent/v1"},
		why:   "front ends go through the proxy, which owns the sandbox",
	},
	{
		// It asks the driver for QEMU's version (check, env).
		from:  "internal/oci",
		never: []string{"internal/agent", "internal/share", "internal/network", "internal/resources", "internal/supervise", "api/agent/v1"},
		why:   "front ends go through the proxy, which owns the sandbox",
	},
	{
		// It reads the spec of a sandbox before there is one, cleans up after a
		// dead shim, and forwards ports out of the pod's network namespace.
		from: "internal/shim",
		only: []string{
			"internal/shim", "internal/sandbox", "internal/owner", "internal/operator", "internal/config", "internal/spec", "internal/cleanup",
			"internal/features", "internal/link", "internal/network", "internal/pod", "internal/printable", "internal/program", "internal/steer", "internal/thread", "internal/timeline", "internal/version", "api/agent/v1", "api/cri/v1",
		},
		why: "a front end goes through the sandbox, and knows its own protocol besides",
	},
	{
		from:  "internal/pod",
		never: []string{"internal", "api"},
		why:   "reading annotations is pure",
	},
	{
		from: "internal/shim/metrics",
		only: []string{"api/agent/v1"},
		why:  "turning figures is pure",
	},
	{
		from:  "internal/sandbox",
		never: []string{"internal/owner", "internal/proxy", "internal/cli", "internal/oci", "internal/shim", "internal/image"},
		why:   "a sandbox has several front ends and knows none",
	},
	{
		from:  "internal",
		never: []string{"cmd", "test"},
		why:   "programs and tests are made of packages, not the other way round",
	},
}

func TestImports(t *testing.T) {
	for _, p := range ours(t) {
		for _, i := range p.Imports {
			imported, ok := strings.CutPrefix(i, module+"/")
			if !ok {
				continue
			}
			for _, r := range importRules {
				if !under(p.path(), r.from) {
					continue
				}
				if r.only != nil && !underAny(imported, r.only) || underAny(imported, r.never) {
					t.Errorf("%s imports %s: %s", p.path(), imported, r.why)
				}
			}
		}
	}
}

// readList reads a file of lines "NAME REASON…" with # comments.
func readList(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, _, _ := strings.Cut(s.Text(), " "); name != "" && name != "#" {
			names = append(names, name)
		}
	}
	return names
}

func TestAgentDependencies(t *testing.T) {
	allowed := append(readList(t, "testdata/agent-dependencies.txt"), module)
	// Packages of the standard library that cost the agent megabytes.
	heavy := []string{"net/http", "crypto/tls", "text/template", "html/template", "encoding/xml", "go/ast", "testing"}
	for _, p := range list(t, "-deps", "./cmd/kata-agent", "./internal/agent/...") {
		switch {
		case p.Standard && slices.Contains(heavy, p.ImportPath):
			t.Errorf("the agent depends on %s, which is too large for it", p.ImportPath)
		case !p.Standard && !slices.Contains(allowed, p.Module.Path):
			t.Errorf("the agent depends on %s of module %s, which is not in testdata/agent-dependencies.txt", p.ImportPath, p.Module.Path)
		}
	}
}

func TestDirectDependenciesAreFew(t *testing.T) {
	const budget = 25
	standardOrOurs := make(map[string]bool)
	moduleOf := make(map[string]string)
	for _, p := range list(t, "-deps", "./...") {
		standardOrOurs[p.ImportPath] = p.Standard || p.Module.Path == module
		moduleOf[p.ImportPath] = p.Module.Path
	}
	users := make(map[string]string)
	programs := make(map[string]string) // as users, but for what is only tested with
	for _, p := range ours(t) {
		for _, i := range p.Imports {
			if standardOrOurs[i] || moduleOf[i] == "" {
				continue
			}
			users[moduleOf[i]] = p.path()
			if !under(p.path(), "test") {
				programs[moduleOf[i]] = p.path()
			}
		}
	}
	if len(programs) > budget {
		t.Errorf("%d modules are imported directly, more than %d: %v", len(programs), budget, programs)
	}
	reasons, err := os.ReadFile("docs/dependencies.md")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("docs/dependencies.md is missing")
	}
	if err != nil {
		t.Fatal(err)
	}
	for m, user := range users {
		if !bytes.Contains(reasons, []byte(m)) {
			t.Errorf("%s (imported by %s) has no line in docs/dependencies.md", m, user)
		}
	}
}

// sources calls f with the syntax tree of each Go file that is not generated.
func sources(t *testing.T, f func(path string, set *token.FileSet, file *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "api" || path == "bin" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		f(path, set, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A guest that swaps a mount point for a symlink must not be able to choose what
// is unmounted (CVE-2020-2024).
func TestUnmountsDoNotFollowLinks(t *testing.T) {
	sources(t, func(path string, set *token.FileSet, file *ast.File) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); !ok || s.Sel.Name != "Unmount" || !isIdent(s.X, "unix") {
				return true
			}
			safe := false
			ast.Inspect(call.Args[1], func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok && id.Name == "UMOUNT_NOFOLLOW" {
					safe = true
				}
				return true
			})
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Value == `"."` {
				safe = true // where we are, by whatever name
			}
			if !safe {
				t.Errorf("%s: unix.Unmount without UMOUNT_NOFOLLOW", set.Position(call.Pos()))
			}
			return true
		})
	})
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

func TestSkipsSayWhatIsMissing(t *testing.T) {
	sources(t, func(_ string, set *token.FileSet, file *ast.File) {
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if ok && (s.Sel.Name == "SkipNow" || s.Sel.Name == "Skip" && len(call.Args) == 0) && (isIdent(s.X, "t") || isIdent(s.X, "b")) {
				t.Errorf("%s: a skip has to say what is missing", set.Position(call.Pos()))
			}
			return true
		})
	})
}

func TestRemindersHaveAnIssue(t *testing.T) {
	reminder := regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	withIssue := regexp.MustCompile(`\bTODO\(#\d+\)`)
	sources(t, func(path string, set *token.FileSet, file *ast.File) {
		if path == "policy_test.go" {
			return
		}
		for _, group := range file.Comments {
			for _, c := range group.List {
				if reminder.MatchString(c.Text) && !withIssue.MatchString(c.Text) {
					t.Errorf("%s: write TODO(#N) with the number of an issue", set.Position(c.Pos()))
				}
			}
		}
	})
}

func TestGeneratedCodeIsCurrent(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is missing (apt-get install protobuf-compiler)")
	}
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", "protos", "PROTOS_OUT="+out)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make protos: %v\n%s", err, text)
	}
	// The versions of the generators, in the head of each file, may differ.
	versions := regexp.MustCompile(`(?m)^// \tprotoc.*\n`)
	files, err := filepath.Glob("api/*/v*/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("generated files: %v, %v", files, err)
	}
	for _, f := range files {
		committed, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := os.ReadFile(filepath.Join(out, f))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(versions.ReplaceAll(committed, nil), versions.ReplaceAll(fresh, nil)) {
			t.Errorf("%s is not what its .proto gives; run: make protos", f)
		}
	}
}
