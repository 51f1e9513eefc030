package hook

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed to enter a mount namespace")
	}
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	got := filepath.Join(t.TempDir(), "state")
	state := specs.State{Version: specs.Version, ID: "c", Status: specs.StateCreated, Pid: 7, Bundle: "/b"}
	sh := func(script string) specs.Hook {
		return specs.Hook{Path: "/bin/sh", Args: []string{"hook", "-c", script}, Env: []string{"OUT=" + got}}
	}
	if err := Run(t.Context(), mounts, []specs.Hook{sh(`cat > $OUT; test -z "$HOME"`)}, state); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	var back specs.State
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(state, back); diff != "" {
		t.Errorf("the hook got (-want +got):\n%s", diff)
	}

	second := 1
	for _, tt := range []struct {
		name string
		hook specs.Hook
		want string
	}{
		{"fails", sh(`printf '\033[2Jno'; exit 3`), `exit status 3: "\x1b[2Jno"`},
		{"hangs", specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "60"}, Timeout: &second}, "did not end in 1s"},
		{"is missing", specs.Hook{Path: "/no/such/hook"}, "no such file"},
	} {
		after := filepath.Join(t.TempDir(), "after")
		err := Run(t.Context(), mounts, []specs.Hook{tt.hook, sh("touch " + after)}, state)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if _, err := os.Stat(after); err == nil {
			t.Errorf("%s: the next hook was run", tt.name)
		}
	}
}
