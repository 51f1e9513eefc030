//go:build integration

package agent_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/sandbox/rehearsal"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stage is where the guest rehearses.
func (g *guest) stage(t *testing.T, rounds int) rehearsal.Stage {
	t.Helper()
	dir := filepath.Join(g.shared, "stage/rootfs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := rehearsal.Fill(dir); err != nil {
		t.Fatal(err)
	}
	return rehearsal.Stage{Storage: share(), Root: "/run/kata/shared/stage/rootfs", Devices: []string{nicMAC}, Rounds: rounds}
}

// look tells all about the guest that a rehearsal might change. It is a sandbox
// itself, which is undone.
func (g *guest) look(t *testing.T) string {
	t.Helper()
	if err := g.link.Setup(within(t), &agentv1.SetupSandboxRequest{Id: "look", Rehearsal: true, Storages: []*agentv1.Storage{share()}}); err != nil {
		t.Fatal(err)
	}
	spec := newSpec("look", "sh", "-c", `
		hostname
		cat /guest/proc/1/mounts
		ip -o addr; ip -o link; ip route show table all; ip -6 route; ip rule
		cat /proc/sys/net/ipv4/ip_unprivileged_port_start
		busybox find /guest/sys/fs/cgroup -type d | busybox sort
		busybox find /guest/run /guest/tmp
		# Into files: what works side by side would see each other.
		cat /guest/proc/[0-9]*/comm >/tmp/all; busybox grep -v kworker /tmp/all | busybox sort
		busybox ls -l /guest/proc/1/fd >/tmp/all; busybox sed 's/.*-> //' /tmp/all | busybox sort
		busybox ls -l /guest/proc/[0-9]*/ns >/tmp/all; busybox sed -n 's/.*-> //p' /tmp/all | busybox sort -u | busybox wc -l`)
	// All of the guest, and its own network and host name.
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/guest", Type: "bind", Source: "/", Options: []string{"rbind", "ro"}})
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	spec.Hostname = ""
	// For what belongs to the agent.
	caps := append(spec.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	std, err := g.tryCreate(t, "look", spec)
	if err != nil {
		t.Fatal(err)
	}
	p := &proc{g: g, id: "look"}
	p.open(t, std)
	code, out, errOut := p.finish(t, "")
	if code != 0 || errOut != "" {
		t.Fatalf("exit code %d, stderr %.500q", code, errOut)
	}
	if _, err := g.agent.Settle(within(t), &agentv1.SettleRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a rehearsal with a container was undone: %v", err)
	}
	if _, err := g.agent.DeleteContainer(within(t), &agentv1.DeleteContainerRequest{Container: "look"}); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(g.shared, "look")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.agent.Settle(within(t), &agentv1.SettleRequest{}); err != nil {
		t.Fatal(err)
	}
	// Numbers of what is made anew each time.
	return regexp.MustCompile(`~\d+|\[\d+\]|id=\d+`).ReplaceAllString(out, "N")
}

// startCopy is start for a copy of a saved machine, which gets files of its own, that
// it cannot write to.
func startCopy(t *testing.T, img guestimage.Image, saved ...*os.File) *guest {
	t.Helper()
	var files []*os.File
	for _, f := range saved {
		file, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		files = append(files, file)
	}
	return start(t, img, files[0], files[1])
}

// TestRehearsal restores a guest, lets it rehearse, and finds that it is as before,
// also for the next host, whose sandbox it becomes.
func TestRehearsal(t *testing.T) {
	img := image(t)
	dir := t.TempDir()
	memory, err := os.OpenFile(filepath.Join(dir, "memory"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if err := memory.Truncate(memoryMiB << 20); err != nil {
		t.Fatal(err)
	}
	state, err := os.OpenFile(filepath.Join(dir, "state"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	first := start(t, img, memory, nil)
	if _, err := first.agent.Settle(within(t), &agentv1.SettleRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := first.link.Leave(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := first.machine.(opened).Machine.(vmm.Saver).Save(within(t), state); err != nil {
		t.Fatal(err)
	}

	for rounds := range 3 {
		g := startCopy(t, img, memory, state)
		if err := rehearsal.Run(within(t), g.link, g.stage(t, rounds)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := g.link.Setup(within(t), &agentv1.SetupSandboxRequest{Id: "sandbox", Storages: []*agentv1.Storage{share()}}); err != nil {
			t.Fatal(err)
		}
		if code, out, _ := g.create(t, "first", newSpec("first", "echo", "hello")).finish(t, ""); code != 0 || out != "hello\n" {
			t.Errorf("exit code %d, output %q", code, out)
		}
		t.Logf("after %d rounds, a sandbox and its first container take %v", rounds, time.Since(began).Round(time.Millisecond))
	}
	g := startCopy(t, img, memory, state)
	before := g.look(t)
	for _, rounds := range []int{1, 2} {
		stage := g.stage(t, rounds)
		began := time.Now()
		if err := rehearsal.Run(within(t), g.link, stage); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d rounds took %v", rounds, time.Since(began).Round(time.Millisecond))
		if err := os.RemoveAll(filepath.Join(g.shared, "stage")); err != nil {
			t.Fatal(err)
		}
		after := g.look(t)
		for soon := time.Now().Add(patience / 4); after != before && time.Now().Before(soon); {
			after = g.look(t) // a process that was killed may have been seen
		}
		if after != before {
			t.Errorf("%d rounds change the guest (-before +after):\n%s", rounds, cmp.Diff(before, after))
		}
	}
	if err := g.link.Leave(within(t)); err != nil {
		t.Fatal(err)
	}
	g.connect(t)
	start := time.Now()
	if err := g.link.Setup(within(t), &agentv1.SetupSandboxRequest{Id: "sandbox", Hostname: "pod", Storages: []*agentv1.Storage{share()}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox set up in %v", time.Since(start).Round(time.Millisecond))
	testOutput(t, g)
	if _, err := g.agent.Settle(within(t), &agentv1.SettleRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a sandbox was undone: %v", err)
	}
}
