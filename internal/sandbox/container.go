package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/disk"
	"github.com/seed-efd44b36/kata/internal/hook"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox/figures"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/share"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// RootfsMount is a mount to make for a container's root file system, as
// containerd describes one.
type RootfsMount struct {
	Type, Source string
	Options      []string
}

// ContainerOptions describe a container.
type ContainerOptions struct {
	ID string
	// Bundle is the directory with config.json (OCI runtime spec).
	Bundle string
	// Rootfs is mounted, in order, to get the root file system; none: the
	// spec's root.path is used as it is.
	Rootfs []RootfsMount
	Stdio  Stdio
	// PIDs are what the caller's caller was told as process ids of containers,
	// by which its specs name their namespaces; empty: that of the sandbox. Nil:
	// one for all.
	PIDs map[int]string
	// UID of the caller, for listings.
	UID uint32
	// NoHooks: the caller runs them.
	NoHooks bool
}

// rootOnDisk tells whether the guest mounts the root file system, from a disk.
func (o ContainerOptions) rootOnDisk() bool {
	return len(o.Rootfs) == 1 && disk.IsFileSystem(o.Rootfs[0].Type)
}

// Container is one container of a sandbox.
type Container struct {
	s       *Sandbox
	id      string
	opts    ContainerOptions
	spec    *specs.Spec // as the caller gave it
	hooks   spec.Hooks
	created time.Time
	init    *Process

	longStats sync.Once // the log has it that the guest's stats are cut

	mu       sync.Mutex
	status   report.Status       // guarded by mu
	guestPID int                 // guarded by mu
	execs    map[string]*Process // guarded by mu
	deleted  bool                // guarded by mu
}

// ID is the container's id.
func (c *Container) ID() string { return c.id }

// Init is the container's first process.
func (c *Container) Init() *Process { return c.init }

// Spec is the OCI spec as the caller gave it. Not to be changed.
func (c *Container) Spec() *specs.Spec { return c.spec }

// Create sets a container up in the guest. Its init process waits for Start;
// its stdio can be opened from now on. On error nothing of it is left.
func (s *Sandbox) Create(ctx context.Context, o ContainerOptions) (_ *Container, err error) {
	if err := CheckID(o.ID); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	start := s.trace.Start(o.ID, "")
	ctx, end := timeline.Begin(start.In(ctx), "create container")
	defer end()
	ctx, done, err := s.Begin(ctx, s.createTimeout())
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", o.ID, err)
	}
	defer done()

	sp, err := spec.Load(o.Bundle)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", o.ID, err)
	}
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod != nil {
		spec.AddMounts(sp, pod.Mounts)
	}
	plan, err := spec.Translate(sp, spec.Options{
		ID: o.ID, SandboxID: s.id, Bundle: o.Bundle, Members: s.members(), PIDs: o.PIDs, Pod: pod != nil, OnTmpfs: s.share.OnTmpfs,
		BlockDevice: s.disks.BlockDevice, RootOnDisk: o.rootOnDisk(),
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", o.ID, err)
	}
	if plan.CPUs != s.cpus && plan.CPUs != "" {
		plan.Warnings = append(plan.Warnings, fmt.Sprintf("linux.resources.cpu.cpus %q: the sandbox was made for %q", plan.CPUs, s.cpus))
	}
	if plan.MemoryNodes != "" {
		plan.Warnings = append(plan.Warnings, "linux.resources.cpu.mems: memory of the host is not bound to nodes")
	}
	if o.NoHooks {
		plan.Hooks = spec.Hooks{}
	}
	for _, w := range plan.Warnings {
		s.log.Warn("spec is not enforced in full", "container", o.ID, "what", w)
	}
	c := &Container{
		s: s, id: o.ID, opts: o, spec: sp, hooks: plan.Hooks, created: time.Now(),
		status: report.Creating, execs: map[string]*Process{},
	}
	c.init = &Process{c: c, start: start, stdio: o.Stdio, done: make(chan struct{})}
	if sp.Process.Terminal {
		c.init.stdio.Stderr = false
	}
	if err := s.enter(c); err != nil {
		return nil, fmt.Errorf("create container %s: %w", o.ID, err)
	}
	defer func() {
		if err != nil {
			s.leave(c)
			err = fmt.Errorf("create container %s: %w", o.ID, s.orDead(err))
		}
	}()

	req := &agentv1.CreateContainerRequest{Id: o.ID, Stdio: c.init.stdio.proto(), JoinNamespaces: plan.Join}
	if err := c.fillShare(ctx, plan); err != nil {
		return nil, errors.Join(err, c.release(ctx))
	}
	if err := c.attachDisks(ctx, plan, req); err != nil {
		return nil, errors.Join(err, c.release(ctx))
	}
	if err := s.runHooks(ctx, c, plan.Hooks.BeforeCreate); err != nil {
		return nil, errors.Join(err, c.release(ctx))
	}
	if req.Spec, err = json.Marshal(plan.Guest); err != nil {
		return nil, errors.Join(fmt.Errorf("encode spec: %w", err), c.release(ctx))
	}
	resp, err := s.guest.CreateContainer(ctx, req)
	if err != nil {
		err = guest.Error(err, true)
		c.init.finish(exitOfStartError(err))
		return nil, errors.Join(err, c.release(ctx))
	}
	// The agent has made its mount points; from here on the guest cannot
	// write, whatever it does to its own mounts.
	if plan.RootReadonly && !o.rootOnDisk() {
		if err := s.share.ProtectRootfs(o.ID); err != nil {
			return nil, errors.Join(err, c.Delete(ctx))
		}
	}
	c.mu.Lock()
	c.status = report.Created
	c.guestPID = int(resp.GetPid())
	c.mu.Unlock()
	s.saveState()
	return c, nil
}

