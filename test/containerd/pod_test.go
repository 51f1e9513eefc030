//go:build integration

package containerd

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/cri"
	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPod asks one pod all that can be asked of it: a pod costs a boot.
func TestPod(t *testing.T) {
	eachPod(t, func(t *testing.T, c ctr) {
		t.Parallel()
		p := c.runPod(t, func(config *runtime.PodSandboxConfig) {
			config.Linux.SecurityContext.Privileged = true // as one container of it is
		})
		main := p.sleeper(t, "main")
		for _, tc := range []struct {
			name string
			test func(t *testing.T, p *pod, main string)
		}{
			{"exec sync", execSync},
			{"exec", execStreams},
			{"exec with a terminal", execTerminal},
			{"attach", attach},
			{"attach to a terminal", attachTerminal},
			{"logs", logs},
			{"identity", identity},
			{"two containers", twoContainers},
			{"target", target},
			{"stats", stats},
			{"update", update},
			{"security", security},
			{"host paths", hostPaths},
			{"propagation", propagation},
			{"sharing", sharing},
			{"configuration", configuration},
			{"image volume", imageVolume},
			{"termination message", terminationMessage},
			{"stop", stop},
			{"ends", ends},
			{"checkpoint", checkpoint},
			{"events", lifeEvents},
			{"idempotence", idempotence},
		} {
			t.Run(tc.name, func(t *testing.T) { tc.test(t, p, main) })
		}
	})
}

func execSync(t *testing.T, p *pod, main string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := p.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: main, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 5"}})
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 5 {
		t.Errorf("got %v, %v", r, err)
	}
	r, err = p.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: main, Cmd: []string{"sh", "-c", "yes | head -c 1000000"}})
	if err != nil || len(r.Stdout) != 1000000 {
		t.Errorf("got %d bytes, %v", len(r.GetStdout()), err)
	}
	if _, err = p.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: main, Cmd: []string{"sleep", "20000"}, Timeout: 1}); err == nil || !strings.Contains(err.Error(), "time") {
		t.Errorf("a command that takes too long: %v", err)
	}
	want(t, "what took too long is gone", p.sh(t, main, "ps | grep '[s]leep 20000' || true"), "")
	if _, err = p.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: main, Cmd: []string{"/bin/nothing"}}); err == nil {
		t.Error("no error for a missing command")
	}
}

