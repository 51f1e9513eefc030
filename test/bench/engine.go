package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/test/containerd"
	"github.com/seed-efd44b36/kata/test/cri"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// engine is a containerd with all the runtimes that are compared.
type engine struct {
	*containerd.Daemon
	*cri.Client

	network  *containerd.Network
	image    string
	runtimes []runtimeOf
	logs     string // directory of the pods' logs
	volume   string // mounted into containers at /bench
	count    int    // of pods and containers
}

// runtimeOf is a runtime of containerd.
type runtimeOf struct {
	name, shim string
	// binary is what runc's shim runs, empty for the shim's own choice.
	binary string
	// pods tells whether it can have several containers in a sandbox.
	pods bool
}

// forPods are the runtimes that pods can be run with.
func (e *engine) forPods() []runtimeOf {
	return slices.DeleteFunc(slices.Clone(e.runtimes), func(r runtimeOf) bool { return !r.pods })
}

const (
	// tryTimeout is for a runtime to show that it works, on a machine that is busy.
	tryTimeout = time.Minute
	// startTimeout is for many pods at once, removeTimeout for one; only a hang
	// reaches them.
	startTimeout  = 10 * time.Minute
	removeTimeout = time.Minute
)

// wrappers make runtimes run here: as they come they do not on a host with
// cgroup version 1, or without the right to make devices of networks.
var wrappers = []struct { //nolint:gochecknoglobals // a constant table
	name, script string
	pods         bool
}{
	// It refuses a host that has version 2 beside version 1.
	{"crun", `#!/bin/sh
if mountpoint -q /sys/fs/cgroup/unified; then
	exec unshare -m --propagation slave sh -c 'umount /sys/fs/cgroup/unified; exec crun "$@"' crun "$@"
fi
exec crun "$@"
`, true},
	// Debian's package has no shim, and runc's cannot run its pods: their second
	// container never starts.
	{"runsc", "#!/bin/sh\nexec runsc --platform=ptrace --network=none --ignore-cgroups \"$@\"\n", false},
}

// newEngine starts a containerd; close ends it.
func newEngine(ctx context.Context, b *bench, version string) (_ *engine, err error) {
	e := &engine{logs: filepath.Join(b.dir, "logs"), volume: b.volume()}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.network, err = containerd.NewNetwork(filepath.Base(filepath.Dir(b.env.State))); err != nil {
		return nil, err
	}
	release, err := releaseOf(ctx, version)
	if err != nil {
		return nil, err
	}
	if e.Daemon, err = containerd.New(b.env, release, e.network, "bench"); err != nil {
		return nil, err
	}
	if err = e.Install(ctx); err != nil {
		return nil, err
	}
	e.runtimes = []runtimeOf{{name: "kata", shim: "io.containerd.kata.v2", pods: true}, {name: "runc", shim: "io.containerd.runc.v2", pods: true}}
	if err = e.peers(b); err != nil {
		return nil, err
	}
	if err = e.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	for _, image := range []string{"pause", "busybox"} {
		if e.image, err = e.Import(ctx, image); err != nil {
			return nil, err
		}
	}
	if e.Client, err = cri.Dial(e.Address, e.network.Dial); err != nil {
		return nil, err
	}
	readyCtx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if err = e.Ready(readyCtx); err != nil {
		return nil, err
	}
	b.result.Machine = append(b.result.Machine, firstLine(ctx, filepath.Join(release.Dir, "containerd"), "--version"))
	return e, e.tryRuntimes(ctx, b)
}

// releaseOf is the containerd of a version, or Debian's.
func releaseOf(ctx context.Context, version string) (containerd.Release, error) {
	if version == "" {
		return containerd.Debian(ctx)
	}
	return containerd.Module(ctx, version)
}

// peers adds the runtimes that are installed to the configuration.
func (e *engine) peers(b *bench) error {
	f, err := os.OpenFile(e.Config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	plugin := "io.containerd.cri.v1.runtime"
	if e.Release.ConfigVersion == 2 {
		plugin = "io.containerd.grpc.v1.cri"
	}
	for _, w := range wrappers {
		if _, err := exec.LookPath(w.name); err != nil {
			b.note("%s is not installed (apt-get install %s)", w.name, w.name)
			continue
		}
		path := filepath.Join(b.dir, w.name)
		if err := os.WriteFile(path, []byte(w.script), 0o755); err != nil {
			return err
		}
		e.runtimes = append(e.runtimes, runtimeOf{name: w.name, shim: "io.containerd.runc.v2", binary: path, pods: w.pods})
		if !w.pods {
			b.note("%s: no pods, for want of a shim of its own in Debian's package", w.name)
		}
		table := "plugins.'" + plugin + "'.containerd.runtimes." + w.name
		if _, err := fmt.Fprintf(f, "[%s]\n  runtime_type = 'io.containerd.runc.v2'\n  [%s.options]\n    BinaryName = %q\n", table, table, path); err != nil {
			return err
		}
	}
	return nil
}

// tryRuntimes runs each runtime once, which warms it up, and leaves out those
// that do not work here.
func (e *engine) tryRuntimes(ctx context.Context, b *bench) error {
	var work []runtimeOf
	for _, r := range e.runtimes {
		err := e.try(ctx, r)
		switch {
		case err == nil:
			work = append(work, r)
		case r.name == "kata" || ctx.Err() != nil:
			return fmt.Errorf("%s: %w", r.name, err)
		default:
			b.note("%s does not run here: %.300s", r.name, strings.ReplaceAll(err.Error(), "\n", " "))
		}
	}
	e.runtimes = work
	return nil
}

func (e *engine) try(ctx context.Context, r runtimeOf) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if _, err := untilOutput(e.run(ctx, r), first); err != nil {
		return err
	}
	if !r.pods {
		return nil
	}
	p, _, err := e.start(ctx, r)
	if err != nil {
		return err
	}
	_, err = p.exec(ctx, "/bench/hello")
	return errors.Join(err, p.remove(ctx))
}

