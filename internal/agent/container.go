package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/agent/mirror"
	"github.com/seed-efd44b36/kata/internal/agent/storage"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

// fewContainers is how many containers have a quarter of the descriptors that the
// agent may have (4096), if each has some thirty.
const fewContainers = 32

// container is a container and its processes.
type container struct {
	id       string
	jail     *jail.Container
	group    *cgroup.Group
	storages []*agentv1.Storage
	init     *process
	work     sync.WaitGroup     // what watches the container's processes
	life     context.Context    // of that
	end      context.CancelFunc // of life

	mu      sync.Mutex
	execs   map[string]*process // guarded by mu; nil value: being made
	deleted bool                // guarded by mu
}

// process is a process of a container and its standard files.
type process struct {
	*jail.Process
	stdio *stdio
}

// watch ends the input when the process has ended.
func (p *process) watch(ctx context.Context) {
	select {
	case <-p.Done():
		p.stdio.endInput()
	case <-ctx.Done():
	}
}

// container returns a container that has been created.
func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.containers[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("container %q: %w", id, errMissing)
	case c == nil:
		return nil, fmt.Errorf("container %q is being created: %w", id, errState)
	}
	return c, nil
}

// process returns the init process of a container or one of its execs.
func (a *Agent) process(id, exec string) (*container, *process, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, nil, err
	}
	if exec == "" {
		return c, c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[exec]; p != nil {
		return c, p, nil
	}
	return nil, nil, fmt.Errorf("exec %q of container %q: %w", exec, id, errMissing)
}

// attach gives a stream of the host to its process.
func (a *Agent) attach(s link.Stream, h link.Header) error {
	_, p, err := a.process(h.Container, h.Exec)
	if err != nil {
		return err
	}
	return p.stdio.attach(int(h.FD), s)
}

// reserve takes a container's id, or fails if it is taken.
func (a *Agent) reserve(id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandbox == "" {
		return fmt.Errorf("the sandbox is not set up: %w", errState)
	}
	if _, ok := a.containers[id]; ok {
		return fmt.Errorf("container %q: %w", id, errExists)
	}
	a.containers[id] = nil
	return nil
}

// CreateContainer implements the service.
func (a *Agent) CreateContainer(ctx context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	if err := (link.Header{Kind: link.KindStdio, Container: r.GetId()}).Check(); err != nil {
		return nil, failStart(fmt.Errorf("container id %q: %w", r.GetId(), errInvalid))
	}
	if err := a.reserve(r.GetId()); err != nil {
		return nil, failStart(err)
	}
	ctx, tell := steps(ctx)
	c, err := a.create(ctx, r)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		delete(a.containers, r.GetId())
		return nil, failStart(err)
	}
	a.containers[r.GetId()] = c
	return &agentv1.CreateContainerResponse{Pid: uint32(c.init.PID()), Steps: tell()}, nil
}

func (a *Agent) create(ctx context.Context, r *agentv1.CreateContainerRequest) (_ *container, err error) {
	end := timeline.Step(ctx, "decode")
	var spec specs.Spec
	if err := json.Unmarshal(r.GetSpec(), &spec); err != nil {
		return nil, fmt.Errorf("decode spec: %w: %w", err, errInvalid)
	}
	end()
	if spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return nil, fmt.Errorf("spec without process, root or linux: %w", errInvalid)
	}
	join, podPID, err := a.joined(r.GetJoinNamespaces())
	if err != nil {
		return nil, err
	}

	c := &container{id: r.GetId(), execs: make(map[string]*process)}
	c.life, c.end = context.WithCancel(a.life)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.undo(ctx, c))
		}
	}()
	end = timeline.Step(ctx, "modules and storages")
	for _, m := range spec.Mounts {
		// The file system may be a module; a type that is none is none.
		if err := a.modules.Load(m.Type); err != nil {
			return nil, err
		}
	}
	for _, s := range r.GetStorages() {
		if err := storage.Mount(ctx, a.modules, s); err != nil {
			return nil, err
		}
		c.storages = append(c.storages, s)
	}
	if err := a.giveDisks(ctx, &spec, r.GetBlockDevices()); err != nil {
		return nil, err
	}
	end()
	end = timeline.Step(ctx, "cgroup")
	create := a.groups.Create
	if slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }) {
		create = a.groups.CreateHidden
	}
	if c.group, err = create(groupName(c.id, spec.Linux.CgroupsPath), spec.Linux.Resources); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	end()

	end = timeline.Step(ctx, "streams")
	std := newStdio(r.GetStdio())
	conf := jail.Config{ID: c.id, Spec: &spec, Cgroup: c.group, Join: join, PodPID: podPID}
	if !spec.Process.Terminal {
		if conf.Stdio, err = std.pipes(int(spec.Process.User.UID), int(spec.Process.User.GID)); err != nil {
			return nil, err
		}
	}
	end()
	c.jail, err = a.jailer.Create(ctx, conf)
	closeStdio(conf.Stdio)
	if err != nil {
		std.close(ctx)
		return nil, err
	}
	c.init = &process{c.jail.Init(), std}
	if err := c.begin(ctx, c.init, spec.Process.Terminal); err != nil {
		return nil, err
	}

	c.work.Go(func() { c.init.watch(c.life) })
	if a.few() {
		c.work.Go(func() {
			kept, err := storage.Keep(spec.Root.Path)
			if err != nil {
				a.log.Warn("the root will be slower than it could be", "container", c.id, "err", err)
				return
			}
			if await.Pause(c.life, quietTime) == nil {
				kept = kept.More()
			}
			<-c.life.Done()
			kept.Close()
		})
	}
	c.work.Go(func() {
		err := c.group.WatchOOM(c.life, func() {
			a.log.Warn("a process was killed for want of memory", "container", c.id)
			a.events.add(&agentv1.NextEventResponse{Kind: agentv1.NextEventResponse_OOM, Container: c.id})
		})
		if err != nil && c.life.Err() == nil {
			a.log.Warn("kills for want of memory will not be told", "container", c.id, "err", err)
		}
	})
	return c, nil
}

