//go:build integration

// Package e2e runs the built programs as a person does: real images, real
// virtual machines, and at the end a look at the host for what was left.
package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// env is the installation that all tests share; busybox the image that most
// of them run.
var (
	env     *harness.Env
	busybox string
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// run runs all tests between two looks at the host.
func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	e, remove, err := harness.New("")
	if err != nil {
		return 1, err
	}
	defer func() {
		if rerr := remove(); err == nil {
			err = rerr
		}
	}()
	env = e
	if busybox, err = harness.Image(ctx, "busybox"); err != nil {
		return 1, err
	}
	before, err := env.Snap()
	if err != nil {
		return 1, err
	}
	code = m.Run()
	left, err := env.Leaks(before)
	if err != nil {
		return 1, err
	}
	if len(left) > 0 {
		return 1, fmt.Errorf("left on the host after all tests:\n  %s", strings.Join(left, "\n  "))
	}
	return code, nil
}

// sh runs a shell script in a container of the busybox image and wants it to
// succeed; it returns what the script printed.
func sh(t *testing.T, script string, flags ...string) string {
	t.Helper()
	args := append([]string{"run", "--rm", "--network", "none"}, flags...)
	return env.MustKata(t, append(args, busybox, "sh", "-ec", script)...)
}

// want compares line by line, naming each.
func want(t *testing.T, got string, lines ...string) {
	t.Helper()
	if g := strings.Split(got, "\n"); len(g) != len(lines) {
		t.Errorf("got %d lines, want %d:\n%s", len(g), len(lines), got)
	} else {
		for i := range g {
			if g[i] != lines[i] {
				t.Errorf("line %d: got %q, want %q", i+1, g[i], lines[i])
			}
		}
	}
}
