// Package controller is the Sandbox service of containerd 2, for pods whose
// sandboxer is the shim: containerd makes a pod by it instead of by a task with
// a pause container. The virtual machine is the sandbox, and containers, which
// are tasks as ever, join it.
//
//	Create -> Start -> (tasks) -> Stop -> Shutdown
//
// The shim serves it on the same socket as the Task service. What it is told
// comes from containerd, in part as users of Kubernetes wrote it.
package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/failure"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The states of a sandbox, in the CRI's words.
const (
	ready    = "SANDBOX_READY"
	notReady = "SANDBOX_NOTREADY"
)

// Shim is what has the sandbox.
type Shim interface {
	// Boot starts it, once.
	Boot(ctx context.Context, o sandbox.BootOptions) (*sandbox.Sandbox, error)
	// Close ends it, or sees to it that it never starts.
	Close(ctx context.Context) error
	// Stop ends the process, after Close.
	Stop()
	// Metrics makes the message by which containerd is told such figures.
	Metrics(*agentv1.StatsContainerResponse) (*anypb.Any, error)
}

// Controller is the service for one sandbox. Its methods are safe for
// concurrent use.
type Controller struct {
	id   string
	shim Shim

	mu      sync.Mutex
	options *sandbox.BootOptions // guarded by mu: nil before Create
	sb      *sandbox.Sandbox     // guarded by mu: nil before Start
	started time.Time            // guarded by mu
}

// New makes the service of sandbox id.
func New(id string, s Shim) *Controller { return &Controller{id: id, shim: s} }

// InUse tells whether containerd has made the sandbox by this service: then it
// lives until the service ends it, whatever becomes of the tasks.
func (c *Controller) InUse() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.options != nil
}

// check refuses requests for another sandbox.
func (c *Controller) check(id string) error {
	if id != c.id {
		return fmt.Errorf("sandbox %s: this is the shim of %s: %w", id, c.id, sandbox.ErrNotFound)
	}
	return nil
}

// sandbox is the one that has been started.
func (c *Controller) sandbox(id string) (sb *sandbox.Sandbox, started time.Time, err error) {
	if err := c.check(id); err != nil {
		return nil, started, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sb == nil {
		return nil, started, fmt.Errorf("sandbox %s has not started: %w", id, sandbox.ErrState)
	}
	return c.sb, c.started, nil
}

// Create takes note of what the sandbox is to be like, and makes the files that
// its containers get. It refuses what a virtual machine cannot be.
func (c *Controller) Create(_ context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	conf, err := parse(r.GetOptions())
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	o, err := bootOptions(c.id, conf, r.GetNetnsPath())
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.options != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", c.id, sandbox.ErrExists)
	}
	// On the disk, beside what containerd keeps of the sandbox, and removed
	// with that: containers write to them.
	dir, err := os.Readlink(filepath.Join(r.GetBundlePath(), "work"))
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: directory for its files, beside the bundle: %w", c.id, err)
	}
	if o.Pod.Mounts, err = writeFiles(dir, conf); err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", c.id, err)
	}
	c.options = o
	return &api.CreateSandboxResponse{}, nil
}

// Start starts the virtual machine.
func (c *Controller) Start(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	c.mu.Lock()
	o := c.options
	c.mu.Unlock()
	if o == nil {
		return nil, fmt.Errorf("start sandbox %s: it has not been created: %w", c.id, sandbox.ErrState)
	}
	sb, err := c.shim.Boot(ctx, *o)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sb, c.started = sb, time.Now()
	return &api.StartSandboxResponse{Pid: uint32(sb.Info().VMMPID), CreatedAt: timestamppb.New(c.started)}, nil
}

// Platform tells for which platform the specs of containers are to be made.
func (c *Controller) Platform(_ context.Context, r *api.PlatformRequest) (*api.PlatformResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	return &api.PlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

// Stop ends the sandbox. The shim goes on answering, until Shutdown.
func (c *Controller) Stop(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	// A caller that gives up must not leave half a sandbox.
	if err := c.shim.Close(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	return &api.StopSandboxResponse{}, nil
}

// Wait waits for the end of the sandbox.
func (c *Controller) Wait(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	sb, _, err := c.sandbox(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	select {
	case <-sb.Dead():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	at, why := sb.Death()
	resp := &api.WaitSandboxResponse{ExitedAt: timestamppb.New(at)}
	if why != nil {
		resp.ExitStatus = report.LostCode
	}
	return resp, nil
}

// info is what the CRI itself reads of Status, by the names of containerd's own
// sandboxer.
type info struct {
	PID    int    `json:"pid"`
	Status string `json:"processStatus"`
}

// Status tells how the sandbox is.
func (c *Controller) Status(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	resp := &api.SandboxStatusResponse{SandboxID: c.id, State: notReady}
	sb, started, err := c.sandbox(c.id)
	if errors.Is(err, sandbox.ErrState) {
		return resp, nil // it has not started
	}
	if err != nil {
		return nil, err
	}
	st := sb.Info()
	i, reason := info{PID: st.VMMPID, Status: "running"}, ""
	resp.Pid, resp.CreatedAt = uint32(st.VMMPID), timestamppb.New(started)
	select {
	case <-sb.Dead():
		at, why := sb.Death()
		i, resp.Pid, resp.ExitedAt = info{Status: "stopped"}, 0, timestamppb.New(at)
		if why != nil {
			reason = failure.Line(why)
		}
	default:
		resp.State = ready
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	b, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("status of sandbox %s: %w", c.id, err)
	}
	// The rest is for people: `crictl inspectp` shows it.
	resp.Info = map[string]string{"info": string(b), "guestKernel": st.Kernel, "accelerator": st.Accel}
	if reason != "" {
		resp.Info["reason"] = reason
	}
	return resp, nil
}

// Ping tells whether the sandbox lives.
func (c *Controller) Ping(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	sb, _, err := c.sandbox(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	select {
	case <-sb.Dead():
		return nil, fmt.Errorf("sandbox %s: %w", c.id, sandbox.ErrDead)
	default:
		return &api.PingResponse{}, nil
	}
}

// Shutdown ends the sandbox, if that has not been done, and the shim.
func (c *Controller) Shutdown(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	if err := c.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	err := c.shim.Close(context.WithoutCancel(ctx))
	c.shim.Stop()
	return &api.ShutdownSandboxResponse{}, err
}

// Metrics tells what the sandbox uses of the host, the virtual machine and all.
func (c *Controller) Metrics(_ context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	sb, _, err := c.sandbox(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	u := sb.Usage()
	data, err := c.shim.Metrics(&agentv1.StatsContainerResponse{
		Cpu: &agentv1.CPUStats{UsageUsec: u.CPUNanos / 1000},
		Memory: &agentv1.MemoryStats{
			Usage: u.MemoryBytes, Stat: map[string]uint64{"inactive_file": u.InactiveFileBytes},
		},
		Pids: &agentv1.PidsStats{Current: u.PIDs},
	})
	if err != nil {
		return nil, fmt.Errorf("metrics of sandbox %s: %w", c.id, err)
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{ID: c.id, Timestamp: timestamppb.Now(), Data: data}}, nil
}
