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
	"log/slog"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
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
type Jailer struct{}

// New returns a Jailer without spare processes.
func New(o Options) *Jailer { return &Jailer{} }

// Fill starts spare processes until there are Options.Spares of them. A
// container that needs a pid namespace of its own then takes one of them.
func (j *Jailer) Fill(ctx context.Context) error { return errTODO }

// Close ends the spare processes. Containers are not touched.
func (j *Jailer) Close() {}

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
	// Stdio is what the process gets.
	Stdio Stdio
}

// Stdio is the standard input, output and error of a process. Nil is /dev/null.
// The caller keeps the files and should close them after Create or Exec. With a
// terminal they must be nil: see Process.Console.
type Stdio struct{ In, Out, Err *os.File }

// Container is a container that was created. Its methods are safe for concurrent
// use.
type Container struct{}

var errTODO = errors.New("not there yet")

// Create sets a container up. Its first process waits for Start. On error nothing
// of it is left but the cgroup. The context bounds the set-up.
func (j *Jailer) Create(ctx context.Context, c Config) (*Container, error) { return nil, errTODO }

// Init is the first process of the container. It exists as soon as the container.
func (c *Container) Init() *Process { return nil }

// Start runs the program of the container's first process.
func (c *Container) Start(ctx context.Context) error { return errTODO }

// ExecConfig is a further process of a container.
type ExecConfig struct {
	Process *specs.Process
	Stdio   Stdio
}

// Exec prepares a further process in the running container. It waits for
// Process.Start.
func (c *Container) Exec(ctx context.Context, e ExecConfig) (*Process, error) { return nil, errTODO }

// Delete kills every process of the container, waits for their end as long as ctx
// allows, and removes the cgroup. Its mounts end with its processes.
func (c *Container) Delete(ctx context.Context) error { return errTODO }

// Process is a process of a container.
type Process struct{}

// Start lets the process run its program. It returns once the program runs, or
// with ErrNotFound or ErrPermission if it cannot; the process has then ended.
func (p *Process) Start(ctx context.Context) error { return errTODO }

// PID is the process's id in the agent's namespace.
func (p *Process) PID() int { return 0 }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return nil }

// Child is the process as the reaper knows it: how and when it ended.
func (p *Process) Child() *reap.Child { return nil }

// Signal sends sig. The error is os.ErrProcessDone if the process has ended.
func (p *Process) Signal(sig unix.Signal) error { return errTODO }

// Console is the master side of the process's terminal, nil if it has none. The
// caller owns it; reading fails with EIO when the last process has closed the
// other side.
func (p *Process) Console() *os.File { return nil }

// Resize sets the size of the process's terminal.
func (p *Process) Resize(width, height uint16) error { return errTODO }

// Main is what the program has to run, before anything else and on the main
// goroutine, when argv[0] is Name. It does not return if all goes well;
// otherwise it returns an exit status.
func Main() int { return 1 }
