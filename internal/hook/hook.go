// Package hook runs the hooks of the OCI runtime spec ("POSIX-platform Hooks")
// on the host. They are programs of whoever wrote the spec, who is trusted with
// root there; a sandbox calls it.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

const (
	// defaultTimeout bounds a hook that names no timeout of its own, so that
	// one that hangs cannot hang the sandbox.
	defaultTimeout = 30 * time.Second
	// maxOutput is how many bytes of a failed hook's output are told.
	maxOutput = 500
)

// Run runs hooks in order, with the container's state on their standard input,
// in the mount namespace mounts; nil is the caller's. The first that fails ends it; the error has
// what it printed, quoted.
func Run(ctx context.Context, mounts *os.File, hooks []specs.Hook, state specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	defer timeline.Step(ctx, "hooks")()
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("hooks: %w", err)
	}
	for i, h := range hooks {
		err := thread.Run(func() error {
			if err := enter(mounts); err != nil {
				return err
			}
			return runOne(ctx, h, input)
		})
		if err != nil {
			return fmt.Errorf("hook %d (%s): %w", i, h.Path, err)
		}
	}
	return nil
}

// enter puts the calling thread into a mount namespace.
func enter(ns *os.File) error {
	if ns == nil {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's file system state: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the caller's mount namespace: %w", err)
	}
	return nil
}

func runOne(ctx context.Context, h specs.Hook, input []byte) error {
	timeout := defaultTimeout
	if h.Timeout != nil {
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // not nil, which would mean ours
	cmd.Stdin = bytes.NewReader(input)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end in %s", timeout)
	}
	if err != nil {
		return fmt.Errorf("%w: %q", err, out[:min(len(out), maxOutput)])
	}
	return nil
}
