package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/shim/stdio"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// patience is how long the last output of a process that has ended may
	// stand still before it is given up: its client may have gone.
	patience = 5 * time.Second
	// drainTimeout is how long the last output may take in all: it is the
	// guest that says when it is over.
	drainTimeout = 10 * time.Second
	// execsTimeout is how long the exit of a container waits for those of its
	// execs, so that they are told first.
	execsTimeout = 5 * time.Second
)

// ctr is one container: a task, in containerd's words.
type ctr struct {
	s      *service
	id     string
	bundle string
	c      *sandbox.Container
	// pid on the host: the virtual machine's for a sandbox's first container, for
	// the others that of a thread of ours. By it containerd names a container
	// whose namespaces another one is to join.
	pid  uint32
	own  *thread.Parked // nil without one
	init *process
	last *os.File // for last words; nil without it

	mu     sync.Mutex
	execs  map[string]*process // guarded by mu; nil while being made
	paused bool                // guarded by mu
	oom    bool                // guarded by mu: it has been told
}

// process is the first process of a container, or an exec.
type process struct {
	c     *ctr
	id    string // empty for the first
	names stdio.Options
	p     *sandbox.Process
	told  chan struct{} // closed when the exit has been published
	// refused is why the command of an exec cannot be run, which is said at its
	// start; the guest has no such process.
	refused error

	// starting is held while the process is started and that is published,
	// which is as long as the guest takes.
	starting sync.Mutex
	begun    atomic.Bool // it is being started, or has been
	started  atomic.Bool // set while starting is held

	mu        sync.Mutex
	io        *stdio.Set // guarded by mu; nil before it is opened
	inputOver bool       // guarded by mu: the client has said so
}

func exitedAt(e report.Exit) *timestamppb.Timestamp {
	if e.At.IsZero() {
		return nil
	}
	return timestamppb.New(e.At)
}

// newContainer creates a container in the sandbox, with its input and outputs.
func newContainer(ctx context.Context, s *service, sb *sandbox.Sandbox, r *task.CreateTaskRequest) (*ctr, error) {
	c := &ctr{s: s, id: r.GetID(), bundle: r.GetBundle(), execs: map[string]*process{}}
	c.init = &process{c: c, told: make(chan struct{}), names: stdio.Options{
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(),
		Namespace: s.namespace, Container: c.id, Mounts: s.mounts,
	}}
	o := sandbox.ContainerOptions{ID: c.id, Bundle: c.bundle, PIDs: s.pids()}
	for _, m := range r.GetRootfs() {
		o.Rootfs = append(o.Rootfs, sandbox.RootfsMount{Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()})
	}
	io, err := stdio.Open(ctx, c.init.names)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.id, err)
	}
	o.Stdio.Stdin, o.Stdio.Stdout, o.Stdio.Stderr = io.Wanted()
	if c.c, err = sb.Create(ctx, o); err != nil {
		_ = io.Close()
		return nil, err
	}
	c.init.p, c.init.io = c.c.Init(), io
	return c, nil
}

func (c *ctr) process(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s of container %s: %w", exec, c.id, sandbox.ErrNotFound)
}

