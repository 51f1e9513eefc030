//go:build integration

// Package e2e runs the built programs as a person does: real images, real
// virtual machines, and at the end a look at the host for what was left.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"strconv"
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

func TestMain(m *testing.M) { harness.Main(m, "e2e", run) }

// maxParallel is how many tests run at a time at most, each of which has a
// virtual machine or two.
const maxParallel = 3

func limitParallel() error {
	f := flag.Lookup("test.parallel")
	if n, err := strconv.Atoi(f.Value.String()); err == nil && n <= maxParallel {
		return nil
	}
	return f.Value.Set(strconv.Itoa(maxParallel))
}

// run runs all tests between two looks at the host.
func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	if err := limitParallel(); err != nil {
		return 1, err
	}
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
	// What it says, the first time, is of no test.
	if err := env.Prepare(ctx); err != nil {
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

// installation makes an installation for one test that needs a configuration
// of its own or wants to look at what it leaves. extra is as for [harness.New].
func installation(t *testing.T, extra string) *harness.Env {
	t.Helper()
	e, remove, err := harness.New(extra)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := e.Left(); err != nil || len(left) > 0 {
			t.Errorf("left by the test: %v\n  %s", err, strings.Join(left, "\n  "))
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// image returns the reference of a test image.
func image(t *testing.T, name string) string {
	t.Helper()
	ref, err := harness.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
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
