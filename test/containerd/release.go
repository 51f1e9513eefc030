// Package containerd runs containerds of its own, for tests and benchmarks:
// Debian's and one built from its Go module, with directories, sockets and a
// network namespace that nothing else uses, so that neither the host's
// containerd nor another test is touched, and nothing can leave the machine.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
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
	r, err := module(ctx, version)
	if err != nil {
		return Release{}, fmt.Errorf("containerd %s: %w", version, err)
	}
	return r, nil
}

func module(ctx context.Context, version string) (_ Release, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Release{}, err
	}
	dir := filepath.Join(cache, "kata-test", "containerd-"+version)
	r := Release{Name: minor(version), Dir: filepath.Join(dir, "bin"), ConfigVersion: 3}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Release{}, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return Release{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Release{}, err
	}
	if _, err := os.Stat(r.Dir); err == nil {
		return r, nil
	}
	// A module of its own, so that ours does not depend on all of containerd's.
	const path = "github.com/containerd/containerd/v2"
	mod := fmt.Sprintf("module kata-test/containerd\ngo 1.26\nrequire %s v%s\n", path, version)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		return Release{}, err
	}
	building := r.Dir + ".new"
	if err := errors.Join(os.RemoveAll(building), os.MkdirAll(building, 0o755)); err != nil {
		return Release{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "no_btrfs", "-ldflags", "-s -w -X "+path+"/version.Version=v"+version,
		"-o", building, path+"/cmd/containerd", path+"/cmd/containerd-shim-runc-v2", path+"/cmd/ctr")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return Release{}, fmt.Errorf("go build: %w\n%s", err, stderr.Bytes())
	}
	return r, os.Rename(building, r.Dir)
}
