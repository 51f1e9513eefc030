// Package engines runs Docker and Podman as Debian packs them, and a recent Docker
// that it builds, for tests: each with directories, sockets and networks of its own,
// in namespaces of mounts and network that the host does not see, and with a runtime
// to be compared with others.
package engines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/seed-efd44b36/kata/test/harness"
	"github.com/seed-efd44b36/kata/test/testimage"
)

// Engine is a command line to run containers with: `docker` or `podman`, with
// the runtime as the default one.
type Engine struct {
	// program is what is run, args come before those of the command.
	program string
	args    []string
	env     []string
	// dir is where it runs, as conmon leaves files in its working directory.
	dir string
}

// commandTimeout is for a command that hangs.
const commandTimeout = 3 * time.Minute

// Command prepares a command of the engine.
func (e *Engine) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.program, slices.Concat(e.args, args)...)
	cmd.Env, cmd.Dir = append(os.Environ(), e.env...), e.dir
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Run runs a command to its end.
func (e *Engine) Run(ctx context.Context, stdin io.Reader, args ...string) (harness.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := e.Command(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	r := harness.Result{Stdout: out.String(), Stderr: errOut.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		r.Code, err = exit.ExitCode(), nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%s: %w; stdout %q, stderr %q", strings.Join(args, " "), ctx.Err(), r.Stdout, r.Stderr)
	}
	return r, err
}

// Do runs a command for a test.
func (e *Engine) Do(t testing.TB, args ...string) harness.Result {
	t.Helper()
	return e.DoInput(t, nil, args...)
}

// DoInput is Do with a standard input.
func (e *Engine) DoInput(t testing.TB, stdin io.Reader, args ...string) harness.Result {
	t.Helper()
	r, err := e.Run(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Must is Do for a command that has to succeed; it returns its output without
// the last newline.
func (e *Engine) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := e.Do(t, args...)
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d, stdout %q, stderr:\n%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// Load gives the engine a test image, as NAME:latest.
func (e *Engine) Load(ctx context.Context, image string) error {
	ref, err := harness.Image(ctx, image)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := writeArchive(&archive, strings.TrimPrefix(ref, "oci:"), image); err != nil {
		return fmt.Errorf("archive of image %s: %w", image, err)
	}
	r, err := e.Run(ctx, &archive, "load")
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("load image %s: %w", image, err)
	}
	return nil
}

// writeArchive writes the only image of a layout in the form of `docker save`.
func writeArchive(w io.Writer, dir, image string) error {
	img, err := testimage.Read(dir)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(image)
	if err != nil {
		return err
	}
	return tarball.Write(tag, img, w)
}
