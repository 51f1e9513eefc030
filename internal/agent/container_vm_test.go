//go:build integration

package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// rootfs puts busybox into the guest's shared directory, where container id
// finds it as its root.
func (g *guest) rootfs(t *testing.T, id string) {
	t.Helper()
	dir := filepath.Join(g.shared, id, "rootfs")
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	copyTo(t, busybox, filepath.Join(dir, "bin/busybox"))
	libs, _ := exec.CommandContext(t.Context(), "ldd", busybox).Output()
	for field := range strings.FieldsSeq(string(libs)) {
		if strings.HasPrefix(field, "/") {
			copyTo(t, field, filepath.Join(dir, field))
		}
	}
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "dd", "stty", "ps", "kill", "id", "head", "yes", "mount", "ip", "hostname", "tr", "tail"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/plain"), []byte("no program\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyTo(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func newSpec(id string, args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "/run/kata/shared/" + id + "/rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin"},
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			NoNewPrivileges: true,
		},
		Hostname: id,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/kata/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// proc is a process in the guest and the host's ends of its streams.
type proc struct {
	g               *guest
	id, exec        string
	in, out, errOut link.Stream
}

// tryCreate creates a container that wants all three streams, or two for a
// terminal.
func (g *guest) tryCreate(t *testing.T, id string, spec *specs.Spec) (*agentv1.Stdio, error) {
	t.Helper()
	g.rootfs(t, id)
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	std := &agentv1.Stdio{Stdin: true, Stdout: true, Stderr: !spec.Process.Terminal}
	_, err = g.agent.CreateContainer(within(t), &agentv1.CreateContainerRequest{Id: id, Spec: b, Stdio: std})
	return std, err
}

// create creates a container, opens its streams, and deletes it in the end.
func (g *guest) create(t *testing.T, id string, spec *specs.Spec) *proc {
	t.Helper()
	std, err := g.tryCreate(t, id, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := g.agent.DeleteContainer(ctx, &agentv1.DeleteContainerRequest{Container: id}); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	p := &proc{g: g, id: id}
	p.open(t, std)
	return p
}

func (p *proc) open(t *testing.T, std *agentv1.Stdio) {
	t.Helper()
	for fd, s := range map[uint8]*link.Stream{0: &p.in, 1: &p.out, 2: &p.errOut} {
		if fd == 2 && !std.GetStderr() {
			continue
		}
		var err error
		if *s, err = p.g.link.Open(t.Context(), link.Header{Kind: link.KindStdio, Container: p.id, Exec: p.exec, FD: fd}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*s).Close() })
	}
}

// tryExecute prepares a further process with the given streams.
func (p *proc) tryExecute(t *testing.T, exec string, std *agentv1.Stdio, args ...string) error {
	t.Helper()
	b, err := json.Marshal(newSpec(p.id, args...).Process)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.g.agent.CreateExec(within(t), &agentv1.CreateExecRequest{Container: p.id, Exec: exec, Process: b, Stdio: std})
	return err
}

// execute prepares a further process with all streams and opens them.
func (p *proc) execute(t *testing.T, exec string, args ...string) *proc {
	t.Helper()
	std := &agentv1.Stdio{Stdin: true, Stdout: true, Stderr: true}
	if err := p.tryExecute(t, exec, std, args...); err != nil {
		t.Fatal(err)
	}
	e := &proc{g: p.g, id: p.id, exec: exec}
	e.open(t, std)
	return e
}

func (p *proc) start(t *testing.T) {
	t.Helper()
	if _, err := p.g.agent.StartProcess(within(t), &agentv1.StartProcessRequest{Container: p.id, Exec: p.exec}); err != nil {
		t.Fatal(err)
	}
}

