// Package qemu runs virtual machines with QEMU (7.2 or newer).
//
// QEMU gets its devices' other ends as open descriptors: the agent's port, the
// console and its own control connection are socket pairs, so nothing else on
// the host can connect to them and nothing has to be removed afterwards. It is
// started paused, and the guest runs only when the control connection works.
//
// QEMU is where a guest breaks out to. It runs with its own seccomp filter, in a
// root that has nothing but what it reads, with no capability, as nobody, and dies
// with its owner.
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/tail"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qmp"
	"golang.org/x/sys/unix"
)

const (
	consoleBytes = 64 << 10 // of the guest's console are kept
	stderrBytes  = 16 << 10 // of QEMU's messages are kept
)

// Machine is one QEMU. It implements vmm.Machine.
type Machine struct {
	cfg     vmm.Config
	log     *slog.Logger
	console *tail.Buffer
	done    chan struct{} // closed when QEMU is gone and cleaned up after

	mu      sync.Mutex
	phase   phase
	proc    vmm.Process      // from Start on
	monitor *qmp.Client      // from Start on
	agent   net.Conn         // until it is asked for
	ends    *ends            // from Start on; ours are open until the end
	disks   map[string]*disk // by id
	moved   chan string      // how a migration ended; buffered
	killed  bool             // Kill came before QEMU's end was seen
	reason  string           // of QEMU's last SHUTDOWN event
	exit    vmm.Exit         // written before done is closed
}

type phase int

const (
	created phase = iota
	started
	ended
)

// New checks cfg and returns a machine that is not running yet.
func New(cfg vmm.Config, log *slog.Logger) (vmm.Machine, error) {
	if err := validate(cfg); err != nil {
		return nil, fmt.Errorf("configure qemu: %w", err)
	}
	return &Machine{
		cfg:     cfg,
		log:     log,
		console: tail.New(consoleBytes),
		done:    make(chan struct{}),
		disks:   make(map[string]*disk),
		moved:   make(chan string, 1),
	}, nil
}

// Start boots the machine; see vmm.Machine. A machine is started once.
func (m *Machine) Start(ctx context.Context) error {
	m.mu.Lock()
	if m.phase != created {
		m.mu.Unlock()
		return errors.New("start qemu: the machine was started before")
	}
	m.phase = started
	m.mu.Unlock()

	start := m.start
	if m.cfg.Running != nil {
		start = m.takeOver
	}
	if err := start(ctx); err != nil {
		return fmt.Errorf("start virtual machine: %w", err)
	}
	return nil
}

