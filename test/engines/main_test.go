//go:build integration

package engines

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// env is the installation that all tests share, recent the Docker that is built.
var (
	env    *harness.Env
	recent Release
	// errRecent is why there is none.
	errRecent error
)

func TestMain(m *testing.M) { harness.Main(m, "engines", start) }

func start(m *testing.M) (code int, err error) {
	// To build it takes a network that leads somewhere, the first time. Without it the
	// other engines are tested all the same.
	recent, errRecent = Module(context.Background())
	inside, code, err := Alone()
	if err != nil || !inside {
		return code, err
	}
	return run(m)
}

// run runs all tests between two looks at what engines could leave.
func run(m *testing.M) (code int, err error) {
	e, remove, err := harness.New("")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	env = e
	if err := env.Prepare(context.Background()); err != nil {
		return 1, err
	}
	before, err := env.Snap()
	if err != nil {
		return 1, err
	}
	code = m.Run()
	left, err := env.Leaks(before)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left after all tests:\n  %s", strings.Join(left, "\n  "))
	}
	return code, errors.Join(err, env.End())
}

// docker starts a daemon for a test, and ends it with the test.
func docker(t *testing.T, o DockerOptions) *Engine {
	t.Helper()
	d, err := StartDocker(t.Context(), env, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("dockerd said:\n%s", d.Log())
		}
	})
	if err := d.Load(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	return &d.Engine
}