func (p *proc) wait(t *testing.T) *agentv1.WaitProcessResponse {
	t.Helper()
	w, err := p.g.agent.WaitProcess(within(t), &agentv1.WaitProcessRequest{Container: p.id, Exec: p.exec})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// finish starts the process, gives it input, and returns how it ended and what
// it wrote.
func (p *proc) finish(t *testing.T, input string) (code uint32, out, errOut string) {
	t.Helper()
	p.start(t)
	var work sync.WaitGroup
	for s, to := range map[link.Stream]*string{p.out: &out, p.errOut: &errOut} {
		if s == nil {
			continue
		}
		work.Go(func() {
			b, err := io.ReadAll(s)
			if err != nil {
				t.Errorf("read output: %v", err)
			}
			*to = string(b)
		})
	}
	if _, err := io.WriteString(p.in, input); err != nil && !link.IsClosed(err) {
		t.Errorf("write input: %v", err)
	}
	p.in.CloseWrite()
	work.Wait()
	return p.wait(t).GetExitCode(), out, errOut
}

func (p *proc) signal(t *testing.T, sig unix.Signal, all bool) {
	t.Helper()
	if _, err := p.g.agent.SignalProcess(within(t), &agentv1.SignalProcessRequest{Container: p.id, Exec: p.exec, Signal: uint32(sig), All: all}); err != nil {
		t.Fatal(err)
	}
}

// expect reads until the output has the text.
func expect(t *testing.T, s link.Stream, text string) string {
	t.Helper()
	var got bytes.Buffer
	buf := make([]byte, 4096)
	s.SetReadDeadline(time.Now().Add(patience))
	for !strings.Contains(got.String(), text) {
		n, err := s.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("want %q, got %q, %v", text, got.String(), err)
		}
	}
	return got.String()
}

