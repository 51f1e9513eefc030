package jail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/agent/reap"
	"golang.org/x/sys/unix"
)

// worker is a process that is to be a container's, or makes such (the forker).
type worker struct {
	child *reap.Child   // nil before the forker has made it
	conn  *net.UnixConn // the other end of its control socket
}

// birth is what a process has from its first moment, as it cannot be had later: a
// pid namespace, new (CLONE_NEWPID) or that of another process.
type birth struct {
	clone        int
	pidNamespace *os.File // a pidfd, nil for ours
}

// environment of the worker. One processor is enough for it, and saves the runtime
// the look at what there is. It must not be interrupted between the loading of its
// filter and its execve, as the filter may forbid what the handler does.
var environment = [...]string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

// MonitorSlack is how late the Go runtime's monitor may wake up, in the agent and in
// what it starts.
const MonitorSlack = 40 * time.Millisecond

// spawn starts our program as a worker.
func (j *Jailer) spawn(b birth, args ...string) (*worker, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start a container's process: %w", err)
	}
	defer func() { _ = theirs.Close() }()
	child, err := j.options.Reaper.Start(func() (int, error) { return b.fork(theirs, args) })
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("start a container's process: %w", err)
	}
	return &worker{child: child, conn: ours}, nil
}

// fork starts our program anew.
func (b birth) fork(control *os.File, args []string) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	attr := &syscall.ProcAttr{
		Dir: "/",
		Env: environment[:],
		// What it has to say before it is a container, which is to say a crash of
		// its runtime, goes where ours would.
		Files: []uintptr{null.Fd(), null.Fd(), os.Stderr.Fd(), control.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: uintptr(b.clone)},
	}
	start := func() {
		// The thread's slack is inherited by the program, for all its threads.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(MonitorSlack), 0, 0, 0); err != nil {
			err = fmt.Errorf("set timer slack: %w", err)
			return
		}
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // the default
		pid, err = syscall.ForkExec("/proc/self/exe", append([]string{Name}, args...), attr)
	}
	if b.pidNamespace == nil {
		start()
		return pid, err
	}
	// Children are born into the namespace that their parent thread has chosen for
	// them. The thread is of no use for anything else after that, and ends with the
	// goroutine that does not unlock it.
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		if err = unix.Setns(int(b.pidNamespace.Fd()), unix.CLONE_NEWPID); err != nil {
			err = fmt.Errorf("enter the pid namespace: %w", err)
			return
		}
		start()
	})
	wg.Wait()
	return pid, err
}

// socketPair makes a control socket; the second end is for the child.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	file := os.NewFile(uintptr(fds[0]), "control")
	defer func() { _ = file.Close() }()
	conn, err := net.FileConn(file)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		_ = theirs.Close()
		_ = conn.Close()
		return nil, nil, errors.New("not a unix socket")
	}
	return unixConn, theirs, nil
}

// discard kills the process.
func (w *worker) discard() {
	if w.child != nil {
		_ = w.child.Signal(unix.SIGKILL)
	}
	_ = w.conn.Close()
}

var errNoTerminal = errors.New("the container's process sent no terminal")

// prepare sends the plan and waits until the process stands at the gate. It returns
// the terminal if there is one. On error the process is ended.
func (w *worker) prepare(ctx context.Context, p *inside.Plan, s Stdio, join []*os.File) (*os.File, error) {
	terminal, err := w.tryPrepare(ctx, p, s, join)
	if err != nil {
		w.discard()
	}
	return terminal, err
}

func (w *worker) tryPrepare(ctx context.Context, p *inside.Plan, s Stdio, join []*os.File) (*os.File, error) {
	files, null, err := s.files()
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	defer w.deadline(ctx)()
	if err := inside.SendPlan(w.conn, p, append(files, join...)); err != nil {
		return nil, w.gone(ctx, err)
	}
	terminal, _, err := inside.ReceiveAnswer(w.conn)
	if err != nil {
		return nil, w.gone(ctx, err)
	}
	if (terminal != nil) != p.Process.Terminal {
		return nil, errNoTerminal
	}
	return terminal, nil
}

// files returns descriptors for all three, and the one that stands in for those
// that are not set.
func (s Stdio) files() (files []*os.File, null *os.File, err error) {
	null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	files = []*os.File{s.In, s.Out, s.Err}
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	return files, null, nil
}

// open lets the process run its program and waits until it does.
func (w *worker) open(ctx context.Context, p *inside.Process) error {
	defer func() { _ = w.conn.Close() }()
	defer w.deadline(ctx)()
	if err := inside.OpenGate(w.conn, p); err != nil {
		w.discard()
		return w.gone(ctx, err)
	}
	return nil
}

// deadline makes reads and writes fail when ctx ends. The returned function takes
// that back.
func (w *worker) deadline(ctx context.Context) func() {
	if t, ok := ctx.Deadline(); ok {
		_ = w.conn.SetDeadline(t)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if stop() {
			_ = w.conn.SetDeadline(time.Time{})
		}
	}
}

// gone says what an error of the conversation means.
func (w *worker) gone(ctx context.Context, err error) error {
	if e := (*inside.Error)(nil); errors.As(err, &e) {
		switch e.Kind {
		case inside.NotFound:
			return kindError{e.Message, ErrNotFound}
		case inside.Permission:
			return kindError{e.Message, ErrPermission}
		case inside.Internal:
		}
		return e
	}
	if ctx.Err() != nil {
		return fmt.Errorf("set up the container's process: %w", context.Cause(ctx))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		if w.child == nil {
			return errors.New("the process that makes further processes of containers has ended")
		}
		// The end of the process is what has closed the socket, and near.
		select {
		case <-w.child.Done():
			return errors.New("the container's process ended while it was set up, with exit code " + strconv.Itoa(w.child.ExitCode()))
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("set up the container's process: %w", err)
}

// kindError is a message that is complete in itself, with a kind for errors.Is.
type kindError struct {
	message string
	kind    error
}

func (e kindError) Error() string { return e.message }
func (e kindError) Unwrap() error { return e.kind }
