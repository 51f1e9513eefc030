// Package daemon runs daemons of engines for tests: what they say goes to files, and
// none outlives the test.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// timeout is for a busy machine: one that is quiet needs a second to start a daemon,
// and to end it.
const timeout = time.Minute

// Process is a running daemon.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	exited    chan struct{}
	err       error // how it ended; to be read when exited is closed
}

// Start starts a daemon, of which messages speak as name. The command has neither
// streams nor attributes yet: what it says is appended to the file log. Should the
// test be killed, the daemon gets SIGTERM.
func Start(cmd *exec.Cmd, name, log string) (*Process, error) {
	p := &Process{name: name, log: log, cmd: cmd, exited: make(chan struct{})}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGTERM}
	started := make(chan error)
	go func() { // which End waits for
		defer close(p.exited)
		// The kernel takes the thread for the parent, which must not end before.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// Pid is the daemon's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Ready waits until the daemon answers, which ask finds out. What ask prints is part
// of the error.
func (p *Process) Ready(ctx context.Context, ask func(context.Context) ([]byte, error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		out, err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, Said(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w: %s\n%s", p.name, err, out, Said(p.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// End sends a signal that ends the daemon, and waits for that. It may be called again.
func (p *Process) End(sig unix.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(timeout):
		return fmt.Errorf("%s does not end:\n%s", p.name, Said(p.log))
	}
	if _, ok := errors.AsType[*exec.ExitError](p.err); p.err != nil && !ok {
		return fmt.Errorf("wait for %s: %w", p.name, p.err)
	}
	return nil
}

// remarks are in lines of logs, of daemons and of our shims, that tell of nothing wrong.
var remarks = [...]string{"level=info", "level=debug", `"level":"INFO"`, `"level":"DEBUG"`}

// Said returns the last of what the file of a daemon has that is more than a remark.
func Said(log string) string {
	const most = 8 << 10
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	var said strings.Builder
lines:
	for line := range strings.Lines(string(b)) {
		for _, r := range remarks {
			if strings.Contains(line, r) {
				continue lines
			}
		}
		said.WriteString(line)
	}
	return said.String()[max(0, said.Len()-most):]
}