func execStreams(t *testing.T, p *pod, main string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var out, errOut harness.Buffer
	code, err := p.ExecStream(ctx, &runtime.ExecRequest{ContainerId: main, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 3"}},
		cri.Streams{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: &errOut})
	if err != nil || code != 3 || out.String() != "one\ntwo\n" || errOut.String() != "err\n" {
		t.Errorf("exit code %d, %v, stdout %q, stderr %q", code, err, out.String(), errOut.String())
	}
	var screen harness.Buffer
	sizes := make(chan cri.Size)
	defer close(sizes)
	in, w := io.Pipe()
	defer w.Close()
	code, err = p.ExecStream(ctx, &runtime.ExecRequest{ContainerId: main, Cmd: []string{"echo", "hello"}, Tty: true}, cri.Streams{Stdin: in, Stdout: &screen, Resize: sizes})
	if err != nil || code != 0 || screen.String() != "hello\r\n" {
		t.Errorf("with a terminal: exit code %d, %v, %q", code, err, screen.String())
	}
}

func execTerminal(t *testing.T, p *pod, main string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	in, keys := io.Pipe()
	sizes := make(chan cri.Size, 1)
	defer close(sizes)
	var screen harness.Buffer
	ended := make(chan int, 1)
	go func() { // ends with the shell
		code, err := p.ExecStream(ctx, &runtime.ExecRequest{ContainerId: main, Cmd: []string{"sh"}, Tty: true}, cri.Streams{Stdin: in, Stdout: &screen, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		ended <- code
	}()
	sizes <- cri.Size{Width: 101, Height: 33}
	harness.Poll(t, "the terminal has its size", func() bool {
		_, _ = io.WriteString(keys, "stty size\n")
		return strings.Contains(screen.String(), "33 101")
	})
	_, _ = io.WriteString(keys, "exit 6\n")
	if code := <-ended; code != 6 {
		t.Errorf("exit code %d, want 6; %s", code, screen.String())
	}
}

func attach(t *testing.T, p *pod, _ string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	config := containerConfig("attached", "sh", "-c", `while read l; do echo "got $l"; done; exit 4`)
	config.Stdin, config.StdinOnce = true, true
	id := p.start(t, config)
	var out harness.Buffer
	in, w := io.Pipe()
	ended := make(chan error, 1)
	go func() { // ends with the container
		ended <- p.AttachStream(ctx, &runtime.AttachRequest{ContainerId: id}, cri.Streams{Stdin: in, Stdout: &out})
	}()
	for i := range 2 {
		_, _ = fmt.Fprintf(w, "line %d\n", i)
		harness.Poll(t, "the line comes back", func() bool { return strings.Contains(out.String(), fmt.Sprintf("got line %d\n", i)) })
	}
	_ = w.Close()
	if s := p.wait(t, id); s.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", s.ExitCode)
	}
	if err := <-ended; err != nil {
		t.Errorf("attach: %v", err)
	}
}

func logs(t *testing.T, p *pod, _ string) {
	t.Helper()
	config := containerConfig("logs", "sh", "-c", `i=0; while [ $i -lt 20000 ]; do echo "line $i of the log"; i=$((i+1)); done; echo last >&2`)
	id := p.start(t, config)
	p.wait(t, id)
	got := strings.Split(p.log(t, config.LogPath), "\n")
	if len(got) != 20001 {
		t.Fatalf("%d lines, want 20001", len(got))
	}
	outputs := 0
	for _, l := range got {
		if l == fmt.Sprintf("line %d of the log", outputs) {
			outputs++
		} else if l != "last" {
			t.Fatalf("line %q after %d", l, outputs)
		}
	}

	// A log that is moved away is begun anew when the kubelet asks for it.
	config = containerConfig("rotated", "sh", "-c", "while :; do echo tick; sleep 0.1; done")
	id = p.start(t, config)
	path := filepath.Join(p.config.LogDirectory, config.LogPath)
	has := func() bool { b, err := os.ReadFile(path); return err == nil && len(b) > 0 }
	harness.Poll(t, "there is a log", has)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ReopenContainerLog(t.Context(), &runtime.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the log goes on", has)
	p.stop(t, id, 0)
}

// identity is host name, addresses, name servers, shared memory.
func identity(t *testing.T, p *pod, main string) {
	t.Helper()
	want(t, "hostname", p.sh(t, main, "hostname"), "host-of-pod")
	want(t, "/etc/hostname", p.sh(t, main, "cat /etc/hostname"), "host-of-pod")
	want(t, "resolv.conf", p.sh(t, main, "cat /etc/resolv.conf"), "search svc.cluster.local\nnameserver 10.0.0.10\noptions ndots:5")
	want(t, "port 0 may be bound by anybody", p.sh(t, main, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")
	s, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	addresses := p.sh(t, main, "ip addr show dev eth0")
	for _, ip := range append([]string{s.Status.Network.Ip}, ips(s)...) {
		if ip == "" || !strings.Contains(addresses, " "+ip+"/") {
			t.Errorf("the container does not have the address %q:\n%s", ip, addresses)
		}
	}
	if n := len(ips(s)); n != 1 {
		t.Errorf("%d further addresses, want one of version 6", n)
	}
}

func ips(s *runtime.PodSandboxStatusResponse) []string {
	var list []string
	for _, a := range s.Status.Network.AdditionalIps {
		list = append(list, a.Ip)
	}
	return list
}

// twoContainers share the network, /dev/shm and IPC, but not processes.
func twoContainers(t *testing.T, p *pod, main string) {
	t.Helper()
	other := p.start(t, containerConfig("other", "sh", "-c", "echo hello >/dev/shm/greeting; nc -l -p 7070 -e echo answer"))
	harness.Poll(t, "the other one has started", func() bool { return strings.Contains(p.sh(t, main, "ls /dev/shm"), "greeting") })
	want(t, "shared memory", p.sh(t, main, "cat /dev/shm/greeting"), "hello")
	harness.Poll(t, "it answers on the loopback", func() bool { return strings.Contains(p.sh(t, main, "nc 127.0.0.1 7070 </dev/null || true"), "answer") })
	if ps := p.sh(t, main, "ps"); strings.Contains(ps, "7070") {
		t.Errorf("processes of another container are seen:\n%s", ps)
	}
	want(t, "exit code", fmt.Sprint(p.wait(t, other).ExitCode), "0")
	want(t, "IPC", p.sh(t, main, "readlink /proc/self/ns/ipc")[:4], "ipc:")
}

// target is a container that looks at the processes of another, as `kubectl debug
// --target` makes them: not the pod's first.
func target(t *testing.T, p *pod, main string) {
	t.Helper()
	debugged := p.start(t, containerConfig("debugged", "sleep", "54321"))
	config := containerConfig("debugger", "sleep", "12345")
	config.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: debugged}
	debugger := p.start(t, config)
	for _, id := range []string{debugged, debugger} {
		if ps := p.sh(t, id, "ps"); !strings.Contains(ps, "sleep 54321") || !strings.Contains(ps, "sleep 12345") {
			t.Errorf("processes:\n%s", ps)
		}
	}
	if ps := p.sh(t, main, "ps"); strings.Contains(ps, "sleep 54321") {
		t.Errorf("another container has them, too:\n%s", ps)
	}
	p.sh(t, debugger, "kill -9 1 || true")
	// What is executed in a container ends with it: how, is a matter of luck.
	_, _ = p.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: debugger, Cmd: []string{"sh", "-c", "kill -9 $(ps | grep '[s]leep 12345' | awk '{ print $1 }')"}})
	want(t, "exit code of the debugger", fmt.Sprint(p.wait(t, debugger).ExitCode), "137")
	want(t, "the debugged", p.status(t, debugged).State.String(), "CONTAINER_RUNNING")
	p.stop(t, debugged, 0)
}

func stats(t *testing.T, p *pod, main string) {
	t.Helper()
	var s *runtime.ContainerStats
	harness.Poll(t, "there are figures", func() bool {
		r, err := p.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: main})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		return s.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0 && s.Memory.GetWorkingSetBytes().GetValue() > 0
	})
	if ws := s.Memory.WorkingSetBytes.Value; ws > 32<<20 {
		t.Errorf("a shell has a working set of %d bytes", ws)
	}
	p.sh(t, main, "head -c 33554432 /dev/zero >/dev/shm/big")
	harness.Poll(t, "what it takes is seen", func() bool {
		r, err := p.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: main})
		if err != nil {
			t.Fatal(err)
		}
		return r.Stats.Memory.WorkingSetBytes.Value > 32<<20
	})
	p.sh(t, main, "rm /dev/shm/big")
	if s.Attributes.Metadata.Name != "main" {
		t.Errorf("attributes %v", s.Attributes)
	}
	list, err := p.ListContainerStats(t.Context(), &runtime.ListContainerStatsRequest{Filter: &runtime.ContainerStatsFilter{PodSandboxId: p.id}})
	if err != nil || len(list.Stats) == 0 {
		t.Errorf("%d in the list, %v", len(list.GetStats()), err)
	}
	sandbox, err := p.PodSandboxStats(t.Context(), &runtime.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil || sandbox.Stats.Linux.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("of the pod: %v, %v", sandbox, err)
	}
}