// TestGuest boots one guest and tries everything in it.
func TestGuest(t *testing.T) {
	g := boot(t)
	if _, err := g.agent.CreateContainer(within(t), &agentv1.CreateContainerRequest{Id: "early"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("container before the sandbox: %v", err)
	}
	start := time.Now()
	_, err := g.agent.SetupSandbox(within(t), &agentv1.SetupSandboxRequest{
		Id: "sandbox", Hostname: "pod", TimeUnixNs: time.Now().UnixNano(), Entropy: bytes.Repeat([]byte{7}, 64),
		Storages: []*agentv1.Storage{share()},
		Network: &agentv1.Network{
			Interfaces: []*agentv1.Interface{{Name: "net7", Mac: nicMAC, Mtu: 1400, Addresses: []*agentv1.Address{{Prefix: "10.9.0.5/24"}, {Prefix: "fd00:9::5/64"}}}},
			Routes: []*agentv1.Route{
				{Destination: "10.9.0.0/24", Hops: []*agentv1.Hop{{Device: "net7"}}, Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK},
				{Hops: []*agentv1.Hop{{Gateway: "10.9.0.1", Device: "net7"}}, Family: unix.AF_INET},
			},
		},
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox set up in %v", time.Since(start).Round(time.Millisecond))
	if _, err := g.agent.SetupSandbox(within(t), &agentv1.SetupSandboxRequest{Id: "again"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("second set-up: %v", err)
	}
	for _, tt := range []struct {
		name string
		test func(t *testing.T, g *guest)
	}{
		{"Output", testOutput},
		{"Input", testInput},
		{"Throughput", testThroughput},
		{"HostStopsReading", testHostStopsReading},
		{"Signals", testSignals},
		{"CommandErrors", testCommandErrors},
		{"Terminal", testTerminal},
		{"Exec", testExec},
		{"OOM", testOOM},
		{"Pause", testPause},
		{"Stats", testStats},
		{"Parallel", testParallel},
		{"Network", testNetwork},
		{"AgentIsProtected", testAgentIsProtected},
		{"Details", testDetails},
		{"Shutdown", testShutdown},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, g) })
	}
}

func testOutput(t *testing.T, g *guest) {
	for i := range 3 {
		start := time.Now()
		p := g.create(t, fmt.Sprintf("output%d", i), newSpec(fmt.Sprintf("output%d", i), "sh", "-c", "echo out; hostname; echo err >&2; exit 7"))
		created := time.Since(start)
		code, out, errOut := p.finish(t, "")
		t.Logf("created in %v, finished after %v", created.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
		if code != 7 || out != fmt.Sprintf("out\noutput%d\n", i) || errOut != "err\n" {
			t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
		}
	}
}

func testInput(t *testing.T, g *guest) {
	want := strings.Repeat("0123456789abcdef", 100_000)
	code, out, _ := g.create(t, "input", newSpec("input", "cat")).finish(t, want)
	if code != 0 || out != want {
		t.Errorf("exit code %d, %d bytes of %d came back", code, len(out), len(want))
	}
}

func testThroughput(t *testing.T, g *guest) {
	const mib = 64
	p := g.create(t, "bulk", newSpec("bulk", "dd", "if=/dev/zero", "bs=64k", fmt.Sprintf("count=%d", mib*16)))
	p.start(t)
	start := time.Now()
	h := sha256.New()
	n, err := io.Copy(h, p.out)
	if err != nil || n != mib<<20 {
		t.Errorf("read %d bytes, %v", n, err)
	}
	t.Logf("%.0f MB/s", float64(n)/1e6/time.Since(start).Seconds())
	want := sha256.New()
	for range mib {
		want.Write(make([]byte, 1<<20))
	}
	if !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
		t.Error("the bytes have changed on the way")
	}
}

func testHostStopsReading(t *testing.T, g *guest) {
	p := g.create(t, "pipe", newSpec("pipe", "yes"))
	p.start(t)
	expect(t, p.out, "y\ny\n")
	p.out.Close()
	if code := p.wait(t).GetExitCode(); code != 128+uint32(unix.SIGPIPE) && code != 1 {
		t.Errorf("exit code %d", code)
	}
}

func testSignals(t *testing.T, g *guest) {
	p := g.create(t, "signals", newSpec("signals", "sh", "-c", "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 1; done"))
	p.start(t)
	expect(t, p.out, "ready")
	p.signal(t, unix.SIGTERM, false)
	expect(t, p.out, "got")
	if code := p.wait(t).GetExitCode(); code != 3 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	p.signal(t, unix.SIGTERM, false) // has ended: no error

	p = g.create(t, "killed", newSpec("killed", "sleep", "1000"))
	p.start(t)
	p.signal(t, unix.SIGKILL, true)
	if w := p.wait(t); w.GetExitCode() != 137 || w.GetOomKilled() || time.Since(time.Unix(0, w.GetExitedAt())).Abs() > patience {
		t.Errorf("killed: %v", w)
	}
}

func testCommandErrors(t *testing.T, g *guest) {
	for _, tt := range []struct {
		id, command string
		code        codes.Code
	}{
		{"missing", "no-such-command", codes.NotFound},
		{"missing-path", "/no/such/command", codes.NotFound},
		{"plain", "/etc/plain", codes.PermissionDenied},
	} {
		_, err := g.tryCreate(t, tt.id, newSpec(tt.id, tt.command))
		if status.Code(err) != tt.code || !strings.Contains(err.Error(), fmt.Sprintf("exec %q: ", tt.command)) {
			t.Errorf("%s: %v", tt.command, err)
		}
	}
}

func testTerminal(t *testing.T, g *guest) {
	spec := newSpec("tty", "sh", "-c", "stty size; read x; stty size; exit 4")
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Width: 100, Height: 30}
	p := g.create(t, "tty", spec)
	p.start(t)
	expect(t, p.out, "30 100\r\n")
	if _, err := g.agent.ResizeTerminal(within(t), &agentv1.ResizeTerminalRequest{Container: "tty", Width: 90, Height: 20}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(p.in, "go\n")
	expect(t, p.out, "20 90\r\n")
	rest, err := io.ReadAll(p.out)
	if err != nil {
		t.Errorf("end of terminal: %q, %v", rest, err)
	}
	if code := p.wait(t).GetExitCode(); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func testExec(t *testing.T, g *guest) {
	p := g.create(t, "main", newSpec("main", "sleep", "1000"))
	p.start(t)
	var times []time.Duration
	for i := range 6 {
		start := time.Now()
		e := p.execute(t, fmt.Sprintf("e%d", i), "sh", "-c", "cat; echo $0; exit 5")
		code, out, _ := e.finish(t, "in ")
		times = append(times, time.Since(start))
		if code != 5 || out != "in sh\n" {
			t.Errorf("exit code %d, output %q", code, out)
		}
		if _, err := g.agent.DeleteProcess(within(t), &agentv1.DeleteProcessRequest{Container: "main", Exec: e.exec}); err != nil {
			t.Error(err)
		}
	}
	slices.Sort(times)
	t.Logf("exec takes %v (median), %v to %v", times[3], times[0], times[5])
	// One that still runs when the container is deleted.
	p.execute(t, "left", "sleep", "1000").start(t)
	if err := p.tryExecute(t, "bad", nil, "no-such-command"); status.Code(err) != codes.NotFound {
		t.Errorf("missing command: %v", err)
	}
	if _, err := g.agent.WaitProcess(within(t), &agentv1.WaitProcessRequest{Container: "main", Exec: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("wait for nobody: %v", err)
	}
	// Streams that were announced and never come hold nothing up for ever.
	std := &agentv1.Stdio{Stdin: true, Stdout: true}
	if err := p.tryExecute(t, "alone", std, "sh", "-c", "yes | head -c 300000; cat; exit 6"); err != nil {
		t.Fatal(err)
	}
	alone := &proc{g: g, id: "main", exec: "alone"}
	alone.start(t)
	if code := alone.wait(t).GetExitCode(); code != 6 {
		t.Errorf("exit code %d without streams", code)
	}
}

func testOOM(t *testing.T, g *guest) {
	spec := newSpec("oom", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=2")
	limit := int64(30 << 20)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	p := g.create(t, "oom", spec)
	p.start(t)
	if w := p.wait(t); w.GetExitCode() != 137 || !w.GetOomKilled() {
		t.Errorf("ended with %v", w)
	}
	ev, err := g.agent.NextEvent(within(t), &agentv1.NextEventRequest{})
	if err != nil || ev.GetKind() != agentv1.NextEventResponse_OOM || ev.GetContainer() != "oom" {
		t.Errorf("event %v, %v", ev, err)
	}
}

func testPause(t *testing.T, g *guest) {
	p := g.create(t, "pause", newSpec("pause", "cat"))
	p.start(t)
	io.WriteString(p.in, "before\n")
	expect(t, p.out, "before\n")
	if _, err := g.agent.PauseContainer(within(t), &agentv1.PauseContainerRequest{Container: "pause"}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(p.in, "after\n")
	p.out.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if n, err := p.out.Read(make([]byte, 10)); n != 0 || err == nil {
		t.Error("a paused container ran")
	}
	if _, err := g.agent.ResumeContainer(within(t), &agentv1.ResumeContainerRequest{Container: "pause"}); err != nil {
		t.Fatal(err)
	}
	expect(t, p.out, "after\n")
}

func testStats(t *testing.T, g *guest) {
	p := g.create(t, "stats", newSpec("stats", "sh", "-c", "sleep 1000 & cat; wait"))
	p.start(t)
	io.WriteString(p.in, "ready") // which cat answers
	expect(t, p.out, "ready")
	limit := int64(64 << 20)
	b, err := json.Marshal(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &[]int64{50}[0]}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.agent.UpdateContainer(within(t), &agentv1.UpdateContainerRequest{Container: "stats", Resources: b}); err != nil {
		t.Fatal(err)
	}
	st, err := g.agent.StatsContainer(within(t), &agentv1.StatsContainerRequest{Container: "stats"})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetMemory().GetLimit() != uint64(limit) || st.GetMemory().GetUsage() == 0 || st.GetCpu().GetUsageUsec() == 0 ||
		st.GetPids().GetCurrent() < 3 || st.GetPids().GetLimit() != 50 || len(st.GetNetwork()) != 1 || st.GetNetwork()[0].GetName() != "net7" {
		t.Errorf("stats: %v", st)
	}
	list, err := g.agent.ListProcesses(within(t), &agentv1.ListProcessesRequest{Container: "stats"})
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, p := range list.GetProcesses() {
		commands = append(commands, p.GetCommand())
	}
	slices.Sort(commands)
	if want := []string{"cat", "sh -c sleep 1000 & cat; wait", "sleep 1000"}; !slices.Equal(commands, want) {
		t.Errorf("processes %q, want %q", commands, want)
	}
}

func testParallel(t *testing.T, g *guest) {
	var work sync.WaitGroup
	for i := range 5 {
		id := fmt.Sprintf("parallel%d", i)
		work.Go(func() {
			code, out, _ := g.create(t, id, newSpec(id, "sh", "-c", "cat; exit "+fmt.Sprint(i))).finish(t, id)
			if code != uint32(i) || out != id {
				t.Errorf("%s: exit code %d, output %q", id, code, out)
			}
		})
	}
	work.Wait()
}

func testNetwork(t *testing.T, g *guest) {
	code, out, errOut := g.create(t, "network", newSpec("network", "sh", "-c",
		"ip addr show net7; ip route; ip addr show lo; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")).finish(t, "")
	for _, want := range []string{"mtu 1400", "inet 10.9.0.5/24", "inet6 fd00:9::5/64", "default via 10.9.0.1 dev net7", "inet 127.0.0.1/8", "\n0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in (exit code %d):\n%s%s", want, code, out, errOut)
		}
	}
}

// testAgentIsProtected is CVE-2019-5736: the program of the agent is that of
// every container before its execve, so /proc/PID/exe leads to it.
func testAgentIsProtected(t *testing.T, g *guest) {
	spec := newSpec("evil", "sh", "-c", "echo x > /agent; cat /agent/init; id")
	all := []string{"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"}
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	// The worst case: a container that is given the guest's own root.
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/guest", Type: "bind", Source: "/", Options: []string{"bind", "rw"}})
	spec.Process.Args[2] = "mount -o remount,bind,rw /guest; echo x >> /guest/init; echo $?"
	if err := os.MkdirAll(filepath.Join(g.shared, "evil/rootfs/guest"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, out, errOut := g.create(t, "evil", spec).finish(t, "")
	if out != "1\n" || !strings.Contains(errOut, "/guest/init: Read-only file system") {
		t.Errorf("the agent's program could be opened for writing: %q, %q", out, errOut)
	}
}

func testDetails(t *testing.T, g *guest) {
	d, err := g.agent.Details(within(t), &agentv1.DetailsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("details: %v", d)
	if d.GetCpus() != 1 || d.GetMemoryBytes() < 100<<20 || d.GetMemoryBytes() > 256<<20 || !d.GetSeccomp() {
		t.Errorf("details: %v", d)
	}
	// What the design promises of an idle agent.
	if rss := d.GetAgentRssBytes(); rss == 0 || rss > 10<<20 {
		t.Errorf("the agent takes %d KiB", rss>>10)
	}
}

func testShutdown(t *testing.T, g *guest) {
	// The answer may never arrive.
	_, _ = g.agent.Shutdown(within(t), &agentv1.ShutdownRequest{})
	select {
	case <-g.machine.Done():
	case <-time.After(patience):
		t.Error("the machine still runs")
	}
}