// first tells that there is output.
func first(out []byte) bool { return len(out) > 0 }

// run prepares a `ctr run` that writes a word.
func (e *engine) run(ctx context.Context, r runtimeOf) *exec.Cmd {
	cmd, _ := e.ctrRun(ctx, r, []string{"--rm"}, "echo", "started")
	return cmd
}

// stay prepares a `ctr run` of a container that stays until end.
func (e *engine) stay(ctx context.Context, r runtimeOf) (cmd *exec.Cmd, id string) {
	return e.ctrRun(ctx, r, []string{"--detach", "--null-io"}, "sleep", "100000")
}

func (e *engine) ctrRun(ctx context.Context, r runtimeOf, flags []string, command ...string) (cmd *exec.Cmd, id string) {
	e.count++
	id = fmt.Sprintf("bench-%d", e.count)
	args := append([]string{"run", "--runtime", r.shim, "--fifo-dir", e.Fifos, "--cgroup", e.CgroupParent + "/" + id}, flags...)
	if r.binary != "" {
		args = append(args, "--runc-binary", r.binary)
	}
	return e.Ctr(ctx, append(append(args, e.image, id), command...)...), id
}

// end ends and removes a container.
func (e *engine) end(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	for _, args := range [][]string{{"tasks", "delete", "--force", id}, {"containers", "delete", id}} {
		if _, err := took(e.Ctr(ctx, args...)); err != nil {
			return err
		}
	}
	return nil
}

// pod is one that runs.
type pod struct {
	e         *engine
	id        string
	container string
}

// start starts a pod with one container, which writes a word and stays, and
// returns the seconds until the word was in its log.
func (e *engine) start(ctx context.Context, r runtimeOf) (p *pod, seconds float64, err error) {
	e.count++
	return e.startNamed(ctx, r, fmt.Sprintf("bench-%d", e.count))
}

// startNamed is start, which may be called at once for several names.
func (e *engine) startNamed(ctx context.Context, r runtimeOf, name string) (p *pod, seconds float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	own := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
	config := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(e.logs, name),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    e.CgroupParent,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: own},
		},
	}
	start := time.Now()
	sandbox, err := e.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: r.name})
	if err != nil {
		return nil, 0, fmt.Errorf("run pod: %w", err)
	}
	made := &pod{e: e, id: sandbox.PodSandboxId}
	defer func() {
		if err != nil {
			err = errors.Join(err, made.remove(ctx))
		}
	}()
	created, err := e.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: made.id, SandboxConfig: config,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "main"},
			Image:    &runtime.ImageSpec{Image: e.image},
			Command:  []string{"sh", "-c", "echo started; exec sleep 100000"},
			LogPath:  "log",
			Mounts:   []*runtime.Mount{{ContainerPath: "/bench", HostPath: e.volume, Readonly: true}},
			Linux: &runtime.LinuxContainerConfig{
				Resources:       &runtime.LinuxContainerResources{},
				SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: own},
			},
		},
	})
	if err != nil {
		return nil, 0, fmt.Errorf("create container: %w", err)
	}
	made.container = created.ContainerId
	if _, err := e.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: made.container}); err != nil {
		return nil, 0, fmt.Errorf("start container: %w", err)
	}
	if err := filled(ctx, filepath.Join(config.LogDirectory, "log")); err != nil {
		return nil, 0, fmt.Errorf("log of the container: %w", err)
	}
	return made, time.Since(start).Seconds(), nil
}

// filled waits until there is something in the file.
func filled(ctx context.Context, path string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		switch st, err := os.Stat(path); {
		case err == nil && st.Size() > 0:
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// exec runs a command in the container, as a probe does.
func (p *pod) exec(ctx context.Context, command ...string) (seconds float64, err error) {
	start := time.Now()
	r, err := p.e.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: 60})
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	if r.ExitCode != 0 {
		return 0, fmt.Errorf("exec: exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return time.Since(start).Seconds(), nil
}

// remove removes the pod.
func (p *pod) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	_, serr := p.e.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
	_, rerr := p.e.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(serr, rerr)
}

// atOnce starts so many pods at the same time, and returns the seconds until the
// last one that started had done so, and how many did not.
func (e *engine) atOnce(ctx context.Context, r runtimeOf, n int) (seconds float64, failed []error, err error) {
	var (
		work sync.WaitGroup
		mu   sync.Mutex
		pods []*pod // guarded by mu, with seconds and failed
	)
	start := time.Now()
	for i := range n {
		work.Go(func() {
			p, _, err := e.startNamed(ctx, r, fmt.Sprintf("%s-%d-of-%d", r.name, i, n))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			pods, seconds = append(pods, p), time.Since(start).Seconds()
		})
	}
	work.Wait()
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.remove(ctx))
	}
	return seconds, failed, errors.Join(errs...)
}

// close ends containerd and removes what it has used.
func (e *engine) close() error {
	var errs []error
	if e.Client != nil {
		errs = append(errs, e.Close())
	}
	if e.Daemon != nil {
		errs = append(errs, e.Stop())
		e.RemoveCgroups()
	}
	if e.network != nil {
		errs = append(errs, e.network.Remove())
	}
	return errors.Join(errs...)
}
