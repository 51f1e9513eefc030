package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/agent/reap"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

// Container is a container that was created. Its methods are safe for concurrent
// use.
type Container struct {
	id     string
	jailer *Jailer
	cgroup *cgroup.Group
	spec   *specs.Spec // never changed
	// filter of system calls and its flags. To compile it takes longer than all
	// else that an exec does.
	filter      inside.Filter
	filterFlags uint
	init        *Process
	// pidfd of the init process, by which others enter the namespaces: it is never
	// mistaken for another process.
	pidfd *os.File
	// time is its time namespace, nil if that is the agent's. Only a process with one
	// thread can enter it, and not by the pidfd once it has lost its privileges.
	time *os.File
	// enter are the CLONE_NEW* flags of the namespaces that are not the agent's.
	enter int

	mu    sync.Mutex
	execs []*Process // guarded by mu; those that may still run
	gone  bool       // guarded by mu; Delete was called
}

// Create sets a container up. Its first process waits for Start. On error nothing
// of it is left but the cgroup. The context bounds the set-up.
func (j *Jailer) Create(ctx context.Context, c Config) (*Container, error) {
	container, err := j.create(ctx, c)
	if kind := (kindError{}); err != nil && !errors.As(err, &kind) {
		return nil, fmt.Errorf("create container %q: %w", c.ID, err)
	}
	return container, err
}

func (j *Jailer) create(ctx context.Context, c Config) (*Container, error) {
	end := timeline.Step(ctx, "plan")
	plan, clone, err := newPlan(c.Spec, c.Join)
	end()
	if err != nil {
		return nil, err
	}
	container := &Container{id: c.ID, jailer: j, cgroup: c.Cgroup, spec: c.Spec}
	container.filter, container.filterFlags = plan.Process.Filter, plan.Process.FilterFlags
	container.enter = plan.Unshare | clone
	b := birth{clone: clone}
	if c.PodPID {
		if b.pidNamespace, err = j.podNamespace(ctx); err != nil {
			return nil, err
		}
		container.enter |= unix.CLONE_NEWPID
	}
	var join []*os.File
	for t, other := range c.Join {
		flag := cloneFlags[t]
		container.enter |= flag
		if flag == unix.CLONE_NEWPID {
			b.pidNamespace = other.pidfd
			continue
		}
		plan.Join = append(plan.Join, flag)
		join = append(join, other.pidfd)
	}
	if c.Cgroup != nil && plan.Unshare&unix.CLONE_NEWCGROUP != 0 {
		in, out, err := c.Cgroup.Doors()
		if err != nil {
			return nil, err
		}
		defer func() { _, _ = in.Close(), out.Close() }()
		plan.CgroupDoors = true
		join = append(join, in, out)
	}
	if container.init, err = container.prepare(ctx, b, plan, c.Stdio, join); err != nil {
		return nil, err
	}
	if container.pidfd, err = container.init.worker.child.PidFD(); err != nil {
		container.init.discard()
		return nil, err
	}
	if container.enter&unix.CLONE_NEWTIME != 0 {
		if container.time, err = timeNamespace(container.init.PID(), container.pidfd); err != nil {
			container.init.discard()
			_ = container.pidfd.Close()
			return nil, err
		}
	}
	return container, nil
}

// timeNamespace opens the time namespace that a process has made, and is in after
// its execve. The pid is still that of the pidfd's process if that lives afterwards.
func timeNamespace(pid int, pidfd *os.File) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/time_for_children", pid))
	if err == nil {
		if err = unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
			_ = ns.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look up the time namespace: %w", err)
	}
	return ns, nil
}

// prepare brings the first process to the gate. On error it has been killed, though it may
// not have been reaped yet.
func (c *Container) prepare(ctx context.Context, b birth, p *inside.Plan, s Stdio, join []*os.File) (*Process, error) {
	end := timeline.Step(ctx, "process")
	w, err := c.jailer.worker(b)
	end()
	if err != nil {
		return nil, err
	}
	defer timeline.Step(ctx, "root and limits")()
	terminal, err := w.prepare(ctx, p, s, join)
	if err != nil {
		return nil, err
	}
	return &Process{container: c, worker: w, terminal: terminal, plan: &p.Process}, nil
}

// Init is the first process of the container. It exists as soon as the container.
func (c *Container) Init() *Process { return c.init }

// Start runs the hooks of the spec and then the program of the container's first
// process. If one fails, that has ended.
func (c *Container) Start(ctx context.Context) error {
	if err := c.runHooks(ctx); err != nil {
		c.init.discard()
		return err
	}
	return c.init.Start(ctx)
}

// ExecConfig is a further process of a container.
type ExecConfig struct {
	Process *specs.Process
	// Program is the file to run; without it Process.Args[0] names the program.
	Program string
	Stdio   Stdio
}

// Exec prepares a further process in the running container. It waits for
// Process.Start. The filter of system calls and the personality are the
// container's, and so is oom_score_adj if the process has none.
func (c *Container) Exec(ctx context.Context, e ExecConfig) (*Process, error) {
	return c.exec(ctx, e) // the host knows which container it is, and says so
}

