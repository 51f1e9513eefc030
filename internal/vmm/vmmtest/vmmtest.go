// Package vmmtest is the conformance suite of the VMM drivers: what vmm.Machine
// promises, tried with a real guest. A driver's integration test calls Run.
//
// The guest is a small program (vmmtest/guest) in place of the agent, on the
// same kernel and initrd that sandboxes use.
package vmmtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/fileserver"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// patience bounds every wait. It is long: the guest may be emulated, and the
// machine busy.
const patience = 2 * time.Minute

// Driver is the driver under test.
type Driver struct {
	// New makes a machine.
	New func(vmm.Config) (vmm.Machine, error)
	// Capabilities of the driver on this host.
	Capabilities vmm.Capabilities
	// Virtiofsd is the path of the file server for virtio-fs, "" for none.
	Virtiofsd string
	// Check, when set, looks at a machine that runs, with the configuration
	// that it was made of.
	Check func(*testing.T, vmm.Machine, vmm.Config)
	// Config is what all machines have in common: Binary, MachineType, Accel,
	// Kernel, Initrd, KernelParams. The suite sets the rest.
	Config vmm.Config
}

// Guest builds the suite's guest and returns its image. Kernel and initrd are
// kept in the user's cache directory.
func Guest(t *testing.T) guestimage.Image {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	// The image is keyed by the program's path and state, so that stays.
	dir := filepath.Join(cache, "kata-test", "vmmtest")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "guest")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", program,
		"github.com/seed-efd44b36/kata/internal/vmm/vmmtest/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest: %v\n%s", err, out)
	}
	builder := guestimage.Builder{
		CacheDir: filepath.Join(cache, "kata-test", "guestimage"),
		Agent:    program,
		Log:      slog.New(slog.DiscardHandler),
	}
	image, err := builder.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// config returns the driver's configuration for a new machine without a shared
// directory, with the suite's guest, and everything that can be dropped dropped.
func (d Driver) config(t *testing.T) vmm.Config {
	c := d.Config
	c.ID = "vmmtest-" + strconv.Itoa(os.Getpid())
	c.Dir = t.TempDir()
	c.CPUs = 1
	c.MemoryMiB = 256
	c.NICs = []vmm.NIC{{MAC: "02:00:00:12:34:56"}, {MAC: "02:00:00:12:34:57"}}
	c.Unprivileged = true
	return c
}

// share9P gives the machine an empty shared directory by 9p, and returns it.
func share9P(t *testing.T, c *vmm.Config) string {
	t.Helper()
	dir := sharedDir(t)
	server, err := fileserver.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Peer().Close()
		server.Close()
		if err := server.Err(); err != nil {
			t.Errorf("the file server ended: %v", err)
		}
	})
	c.Share = vmm.Share{Tag: "kata", Server: server.Peer()}
	return dir
}

// sharedDir returns an empty directory in which later mounts reach the VMM.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind %s: %v", dir, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatalf("share the mount %s: %v", dir, err)
	}
	return dir
}

// machine makes a machine that is killed at the end of the test.
func (d Driver) machine(t *testing.T, c vmm.Config) vmm.Machine {
	t.Helper()
	m, err := d.New(c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		m.Kill(ctx)
	})
	return m
}

// boot starts a machine and returns it with the connection to its guest.
func (d Driver) boot(t *testing.T, c vmm.Config) (vmm.Machine, *guest) {
	t.Helper()
	m := d.machine(t, c)
	if err := m.Start(deadline(t)); err != nil {
		t.Fatalf("Start: %v", err)
	}
	conn, err := m.Agent(deadline(t))
	if err != nil {
		t.Fatalf("Agent: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return m, &guest{machine: m, conn: conn, answers: bufio.NewReader(conn)}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// guest is the program in the guest, as seen through the agent port.
type guest struct {
	machine vmm.Machine
	conn    net.Conn
	answers *bufio.Reader
}

// ask sends a request and returns the answer, which must not be an error.
func (g *guest) ask(t *testing.T, request string, args ...string) string {
	t.Helper()
	g.send(t, request, args...)
	return g.answer(t)
}

func (g *guest) send(t *testing.T, request string, args ...string) {
	t.Helper()
	_ = g.conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(g.conn, strings.Join(append([]string{request}, args...), " ")); err != nil {
		t.Fatalf("send %s: %v%s", request, err, g.console())
	}
}

func (g *guest) answer(t *testing.T) string {
	t.Helper()
	_ = g.conn.SetDeadline(time.Now().Add(patience))
	line, err := g.answers.ReadString('\n')
	if err != nil {
		t.Fatalf("read the answer: %v%s", err, g.console())
	}
	size, refused := strings.CutPrefix(strings.TrimSpace(line), "-")
	n, err := strconv.Atoi(size)
	if err != nil {
		t.Fatalf("answer %q has no length", line)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(g.answers, text); err != nil {
		t.Fatalf("read the answer: %v%s", err, g.console())
	}
	if refused {
		t.Fatalf("the guest refused: %s%s", text, g.console())
	}
	return string(text)
}

// mountShare mounts the shared directory at /mnt in the guest.
func (g *guest) mountShare(t *testing.T) {
	t.Helper()
	g.ask(t, "mount", "9p", "kata", "/mnt", "trans=virtio,version=9p2000.L,msize=524288")
}

func (g *guest) console() string {
	return fmt.Sprintf("\nconsole:\n%q", g.machine.Console().Bytes())
}

// until polls until a condition holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// ended waits until the machine has ended and returns how.
func ended(t *testing.T, m vmm.Machine) vmm.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatalf("the machine did not end; console:\n%q", m.Console().Bytes())
	}
	return m.Kill(deadline(t))
}