// fillShare makes the container's root file system and its bind mounts appear
// in the shared directory.
func (c *Container) fillShare(ctx context.Context, plan *spec.Plan) error {
	ctx, end := timeline.Begin(ctx, "share rootfs")
	defer end()
	if !c.opts.rootOnDisk() {
		var mounts []share.Mount
		for _, m := range c.opts.Rootfs {
			mounts = append(mounts, share.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
		}
		if err := c.s.share.AddRootfs(ctx, c.id, plan.Rootfs, mounts, plan.RootReadonly); err != nil {
			return err
		}
	}
	for _, b := range plan.Binds {
		copied, err := c.s.mirrors.Add(ctx, c.id, b)
		if err != nil {
			return err
		}
		if copied != "" {
			plan.LocateCopy(b, copied)
			continue
		}
		v, err := c.s.share.AddVolume(ctx, c.id, b)
		if err != nil {
			return err
		}
		plan.Locate(b, v.Path, v.Split)
	}
	return nil
}

// attachDisks gives the guest the disks that the container is made of, and names
// them in the request.
func (c *Container) attachDisks(ctx context.Context, plan *spec.Plan, req *agentv1.CreateContainerRequest) error {
	if !c.opts.rootOnDisk() && len(plan.Devices) == 0 {
		return nil
	}
	ctx, end := timeline.Begin(ctx, "attach disks")
	defer end()
	if c.opts.rootOnDisk() {
		st, err := c.s.disks.AddRootfs(ctx, c.id, disk.Mount(c.opts.Rootfs[0]))
		if err != nil {
			return err
		}
		req.Storages = append(req.Storages, st)
	}
	for _, d := range plan.Devices {
		given, err := c.s.disks.AddDevice(ctx, c.id, d)
		if err != nil {
			return err
		}
		req.BlockDevices = append(req.BlockDevices, given)
	}
	return nil
}

// release takes back what the guest was given for the container.
func (c *Container) release(ctx context.Context) error {
	c.s.mirrors.Discard(c.id)
	return errors.Join(c.s.share.Remove(c.id), c.s.disks.Remove(ctx, c.id), c.s.cgroup.Forget(c.id))
}

// finish ends all processes of the container that have not ended.
func (c *Container) finish(e report.Exit) {
	c.mu.Lock()
	ps := append([]*Process{c.init}, slices.Collect(maps.Values(c.execs))...)
	c.mu.Unlock()
	for _, p := range ps {
		p.finish(e)
	}
}

// toStatus moves from one of the given statuses to another.
func (c *Container) toStatus(to report.Status, from ...report.Status) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(from, c.status) {
		c.status = to
		return nil
	}
	return fmt.Errorf("container %s is %s: %w", c.id, c.status, ErrState)
}