func (c *Container) exec(ctx context.Context, e ExecConfig) (*Process, error) {
	if e.Process == nil {
		return nil, errors.New("process: missing")
	}
	var bad problems
	linux := &specs.Linux{}
	if l := c.spec.Linux; l != nil {
		linux.Personality = l.Personality
	}
	process := *e.Process
	if process.OOMScoreAdj == nil {
		process.OOMScoreAdj = c.spec.Process.OOMScoreAdj
	}
	plan := &inside.Plan{Process: newProcess(&bad, &process, linux)}
	plan.Process.Program = e.Program
	plan.Process.Filter, plan.Process.FilterFlags = c.filter, c.filterFlags
	if e.Process.SelinuxLabel != "" {
		bad.unsupported("process.selinuxLabel", "SELinux")
	}
	if err := bad.err(); err != nil {
		return nil, err
	}
	select {
	case <-c.init.Done():
		return nil, fmt.Errorf("the container is not running: %w", unix.ESRCH)
	default:
	}
	plan.Join = []int{c.enter &^ unix.CLONE_NEWTIME}
	join := []*os.File{c.pidfd}
	if c.time != nil {
		plan.Time = true
		join = append(join, c.time)
	}
	w, terminal, err := c.jailer.deliver(ctx, plan, e.Stdio, join)
	if err != nil {
		return nil, err
	}
	p := &Process{container: c, worker: w, terminal: terminal, plan: &plan.Process}
	if !c.keep(p) {
		p.discard()
		return nil, errors.New("the container is being deleted")
	}
	return p, nil
}

// place moves a process into the container's cgroup or, if the container has
// divided that among others, into the one of its first process.
func (c *Container) place(pid int) error {
	if c.cgroup == nil {
		return nil
	}
	err := c.cgroup.AddPID(pid)
	if errors.Is(err, unix.EBUSY) {
		return c.cgroup.AddPIDBeside(pid, c.init.PID())
	}
	return err
}

// keep remembers a process for Delete, unless that was called.
func (c *Container) keep(p *Process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return false
	}
	c.execs = slices.DeleteFunc(c.execs, func(p *Process) bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	c.execs = append(c.execs, p)
	return true
}

// Delete kills every process of the container, waits for their end as long as ctx
// allows, and removes the cgroup. Its mounts end with its processes. It may be
// called again after an error.
func (c *Container) Delete(ctx context.Context) error {
	c.mu.Lock()
	c.gone = true
	processes := append([]*Process{c.init}, c.execs...)
	c.mu.Unlock()
	if c.cgroup != nil {
		if err := c.cgroup.Kill(); err != nil {
			return fmt.Errorf("delete container %q: %w", c.id, err)
		}
	}
	for _, p := range processes {
		p.discard()
	}
	for _, p := range processes {
		select {
		case <-p.Done():
		case <-ctx.Done():
			return fmt.Errorf("delete container %q: process %d does not end: %w", c.id, p.PID(), context.Cause(ctx))
		}
	}
	if c.cgroup != nil {
		if err := c.cgroup.Delete(ctx); err != nil {
			return fmt.Errorf("delete container %q: %w", c.id, err)
		}
	}
	_ = c.pidfd.Close()
	if c.time != nil {
		_ = c.time.Close()
	}
	return nil
}

// Process is a process of a container. Its methods are safe for concurrent use.
type Process struct {
	container *Container
	worker    *worker
	terminal  *os.File
	plan      *inside.Process
}

// Start lets the process run its program, once. It returns when the program runs,
// or with ErrNotFound or ErrPermission if it cannot; the process has then ended.
//
// Only now it enters the container's cgroup: its threads might find no room there,
// and a tight limit of CPU or memory would slow its preparation down or end it.
func (p *Process) Start(ctx context.Context) error {
	select {
	case <-p.Done():
		return fmt.Errorf("start: the process has ended already: %w", os.ErrProcessDone)
	default:
	}
	err := p.container.place(p.PID())
	if err != nil && !errors.Is(err, unix.ESRCH) { // what has ended will not answer
		p.discard()
		return err
	}
	return p.worker.open(ctx, p.plan)
}

// discard kills the process.
func (p *Process) discard() { p.worker.discard() }

// PID is the process's id in the agent's namespace.
func (p *Process) PID() int { return p.worker.child.PID }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.worker.child.Done() }

// Child is the process as the reaper knows it: how and when it ended.
func (p *Process) Child() *reap.Child { return p.worker.child }

// Signal sends sig. The error is os.ErrProcessDone if the process has ended.
func (p *Process) Signal(sig unix.Signal) error { return p.worker.child.Signal(sig) }

// Console is the master side of the process's terminal, nil if it has none. The
// caller owns it; reading fails with EIO when the last process has closed the
// other side.
func (p *Process) Console() *os.File { return p.terminal }

// Resize sets the size of the process's terminal, in characters.
func (p *Process) Resize(width, height uint16) error {
	if p.terminal == nil {
		return errors.New("resize: the process has no terminal")
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}); err != nil {
		failed = err
	}
	if failed != nil {
		return fmt.Errorf("resize: %w", failed)
	}
	return nil
}
