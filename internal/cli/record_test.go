package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
)

// testStore is an empty store of containers.
func testStore(t *testing.T) store {
	t.Helper()
	return newStore(config.Config{Runtime: config.Runtime{DataDir: t.TempDir(), StateDir: t.TempDir()}})
}

func create(t *testing.T, s store, r record) (letGo func()) {
	t.Helper()
	letGo, err := s.create(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(letGo)
	return letGo
}

func TestFind(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	if _, err := s.find("any"); err == nil {
		t.Error("found something in an empty store")
	}
	create(t, s, record{ID: "aab1", Name: "one"})
	create(t, s, record{ID: "aab2", Name: "aab1x"})
	create(t, s, record{ID: "ccc3", Name: "three"})
	for _, tt := range []struct{ ref, id, err string }{
		{ref: "one", id: "aab1"},
		{ref: "aab1", id: "aab1"},
		{ref: "aab1x", id: "aab2"},
		{ref: "c", id: "ccc3"},
		{ref: "aab", err: "2 ids begin so"},
		{ref: "", err: "no such container"},
		{ref: "four", err: "no such container"},
	} {
		r, err := s.find(tt.ref)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("find(%q): %v, want %q", tt.ref, err, tt.err)
			}
		} else if err != nil || r.ID != tt.id {
			t.Errorf("find(%q) = %q, %v; want %q", tt.ref, r.ID, err, tt.id)
		}
	}
	if _, err := s.create(record{ID: "ddd4", Name: "one"}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a name is given twice: %v", err)
	}
}

// TestCondition: a container whose maker lives is being made; without a maker
// and a sandbox it is dead.
func TestCondition(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	r := record{ID: "aab1", Name: "one"}
	letGo := create(t, s, r)
	if c := s.condition(r); c.status != report.Creating {
		t.Errorf("while it is held: %s", c)
	}
	letGo()
	if c := s.condition(r); c.status != report.Stopped || !strings.Contains(c.String(), "dead") {
		t.Errorf("when nobody holds it: %s", c)
	}
	if err := proxy.WriteExit(filepath.Join(s.path(r.ID), exitFile), report.Exit{Code: 3}); err != nil {
		t.Fatal(err)
	}
	if c := s.condition(r); c.exit == nil || c.exit.Code != 3 {
		t.Errorf("with an exit on record: %s", c)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	if err := s.sweep(); err != nil {
		t.Errorf("sweep of nothing: %v", err)
	}
	create(t, s, record{ID: "held", Remove: true})
	create(t, s, record{ID: "kept"})()
	create(t, s, record{ID: "interrupted", Remove: true})()
	create(t, s, record{ID: "alive", Remove: true})()
	for _, dir := range []string{filepath.Join(s.stateDir, "alive"), s.path("half")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"held": true, "kept": true, "alive": true, "interrupted": false, "half": false} {
		if _, err := os.Stat(s.path(id)); errors.Is(err, fs.ErrNotExist) == want {
			t.Errorf("%s: %v, want it there: %t", id, err, want)
		}
	}
}

// TestContainersWithoutNamesAreMadeAtOnce: neither waits for the other.
func TestContainersWithoutNamesAreMadeAtOnce(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	create(t, s, record{ID: "first"})()
	unlock, err := s.lock(false) // as one that is being made holds it
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	create(t, s, record{ID: "second"})()
}

// TestRecordAge: the newest container is first.
func TestRecordAge(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	now := time.Now()
	create(t, s, record{ID: "old", Name: "old", Created: now.Add(-time.Hour)})
	create(t, s, record{ID: "new", Name: "new", Created: now})
	all, err := s.list()
	if err != nil || len(all) != 2 || all[0].ID != "new" {
		t.Errorf("list: %v, %v", all, err)
	}
}

func TestBecome(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	files := image.Tree{Dirs: []string{root}}
	bounding := []string{"CAP_CHOWN", "CAP_KILL"}
	process := func(uid uint32, home string) *specs.Process {
		return &specs.Process{
			User: specs.User{UID: uid, GID: uid}, Env: []string{"A=1", "HOME=" + home},
			Capabilities: runflags.Capabilities(bounding, uid),
		}
	}
	for _, tt := range []struct {
		name, user string
		from, want *specs.Process
	}{
		{"root to another", "web", process(0, "/root"), process(33, "/var/www")},
		{"another to root", "root", process(33, "/var/www"), process(0, "/root")},
		{"a home that was chosen stays", "web", process(0, "/srv"), process(33, "/srv")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := become(tt.from, files, tt.user); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, tt.from); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
	if err := become(process(0, "/root"), files, "nobody"); err == nil {
		t.Error("an unknown user is accepted")
	}
}

// TestRemoveDeepContainer: a container cannot make itself irremovable.
func TestRemoveDeepContainer(t *testing.T) {
	t.Parallel()
	s := testStore(t)
	create(t, s, record{ID: "aab1"})()
	deep := filepath.Join(s.path("aab1"), "fs", strings.Repeat("d/", 1500))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.remove("aab1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(s.path("aab1")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
