// Package supervise starts the helper programs of a sandbox (the VMM, a file
// server) so that they cannot outlive the process that owns them: a child gets
// SIGKILL when its owner dies, however that happens.
//
// Life cycle: Start -> Done is closed when the child has ended -> Exit tells
// how. Everything between goes by pidfd, so a signal never reaches another
// process that was given the same number.
//
// A child inherits nothing by accident: its environment is the one that is
// given, its descriptors are the ones that are listed, and it runs in a session
// of its own, where the terminal's Ctrl-C does not reach it.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/tail"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// drainTime is how long the rest of a dead child's output is waited for. It
// matters only if the child left a process of its own that holds the pipe.
const drainTime = 200 * time.Millisecond

// Command says what to start.
type Command struct {
	// Path is the program, Args its arguments without the program's name.
	Path string
	Args []string
	// Env is the whole environment; nil is an empty one.
	Env []string
	// Dir is the working directory, "/" if empty.
	Dir string
	// Files become the child's descriptors 3, 4, … The caller keeps its own
	// and closes them when it likes.
	Files []*os.File
	// Stderr is how many bytes of the end of the child's output (stdout and
	// stderr together) are kept.
	Stderr int
	// KeepCaps names the capabilities that the child may have ("CAP_CHOWN"):
	// all others leave its bounding set. Nil keeps all of them.
	KeepCaps []string
	// Access, when set, is all of the file system that the child may open,
	// as far as the kernel has Landlock. It has to contain the program itself
	// and its libraries.
	Access *Access
	// Root, when set, takes away all of the host's file system but Access,
	// which has to be set as well.
	Root *Root
	// Lend, when set, is a file that the child gets for reading only when it
	// opens it for reading and writing.
	Lend *Lend
	// User, when set, is whom the child runs as, without capabilities.
	User *User
	// NoNetwork puts the child into an empty network namespace. What is open
	// already, a tap device for example, goes on working.
	NoNetwork bool
	// NetNS, when set, is the network namespace that the child runs in.
	NetNS *os.File
	// SmallPages keeps the child's memory from being backed by transparent
	// huge pages.
	SmallPages bool
	// Place, when set, is called on the thread that forks the child, before
	// anything else is taken from it: what it does to the thread (cgroups, CPUs),
	// and to the attributes, is the child's from its first instruction on. The
	// thread is used for nothing else. A CgroupFD is closed here.
	Place func(*syscall.SysProcAttr) error
}

// User is a numeric user and group without supplementary groups.
type User struct{ UID, GID uint32 }

// Exit is how a process ended.
type Exit struct {
	// Code is the exit status, or -1 after a signal.
	Code int
	// Signal that ended the process, 0 for none.
	Signal syscall.Signal
	// At is the time when the end was noticed.
	At time.Time
	// Err is set when the end could not be waited for; Code is then -1.
	Err error
}

// Success reports whether the process ended by itself with status 0.
func (e Exit) Success() bool { return e.Err == nil && e.Signal == 0 && e.Code == 0 }

// String says it in words: "exit status 1" or "killed by signal 9 (killed)".
func (e Exit) String() string {
	switch {
	case e.Err != nil:
		return e.Err.Error()
	case e.Signal != 0:
		return fmt.Sprintf("killed by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		return fmt.Sprintf("exit status %d", e.Code)
	}
}

// Process is a child that was started. Its methods are safe for concurrent
// use.
type Process struct {
	proc *os.Process
	tail *tail.Buffer
	done chan struct{}
	exit Exit // written before done is closed
}

// Start starts the child. The context bounds only the start, not the child's
// life. On error nothing is left running.
func Start(ctx context.Context, c Command) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	p := &Process{tail: tail.New(c.Stderr), done: make(chan struct{})}
	started := make(chan error, 1)
	// The goroutine ends with the child; Done tells. It keeps off the first
	// thread, whose root and namespaces are those that /proc shows as ours.
	go func() {
		_ = thread.Run(func() error {
			p.run(c, started)
			return nil
		})
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	return p, nil
}

// PID is the child's process id. It means something only until Done is closed.
func (p *Process) PID() int { return p.proc.Pid }

// Done is closed when the child has ended, has been reaped, and its output has
// been read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit tells how the child ended. It waits for that.
func (p *Process) Exit() Exit {
	<-p.done
	return p.exit
}

// Kill sends SIGKILL. A child that has ended already is left alone.
func (p *Process) Kill() { _ = p.Signal(unix.SIGKILL) }

// Signal sends sig. The error is os.ErrProcessDone if the child has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.proc.Signal(sig); err != nil {
		return fmt.Errorf("signal process %d: %w", p.proc.Pid, err)
	}
	return nil
}

