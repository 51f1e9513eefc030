package program

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, p := range []string{"bin/beside", "libexec/kata/helper", "bin/both", "libexec/kata/both"} {
		p = filepath.Join(root, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ name, want string }{
		{"beside", "bin/beside"},
		{"helper", "libexec/kata/helper"},
		{"both", "bin/both"},
	} {
		got, err := find(filepath.Join(root, "bin"), tt.name)
		if want := filepath.Join(root, tt.want); err != nil || got != want {
			t.Errorf("find(%q) = %q, %v; want %q", tt.name, got, err, want)
		}
	}
	if _, err := find(filepath.Join(root, "bin"), "nothing"); err == nil || !strings.Contains(err.Error(), "make install") {
		t.Errorf("find of a missing program: %v; want an error with the next step", err)
	}
}
