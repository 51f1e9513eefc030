// Package containerd runs containerds of its own, for tests and benchmarks:
// Debian's and one built from its Go module, with directories, sockets and a
// network namespace that nothing else uses, so that neither the host's
// containerd nor another test is touched, and nothing can leave the machine.
package containerd

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/seed-efd44b36/kata/test/gobuild"
)

// ModuleVersion is the release that is built from the Go module.
const ModuleVersion = "2.4.2"

// Release is a containerd that is installed somewhere.
type Release struct {
	// Name is for names of tests: "1.6", "2.4".
	Name string
	// Dir has containerd, ctr and containerd-shim-runc-v2.
	Dir string
	// ConfigVersion is the version of its configuration file.
	ConfigVersion int
}

// Debian returns the containerd of Debian's package.
func Debian(ctx context.Context) (Release, error) {
	path, err := exec.LookPath("containerd")
	if err != nil {
		return Release{}, fmt.Errorf("containerd: %w; run: apt-get install containerd", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Release{}, fmt.Errorf("version of %s: %w", path, err)
	}
	// containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
	words := strings.Fields(string(out))
	if len(words) < 3 {
		return Release{}, fmt.Errorf("version of %s: %q", path, out)
	}
	r := Release{Name: minor(words[2]), Dir: filepath.Dir(path), ConfigVersion: 2}
	if !strings.HasPrefix(r.Name, "1.") {
		r.ConfigVersion = 3
	}
	return r, nil
}

// minor shortens a version to its first two numbers.
func minor(version string) string {
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(numbers) < 2 {
		return version
	}
	return numbers[0] + "." + numbers[1]
}

// Module returns a containerd 2 built from its Go module, which takes a minute
// the first time that a version is asked for. It may be called by several
// processes at once.
func Module(ctx context.Context, version string) (Release, error) {
	const path = "github.com/containerd/containerd/v2"
	dir, err := gobuild.Program{
		Name: "containerd", Module: path, Version: version,
		Packages: []string{path + "/cmd/containerd", path + "/cmd/containerd-shim-runc-v2", path + "/cmd/ctr"},
		Flags:    []string{"-tags", "no_btrfs", "-ldflags", "-s -w -X " + path + "/version.Version=v" + version},
	}.Build(ctx)
	return Release{Name: minor(version), Dir: filepath.Join(dir, "bin"), ConfigVersion: 3}, err
}