// few tells whether there are so few containers that each may have some of the
// agent's descriptors.
func (a *Agent) few() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.containers) <= fewContainers
}

// begin starts to carry the standard files of a process that was made.
func (c *container) begin(ctx context.Context, p *process, terminal bool) error {
	if terminal {
		if err := p.stdio.useConsole(p.Console()); err != nil {
			p.stdio.close(ctx)
			return err
		}
	}
	p.stdio.run()
	return nil
}

// WriteVolume implements the service.
func (a *Agent) WriteVolume(_ context.Context, r *agentv1.WriteVolumeRequest) (*agentv1.WriteVolumeResponse, error) {
	err := (link.Header{Kind: link.KindStdio, Container: r.GetContainer()}).Check()
	if err == nil {
		err = mirror.Write(mirror.Dir, r.GetContainer(), r.GetVolume(), r.GetFiles())
	}
	if err != nil {
		return nil, fail(err)
	}
	return &agentv1.WriteVolumeResponse{}, nil
}

// joined finds the containers whose namespaces are to be joined. The pod's own
// namespaces are the guest's, but for that of processes, where the agent is.
func (a *Agent) joined(names map[string]string) (join map[specs.LinuxNamespaceType]*jail.Container, podPID bool, err error) {
	join = make(map[specs.LinuxNamespaceType]*jail.Container, len(names))
	for kind, id := range names {
		typ := specs.LinuxNamespaceType(kind)
		if id == "" {
			podPID = podPID || typ == specs.PIDNamespace
			continue
		}
		c, err := a.container(id)
		if err != nil {
			return nil, false, fmt.Errorf("join %s namespace: %w", kind, err)
		}
		join[typ] = c.jail
	}
	return join, podPID, nil
}

// groupName is the name of a container's cgroup: as the spec has it, if that is
// a path below the root, else by the container's id.
func groupName(id, specPath string) string {
	if p := strings.TrimPrefix(path.Clean("/"+specPath), "/"); p != "" && specPath != "" && !strings.Contains(p, ":") {
		return p
	}
	return "kata/" + id
}

// undo removes all of a container, also one that is there only in part.
func (a *Agent) undo(ctx context.Context, c *container) error {
	var errs []error
	c.end()
	c.work.Wait()
	switch {
	case c.jail != nil:
		errs = append(errs, c.jail.Delete(ctx))
	case c.group != nil:
		errs = append(errs, c.group.Delete(ctx))
	}
	c.mu.Lock()
	list := make([]*process, 0, len(c.execs)+1)
	for _, p := range c.execs {
		if p != nil {
			list = append(list, p)
		}
	}
	clear(c.execs)
	c.mu.Unlock()
	if c.init != nil {
		list = append(list, c.init)
	}
	for _, p := range list {
		p.stdio.close(ctx)
	}
	errs = append(errs, storage.Unmount(c.storages), mirror.Remove(mirror.Dir, c.id))
	a.awaitDisks(ctx, c)
	return errors.Join(errs...)
}

