package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/seed-efd44b36/kata/internal/pod"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/shim/controller"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/thread"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// service is the Task service of one sandbox. Versions 2 and 3 of it have the
// same messages under other names.
type service struct {
	namespace string
	// id of the container that the sandbox is made for.
	id     string
	mounts *os.File // containerd's mount namespace
	events *publisher.Publisher
	// open makes the sandbox and its log.
	open func(ctx context.Context) (*sandbox.Sandbox, *slog.Logger, error)
	// stop ends the process, after Shutdown.
	stop func()
	// pod is the Sandbox service, for a pod without a first container.
	pod *controller.Controller

	boots    sync.WaitGroup // Add under mu, while not ending
	watchers sync.WaitGroup // of the sandbox, and of each process until its exit is told

	mu     sync.Mutex
	log    *slog.Logger     // guarded by mu: the sandbox's, when there is one
	sb     *sandbox.Sandbox // guarded by mu: nil before it has booted
	vmm    uint32           // guarded by mu: pid of the virtual machine
	tasks  map[string]*ctr  // guarded by mu: nil while being made
	ending bool             // guarded by mu: nothing new may be made
	// endBoot gives up the boot that is under way, if one is. Guarded by mu.
	endBoot context.CancelFunc
}

// sandbox returns the sandbox that has booted.
func (s *service) sandbox() (*sandbox.Sandbox, uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sb == nil {
		return nil, 0, fmt.Errorf("sandbox %s has not started: %w", s.id, sandbox.ErrState)
	}
	return s.sb, s.vmm, nil
}

func (s *service) logger() *slog.Logger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log
}

// bootFor makes the sandbox as the spec in the bundle wants it.
func (s *service) bootFor(ctx context.Context, bundle string) error {
	sp, err := spec.Load(bundle)
	if err != nil {
		return err
	}
	o := sandbox.BootOptions{Hostname: sp.Hostname, CgroupParent: pod.CgroupParent(sp)}
	if o.NetNS, err = pod.NetNS(sp); err != nil {
		return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	}
	if o.Resources, err = pod.Resources(sp); err != nil {
		return fmt.Errorf("%w: %w", err, sandbox.ErrInvalid)
	}
	_, err = s.boot(ctx, o)
	return err
}

// pids are what containerd was told as process ids, with the containers that they
// stand for; empty: the sandbox.
func (s *service) pids() map[int]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	pids := map[int]string{int(s.vmm): ""}
	for id, c := range s.tasks {
		if c != nil && c.own != nil {
			pids[c.own.TID] = id
		}
	}
	return pids
}

// enter keeps the id for a container that is being made.
func (s *service) enter(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return fmt.Errorf("create container %s: %w", id, sandbox.ErrDead)
	}
	if _, ok := s.tasks[id]; ok {
		return fmt.Errorf("container %s: %w", id, sandbox.ErrExists)
	}
	s.tasks[id] = nil
	return nil
}

// set puts a container in the place that enter has kept, or frees that.
func (s *service) set(id string, c *ctr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c == nil {
		delete(s.tasks, id)
		return
	}
	s.tasks[id] = c
}

func (s *service) find(id string) (*ctr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.tasks[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, sandbox.ErrNotFound)
}

func (s *service) process(id, exec string) (*process, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	return c.process(exec)
}

// Create makes a container, and for the first one of a sandbox that as well.
func (s *service) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if r.GetCheckpoint() != "" {
		return nil, status.Errorf(codes.Unimplemented, "create container %s from a checkpoint: containers in virtual machines have none", r.GetID())
	}
	if err := s.enter(r.GetID()); err != nil {
		return nil, refuse(err)
	}
	first := r.GetID() == s.id && !s.pod.InUse()
	c, err := s.create(ctx, r, first)
	s.set(r.GetID(), c)
	if err != nil {
		if first && errors.Is(ctx.Err(), context.Canceled) {
			// Its containerd has died, and the next one may not see that there
			// is a shim without a task (1.6 does not).
			s.stop()
		}
		return nil, refuseCreate(err)
	}
	return &task.CreateTaskResponse{Pid: c.pid}, nil
}

// check tells whether a sandbox can run its first container.
func check(id, bundle string) error {
	sp, err := spec.Load(bundle)
	if err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	if _, err := spec.Translate(sp, spec.Options{ID: id, SandboxID: id, Bundle: bundle}); err != nil {
		return fmt.Errorf("create container %s: %w", id, err)
	}
	return nil
}

