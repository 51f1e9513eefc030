package oci

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCheckTellsOfTheConfiguration has one that is wrong in two lines.
func TestCheckTellsOfTheConfiguration(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("[runtime]\nno_key = 1\nboot_timeout = -1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := &app{configPath: path, out: &out, errOut: io.Discard}
	cmd := a.checkCommand()
	cmd.SetArgs([]string{"--json"})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("no error, so that the exit code is 0")
	}
	var got struct {
		CanCreate bool `json:"can_create"`
		Results   []struct{ Name, Status, Detail string }
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var details []string
	for _, r := range got.Results {
		if r.Name == "configuration" && r.Status == "error" {
			details = append(details, strings.TrimPrefix(r.Detail, path))
		}
	}
	want := []string{":2: runtime.no_key: there is no such key", ":3: runtime.boot_timeout: -1 is not between 1 and 3600 s"}
	if d := cmp.Diff(want, details); d != "" || got.CanCreate {
		t.Errorf("can create: %v; -want +got:\n%s", got.CanCreate, d)
	}
}
