package report_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"golang.org/x/sys/unix"
)

// write makes a sandbox's directory with a state in it.
func write(t *testing.T, stateDir string, st report.Sandbox) (dir string) {
	t.Helper()
	dir = filepath.Join(stateDir, st.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := report.Write(dir, st); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadWhatWasWritten(t *testing.T) {
	stateDir := t.TempDir()
	want := report.Sandbox{
		ID: "one", OwnerPID: 12, VMMPID: 13, Accel: "tcg", Kernel: "6.1", Created: time.Unix(100, 0).UTC(),
		Containers: []report.Container{{
			ID: "main", Bundle: "/b", Status: report.Stopped, GuestPID: 4, Created: time.Unix(101, 0).UTC(),
			Annotations: map[string]string{"a": "b"}, Exit: &report.Exit{Code: 137, At: time.Unix(102, 0).UTC(), OOMKilled: true, Reason: "why"},
		}},
	}
	dir := write(t, stateDir, want)
	look := func(alive bool) {
		t.Helper()
		got, err := report.Read(stateDir, "one")
		if err != nil {
			t.Fatal(err)
		}
		got.Version, want.Alive = 0, alive
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	look(false)
	lock, err := os.Create(filepath.Join(dir, cleanup.LockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	look(true)
}

func TestReadRefuses(t *testing.T) {
	stateDir := t.TempDir()
	dir := write(t, stateDir, report.Sandbox{ID: "one"})
	if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(`{"version": 99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := report.Read(stateDir, "one"); err == nil || !strings.Contains(err.Error(), "another version of kata") {
		t.Errorf("a state of another version: %v", err)
	}
	if _, err := report.Read(stateDir, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such sandbox: %v", err)
	}
	for _, id := range []string{"", ".", "..", "../one", "a/b", "/one"} {
		if _, err := report.Read(filepath.Join(stateDir, "sub"), id); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestListTellsWhatItCannotRead(t *testing.T) {
	stateDir := t.TempDir()
	write(t, stateDir, report.Sandbox{ID: "younger", Created: time.Unix(2, 0)})
	write(t, stateDir, report.Sandbox{ID: "older", Created: time.Unix(1, 0)})
	if err := os.Mkdir(filepath.Join(stateDir, "booting"), 0o700); err != nil {
		t.Fatal(err)
	}
	broken := write(t, stateDir, report.Sandbox{ID: "broken"})
	if err := os.WriteFile(filepath.Join(broken, "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	states, err := report.List(stateDir)
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v, want one that names the broken sandbox", err)
	}
	var ids []string
	for _, s := range states {
		ids = append(ids, s.ID)
	}
	if d := cmp.Diff([]string{"older", "younger"}, ids); d != "" {
		t.Error(d)
	}
	if states, err := report.List(filepath.Join(stateDir, "nothing")); len(states) != 0 || err != nil {
		t.Errorf("no directory: %v, %v", states, err)
	}
}

// TestLeave: what is left in another's directory makes no file there, so that it can
// be removed at any time.
func TestLeave(t *testing.T) {
	dir := t.TempDir()
	first, second := report.Sandbox{ID: "first"}, report.Sandbox{ID: "second"}
	if err := report.Leave(dir, first); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without room: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("there are files: %v, %v", names, err)
	}
	if err := report.Reserve(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := report.Read(filepath.Dir(dir), filepath.Base(dir)); err == nil {
		t.Error("an empty state can be read")
	}
	for _, st := range []report.Sandbox{first, second} {
		if err := report.Leave(dir, st); err != nil {
			t.Fatal(err)
		}
		if err := report.Reserve(dir); err != nil { // changes nothing
			t.Fatal(err)
		}
	}
	if st, err := report.Read(filepath.Dir(dir), filepath.Base(dir)); err != nil || st.ID != "first" {
		t.Errorf("read %+v, %v; want the first", st, err)
	}
}