// limits prints those of a container on memory and CPU time, and its weight, as
// version 2 of cgroups has them.
const limits = `cd /sys/fs/cgroup
if [ -e memory.max ]; then cat memory.max cpu.max cpu.weight; exit; fi
cat memory/memory.limit_in_bytes
echo $(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us)
case $(cat cpu/cpu.shares) in 512) echo 59;; 1024) echo 100;; esac`

func update(t *testing.T, p *pod, _ string) {
	t.Helper()
	config := containerConfig("updated", "sleep", "10000")
	config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512}
	id := p.start(t, config)
	want(t, "limits", p.sh(t, id, limits), fmt.Sprintf("%d\n50000 100000\n59", 64<<20))
	if _, err := p.UpdateContainerResources(t.Context(), &runtime.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 80000, CpuShares: 1024},
	}); err != nil {
		t.Fatal(err)
	}
	want(t, "limits after the update", p.sh(t, id, limits), fmt.Sprintf("%d\n80000 100000\n100", 96<<20))
	p.stop(t, id, 0)
}

func terminationMessage(t *testing.T, p *pod, _ string) {
	t.Helper()
	path := filepath.Join(p.dir, "message")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	config := containerConfig("message", "sh", "-c", "echo goodbye >/dev/termination-log")
	config.Mounts = []*runtime.Mount{{HostPath: path, ContainerPath: "/dev/termination-log"}}
	p.output(t, config)
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "goodbye\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func idempotence(t *testing.T, p *pod, _ string) {
	t.Helper()
	id := p.start(t, containerConfig("once", "true"))
	p.wait(t, id)
	p.stop(t, id, 5)
	p.stop(t, id, 5)
	for range 2 {
		if _, err := p.RemoveContainer(t.Context(), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := p.StopContainer(t.Context(), &runtime.StopContainerRequest{ContainerId: id}); err != nil && !strings.Contains(err.Error(), "not found") {
		t.Errorf("stop after remove: %v", err)
	}
}

// TestPodIsRemovedTwice removes what runs by removing the pod, twice.
func TestPodIsRemovedTwice(t *testing.T) {
	eachPodLong(t, func(t *testing.T, c ctr) {
		t.Parallel()
		p := c.runPod(t, nil)
		p.sleeper(t, "main")
		for range 2 {
			if _, err := p.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Errorf("stop: %v", err)
			}
		}
		for range 2 {
			if _, err := p.RemovePodSandbox(t.Context(), &runtime.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		if _, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id}); err == nil {
			t.Error("the pod is still there")
		}
	})
}

// TestSharedProcesses is of a pod with one process namespace.
func TestSharedProcesses(t *testing.T) {
	eachPod(t, func(t *testing.T, c ctr) {
		t.Parallel()
		share := func(o **runtime.NamespaceOption) { *o = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD} }
		p := c.runPod(t, func(config *runtime.PodSandboxConfig) { share(&config.Linux.SecurityContext.NamespaceOptions) })
		var list []string
		for _, name := range []string{"first", "second"} {
			config := containerConfig(name, "sleep", "10000")
			share(&config.Linux.SecurityContext.NamespaceOptions)
			list = append(list, p.start(t, config))
		}
		ps := p.sh(t, list[0], "ps")
		first := "/pause"
		if c.runtime == sandboxer.name {
			first = "container-init" // there is no such container
		}
		if !strings.Contains(ps, first) || strings.Count(ps, "sleep 10000") != 2 {
			t.Errorf("processes:\n%s", ps)
		}
		p.sh(t, list[0], "kill -9 $(ps | grep '[s]leep 10000' | tail -n 1 | awk '{ print $1 }')")
		if s := p.wait(t, list[1]); s.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", s.ExitCode)
		}
	})
}

