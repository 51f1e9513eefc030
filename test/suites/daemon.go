package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// daemon is a containerd that is started again whenever it ends, as the suite of
// the CRI wants it: some of its tests kill it.
type daemon struct {
	address string
	cancel  context.CancelFunc
	ended   sync.WaitGroup
}

// Paths that the suite's tests know.
const (
	state     = "/run/containerd-test"
	nriSocket = "/var/run/nri-test.sock"
)

// daemon starts containerd with the runtime as the default one, and waits until
// it answers. What it says goes to the file.
func (r *runner) daemon(ctx context.Context, rt runtime, logFile string) (*daemon, error) {
	config, err := r.configure(ctx, rt)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	d := &daemon{address: state + "/containerd.sock", cancel: cancel}
	d.ended.Go(func() {
		defer log.Close()
		for running.Err() == nil {
			cmd := exec.CommandContext(running, filepath.Join(r.programs.release.Dir, "containerd"), "--log-level=debug", "--config", config,
				"--address", d.address, "--state", state, "--root", "/var/lib/containerd-test")
			cmd.Stdout, cmd.Stderr = log, log
			cmd.Env = r.environment()
			cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
			_ = cmd.Run() // a test may have killed it
			// The tests want to see that it has gone, and look once a second.
			select {
			case <-running.Done():
			case <-time.After(3 * time.Second):
			}
		}
	})
	ready, cancelReady := context.WithTimeout(ctx, time.Minute)
	defer cancelReady()
	for {
		// The answer is the CRI plugin's, which is ready last.
		err := exec.CommandContext(ready, filepath.Join(r.programs.release.Dir, "ctr"), "--address", d.address, "--namespace", "k8s.io", "containers", "list").Run()
		if err == nil {
			return d, nil
		}
		select {
		case <-ready.Done():
			said, _ := os.ReadFile(logFile)
			d.stop()
			return nil, fmt.Errorf("containerd does not answer: %w\n%s", err, said)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stop ends containerd, and this time for good.
func (d *daemon) stop() {
	d.cancel()
	d.ended.Wait()
}

// configure writes containerd's configuration: that of the suite's own script,
// and what this machine needs. Some tests start a containerd themselves: one
// without a configuration gets the same, but for NRI, whose socket is taken.
func (r *runner) configure(ctx context.Context, rt runtime) (string, error) {
	failing := filepath.Join(r.dir, "failpoint-net.d")
	for dir, plugin := range map[string]string{usualNetworks: "bridge", failing: "cni-bridge-fp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, "10-net.conflist"), fmt.Appendf(nil, networks, plugin, plugin), 0o644); err != nil {
			return "", err
		}
	}
	plugins := []string{"/usr/lib/cni/*", filepath.Join(r.programs.tests, "*-fp"), filepath.Join(r.programs.tests, "loopback-v2")}
	if err := link(usualPlugins, plugins...); err != nil {
		return "", err
	}
	if err := link(r.bin(), filepath.Join(r.programs.tests, "*"), filepath.Join(r.programs.release.Dir, "c*-shim-*"), filepath.Join(r.programs.release.Dir, "ctr")); err != nil {
		return "", err
	}
	runtimes := fmt.Sprintf(criConfig, rt.name, failing)
	config, err := r.install(ctx, "config.toml", fmt.Sprintf(nriConfig, nriSocket)+runtimes)
	if err != nil {
		return "", err
	}
	defaults, err := r.install(ctx, "defaults.toml", runtimes)
	if err != nil {
		return "", err
	}
	script := fmt.Sprintf(startContainerd, defaults, filepath.Join(r.programs.release.Dir, "containerd"))
	return config, os.WriteFile(filepath.Join(r.bin(), "containerd"), []byte(script), 0o755)
}

// install writes a configuration, and kata puts itself in, as for a user.
func (r *runner) install(ctx context.Context, name, text string) (string, error) {
	config := filepath.Join(r.dir, name)
	if err := os.WriteFile(config, []byte("version = 3\n"+text), 0o600); err != nil {
		return "", err
	}
	result, err := r.env.Run(ctx, nil, "kata", "install", "containerd", "--config", config)
	if err == nil && result.Code != 0 {
		err = fmt.Errorf("exit code %d: %s", result.Code, result.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("kata install containerd: %w", err)
	}
	return config, nil
}

// bin is the directory of all of containerd's programs, as its build leaves them
// and some tests expect them, with a script in containerd's place.
func (r *runner) bin() string { return filepath.Join(r.dir, "bin") }

// link makes links in dir to the files that match.
func link(dir string, patterns ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.Symlink(f, filepath.Join(dir, filepath.Base(f))); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

// Where containerd looks when it is not told; both are not the host's.
const (
	usualNetworks = "/etc/cni/net.d"
	usualPlugins  = "/opt/cni/bin"
)

// startContainerd is a script that stands for containerd: the defaults, and the
// program.
const startContainerd = `#!/bin/sh
for arg; do
	if [ "$before" = --config ] && [ ! -s "$arg" ]; then cp %q "$arg"; fi
	before=$arg
done
exec %q "$@"
`

// networks is a list of CNI plugins: its name, and the plugin that makes the
// bridge.
const networks = `{ "cniVersion": "1.0.0", "name": "%s", "plugins": [
  { "type": "%s", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
    "ipam": { "type": "host-local",
      "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "2001:4860:4860::/64" }]],
      "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
    "capabilities": { "io.kubernetes.cri.pod-annotations": true } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
`

// nriConfig has the socket of NRI.
const nriConfig = `[plugins."io.containerd.nri.v1.nri"]
  disable = false
  socket_path = %q
  plugin_path = "/no/pre-launched/nri/plugins"
`

// criConfig has the default runtime, and the list of networks of the runtime
// that fails where a test says.
const criConfig = `[plugins."io.containerd.snapshotter.v1.overlayfs"]
  slow_chown = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:3.10.2"
[plugins."io.containerd.cri.v1.runtime"]
  drain_exec_sync_io_timeout = "10s"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = %q
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc-fp]
    runtime_type = "io.containerd.runc-fp.v1"
    cni_conf_dir = %q
    cni_max_conf_num = 1
    pod_annotations = ["io.containerd.runtime.v2.shim.failpoint.*"]
`
