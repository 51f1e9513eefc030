// Package agent is the guest's side: the first process of the virtual machine,
// which makes containers when the host asks.
//
// Life cycle: Main boots the guest (package boot), loads the modules of the
// link, and serves api/agent/v1 on it until the machine ends. One guest serves
// one sandbox. The host is trusted, containers are not: what they can choose
// (paths in their root file systems, names of processes) is handled in package
// jail or passed on as data.
//
// Calls come over streams of kind rpc. Standard input and output of each process
// have streams of their own and goroutines that belong to the process.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	ttrpclog "github.com/containerd/log"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/boot"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"github.com/seed-efd44b36/kata/internal/agent/network"
	"github.com/seed-efd44b36/kata/internal/agent/pod"
	"github.com/seed-efd44b36/kata/internal/agent/reap"
	"github.com/seed-efd44b36/kata/internal/version"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// spares is how many container processes wait for work.
	spares = 1
	// vsockPort is where the agent listens when the link is vsock.
	vsockPort = 1024
	// quietTime is how long the first container has the guest for itself.
	quietTime = time.Second
	// memoryLimit in bytes is what the collector of garbage aims at, and startLimit
	// what there may be before it begins to: it would only be in the way of the
	// first container.
	memoryLimit, startLimit = 8 << 20, 20 << 20
)

// Agent is the agent's state. Its methods are safe for concurrent use.
type Agent struct {
	log     *slog.Logger
	logs    *logFan
	modules *module.Set
	reaper  *reap.Reaper
	jailer  *jail.Jailer
	groups  *cgroup.Hierarchy
	pod     *pod.Pod
	events  *events
	debug   bool            // a debug shell is allowed
	running chan struct{}   // closed when the first container runs
	life    context.Context // until the agent ends
	started time.Duration   // since the kernel's start

	runOnce  sync.Once     // guards the closing of running
	prepared chan struct{} // closed when prepareErr is set
	// prepareErr says what is missing of what a sandbox needs.
	prepareErr error

	mu         sync.Mutex
	ready      time.Duration         // guarded by mu; when the link could be used
	sandbox    string                // guarded by mu; id, empty before SetupSandbox
	rehearsal  bool                  // guarded by mu; the sandbox is one, which Settle undoes
	template   bool                  // guarded by mu; the guest has been settled
	containers map[string]*container // guarded by mu; nil value: being created
	// details of the guest, guarded by mu. Those of a template are found out once.
	details *agentv1.DetailsResponse
}

// Main is the program: it returns only when the guest cannot be used, which the
// kernel answers with a panic. The reason is in the kernel's log and so on the
// console.
func Main() int {
	started := uptime()
	if os.Getpid() != 1 {
		fmt.Fprintf(os.Stderr, "kata-agent %s is the first process of a guest; start a guest by `kata run`.\n", version.String())
		return 1
	}
	if err := run(started); err != nil {
		logger, _ := newLogger(openKmsg(), slog.LevelInfo)
		logger.Error("the guest cannot be used", "err", err)
		return 1
	}
	return 0
}

func run(started time.Duration) error {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startLimit)

	// That a host has hung up is no news for the console.
	if err := ttrpclog.SetLevel("panic"); err != nil {
		return err
	}
	if err := boot.Early(); err != nil {
		return err
	}
	slow := slowMonitor()
	cmdline, err := boot.ReadCommandLine()
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if cmdline.Get("kata.log") == "debug" {
		level = slog.LevelDebug
	}
	logger, logs := newLogger(openKmsg(), level)
	if slow != nil {
		logger.Warn("the guest will be slower than it could be", "err", slow)
	}

	modules, err := module.Open(module.List)
	if err != nil {
		return err
	}
	vsock := cmdline.Get("kata.link") == "vsock"
	if err := loadLinkModules(modules, vsock); err != nil {
		return err
	}
	if err := boot.Rest(); err != nil {
		return err
	}

	life, end := context.WithCancel(context.Background())
	var work sync.WaitGroup
	defer work.Wait()
	defer end()
	a := &Agent{
		log: logger, logs: logs, modules: modules,
		reaper:  reap.New(),
		groups:  &cgroup.Hierarchy{Root: cgroupRoot},
		pod:     &pod.Pod{Modules: modules, Network: network.NewStack()},
		events:  newEvents(),
		debug:   cmdline.Get("kata.debug") != "",
		life:    life,
		started: started,

		running:    make(chan struct{}),
		prepared:   make(chan struct{}),
		containers: make(map[string]*container),
	}
	a.jailer = jail.New(jail.Options{Reaper: a.reaper, Spares: spares, Log: logger})
	work.Go(func() {
		if err := a.reaper.Run(life); err != nil && life.Err() == nil {
			logger.Error("children are no longer waited for", "err", err)
		}
	})
	work.Go(func() { a.prepare(life) })
	if vsock {
		return a.serveVsock()
	}
	return a.serveSerial(life)
}

// loadLinkModules loads what the link needs and nothing that it does not: until
// then the host waits.
func loadLinkModules(m *module.Set, vsock bool) error {
	if err := m.Load("virtio_pci", "virtio_mmio", "virtio_console"); err != nil {
		return err
	}
	if vsock {
		return m.LoadPhase(module.PhaseVsock)
	}
	return nil
}

// prepare does ahead what a sandbox will need, while the host makes its first
// calls, and what is of use later once the first container runs.
func (a *Agent) prepare(ctx context.Context) {
	a.prepareErr = errors.Join(network.LoopbackUp(), a.modules.LoadPhase(module.PhaseBoot), a.jailer.Fill(ctx))
	close(a.prepared)
	if a.prepareErr != nil {
		a.log.Warn("not all is ready for a sandbox", "err", a.prepareErr)
	}
	// What follows would only be in the way of a container that is starting.
	select {
	case <-a.running:
	case <-ctx.Done():
		return
	}
	if await.Pause(ctx, quietTime) != nil {
		return
	}
	// Small and steady rather than fast: the guest's memory is the user's.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	debug.FreeOSMemory()
	a.mu.Lock()
	template := a.template
	a.mu.Unlock()
	if !template {
		// The balloon gives memory that the guest has freed back to the host, which
		// that of a restored machine cannot be.
		if err := a.modules.Load("virtio_balloon"); err != nil {
			a.log.Warn("not every module was loaded", "err", err)
		}
	}
	if err := errors.Join(a.jailer.Ready(), a.jailer.Fill(ctx), a.groups.Prepare()); err != nil {
		a.log.Warn("not all is ready for the next container", "err", err)
	}
}

// markRunning tells prepare that the first container runs.
func (a *Agent) markRunning() {
	a.mu.Lock()
	rehearsal := a.rehearsal
	a.mu.Unlock()
	if !rehearsal {
		a.runOnce.Do(func() { close(a.running) })
	}
}

// uptime is the time since the kernel's start.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
