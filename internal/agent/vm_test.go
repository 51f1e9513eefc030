//go:build integration

package agent_test

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/fileserver"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	guestlink "github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qemu"
)

// patience bounds every wait. It is long: the guest is emulated, and the
// machine may be busy.
const patience = 2 * time.Minute

// memoryMiB is the guest's memory.
const memoryMiB = 256

// nicMAC is the hardware address of the guest's interface.
const nicMAC = "02:00:00:12:34:56"

// guest is a machine with the agent in it, set up as a sandbox.
type guest struct {
	machine vmm.Machine
	link    *guestlink.Guest
	agent   agentv1.AgentService
	shared  string // the shared directory on the host
}

// image builds the agent and the initrd with it.
func image(t *testing.T) guestimage.Image {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "kata-test", "agent")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "kata-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program,
		"github.com/seed-efd44b36/kata/cmd/kata-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	b := guestimage.Builder{
		CacheDir: filepath.Join(cache, "kata-test", "guestimage"),
		Agent:    program,
		Log:      slog.New(slog.DiscardHandler),
	}
	img, err := b.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// boot starts a guest and connects to its agent.
func boot(t *testing.T) *guest {
	t.Helper()
	img := image(t)
	return start(t, img, nil, nil)
}

// start starts a machine and connects to its agent: one that boots, with a file as
// its memory if there is one, or a copy of a saved one.
func start(t *testing.T, img guestimage.Image, memory, state *os.File) *guest {
	t.Helper()
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	g := &guest{shared: t.TempDir()}
	if err := os.Chmod(g.shared, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := fileserver.Start(g.shared)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = files.Peer().Close()
		files.Close()
	})
	level := slog.LevelInfo
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	g.machine, err = qemu.New(vmm.Config{
		ID:          "agenttest-" + strconv.Itoa(os.Getpid()),
		Dir:         t.TempDir(),
		Binary:      binary,
		MachineType: "q35",
		Accel:       vmm.AccelTCG,
		CPUs:        1, MemoryMiB: memoryMiB,
		Kernel: img.Kernel.VMLinux, Initrd: img.Initrd,
		KernelParams: guestimage.KernelParams(img.Kernel, true) + " kata.log=debug",
		Share:        vmm.Share{Tag: "kata", Server: files.Peer()},
		NICs:         []vmm.NIC{{MAC: nicMAC}},
		Memory:       memory, State: state,
		Unprivileged: true,
	}, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})))
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := g.machine.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if t.Failed() {
			t.Logf("guest console:\n%q", g.machine.Console().Bytes())
		}
		g.machine.Kill(ctx)
	})
	conn, err := g.machine.Agent(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	g.machine = opened{g.machine, conn}
	g.connect(t)
	t.Logf("first answer after %v", time.Since(began).Round(time.Millisecond))
	return g
}

// connect makes the link, also after the one before has been left.
func (g *guest) connect(t *testing.T) {
	t.Helper()
	var err error
	if g.link, err = guestlink.Connect(within(t), g.machine, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.link.Close)
	g.agent = g.link.AgentService
}

// opened is a machine whose connection to the agent can be asked for again.
type opened struct {
	vmm.Machine
	conn net.Conn
}

func (o opened) Agent(context.Context) (net.Conn, error) { return o.conn, nil }
