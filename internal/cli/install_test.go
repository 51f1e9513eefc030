package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/config"
)

// TestInstallConfigFlag has the same flag before the verb, where it is kata's,
// and after it, where it is containerd's.
func TestInstallConfigFlag(t *testing.T) {
	const text = "version = 2\n"
	for _, tt := range []struct {
		name string
		args []string // KATA and CONTAINERD stand for files
		kata string
		want string // part of the error
	}{
		{name: "before and after", args: []string{"--config", "KATA", "install", "containerd", "--config", "CONTAINERD"}},
		{name: "before and its own", args: []string{"--config=KATA", "install", "containerd", "--containerd-config", "CONTAINERD"}},
		{name: "after", args: []string{"install", "containerd", "--config", "CONTAINERD"}},
		{name: "kata's", args: []string{"install", "containerd", "--config", "KATA"}, kata: "[runtime]\n", want: "kata's own"},
		{name: "kata's place", args: []string{"install", "containerd", "--config", config.File}, want: "kata's own"},
		{name: "unknown", args: []string{"instal"}, want: "did you mean install"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			kata, containerd := filepath.Join(dir, "kata.toml"), filepath.Join(dir, "config.toml")
			for path, text := range map[string]string{kata: tt.kata, containerd: text} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			root := newRoot(func() {})
			root.SilenceUsage, root.SilenceErrors = true, true
			for i, a := range tt.args {
				tt.args[i] = strings.NewReplacer("KATA", kata, "CONTAINERD", containerd).Replace(a)
			}
			root.SetArgs(tt.args)
			err := root.ExecuteContext(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			for path, want := range map[string]string{kata: tt.kata, containerd: text} {
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if changed := string(got) != want; changed != (tt.want == "" && path == containerd) {
					t.Errorf("%s:\n%s", path, got)
				}
			}
		})
	}
}
