package jail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// hookTimeout bounds a hook that names no timeout of its own.
	hookTimeout = 30 * time.Second
	// hookOutputTime is what is left for the output of a hook that has ended: a
	// process that it has left behind may hold it open.
	hookOutputTime = time.Second
	// maxHookOutput is how many bytes of a failed hook's output are told.
	maxHookOutput = 500
	// bundleAnnotation has the path of the bundle on the host, which internal/spec
	// writes for the state that hooks are given.
	bundleAnnotation = "io.katacontainers.bundle"
)

// runHooks runs the "startContainer" hooks of the spec, one after the other: in the
// container's namespaces, with the rights and limits of its first process, which
// waits meanwhile. The first that fails ends it.
func (c *Container) runHooks(ctx context.Context) error {
	if c.spec.Hooks == nil || len(c.spec.Hooks.StartContainer) == 0 {
		return nil
	}
	state, err := c.state()
	if err != nil {
		return err
	}
	for i, h := range c.spec.Hooks.StartContainer {
		if err := c.runHook(ctx, h, state); err != nil {
			return fmt.Errorf("startContainer hook %d (%s): %w", i, h.Path, err)
		}
	}
	return nil
}

// state is what hooks get on their standard input.
func (c *Container) state() ([]byte, error) {
	s := specs.State{
		Version: c.spec.Version, ID: c.id, Status: specs.StateCreated, Pid: insidePID(c.init.PID()),
		Annotations: maps.Clone(c.spec.Annotations), Bundle: c.spec.Annotations[bundleAnnotation],
	}
	delete(s.Annotations, bundleAnnotation)
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("state for hooks: %w", err)
	}
	return b, nil
}

// insidePID is a process's number in its own pid namespace, 0 if it has ended.
func insidePID(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // of one that has ended there is none
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" {
			n, _ := strconv.Atoi(f[len(f)-1]) // the kernel writes numbers
			return n
		}
	}
	return 0
}

func (c *Container) runHook(ctx context.Context, h specs.Hook, state []byte) error {
	timeout := hookTimeout
	if h.Timeout != nil {
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it did not end in %s", timeout))
	defer cancel()
	process := *c.spec.Process
	process.Args, process.Env, process.Terminal = h.Args, h.Env, false
	if len(process.Args) == 0 {
		process.Args = []string{h.Path}
	}
	in, input, err := os.Pipe()
	if err != nil {
		return err
	}
	output, out, err := os.Pipe()
	if err != nil {
		_, _ = in.Close(), input.Close()
		return err
	}
	p, err := c.exec(ctx, ExecConfig{Process: &process, Program: h.Path, Stdio: Stdio{In: in, Out: out, Err: out}})
	_, _ = in.Close(), out.Close()
	var (
		said bytes.Buffer
		work sync.WaitGroup
	)
	work.Go(func() { _, _ = input.Write(state); _ = input.Close() }) // it need not read all
	work.Go(func() {
		_, _ = io.CopyN(&said, output, maxHookOutput)
		_, _ = io.Copy(io.Discard, output)
	})
	defer func() { _ = output.Close() }()
	if err == nil {
		if err = p.Start(ctx); err == nil {
			err = p.awaitHook(ctx, c.init.Done())
		}
		p.discard()
	}
	_ = input.SetWriteDeadline(time.Now())
	_ = output.SetReadDeadline(time.Now().Add(hookOutputTime))
	work.Wait()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil && said.Len() > 0 {
		return fmt.Errorf("%w: %q", err, said.Bytes())
	}
	return err
}

// awaitHook waits for the end of a hook, which has to be a success, or of the process
// that it is run for: where they share a pid namespace the kernel does not end it then.
func (p *Process) awaitHook(ctx context.Context, initDone <-chan struct{}) error {
	select {
	case <-p.Done():
	case <-initDone:
		return errors.New("the container's process has ended meanwhile")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if code := p.Child().ExitCode(); code != 0 {
		return fmt.Errorf("exit status %d", code)
	}
	return nil
}