// TestRestart runs an init container and restarts the pod's only container while
// the sandbox lives on.
func TestRestart(t *testing.T) {
	eachPodLong(t, func(t *testing.T, c ctr) {
		t.Parallel()
		p := c.runPod(t, nil)
		dir := filepath.Join(p.dir, "shared")
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		mount := []*runtime.Mount{{HostPath: dir, ContainerPath: "/shared"}}
		config := containerConfig("init", "sh", "-c", "echo prepared >/shared/state")
		config.Mounts = mount
		p.output(t, config)
		for attempt := range uint32(3) {
			config := containerConfig("main", "sh", "-c", "cat /shared/state; hostname; touch /mine; ls / | grep -c mine; exit 0")
			config.Metadata.Attempt, config.Mounts, config.LogPath = attempt, mount, fmt.Sprintf("main-%d.log", attempt)
			want(t, fmt.Sprintf("attempt %d", attempt), p.output(t, config), "prepared\nhost-of-pod\n1")
		}
		s, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil || s.Status.State != runtime.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v, %v", s.GetStatus().GetState(), err)
		}
	})
}

// hostPorts are ports of the network namespace that daemons share.
var hostPorts atomic.Int32

// TestNginx fetches a page from a pod: over its addresses, over a port of the
// host, and forwarded. The pod has sysctls and a limit, too.
func TestNginx(t *testing.T) {
	eachPodLong(t, func(t *testing.T, c ctr) {
		t.Parallel()
		image, err := c.Import(t.Context(), "nginx")
		if err != nil {
			t.Fatal(err)
		}
		hostPort := 8000 + hostPorts.Add(1)
		p := c.runPod(t, func(config *runtime.PodSandboxConfig) {
			config.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: hostPort}, {ContainerPort: 443}}
			config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.ip_local_port_range": "20000 30000"}
			config.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000}
		})
		config := containerConfig("nginx")
		config.Image.Image = image
		config.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000}
		id := p.start(t, config)
		s, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		if err != nil {
			t.Fatal(err)
		}
		web := &http.Client{Transport: &http.Transport{DialContext: c.Network.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
		page := func(url string) string {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			r, err := web.Do(req)
			if err != nil {
				return err.Error()
			}
			defer r.Body.Close()
			b, _ := io.ReadAll(r.Body)
			return string(b)
		}
		const welcome = "Welcome to nginx!"
		harness.Poll(t, "nginx answers", func() bool { return strings.Contains(page("http://"+s.Status.Network.Ip+"/"), welcome) })
		for _, ip := range ips(s) {
			// At first the bridge's own address may not be usable yet.
			harness.Poll(t, "nginx answers over "+ip, func() bool { return strings.Contains(page("http://["+ip+"]/"), welcome) })
		}

		// The bridge of each daemon has the first address of its network.
		gateway := s.Status.Network.Ip[:strings.LastIndexByte(s.Status.Network.Ip, '.')] + ".1"
		harness.Poll(t, "nginx answers on the host's port", func() bool {
			return strings.Contains(page(fmt.Sprintf("http://%s:%d/", gateway, hostPort)), welcome)
		})
		want(t, "sysctls", p.sh(t, id, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/ip_local_port_range"), "1\n100\n20000\t30000")
		t.Run("limit on the host", func(t *testing.T) { p.hostLimit(t, id) })
		t.Run("port-forward", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			conn, err := p.Forward(ctx, p.id, 80)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			if err != nil || !strings.Contains(string(got), welcome) {
				t.Errorf("forwarded: %.200q, %v", got, err)
			}
		})
		p.stop(t, id, 30)
	})
}

