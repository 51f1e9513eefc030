package oci

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-efd44b36/kata/internal/config"
)

// TestListFails has a state directory that cannot be read.
func TestListFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{conf: config.Default(), out: io.Discard, errOut: io.Discard}
	a.conf.Runtime.StateDir = path
	cmd := a.listCommand()
	cmd.SetArgs(nil)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("no error, so that the exit code is 0")
	}
}
