package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/oci/record"
)

func TestExecProcess(t *testing.T) {
	dir := t.TempDir()
	config := `{"ociVersion":"1.2.0","process":{"args":["init"],"cwd":"/work","env":["A=b"],"terminal":true,` +
		`"consoleSize":{"height":1,"width":2},"user":{"uid":1,"gid":2,"additionalGids":[3]}},"root":{"path":"rootfs"},"linux":{}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	own := specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}}
	for _, tt := range []struct {
		name string
		fl   execFlags
		want specs.Process
	}{
		{"plain", execFlags{}, specs.Process{Env: []string{"A=b"}, User: own}},
		{"terminal", execFlags{tty: true}, specs.Process{Terminal: true, Env: []string{"A=b", "TERM=xterm"}, User: own}},
		{"user", execFlags{user: "7"}, specs.Process{Env: []string{"A=b"}, User: specs.User{UID: 7}}},
		{"user and group", execFlags{user: "7:8"}, specs.Process{Env: []string{"A=b"}, User: specs.User{UID: 7, GID: 8}}},
	} {
		tt.want.Args, tt.want.Cwd = []string{"sh"}, "/work"
		got, err := execProcess(dir, []string{"sh"}, tt.fl)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(&tt.want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", tt.name, d)
		}
	}
	for _, user := range []string{"root", "7:", ":8", "-1", "4294967296"} {
		if _, err := execProcess(dir, []string{"sh"}, execFlags{user: user}); err == nil {
			t.Errorf("user %q: no error", user)
		}
	}
}

// TestListFails has a state directory that cannot be read.
func TestListFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &Verbs{Conf: config.Default(), Out: io.Discard, ErrOut: io.Discard}
	a.Conf.Runtime.StateDir = path
	cmd := a.listCommand()
	cmd.SetArgs(nil)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("no error, so that the exit code is 0")
	}
}

// TestDeleteUnread has containers whose records are damaged. One is not dropped while a
// sandbox lives that may be its.
func TestDeleteUnread(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, sandbox, state string }{
		{"none", "", ""},
		{"of its name", "c", ""},
		{"of its other name", "hashed", ""},
		{"that has it", "pod", `{"version":1,"id":"pod","containers":[{"id":"c"}]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := &Verbs{Root: t.TempDir(), Conf: config.Default()}
			a.Conf.Runtime.StateDir = t.TempDir()
			e, err := a.containers().Create("c")
			if err != nil {
				t.Fatal(err)
			}
			e.Unlock()
			write := func(text string, parts ...string) string {
				path := filepath.Join(parts...)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
				return path
			}
			write(`{"version":1`, a.Root, "c", "state.json")
			if err := a.delete(t.Context(), "c", false); err == nil {
				t.Error("it is deleted without --force")
			}
			if tt.sandbox != "" {
				name := strings.Replace(tt.sandbox, "hashed", a.hashedName("c"), 1)
				dir := filepath.Join(a.Conf.Runtime.StateDir, name)
				if tt.state != "" {
					write(tt.state, dir, "state.json")
				}
				lock, err := flock.Exclusive(t.Context(), write("", dir, cleanup.LockFile))
				if err != nil {
					t.Fatal(err)
				}
				err = a.delete(t.Context(), "c", true)
				if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "kata gc") {
					t.Errorf("while the sandbox lives: %v", err)
				}
				write("", dir, cleanup.LedgerFile)
				_ = lock.Close()
			}
			if err := a.delete(t.Context(), "c", true); err != nil {
				t.Error(err)
			}
			if _, err := a.containers().Lock(t.Context(), "c"); !errors.Is(err, record.ErrNotFound) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}

// TestPsArguments asks about a container that is not there: what is said of flags
// comes first.
func TestPsArguments(t *testing.T) {
	t.Parallel()
	for args, known := range map[string]bool{
		"c": true, "c -ef": true, "c -o pid,cmd": true, "c --format json": true,
		"--format json c": true, "-f json c": true, "-e c": false,
	} {
		cmd := (&Verbs{Root: t.TempDir(), Conf: config.Default()}).psCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.ExecuteContext(t.Context()); errors.Is(err, record.ErrNotFound) != known {
			t.Errorf("ps %s: %v", args, err)
		}
	}
}