func (m *Machine) start(ctx context.Context) error {
	if err := checkFiles(m.cfg); err != nil {
		m.finish(vmm.Exit{Err: err, At: time.Now()})
		return err
	}
	ends, err := openEnds(m.cfg)
	if err != nil {
		m.finish(vmm.Exit{Err: err, At: time.Now()})
		return err
	}
	defer ends.closeTheirs()

	line := arguments(m.cfg, ends.theirs)
	m.log.Debug("start qemu", "sandbox", m.cfg.ID, "binary", m.cfg.Binary, "args", line.args)
	command := supervise.Command{
		Path:   m.cfg.Binary,
		Args:   line.args,
		Files:  line.files,
		Stderr: stderrBytes,
		Place:  m.cfg.Place,
		// Huge pages help a CPU that walks two levels of page tables; under
		// emulation they only cost the time to clear them, 10% of a boot.
		SmallPages: m.cfg.Accel == vmm.AccelTCG,
		// Its network are the taps, which are open.
		NoNetwork: m.cfg.NetNS == nil,
		NetNS:     m.cfg.NetNS,
	}
	if m.cfg.State != nil {
		command.Lend = &supervise.Lend{Path: memoryPath, File: m.cfg.Memory}
	}
	if m.cfg.Unprivileged {
		command.KeepCaps = []string{}
		command.Access = access(m.cfg)
		command.Root = &supervise.Root{}
		command.User = user(m.cfg)
		if supervise.LandlockABI() == 0 {
			m.log.Warn("this kernel has no Landlock: qemu is confined by its root, without a second wall", "sandbox", m.cfg.ID)
		}
	}
	end := timeline.Step(ctx, "QEMU's process")
	proc, err := supervise.Start(ctx, command)
	end()
	if err != nil {
		ends.closeOurs()
		m.finish(vmm.Exit{Err: err, At: time.Now()})
		return err
	}
	m.mu.Lock()
	m.proc, m.agent, m.ends = proc, ends.agent, ends
	if m.killed {
		proc.Kill()
	}
	m.mu.Unlock()

	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(m.console, ends.console) })
	go m.watch(proc, &reading, ends) // ends with QEMU; done tells
	ends.closeTheirs()               // or we would not see QEMU's ends closed

	err = m.run(ctx, ends.qmp)
	if err == nil {
		return nil
	}
	// If QEMU has died, that is the reason, whatever else went wrong. It may
	// still be about to: its last socket closes before the process is gone.
	if errors.Is(err, qmp.ErrClosed) || errors.Is(err, io.EOF) {
		select {
		case <-m.done:
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	select {
	case <-m.done:
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.exit.Err != nil {
			return m.exit.Err
		}
		return fmt.Errorf("%w: killed while it started", vmm.ErrGone)
	default:
	}
	exit := m.Kill(context.WithoutCancel(ctx))
	return fmt.Errorf("%w%s", err, evidence(exit.Stderr, exit.Console))
}

// run opens the control connection and lets the guest go.
func (m *Machine) run(ctx context.Context, conn *net.UnixConn) error {
	end := timeline.Step(ctx, "QEMU up")
	monitor, err := qmp.Connect(ctx, conn, m.event)
	end()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.monitor = monitor
	m.mu.Unlock()
	if m.cfg.State != nil {
		if err := m.restore(ctx, monitor); err != nil {
			return err
		}
	}
	defer timeline.Step(ctx, "run the guest")()
	_, err = monitor.Execute(ctx, qmp.Command{Name: "cont"})
	return err
}

// event is called by the monitor's reader.
func (m *Machine) event(e qmp.Event) {
	m.log.Debug("qemu event", "sandbox", m.cfg.ID, "event", e.Name)
	switch e.Name {
	case "SHUTDOWN":
		var data struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(e.Data, &data) == nil {
			m.mu.Lock()
			m.reason = data.Reason
			m.mu.Unlock()
		}
	case "MIGRATION":
		m.migration(e.Data)
	case "DEVICE_DELETED":
		m.deviceDeleted(e.Data)
	}
}

// watch waits for QEMU's end, reads what it left, and says why it ended.
func (m *Machine) watch(proc vmm.Process, reading *sync.WaitGroup, e *ends) {
	<-proc.Done()
	reading.Wait() // the console ends with QEMU, the only one to hold its other end
	_ = e.console.Close()
	_ = e.qmp.Close()
	m.mu.Lock()
	monitor, agent := m.monitor, m.agent
	m.agent = nil
	m.mu.Unlock()
	if monitor != nil {
		_ = monitor.Close()
	}
	if agent != nil {
		_ = agent.Close()
	}
	exit := proc.Exit()
	m.mu.Lock()
	end := ending{process: exit, killed: m.killed, reason: m.reason, stderr: proc.Stderr(), console: m.console.Bytes()}
	m.mu.Unlock()
	m.finish(vmm.Exit{Err: end.explain(), Stderr: end.stderr, Console: end.console, At: exit.At})
}

func (m *Machine) finish(exit vmm.Exit) {
	m.mu.Lock()
	m.phase = ended
	m.exit = exit
	m.mu.Unlock()
	close(m.done)
}

// Agent returns the connection to the guest's agent port; see vmm.Machine.
func (m *Machine) Agent(context.Context) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == ended {
		return nil, fmt.Errorf("open agent port: %w", vmm.ErrGone)
	}
	if m.agent == nil {
		return nil, errors.New("open agent port: it was opened before, or the machine was not started")
	}
	conn := m.agent
	m.agent = nil
	return conn, nil
}

// PIDs returns QEMU's process id, or none when it does not run.
func (m *Machine) PIDs() []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil || m.phase == ended {
		return nil
	}
	return []int{m.proc.PID()}
}

// Console is the tail of the guest's console.
func (m *Machine) Console() *tail.Buffer { return m.console }

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Kill ends QEMU now; see vmm.Machine. If the context ends first, the exit
// that it returns says so.
func (m *Machine) Kill(ctx context.Context) vmm.Exit {
	m.mu.Lock()
	proc, at := m.proc, m.phase
	if at != ended {
		m.killed = true
	}
	if at == created {
		m.phase = started // never to be started
	}
	m.mu.Unlock()
	if at == created {
		m.finish(vmm.Exit{At: time.Now()})
	}
	if proc != nil {
		proc.Kill()
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return vmm.Exit{Err: fmt.Errorf("%w: still waiting for qemu's end: %w", vmm.ErrGone, ctx.Err()), At: time.Now()}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

func (m *Machine) control() (*qmp.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == ended {
		return nil, vmm.ErrGone
	}
	if m.monitor == nil {
		return nil, errors.New("the machine does not run")
	}
	return m.monitor, nil
}

// checkFiles finds what QEMU would only complain about in its own words.
func checkFiles(c vmm.Config) error {
	for _, f := range []struct{ what, path, remedy string }{
		{"qemu", c.Binary, "install qemu-system-x86, or set hypervisor.path"},
		{"guest kernel", c.Kernel, "run `kata image build`"},
		{"guest initrd", c.Initrd, "run `kata image build`"},
	} {
		if err := unix.Access(f.path, unix.R_OK); err != nil {
			return fmt.Errorf("%s %s: %w (%s)", f.what, f.path, err, f.remedy)
		}
		if info, err := os.Stat(f.path); err != nil {
			return fmt.Errorf("%s: %w", f.what, err)
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("%s %s is not a regular file", f.what, f.path)
		}
	}
	return nil
}
