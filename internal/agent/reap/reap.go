// Package reap waits for the children of the agent, which is PID 1 of the guest
// and so inherits every orphan of every container.
//
// There is one Reaper in the process and nothing else may wait for children: no
// os/exec, no os.Process.Wait. A process is started through Reaper.Start, or made by
// another within Reaper.Expect, which make sure that its end cannot be missed,
// however soon it comes.
package reap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper collects the ends of child processes. Its methods are safe for
// concurrent use.
type Reaper struct {
	mu       sync.Mutex
	children map[int]*Child // guarded by mu; those that have not ended
	expected int            // guarded by mu; calls of Expect that have not been forgotten
	strays   map[int]*Child // guarded by mu; unknown children that ended while some are expected
}

// New returns a Reaper that collects nothing until Run is called.
func New() *Reaper {
	return &Reaper{children: make(map[int]*Child), strays: make(map[int]*Child)}
}

// Child is a process that was started by Reaper.Start.
type Child struct {
	// PID is its process id in our namespace. It may be another process's once
	// Done is closed, so use Signal and not kill(2).
	PID int

	reaper *Reaper
	done   chan struct{}
	status unix.WaitStatus // written before done is closed
	ended  time.Time       // likewise
}

// Run reaps children, ours and those that were left to us, until ctx ends, whose
// error it then returns.
func (r *Reaper) Run(ctx context.Context) error {
	// One place is enough: every wake-up collects all there is.
	wake := make(chan os.Signal, 1)
	signal.Notify(wake, unix.SIGCHLD)
	defer signal.Stop(wake)
	for {
		for r.reapOne() {
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reapOne reaps a child that has ended; it reports whether there was one.
//
// The lock is held from before the pid becomes free for another process until
// nobody can find it here any more.
func (r *Reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid == 0 { // ECHILD is the only error: none is left
		return false
	}
	c, ok := r.children[pid]
	switch {
	case ok:
		delete(r.children, pid)
	case r.expected > 0:
		c = &Child{PID: pid, reaper: r, done: make(chan struct{})}
		r.strays[pid] = c
	default: // an orphan
		return true
	}
	c.status, c.ended = status, time.Now()
	close(c.done)
	return true
}

// Start calls start, which must start one child of this process (by
// syscall.ForkExec or the like) and return its pid. No child is reaped in the
// meantime, so start must not wait for one.
func (r *Reaper) Start(start func() (pid int, err error)) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := start()
	if err != nil {
		return nil, err
	}
	c := &Child{PID: pid, reaper: r, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Expect prepares for a child that another process makes for us (CLONE_PARENT). When
// its pid is known, adopt returns it, also if it has ended by then. forget must be
// called in the end; until then the ends of unknown children are kept.
func (r *Reaper) Expect() (adopt func(pid int) (*Child, error), forget func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expected++
	return r.adopt, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.expected--; r.expected == 0 {
			clear(r.strays)
		}
	}
}

func (r *Reaper) adopt(pid int) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.strays[pid]; ok {
		delete(r.strays, pid)
		// Unless that was another child, and the pid is now of this one.
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
			return c, nil // there is no such child
		}
	}
	// A signal to what is no pid goes to many.
	if pid <= 1 || r.children[pid] != nil {
		return nil, fmt.Errorf("adopt process %d: %w", pid, os.ErrInvalid)
	}
	c := &Child{PID: pid, reaper: r, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Done is closed when the child has ended and was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Status tells how the child ended. It waits for that.
func (c *Child) Status() unix.WaitStatus {
	<-c.done
	return c.status
}

// Ended tells when the end of the child was noticed. It waits for that.
func (c *Child) Ended() time.Time {
	<-c.done
	return c.ended
}

// ExitCode is the child's exit status as a shell gives it: 128 and the number of
// the signal if one ended it. It waits for the end.
func (c *Child) ExitCode() int {
	s := c.Status()
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// Signal sends sig to the child and never to another process. The error is
// os.ErrProcessDone if the child has ended and was reaped.
func (c *Child) Signal(sig unix.Signal) error {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.PID] != c {
		return os.ErrProcessDone
	}
	if err := unix.Kill(c.PID, sig); err != nil {
		return fmt.Errorf("send signal %d to process %d: %w", sig, c.PID, err)
	}
	return nil
}

// PidFD opens a file descriptor of the child, which the caller closes. The error
// is os.ErrProcessDone if the child has ended and was reaped.
func (c *Child) PidFD() (*os.File, error) {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.PID] != c {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("open a descriptor of process %d: %w", c.PID, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
