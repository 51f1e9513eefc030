// Package jail sets containers up in the guest: namespaces, mounts, devices,
// privileges, system call filter, as the OCI runtime spec describes them, and
// further processes in running containers.
//
// The process that becomes the container is our own program, started again as
// "container-init" (Main). It may be started before anyone knows what for, and
// waits. Life cycle:
//
//	New -> Fill (spare processes) -> Create -> Container.Start -> Container.Exec -> Process.Start -> Container.Delete
//
// Create does everything but the last step: the process stands before its
// execve until Start. The spec comes from the host and is trusted; the rootfs is
// not, so that every path below it goes through internal/safepath, and mounts
// are made on descriptors instead of paths. What a spec asks for and is not
// supported is an error that names the field; nothing is dropped.
package jail

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/agent/reap"
	"golang.org/x/sys/unix"
)

// Kinds of errors, to be told apart by errors.Is.
var (
	// ErrNotFound means that there is no such program in the container.
	ErrNotFound = errors.New("command not found")
	// ErrPermission means that the program is there and cannot be executed.
	ErrPermission = errors.New("command cannot be executed")
	// ErrUnsupported means that the spec asks for something that cannot be
	// enforced; the message names the fields.
	ErrUnsupported = errors.New("not supported")
)

// Name is argv[0] of the program when it has to call Main.
const Name = "container-init"

// Options say how containers are made.
type Options struct {
	// Reaper must be running.
	Reaper *reap.Reaper
	// Spares is how many processes Fill starts ahead.
	Spares int
	Log    *slog.Logger
}

// Jailer makes containers. Its methods are safe for concurrent use.
type Jailer struct {
	options Options
	forker  forker
	pod     podInit

	mu     sync.Mutex
	spares []*worker // guarded by mu; born in pid namespaces of their own
}

// New returns a Jailer without spare processes.
func New(o Options) *Jailer { return &Jailer{options: o} }

// Fill starts spare processes until there are Options.Spares of them. A
// container that needs a pid namespace of its own then takes one of them.
func (j *Jailer) Fill(ctx context.Context) error {
	for ctx.Err() == nil {
		j.mu.Lock()
		enough := len(j.spares) >= j.options.Spares
		j.mu.Unlock()
		if enough {
			return nil
		}
		w, err := j.spawn(birth{clone: unix.CLONE_NEWPID})
		if err != nil {
			return err
		}
		j.mu.Lock()
		j.spares = append(j.spares, w)
		j.mu.Unlock()
	}
	return ctx.Err()
}

// Rehearse starts the processes that wait, and the forker, anew, such that each has
// read a plan before: what a process makes when it first does is there then. For a
// guest that is going to be saved.
func (j *Jailer) Rehearse(ctx context.Context) error {
	j.discardWaiting()
	forker, err := j.rehearsed(ctx, birth{}, inside.Forker)
	if err != nil {
		return err
	}
	j.forker.mu.Lock()
	j.forker.w = forker
	j.forker.mu.Unlock()
	for range j.options.Spares {
		w, err := j.rehearsed(ctx, birth{clone: unix.CLONE_NEWPID})
		if err != nil {
			return err
		}
		j.mu.Lock()
		j.spares = append(j.spares, w)
		j.mu.Unlock()
	}
	return nil
}

// rehearsed starts a process and waits until it has rehearsed.
func (j *Jailer) rehearsed(ctx context.Context, b birth, args ...string) (*worker, error) {
	w, err := j.spawn(b, append(args, inside.Rehearse)...)
	if err != nil {
		return nil, err
	}
	defer w.deadline(ctx)()
	if _, err := w.conn.Read(make([]byte, 1)); err != nil {
		w.discard()
		return nil, fmt.Errorf("rehearse: %w", w.gone(ctx, err))
	}
	return w, nil
}

// Close ends the spare processes, the forker, and the pod's first process. Containers
// are not touched, but for those in the pod's pid namespace, which ends.
func (j *Jailer) Close() {
	j.pod.end()
	j.discardWaiting()
}

// discardWaiting ends the spare processes and the forker.
func (j *Jailer) discardWaiting() {
	j.forker.mu.Lock()
	if j.forker.w != nil {
		j.forker.w.discard()
		j.forker.w = nil
	}
	j.forker.mu.Unlock()
	j.mu.Lock()
	spares := j.spares
	j.spares = nil
	j.mu.Unlock()
	for _, w := range spares {
		w.discard()
	}
}

// worker returns a process that was born as asked: a spare one if there is one
// that still lives.
func (j *Jailer) worker(b birth) (*worker, error) {
	for b.clone == unix.CLONE_NEWPID && b.pidNamespace == nil {
		j.mu.Lock()
		n := len(j.spares)
		if n == 0 {
			j.mu.Unlock()
			break
		}
		w := j.spares[n-1]
		j.spares = j.spares[:n-1]
		j.mu.Unlock()
		select {
		case <-w.child.Done():
			w.discard()
		default:
			return w, nil
		}
	}
	return j.spawn(b)
}

// Config is one container.
type Config struct {
	// ID names the container in messages.
	ID string
	// Spec is translated already: paths of the root and of bind mounts are the
	// guest's.
	Spec *specs.Spec
	// Cgroup is where its processes go; nil leaves them where they are. Create
	// does not make it; Delete removes it.
	Cgroup *cgroup.Group
	// Join lists namespaces that are entered instead of made: the type and the
	// container that has it.
	Join map[specs.LinuxNamespaceType]*Container
	// PodPID lets its processes be in the pid namespace of the pod, which no
	// container has. Spec must not list one, and Join neither.
	PodPID bool
	// Stdio is what the process gets.
	Stdio Stdio
}

// Stdio is the standard input, output and error of a process. Nil is /dev/null.
// The caller keeps the files and should close them after Create or Exec. They
// should be in blocking mode, as programs expect; those of os.Pipe are put into it.
// With a terminal they are ignored: see Process.Console.
type Stdio struct{ In, Out, Err *os.File }

// Main is what the program has to run, before anything else and on the main
// goroutine, when argv[0] is Name. It does not return if all goes well; otherwise
// it returns an exit status.
func Main() int { return inside.Main() }