// exec prepares a process, whose input and outputs are opened at its start.
func (c *ctr) exec(ctx context.Context, r *task.ExecProcessRequest) error {
	id := r.GetExecID()
	var proc specs.Process
	if err := json.Unmarshal(r.GetSpec().GetValue(), &proc); err != nil {
		return fmt.Errorf("exec %s in container %s: its process: %w: %w", id, c.id, sandbox.ErrInvalid, err)
	}
	proc.Terminal = r.GetTerminal()
	c.mu.Lock()
	_, taken := c.execs[id]
	if !taken {
		c.execs[id] = nil
	}
	c.mu.Unlock()
	if taken {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, sandbox.ErrExists)
	}
	p := &process{c: c, id: id, told: make(chan struct{}), names: stdio.Options{
		Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal(),
		Namespace: c.s.namespace, Container: c.id, Mounts: c.s.mounts,
	}}
	var err error
	p.p, err = c.c.Exec(ctx, id, &proc, sandbox.Stdio{
		Stdin: p.names.Stdin != "", Stdout: p.names.Stdout != "", Stderr: p.names.Stderr != "" && !p.names.Terminal,
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && p.p == nil {
		delete(c.execs, id)
		return err
	}
	p.refused = err
	c.execs[id] = p
	return nil
}

func (c *ctr) setPaused(paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
}

func (c *ctr) pids() []*tasktypes.ProcessInfo {
	if c.init.ended() {
		return nil
	}
	return []*tasktypes.ProcessInfo{{Pid: c.pid}}
}

// outOfMemory publishes that a process of the container was killed for want of
// memory: once, since it is the guest's word, and before the exit.
func (c *ctr) outOfMemory() {
	c.mu.Lock()
	again := c.oom
	c.oom = true
	c.mu.Unlock()
	if !again {
		c.s.events.Publish(&events.TaskOOM{ContainerID: c.id})
	}
}

// sharesPID tells whether the container's processes outlive its first one, for
// want of a pid namespace of its own.
func (c *ctr) sharesPID() bool {
	if l := c.c.Spec().Linux; l != nil {
		for _, ns := range l.Namespaces {
			if ns.Type == specs.PIDNamespace {
				return ns.Path != ""
			}
		}
	}
	return true
}

func (p *process) name() string {
	if p.id == "" {
		return "container " + p.c.id
	}
	return "exec " + p.id + " of container " + p.c.id
}

func (p *process) ended() bool {
	select {
	case <-p.p.Done():
		return true
	default:
		return false
	}
}

// start runs the process and publishes that.
func (p *process) start(ctx context.Context) error {
	p.starting.Lock()
	defer p.starting.Unlock()
	if p.refused != nil {
		return p.refused
	}
	if p.started.Load() || p.ended() {
		return fmt.Errorf("start %s: it has been started: %w", p.name(), sandbox.ErrState)
	}
	p.begun.Store(true)
	defer func() { p.begun.Store(p.started.Load()) }()
	if err := p.join(ctx); err != nil {
		return fmt.Errorf("start %s: %w", p.name(), err)
	}
	if _, err := p.p.Start(ctx); err != nil {
		return err
	}
	p.started.Store(true)
	if p.id == "" {
		p.c.s.events.Publish(&events.TaskStart{ContainerID: p.c.id, Pid: p.c.pid})
		return nil
	}
	p.c.s.events.Publish(&events.TaskExecStarted{ContainerID: p.c.id, ExecID: p.id, Pid: p.c.pid})
	p.c.s.watchers.Go(p.follow)
	return nil
}

// join lets bytes flow between the process and its client.
func (p *process) join(ctx context.Context) error {
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if io == nil { // that of a container was opened with it
		var err error
		if io, err = stdio.Open(ctx, p.names); err != nil {
			return err
		}
		p.mu.Lock()
		p.io = io
		over := p.inputOver
		p.mu.Unlock()
		if over {
			io.CloseInput()
		}
	}
	return io.Join(ctx, p.p.OpenStdio)
}

// follow waits for the end of the process and publishes it: after its start,
// and that of a container after those of its execs.
func (p *process) follow() {
	defer close(p.told)
	<-p.p.Done()
	if p.id == "" {
		p.c.endExecs()
	}
	// What begins now is refused, since the process has ended.
	p.starting.Lock()
	started := p.started.Load()
	p.starting.Unlock()
	e, log := p.p.Exit(), p.c.s.logger()
	if e.Reason != "" {
		log.Warn("process ended", "container", p.c.id, "exec", p.id, "code", e.Code, "reason", printable.Text(e.Reason, 500))
	}
	if e.OOMKilled && p.id == "" {
		p.c.outOfMemory()
	}
	p.endOutputs()
	// To Docker 20.10 the task's pid means the container, not an exec.
	id, pid := p.id, uint32(os.Getpid())
	if id == "" {
		id, pid = p.c.id, p.c.pid
	}
	log.Debug("exit", "container", p.c.id, "exec", p.id, "code", e.Code, "started", started)
	p.c.s.events.Publish(&events.TaskExit{
		ContainerID: p.c.id, ID: id, Pid: pid, ExitStatus: e.Code, ExitedAt: exitedAt(e),
	})
}

// endExecs waits until the ends of the execs have been published: they end with
// the container, by themselves or by us.
func (c *ctr) endExecs() {
	if c.sharesPID() {
		ctx, cancel := context.WithTimeout(context.Background(), execsTimeout)
		if err := c.init.p.Signal(ctx, uint32(unix.SIGKILL), true); err != nil {
			c.s.logger().Warn("processes of an ended container", "container", c.id, "error", err)
		}
		cancel()
	}
	c.mu.Lock()
	var execs []*process
	for _, p := range c.execs {
		if p != nil {
			execs = append(execs, p)
		}
	}
	c.mu.Unlock()
	late := time.After(execsTimeout)
	for _, p := range execs {
		p.starting.Lock()
		started := p.started.Load()
		p.starting.Unlock()
		if !started {
			continue
		}
		select {
		case <-p.told:
		case <-late:
			return
		}
	}
}

// delete removes a process that has ended, or was never started.
func (p *process) delete(ctx context.Context) error {
	if p.begun.Load() && !p.ended() { // the guest may take its time to start it
		return fmt.Errorf("delete %s: it is running: %w", p.name(), sandbox.ErrState)
	}
	p.starting.Lock()
	started := p.started.Load()
	p.starting.Unlock()
	if started && !p.ended() {
		return fmt.Errorf("delete %s: it is running: %w", p.name(), sandbox.ErrState)
	}
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if started {
		<-p.told // the exit is told before the container goes
		io.Drain(ctx, patience, drainTimeout)
	}
	if p.id != "" {
		return p.deleteExec(ctx)
	}
	err := p.c.c.Delete(ctx)
	<-p.told
	if p.c.own != nil {
		p.c.own.Leave()
	}
	if io != nil {
		_ = io.Close()
	}
	return err
}

func (p *process) deleteExec(ctx context.Context) error {
	if !p.ended() {
		// Never started: its process in the guest waits to be.
		if err := p.p.Signal(ctx, uint32(unix.SIGKILL), false); err != nil {
			return err
		}
		select {
		case <-p.p.Done():
		case <-time.After(execsTimeout):
			return fmt.Errorf("delete %s: it does not end: %w", p.name(), sandbox.ErrState)
		}
	}
	if p.refused == nil {
		if err := p.c.c.DeleteExec(ctx, p.id); err != nil {
			return err
		}
	}
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	if io != nil {
		_ = io.Close()
	}
	p.c.mu.Lock()
	delete(p.c.execs, p.id)
	p.c.mu.Unlock()
	return nil
}

// closeInput lets the input end.
func (p *process) closeInput() {
	p.mu.Lock()
	io := p.io
	p.inputOver = true
	p.mu.Unlock()
	if io != nil {
		io.CloseInput()
	}
}

func (p *process) state() *task.StateResponse {
	r := &task.StateResponse{
		ID: p.c.id, ExecID: p.id, Bundle: p.c.bundle, Pid: p.c.pid,
		Stdin: p.names.Stdin, Stdout: p.names.Stdout, Stderr: p.names.Stderr, Terminal: p.names.Terminal,
		Status: tasktypes.Status_CREATED,
	}
	if p.ended() {
		e := p.p.Exit()
		r.Status, r.ExitStatus, r.ExitedAt = tasktypes.Status_STOPPED, e.Code, exitedAt(e)
		return r
	}
	p.c.mu.Lock()
	paused := p.c.paused
	p.c.mu.Unlock()
	started := p.started.Load()
	switch {
	case started && paused && p.id == "":
		r.Status = tasktypes.Status_PAUSED
	case started:
		r.Status = tasktypes.Status_RUNNING
	}
	return r
}
