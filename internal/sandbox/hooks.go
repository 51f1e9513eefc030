package sandbox

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
	"golang.org/x/sys/unix"
)

// hookTimeout bounds a hook that names no timeout of its own, so that a hook
// that hangs cannot hang the sandbox.
const hookTimeout = 30 * time.Second

// runHooks runs hooks of the OCI runtime spec ("POSIX-platform Hooks") on the
// host, in order, with the container's state on their standard input. The
// first that fails ends it.
func (s *Sandbox) runHooks(ctx context.Context, c *Container, hooks []specs.Hook) error {
	if len(hooks) == 0 {
		return nil
	}
	st := c.state()
	pid := 0 // a machine that has died has none
	if pids := s.machine.PIDs(); len(pids) > 0 {
		pid = pids[0]
	}
	state, err := json.Marshal(specs.State{
		Version: specs.Version, ID: c.id, Status: specs.ContainerState(st.Status),
		Pid: pid, Bundle: c.opts.Bundle, Annotations: c.spec.Annotations,
	})
	if err != nil {
		return fmt.Errorf("hooks: %w", err)
	}
	for i, h := range hooks {
		// Hooks belong to the caller, so they see the file system as it does.
		err := thread.Run(func() error {
			if err := enterMounts(s.opts.HostMounts); err != nil {
				return err
			}
			return runHook(ctx, h, state)
		})
		if err != nil {
			return fmt.Errorf("hook %d (%s): %w", i, h.Path, err)
		}
	}
	return nil
}

// enterMounts puts the calling thread into a mount namespace.
func enterMounts(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the process's file system state: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the caller's mount namespace: %w", err)
	}
	return nil
}

func runHook(ctx context.Context, h specs.Hook, state []byte) error {
	timeout := hookTimeout
	if h.Timeout != nil {
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.Stdin = bytes.NewReader(state)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, Printable(string(out), 500))
	}
	return nil
}
