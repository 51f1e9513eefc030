//go:build integration

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/cri"
	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client connects to the daemon's CRI for one test.
func (d *Daemon) client(t *testing.T) *cri.Client {
	t.Helper()
	c, err := cri.Dial(d.Address, d.Network.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	awaitReady(t, d, c)
	return c
}

// awaitReady waits until the CRI works, the first time or again.
func awaitReady(t *testing.T, d *Daemon, c *cri.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatalf("%v\n%s", err, d.Log())
	}
}

// pod is a sandbox and what is needed to talk about it.
type pod struct {
	*cri.Client
	t       *testing.T
	daemon  *Daemon
	runtime string
	id      string
	config  *runtime.PodSandboxConfig
	// dir is for volumes and logs.
	dir string
}

// podConfig is a plain pod, of a unique name.
func podConfig(t *testing.T, d *Daemon) *runtime.PodSandboxConfig {
	t.Helper()
	name := newID(t)
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name, Attempt: 0},
		Hostname:     "host-of-pod",
		LogDirectory: filepath.Join(t.TempDir(), "logs"),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    d.CgroupParent,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}},
		},
	}
}

// runPod starts a pod, which the end of the test removes. change may be nil.
func (c ctr) runPod(t *testing.T, change func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	p := &pod{Client: c.client(t), t: t, daemon: c.Daemon, runtime: c.runtime, config: podConfig(t, c.Daemon)}
	p.dir = filepath.Dir(p.config.LogDirectory)
	if change != nil {
		change(p.config)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := p.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config, RuntimeHandler: c.runtime})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	p.id = r.PodSandboxId
	t.Cleanup(p.remove)
	return p
}

// remove removes the pod as `crictl rmp -f` does.
func (p *pod) remove() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.t.Context()), deadline)
	defer cancel()
	if p.gone(ctx) {
		return
	}
	_, serr := p.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
	_, rerr := p.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
	if err := errors.Join(serr, rerr); err != nil {
		p.t.Errorf("remove pod: %v", err)
	}
}

// gone tells whether the pod has been removed.
func (p *pod) gone(ctx context.Context) bool {
	r, err := p.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{Id: p.id}})
	return err == nil && len(r.Items) == 0
}

// containerConfig is a container of the busybox image.
func containerConfig(name string, command ...string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: busybox},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources:       &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}},
		},
	}
}

// try creates and starts a container.
func (p *pod) try(config *runtime.ContainerConfig) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), deadline)
	defer cancel()
	r, err := p.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", config.Metadata.Name, err)
	}
	if _, err = p.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		return r.ContainerId, fmt.Errorf("start container %s: %w", config.Metadata.Name, err)
	}
	return r.ContainerId, nil
}

// start is try for a container that has to start.
func (p *pod) start(t *testing.T, config *runtime.ContainerConfig) string {
	t.Helper()
	id, err := p.try(config)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sleeper starts a container that runs until it is stopped.
func (p *pod) sleeper(t *testing.T, name string) string {
	t.Helper()
	return p.start(t, containerConfig(name, "sh", "-c", `trap "exit 0" TERM; echo started; sleep 10000 & wait`))
}

// status asks for the state of a container.
func (p *pod) status(t *testing.T, id string) *runtime.ContainerStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := p.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

// wait waits for a container's end.
func (p *pod) wait(t *testing.T, id string) *runtime.ContainerStatus {
	t.Helper()
	var s *runtime.ContainerStatus
	harness.Poll(t, "the container ends", func() bool {
		s = p.status(t, id)
		return s.State == runtime.ContainerState_CONTAINER_EXITED
	})
	return s
}

// sh runs a script in a container that runs, and returns both outputs.
func (p *pod) sh(t *testing.T, id, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, err := p.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	if r.ExitCode != 0 {
		t.Errorf("exec %q: exit code %d: %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSuffix(string(r.Stdout)+string(r.Stderr), "\n")
}

// output runs a container to its end and returns what it has logged.
func (p *pod) output(t *testing.T, config *runtime.ContainerConfig) string {
	t.Helper()
	id := p.start(t, config)
	if s := p.wait(t, id); s.ExitCode != 0 {
		t.Errorf("container %s: exit code %d, reason %s %s", config.Metadata.Name, s.ExitCode, s.Reason, s.Message)
	}
	return p.log(t, config.LogPath)
}

// log reads a log: lines of time, stream, F or P, and text.
func (p *pod) log(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			t.Fatalf("log line %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || f[1] != "stdout" && f[1] != "stderr" {
			t.Errorf("log line %q", line)
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		_, _ = io.WriteString(&text, f[3])
	}
	return strings.TrimSuffix(text.String(), "\n")
}

// stop stops a container.
func (p *pod) stop(t *testing.T, id string, grace int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if _, err := p.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		t.Fatalf("stop container: %v", err)
	}
}

// want compares what came with what has to.
func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
