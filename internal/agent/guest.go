package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/entropy"
	"github.com/seed-efd44b36/kata/internal/agent/pod"
	"github.com/seed-efd44b36/kata/internal/version"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// restartAfter is how long a guest that was shut down waits for its end.
	restartAfter = time.Second
	// minSeed in bytes is the entropy that a copy of a template needs: as much as the
	// kernel's generator has.
	minSeed = 32
)

// Details implements the service.
func (a *Agent) Details(context.Context, *agentv1.DetailsRequest) (*agentv1.DetailsResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.details == nil || !a.template {
		d, err := a.look()
		if err != nil {
			return nil, fail(err)
		}
		a.details = d
	}
	a.details.BootToReadyMs = uint64(a.ready.Milliseconds())
	a.details.BootToNowMs = uint64(uptime().Milliseconds())
	return proto.CloneOf(a.details), nil
}

// look finds out what the guest is.
func (a *Agent) look() (*agentv1.DetailsResponse, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	controllers, err := a.groups.Controllers()
	if err != nil {
		a.log.Warn("controllers are unknown", "err", err)
	}
	_, seccompErr := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return &agentv1.DetailsResponse{
		Version:           version.String(),
		KernelRelease:     unix.ByteSliceToString(uts.Release[:]),
		MemoryBytes:       kilobytes("/proc/meminfo", "MemTotal:"),
		Cpus:              uint32(runtime.NumCPU()),
		AgentRssBytes:     kilobytes("/proc/self/status", "VmRSS:"),
		Seccomp:           seccompErr == nil,
		CgroupControllers: controllers,
		BootToAgentMs:     uint64(a.started.Milliseconds()),
	}, nil
}

// kilobytes returns, in bytes, the number of kB behind the key in a file such
// as /proc/meminfo, 0 if there is none.
func kilobytes(file, key string) uint64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok {
			if f := bytes.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(string(f[0]), 10, 64)
				return n << 10
			}
		}
	}
	return 0
}

// SetupSandbox implements the service.
func (a *Agent) SetupSandbox(ctx context.Context, r *agentv1.SetupSandboxRequest) (*agentv1.SetupSandboxResponse, error) {
	a.mu.Lock()
	taken, poor := a.sandbox, a.template && len(r.GetEntropy()) < minSeed
	if taken == "" && !poor {
		a.sandbox, a.rehearsal = r.GetId(), r.GetRehearsal()
	}
	a.mu.Unlock()
	switch {
	case r.GetId() == "":
		return nil, status.Error(codes.InvalidArgument, "sandbox without an id")
	case poor:
		// It would draw the same random numbers as every other copy.
		return nil, status.Errorf(codes.InvalidArgument, "a copy of a template gets %d bytes of entropy, and needs %d", len(r.GetEntropy()), minSeed)
	case taken != "":
		return nil, status.Errorf(codes.FailedPrecondition, "this guest is sandbox %q", taken)
	}
	ctx, tell := steps(ctx)
	if err := a.pod.Setup(ctx, r); err != nil {
		return nil, fail(err)
	}
	a.log.Debug("sandbox is set up", "sandbox", r.GetId())
	return &agentv1.SetupSandboxResponse{Steps: tell()}, nil
}

// UpdateNetwork implements the service.
func (a *Agent) UpdateNetwork(ctx context.Context, r *agentv1.UpdateNetworkRequest) (*agentv1.UpdateNetworkResponse, error) {
	if err := a.pod.UpdateNetwork(ctx, r.GetNetwork()); err != nil {
		return nil, fail(err)
	}
	return &agentv1.UpdateNetworkResponse{}, nil
}

// SetTime implements the service.
func (a *Agent) SetTime(_ context.Context, r *agentv1.SetTimeRequest) (*agentv1.SetTimeResponse, error) {
	if err := pod.SetTime(r.GetUnixNs()); err != nil {
		return nil, fail(err)
	}
	return &agentv1.SetTimeResponse{}, nil
}

// AddEntropy implements the service.
func (a *Agent) AddEntropy(_ context.Context, r *agentv1.AddEntropyRequest) (*agentv1.AddEntropyResponse, error) {
	if err := entropy.Add(r.GetSeed()); err != nil {
		return nil, fail(err)
	}
	return &agentv1.AddEntropyResponse{}, nil
}

// Shutdown implements the service. The host ends the machine when it has the
// answer, sooner than the kernel would have stopped its devices.
func (a *Agent) Shutdown(context.Context, *agentv1.ShutdownRequest) (*agentv1.ShutdownResponse, error) {
	a.log.Info("shutting down")
	unix.Sync()
	time.AfterFunc(restartAfter, func() {
		// A restart ends every VMM that was told not to reboot, also those without
		// ACPI, which a power-off would only halt.
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			a.log.Error("shut down", "error", err)
		}
	})
	return &agentv1.ShutdownResponse{}, nil
}