// DeleteContainer implements the service.
func (a *Agent) DeleteContainer(ctx context.Context, r *agentv1.DeleteContainerRequest) (*agentv1.DeleteContainerResponse, error) {
	c, err := a.container(r.GetContainer())
	if err != nil {
		return nil, fail(err)
	}
	c.mu.Lock()
	busy := c.deleted
	c.deleted = true
	c.mu.Unlock()
	if busy {
		return nil, fail(fmt.Errorf("container %q is being deleted: %w", c.id, errState))
	}
	if err := a.undo(ctx, c); err != nil {
		// It may be tried again: each step can be repeated.
		c.mu.Lock()
		c.deleted = false
		c.mu.Unlock()
		return nil, fail(fmt.Errorf("delete container %q: %w", c.id, err))
	}
	a.mu.Lock()
	delete(a.containers, c.id)
	a.mu.Unlock()
	return &agentv1.DeleteContainerResponse{}, nil
}

// CreateExec implements the service.
func (a *Agent) CreateExec(ctx context.Context, r *agentv1.CreateExecRequest) (*agentv1.CreateExecResponse, error) {
	if err := (link.Header{Kind: link.KindStdio, Container: r.GetContainer(), Exec: r.GetExec()}).Check(); err != nil || r.GetExec() == "" {
		return nil, failStart(fmt.Errorf("exec id %q: %w", r.GetExec(), errInvalid))
	}
	c, err := a.container(r.GetContainer())
	if err != nil {
		return nil, failStart(err)
	}
	if err := c.reserve(r.GetExec()); err != nil {
		return nil, failStart(err)
	}
	ctx, tell := steps(ctx)
	p, err := a.exec(ctx, c, r)
	c.mu.Lock()
	if err == nil && c.deleted {
		err = fmt.Errorf("container %q is being deleted: %w", c.id, errState)
	}
	if err != nil {
		delete(c.execs, r.GetExec())
	} else {
		c.execs[r.GetExec()] = p
	}
	c.mu.Unlock()
	if err != nil {
		if p != nil {
			_ = p.Signal(unix.SIGKILL)
			p.stdio.close(ctx)
		}
		return nil, failStart(err)
	}
	return &agentv1.CreateExecResponse{Steps: tell()}, nil
}

// reserve takes the id of an exec, or fails if it is taken.
func (c *container) reserve(exec string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleted {
		return fmt.Errorf("container %q is being deleted: %w", c.id, errState)
	}
	if _, ok := c.execs[exec]; ok {
		return fmt.Errorf("exec %q of container %q: %w", exec, c.id, errExists)
	}
	c.execs[exec] = nil
	return nil
}

func (a *Agent) exec(ctx context.Context, c *container, r *agentv1.CreateExecRequest) (*process, error) {
	var proc specs.Process
	if err := json.Unmarshal(r.GetProcess(), &proc); err != nil {
		return nil, fmt.Errorf("decode process: %w: %w", err, errInvalid)
	}
	std := newStdio(r.GetStdio())
	conf := jail.ExecConfig{Process: &proc}
	if !proc.Terminal {
		var err error
		if conf.Stdio, err = std.pipes(int(proc.User.UID), int(proc.User.GID)); err != nil {
			return nil, err
		}
	}
	jp, err := c.jail.Exec(ctx, conf)
	closeStdio(conf.Stdio)
	if err != nil {
		std.close(ctx)
		return nil, err
	}
	p := &process{jp, std}
	if err := c.begin(ctx, p, proc.Terminal); err != nil {
		_ = p.Signal(unix.SIGKILL)
		return nil, err
	}
	c.work.Go(func() { p.watch(c.life) })
	return p, nil
}

// StartProcess implements the service.
func (a *Agent) StartProcess(ctx context.Context, r *agentv1.StartProcessRequest) (*agentv1.StartProcessResponse, error) {
	c, p, err := a.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, failStart(err)
	}
	ctx, tell := steps(ctx)
	end := timeline.Step(ctx, "streams")
	if err := p.stdio.await(ctx); err != nil {
		return nil, failStart(err)
	}
	end()
	end = timeline.Step(ctx, "network")
	if err := a.pod.Network.Await(ctx); err != nil {
		return nil, failStart(err)
	}
	end()
	end = timeline.Step(ctx, "execve")
	if r.GetExec() == "" {
		err = c.jail.Start(ctx)
	} else {
		err = p.Start(ctx)
	}
	if err != nil {
		return nil, failStart(err)
	}
	end()
	a.markRunning()
	return &agentv1.StartProcessResponse{Pid: uint32(p.PID()), Steps: tell()}, nil
}

