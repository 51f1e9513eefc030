package shim

import (
	"os"
	"path/filepath"
	"testing"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/seed-efd44b36/kata/internal/config"
)

// TestConfigPath: whoever reads the record later has another environment, and
// must not look at another configuration.
func TestConfigPath(t *testing.T) {
	bundle := t.TempDir()
	file := filepath.Join(bundle, "configuration.toml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(config.EnvFile, "/of/the/environment.toml")
	for _, tc := range []struct {
		name    string
		options *runtimeoptions.Options
		want    string // empty: an error
	}{
		{name: "option", options: &runtimeoptions.Options{ConfigPath: file}, want: file},
		{name: "text", options: &runtimeoptions.Options{ConfigBody: []byte("[runtime]\n")}, want: filepath.Join(bundle, "kata.toml")},
		{name: "environment", options: &runtimeoptions.Options{}, want: "/of/the/environment.toml"},
		{name: "missing", options: &runtimeoptions.Options{ConfigPath: file + "x"}},
		{name: "relative", options: &runtimeoptions.Options{ConfigPath: "configuration.toml"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := parameters{options: tc.options}
			got, err := p.configPath(bundle)
			if got != tc.want || (err != nil) != (tc.want == "") {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}
