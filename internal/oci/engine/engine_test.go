package engine

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/config"
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
