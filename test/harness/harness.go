// Package harness runs the built programs for tests and benchmarks: with
// directories of their own, so that nothing of the host's installation is
// touched, and with a check that nothing is left afterwards.
package harness

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/testimage"
)

// Environment variables that change how tests run.
const (
	// EnvBin has the directory of the programs.
	EnvBin = "KATA_BIN"
	// EnvConfig has further lines for the section runtime of the
	// configuration, as a host needs that is much slower than most.
	EnvConfig = "KATA_TEST_CONFIG"
)

// Env is one installation for tests: configuration, state, data.
type Env struct {
	Bin    string // directory of the programs
	Config string // path of configuration.toml
	State  string // runtime.state_dir
	Data   string // runtime.data_dir
	Bridge string // network.bridge
	// Network is the beginning of the addresses of containers: of
	// network.subnet, which is a /24, all but the last number.
	Network string

	watched []func(Snapshot) error
}

// patient are timeouts for a machine that does many things at once.
const patient = "boot_timeout = 240\ncreate_timeout = 240"

// namePrefix begins the names of the directories and cgroups of installations.
const namePrefix = "kata-test-"

// Find returns the directory of the built programs.
func Find() (string, error) {
	dir := os.Getenv(EnvBin)
	if dir == "" {
		return "", fmt.Errorf("%s is not set: run `make test-e2e`, or `make build` and set it to the directory bin", EnvBin)
	}
	if _, err := os.Stat(filepath.Join(dir, "kata")); err != nil {
		return "", fmt.Errorf("programs: %w; run `make build`", err)
	}
	return filepath.Abs(dir)
}

// New makes an installation in directories of its own, which remove removes.
// extra is appended to its configuration. The cache of guest images is the
// host's: what is in it is content-addressed.
func New(extra string) (_ *Env, remove func() error, err error) {
	bin, err := Find()
	if err != nil {
		return nil, nil, err
	}
	// State must be on a tmpfs, data must not (overlayfs on overlayfs).
	state, err := os.MkdirTemp("/run", namePrefix)
	if err != nil {
		return nil, nil, err
	}
	data, err := os.MkdirTemp("/var/tmp", namePrefix)
	if err != nil {
		return nil, nil, errors.Join(err, os.Remove(state))
	}
	e := &Env{
		Bin: bin, State: filepath.Join(state, "s"), Data: filepath.Join(data, "data"),
		Config: filepath.Join(data, "configuration.toml"), Bridge: "kt" + strings.TrimPrefix(filepath.Base(state), namePrefix), Network: randomNetwork(),
	}
	remove = func() error {
		// The parent of the sandboxes' cgroups stays when they go.
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			groups, _ := filepath.Glob(pattern + filepath.Base(state))
			for _, g := range groups {
				_ = os.Remove(g)
			}
		}
		return errors.Join(e.removeNetwork(), os.RemoveAll(state), os.RemoveAll(data))
	}
	conf := fmt.Sprintf("[runtime]\nstate_dir = %q\ndata_dir = %q\ncgroup_parent = %q\n%s\n%s\n[network]\nbridge = %q\nsubnet = %q\n",
		e.State, e.Data, "/"+filepath.Base(state), cmp.Or(os.Getenv(EnvConfig), patient), extra, e.Bridge, e.Network+"0/24")
	if err := os.WriteFile(e.Config, []byte(conf), 0o600); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return e, remove, nil
}

// randomNetwork is a part of 10.128.0.0/9, so that installations that run side
// by side do not meet.
func randomNetwork() string {
	return fmt.Sprintf("10.%d.%d.", 128+rand.IntN(128), rand.IntN(256)) //nolint:gosec // no secret
}

// Prepare makes the guest image and the templates that most sandboxes are made
// from, before anything waits for them.
func (e *Env) Prepare(ctx context.Context) error {
	for _, args := range [][]string{
		{"image", "build"},
		{"template", "create"},
		{"template", "create", "--nics", "2"}, // where the engine fills the network namespace late
	} {
		if r, err := e.Run(ctx, nil, "kata", args...); err != nil || r.Code != 0 {
			return errors.Join(err, fmt.Errorf("kata %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr))
		}
	}
	return nil
}

// Result is how a program ended.
type Result struct {
	Code           int
	Stdout, Stderr string
	Took           time.Duration
}

// Command prepares one of our programs with this installation's configuration.
func (e *Env) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(e.Bin, name), args...)
	cmd.Env = append(os.Environ(), "KATA_CONF_FILE="+e.Config)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// Run runs one of our programs to its end. The error is about running it, not
// about its exit code.
func (e *Env) Run(ctx context.Context, stdin io.Reader, name string, args ...string) (Result, error) {
	cmd := e.Command(ctx, name, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	start := time.Now()
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errOut.String(), Took: time.Since(start)}
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		r.Code = ee.ExitCode()
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%s %s: %w; stdout %q, stderr %q", name, strings.Join(args, " "), ctx.Err(), r.Stdout, r.Stderr)
	}
	return r, err
}

// Kata runs `kata` for a test, with a deadline that only a hang reaches.
func (e *Env) Kata(t testing.TB, args ...string) Result {
	t.Helper()
	return e.KataInput(t, nil, args...)
}

// KataInput is Kata with a standard input.
func (e *Env) KataInput(t testing.TB, stdin io.Reader, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	r, err := e.Run(ctx, stdin, "kata", args...)
	if err != nil {
		t.Fatalf("kata %s: %v", strings.Join(args, " "), err)
	}
	return r
}

// MustKata is Kata for a command that has to succeed; it returns its output
// without the last newline.
func (e *Env) MustKata(t testing.TB, args ...string) string {
	t.Helper()
	r := e.Kata(t, args...)
	if r.Code != 0 {
		t.Fatalf("kata %s: exit code %d, stderr:\n%s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Image returns the reference of a test image, built when it is not there yet.
func Image(ctx context.Context, name string) (string, error) {
	dir, err := testimage.CacheDir()
	if err != nil {
		return "", err
	}
	layout, err := testimage.Build(ctx, dir, name)
	if err != nil {
		return "", err
	}
	return "oci:" + layout, nil
}
