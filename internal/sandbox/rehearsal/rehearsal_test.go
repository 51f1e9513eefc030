package rehearsal

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestFill runs what is put into the container's root.
func TestFill(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program is one for amd64")
	}
	dir := t.TempDir()
	if err := Fill(dir); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, program))
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 1000))
	out, err := cmd.Output()
	if err != nil || string(out) != greeting {
		t.Errorf("it says %q, %v", out, err)
	}
	if err := Fill(dir); err == nil {
		t.Error("a directory that is not empty was filled")
	}
}
