// Package gobuild builds programs of other Go modules, for tests and benchmarks
// to compare with. Each version of a module, and way to build it, gets a directory in the
// user's cache with a go.mod of its own, so that ours does not depend on all of theirs.
package gobuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Program says what to build.
type Program struct {
	// Name is what the directory in the cache is called, before the version.
	Name string
	// Module is its path, Version its version without the v.
	Module, Version string
	// Packages are import paths of main packages.
	Packages []string
	// Flags are further ones for `go build`.
	Flags []string
}

// Build returns the directory of the module (where go.mod is) below the cache,
// with the programs in the directory bin in it. It takes a minute the first time
// that a version is asked for, and may be called by several processes at once.
func (p Program) Build(ctx context.Context) (dir string, err error) {
	if dir, err = p.build(ctx); err != nil {
		return "", fmt.Errorf("build %s %s: %w", p.Name, p.Version, err)
	}
	return dir, nil
}

// key stands for what makes another program of the same version.
func (p Program) key() string {
	h := sha256.Sum256([]byte(strings.Join(append(append([]string{runtime.Version()}, p.Packages...), p.Flags...), "\x00")))
	return hex.EncodeToString(h[:4])
}

func (p Program) build(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kata-test", p.Name+"-"+p.Version+"-"+p.key())
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(bin); err == nil {
		return dir, nil
	}
	mod := fmt.Sprintf("module kata-test/%s\ngo 1.26\nrequire %s v%s\n", p.Name, p.Module, p.Version)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(mod), 0o644); err != nil {
		return "", err
	}
	building := bin + ".new"
	if err := errors.Join(os.RemoveAll(building), os.MkdirAll(building, 0o755)); err != nil {
		return "", err
	}
	args := append([]string{"build", "-trimpath", "-o", building}, p.Flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, p.Packages...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, stderr.Bytes())
	}
	return dir, os.Rename(building, bin)
}