func (s *service) create(ctx context.Context, r *task.CreateTaskRequest, first bool) (*ctr, error) {
	if first {
		// What is refused anyway is refused before a machine is started for it.
		if err := check(r.GetID(), r.GetBundle()); err != nil {
			return nil, err
		}
		if err := s.bootFor(ctx, r.GetBundle()); err != nil {
			return nil, err
		}
	}
	sb, vmm, err := s.sandbox()
	if err != nil {
		return nil, err
	}
	c, err := newContainer(ctx, s, sb, r)
	if err != nil {
		return nil, err
	}
	if c.pid = vmm; c.id != s.id {
		if c.own, err = thread.Park(c.id, int(vmm)); err != nil {
			return nil, errors.Join(err, c.c.Delete(context.WithoutCancel(ctx)), c.init.io.Close())
		}
		c.pid = uint32(c.own.TID)
	}
	s.events.Publish(&events.TaskCreate{
		ContainerID: r.GetID(), Bundle: r.GetBundle(), Rootfs: r.GetRootfs(), Pid: c.pid,
		IO: &events.TaskIO{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTerminal()},
	})
	if c.last, err = s.openTerminationLog(c.c.Spec()); err != nil {
		s.logger().Warn("termination log", "container", c.id, "error", err)
	}
	s.watchers.Go(c.init.follow)
	return c, nil
}

// Start runs what was created.
func (s *service) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := p.start(ctx); err != nil {
		return nil, refuse(err)
	}
	return &task.StartResponse{Pid: p.c.pid}, nil
}

// Exec prepares a further process.
func (s *service) Exec(ctx context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := c.exec(ctx, r); err != nil {
		return nil, refuse(err)
	}
	s.events.Publish(&events.TaskExecAdded{ContainerID: r.GetID(), ExecID: r.GetExecID()})
	return &emptypb.Empty{}, nil
}

// Delete removes a container or an exec that has ended.
func (s *service) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	// A caller that gives up must not leave half a container.
	ctx = context.WithoutCancel(ctx)
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := p.delete(ctx); err != nil {
		return nil, refuse(err)
	}
	e := p.p.Exit()
	if p.id != "" && !p.started.Load() && p.refused == nil {
		e = report.Exit{} // it never was, and has not been killed
	}
	if p.id == "" {
		s.set(r.GetID(), nil)
		s.events.Publish(&events.TaskDelete{
			ContainerID: r.GetID(), ID: r.GetID(), Pid: p.c.pid, ExitStatus: e.Code, ExitedAt: exitedAt(e),
		})
	}
	return &task.DeleteResponse{Pid: p.c.pid, ExitStatus: e.Code, ExitedAt: exitedAt(e)}, nil
}

// State tells how a process is.
func (s *service) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	return p.state(), nil
}

// Wait waits for the end of a process.
func (s *service) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	select {
	case <-p.p.Done():
	case <-ctx.Done():
		return nil, refuse(ctx.Err())
	}
	e := p.p.Exit()
	return &task.WaitResponse{ExitStatus: e.Code, ExitedAt: exitedAt(e)}, nil
}

// Kill sends a signal. To a process that has ended it is an error, as with runc.
func (s *service) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	if p.ended() && !r.GetAll() {
		return nil, refuse(fmt.Errorf("%s: process already finished: %w", p.name(), sandbox.ErrNotFound))
	}
	if err := p.p.Signal(ctx, r.GetSignal(), r.GetAll()); err != nil {
		return nil, refuse(err)
	}
	return &emptypb.Empty{}, nil
}

// Pids lists what stands for the container on the host: the virtual machine, or
// a thread of ours.
func (s *service) Pids(_ context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	return &task.PidsResponse{Processes: c.pids()}, nil
}

// Pause stops the container's processes.
func (s *service) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := c.c.Pause(ctx); err != nil {
		return nil, refuse(err)
	}
	c.setPaused(true)
	s.events.Publish(&events.TaskPaused{ContainerID: r.GetID()})
	return &emptypb.Empty{}, nil
}

// Resume lets them go on.
func (s *service) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := c.c.Resume(ctx); err != nil {
		return nil, refuse(err)
	}
	c.setPaused(false)
	s.events.Publish(&events.TaskResumed{ContainerID: r.GetID()})
	return &emptypb.Empty{}, nil
}

// ResizePty sets the size of a terminal.
func (s *service) ResizePty(ctx context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	if err := p.p.Resize(ctx, r.GetWidth(), r.GetHeight()); err != nil {
		return nil, refuse(err)
	}
	return &emptypb.Empty{}, nil
}

// CloseIO lets a process's input end.
func (s *service) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, refuse(err)
	}
	if r.GetStdin() {
		p.closeInput()
	}
	return &emptypb.Empty{}, nil
}

// Checkpoint is refused.
func (s *service) Checkpoint(_ context.Context, r *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, status.Errorf(codes.Unimplemented, "checkpoint of container %s: containers in virtual machines cannot be checkpointed", r.GetID())
}

// Connect tells who we are.
func (s *service) Connect(_ context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	resp := &task.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: "v2"}
	if c, err := s.find(r.GetID()); err == nil {
		resp.TaskPid = c.pid
	}
	return resp, nil
}

// Shutdown ends the sandbox and the process, once no container is left.
func (s *service) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	// A pod's sandbox is not for its containers to end.
	busy := !r.GetNow() && (len(s.tasks) > 0 || s.pod.InUse() && r.GetID() != s.id)
	s.ending = s.ending || !busy
	s.mu.Unlock()
	if busy {
		return &emptypb.Empty{}, nil
	}
	err := s.close(context.WithoutCancel(ctx))
	s.stop()
	return &emptypb.Empty{}, refuse(err)
}
