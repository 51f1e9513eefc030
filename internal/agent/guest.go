package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/entropy"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"github.com/seed-efd44b36/kata/internal/agent/storage"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/version"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// shmPath is the /dev/shm that containers of a pod may share.
	shmPath = "/run/kata/shm"
	// defaultShm is its size in bytes when the host asks for none.
	defaultShm = 64 << 20
	// restartAfter is how long a guest that was shut down waits for its end.
	restartAfter = time.Second
	sysctlDir    = "/proc/sys/"
	// minSeed in bytes is the entropy that a copy of a template needs: as much as the
	// kernel's generator has.
	minSeed = 32
	// maxHostname is the kernel's limit.
	maxHostname = 64
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
		a.sandbox = r.GetId()
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
	if err := a.setup(ctx, r); err != nil {
		return nil, fail(err)
	}
	a.log.Debug("sandbox is set up", "sandbox", r.GetId())
	return &agentv1.SetupSandboxResponse{Steps: tell()}, nil
}

func (a *Agent) setup(ctx context.Context, r *agentv1.SetupSandboxRequest) error {
	// First of all, before anything draws random numbers or looks at a clock.
	end := timeline.Step(ctx, "entropy and clock")
	if len(r.GetEntropy()) > 0 {
		if err := entropy.Add(r.GetEntropy()); err != nil {
			return err
		}
	}
	if r.GetTimeUnixNs() != 0 {
		if err := setTime(r.GetTimeUnixNs()); err != nil {
			return err
		}
	}
	end()
	if h := r.GetHostname(); h != "" {
		if len(h) > maxHostname {
			return fmt.Errorf("host name of %d bytes, at most %d: %w", len(h), maxHostname, errInvalid)
		}
		if err := unix.Sethostname([]byte(h)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	size := r.GetShmBytes()
	if size == 0 {
		size = defaultShm
	}
	shm := &agentv1.Storage{
		Driver: "tmpfs", Source: "shm", Target: shmPath, Fstype: "tmpfs",
		Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=" + strconv.FormatUint(size, 10)},
	}
	end = timeline.Step(ctx, "mounts")
	for _, st := range append([]*agentv1.Storage{shm}, r.GetStorages()...) {
		if err := storage.Mount(ctx, a.modules, st); err != nil {
			return err
		}
	}
	end()
	end = timeline.Step(ctx, "network")
	if err := a.updateNetwork(ctx, r.GetNetwork()); err != nil {
		return err
	}
	end()
	return setSysctls(r.GetSysctls())
}

// setSysctls sets sysctls of the guest's network and IPC namespaces, which are the
// pod's.
func setSysctls(values map[string]string) error {
	keys := make([]string, 0, len(values))
	for k := range values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		file, err := sysctlFile(k)
		if err != nil {
			return err
		}
		if name := strings.TrimPrefix(file, sysctlDir); !strings.HasPrefix(name, "net/") && !jail.IPCSysctl(name) {
			return fmt.Errorf("sysctl %s is not of the network or IPC: %w", k, errInvalid)
		}
		if err := os.WriteFile(file, []byte(values[k]), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", k, err)
		}
	}
	return nil
}

// sysctlFile returns the file of a sysctl. As with sysctl(8), if the first
// separator is a slash then slashes separate and dots are part of names.
func sysctlFile(key string) (string, error) {
	rel := key
	if dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/'); slash < 0 || dot >= 0 && dot < slash {
		rel = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if !filepath.IsLocal(rel) || path.Clean(rel) != rel {
		return "", fmt.Errorf("sysctl %q: %w", key, errInvalid)
	}
	return sysctlDir + rel, nil
}

// UpdateNetwork implements the service.
func (a *Agent) UpdateNetwork(ctx context.Context, r *agentv1.UpdateNetworkRequest) (*agentv1.UpdateNetworkResponse, error) {
	if err := a.updateNetwork(ctx, r.GetNetwork()); err != nil {
		return nil, fail(err)
	}
	return &agentv1.UpdateNetworkResponse{}, nil
}

// updateNetwork loads the drivers of interfaces, if there is any use for them,
// and applies n.
func (a *Agent) updateNetwork(ctx context.Context, n *agentv1.Network) error {
	if len(n.GetInterfaces()) > 0 {
		if err := a.modules.LoadPhase(module.PhaseNet); err != nil {
			return err
		}
	}
	return a.network.Apply(ctx, n)
}

// SetTime implements the service.
func (a *Agent) SetTime(_ context.Context, r *agentv1.SetTimeRequest) (*agentv1.SetTimeResponse, error) {
	if err := setTime(r.GetUnixNs()); err != nil {
		return nil, fail(err)
	}
	return &agentv1.SetTimeResponse{}, nil
}

func setTime(ns int64) error {
	t := unix.NsecToTimespec(ns)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return fmt.Errorf("set the clock to %v: %w", time.Unix(0, ns).UTC(), err)
	}
	return nil
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