// Exec prepares a further process. process is the OCI spec's "process". With an
// error that wraps ErrCommandNotFound or ErrCommandDenied it returns the process
// too, which has ended, with code 127 or 126.
func (c *Container) Exec(ctx context.Context, id string, process *specs.Process, stdio Stdio) (*Process, error) {
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := spec.CheckProcess(process); err != nil {
		return nil, fmt.Errorf("exec %s in container %s: %w", id, c.id, err)
	}
	process, warnings := spec.GuestProcess(process)
	for _, w := range warnings {
		c.s.log.Warn("exec is not enforced in full", "container", c.id, "exec", id, "what", w)
	}
	b, err := json.Marshal(process)
	if err != nil {
		return nil, fmt.Errorf("exec %s in container %s: encode process: %w", id, c.id, err)
	}
	if process.Terminal {
		stdio.Stderr = false
	}
	p := &Process{c: c, id: id, start: c.s.trace.Start(c.id, id), stdio: stdio, done: make(chan struct{})}
	c.mu.Lock()
	switch {
	case c.status != report.Running:
		err = fmt.Errorf("exec in container %s: it is %s: %w", c.id, c.status, ErrState)
	case c.execs[id] != nil:
		err = fmt.Errorf("exec %s in container %s: %w", id, c.id, ErrExists)
	default:
		c.execs[id] = p
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.s.createTimeout())
	defer cancel()
	ctx, end := timeline.Begin(p.start.In(ctx), "create exec")
	defer end()
	if _, err := c.s.guest.CreateExec(ctx, &agentv1.CreateExecRequest{Container: c.id, Exec: id, Process: b, Stdio: stdio.proto()}); err != nil {
		c.mu.Lock()
		delete(c.execs, id)
		c.mu.Unlock()
		err = fmt.Errorf("exec in container %s: %w", c.id, c.s.orDead(guest.Error(err, true)))
		if errors.Is(err, ErrCommandNotFound) || errors.Is(err, ErrCommandDenied) {
			p.finish(exitOfStartError(err))
			return p, err
		}
		return nil, err
	}
	return p, nil
}

// Process finds the init process (empty id) or an exec.
func (c *Container) Process(exec string) (*Process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %q of container %s: %w", exec, c.id, ErrNotFound)
}

// DeleteExec forgets an exec that has ended.
func (c *Container) DeleteExec(ctx context.Context, exec string) error {
	p, err := c.Process(exec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = c.s.guest.DeleteProcess(ctx, &agentv1.DeleteProcessRequest{Container: c.id, Exec: exec})
	if err = guest.Error(err, false); err != nil && !c.s.isDead() && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete %s: %w", p.name(), err)
	}
	c.mu.Lock()
	delete(c.execs, exec)
	c.mu.Unlock()
	return nil
}

// Delete removes the container: what is left of it in the guest is killed.
// It never needs the guest to answer: one that does not is ended whole.
func (c *Container) Delete(ctx context.Context) error {
	c.mu.Lock()
	if c.deleted {
		c.mu.Unlock()
		return nil
	}
	c.deleted = true
	c.mu.Unlock()

	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c.s.mirrors.Remove(c.id) // they go with it, and are not to come again
	if !c.s.isDead() {
		_, err := c.s.guest.DeleteContainer(callCtx, &agentv1.DeleteContainerRequest{Container: c.id})
		if err = guest.Error(err, false); err != nil && !errors.Is(err, ErrNotFound) && !c.s.isDead() {
			c.s.die(fmt.Errorf("delete container %s: %w", c.id, err))
		}
	}
	c.finish(report.Exit{Code: 137, At: time.Now(), Reason: "deleted"})
	err := c.release(ctx)
	c.s.leave(c)
	return errors.Join(err, c.s.runHooks(ctx, c, c.hooks.AfterStop))
}

// Pause stops all processes of the container, Resume lets them go on.
func (c *Container) Pause(ctx context.Context) error {
	if err := c.toStatus(report.Paused, report.Running); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.s.guest.PauseContainer(ctx, &agentv1.PauseContainerRequest{Container: c.id}); err != nil {
		return errors.Join(fmt.Errorf("pause container %s: %w", c.id, c.s.orDead(guest.Error(err, false))), c.toStatus(report.Running, report.Paused))
	}
	c.s.saveState()
	return nil
}

