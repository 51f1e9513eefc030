//go:build integration

package main

import (
	"context"
	"os/exec"
	"testing"
	"time"
)

// TestSelection runs a few tests of both suites; `make suites` runs all.
func TestSelection(t *testing.T) {
	const some = "^(TestContainerAttach|TestContainerExecNoBinaryExists|TestContainerPTY|TestDeleteContainerExecCreated|" +
		"TestContainerRestart|TestPodDualStack)$"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "run", ".", "-run", some, "-out", t.TempDir()).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
