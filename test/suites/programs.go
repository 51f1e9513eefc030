package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/seed-efd44b36/kata/test/containerd"
	"golang.org/x/sys/unix"
)

const modulePath = "github.com/containerd/containerd/v2"

// built are the directories of containerd's programs, and of its tests.
type built struct {
	release containerd.Release
	tests   string
}

// programs builds containerd and its suites from the Go module, which takes a
// few minutes the first time. It may be called by several processes at once.
func programs(ctx context.Context) (built, error) {
	r, err := containerd.Module(ctx, containerd.ModuleVersion)
	if err != nil {
		return built{}, err
	}
	tests, err := compile(ctx, filepath.Dir(r.Dir))
	if err != nil {
		return built{}, fmt.Errorf("suites of containerd %s: %w", containerd.ModuleVersion, err)
	}
	return built{release: r, tests: tests}, nil
}

// compile builds the suites in the directory of the module that
// [containerd.Module] has made.
func compile(ctx context.Context, dir string) (string, error) {
	tests := filepath.Join(dir, "suites")
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(tests); err == nil {
		return tests, nil
	}
	building := tests + ".new"
	if err := errors.Join(os.RemoveAll(building), os.MkdirAll(building, 0o755)); err != nil {
		return "", err
	}
	const failpoint = modulePath + "/integration/failpoint/cmd/"
	for _, args := range [][]string{
		{"test", "-c", "-o", building, modulePath + "/integration/client"},
		{"test", "-c", "-o", building, modulePath + "/integration"},
		// What some tests of the CRI put in the place of runc and of plugins.
		{"build", "-o", building, failpoint + "cni-bridge-fp", failpoint + "containerd-shim-runc-fp-v1", failpoint + "loopback-v2", failpoint + "runc-fp"},
	} {
		cmd := exec.CommandContext(ctx, "go", append([]string{args[0], "-trimpath", "-ldflags", "-s -w"}, args[1:]...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod -buildvcs=false", "GOWORK=off")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.Bytes())
		}
	}
	return tests, os.Rename(building, tests)
}