// hostLimit updates a container and looks at the host's limit on the machine, which
// is that of the pod.
func (p *pod) hostLimit(t *testing.T, id string) {
	t.Helper()
	if p.runtime == "runc" {
		t.Skip("with runc it is the container's own")
	}
	quota := func() string {
		for path, name := range map[string]string{"/sys/fs/cgroup/cpu": "cpu.cfs_quota_us", "/sys/fs/cgroup": "cpu.max"} {
			if b, err := os.ReadFile(filepath.Join(path, p.daemon.CgroupParent, p.id, name)); err == nil {
				return strings.Fields(string(b))[0]
			}
		}
		return "not found"
	}
	want(t, "at first", quota(), "100000")
	for _, tc := range []struct {
		container int64
		want      string
	}{{150000, "200000"}, {20000, "70000"}, {50000, "100000"}} {
		if _, err := p.UpdateContainerResources(t.Context(), &runtime.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: tc.container},
		}); err != nil {
			t.Fatal(err)
		}
		want(t, fmt.Sprintf("with %d for the container", tc.container), quota(), tc.want)
	}
}

// TestHostNamespaces is of pods that ask for the host's namespaces: a machine of
// its own has none of them, and the error says so.
func TestHostNamespaces(t *testing.T) {
	eachPod(t, func(t *testing.T, c ctr) {
		client := c.client(t)
		for name, change := range map[string]func(o *runtime.NamespaceOption){
			"network":   func(o *runtime.NamespaceOption) { o.Network = runtime.NamespaceMode_NODE },
			"processes": func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE },
			"IPC":       func(o *runtime.NamespaceOption) { o.Ipc = runtime.NamespaceMode_NODE },
			"user namespace": func(o *runtime.NamespaceOption) {
				ids := []*runtime.IDMapping{{ContainerId: 0, HostId: 100000, Length: 65536}}
				o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
			},
		} {
			config := podConfig(t, c.Daemon)
			change(config.Linux.SecurityContext.NamespaceOptions)
			r, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: c.runtime})
			if err == nil {
				p := &pod{Client: client, t: t, daemon: c.Daemon, config: config, id: r.PodSandboxId}
				p.remove()
			}
			if c.runtime == "runc" {
				continue // which has them
			}
			if name == "user namespace" && c.Release.ConfigVersion == 2 {
				continue // which containerd 1.6 does not know of
			}
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("host %s: %v; want an error that names it", name, err)
			} else {
				t.Log(err)
			}
		}
	})
}
