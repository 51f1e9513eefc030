package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox/figures"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

// Stdio says which of its streams a process is to have. What is false is
// /dev/null. With a terminal, Stdout carries both outputs.
type Stdio struct {
	Stdin, Stdout, Stderr bool
}

func (s Stdio) proto() *agentv1.Stdio {
	return &agentv1.Stdio{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr}
}

// Process is the init process of a container, or an exec in it.
type Process struct {
	c     *Container
	id    string // empty for init
	start *timeline.Start
	stdio Stdio

	done chan struct{} // closed when exit is set
	exit report.Exit   // valid after done is closed
	wait sync.Once     // starts the wait for its end
	// output is done when the first byte of either output has come.
	output sync.Once
	// starting is held by Start, whose word on the end comes first if it fails.
	starting sync.Mutex
}

func (p *Process) name() string {
	if p.id == "" {
		return "container " + p.c.id
	}
	return "exec " + p.id + " of container " + p.c.id
}

// Stdio tells which streams the process has.
func (p *Process) Stdio() Stdio { return p.stdio }

// Done is closed when the process has ended; then Exit is valid.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how the process ended. Only valid after Done is closed.
func (p *Process) Exit() report.Exit { return p.exit }

// OpenStdio opens the stream of one file descriptor (0, 1 or 2) of the
// process; each can be opened once, before Start. The caller closes it. An
// output stream ends when all its writers in the guest have closed it, which
// may be after Exit.
func (p *Process) OpenStdio(ctx context.Context, fd int) (link.Stream, error) {
	if wanted := []bool{p.stdio.Stdin, p.stdio.Stdout, p.stdio.Stderr}; fd < 0 || fd > 2 || !wanted[fd] {
		return nil, fmt.Errorf("open stdio %d of %s: the process was created without it: %w", fd, p.name(), ErrInvalid)
	}
	h := link.Header{Kind: link.KindStdio, Container: p.c.id, Exec: p.id, FD: uint8(fd)}
	st, err := p.c.s.guest.Open(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("open stdio %d of %s: %w", fd, p.name(), p.c.s.orDead(err))
	}
	if fd == 0 {
		return st, nil
	}
	return link.OnFirst(st, func() {
		p.output.Do(func() { timeline.Mark(p.start.In(context.Background()), "first output") })
	}), nil
}

// Start runs the process. The error wraps ErrCommandNotFound or
// ErrCommandDenied when the command itself is the problem; the process has
// then ended, with code 127 or 126.
func (p *Process) Start(ctx context.Context) (guestPID int, err error) {
	s := p.c.s
	limit := s.createTimeout()
	if p.id == "" {
		limit += p.c.hooks.InGuest
	}
	ctx, done, err := s.Begin(ctx, limit)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", p.name(), err)
	}
	defer done()
	step := "start container"
	if p.id != "" {
		step = "start exec"
	}
	ctx, end := timeline.Begin(p.start.In(ctx), step)
	defer end()
	if p.id == "" {
		if err := s.settleNetwork(ctx); err != nil {
			return 0, fmt.Errorf("start %s: %w", p.name(), err)
		}
		if err := p.c.toStatus(report.Running, report.Created); err != nil {
			return 0, err
		}
	}
	p.starting.Lock()
	p.await() // now, to save the time of a call to the guest
	resp, err := s.guest.StartProcess(ctx, &agentv1.StartProcessRequest{Container: p.c.id, Exec: p.id})
	if err != nil {
		err = s.orDead(guest.Error(err, true))
		p.finish(exitOfStartError(err))
	}
	p.starting.Unlock()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", p.name(), err)
	}
	if p.id == "" {
		s.saveState()
		// The process runs already: as runc does, what such a hook says is
		// logged and changes nothing.
		if err := s.runHooks(ctx, p.c, p.c.hooks.AfterStart); err != nil {
			s.log.Warn("poststart hooks", "container", p.c.id, "error", err)
		}
	}
	return int(resp.GetPid()), nil
}

// await asks the agent for the process's end, once, within an operation that
// has begun. It ends with the process or with the sandbox, whichever is first:
// the sandbox's own context ends the call.
func (p *Process) await() {
	p.wait.Do(func() { p.c.s.background.Go(p.follow) })
}

func (p *Process) follow() {
	s := p.c.s
	resp, err := s.guest.WaitProcess(s.life, &agentv1.WaitProcessRequest{Container: p.c.id, Exec: p.id})
	p.starting.Lock()
	defer p.starting.Unlock()
	if err != nil {
		// Waits for the reason, if the call is not the only thing that failed.
		err = s.orDead(guest.Error(err, false))
		if !s.isDead() {
			s.die(fmt.Errorf("wait for %s: %w", p.name(), err))
		}
		p.finish(report.Exit{Code: report.LostCode, At: time.Now(), Reason: s.deathReason()})
		return
	}
	p.finish(figures.Exit(resp, s.created, time.Now()))
}

func (p *Process) finish(e report.Exit) {
	p.c.mu.Lock()
	select {
	case <-p.done:
		p.c.mu.Unlock()
		return
	default:
	}
	p.exit = e
	if p.id == "" {
		p.c.status = report.Stopped
	}
	close(p.done)
	p.c.mu.Unlock()
	p.c.s.saveState()
}

// Signal sends a signal; all means to every process of the container. A
// process that has ended already is not an error. SIGKILL for an init process
// does not depend on the guest: a machine that does not obey ends.
func (p *Process) Signal(ctx context.Context, sig uint32, all bool) error {
	s := p.c.s
	kill := p.id == "" && unix.Signal(sig) == unix.SIGKILL
	timeout := callTimeout
	if kill {
		// A caller that gives up early does not make the guest disobedient.
		ctx, timeout = context.WithoutCancel(ctx), killTimeout
	}
	ctx, done, err := s.Begin(ctx, timeout)
	if err != nil && kill {
		return nil // it has ended with the sandbox
	}
	if err != nil {
		return fmt.Errorf("signal %s: %w", p.name(), err)
	}
	defer done()
	p.await() // it may end without having been started
	_, err = s.guest.SignalProcess(ctx, &agentv1.SignalProcessRequest{Container: p.c.id, Exec: p.id, Signal: sig, All: all})
	switch {
	case !kill && err != nil:
		return fmt.Errorf("signal %s: %w", p.name(), s.orDead(guest.Error(err, false)))
	case !kill:
		return nil
	case err != nil:
		s.die(fmt.Errorf("the guest does not obey SIGKILL for %s: %w", p.name(), guest.Error(err, false)))
		return nil
	}
	s.background.Go(func() {
		select {
		case <-p.done:
		case <-s.life.Done():
		case <-time.After(killTimeout):
			s.die(fmt.Errorf("the guest does not obey SIGKILL for %s", p.name()))
		}
	})
	return nil
}

// Resize sets the terminal's size, in characters.
func (p *Process) Resize(ctx context.Context, width, height uint32) error {
	s := p.c.s
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.guest.ResizeTerminal(ctx, &agentv1.ResizeTerminalRequest{Container: p.c.id, Exec: p.id, Width: width, Height: height})
	if err != nil {
		return fmt.Errorf("resize terminal of %s: %w", p.name(), s.orDead(guest.Error(err, false)))
	}
	return nil
}