// Stderr returns the tail of the child's output so far.
func (p *Process) Stderr() []byte { return p.tail.Bytes() }

// run starts the child, waits for it, and closes done.
//
// It needs a thread of its own from beginning to end, which is never used
// again, for two reasons: the parent-death signal is sent when the thread that
// forked ends, not the process; and the capabilities and the root that it gives
// up are its own, which no other goroutine must find itself without.
func (p *Process) run(c Command, started chan<- error) {
	r, w, err := os.Pipe()
	if err != nil {
		started <- fmt.Errorf("make the output pipe: %w", err)
		return
	}
	lent, err := newLoan(c.Lend)
	if err == nil {
		p.proc, err = fork(c, w, lent)
	}
	_ = w.Close()
	if err != nil {
		lent.end()
		_ = r.Close()
		started <- err
		return
	}
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(p.tail, r) })
	started <- nil

	state, err := p.proc.Wait()
	p.exit = Exit{Code: -1, At: time.Now(), Err: err}
	if err == nil {
		p.exit.Code = state.ExitCode()
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.Signal = ws.Signal()
		}
	}
	lent.end()
	_ = r.SetReadDeadline(time.Now().Add(drainTime))
	reading.Wait()
	_ = r.Close()
	close(p.done)
}

// fork starts the child from the calling thread, which it leaves confined.
func fork(c Command, output *os.File, lent *loan) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()

	if c.SmallPages {
		// The setting is the whole process's, and inherited. That another
		// child may get it as well, or we for a moment, does no harm.
		if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err == nil {
			defer func() { _ = unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0) }()
		}
	}
	// Our own descriptors are not inherited, but those might be that we were
	// given by a less careful program.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep descriptors to ourselves: %w", err)
	}
	sys := &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true}
	if c.Place != nil {
		err := c.Place(sys)
		if sys.UseCgroupFD {
			defer func() { _ = unix.Close(sys.CgroupFD) }()
		}
		if err != nil {
			return nil, fmt.Errorf("place it: %w", err)
		}
	}
	if c.NetNS != nil {
		if err := unix.Setns(int(c.NetNS.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter network namespace: %w", err)
		}
	}
	// From here on the thread can do only what the child may do.
	if err := confine(c.KeepCaps); err != nil {
		return nil, err
	}
	if c.Root != nil {
		if c.Access == nil {
			return nil, errors.New("a root of its own needs a list of what is in it")
		}
		if err := c.Root.enter(*c.Access); err != nil {
			return nil, fmt.Errorf("make its root: %w", err)
		}
	}
	if c.Access != nil {
		if err := restrict(*c.Access); err != nil {
			return nil, err
		}
	}
	if c.NoNetwork {
		sys.Cloneflags |= unix.CLONE_NEWNET
	}
	if c.Root != nil {
		sys.Cloneflags |= unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if c.User != nil {
		sys.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID}
	}
	attr := &os.ProcAttr{
		Dir:   c.Dir,
		Env:   append([]string{}, c.Env...), // not nil, which would mean ours
		Files: append([]*os.File{null, output, output}, c.Files...),
		Sys:   sys,
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	if err := lent.begin(); err != nil {
		return nil, err
	}
	proc, err := os.StartProcess(c.Path, append([]string{c.Path}, c.Args...), attr)
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return nil, pathErr.Err // the caller's message has the path
	}
	return proc, err
}