// SignalProcess implements the service.
func (a *Agent) SignalProcess(_ context.Context, r *agentv1.SignalProcessRequest) (*agentv1.SignalProcessResponse, error) {
	c, p, err := a.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, fail(err)
	}
	sig := unix.Signal(r.GetSignal())
	switch {
	case r.GetSignal() > 64:
		err = fmt.Errorf("signal %d: %w", r.GetSignal(), errInvalid)
	case r.GetAll() && sig == unix.SIGKILL:
		// Until it is started, its first process is not in the group.
		err = errors.Join(c.group.Kill(), notDone(p.Signal(sig)))
	case r.GetAll():
		err = c.group.Signal(sig)
	default:
		err = p.Signal(sig)
	}
	if err = notDone(err); err != nil {
		return nil, fail(err)
	}
	return &agentv1.SignalProcessResponse{}, nil
}

// notDone is err, unless it says that the process has ended.
func notDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// WaitProcess implements the service.
func (a *Agent) WaitProcess(ctx context.Context, r *agentv1.WaitProcessRequest) (*agentv1.WaitProcessResponse, error) {
	c, p, err := a.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, fail(err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return nil, fail(ctx.Err())
	}
	// After the container is deleted nobody counts its kills.
	kills, err := c.group.OOMKills()
	if err != nil {
		a.log.Debug("kills for want of memory are unknown", "container", c.id, "err", err)
	}
	child := p.Child()
	return &agentv1.WaitProcessResponse{
		ExitCode:  uint32(child.ExitCode()),
		ExitedAt:  child.Ended().UnixNano(),
		OomKilled: kills > 0,
	}, nil
}

// ResizeTerminal implements the service.
func (a *Agent) ResizeTerminal(_ context.Context, r *agentv1.ResizeTerminalRequest) (*agentv1.ResizeTerminalResponse, error) {
	_, p, err := a.process(r.GetContainer(), r.GetExec())
	if err == nil && (r.GetWidth() > 0xffff || r.GetHeight() > 0xffff) {
		err = fmt.Errorf("terminal of %d by %d: %w", r.GetWidth(), r.GetHeight(), errInvalid)
	}
	if err == nil {
		err = p.Resize(uint16(r.GetWidth()), uint16(r.GetHeight()))
	}
	if err != nil {
		return nil, fail(err)
	}
	return &agentv1.ResizeTerminalResponse{}, nil
}

// DeleteProcess implements the service.
func (a *Agent) DeleteProcess(ctx context.Context, r *agentv1.DeleteProcessRequest) (*agentv1.DeleteProcessResponse, error) {
	if r.GetExec() == "" {
		return nil, fail(fmt.Errorf("an init process is deleted with its container: %w", errInvalid))
	}
	c, p, err := a.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, fail(err)
	}
	select {
	case <-p.Done():
	default:
		return nil, fail(fmt.Errorf("exec %q of container %q has not ended: %w", r.GetExec(), c.id, errState))
	}
	c.mu.Lock()
	delete(c.execs, r.GetExec())
	c.mu.Unlock()
	p.stdio.close(ctx)
	return &agentv1.DeleteProcessResponse{}, nil
}

// PauseContainer implements the service.
func (a *Agent) PauseContainer(ctx context.Context, r *agentv1.PauseContainerRequest) (*agentv1.PauseContainerResponse, error) {
	c, err := a.container(r.GetContainer())
	if err == nil {
		err = c.group.Freeze(ctx)
	}
	if err != nil {
		return nil, fail(err)
	}
	return &agentv1.PauseContainerResponse{}, nil
}

// ResumeContainer implements the service.
func (a *Agent) ResumeContainer(ctx context.Context, r *agentv1.ResumeContainerRequest) (*agentv1.ResumeContainerResponse, error) {
	c, err := a.container(r.GetContainer())
	if err == nil {
		err = c.group.Thaw(ctx)
	}
	if err != nil {
		return nil, fail(err)
	}
	return &agentv1.ResumeContainerResponse{}, nil
}

// UpdateContainer implements the service.
func (a *Agent) UpdateContainer(_ context.Context, r *agentv1.UpdateContainerRequest) (*agentv1.UpdateContainerResponse, error) {
	c, err := a.container(r.GetContainer())
	if err != nil {
		return nil, fail(err)
	}
	var res specs.LinuxResources
	if err := json.Unmarshal(r.GetResources(), &res); err != nil {
		return nil, fail(fmt.Errorf("decode resources: %w: %w", err, errInvalid))
	}
	if err := c.group.Update(&res); err != nil {
		return nil, fail(err)
	}
	return &agentv1.UpdateContainerResponse{}, nil
}
