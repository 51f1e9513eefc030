//go:build integration

// Package validation runs the programs of opencontainers/runtime-tools that test OCI
// runtimes, with runc and with kata-runtime. What holds with runc on this machine has
// to hold with kata-runtime, but for what is in exceptions.txt, with a reason each.
package validation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/gobuild"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

const (
	modulePath    = "github.com/opencontainers/runtime-tools"
	moduleVersion = "0.9.1-0.20251114084447-edf4cb3d2116"
)

var (
	env *harness.Env
	// dir is where the programs are run: with what they look for there.
	dir string
	// roots are where the runtimes write down containers.
	roots string
)

func TestMain(m *testing.M) { harness.Main(m, "validation", run) }

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	// What a runtime leaves running becomes ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, err
	}
	built, err := build(ctx)
	if err != nil {
		return 1, err
	}
	e, remove, err := harness.New("")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	env = e
	if err := env.Prepare(ctx); err != nil {
		return 1, err
	}
	dir = filepath.Join(filepath.Dir(env.Data), "programs")
	if out, err := exec.CommandContext(ctx, "cp", "-r", built, dir).CombinedOutput(); err != nil {
		return 1, fmt.Errorf("copy programs: %w: %s", err, out)
	}
	if roots, err = os.MkdirTemp("/run", "kata-validation-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(roots)) }()
	before, err := env.Snap()
	if err != nil {
		return 1, err
	}
	code = m.Run()
	left, err := env.Leaks(before)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left on the host after all tests:\n  %s", strings.Join(left, "\n  "))
	}
	return code, err
}

// build returns a directory with the programs, with the one that they run in
// containers, and with the root file system that they give to containers.
func build(ctx context.Context) (string, error) {
	p := gobuild.Program{
		Name: "runtime-tools", Module: modulePath, Version: moduleVersion,
		Packages: []string{modulePath + "/cmd/runtimetest"},
	}
	for _, name := range programs {
		p.Packages = append(p.Packages, modulePath+"/validation/"+name)
	}
	dir, err := p.Build(ctx)
	if err != nil {
		return "", err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", modulePath)
	list.Dir = dir
	list.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	source, err := list.Output()
	if err != nil {
		return "", fmt.Errorf("find the source of runtime-tools: %w", err)
	}
	bin := filepath.Join(dir, "bin")
	const files = "rootfs-amd64.tar.gz"
	cp := exec.CommandContext(ctx, "cp", "-n", filepath.Join(strings.TrimSpace(string(source)), files), bin)
	if out, err := cp.CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy the root file system: %w: %s", err, out)
	}
	return bin, nil
}