// Resume undoes Pause.
func (c *Container) Resume(ctx context.Context) error {
	c.mu.Lock()
	status := c.status
	c.mu.Unlock()
	if status != report.Paused {
		return fmt.Errorf("resume container %s: it is %s: %w", c.id, status, ErrState)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.s.guest.ResumeContainer(ctx, &agentv1.ResumeContainerRequest{Container: c.id}); err != nil {
		return fmt.Errorf("resume container %s: %w", c.id, c.s.orDead(guest.Error(err, false)))
	}
	err := c.toStatus(report.Running, report.Paused)
	c.s.saveState()
	return err
}

// Update changes the limits of the container in the guest.
func (c *Container) Update(ctx context.Context, r *specs.LinuxResources) error {
	r, warnings, err := spec.GuestUpdate(r, c.spec)
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	for _, w := range warnings {
		c.s.log.Warn("update is not enforced in full", "container", c.id, "what", w)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("update container %s: encode resources: %w", c.id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := c.s.guest.UpdateContainer(ctx, &agentv1.UpdateContainerRequest{Container: c.id, Resources: b}); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, c.s.orDead(guest.Error(err, false)))
	}
	if r.CPU == nil || r.CPU.Quota == nil {
		return nil
	}
	return c.s.cgroup.Change(c.id, resources.LimitsOf(c.spec.Linux.Resources), resources.LimitsOf(r))
}

// Stats asks the guest for the container's use of resources: its word, but fit to
// be printed, and short.
func (c *Container) Stats(ctx context.Context) (*agentv1.StatsContainerResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.s.guest.StatsContainer(ctx, &agentv1.StatsContainerRequest{Container: c.id})
	if err != nil {
		return nil, fmt.Errorf("stats of container %s: %w", c.id, c.s.orDead(guest.Error(err, false)))
	}
	disks, nics := len(resp.GetIo()), len(resp.GetNetwork())
	if figures.Stats(resp) {
		c.longStats.Do(func() {
			c.s.log.Warn("guest tells of too much in its stats; the rest is left out",
				"container", c.id, "disks", disks, "interfaces", nics, "limit", figures.Most)
		})
	}
	return resp, nil
}

// Processes lists the processes of the container, which is the guest's word.
// The texts are fit to be printed, and an exec is one of the container's.
func (c *Container) Processes(ctx context.Context) ([]*agentv1.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.s.guest.ListProcesses(ctx, &agentv1.ListProcessesRequest{Container: c.id})
	if err != nil {
		return nil, fmt.Errorf("list processes of container %s: %w", c.id, c.s.orDead(guest.Error(err, false)))
	}
	ps := resp.GetProcesses()
	figures.Processes(ps, func(exec string) bool { _, err := c.Process(exec); return err == nil })
	return ps, nil
}

func (c *Container) state() report.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := report.Container{
		ID: c.id, Bundle: c.opts.Bundle, Status: c.status, GuestPID: c.guestPID,
		Created: c.created, UID: c.opts.UID, Annotations: maps.Clone(c.spec.Annotations),
	}
	select {
	case <-c.init.done:
		e := c.init.exit
		st.Exit = &e
	default:
	}
	return st
}

// exitOfStartError is the exit of a process that never ran.
func exitOfStartError(err error) report.Exit {
	return report.Exit{Code: guest.ExitCode(err), At: time.Now(), Reason: err.Error()}
}

// runHooks runs hooks on the host, as the container's caller sees it.
func (s *Sandbox) runHooks(ctx context.Context, c *Container, hooks []specs.Hook) error {
	st := c.state()
	pid := 0 // a machine that has died has none
	if pids := s.machine.PIDs(); len(pids) > 0 {
		pid = pids[0]
	}
	return hook.Run(ctx, s.opts.HostMounts, hooks, specs.State{
		Version: specs.Version, ID: c.id, Status: specs.ContainerState(st.Status),
		Pid: pid, Bundle: c.opts.Bundle, Annotations: c.spec.Annotations,
	})
}
